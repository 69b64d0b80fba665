"""A batch of small notebooks, graded by the real command: it resumes, survives kills, and blames the right side."""

from __future__ import annotations

import csv
import functools
import math
import os
import random
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from grader import batch, stopping
from grader.batch import grade_batch
from grader.bench import set_up
from grader.config import load_assignment
from grader.errors import InfrastructureError
from grader.executors import InProcess, LocalWorkers, Workers
from grader.gradebook import Gradebook
from grader.intake import collect
from grader.leaderboard import rows
from grader.pipeline import grade_submission
from grader.progress import standing_of
from grader.types import Grade, Status, Submission
from tests import faults
from tests.conftest import notebook_of
from tests.small import CHECK, LIMITS, course_in, folder_with, grade_command, scores

ROOT = Path(__file__).parents[1]


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A class of three: right, wrong, slow."""
    return course_in(tmp_path)


OPEN = {"name": "smoke", "train_chars": None, "test_chars": 30_000, "held_out_chars": 30_000, "time_budget_s": 60}
OPEN |= {"lanes": 100, "curves": [{"model": "rnn", "credit": [[3.5, 0], [3.4, 4]]}]}


def graded_alone(course: Path, tier: str, *cells: str) -> Grade:
    """What grading makes of one notebook with these cells."""
    assignment = load_assignment(course / "assignment")
    bench = set_up(assignment, assignment.profile("smoke"), tier, str(course / "text.txt"))
    path = course / "one.ipynb"
    path.write_bytes(notebook_of(*cells))
    return grade_submission(collect(path, course / "work")[0], bench)


def test_a_class_is_graded_and_the_same_command_again_takes_what_it_has(course: Path) -> None:
    """Right gets the points, wrong gets none; the second run grades nothing and leaves grades.csv as it was."""
    first = subprocess.run(grade_command(course, "out"), cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert scores(course, "out") == {"right": "2.0", "slow": "2.0", "wrong": "0.0"}
    before = (course / "out" / "grades.csv").read_bytes()
    again = subprocess.run(grade_command(course, "out"), cwd=ROOT, capture_output=True, text=True)
    assert again.stdout.count("already graded") == 3
    assert (course / "out" / "grades.csv").read_bytes() == before


CHAIN = """
from mxnet import nd
char_to_idx = {c: i for i, c in enumerate(" abcdefghijklmnopqrstuvwxyz")}
idx_to_char, vocab_size = list(char_to_idx), 27

class Uniform:
    def begin_state(self, batch_size, ctx=None):
        return nd.zeros((batch_size, 1))
    def __call__(self, X, state):
        return nd.zeros((X.size, 27)), state

class Chain(Uniform):
    def __call__(self, X, state):
        return nd.dot(nd.one_hot(X.T.reshape((-1,)), 27), table), state

follows = nd.one_hot(nd.arange(1, 28) % 27, 27)
table = nd.log(0.9 * follows + 0.1 / 27)
models = {"rnn": Uniform(), "chain": Chain(), "broken": 3, 7: Chain()}
encode_bag = lambda X, V: nd.one_hot(X, V).sum(axis=1)
ngram_models = {"ngram_bag": lambda x: nd.dot(x, table)}
"""


def test_models_of_ones_own_compete_in_the_open_class(course: Path, tier: str) -> None:
    """They earn nothing and cost nothing; an N-gram model reads by the context that it was trained with."""
    folder_with(course / "assignment", corpus="time-machine", profiles=[OPEN])
    (course / "assignment" / "checks" / "stubs.py").write_bytes((ROOT / "reference/checks/stubs.py").read_bytes())
    chain, letters = random.Random(1), " abcdefghijklmnopqrstuvwxyz"
    places = [0]
    for _ in range(180_000):
        places.append((places[-1] + 1) % 27 if chain.random() < 0.9 else chain.randrange(27))
    (course / "text.txt").write_text("".join(letters[place] for place in places))
    grade = graded_alone(course, tier, CHAIN)
    found = {score.model: score for score in grade.perplexities}
    assert list(found) == ["rnn", "broken", "chain", "ngram_bag"]
    assert found["rnn"].nats_per_char == pytest.approx(math.log(27), abs=1e-9)
    entropy = -(0.9 + 0.1 / 27) * math.log(0.9 + 0.1 / 27) - 2.6 / 27 * math.log(0.1 / 27)
    assert found["chain"].nats_per_char == pytest.approx(entropy, abs=0.03)
    assert found["ngram_bag"].nats_per_char == pytest.approx(found["chain"].nats_per_char, abs=1e-6)
    assert found["broken"].nats_per_char is None
    assert [score.max_points for score in grade.perplexities] == [4, 0, 0, 0]
    assert (grade.max_score, grade.status) == (6, Status.GRADED)
    boards = [rows([grade], salt="s", names=True, open_class=one) for one in (False, True)]
    assert [[(row.name, row.model, row.rank) for row in board] for board in boards] == [
        [(grade.student_id, "rnn", 1)],
        [(grade.student_id, "chain", 1)],
    ]


def test_who_handed_in_nothing_is_missing_until_something_comes(course: Path) -> None:
    """The roster says who is in the course; a later batch without them takes nobody's grade away."""
    (course / "assignment" / "roster.csv").write_text("student_id,last_name\nright,Riter\nlazy,Late\nslow,\nwrong,\n")
    subprocess.run(grade_command(course, "out"), check=True, capture_output=True)
    with (course / "out" / "grades.csv").open(newline="") as stream:
        table = {row["student_id"]: row for row in csv.DictReader(stream)}
    assert {name: row["status"] for name, row in table.items()} == {
        "lazy": "missing",
        "right": "graded",
        "slow": "graded",
        "wrong": "graded",
    }
    assert (table["lazy"]["last_name"], table["right"]["last_name"]) == ("Late", "Riter")
    (course / "submitted" / "right").rename(course / "submitted" / "lazy")
    subprocess.run(grade_command(course, "out"), check=True, capture_output=True)
    with (course / "out" / "grades.csv").open(newline="") as stream:
        status = {row["student_id"]: row["status"] for row in csv.DictReader(stream)}
    assert (status["lazy"], status["right"]) == ("graded", "graded")


@pytest.mark.parametrize(("begin", "outcome"), [("time.sleep(0.3)", "TIMED_OUT"), ("os._exit(0)", "KERNEL_DIED")])
def test_a_model_of_ones_own_costs_the_others_nothing(course: Path, tier: str, begin: str, outcome: str) -> None:
    """Whether it is slow or ends the process: what was asked for is measured."""
    folder_with(course / "assignment", corpus="time-machine", profiles=[OPEN])
    (course / "assignment" / "checks" / "stubs.py").write_bytes((ROOT / "reference/checks/stubs.py").read_bytes())
    call = f"def __call__(self, X, state):\n        {begin}\n        return super().__call__(X, state)"
    bad = f"import os, time\nclass Bad(Uniform):\n    {call}"
    mine = "models = dict(a=Bad(), b=Bad(), rnn=Uniform()); ngram_models = None"
    grade = graded_alone(course, tier, CHAIN, bad, mine)
    found = {score.model: score for score in grade.perplexities}
    assert found["rnn"].points == 4
    assert {found["a"].outcome.value, found["b"].outcome.value} <= {outcome, "NOT_RUN"}
    assert found["a"].outcome.value == outcome


VICTIM = f"victim{os.getpid()}"
MARKED = f"""
import ctypes, time
def here(seconds):
    ctypes.CDLL(None).prctl(15, b"{VICTIM}")  # PR_SET_NAME
    time.sleep(seconds)
    ctypes.CDLL(None).prctl(15, b"python")
"""


def kill_some(whom: list[str], killed: list[int]) -> None:
    """In a thread: SIGKILL to the process that calls `here`, or to the first of its sandbox, or SIGTERM, in turns."""
    deadline = time.monotonic() + 60
    while len(killed) < len(whom) and time.monotonic() < deadline:
        for process in psutil.process_iter(["name"]):
            if process.info["name"] == VICTIM and process.pid not in killed:
                victim = process.parent() if whom[len(killed)] == "its parent" else process
                (victim or process).send_signal(signal.SIGTERM if whom[len(killed)] == "term" else signal.SIGKILL)
                killed.append(process.pid)
                break
        time.sleep(0.05)


@pytest.mark.parametrize("whom", [["kernel"], ["its parent"], ["kernel", "term"]], ids=" ".join)
@pytest.mark.parametrize("moment", ["cell", "check", "model"])
def test_what_kills_a_sandbox_costs_no_point(course: Path, tier: str, whom: list[str], moment: str) -> None:
    """While a cell runs, a check or the held-out text: it is asked again, and the grade is what it would have been."""
    folder_with(course / "assignment", corpus="time-machine", profiles=[OPEN])
    (course / "assignment" / "checks" / "stubs.py").write_bytes((ROOT / "reference/checks/stubs.py").read_bytes())
    pause = {name: f"here({1.5 if name == moment else 0})" for name in ("cell", "check", "model")}
    once = f"def __call__(self, X, state):\n        if not seen: seen.append({pause['model']})\n"
    rnn = f"seen = []\nclass Slow(Uniform):\n    {once}        return super().__call__(X, state)"
    killed: list[int] = []
    killer = threading.Thread(target=kill_some, args=(whom, killed))
    killer.start()
    function = f"def f(x):\n    {pause['check']}\n    return 2 * x"
    grade = graded_alone(
        course, tier, MARKED, pause["cell"], function, CHAIN, rnn, "models = dict(rnn=Slow()); ngram_models = None"
    )
    killer.join()
    assert len(killed) == len(whom)
    assert [check.outcome.value for check in grade.checks] == ["PASSED"]
    assert [score.outcome.value for score in grade.perplexities] == ["PASSED"]
    assert grade.status is Status.GRADED


def test_who_stands_still_for_a_while_costs_nobody_a_point(course: Path) -> None:
    """Everything is stopped and goes on: what is out of time by that is asked again."""
    limits = {**LIMITS, "notebook_wall_s": 6}
    folder_with(course / "assignment", corpus="time-machine", curves=False, limits=limits)
    (course / "submitted" / "right" / "homework.ipynb").write_bytes(
        notebook_of(MARKED, "here(4)", "def f(x): return 2 * x")
    )
    process = subprocess.Popen(grade_command(course, "out"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while not [one for one in psutil.process_iter(["name"]) if one.info["name"] == VICTIM]:
        assert process.poll() is None
        time.sleep(0.05)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for what in (signal.SIGSTOP, signal.SIGCONT):
        for member in family:
            member.send_signal(what)
        time.sleep(8 if what == signal.SIGSTOP else 0)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "stood still" in said
    assert scores(course, "out") == {"right": "2.0", "slow": "2.0", "wrong": "0.0"}


def test_a_curve_that_is_relative_to_nothing_is_refused(course: Path) -> None:
    """Before any text is read or model fitted."""
    curve = {"model": "rnn", "relative_to": "tetragram", "credit": [[1, 0], [0, 4]]}
    profile = {"name": "smoke", "train_chars": None, "test_chars": 100, "held_out_chars": 100}
    profile |= {"time_budget_s": 60, "lanes": 4, "curves": [curve]}
    folder_with(course / "assignment", corpus="time-machine", profiles=[profile])
    done = subprocess.run(grade_command(course, "out"), check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "relative to 'tetragram'; the baselines are uniform, unigram, trigram" in done.stderr


def begun(course: Path) -> subprocess.Popen[str]:
    """A batch with one worker that has recorded its first grade."""
    process = subprocess.Popen(
        grade_command(course, "out", "--jobs", "1"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert "right" in process.stdout.readline()
    return process


def require_it_goes_on(course: Path) -> None:
    """The same command grades the rest."""
    assert subprocess.run(grade_command(course, "out"), cwd=ROOT, capture_output=True).returncode == 0
    assert scores(course, "out") == {"right": "2.0", "slow": "2.0", "wrong": "0.0"}


def test_a_batch_killed_in_the_middle_ends_in_the_same_grades(course: Path) -> None:
    """SIGKILL to the coordinator leaves no process, loses no grade, and the same command finishes the work."""
    process = begun(course)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(family, timeout=10)[1]
    done = subprocess.run(grade_command(course, "out"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already graded") == 1
    assert scores(course, "out") == {"right": "2.0", "slow": "2.0", "wrong": "0.0"}


def test_a_worker_that_is_killed_costs_nobody_a_point(course: Path) -> None:
    """What it had in hand is graded again by another worker."""
    process = begun(course)
    workers = [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    workers[0].kill()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert scores(course, "out") == {"right": "2.0", "slow": "2.0", "wrong": "0.0"}


def test_whatever_is_killed_the_grades_are_the_same(tmp_path: Path) -> None:
    """Eight kills of random processes at random moments: the same command ends in the same grades.csv, times aside.

    `python -m tests.faults --kills 100` is the long form.
    """
    course = course_in(tmp_path, faults.class_of(6))
    assert faults.start(course, "calm").wait() == 0
    _, outs = faults.disturb(course, 8, random.Random(1))
    for out in outs:
        assert faults.table(course, out) == faults.table(course, "calm")
        with Gradebook.open(course / out / "gradebook.sqlite") as book:
            assert len(book.latest()) == 6


@pytest.mark.parametrize("place", ["> /dev/full", "1>&-", "> /dev/full 2>&1"])
def test_a_batch_goes_on_when_nobody_can_read_it(tmp_path: Path, place: str) -> None:
    """On a full disk, and without a standard output: everybody is graded, and a full disk is said once."""
    course = course_in(tmp_path, {"ada": "def f(x): return 2 * x", "bob": "def f(x): return x"})
    line = f"{shlex.join(grade_command(course, 'out', '--jobs', '1'))} {place}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stderr.count("No space left on device") == (place == "> /dev/full")
    assert scores(course, "out") == {"ada": "2.0", "bob": "0.0"}


def test_ctrl_c_finishes_what_runs_and_can_be_resumed(course: Path) -> None:
    """Exit code 130; what was in hand is recorded, the rest is graded by the same command; `status` says it stops."""
    process = begun(course)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    while not standing_of(course / "out")[0].is_stopping:
        assert process.poll() is None
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130, complaint
    assert "Traceback" not in complaint
    assert scores(course, "out") == {"right": "2.0", "slow": "2.0"}
    require_it_goes_on(course)


def test_a_second_ctrl_c_stops_at_once_and_blames_nobody(course: Path) -> None:
    """Exit code 130; what was in hand is in no record and in no log as a fault, and is graded by the same command."""
    process = begun(course)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said, complaint = process.communicate(timeout=60)
    assert process.returncode == 130, complaint
    assert "Traceback" not in complaint
    assert "tried again" not in said
    assert [path.stem for path in (course / "out" / "logs").iterdir()] == ["right"]
    command = [sys.executable, "-m", "grader.cli", "status", str(course / "out")]
    stands = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert "1/3 done  0 running  2 " in stands
    require_it_goes_on(course)


def test_a_second_ctrl_c_is_heard_while_the_gradebook_is_locked(course: Path) -> None:
    """Exit code 130 in some seconds, not after all attempts to write; the same command grades the rest."""
    process = begun(course)
    with closing(sqlite3.connect(course / "out" / "gradebook.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(6)  # by now the next grade is to be written
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while "Stopping" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in complaint) == (130, False), complaint
    require_it_goes_on(course)


def test_a_fault_of_ours_is_never_a_zero(course: Path, tier: str) -> None:
    """A file that vanishes before it is graded ends as needs_regrade with an empty score, not as 0."""
    assignment = load_assignment(course / "assignment")
    bench = set_up(assignment, assignment.profile("smoke"), tier, str(course / "text.txt"))
    submissions = collect(course / "submitted", course / "work")
    (course / "submitted" / "wrong" / "homework.ipynb").unlink()
    reported: list[Grade] = []
    with Gradebook.open(course / "book.sqlite") as book:
        run_id = book.begin_run(command="test", profile="smoke", started_at="2026-01-01T00:00:00+00:00")
        grade_batch(
            [s for s in submissions if s.student_id != "slow"],
            bench,
            book,
            run_id,
            workers=lambda: LocalWorkers(2, bench),
            watch=lambda event: reported.append(event.grade) if event.grade else None,
            publish=lambda grade: None,
        )
        assert book.find("wrong", reported[-1].key) is None
    unknown = {grade.student_id: grade for grade in reported}["wrong"]
    assert (unknown.status, unknown.score) == (Status.NEEDS_REGRADE, None)
    assert "fault of ours" in unknown.message


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_grade_whose_recording_failed_is_recorded_once(
    course: Path, tier: str, monkeypatch: pytest.MonkeyPatch, is_kept: bool
) -> None:
    """Whether the gradebook was lost before it took the grade or only before it could say so."""
    assignment = load_assignment(course / "assignment")
    bench = set_up(assignment, assignment.profile("smoke"), tier, str(course / "text.txt"))
    real, calls = Gradebook.add, []

    def failing(book: Gradebook, run_id: int, *grades: Grade) -> None:
        calls.append(grades)
        if len(calls) > 1 or is_kept:
            real(book, run_id, *grades)
        if len(calls) == 1:
            raise InfrastructureError("the server is gone")

    monkeypatch.setattr(Gradebook, "add", failing)
    monkeypatch.setattr(stopping, "PAUSE_S", 0.0)
    with Gradebook.open(course / "book.sqlite") as book:
        run_id = book.begin_run(command="test", profile="smoke", started_at="2026-01-01T00:00:00+00:00")
        one = [s for s in collect(course / "submitted", course / "work") if s.student_id == "right"]
        workers = functools.partial(InProcess, bench)
        grade_batch(one, bench, book, run_id, workers=workers, watch=lambda event: None, publish=lambda grade: None)
        assert [grade.score for grade in book.history("right")] == [2.0]
    assert len(calls) == (1 if is_kept else 2)


def test_who_watches_is_told_of_the_beginning_at_the_beginning(course: Path, tier: str) -> None:
    """Also where this process does the work itself and has no time for anybody meanwhile."""
    assignment = load_assignment(course / "assignment")
    bench = set_up(assignment, assignment.profile("smoke"), tier, str(course / "text.txt"))
    told: list[str] = []

    class Working(InProcess):
        def grade(self, *given: Any) -> Any:
            told.append("at work")
            return super().grade(*given)

    one = [s for s in collect(course / "submitted", course / "work") if s.student_id == "right"]
    watch, record = (lambda event: told.append(event.kind)), (lambda grade: None)
    batch.grade_each(one, bench, record=record, watch=watch, workers=Working(bench))
    assert told == ["started", "at work", "graded"]


def test_what_runners_contradict_each_other_on_waits_for_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine decides, and after a fault of its own decides again, when no runner is left and others wait."""

    class Here(Workers):
        """A machine that fails at first, and no runner beside it."""

        slots, is_remote, asked = 0, True, 0

        def __init__(self, *_: object) -> None: ...

        def submit(self, task: Any, *given: Any, **_: Any) -> Any:
            Here.asked += 1
            future: Future[Any] = Future()
            if Here.asked == 1:
                future.set_exception(InfrastructureError("its disk was full"))
            return future

        def grade(self, *_: object) -> Any:
            raise AssertionError("there is nobody")

        def where(self, future: Any) -> str:
            return ""

        def kill(self) -> None: ...

    monkeypatch.setattr(batch, "LocalWorkers", Here)
    monkeypatch.setattr(batch, "BACK_OFF_S", 0.0)
    class_of_two = [Submission(student_id=name, path="", sha256="", submitted_at="") for name in ("other", "ann")]
    told: list[tuple[str, str]] = []
    bench: Any = None
    running = batch._Batch(
        class_of_two[:1], bench, Here(), lambda grade: None, lambda event: told.append((event.kind, event.student_id))
    )
    monkeypatch.setattr(running._audit, "heard", lambda student: ["p", "q"] if student == "ann" else [])
    running._line_up(class_of_two[1])
    for _ in range(2):
        running._hand_out(0)
        running._collect()
    assert told == [("started", "ann"), ("failed", "ann"), ("started", "ann")]


@pytest.mark.parametrize(
    ("cell", "verdict"),
    [
        ("import time\ndef f(x):\n    time.sleep(99)", "TIMED_OUT"),
        ("import os\ndef f(x): os._exit(0)", "KERNEL_DIED"),
        ("def f(x): return 1 / 0", "RAISED"),
        ("def f(x): raise NotImplementedError", "MISSING"),
        ("def f(x): return object()", "FAILED"),
    ],
    ids=["endless", "exits", "raises", "stub", "no data"],
)
def test_one_check_gone_wrong_costs_that_check(course: Path, tier: str, cell: str, verdict: str) -> None:
    """However a function fails, a second check on another function still gets its points."""
    checks = [{"id": one, "title": one, "points": 2, "hidden": False, "hint": ""} for one in "fg"]
    folder_with(course / "assignment", corpus="time-machine", curves=False, checks=checks)
    more = CHECK + '\n@pytest.mark.check("g")\ndef test_g(student):\n    assert student.g() == 1\n'
    (course / "assignment" / "checks" / "test_f.py").write_text(more)
    grade = graded_alone(course, tier, cell, "def g(): return 1")
    assert {check.check_id: check.outcome.value for check in grade.checks} == {"f": verdict, "g": "PASSED"}
    assert grade.status is Status.GRADED


def test_a_check_has_one_time_limit_for_all_that_it_calls(course: Path, tier: str) -> None:
    """Many calls, each of them fast enough, are cut off together; the next check has its time."""
    folder = course / "assignment"
    entries = [{"id": one, "title": one, "points": 1, "hidden": True, "hint": ""} for one in "fg"]
    folder_with(folder, corpus="time-machine", curves=False, checks=entries)
    slow = (
        '@pytest.mark.check("f")\n@pytest.mark.parametrize("n", range(9))\ndef test_f(student, n):\n    student.f(n)\n'
    )
    more = '@pytest.mark.check("g")\ndef test_g(student):\n    assert student.g() == 1\n'
    (folder / "checks" / "test_f.py").write_text(f"import pytest\n{slow}{more}")
    grade = graded_alone(course, tier, "import time\ndef f(n): time.sleep(0.5)\ndef g(): return 1")
    assert {check.check_id: check.outcome.value for check in grade.checks} == {"f": "TIMED_OUT", "g": "PASSED"}
    assert grade.checks[0].wall_time_s < 4  # the limit is 2 s; nine calls would take 4.5


def test_checks_that_wedge_one_after_the_other_are_all_judged(course: Path, tier: str) -> None:
    """Whoever ends the process costs that check only, however many do: the rest runs in fresh sandboxes."""
    folder = course / "assignment"
    ids = "abcdefgh"
    entries = [{"id": one, "title": one, "points": 1, "hidden": True, "hint": ""} for one in ids]
    folder_with(folder, corpus="time-machine", curves=False, checks=entries)
    tests = [f'@pytest.mark.check("{one}")\ndef test_{one}(student): assert student.{one}() == 1\n' for one in ids]
    (folder / "checks" / "test_f.py").write_text("import pytest\n" + "".join(tests))
    bad = "import os\n" + "".join(f"def {one}(): os._exit(1)\n" for one in ids[:-1])
    grade = graded_alone(course, tier, bad + f"def {ids[-1]}(): return 1\n")
    assert [check.outcome.value for check in grade.checks] == ["KERNEL_DIED"] * 7 + ["PASSED"]


RANDOM_CHECK = """
import pytest

@pytest.mark.check("f")
def test_f(student, rng):
    x = int(rng.integers(1, 1 << 30))
    assert student.f(x) == 2 * x, f"f({x}) should be {2 * x}"
"""


def test_any_verdict_can_be_replayed(course: Path) -> None:
    """The same inputs, hence the same words; a check that was changed since is said to be, and judged as it is now."""
    (course / "assignment" / "checks" / "test_f.py").write_text(RANDOM_CHECK)
    assert subprocess.run(grade_command(course, "out"), cwd=ROOT, capture_output=True).returncode == 0
    with Gradebook.open(course / "out" / "gradebook.sqlite") as book:
        recorded = {grade.student_id: grade.checks[0].message for grade in book.latest()}
    assert recorded["wrong"]
    again = replay(course, "wrong", "f")
    assert again.returncode == 0, again.stderr
    assert "FAILED  f" in again.stdout
    assert recorded["wrong"] in again.stdout
    assert "changed since" not in again.stdout
    (course / "assignment" / "checks" / "test_f.py").write_text(RANDOM_CHECK.replace("2 * x", "x"))
    changed = replay(course, "wrong")
    assert changed.returncode == 1
    assert "changed since" in changed.stdout
    assert "PASSED  f  (was FAILED)" in changed.stdout
    for arguments, words in ((("nobody",), "no student 'nobody'"), (("wrong", "g"), "no verdict on 'g'")):
        refused = replay(course, *arguments)
        assert refused.returncode == 2
        assert words in refused.stderr


def replay(course: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ["-o", str(course / "out"), "--assignment", str(course / "assignment")]
    options += ["--corpus-file", str(course / "text.txt")]
    program = [sys.executable, "-m", "grader.cli", "replay", *arguments, *options]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True)


def test_without_a_sandbox_only_by_name_and_every_report_says_so(course: Path) -> None:
    """Without bubblewrap grading stops with exit code 3; --allow-unsandboxed grades and says it in red."""
    environment = {"PATH": str(course), "HOME": str(course), "XDG_CACHE_HOME": str(course / "cache")}
    refused = subprocess.run(grade_command(course, "out"), cwd=ROOT, capture_output=True, text=True, env=environment)
    assert refused.returncode == 3
    assert "install the package bubblewrap" in refused.stderr
    allowed = grade_command(course, "out", "--allow-unsandboxed")
    done = subprocess.run(allowed, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "WARNING: no sandbox" in done.stdout
    assert scores(course, "out") == {"right": "2.0", "slow": "2.0", "wrong": "0.0"}
    for name in ("right", "slow", "wrong"):
        assert "without a sandbox" in (course / "out" / "feedback" / f"{name}.html").read_text()
        assert "without a sandbox" in (course / "out" / "results" / f"{name}.json").read_text()
    assert "Graded without a sandbox" in (course / "out" / "leaderboard.html").read_text()
