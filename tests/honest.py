"""`python -m tests.honest GRADEBOOK... [--only NAME...] [--draws N]`: how often honest models would be flagged.

From real trainings: each score is drawn again many times. The blocks of test and held-out text are pooled, as they were
drawn alike, and both texts drawn from them with replacement; the splice gap is drawn from its error; how far away the
notebook's own figure and its weights are, stays. Who counts as honest is said by name, not by having no flag.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from grader.baselines import BEST_NGRAM, NGRAMS
from grader.bench import Bench, set_up
from grader.config import load_assignment
from grader.gradebook import Gradebook
from grader.integrity import (
    LARGEST_HONEST_SPLICE_GAP,
    LARGEST_POOR_SPLICE_GAP,
    MINIMUM_GAP,
    P_VALUE,
    REPORTED_TOLERANCE,
    SAME_ANSWER,
    memorised,
    relative_losses,
    reported_otherwise,
    trained_on_test,
    weights_disagree,
    weights_unknown,
)
from grader.lockstep import Array
from grader.split import BLOCK_CHARS
from grader.types import Flag, PerplexityScore

Blocks = tuple[Array, Array]


def blocks_of(lanes: Array, lane_chars: int) -> list[Array]:
    """What lies in each block of the corpus [lanes, columns], as many lanes of each."""
    middles = (np.arange(len(lanes)) + 0.5) * lane_chars
    parts = [lanes[middles // BLOCK_CHARS == i] for i in range(int(middles[-1] // BLOCK_CHARS) + 1)]
    smallest = min(len(part) for part in parts)
    return [part[:smallest] for part in parts]


def drawn_again(
    score: PerplexityScore, bench: Bench, rng: np.random.Generator
) -> tuple[PerplexityScore, list[Blocks], int]:
    """The same model on texts of other blocks; what n-grams lose there, and the length of a lane."""
    pool, counts = [], []
    for side, nats in enumerate((score.block_nats, score.test_block_nats)):
        columns = [np.array(nats), *(bench.yardsticks[name][side] for name in NGRAMS)]
        drawn = np.stack(columns, axis=1)[: bench.drawn_lanes[side]]
        found = blocks_of(drawn, bench.lane_chars[side])
        pool, counts = [*pool, *found], [*counts, len(found)]
    a_block = min(len(part) for part in pool)
    held_out, test = (
        np.concatenate([pool[i][:a_block] for i in rng.integers(len(pool), size=count)]) for count in counts
    )
    away = math.log(score.reported) - np.mean(score.test_block_nats) if score.reported else None
    again = dataclasses.replace(
        score,
        nats_per_char=float(held_out[:, 0].mean()),
        block_nats=tuple(held_out[:, 0].tolist()),
        test_block_nats=tuple(test[:, 0].tolist()),
        num_chars=score.num_chars // len(score.block_nats) * len(held_out),
        splice_gap=score.splice_gap and rng.normal(score.splice_gap, score.splice_gap_error),
        reported=away and math.exp(test[:, 0].mean() + away),
    )
    yardsticks = [(held_out[:, i], test[:, i]) for i in range(1, held_out.shape[1])]
    return again, yardsticks, BLOCK_CHARS // a_block


def flags_of(score: PerplexityScore, yardsticks: Sequence[Blocks], lane_chars: int) -> list[Flag]:
    """Every flag that grading would raise."""
    found = [
        trained_on_test(score, yardsticks, (lane_chars, lane_chars)),
        memorised(score, yardsticks[NGRAMS.index(BEST_NGRAM)]),
        weights_disagree(score),
        weights_unknown(score),
        reported_otherwise(score),
    ]
    return [flag for flag in found if flag]


def main() -> None:
    """A line for each kind of flag, and the distribution of what it is raised for."""
    parser = argparse.ArgumentParser(prog="python -m tests.honest", description=__doc__)
    parser.add_argument("gradebooks", nargs="+", type=Path)
    parser.add_argument("--only", nargs="+", help="students known to be honest; all, if left out")
    parser.add_argument("--draws", type=int, default=20, help="of each score")
    args = parser.parse_args()
    assignment, rng = load_assignment(Path("reference")), np.random.default_rng(0)
    benches: dict[str, Bench] = {}
    kinds: Counter[str] = Counter()
    values: dict[str, list[float]] = {"test or held-out easier": [], "splice gap": [], "weights": [], "reported": []}
    students, scores = set(), 0
    for path in args.gradebooks:
        with Gradebook.open(path, create=False) as book:
            grades = [grade for grade in book.latest() if not args.only or grade.student_id in args.only]
        for grade in grades:
            if grade.profile not in benches:
                benches[grade.profile] = set_up(assignment, assignment.profile(grade.profile), "none")
            bench = benches[grade.profile]
            for score in grade.perplexities:
                if not score.block_nats or grade.data_sha256 != bench.split.sha256:
                    continue
                students, scores = students | {grade.student_id}, scores + 1
                for _ in range(args.draws):
                    again, yardsticks, lane_chars = drawn_again(score, bench, rng)
                    kinds.update({flag.kind for flag in flags_of(again, yardsticks, lane_chars)})
                    held_out, test = relative_losses(again, yardsticks)
                    values["test or held-out easier"].append(abs(held_out.mean() - test.mean()))
                    values["splice gap"] += [again.splice_gap] if again.splice_gap is not None else []
                    values["weights"] += [again.weights_distance] if again.weights_distance is not None else []
                    if again.reported:
                        away = abs(math.log(again.reported) - np.mean(again.test_block_nats))
                        values["reported"].append(away)
    number = scores * args.draws
    print(f"{number} honest scores, drawn from {scores} of {len(students)} students")
    for kind in ("TRAINED_ON_TEST", "MEMORISED", "WEIGHTS_DISAGREE", "WEIGHTS_UNKNOWN", "REPORTED_OTHERWISE"):
        print(f"{kind:20} flags {kinds[kind]:4} of {number}")
    thresholds = (
        f"{MINIMUM_GAP}, and p < {P_VALUE:.0e}",
        f"{LARGEST_POOR_SPLICE_GAP} to {LARGEST_HONEST_SPLICE_GAP}",
        SAME_ANSWER,
        f"{REPORTED_TOLERANCE}, more for models that have hardly learnt",
    )
    for (name, found), threshold in zip(values.items(), thresholds, strict=True):
        if found:
            middle, high = np.quantile(found, (0.5, 0.999))
            print(f"{name:24} {len(found):6} values: median {middle:.2g}, 99.9 % {high:.2g}; threshold {threshold}")


if __name__ == "__main__":
    main()
