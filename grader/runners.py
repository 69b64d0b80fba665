"""What travels to the runners of a Dask cluster, and what they do with it; `grader worker` starts them.

What all submissions of a batch need, the texts and the checks, is one package of bytes that the scheduler gives every
runner, also to one that joins later; it is known by its hash, and a runner verifies it. A submission travels in its
task.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin
from distributed.comm.addressing import parse_address, parse_host_port
from distributed.comm.registry import get_backend
from distributed.security import Security

from grader.bench import Bench
from grader.config import check_files
from grader.errors import InfrastructureError, PackageMissing, SandboxUnavailable, UsageError
from grader.executors import PR_SET_PDEATHSIG, Attempt, LocalWorkers, grade_here
from grader.intake import MAX_PARAMS_BYTES, read_bounded
from grader.sandbox.proofs import require_proven
from grader.sandbox.tiers import NONE
from grader.types import Submission
from grader.unzip import MAX_FILE_BYTES

DISMISSED = 77  # exit status of a runner that nobody wants back
LEAVE_S = 0.5
RESTART_S = 5.0  # from one start of a runner to the next
AT_ONCE_S = 60.0  # one that lived longer did start
FALSE_STARTS = 5  # in a row, then it is not the network
LOOK_EVERY_S = 1.0


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


def answer(fn: Callable[..., Any], args: Sequence[Any]) -> bytes:
    """What came of a call: an error or a result, as bytes, which cannot hurt Dask's client."""
    outcome: tuple[Exception | None, Any]
    try:
        outcome = (None, fn(*args))
    except Exception as error:  # noqa: BLE001  it is raised where the result is asked for
        outcome = (error, None)
    return pickle.dumps(outcome)


def on_runner(
    sha256: str, limit_s: float | None, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Run a task in a worker process of this runner, which thus answers its scheduler whatever the task does."""
    if sha256 not in _packages and sha256 not in _hired:
        raise PackageMissing("the runner has not got the batch's package")
    return _hire(sha256, limit_s).submit(fn, *args, **kwargs).result()


def _hire(sha256: str, limit_s: float | None) -> LocalWorkers:
    if sha256 not in _hired:
        _let_go()
        if sha256 not in _packages:  # taken away at this moment
            raise PackageMissing("the runner has not got the batch's package")
        package = _packages[sha256]
        folder = tempfile.TemporaryDirectory(prefix="grader-")
        bench = unpack(package, Path(folder.name)) if package else None
        if bench and bench.tier == NONE:
            raise SandboxUnavailable("a runner grades nothing without a sandbox")
        if bench:
            require_proven(bench.tier)
        _hired[sha256] = (LocalWorkers(1, bench, limit_s), folder)
    return _hired[sha256][0]


def _let_go() -> None:
    while _hired:
        workers, folder = _hired.popitem()[1]
        workers.shutdown()
        folder.cleanup()


def leave(dask_worker: Any) -> None:
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


def require_address(scheduler: str, role: str) -> None:
    """Raises UsageError for what can be no scheduler's address, before Dask has begun anything; `role`: a TLS one."""
    try:
        scheme, place = parse_address(scheduler)
        get_backend(scheme)
        host, port = parse_host_port(place)
        if scheme == "inproc" or not host or not 0 < port < 1 << 16:
            raise ValueError("a host and a port are needed")
        if scheme == "tls" and Security().get_connection_args(role).get("ssl_context") is None:
            raise ValueError("no certificates are set for TLS, see docs/cluster.md")
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(
            f"--scheduler is {scheduler!r}, which is no address of a scheduler ({error}); expected tcp://HOST:8786."
        ) from None


def run(scheduler: str, slots: Sequence[Slot]) -> None:
    """Keep a runner for each slot until SIGTERM or Ctrl-C: one that ends, with its scheduler perhaps, starts again.

    Raises:
        InfrastructureError: all were dismissed, or cannot start here.
    """
    runners = [_Runner(scheduler, slot, number) for number, slot in enumerate(slots)]
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    try:
        while not stop.wait(LOOK_EVERY_S) and any([runner.keeps_going() for runner in runners]):
            continue
        if not stop.is_set():
            if not any(runner.was_dismissed for runner in runners):
                raise InfrastructureError(
                    f"the runners of this machine end with an error as soon as they start, {FALSE_STARTS} times in a "
                    "row: what they say stands above. Correct that, and start `grader worker` again."
                )
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
        self._false_starts = 0
        self.was_dismissed = False
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, env=self._environment, preexec_fn=_die_with_us)
        self._started_at = time.monotonic()

    def keeps_going(self) -> bool:
        """Start it again if it has ended; false if it was dismissed, or ends as soon as it starts.

        One whose scheduler is away does not end: it waits.
        """
        status, age_s = self._process.poll(), time.monotonic() - self._started_at
        self.was_dismissed = status == DISMISSED
        if status is not None and age_s > RESTART_S and not self._is_given_up:
            self._false_starts = self._false_starts + 1 if status and age_s < AT_ONCE_S else 0
            if not self._is_given_up:
                self._start()
        return not self._is_given_up

    @property
    def _is_given_up(self) -> bool:
        return self.was_dismissed or self._false_starts >= FALSE_STARTS

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
