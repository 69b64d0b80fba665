"""Compares measurements that should agree, and raises flags with their evidence; a flag deducts nothing.

TRAINED_ON_TEST: the test text, which the notebook is given, and the held-out text, which it never sees, are drawn
alike. A model that learnt from the test text is better there. Blocks differ in difficulty, so each block's loss is
taken relative to what an n-gram yardstick loses on it, fitted to the training text alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from grader.types import Flag, PerplexityScore

PERMUTATIONS = 100_000
P_VALUE = 1e-4  # false alarms per honest model
MINIMUM_GAP = 0.02  # nats/char; a smaller one is not worth a human's time
Array = np.ndarray[Any, Any]


def trained_on_test(score: PerplexityScore, yardstick: tuple[Array, Array], *, seed: int = 0) -> Flag | None:
    """A flag if test text is easier for the model than held-out text by more than chance explains.

    `yardstick` holds the n-gram losses on the same held-out and test blocks. The p-value is that of a one-sided
    permutation test on the difference of means, with a fixed seed.
    """
    if not score.block_nats or not score.test_block_nats:
        return None
    held_out = np.array(score.block_nats) - yardstick[0]
    test = np.array(score.test_block_nats) - yardstick[1]
    gap = float(held_out.mean() - test.mean())
    if gap < MINIMUM_GAP:
        return None
    p_value = permutation_p_value(held_out, test, seed)
    if p_value > P_VALUE:
        return None
    evidence = (
        f"{gap:.3f} nats/char better on the test text than on held-out text of the same draw, "
        f"relative to a trigram (permutation test, p = {p_value:.1e})"
    )
    return Flag(kind="TRAINED_ON_TEST", model=score.model, evidence=evidence)


def permutation_p_value(larger: Array, smaller: Array, seed: int) -> float:
    """How often a random relabelling of the pooled blocks gives at least the observed difference of means."""
    rng = np.random.default_rng(seed)
    pooled, n = np.concatenate([larger, smaller]), len(larger)
    observed, total = larger.mean() - smaller.mean(), pooled.sum()
    hits, batch = 0, 2000
    for _ in range(PERMUTATIONS // batch):
        picked = rng.permuted(np.tile(pooled, (batch, 1)), axis=1)[:, :n].sum(axis=1)
        difference = picked / n - (total - picked) / (len(pooled) - n)
        hits += int((difference >= observed - 1e-12).sum())
    return (hits + 1) / (PERMUTATIONS + 1)
