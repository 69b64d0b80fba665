"""The leaderboard: fair ranks, names that tell nothing, and the same facts in CSV, table and page."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from records import HOSTILE, a_grade
from rich.console import Console

from grader import plot
from grader.baselines import BEST_NGRAM
from grader.disclose import CPU_INSTEAD, WEAKER_PROMISE
from grader.leaderboard import (
    Baseline,
    Row,
    leaderboard_csv,
    leaderboard_html,
    leaderboard_table,
    pseudonyms,
    rows,
)
from grader.types import Grade, Outcome, PerplexityScore, Status
from tests.harmless import Page, assert_harmless


def score(nats: float | None, half: float | None = 0.05, model: str = "lstm") -> PerplexityScore:
    low, high = (None, None) if nats is None or half is None else (nats - half, nats + half)
    return PerplexityScore(
        model=model,
        outcome=Outcome.PASSED if nats is not None else Outcome.NOT_RUN,
        points=1.0,
        max_points=4.0,
        nats_per_char=nats,
        ci_low=low,
        ci_high=high,
    )


def blocks(values: np.ndarray, model: str = "lstm") -> PerplexityScore:
    """A score that has block losses, with intervals as wide as blocks differ."""
    nats = float(values.mean())
    return replace(score(nats, 0.1, model), block_nats=tuple(values.tolist()))


def entry(student_id: str, *scores: PerplexityScore, **changes: Any) -> Grade:
    return a_grade(student_id, perplexities=scores, **changes)


def ranks(*grades: Grade, baselines: tuple[Baseline, ...] = ()) -> list[tuple[str, int | None]]:
    return [(row.name, row.rank) for row in rows(grades, baselines, salt="s", names=True)]


def printed(board: list[Row]) -> str:
    console = Console(width=200, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(leaderboard_table(board))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_lower_perplexity_ranks_higher() -> None:
    """Entries whose intervals lie apart rank one after the other, best model first."""
    assert ranks(entry("b", score(1.9)), entry("a", score(1.7)), entry("c", score(2.1))) == [
        ("a", 1),
        ("b", 2),
        ("c", 3),
    ]


@pytest.mark.parametrize("checkpoint", [True, False])
def test_the_weaker_promise_is_said(checkpoint: bool) -> None:
    """Of one such entry by the page and by the terminal; where there is none, by neither."""
    board = rows([entry("a", score(1.7)), entry("b", score(1.9), checkpoint=checkpoint)], salt="s")
    assert (WEAKER_PROMISE in leaderboard_html(board, assignment_title="t")) == checkpoint
    words = re.sub(r"\x1b\[[0-9;]*m", "", printed(board)).split()
    assert (WEAKER_PROMISE in " ".join(words)) == checkpoint
    on_cpu = rows([entry("a", score(1.7)), entry("b", score(1.9), cpu_instead=True)], salt="s")
    assert CPU_INSTEAD in leaderboard_html(on_cpu, assignment_title="t")
    assert CPU_INSTEAD not in leaderboard_html(board, assignment_title="t")


def test_the_best_model_counts() -> None:
    """A student is ranked by the best of the models; one that was not measured does no harm."""
    [row] = rows([entry("a", score(2.5, model="rnn"), score(1.8, model="gru"), score(None))], salt="s")
    assert (row.model, row.nats_per_char) == ("gru", 1.8)
    assert row.perplexity == pytest.approx(math.exp(1.8))
    assert [name for name, _ in row.scores] == ["rnn", "gru"]


def test_overlapping_intervals_share_a_rank() -> None:
    """Who overlaps the leader of the group shares its rank; the next rank counts the places above."""
    grades = [entry("a", score(1.70)), entry("b", score(1.75)), entry("c", score(1.82)), entry("d", score(2.0))]
    assert ranks(*grades) == [("a", 1), ("b", 1), ("c", 3), ("d", 4)]


def test_what_is_hard_for_all_does_not_blur_a_difference() -> None:
    """Blocks differ by far more than entries do: a small one on each is resolved, as large a one by luck is not."""
    rng = np.random.default_rng(0)
    hard = rng.normal(1.8, 0.2, 100)
    noise = rng.normal(0, 0.2, 100)
    steady = entry("b", blocks(hard + 0.01 + 0.01 * rng.normal(size=100)))
    lucky = entry("c", blocks(hard + noise - noise.mean() + 0.012))
    assert ranks(entry("a", blocks(hard)), steady) == [("a", 1), ("b", 2)]
    assert ranks(entry("a", blocks(hard)), lucky) == [("a", 1), ("c", 1)]
    assert ranks(entry("a", blocks(hard)), entry("b", blocks(hard))) == [("a", 1), ("b", 1)]


def test_entries_on_different_texts_are_compared_by_their_intervals() -> None:
    """Block by block, other text says nothing."""
    hard = np.random.default_rng(0).normal(1.8, 0.2, 100)
    other = entry("b", blocks(hard + 0.05), data_sha256="another draw")
    assert ranks(entry("a", blocks(hard)), other) == [("a", 1), ("b", 1)]


def test_who_beats_the_seven_gram_has_a_badge() -> None:
    """On the same text, and by more than chance; in every form for people."""
    hard = np.random.default_rng(0).normal(1.3, 0.2, 100)
    line = Baseline(name=BEST_NGRAM, nats_per_char=float(hard.mean()), block_nats=tuple(hard.tolist()), data_sha256="x")
    noise = np.random.default_rng(1).normal(0, 0.02, 100)
    below, close = blocks(hard - 0.05 + noise), blocks(hard + noise - noise.mean() - 1e-4)
    better, elsewhere = entry("a", below, data_sha256="x"), entry("b", below, data_sha256="y")
    board = rows([better, elsewhere, entry("c", close, data_sha256="x")], [line], salt="s", names=True)
    assert {row.name: row.has_badge for row in board} == {"a": True, "b": False, "c": False, BEST_NGRAM: False}
    assert printed(board).count("★") == 1 + 1  # the caption says what it means
    assert words(leaderboard_html(board, assignment_title="H")).count("★ beats the Kneser-Ney 7-gram") == 1


def words(page: str) -> str:
    return " ".join(Page(page).text.split())


def test_ties_do_not_chain() -> None:
    """Overlap with a neighbour is not enough: it is the leader of the group that counts."""
    grades = [entry(name, score(1.7 + 0.08 * i)) for i, name in enumerate("abcd")]
    assert ranks(*grades) == [("a", 1), ("b", 1), ("c", 3), ("d", 3)]


def test_without_an_interval_an_entry_is_a_point() -> None:
    """Missing intervals make no ties but between equals."""
    assert ranks(entry("a", score(1.7, None)), entry("b", score(1.7, None)), entry("c", score(1.71, None))) == [
        ("a", 1),
        ("b", 1),
        ("c", 3),
    ]


def test_baselines_and_the_unmeasured_have_no_rank() -> None:
    """Baselines stand among the entries and take no place; who was not measured stands at the end."""
    grades = [
        entry("a", score(1.7)),
        entry("b", score(2.2)),
        entry("y", status=Status.NEEDS_REGRADE, score=None),
        entry("x", score(None), status=Status.TIMED_OUT),
        entry("w", score(math.nan)),
    ]
    found = ranks(*grades, baselines=(Baseline(name="MLP", nats_per_char=2.0),))
    assert found == [("a", 1), ("MLP", None), ("b", 2), ("w", None), ("x", None), ("y", None)]


# --- names ---


def test_a_pseudonym_is_stable_and_needs_the_salt() -> None:
    """The same student and salt give the same name, whoever else is there; another salt gives another."""
    alone, among = pseudonyms(["ada"], "s"), pseudonyms(["bob", "ada", "cy"], "s")
    assert alone["ada"] == among["ada"]
    assert re.fullmatch(r"[a-z]+-[a-z]+", alone["ada"])
    assert pseudonyms(["ada"], "other") != alone


def test_pseudonyms_are_distinct() -> None:
    """More students than names still have a name each, and the same one in any order."""
    ids = [f"student{number}" for number in range(6000)]
    names = pseudonyms(ids, "s")
    assert len(set(names.values())) == len(ids)
    assert pseudonyms(ids[::-1], "s") == names


def test_the_public_board_names_nobody() -> None:
    """No student id, flag or notebook is in any of the public forms; staff see ids and flags."""
    grades = [entry("ada.lovelace", score(1.7)), entry("bob.builder", score(1.9))]
    public, staff = rows(grades, salt="s"), rows(grades, salt="s", names=True)
    texts = [leaderboard_csv(public), printed(public), leaderboard_html(public, assignment_title="H"), repr(public)]
    for text in texts:
        assert "ada.lovelace" not in text
        assert "bob.builder" not in text
        assert "MEMORISED" not in text
    assert "lags</th>" not in texts[2]
    for text in (leaderboard_csv(staff), printed(staff), leaderboard_html(staff, assignment_title="H")):
        assert "ada.lovelace" in text
        assert "lags" in text
    assert [row.flags for row in staff] == [1, 1]


# --- forms ---


def test_csv_columns() -> None:
    """The columns are the agreed ones, intervals are nats/char, unknown is empty."""
    grades = [entry("a", score(1.7)), entry("b", status=Status.NEEDS_REGRADE, score=None)]
    text = leaderboard_csv(rows(grades, [Baseline(name="MLP", nats_per_char=2.0)], salt="s"))
    header, *_ = text.splitlines()
    assert header == "rank,pseudonym,perplexity,nats_per_char,ci_low,ci_high,status,submitted_at"
    first, baseline, lost = csv.DictReader(io.StringIO(text))
    assert first["rank"] == "1"
    assert float(first["perplexity"]) == pytest.approx(math.exp(1.7), abs=1e-5)
    assert (first["nats_per_char"], first["ci_low"], first["ci_high"]) == ("1.7", "1.65", "1.75")
    assert (first["status"], first["submitted_at"]) == ("graded", "2026-03-01T10:00:00+00:00")
    assert (baseline["rank"], baseline["pseudonym"], baseline["status"]) == ("", "MLP", "baseline")
    assert [lost[name] for name in ("rank", "perplexity", "nats_per_char", "ci_low", "ci_high")] == [""] * 5
    assert lost["status"] == "needs_regrade"


@pytest.mark.parametrize("text", [*HOSTILE, "[bold red]x[/]", "[link=file:///etc]x[/link]", "+1", "\x1b]8;;x\x07"])
def test_hostile_text_is_text(text: str) -> None:
    """Student ids and model names cannot run in a sheet, colour a terminal or script a page."""
    grade = entry(text, score(1.7, model=text), submitted_at=text)
    board = rows([grade], [Baseline(name=text, nats_per_char=2.0)], salt="s", names=True)
    for cell in [cell for row in csv.reader(io.StringIO(leaderboard_csv(board))) for cell in row]:
        assert not cell.startswith(("=", "+", "-", "@"))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", printed(board))  # the table's own dim and bold
    assert not set("\x1b\x00\x07") & set(shown)
    if text.startswith("["):
        assert text in shown
    assert_harmless(leaderboard_html(board, assignment_title=text, updated_at=text))


def test_the_page_shows_every_entry_and_model() -> None:
    """Each entry is a row with its interval drawn and named, each model a strip, each baseline a line."""
    grades = [
        entry("a", score(1.7), score(2.3, model="rnn")),
        entry("b", score(1.9)),
        entry("c", status=Status.TIMED_OUT, score=1.0),
    ]
    source = leaderboard_html(
        rows(grades, [Baseline(name="N-gram MLP", nats_per_char=2.0)], salt="s"), assignment_title="Homework 8"
    )
    assert_harmless(source)
    page = Page(source)
    labels = [attributes["aria-label"] for tag, attributes in page.tags if attributes.get("role") == "img"]
    assert labels[:3] == ["perplexity 5.47", "perplexity 6.69", "perplexity 7.39"]
    assert len(labels) == 3 + 2
    for words in ("N-gram MLP", "timed out", "not measured", "2 of 3 measured", "By model"):
        assert words in " ".join(page.text.split())


def test_nobody_yet() -> None:
    """A leaderboard without entries is a page, a table and a CSV like any other."""
    assert "Nothing has been graded yet" in leaderboard_html([], assignment_title="H")
    assert len(leaderboard_csv([]).splitlines()) == 1
    assert "rank" in printed([])


def test_a_model_that_learnt_nothing_does_not_flatten_the_plot() -> None:
    """An outlier is off the scale; the others keep most of the axis between them."""
    axis = plot.axis([1.6, 1.65, 1.7, 1.8, 1.9, 9.0])
    assert axis.beyond(9.0)
    assert axis.at(9.0) == 100.0
    assert axis.at(1.9) - axis.at(1.6) > 75
    board = rows([entry(str(n), score(nats)) for n, nats in enumerate([1.6, 1.7, 1.8, 1.9, 1e6])], salt="s")
    assert "off the scale" in leaderboard_html(board, assignment_title="H")
    assert csv.DictReader(io.StringIO(leaderboard_csv(board)))


@pytest.mark.parametrize("values", [[], [1.7], [0.0], [1.60, 1.61], [1.2, 3.3], [0.0, 4.0], [math.inf, 800.0]])
def test_an_axis_has_ticks_inside(values: list[float]) -> None:
    """Whatever the values, there is a tick or more, in order and on the axis."""
    axis = plot.axis(values)
    places = [place for place, _ in axis.ticks]
    assert places
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)
