"""What decides a grade, by name: each part is a hash or a version, and the hash of them all is the grade's key.

What only says how a grade is shown or counted (titles, hints, due dates, attempts, marks) is in no part: to change it
has nobody graded again. A course's secret seed enters through `Split.sha256` only, which is published with every grade:
nothing here lets a guess of the seed be tested that could not be tested with that.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grader import __version__
from grader.types import Assignment, Profile, Split, Submission

# The modules that decide a grade, besides the sandbox.
DECIDING = (
    *("baselines", "bench", "checks", "corpus", "identity", "integrity", "notebook"),
    *("perplexity", "pipeline", "split"),
)
# What each part is, in the order of the table that `grader why` prints.
PARTS = {
    "submission": "the notebook, with the weights beside it",
    "weights": "models whose weights were handed in",
    "settings": "what assignment.yaml says of checks, points and the corpus",
    "checks": "the files of checks/",
    "profile": "sizes, limits and credit curves of the profile",
    "corpus": "the text that is drawn from",
    "draw": "train, test and held-out text, as drawn from it",
    "sandbox": "the sandbox",
    "device": "what the notebook computes on",
    "runtime": "Python and MXNet of the student's kernel",
    "grader": "the grader's version",
    "engine": "the grader's code that decides a grade",
}


def key_parts(
    submission: Submission,
    *,
    assignment: Assignment,
    profile: Profile,
    split: Split,
    tier: str,
    device: str,
    runtime: str,
) -> dict[str, str]:
    """Everything that decides the grade of a submission, by the names of PARTS."""
    return {
        "submission": submission.sha256,
        "weights": " ".join(sorted(submission.params)) or "none",
        "settings": _settings_sha256(assignment),
        "checks": assignment.checks_sha256,
        "profile": _profile_sha256(profile),
        "corpus": split.corpus_sha256,
        "draw": split.sha256,
        "sandbox": tier,
        "device": device,
        "runtime": runtime,
        "grader": __version__,
        "engine": _engine_sha256(),
    }


def key_of(parts: Mapping[str, str]) -> str:
    """The hash of all parts."""
    return _sha256(dict(parts))


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the parts that differ, one that is missing on one side included, in the order of PARTS."""
    names = [*PARTS, *sorted({*before, *now} - set(PARTS))]
    return tuple(name for name in names if before.get(name) != now.get(name))


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _settings_sha256(assignment: Assignment) -> str:
    checks = [[check.id, check.points, check.hidden, sorted(check.mistakes)] for check in assignment.checks]
    said = (assignment.corpus, assignment.weights, assignment.reported, assignment.score)
    return _sha256([checks, *said])


def _profile_sha256(profile: Profile) -> str:
    """Of all that the profile says; curves as they lie on this draw, to a millionth of a nat.

    Where a baseline lies is computed: its last bits may be others on another processor, and change no grade.
    """
    values = dataclasses.asdict(profile)
    del values["runtime"]  # a path, which differs between machines; what it leads to is a part of its own
    for curve in values["curves"]:
        curve["credit"] = [[f"{nats:.6f}", points] for nats, points in curve["credit"]]
    return _sha256(values)


@functools.cache
def _engine_sha256() -> str:
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted([*here.glob("sandbox/*.py"), *(here / f"{name}.py" for name in DECIDING)]):
        digest.update(path.read_bytes())
    return digest.hexdigest()
