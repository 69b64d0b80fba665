"""A grade's key: whatever decides the grade changes it, nothing else does, and it can be told what it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grader import identity
from grader.config import load_assignment
from grader.corpus import Corpus, text_sha256
from grader.identity import PARTS, changed, key_of
from grader.split import split_corpus
from grader.types import Assignment, Curve, Profile, Submission
from tests.small import folder_with

TEXT = " ".join(f"the quick brown fox {'jumps' * (n % 3)} over a lazy dog".replace("  ", " ") for n in range(400))
SUBMISSION = Submission(student_id="ada", path="x", sha256="ab" * 32, submitted_at="2026-03-01T10:00:00+00:00")
SEED = 7_777_777_777


def parts(assignment: Assignment, profile: Profile | None = None, seed: int = SEED, **changes: Any) -> dict[str, str]:
    corpus = Corpus(name="made", text=TEXT, sha256=text_sha256(TEXT))
    split = split_corpus(corpus, seed=seed, train_chars=None, test_chars=100, held_out_chars=100, block_chars=200)
    known = {"profile": profile or assignment.profile("smoke"), "split": split, "tier": "bubblewrap"}
    known |= {"device": "cpu", "runtime": "Python 3.11.7, mxnet==1.9.1"}
    return identity.key_parts(changes.pop("submission", SUBMISSION), assignment=assignment, **(known | changes))


def folder(tmp_path: Path, **changes: Any) -> Assignment:
    tmp_path.mkdir(exist_ok=True)
    return load_assignment(folder_with(tmp_path, **changes))


CHECK = {"id": "f", "title": "F", "points": 2, "hidden": True, "hint": "Look."}


def other_check_file(tmp_path: Path) -> Assignment:
    folder_with(tmp_path)
    (tmp_path / "checks" / "test_f.py").write_text("def test_f(): pass\n")
    return load_assignment(tmp_path)


def other_stubs(tmp_path: Path) -> Assignment:
    folder_with(tmp_path)
    (tmp_path / "checks" / "stubs.py").write_text("x = 1\n")
    return load_assignment(tmp_path)


@pytest.mark.parametrize(
    ("part", "make"),
    [
        ("settings", lambda at: folder(at, checks=[CHECK | {"points": 3}])),
        ("settings", lambda at: folder(at, checks=[CHECK | {"hidden": False}])),
        ("settings", lambda at: folder(at, reported="report/{model}")),
        ("settings", lambda at: folder(at, score="checkpoint")),
        ("checks", other_check_file),
        ("checks", other_stubs),
    ],
)
def test_what_the_assignment_decides_is_told_apart(
    tmp_path: Path, part: str, make: Callable[[Path], Assignment]
) -> None:
    """A change of points and a change of a check file are two parts, and each changes the key."""
    before, now = parts(folder(tmp_path / "a")), parts(make(tmp_path / "a"))
    assert changed(before, now) == (part,)
    assert key_of(before) != key_of(now)


def test_each_other_part_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notebook, weights, profile, draw, sandbox, device, runtime, version and code of the grader: one part each."""
    assignment = folder(tmp_path)
    before, smoke = parts(assignment), assignment.profile("smoke")
    assert changed(before, parts(assignment)) == ()
    assert list(before) == list(PARTS)
    for part, change in (("submission", {"sha256": "cd"}), ("weights", {"params": {"rnn": "x"}})):
        other = dataclasses.replace(SUBMISSION, **change)  # type: ignore[arg-type]
        assert changed(before, parts(assignment, submission=other)) == (part,)
    assert changed(before, parts(assignment, seed=8)) == ("draw",)
    assert changed(before, parts(assignment, tier="uid")) == ("sandbox",)
    curve = Curve(model="rnn", relative_to="", credit=((2.8, 0.0), (1.9, 4.0)))
    for scale in (
        dataclasses.replace(smoke, time_budget_s=61.0),
        dataclasses.replace(smoke, curves=(curve,)),
        dataclasses.replace(smoke, limits=dataclasses.replace(smoke.limits, memory_bytes=1)),
    ):
        assert changed(before, parts(assignment, scale)) == ("profile",)
    assert changed(before, parts(assignment, device="gpu")) == ("device",)
    assert changed(before, parts(assignment, runtime="Python 3.11.7, mxnet-cu117==1.9.1")) == ("runtime",)
    elsewhere = dataclasses.replace(smoke, runtime=dataclasses.replace(smoke.runtime, python="/opt/python"))
    assert changed(before, parts(assignment, elsewhere)) == ()
    monkeypatch.setattr(identity, "__version__", "9")
    assert changed(before, parts(assignment)) == ("grader",)
    monkeypatch.setattr(identity, "_engine_sha256", lambda: "0" * 64)
    assert changed(before, parts(assignment)) == ("grader", "engine")


@pytest.mark.parametrize(
    "change",
    [
        {"title": "Another title"},
        {"duedate": "2026-03-02T00:00:00+00:00"},
        {"checks": [CHECK | {"hint": "Look again.", "title": "G", "section": "1"}]},
        {"manual": [{"id": "essay", "title": "E", "points": 6}]},
        {"seed": 8},  # which counts as what it draws
    ],
)
def test_what_only_shows_or_counts_a_grade_grades_nobody_again(tmp_path: Path, change: dict[str, Any]) -> None:
    """A better hint or a later due date leaves every key as it was."""
    assert parts(folder(tmp_path, **change)) == parts(folder(tmp_path))


def test_a_rounding_error_of_a_baseline_grades_nobody_again(tmp_path: Path) -> None:
    """Another processor may compute another last bit of where a curve lies: the key is the same."""
    assignment = folder(tmp_path)

    def placed(nats: float) -> Profile:
        curve = Curve(model="rnn", relative_to="", credit=((nats, 0.0), (1.9, 4.0)))
        return dataclasses.replace(assignment.profile("smoke"), curves=(curve,))

    assert parts(assignment, placed(0.1 + 0.2)) == parts(assignment, placed(0.3))
    assert parts(assignment, placed(0.3)) != parts(assignment, placed(0.31))


def test_the_seed_is_in_one_part_only_and_not_in_clear(tmp_path: Path) -> None:
    """What depends on the seed is the draw, which is published with each grade anyway."""
    one, other = (parts(folder(tmp_path, seed=seed), seed=seed) for seed in (SEED, SEED + 1))
    assert changed(one, other) == ("draw",)
    assert not any(str(SEED) in value or f"{SEED:x}" in value for value in one.values())
