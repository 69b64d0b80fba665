"""Grades many submissions: worker processes do the work, this process alone writes the records.

Each grade is written as soon as it is there, in one transaction. A run that was stopped goes on where it stopped:
what the gradebook holds under the same key is not graded again.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
import signal
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from grader.errors import GraderError, InfrastructureError, WorkerLost
from grader.gradebook import Gradebook
from grader.pipeline import Bench, grade_submission, unmeasured
from grader.types import Grade, Submission

ATTEMPTS = 3
BACK_OFF_S = 2.0
MEMORY_BYTES = 4 << 30  # of a worker: what a check makes of an answer must not take the machine's
_PR_SET_PDEATHSIG = 1

Report = Callable[[Grade, bool], None]  # a grade, and whether it was in the gradebook already
_bench: Bench | None = None


class Interrupted(Exception):
    """The user stopped the batch; what was finished is recorded."""


def grade_batch(
    submissions: Sequence[Submission],
    bench: Bench,
    book: Gradebook,
    run_id: int,
    *,
    jobs: int,
    report: Report,
    publish: Callable[[Grade], None],
) -> None:
    """Grade what the gradebook does not hold yet; `publish` writes a student's files before the grade is recorded.

    Raises:
        Interrupted: after Ctrl-C, once the submissions in hand are finished and recorded.
    """
    pending = []
    latest = {grade.student_id: grade.key for grade in book.latest()}
    for submission in submissions:
        known = book.find(submission.student_id, bench.key(submission))
        if known:
            if latest[known.student_id] != known.key:  # handed in again as it was before the latest
                publish(known)
                book.add(run_id, known)
            report(known, True)
        else:
            pending.append(submission)

    def record(grade: Grade) -> None:
        publish(grade)
        book.add(run_id, grade)
        report(grade, False)

    grade_each(pending, bench, jobs=jobs, record=record)


def grade_each(submissions: Sequence[Submission], bench: Bench, *, jobs: int, record: Callable[[Grade], None]) -> None:
    """Grade submissions in worker processes; `record` is called here, with each grade as it comes.

    Raises:
        Interrupted: after Ctrl-C, once the submissions in hand are finished and recorded.
    """
    if submissions:
        _Batch(submissions, bench, min(jobs, len(submissions)), record).run()


class _Batch:
    """The submissions of one run: waiting, in hand, and how often a fault of ours has hit each."""

    def __init__(self, pending: Sequence[Submission], bench: Bench, jobs: int, record: Callable[[Grade], None]) -> None:
        self._waiting = deque(pending)
        self._suspects: deque[Submission] = deque()  # in hand when a worker was lost: each is tried again alone
        self._in_hand: dict[Future[Grade], Submission] = {}
        self._attempts: Counter[str] = Counter()
        self._bench, self._jobs, self._record = bench, jobs, record
        self._pool = self._new_pool()

    def run(self) -> None:
        """Grade all. Raises Interrupted after Ctrl-C."""
        try:
            while self._waiting or self._in_hand or self._suspects:
                self._hand_out()
                self._collect()
        except KeyboardInterrupt:
            self._stop()
            raise Interrupted from None
        finally:
            self._pool.shutdown(cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=self._jobs,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(self._bench,),
        )

    def _hand_out(self) -> None:
        """Give each free worker one submission: a worker that dies takes only what it held."""
        while self._waiting and len(self._in_hand) < self._jobs:
            if not self._submit(self._waiting):
                return
        if self._suspects and not self._in_hand:
            self._submit(self._suspects)

    def _submit(self, queue: deque[Submission]) -> bool:
        """Hand out the next of a queue; whether the pool took it."""
        submission = queue.popleft()
        try:
            self._in_hand[self._pool.submit(_grade_one, submission)] = submission
        except BrokenProcessPool:
            queue.appendleft(submission)
            return False
        return True

    def _collect(self) -> None:
        """Record what is done; put back what a fault of ours hit, or record it as unknown when it keeps failing."""
        broken = not self._in_hand
        for future in wait(self._in_hand, return_when=FIRST_COMPLETED).done:
            submission = self._in_hand.pop(future)
            try:
                grade = future.result()
            except (InfrastructureError, BrokenProcessPool) as error:
                broken = broken or isinstance(error, BrokenProcessPool)
                self._try_again(submission, error)
            else:
                self._record(grade)
        if broken:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = self._new_pool()

    def _try_again(self, submission: Submission, error: Exception) -> None:
        fault = error if isinstance(error, InfrastructureError) else WorkerLost("its worker process was lost")
        self._attempts[submission.student_id] += 1
        if self._attempts[submission.student_id] < ATTEMPTS:
            time.sleep(BACK_OFF_S)
            (self._suspects if isinstance(fault, WorkerLost) else self._waiting).append(submission)
        else:
            self._record(unmeasured(submission, self._bench, f"Not graded, by a fault of ours: {fault}"))

    def _stop(self) -> None:
        """After Ctrl-C: start nothing new, finish and record what runs; a second Ctrl-C stops at once."""
        print("Stopping: finishing what runs (press Ctrl-C again to stop at once).", file=sys.stderr)
        self._waiting.clear()
        self._suspects.clear()
        try:
            while self._in_hand:
                self._collect()
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.kill()


def _start_worker(bench: Bench) -> None:
    """In each worker: leave Ctrl-C to the coordinator, do not outlive it, and end in an error when memory runs out."""
    global _bench
    # a handler, not SIG_IGN: what is ignored stays ignored in the student's kernel, which must be interruptible
    signal.signal(signal.SIGINT, lambda _signal, _frame: None)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    _bench = bench


def _grade_one(submission: Submission) -> Grade:
    assert _bench is not None
    try:
        return grade_submission(submission, _bench)
    except GraderError:
        raise
    except Exception as error:  # a mistake of the grader's own is a fault of ours like any other
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        raise InfrastructureError(f"unexpected {type(error).__name__} at {place}: {error}") from error


def ungraded(grades: Iterable[Grade]) -> list[Grade]:
    """Those whose score is unknown by a fault of ours."""
    return [grade for grade in grades if grade.score is None]
