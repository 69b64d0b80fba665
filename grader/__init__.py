"""Sandboxed grading of deep-learning notebooks: trusted checks and honest perplexity."""

__version__ = "0.1.0"
