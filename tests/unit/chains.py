"""Texts whose every probability is known."""

from __future__ import annotations

import numpy as np

from grader.lockstep import ALPHABET

V = len(ALPHABET)


def markov_text(length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A first-order chain [length], as places in the alphabet, and its transition probabilities [V, V]."""
    table = rng.dirichlet(np.ones(V), V)
    text = [0]
    for _ in range(length - 1):
        text.append(rng.choice(V, p=table[text[-1]]))
    return np.array(text), table
