"""Texts to test with."""

from __future__ import annotations

import random


def words(count: int, seed: int = 0) -> str:
    """Text with capitals, digits and signs, all 26 letters, from a generator of its own."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    made = ["".join(rng.choices(letters, k=rng.randint(1, 9))).capitalize() for _ in range(count)]
    return letters + ",\n" + "; 42 ".join(made) + "!\n"
