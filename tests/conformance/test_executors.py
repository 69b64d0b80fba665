"""What every executor must do: bring back results and errors, and lose nothing but what a lost worker had in hand."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest

from grader import executors
from grader.bench import Bench, set_up
from grader.cluster import Cluster
from grader.config import load_assignment
from grader.errors import WorkerLost
from grader.executors import InProcess, LocalWorkers, Workers
from grader.intake import collect
from tests.loopback import Loopback, after, raise_timeout
from tests.small import course_in

LIMIT_S = 6.0
KINDS = ("in this process", "worker processes", "Dask cluster")


@pytest.fixture(scope="module")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """Two runners on a real cluster."""
    with Loopback(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.runner(slots=2)
        cluster.wait_for(2)
        yield cluster


def workers_of(kind: str, bench: Bench | None, request: pytest.FixtureRequest) -> Workers:
    if kind == KINDS[0]:
        return InProcess(bench)
    if kind == KINDS[1]:
        return LocalWorkers(2, bench, LIMIT_S if bench is None else None)
    address = request.getfixturevalue("loopback").address
    return Cluster(address, bench, limit_s=LIMIT_S if bench is None else None)


@pytest.fixture(scope="module", params=KINDS)
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    """Each kind, with two workers where there are workers."""
    with workers_of(request.param, None, request) as found:
        yield found


@pytest.fixture(scope="module", params=KINDS[1:])
def processes(request: pytest.FixtureRequest) -> Iterator[Workers]:
    """Each kind that has worker processes."""
    with workers_of(request.param, None, request) as found:
        found.submit(os.getpid).result()
        yield found


def test_results_and_errors_come_back_as_they_are(workers: Workers) -> None:
    """In the order in which they were asked for, and an error of a task is the error of that task alone."""
    assert list(workers.map(math.sqrt, [4.0, 9.0, 16.0])) == [2.0, 3.0, 4.0]
    with pytest.raises(ValueError, match="math domain"):
        workers.submit(math.sqrt, -1.0).result()
    with pytest.raises(TimeoutError, match="own"):
        workers.submit(raise_timeout).result()
    assert workers.slots == (1 if isinstance(workers, InProcess) else 2)


def test_what_kills_its_worker_takes_nothing_else_with_it(processes: Workers) -> None:
    """The neighbour's result arrives, the lost task says so, and the next one finds a worker again."""
    beside = processes.submit(after, 1.0, "beside")
    lost = processes.submit(os._exit, 1)
    with pytest.raises(WorkerLost):
        lost.result(30)
    assert beside.result(30) == "beside"
    assert [future.result(30) for future in [processes.submit(abs, -2), processes.submit(abs, -3)]] == [2, 3]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_is_hit_while_it_starts_is_lost_like_any(
    how: signal.Signals, tier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large what it is to be told is; the next task starts another."""
    monkeypatch.setattr(executors, "START_WALL_S", 5.0)
    course = course_in(tmp_path, {"right": "def f(x): return 2 * x"})
    assignment = load_assignment(course / "assignment")
    bench = set_up(assignment, assignment.profile("smoke"), tier, str(course / "text.txt"))
    bench = dataclasses.replace(bench, split=dataclasses.replace(bench.split, train="a" * (1 << 20)))
    with LocalWorkers(1, bench) as workers:
        others = multiprocessing.active_children()
        lost = workers.submit(abs, -1)
        while not (started := [child for child in multiprocessing.active_children() if child not in others]):
            assert not lost.done()
        os.kill(started[0].pid or 0, how)
        with pytest.raises(WorkerLost):
            lost.result(30)
        monkeypatch.undo()
        assert workers.submit(abs, -2).result(60) == 2


def test_a_worker_that_cannot_be_started_is_lost_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process to be had at this moment: the next task finds one."""

    def refused(*_: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with LocalWorkers(1, None) as workers:
        with monkeypatch.context() as patch:
            patch.setattr(executors.ProcessPoolExecutor, "submit", refused)
            with pytest.raises(WorkerLost, match="could not be started: Resource temporarily unavailable"):
                workers.submit(abs, -1).result(30)
        assert workers.submit(abs, -2).result(60) == 2


def test_what_goes_on_for_ever_is_ended(processes: Workers) -> None:
    """After the time limit it is lost, and its worker has ended too: the next task does not wait for it."""
    endless = [processes.submit(after, 600.0, "never") for _ in range(2)]
    wait(endless, 60)
    for future in endless:
        with pytest.raises(WorkerLost, match="no answer for 6 s"):
            future.result(0)
    assert processes.submit(abs, -4).result(30) == 4


def test_the_worker_of_a_task_is_known(processes: Workers) -> None:
    """While it runs, for whoever asks what runs where."""
    running = processes.submit(after, 3.0, "done")
    places = set()
    while not running.done():
        assert processes.slots == 2
        places.add(processes.where(running))
        time.sleep(0.2)
    assert len(places - {""}) == 1
    assert running.result(30) == "done"


@pytest.mark.parametrize("kind", KINDS)
def test_all_grade_alike(kind: str, tier: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The same verdicts under the same key; nothing of the class's folders is needed where it runs."""
    course = course_in(tmp_path, {"right": "def f(x): return 2 * x", "wrong": "def f(x): return x"})
    (course / "assignment" / "roster.csv").write_text("student_id,last_name\nright,Riter\n")
    assignment = load_assignment(course / "assignment")
    bench = set_up(assignment, assignment.profile("smoke"), tier, str(course / "text.txt"))
    submissions = collect(course / "submitted", course / "work")
    with workers_of(kind, bench, request) as workers:
        done = [workers.grade(submission).result(60) for submission in submissions]
    grades = [attempt.grade for attempt in done]
    assert [attempt.fault for attempt in done] == ["", ""]
    assert [grade and (grade.student_id, grade.score) for grade in grades] == [("right", 2.0), ("wrong", 0.0)]
    assert [grade and grade.key for grade in grades] == [bench.key(submission) for submission in submissions]
    gone = dataclasses.replace(submissions[0], path=str(course / "nothing.ipynb"))
    with workers_of(kind, bench, request) as workers:
        future = workers.grade(gone)
        error = future.exception(60)
        said = str(error) if error else future.result().fault
    assert "cannot be read any more" in said
