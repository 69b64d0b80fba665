"""Runs an assignment's checks under pytest, in the grader's own process, against the `student` proxy.

A check file marks each test with `@pytest.mark.check("<id>")`; a check passes when all of its tests pass. Its verdict
comes from the exception, never from anything printed: AssertionError is FAILED, a StudentError is the outcome it
names, anything else is a mistake in the check itself and therefore ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grader.errors import AssignmentError, InfrastructureError
from grader.sandbox.bridge import SessionOver, StudentError
from grader.sandbox.student import Student
from grader.types import Assignment, Check, CheckResult, Outcome, storable

MESSAGE_LIMIT = 600  # characters
STALLED_AFTER_S = 300.0  # of one test, calls into the student's code included, which have limits of their own
# parts of pytest that cost time, and do nothing for a check
_UNUSED = (
    *("cacheprovider", "debugging", "doctest", "faulthandler", "junitxml", "legacypath", "logging", "pastebin"),
    *("setuponly", "setupplan", "stepwise", "terminalprogress", "threadexception", "unraisableexception"),
)
_PYTEST_OPTIONS = ("-q", "-s", "--disable-plugin-autoload", "-c", os.devnull, *(f"-pno:{name}" for name in _UNUSED))


def run_checks(
    assignment: Assignment, wanted: Collection[str], student: Student, seed: int, test_text: str = ""
) -> list[CheckResult]:
    """Run the checks of the given ids; those that a session's end left undecided are not in the result.

    `seed` is that of the random inputs; `test_text` is what the notebook was given to test on.

    Raises:
        AssignmentError: a check without a test, a test without a known check.
        InfrastructureError: a check that broke by its own fault.
    """
    plugin = _Plugin(assignment.checks, set(wanted), student, seed, test_text)
    folder = str(Path(assignment.folder) / "checks")
    within = (f"--rootdir={folder}", f"--confcutdir={folder}")  # else folders above are searched, their code run
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), _fresh_modules(folder):
        try:
            status = pytest.main([*_PYTEST_OPTIONS, *within, folder], plugins=[plugin])
        finally:
            student.give_time(None)
    if plugin.broken:
        raise InfrastructureError(f"a check broke by its own fault: {plugin.broken}")
    tail = " ".join(output.getvalue().split())[-500:]
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise AssignmentError(f"the checks in {folder} could not be run: {tail}")
    if not plugin.session_over and plugin.decided != set(wanted):
        raise InfrastructureError(f"a check came to no verdict: {sorted(set(wanted) - plugin.decided)[0]}: {tail}")
    return [plugin.result(check) for check in assignment.checks if check.id in plugin.decided]


def scores_of_weights(
    assignment: Assignment, model: str, params: Sequence[tuple[str, Any]], indices: Any, size: int
) -> list[Any]:
    """What weights make of a text, by the assignment's `weights`: scores [T, S, size] for indices [S, T],
    in each way in which the weights can be read. Whatever it raises is a fault of ours.
    """
    path = Path(assignment.folder) / assignment.weights
    with _fresh_modules(str(path.parent)):
        sys.path.insert(0, str(path.parent))
        return list(importlib.import_module(path.stem).scores(model, params, indices, size))


def without_session(checks: Sequence[Check], outcome: Outcome, message: str) -> list[CheckResult]:
    """The results of checks for which no code could be asked."""
    return [
        CheckResult(check_id=check.id, outcome=outcome, points=0.0, max_points=check.points, message=message)
        for check in checks
    ]


class _Plugin:
    """Gives the tests their fixtures, picks them by check and gathers what became of them."""

    def __init__(self, checks: Sequence[Check], wanted: set[str], student: Student, seed: int, test_text: str) -> None:
        self._known = {check.id: check for check in checks}
        self._hidden = {check.id for check in checks if check.hidden}
        self._wanted, self._student, self._seed, self._test_text = wanted, student, seed, test_text
        self._verdicts: dict[str, tuple[Outcome, str, str]] = {}
        self._seconds: dict[str, float] = {}
        self._to_run: dict[str, int] = {}
        self.session_over = False
        self.broken = ""

    @property
    def decided(self) -> set[str]:
        """Checks that failed, or of which every test has run."""
        failed = {check_id for check_id, (outcome, *_) in self._verdicts.items() if outcome is not Outcome.PASSED}
        return failed | {check_id for check_id, count in self._to_run.items() if count == 0}

    def result(self, check: Check) -> CheckResult:
        outcome, message, mistake = self._verdicts[check.id]
        return CheckResult(
            check_id=check.id,
            outcome=outcome,
            points=check.points if outcome is Outcome.PASSED else 0.0,
            max_points=check.points,
            message=message,
            mistake=mistake,
            wall_time_s=self._seconds[check.id],
        )

    @pytest.fixture
    def student(self) -> Student:
        """The proxy of the notebook under test."""
        return self._student

    @pytest.fixture
    def test_text(self) -> str:
        """The text that the notebook was given to test on."""
        return self._test_text

    @pytest.fixture
    def rng(self, request: pytest.FixtureRequest) -> np.random.Generator:
        """Random inputs of this test: fresh for each submission, the same when it is graded again."""
        name = f"{self._seed}:{request.node.name}"
        return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "check(id): the graded item that this test belongs to")

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        tested = set()
        for item in items:
            check_id = _check_id(item)
            if check_id not in self._known:
                raise pytest.UsageError(f"{item.nodeid} names no check of assignment.yaml ({check_id!r})")
            tested.add(check_id)
        if set(self._known) - tested:
            raise pytest.UsageError(f"no test for the check {sorted(set(self._known) - tested)[0]!r}")
        items[:] = [item for item in items if _check_id(item) in self._wanted]
        # visible ones first: what they observe is shown, so they must not run after code that has seen hidden inputs
        items.sort(key=lambda item: _check_id(item) in self._hidden)
        for item in items:
            check_id = _check_id(item)
            self._to_run[check_id] = self._to_run.get(check_id, 0) + 1
        if not items:
            raise pytest.UsageError("no test is left to run")

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Leave out what can no longer be asked, or what is decided already."""
        if self.broken or self.session_over or _check_id(item) in self.decided:
            pytest.skip("decided")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        check_id, started = _check_id(item), time.monotonic()
        self._student.give_time(self._seconds.get(check_id, 0.0))
        try:
            with _alarm():
                result = yield
        except AssertionError as error:
            self._fail(item, error)
            raise
        except StudentError as error:
            self.session_over = isinstance(error, SessionOver)
            self._record(check_id, error.outcome, str(error), error.error_type)
            raise
        except Exception as error:
            self.broken = f"{item.nodeid}: {type(error).__name__}: {error}"
            raise
        else:
            self._record(check_id, Outcome.PASSED)
            return result
        finally:
            self._seconds[check_id] = self._seconds.get(check_id, 0.0) + time.monotonic() - started

    def _fail(self, item: pytest.Item, error: AssertionError) -> None:
        """A failed assertion; one with a `mistake` gives it the name of a sentence in assignment.yaml."""
        check_id, mistake = _check_id(item), getattr(error, "mistake", "")
        sentences = self._known[check_id].mistakes
        if mistake and mistake not in sentences:
            self.broken = f"{item.nodeid}: assignment.yaml has no sentence for the mistake {mistake!r}"
        self._record(check_id, Outcome.FAILED, _message(error) or sentences.get(mistake, ""), mistake)

    def _record(self, check_id: str, outcome: Outcome, message: str = "", mistake: str = "") -> None:
        self._to_run[check_id] -= 1
        if check_id not in self._verdicts or self._verdicts[check_id][0] is Outcome.PASSED:
            self._verdicts[check_id] = (outcome, storable(message[:MESSAGE_LIMIT]), mistake)


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """What a check makes of an answer comes to an end, too; else the check is broken, and that is a fault of ours."""

    def ring(*_: object) -> None:
        raise InfrastructureError(f"it was still at work after {STALLED_AFTER_S:.0f} s")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, STALLED_AFTER_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _check_id(item: pytest.Item) -> Any:
    marker = item.get_closest_marker("check")
    return marker.args[0] if marker and marker.args else None


def _message(error: AssertionError) -> str:
    """What the check says it observed, without pytest's restatement of the expression."""
    return str(error).split("\nassert ")[0].strip()


@contextlib.contextmanager
def _fresh_modules(folder: str) -> Iterator[None]:
    """Each submission meets check files as they are on disk, and pytest takes no options from the environment."""
    saved = {name: os.environ.pop(name) for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS") if name in os.environ}
    path = list(sys.path)
    try:
        yield
    finally:
        os.environ.update(saved)
        sys.path[:] = path
        for name, module in list(sys.modules.items()):
            if os.path.dirname(getattr(module, "__file__", None) or "") == folder:  # noqa: PTH120  20 times quicker
                del sys.modules[name]
