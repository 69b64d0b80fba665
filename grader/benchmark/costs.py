"""Times beside their floors, taken in turns in the same minutes: gradebook, sandbox, submission, reading."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from grader.bench import Bench, set_up
from grader.benchmark.record import Figure
from grader.benchmark.specimen import CALLS, CELLS, environment, fork, warm_parent, write_script
from grader.errors import AssignmentError
from grader.gradebook import Gradebook
from grader.lockstep import ALPHABET, Array, indices, lanes_of, lockstep_nats
from grader.notebook import read_percent, to_json
from grader.perplexity import score_models
from grader.pipeline import ran
from grader.sandbox.bridge import Session, StudentError
from grader.sandbox.limits import tree_cpu_s
from grader.sandbox.selftest import ENVIRONMENT, LIMITS, can_be_warm, notebook_of
from grader.sandbox.student import Student
from grader.sandbox.template import Started, template_for
from grader.sandbox.tiers import NONE
from grader.types import Assignment, Curve, Profile, Rules, Submission

LANES = 256  # as in the larger profiles
AT_ONCE = 64  # characters of a lane, in teacher forcing
TRAIN_CHARS = 30_000  # the models need not be good


_FLOOR = "fork of a warm parent"


def sandbox_start(tier: str, runs: int) -> Figure:
    """From nothing to the end of an empty cell: in a sandbox started cold, and in the same runner without one."""
    sealed, bare = _in_turns(lambda: _empty_notebook(tier), lambda: _empty_notebook(NONE), runs)
    return Figure(what=f"start of a sandbox ({tier})", floor="without a sandbox", times_s=sealed, floors_s=bare)


def submission(tier: str, runs: int) -> list[Figure]:
    """What one small submission takes from nothing to the end of its sandbox: 1 s of training, then 12 calls.

    CPU time is that of this process, of the whole sandbox as /proc has it just before it is ended, and of the template.
    The floor is the same cells and calls in a fork of a process that has imported MXNet: no kernel and no sandbox.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        script = write_script(Path(folder))
        with warm_parent(script) as parent:
            ways: dict[str, Callable[[], float]] = {
                "cold": functools.partial(_graded, tier, False),
                "plain `python script.py`": functools.partial(_scripted, script),
            }
            if can_be_warm(tier):
                ways = {"warm": functools.partial(_graded, tier, True), **ways}
            found = _costs({**ways, _FLOOR: functools.partial(fork, parent)}, runs)
    return [
        Figure(
            what=f"{way}: {what}",
            floor=_FLOOR,
            times_s=tuple(found[way][i]),
            floors_s=tuple(found[_FLOOR][i]),
        )
        for i, what in enumerate(("CPU", "wall"))
        for way in ways
    ]


def _costs(ways: Mapping[str, Callable[[], float]], runs: int) -> dict[str, tuple[list[float], list[float]]]:
    """CPU and wall seconds of each way, taken in turns; the first of each warms up and does not count."""
    found: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in ways}
    for turn in range(runs + 1):
        for way, act in ways.items():
            started = time.monotonic()
            cpu_s = act()
            if turn:
                found[way][0].append(cpu_s)
                found[way][1].append(time.monotonic() - started)
    return found


def _graded(tier: str, warm: bool) -> float:
    """CPU seconds of one sandboxed submission: ours, the sandbox's, the template's."""
    ours, template = time.process_time(), _template_cpu_s(tier) if warm else 0.0
    with Session(
        notebook=notebook_of(*CELLS), files={}, environment=ENVIRONMENT, limits=LIMITS, tier=tier, warm=warm
    ) as session:
        session.execute()
        student = Student(session, "")
        for _ in range(CALLS):
            student.predict(np.ones((4, 27), np.float32))
        inside = tree_cpu_s(session.pid)
    return time.process_time() - ours + inside + (_template_cpu_s(tier) - template if warm else 0.0)


def _template_cpu_s(tier: str) -> float:
    template = template_for(tier, sys.executable, (), {**ENVIRONMENT, "GRADER_DEVICE": "cpu"})
    return template.cpu_s() if isinstance(template, Started) else 0.0


def _scripted(script: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, str(script)], env=environment(), check=True, start_new_session=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def reading(assignment: Assignment, profile: Profile, tier: str, chars: int, runs: int) -> list[Figure]:
    """What it takes to read held-out text of so many characters: in lock-step, and by teacher forcing.

    The models are those of the assignment's solution, hardly trained. Teacher forcing is what the solution's own
    evaluation does, without a sandbox: the same text, many characters at once, and no grader that waits for anything.
    What lock-step adds to that is told from what a step of one character costs by a floor of its own: the steps of
    lock-step, without a sandbox and with nobody to ask for them.

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

    def figure(
        what: str, act: Callable[[], None], forced: Sequence[str], lanes: Array, *, alone: bool = False
    ) -> Figure:
        times_s, floors_s = _in_turns(act, lambda: (_step if alone else _force)(teacher, forced, lanes), runs)
        floor = "the same steps, alone" if alone else "teacher forcing"
        return Figure(what=what, floor=floor, times_s=times_s, floors_s=floors_s)

    found = []
    wide = np.tile(text, (4, 1))  # tells what a step costs from what a character does
    for name, asked, lanes in [
        *((f"{model}: held-out text", [model], text) for model in models),
        ("all: held-out text", models, text),
        ("all: four times as many lanes", models, wide),
    ]:
        found += [
            figure(f"{name} once, in lock-step", functools.partial(_read, student, asked, lanes), asked, lanes, alone=a)
            for a in (False, True)
        ]
    return [
        *found,
        figure("all: held-out text, some lanes again", lambda: _read(student, models, text, again=True), models, text),
        figure("all: test, held-out and spliced text", lambda: _score(student, curves, bench), models, text),
    ]


def counting(students: int, each: int, runs: int) -> list[Figure]:
    """Which grades count, in a gradebook of so many grades for each student, every one of another notebook."""
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        path = Path(scratch, "gradebook.sqlite")
        with Gradebook.open(path) as book, closing(sqlite3.connect(path)) as raw:
            _fill(raw, students, each)
            late = Rules(counts="best", due="2026-03-01T00:00:00+00:00", penalty_per_day=0.1)
            book.record_rules(late)  # by which the view `counting` judges
            ids = ", ".join(str(grade_id) for (grade_id,) in raw.execute("SELECT grade_id FROM latest"))
            found = []
            for what, view in (
                ("the latest grades", "latest"),
                ("those that count by rules", "counting"),
            ):
                query = f"SELECT * FROM grades WHERE id IN (SELECT grade_id FROM {view})"
                times_s, floors_s = _in_turns(
                    lambda query=query: raw.execute(query).fetchall(),  # type: ignore[misc]
                    lambda: raw.execute(f"SELECT * FROM grades WHERE id IN ({ids})").fetchall(),
                    runs,
                )
                found.append(Figure(what=what, floor="the same, ids known", times_s=times_s, floors_s=floors_s))
    return found


def _fill(raw: sqlite3.Connection, students: int, each: int) -> None:
    """Grades of students in turn, every tenth of them a fault of ours."""
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
    days = "strftime('%Y-%m-%dT%H:%M:%S+00:00', '2026-02-25', (i % 200) || ' hours')"
    seconds = days.replace("%Y-%m-%dT%H:%M:%S+00:00", "%s")
    [trigger] = raw.execute("SELECT sql FROM sqlite_master WHERE name = 'grades_stand'").fetchone()
    raw.execute("DROP TRIGGER grades_stand")  # what counts is reckoned at once, when the rules are recorded
    raw.execute("INSERT INTO runs VALUES (1, 'grade', 'smoke', '')")
    raw.execute(
        f"{numbers} INSERT INTO submissions SELECT i, 's' || (i % ?), printf('%064x', i), {days},"
        f" CAST({seconds} AS INTEGER) FROM n",
        (students * each, students),
    )
    raw.execute(
        f"{numbers} INSERT INTO grades (id, run_id, submission_id, student_id, status, message, score, max_score, key,"
        " grader_version, data_sha256, profile, sandbox, wall_time_s, graded_at)"
        " SELECT i, 1, i, 's' || (i % ?), CASE WHEN i % 10 THEN 'graded' ELSE 'needs_regrade' END, '',"
        " CASE WHEN i % 10 THEN i % 100 END, 100, printf('%064x', i), '', '', 'smoke', '', 1, '' FROM n",
        (students * each, students),
    )
    raw.execute(trigger)
    raw.execute(  # what the trigger would have added for each grade
        "INSERT INTO standings (student_id, grade_id, attempt, late_days, late_penalty)"
        " SELECT student_id, id, 1, 0, 0 FROM grades"
    )
    raw.commit()


def require_solution(assignment: Assignment) -> Path:
    """The master notebook. Raises AssignmentError if there is none."""
    master = Path(assignment.folder) / "homework.py"
    if not master.exists():
        raise AssignmentError(f"{master} does not exist: only the staff's folder has the solution that is measured.")
    return master


def _solution(assignment: Assignment, folder: Path) -> Submission:
    """The master notebook, as if handed in."""
    master = require_solution(assignment)
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


def _step(teacher: Student, models: Sequence[str], text: Array) -> None:
    """Read lanes [B, W + L] one character at a time, all in the process of the models."""
    columns = ["".join(ALPHABET[symbol] for symbol in column) for column in text.T[:-1]]
    for model in models:
        teacher.stubs.read_alone(model, columns)


def _score(student: Student, curves: Sequence[Curve], bench: Bench) -> None:
    for model, score in score_models(student, curves, bench.split, bench.profile.lanes, seed=0).items():
        if score.nats_per_char is None:
            raise AssignmentError(f"{model} of the solution cannot be measured: {score.message}")


def _in_turns(
    first: Callable[[], object], second: Callable[[], object], runs: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of both, measured alternately; the first of each warms up and does not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs + 1):
        for found, act in zip(times, (first, second), strict=True):
            started = time.monotonic()
            act()
            found.append(time.monotonic() - started)
    return tuple(times[0][1:]), tuple(times[1][1:])


def _empty_notebook(tier: str) -> None:
    with Session(notebook=notebook_of("pass"), files={}, environment={}, limits=LIMITS, tier=tier) as session:
        session.execute()
