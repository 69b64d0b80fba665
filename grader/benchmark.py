"""Measures what the grader costs: each figure beside a floor, taken in turns in the same minutes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grader.errors import AssignmentError
from grader.gradebook import Gradebook
from grader.notebook import read_percent, to_json
from grader.perplexity import Array, indices, lanes_of, lockstep_nats, score_models
from grader.pipeline import Bench, ran, set_up
from grader.sandbox.bridge import Session, Student, StudentError
from grader.sandbox.selftest import LIMITS, one_cell
from grader.sandbox.tiers import NONE
from grader.types import Assignment, Curve, Profile, Rules, Submission

LANES = 256  # as in the larger profiles
AT_ONCE = 64  # characters of a lane, in teacher forcing
TRAIN_CHARS = 30_000  # the models need not be good


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A time and the floor it is compared with: medians over the same number of runs, in seconds."""

    what: str
    floor: str
    time_s: float
    floor_s: float

    @property
    def overhead_s(self) -> float:
        return self.time_s - self.floor_s

    @property
    def ratio(self) -> float:
        return self.time_s / self.floor_s


def sandbox_start(tier: str, runs: int) -> Figure:
    """From nothing to the end of an empty cell: in a sandbox, and in the same runner without one."""
    sealed, bare = _in_turns(lambda: _empty_notebook(tier), lambda: _empty_notebook(NONE), runs)
    return Figure(what=f"start of a sandbox ({tier})", floor="without a sandbox", time_s=sealed, floor_s=bare)


def reading(assignment: Assignment, profile: Profile, tier: str, chars: int, runs: int) -> list[Figure]:
    """What it takes to read held-out text of so many characters: in lock-step, and by teacher forcing.

    The models are those of the assignment's solution, hardly trained. Teacher forcing is what the solution's own
    evaluation does, without a sandbox: the same text, many characters at once, and no grader that waits for anything.

    Raises:
        AssignmentError: there is no solution, or its models cannot be measured.
    """
    limits = dataclasses.replace(profile.limits, check_wall_s=600, total_wall_s=3600)
    short = dataclasses.replace(
        profile,
        train_chars=TRAIN_CHARS,
        test_chars=chars,
        held_out_chars=chars,
        lanes=LANES,
        time_budget_s=0,
        limits=limits,
        curves=(),
    )
    bench = set_up(assignment, short, tier)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        solution = _solution(assignment, Path(scratch))
        bare = dataclasses.replace(bench, tier=NONE, private=())
        with ran(solution, bench) as student, ran(solution, bare) as teacher:
            return _reading(student, teacher, bench, profile.curves, runs)


def _reading(student: Student, teacher: Student, bench: Bench, curves: Sequence[Curve], runs: int) -> list[Figure]:
    models = [curve.model for curve in curves]
    text = lanes_of(indices(bench.split.held_out), LANES)

    def figure(what: str, act: Callable[[], None], forced: Sequence[str]) -> Figure:
        time_s, floor_s = _in_turns(act, lambda: _force(teacher, forced, text), runs)
        return Figure(what=what, floor="teacher forcing", time_s=time_s, floor_s=floor_s)

    found = [
        figure(f"{model}: held-out text once, in lock-step", functools.partial(_read, student, [model], text), [model])
        for model in models
    ]
    found.append(
        figure("all: held-out text, and some lanes again", lambda: _read(student, models, text, again=True), models)
    )
    found.append(figure("all: test, held-out and spliced text", lambda: _score(student, curves, bench), models))
    return found


def counting(students: int, each: int, runs: int) -> list[Figure]:
    """Which grades count, in a gradebook of so many grades for each student, every one of another notebook."""
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        path = Path(scratch, "gradebook.sqlite")
        with Gradebook.open(path) as book, closing(sqlite3.connect(path)) as raw:
            _fill(raw, students, each)
            late = Rules(counts="best", due="2026-03-01T00:00:00+00:00", penalty_per_day=0.1)
            book.counting(late)  # records the rules, by which the view `counting` judges
            ids = ", ".join(str(grade_id) for (grade_id,) in raw.execute("SELECT grade_id FROM latest"))
            found = []
            for what, view in (
                ("the latest grades", "latest"),
                ("those that count by rules", "counting"),
            ):
                query = f"SELECT * FROM grades WHERE id IN (SELECT grade_id FROM {view})"
                time_s, floor_s = _in_turns(
                    lambda query=query: raw.execute(query).fetchall(),  # type: ignore[misc]
                    lambda: raw.execute(f"SELECT * FROM grades WHERE id IN ({ids})").fetchall(),
                    runs,
                )
                found.append(Figure(what=what, floor="the same, ids known", time_s=time_s, floor_s=floor_s))
    return found


def _fill(raw: sqlite3.Connection, students: int, each: int) -> None:
    """Grades of students in turn, every tenth of them a fault of ours."""
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
    days = "strftime('%Y-%m-%dT%H:%M:%S+00:00', '2026-02-25', (i % 200) || ' hours')"
    raw.execute("INSERT INTO runs VALUES (1, 'grade', 'smoke', '')")
    raw.execute(
        f"{numbers} INSERT INTO submissions SELECT i, 's' || (i % ?), printf('%064x', i), {days} FROM n",
        (students * each, students),
    )
    raw.execute(
        f"{numbers} INSERT INTO grades (id, run_id, submission_id, student_id, status, message, score, max_score, key,"
        " grader_version, data_sha256, profile, sandbox, wall_time_s, graded_at)"
        " SELECT i, 1, i, 's' || (i % ?), CASE WHEN i % 10 THEN 'graded' ELSE 'needs_regrade' END, '',"
        " CASE WHEN i % 10 THEN i % 100 END, 100, printf('%064x', i), '', '', 'smoke', '', 1, '' FROM n",
        (students * each, students),
    )
    raw.commit()


def _solution(assignment: Assignment, folder: Path) -> Submission:
    """The master notebook, as if handed in."""
    master = Path(assignment.folder) / "homework.py"
    if not master.exists():
        raise AssignmentError(f"{master} does not exist: only the staff's folder has the solution that is measured.")
    path, data = folder / "solution.ipynb", to_json(read_percent(master)).encode()
    path.write_bytes(data)
    return Submission(student_id="", path=str(path), sha256=hashlib.sha256(data).hexdigest(), submitted_at="")


def _read(student: Student, models: Sequence[str], text: Array, *, again: bool = False) -> None:
    for model, found in lockstep_nats(student, models, text, np.random.default_rng(0), again=again).items():
        if isinstance(found, StudentError):
            raise AssignmentError(f"{model} of the solution cannot be measured: {found}")


def _force(teacher: Student, models: Sequence[str], text: Array) -> None:
    """Read lanes [B, W + L] by teacher forcing, with as few breaks as AT_ONCE allows."""
    steps = text.shape[1] - 1
    at_once = steps // math.ceil(steps / AT_ONCE)
    for model in models:
        if teacher.stubs.own_perplexity(model, text.reshape(-1), len(text), at_once) is None:
            raise AssignmentError(f"{model} of the solution cannot be measured by its own evaluation.")


def _score(student: Student, curves: Sequence[Curve], bench: Bench) -> None:
    for model, score in score_models(student, curves, bench.split, bench.profile.lanes, seed=0).items():
        if score.nats_per_char is None:
            raise AssignmentError(f"{model} of the solution cannot be measured: {score.message}")


def _in_turns(first: Callable[[], object], second: Callable[[], object], runs: int) -> tuple[float, float]:
    """Medians of both, measured alternately; the first of each warms up and does not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs + 1):
        for found, act in zip(times, (first, second), strict=True):
            started = time.monotonic()
            act()
            found.append(time.monotonic() - started)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def _empty_notebook(tier: str) -> None:
    with Session(notebook=one_cell("pass"), files={}, environment={}, limits=LIMITS, tier=tier) as session:
        session.execute()
