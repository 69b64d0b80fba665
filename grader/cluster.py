"""Grades on a Dask cluster: the coordinator's side, and the runners that `grader worker` starts.

No file system is shared. What all submissions of a batch need, the texts and the checks, is one package of bytes that
the scheduler gives every runner, also to one that joins later; it is known by its hash, and a runner verifies it. A
submission travels in its task. Both ends trust each other as one program does: reach the scheduler by TLS, or on a
network of your own.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import itertools
import logging
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from distributed import Client, WorkerPlugin, get_worker
from distributed.scheduler import KilledWorker

from grader.config import check_files
from grader.errors import InfrastructureError, PackageMissing, SandboxUnavailable, SchedulerLost, UsageError, WorkerLost
from grader.executors import PR_SET_PDEATHSIG, Attempt, LocalWorkers, Workers, grade_here
from grader.intake import MAX_PARAMS_BYTES, read_bounded
from grader.pipeline import Bench
from grader.sandbox.selftest import require
from grader.sandbox.tiers import NONE
from grader.types import Submission
from grader.unzip import MAX_FILE_BYTES

log = logging.getLogger(__name__)
CONNECT_S = 10.0
GONE_S = 900.0  # without a scheduler; then the batch stops, to be gone on with by the same command
LOOK_EVERY_S = 1.0
DISMISSED = 77  # exit status of a runner that nobody wants back
LEAVE_S = 0.5
RESTART_S = 5.0  # from one start of a runner to the next
RESOURCE = {"cpu": "CPU", "gpu": "GPU"}
_GONE = (OSError, RuntimeError, TimeoutError)  # what Dask's client raises without a scheduler


class Cluster(Workers):
    """The runners of one scheduler, each with one submission at a time."""

    is_remote = True

    def __init__(
        self,
        address: str,
        bench: Bench | None,
        device: str = "cpu",
        *,
        limit_s: float | None = None,
        gone_s: float = GONE_S,
    ) -> None:
        """Connect; `limit_s` bounds a task (default: by the profile). Raises UsageError if nobody answers there."""
        self._address, self._resource, self._gone_s = address, RESOURCE[device], gone_s
        self._limit_s = limit_s
        self._package = pack(bench) if bench else b""
        self._sha256 = hashlib.sha256(self._package).hexdigest()
        self._plugin = f"grader-{self._sha256}"  # the same again after a kill: nothing piles up
        self._name, self._numbers = f"grader-{uuid.uuid4()}", itertools.count()  # tasks of one key are one task to Dask
        self._keys: WeakKeyDictionary[Future[Any], str] = WeakKeyDictionary()
        self._places: dict[str, str] = {}  # by key, where a task was seen last
        self._answered: dict[str, str] = {}  # by key, who has done it
        self._missing: set[Future[Any]] = set()
        self._dismissed: set[str] = set()
        self._slots, self._lost_at = 0, 0.0
        try:
            self._connect()
            self._look()
        except (OSError, ValueError) as error:
            said = " ".join(str(error).split())
            raise UsageError(
                f"no scheduler answers at {address} ({said}): start one with `dask scheduler`, or correct --scheduler."
            ) from error

    def _connect(self) -> None:
        self._client = Client(self._address, timeout=CONNECT_S, name="grader", set_as_default=False)
        self._executor = self._client.get_executor(pure=False, resources={self._resource: 1}, retries=0)
        self._scheduler_id, self._looked_at = "", -math.inf

    def _look(self) -> None:
        """Learn who is there, at most once in a while; a scheduler that is new gets the package."""
        if time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return
        if self._client.status != "running":
            raise OSError("the client is about to connect again")
        ask: Any = self._client.sync
        scheduler: Any = self._client.scheduler
        seen = ask(scheduler.identity, n_workers=-1, callback_timeout=CONNECT_S)
        if seen["id"] != self._scheduler_id:
            self._register()
            self._scheduler_id = seen["id"]
        offers = {address: worker["resources"] for address, worker in seen["workers"].items()}
        kept = set(offers) - self._dismissed
        self._slots = round(sum(offers[address].get(self._resource, 0) for address in kept))
        processing = ask(scheduler.processing, workers=None, callback_timeout=CONNECT_S)
        ours = set(self._keys.values())  # those not yet forgotten
        places = self._places | {str(key): address for address, keys in processing.items() for key in keys}
        self._places = {key: address for key, address in places.items() if key in ours}
        for key in set(self._answered) - ours:
            del self._answered[key]
        self._give_up_lost()
        self._looked_at = time.monotonic()

    def _register(self) -> None:
        """Have every runner brought the package; one that cannot take it is no reason to stop."""
        try:
            self._client.register_plugin(Package(self._sha256, self._package), name=self._plugin)
        except _GONE:
            raise
        except Exception as error:  # noqa: BLE001  whatever a runner raised; the scheduler has it and goes on
            log.warning("A runner could not take the batch's package: %s", " ".join(str(error).split()))

    def _give_up_lost(self) -> None:
        """End those that Dask's client has forgotten without an answer: a result was lost on its way to us."""
        known = set(self._client.futures)
        missing = {future for future, key in list(self._keys.items()) if not future.done() and key not in known}
        for future in missing & self._missing:  # seen twice: not just between two steps
            with contextlib.suppress(futures.InvalidStateError):
                future.set_exception(SchedulerLost("its result was lost with the scheduler"))
        self._missing = missing

    @property
    def slots(self) -> int:
        """How many runners there are now; 0 while there is no scheduler.

        Raises:
            InfrastructureError: there has been none for long.
        """
        try:
            if self._client.status == "closed":
                self._connect()
            self._look()
        except _GONE as error:
            self._lost_at = self._lost_at or time.monotonic()
            if time.monotonic() - self._lost_at > self._gone_s:
                raise InfrastructureError(
                    f"the scheduler at {self._address} has been gone for {self._gone_s:.0f} s: start it again, then "
                    "run the same command; it goes on where it stopped."
                ) from error
            return 0
        self._lost_at = 0.0
        return self._slots

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The future raises SchedulerLost if the scheduler goes away."""
        return self._send(_on_runner, self._sha256, self._limit_s, fn, args, kwargs)

    def _send(self, fn: Callable[..., Any], *args: Any) -> Future[Any]:
        """Have a runner's Dask worker itself call a function."""
        key, outer = f"{self._name}-{next(self._numbers)}", Future[Any]()
        self._keys[outer] = key
        outer.set_running_or_notify_cancel()
        try:
            inner = self._executor.submit(_answer, fn, args, key=key)
        except _GONE:
            outer.set_exception(SchedulerLost(f"the scheduler at {self._address} does not answer"))
        else:
            inner.add_done_callback(lambda done: self._pass_on(done, outer, key))
        return outer

    def grade(self, submission: Submission) -> Future[Attempt]:
        try:
            files = carried(submission)
        except InfrastructureError as error:
            gone: Future[Attempt] = Future()
            gone.set_exception(error)
            return gone
        return self.submit(grade_carried, submission, files)

    def where(self, future: Future[Any]) -> str:
        key = self._keys.get(future, "")
        return self._answered.get(key) or self._places.get(key, "")

    def dismiss(self, worker: str) -> None:
        self._dismissed.add(worker)
        with contextlib.suppress(Exception):  # if it cannot be reached, it can do no harm either
            self._client.run(_leave, workers=[worker], on_error="ignore")

    def kill(self) -> None:
        with contextlib.suppress(Exception):  # it is to be over, whatever state it is in
            self._client.close(timeout=1)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if wait and not cancel_futures:
            futures.wait(list(self._keys))
        with contextlib.suppress(Exception):  # all is recorded by now
            if self._client.status == "running":
                self._client.unregister_worker_plugin(self._plugin)
            self._client.close(timeout=5)

    def _pass_on(self, inner: Future[Any], outer: Future[Any], key: str) -> None:
        """An outcome in the words of all executors."""
        error, value = self._received(inner, key)
        with contextlib.suppress(futures.InvalidStateError):  # given up meanwhile
            if error is None:
                outer.set_result(value)
            else:
                outer.set_exception(error)

    def _received(self, inner: Future[Any], key: str) -> tuple[BaseException | None, Any]:
        """The error that a task ended with, or None and its result."""
        error = CancelledError() if inner.cancelled() else inner.exception()
        if isinstance(error, CancelledError):
            return SchedulerLost("the connection to the scheduler was lost"), None
        if isinstance(error, KilledWorker):
            return WorkerLost(f"{error.allowed_failures + 1} runners were lost, one after the other"), None
        if error is not None:
            return error, None
        try:
            self._answered[key], data = inner.result()
            error, value = pickle.loads(data)
        except Exception as unreadable:  # noqa: BLE001  of another version, or damaged
            return InfrastructureError(f"the answer of a runner cannot be read: {unreadable}"), None
        if isinstance(error, PackageMissing):
            self._scheduler_id = ""  # it is brought again
        return error, value


# -- what travels ---------------------------------------------------------------------------------------------------


def pack(bench: Bench) -> bytes:
    """All that grading needs besides a submission; neither the names of the class nor the course's secret."""
    folder = Path(bench.assignment.folder)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in check_files(folder)}
    alone = dataclasses.replace(bench.assignment, folder="", roster={}, seed=0)
    return pickle.dumps((dataclasses.replace(bench, assignment=alone, private=()), files))


def unpack(package: bytes, folder: Path) -> Bench:
    """The same bench on another machine, its files in a folder."""
    bench, files = pickle.loads(package)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assignment = dataclasses.replace(bench.assignment, folder=str(folder))
    found: Bench = dataclasses.replace(bench, assignment=assignment, private=(str(folder),))
    return found


def carried(submission: Submission) -> dict[str, bytes]:
    """The bytes handed in, by path: of a file that is too large, enough to see that. Raises InfrastructureError."""
    paths = {submission.path: MAX_FILE_BYTES} if submission.path else {}
    paths |= dict.fromkeys(submission.params.values(), MAX_PARAMS_BYTES)
    try:
        return {path: read_bounded(Path(path), limit) for path, limit in paths.items()}
    except OSError as error:
        raise InfrastructureError(
            f"{error.filename or submission.path} cannot be read any more: {error.strerror}; collect the submissions "
            "again."
        ) from error


def grade_carried(submission: Submission, files: Mapping[str, bytes]) -> Attempt:
    """In a worker process of a runner: grade a submission whose files came with it."""
    with tempfile.TemporaryDirectory(prefix="grader-") as scratch:
        places = {path: str(Path(scratch) / str(number)) for number, path in enumerate(files)}
        for path, data in files.items():
            Path(places[path]).write_bytes(data)
        params = {model: places[path] for model, path in submission.params.items()}
        return grade_here(dataclasses.replace(submission, path=places.get(submission.path, ""), params=params))


# -- a runner -------------------------------------------------------------------------------------------------------


class Package(WorkerPlugin):
    """Brings the package of a batch to every runner."""

    def __init__(self, sha256: str, data: bytes) -> None:
        self._sha256, self._data = sha256, data

    def setup(self, worker: Any) -> None:
        if hashlib.sha256(self._data).hexdigest() != self._sha256:
            raise InfrastructureError("a package arrived damaged")
        _packages[self._sha256] = self._data

    def teardown(self, worker: Any) -> None:
        _packages.pop(self._sha256, None)


_packages: dict[str, bytes] = {}
_hired: dict[str, tuple[LocalWorkers, tempfile.TemporaryDirectory[str]]] = {}  # at most one


def _answer(fn: Callable[..., Any], args: Sequence[Any]) -> tuple[str, bytes]:
    """Who answers, and what came of a call: an error or a result, as bytes, which cannot hurt Dask's client."""
    outcome: tuple[Exception | None, Any]
    try:
        outcome = (None, fn(*args))
    except Exception as error:  # noqa: BLE001  it is raised where the result is asked for
        outcome = (error, None)
    return get_worker().address, pickle.dumps(outcome)


def _on_runner(
    sha256: str, limit_s: float | None, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Run a task in a worker process of this runner, which thus answers its scheduler whatever the task does."""
    if sha256 not in _packages:
        raise PackageMissing("the runner has not got the batch's package")
    return _hire(sha256, limit_s).submit(fn, *args, **kwargs).result()


def _hire(sha256: str, limit_s: float | None) -> LocalWorkers:
    if sha256 not in _hired:
        _let_go()
        package = _packages[sha256]
        folder = tempfile.TemporaryDirectory(prefix="grader-")
        bench = unpack(package, Path(folder.name)) if package else None
        if bench and bench.tier == NONE:
            raise SandboxUnavailable("a runner grades nothing without a sandbox")
        if bench:
            require(bench.tier)
        _hired[sha256] = (LocalWorkers(1, bench, limit_s), folder)
    return _hired[sha256][0]


def _let_go() -> None:
    while _hired:
        workers, folder = _hired.popitem()[1]
        workers.shutdown()
        folder.cleanup()


def _leave(dask_worker: Any) -> None:
    """End this runner, for good, once this call has been answered."""
    dask_worker.loop.call_later(LEAVE_S, os._exit, DISMISSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """What one runner process offers: a CPU, or a share of a GPU."""

    resource: str
    environment: Mapping[str, str]


def runner_command(scheduler: str, slot: Slot, name: str) -> list[str]:
    """The command that starts a runner, which does one task at a time."""
    options = ["--nthreads", "1", "--no-nanny", "--memory-limit", "0", "--no-dashboard", "--name", name]
    return [
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        scheduler,
        *options,
        "--resources",
        f"{slot.resource}=1",
    ]


def run(scheduler: str, slots: Sequence[Slot]) -> None:
    """Keep a runner for each slot until SIGTERM or Ctrl-C: one that ends, with its scheduler perhaps, starts again.

    Raises:
        InfrastructureError: all were dismissed.
    """
    runners = [_Runner(scheduler, slot, number) for number, slot in enumerate(slots)]
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    try:
        while not stop.wait(LOOK_EVERY_S) and any([runner.keeps_going() for runner in runners]):
            continue
        if not stop.is_set():
            raise InfrastructureError(
                "the coordinator dismissed all runners of this machine: what they sent could not be right, or one "
                "submission after the other failed. Compare the grader's version with the coordinator's, and run "
                "`grader doctor`."
            )
    finally:
        for runner in runners:
            runner.terminate()
        deadline = time.monotonic() + RESTART_S
        for runner in runners:
            runner.end(max(0.0, deadline - time.monotonic()))


class _Runner:
    """A process that serves one slot."""

    def __init__(self, scheduler: str, slot: Slot, number: int) -> None:
        name = f"{socket.gethostname()}-{os.getpid()}-{slot.resource.lower()}{number}"
        self._command = runner_command(scheduler, slot, name)
        self._environment = {**os.environ, **slot.environment}
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, env=self._environment, preexec_fn=_die_with_us)
        self._not_before = time.monotonic() + RESTART_S

    def keeps_going(self) -> bool:
        """Start it again if it has ended; false if it was dismissed."""
        status = self._process.poll()
        if status == DISMISSED:
            return False
        if status is not None and time.monotonic() > self._not_before:
            self._start()
        return True

    def terminate(self) -> None:
        self._process.terminate()

    def end(self, grace_s: float) -> None:
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _die_with_us() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
