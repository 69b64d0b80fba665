"""What becomes of a submission whose runners fail or are in doubt: made-up runners, a real batch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from grader import batch
from grader.bench import Bench
from grader.cluster import Cluster
from grader.errors import InfrastructureError, PackageMissing, SandboxUnavailable, SchedulerLost
from grader.executors import Attempt, Workers, attempt
from grader.types import Grade, Outcome, Status, Submission
from tests.unit.records import NOBODY

A, B = "tcp://10.0.0.1:1", "tcp://10.0.0.2:1"
Said = tuple[str, Attempt | Exception]  # by whom, and what


class Runners(Workers):
    """They say what they are told to say, one after the other."""

    is_remote = True

    def __init__(self, says: Iterator[Said], slots: int = 2) -> None:
        self._says, self._slots = says, slots
        self._places: dict[Future[Any], str] = {}
        self.avoided: list[list[str]] = []
        self.dismissed: list[str] = []

    @property
    def slots(self) -> int:
        return self._slots

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._places[future], said = next(self._says)
        if isinstance(said, Exception):
            future.set_exception(said)
        else:
            future.set_result(said)
        return future

    def grade(self, submission: Submission, avoid: Sequence[str] = ()) -> Future[Attempt]:
        self.avoided.append(list(avoid))
        return self.submit(attempt)

    def where(self, future: Future[Any]) -> str:
        return self._places.get(future, "")

    def dismiss(self, worker: str) -> None:
        self.dismissed.append(worker)

    def kill(self) -> None: ...


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "BACK_OFF_S", 0.0)
    monkeypatch.setattr(batch, "LOOK_EVERY_S", 0.01)


def forged(done: Attempt) -> Attempt:
    """One that adds up, and says another thing of each check."""
    assert done.grade
    checks = tuple(dataclasses.replace(check, outcome=Outcome.FAILED) for check in done.grade.checks)
    return dataclasses.replace(done, grade=dataclasses.replace(done.grade, checks=checks))


def graded(runners: Runners, bench: Bench) -> Grade:
    """What is recorded in the end."""
    recorded: list[Grade] = []
    batch._Batch([NOBODY], bench, runners, recorded.append, lambda event: None, 0.0).run()
    (grade,) = recorded
    return grade


@pytest.mark.parametrize("error", [PackageMissing("no package"), SchedulerLost("no scheduler")])
def test_what_no_runner_is_to_blame_for_uses_up_no_attempt(
    error: Exception, honest: Attempt, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another batch took the package along, or the scheduler went: it is tried again, each time after a pause."""
    monkeypatch.setattr(batch, "BACK_OFF_S", 0.05)
    runners = Runners(iter([*[(A, error)] * 5, (A, honest)]), slots=1)
    began = time.monotonic()
    assert graded(runners, bench).status is Status.MISSING
    assert time.monotonic() - began >= 5 * 0.05
    assert (runners.dismissed, runners.avoided) == ([], [[]] * 6)


def test_a_runner_that_never_gets_the_package_holds_up_nothing_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot take it says so each time it is asked."""
    monkeypatch.setattr(batch, "LACKING_S", 0.1)

    def says() -> Iterator[Said]:
        while True:
            time.sleep(0.01)
            yield A, PackageMissing("no package")

    assert graded(Runners(says(), slots=1), bench).status is Status.NEEDS_REGRADE


def test_what_failed_is_not_for_whom_it_failed_on(honest: Attempt, bench: Bench) -> None:
    """Nor is it for whoever graded it to confirm himself, who comes first."""
    fault = InfrastructureError("its disk is full")
    runners = Runners(iter([(A, fault), (B, honest), (A, fault), ("tcp://10.0.0.3:1", honest)]))
    assert graded(runners, bench).status is Status.MISSING
    assert runners.avoided == [[], [A], [B, A], [B, A, A]]


def test_others_are_asked_as_long_as_there_are_any() -> None:
    """On other machines if that can be had; when all are to be avoided, the one last named is asked after all."""
    cluster = object.__new__(Cluster)
    beside = "tcp://10.0.0.1:2"
    cluster._offering = {A, beside, B}
    assert cluster._others([A]) == {B}
    assert cluster._others([A, B]) == {beside}
    cluster._offering = {A, B}
    assert cluster._others([A, B]) == {B}
    cluster._offering = {A}
    assert cluster._others([A]) == {A}


@pytest.mark.parametrize("can_grade", [True, False])
def test_the_only_answer_is_not_believed_before_its_runner_has_passed(
    can_grade: bool, honest: Attempt, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no other can grade the notebook this machine does, and if that cannot either its score stays unknown."""
    ours = honest if can_grade else SandboxUnavailable("no sandbox here")
    monkeypatch.setattr(batch, "LocalWorkers", lambda *_: _Here(iter([("worker 1", ours)])))
    fault = InfrastructureError("its disk is full")
    grade = graded(Runners(iter([(A, forged(honest)), *[(B, fault)] * 3])), bench)
    assert honest.grade
    if can_grade:
        assert grade == honest.grade
    else:
        assert grade.status is Status.NEEDS_REGRADE
        assert f"only {A} has graded it" in grade.message


class _Here(Runners):
    is_remote = False
