"""Where submissions are graded: in this process, in worker processes of this machine, or on a cluster (`cluster.py`).

All are `concurrent.futures.Executor`s of functions that can be pickled, and promise the same: what kills the worker of
one task takes no other task with it, a task that goes on for ever is ended, and both come back as WorkerLost.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import multiprocessing
import os
import pickle
import resource
import signal
import socket
import time
import traceback
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

from grader.bench import Bench
from grader.errors import GraderError, InfrastructureError, WorkerLost
from grader.pipeline import grade_submission, join_template, share_template
from grader.sandbox.limits import anonymous_file
from grader.sandbox.proofs import require_proven
from grader.types import Grade, Submission

MEMORY_BYTES = 4 << 30  # of a worker: what a check makes of an answer must not take the machine's
START_WALL_S = 120.0  # of a worker process, its imports included
GRADING_S = 600.0  # what a grade may take besides its sandboxes
PR_SET_PDEATHSIG = 1
# a worker process dies with the thread that started it: this one lives as long as this process
_STARTER = ThreadPoolExecutor(1, "starter")
_bench: Bench | None = None  # of a worker process


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of grading one submission once: a grade, or the fault of ours that prevented it."""

    grade: Grade | None
    fault: str  # one sentence; empty if there is a grade
    log: str  # what the worker has to say about it, line by line


class Workers(Executor):
    """Those who grade. `shutdown` waits for what they have in hand."""

    is_remote = False  # what comes back was made by another installation, which may be another version

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many tasks they can work on side by side, now. Raises InfrastructureError if that stays unknown."""

    @abstractmethod
    def grade(self, submission: Submission, avoid: Sequence[str] = ()) -> Future[Attempt]:
        """Hand out one submission, where workers are not all one machine's to none of `avoid`, the first above all.

        The future raises WorkerLost, or AssignmentError.
        """

    @abstractmethod
    def where(self, future: Future[Any]) -> str:
        """The worker that has a task in hand, or had it last; empty if that is not known."""

    def dismiss(self, worker: str) -> None:
        """Give nothing more to a worker whose answers cannot be right."""

    @abstractmethod
    def kill(self) -> None:
        """End all that runs, at once: it is lost."""


class InProcess(Workers):
    """Grades right here, for debugging: nothing protects this process from what a check makes of an answer."""

    slots = 1

    def __init__(self, bench: Bench | None) -> None:
        self._bench = bench

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  an executor raises it where the result is asked for
            future.set_exception(error)
        return future

    def grade(self, submission: Submission, avoid: Sequence[str] = ()) -> Future[Attempt]:
        assert self._bench is not None
        return self.submit(attempt, submission, self._bench)

    def where(self, future: Future[Any]) -> str:
        return "this process"

    def kill(self) -> None:
        """Nothing runs beside the caller."""


class LocalWorkers(Workers):
    """Worker processes of this machine, each on its own."""

    def __init__(self, jobs: int, bench: Bench | None, limit_s: float | None = None) -> None:
        """None of them starts before there is a task for it; `limit_s` bounds a task (default: by the profile)."""
        self._limit_s = limit_s if limit_s is not None or bench is None else time_limit_s(bench)
        self._bench = _Carried(bench)
        self._workers = [_Worker(f"worker {number}", bench, self._bench) for number in range(1, jobs + 1)]
        self._threads = ThreadPoolExecutor(jobs, "worker")
        self._tasks: WeakKeyDictionary[Future[Any], _Task] = WeakKeyDictionary()
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    @property
    def slots(self) -> int:
        return len(self._workers)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        task = _Task(functools.partial(fn, *args, **kwargs))
        future = self._threads.submit(self._run, task)
        self._tasks[future] = task
        return future

    def grade(self, submission: Submission, avoid: Sequence[str] = ()) -> Future[Attempt]:
        return self.submit(grade_here, submission)

    def where(self, future: Future[Any]) -> str:
        task = self._tasks.get(future)
        return task.worker if task else ""

    def kill(self) -> None:
        for worker in self._workers:
            worker.kill()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        for worker in self._workers:
            worker.close()
        self._bench.close()

    def _run(self, task: _Task) -> Any:
        worker = self._idle.get()
        task.worker = worker.name
        try:
            return worker.call(task.call, self._limit_s)
        finally:
            self._idle.put(worker)


class _Carried:
    """The bench as a nameless file, for processes to read.

    What a process is started with goes through a pipe, which blocks for ever when it is full and nobody reads.
    """

    def __init__(self, bench: Bench | None) -> None:
        self._bench, self._fd = bench, -1

    def place(self) -> str:
        """Its path; the file is made for the first who asks."""
        if self._fd < 0:
            self._fd = anonymous_file(pickle.dumps(self._bench))
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


@dataclass(slots=True)
class _Task:
    call: Callable[[], Any]
    worker: str = ""


class _Worker:
    """One process, which is started when it is needed, and again after it was lost."""

    def __init__(self, name: str, bench: Bench | None, carried: _Carried) -> None:
        self.name = name
        self._bench, self._carried = bench, carried
        self._pool: ProcessPoolExecutor | None = None
        self._pid = 0
        self._is_killed = False

    def call(self, task: Callable[[], Any], limit_s: float | None) -> Any:
        """The result of a task. Raises WorkerLost if the process ends, or gives no answer in time."""
        try:
            if self._pool is None:
                starting, end = _STARTER.submit(self._start).result()
                if self._is_killed:
                    self._end_process()
                with end:  # a template takes as long as a worker to start: meanwhile
                    if self._bench:
                        share_template(self._bench, end)
                self._in_time(starting, START_WALL_S)
            assert self._pool is not None
            return self._in_time(self._pool.submit(task), limit_s)
        except BrokenProcessPool as error:
            self.close()
            raise WorkerLost("its worker process was lost") from error

    def _in_time(self, future: Future[Any], limit_s: float | None) -> Any:
        try:
            return future.result(limit_s)
        except TimeoutError:
            if future.done():  # it was the task that raised it
                raise
            self._end_process()
            self.close()
            raise WorkerLost(f"its worker process gave no answer for {limit_s:.0f} s") from None

    def _start(self) -> tuple[Future[int], socket.socket]:
        """Start the process; the future is there once it is ready, the other end of its line is for a template."""
        context = multiprocessing.get_context("spawn")
        others = multiprocessing.active_children()
        line, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with line:  # the process takes it along, and nobody else is to hold it
                given = (self._carried.place(), line)
                pool = ProcessPoolExecutor(1, context, initializer=_start_worker, initargs=given)
                starting = pool.submit(os.getpid)
        except OSError as error:
            end.close()
            raise WorkerLost(f"its worker process could not be started: {error.strerror}") from error
        self._pool = pool
        started = [child for child in multiprocessing.active_children() if child not in others]
        self._pid = next((child.pid for child in started if child.pid), 0)
        return starting, end

    def kill(self) -> None:
        """End the process at once, if it runs, and start nothing more."""
        self._is_killed = True
        self._end_process()

    def _end_process(self) -> None:
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """Let the process end; the next call starts another."""
        if self._pool:
            self._pool.shutdown(wait=bool(self._pid), cancel_futures=True)
        self._pool, self._pid = None, 0


def time_limit_s(bench: Bench) -> float:
    """How long grading one submission can take: a last sandbox may begin when the time for one is just not used up."""
    return 2 * bench.profile.limits.total_wall_s + GRADING_S


def attempt(submission: Submission, bench: Bench) -> Attempt:
    """Grade one submission once. Raises AssignmentError; any other mistake of the grader's is a fault of ours."""
    with _logged() as lines:
        try:
            return Attempt(grade=_graded(submission, bench, lines), fault="", log="\n".join(lines))
        except InfrastructureError as error:
            return Attempt(grade=None, fault=str(error), log="\n".join(lines))


def _graded(submission: Submission, bench: Bench, lines: list[str]) -> Grade:
    try:
        return grade_submission(submission, bench)
    except GraderError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        lines += traceback.format_exception(error)
        raise InfrastructureError(f"unexpected {type(error).__name__} at {place}: {error}") from error


def grade_here(submission: Submission) -> Attempt:
    """In a worker process: grade one submission once."""
    assert _bench is not None
    return attempt(submission, _bench)


def grade_proven(submission: Submission) -> Attempt:
    """The same, once the sandbox has been proven on this machine: nobody need have done so before.

    Raises SandboxUnavailable.
    """
    assert _bench is not None
    require_proven(_bench.tier)
    return grade_here(submission)


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """What the grader's modules log meanwhile, with the time of day (UTC) of each line."""
    lines: list[str] = []

    class _Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            at = time.strftime("%H:%M:%S", time.gmtime(record.created))
            lines.append(f"{at} {record.levelname:<7} {record.getMessage()}")

    logger, handler = logging.getLogger("grader"), _Lines()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _start_worker(place: str, line: socket.socket) -> None:
    """In each worker: leave Ctrl-C to the coordinator, do not outlive it, and end in an error when memory runs out."""
    global _bench
    # a handler, not SIG_IGN: what is ignored stays ignored in the student's kernel, which must be interruptible
    signal.signal(signal.SIGINT, lambda _signal, _frame: None)
    signal.signal(signal.SIGTERM, lambda _signal, _frame: None)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    _bench = pickle.loads(Path(place).read_bytes())
    if _bench:
        join_template(_bench, line)
