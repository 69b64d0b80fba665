"""Attacks, and a run of many in a row."""
