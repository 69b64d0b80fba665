"""`python -m tests.splices`: what models of the language lose on spliced text, and models that know the text."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from grader.baselines import fit_kneser_ney, kneser_ney_nats
from grader.config import load_assignment
from grader.corpus import load_corpus
from grader.lockstep import WARM_UP_CHARS, Array, indices, lanes_of
from grader.perplexity import SPLICED_CHARS, splice_gap, spliced
from grader.split import split_corpus

CONTEXT = 12  # characters by which a memoriser finds its place


def remembered(text: Array, lanes: Array) -> Array:
    """Whether one who has the text by heart, and finds its place by 12 characters, knows the next [B, L]."""
    follows = {tuple(text[i : i + CONTEXT]): text[i + CONTEXT] for i in range(len(text) - CONTEXT)}
    found = np.zeros((len(lanes), lanes.shape[1] - WARM_UP_CHARS), bool)
    for row, t in itertools.product(range(found.shape[0]), range(found.shape[1])):
        end = WARM_UP_CHARS + t
        found[row, t] = follows.get(tuple(lanes[row, end - CONTEXT : end])) == lanes[row, end]
    return found


def main() -> None:
    """Gap and standard error of each model, on the split of profile `cpu`."""
    assignment = load_assignment(Path("reference"))
    profile = assignment.profile("cpu")
    split = split_corpus(
        load_corpus(assignment.corpus),
        seed=assignment.seed,
        train_chars=profile.train_chars,
        test_chars=profile.test_chars,
        held_out_chars=profile.held_out_chars,
        works=profile.works,
    )
    train, text = indices(split.train), indices(split.held_out)
    order = spliced(text, np.random.default_rng(0))[: max(SPLICED_CHARS, profile.lanes * 3 * WARM_UP_CHARS)]
    places = lanes_of(order, profile.lanes)
    in_order, shuffled = lanes_of(text, profile.lanes), text[places]

    def show(name: str, held_out: Array, moved: Array) -> None:
        gap, error = splice_gap(held_out, moved, places[:, WARM_UP_CHARS:])
        print(f"{name:50} {held_out.mean():7.3f} nats/char   gap {gap:6.3f} ± {error:.3f}", flush=True)

    for n in (3, 5, 7, 9):
        levels = fit_kneser_ney(train, n)
        show(f"Kneser-Ney {n}-gram of the training text", *(kneser_ney_nats(levels, x) for x in (in_order, shuffled)))
    for n in (7, 9):
        levels = fit_kneser_ney(np.concatenate([train, text]), n)
        show(f"Kneser-Ney {n}-gram that saw the text", *(kneser_ney_nats(levels, x) for x in (in_order, shuffled)))
    levels = fit_kneser_ney(train)
    plain = [kneser_ney_nats(levels, x) for x in (in_order, shuffled)]
    knows = [remembered(text, x) for x in (in_order, shuffled)]
    for share in (0.02, 0.05, 0.1, 0.99):
        mixed = [-np.log((1 - share) * np.exp(-nats) + share * known) for nats, known in zip(plain, knows, strict=True)]
        show(f"7-gram with {100 * share:.0f} % of a memoriser", *mixed)


if __name__ == "__main__":
    main()
