"""Grades many submissions: workers do the work, this process alone writes the records.

Each grade is written as soon as it is there, in one transaction. A run that was stopped goes on where it stopped:
what the gradebook holds under the same key is not graded again.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from grader.audit import SHARE, Answer, Audit, Ruling
from grader.bench import Bench
from grader.errors import GraderError, InfrastructureError, PackageMissing, SchedulerLost
from grader.executors import Attempt, InProcess, LocalWorkers, Workers, grade_proven
from grader.gradebook import Gradebook
from grader.pipeline import unmeasured
from grader.stopping import Interrupted, heeding, patiently
from grader.types import Grade, Status, Submission
from grader.verify import objection

ATTEMPTS = 3
BACK_OFF_S = 2.0  # before the second attempt; twice as long before the third
LACKING_S = 60.0  # a runner may be without the batch's package, until it is brought again
LOOK_EVERY_S = 0.5  # at who is there and who has asked to stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to one submission of a batch, or to all of it."""

    kind: str  # started | running (where) | held (unconfirmed) | graded | known (before) | failed (by us) | withdrawn
    # or of all: stopping (what runs is finished)
    student_id: str  # empty if it is of all
    worker: str = ""  # who has it, as far as that is known
    message: str = ""  # the fault; of a grade that was known, why it is recorded once more
    grade: Grade | None = None  # once there is one
    status: Status | None = None  # of a grade that is withdrawn
    log: str = ""  # what the worker had to say


Watch = Callable[[Event], None]


def hire(bench: Bench, *, jobs: int, scheduler: str = "") -> Workers:
    """Those who grade: the runners of a scheduler, so many worker processes here, or for 0 this process itself.

    Raises UsageError if no scheduler answers at this address.
    """
    if scheduler:
        from grader.cluster import Cluster  # Dask takes half a second to import, and most batches do without

        return Cluster(scheduler, bench, bench.device)
    return LocalWorkers(jobs, bench) if jobs else InProcess(bench)


def grade_batch(
    submissions: Sequence[Submission],
    bench: Bench,
    book: Gradebook,
    run_id: int,
    *,
    workers: Callable[[], Workers],
    watch: Watch,
    publish: Callable[[Grade], None],
    audit: float = SHARE,
) -> None:
    """Grade what the gradebook does not hold yet; `publish` writes a student's files before the grade is recorded.

    `audit` is the share of what runners of a cluster grade that a second one grades, too (`audit.py`).

    Raises:
        Interrupted: after Ctrl-C, once the submissions in hand are finished and recorded.
        InfrastructureError: the gradebook cannot be written, or the scheduler is gone; the next run goes on.
    """
    pending = []
    latest = {grade.student_id: grade.key for grade in book.latest()}
    on_record = book.known()
    for submission in submissions:
        key = bench.key(submission)
        known = book.find(submission.student_id, key) if (submission.student_id, key) in on_record else None
        if known:
            again = latest[known.student_id] != known.key
            if again:  # handed in again as it was before the latest
                publish(known)
                book.add(run_id, known)
            why = "handed in again as before the latest" if again else ""
            watch(Event(kind="known", student_id=known.student_id, grade=known, message=why))
        else:
            pending.append(submission)

    stops: list[int] = []

    def record(grade: Grade) -> None:
        def add(attempt: int) -> None:
            if attempt == 1 or not _is_on_record(book, grade):  # what is lost may be no more than the answer to it
                book.add(run_id, grade)

        patiently(lambda attempt: publish(grade), stops)
        patiently(add, stops)

    if pending:
        _Batch(pending, bench, workers(), record, watch, audit, stops).run()


def grade_each(
    submissions: Sequence[Submission],
    bench: Bench,
    *,
    jobs: int = 1,
    record: Callable[[Grade], None],
    watch: Watch = lambda event: None,
    workers: Workers | None = None,
    audit: float = SHARE,
) -> None:
    """Grade submissions in `jobs` worker processes, or by `workers`; `record` is called here, with each grade.

    Raises:
        Interrupted: after Ctrl-C, once the submissions in hand are finished and recorded.
    """
    if submissions:
        workers = workers or hire(bench, jobs=min(jobs, len(submissions)))
        _Batch(submissions, bench, workers, record, watch, audit).run()


def _is_on_record(book: Gradebook, grade: Grade) -> bool:
    known = ((held.key, held.status, held.graded_at) for held in book.history(grade.student_id))
    return (grade.key, grade.status, grade.graded_at) in known


class _Batch:
    """The submissions of one run: waiting, put off for a while, in hand; and how often a fault of ours has hit each."""

    def __init__(
        self,
        pending: Sequence[Submission],
        bench: Bench,
        workers: Workers,
        record: Callable[[Grade], None],
        watch: Watch,
        audit: float = SHARE,
        stops: list[int] | None = None,
    ) -> None:
        self._waiting = deque(pending)
        self._disputed: deque[Submission] = deque()  # runners contradict each other on them: for this machine, at once
        self._put_off: list[tuple[float, int, Submission]] = []  # a heap, by the time until which
        self._in_hand: dict[Future[Attempt], tuple[Submission, Workers]] = {}
        self._places: dict[Future[Attempt], str] = {}
        self._attempts: Counter[str] = Counter()
        self._faults: defaultdict[str, list[str]] = defaultdict(list)  # by worker, whom it failed since its last grade
        self._failed_on: defaultdict[str, list[str]] = defaultdict(list)  # by student, the workers, latest first
        self._able: set[str] = set()  # workers that have graded somebody
        self._lacking: dict[str, float] = {}  # workers without the batch's package, and since when
        self._numbers = itertools.count()
        self._stops = [] if stops is None else stops  # signals that have asked to stop
        self._bench, self._workers, self._record, self._watch = bench, workers, record, watch
        self._audit = Audit(audit) if workers.is_remote else None
        self._judge = LocalWorkers(1, bench)  # of runners that contradict each other; does not start before

    def run(self) -> None:
        """Grade all. Raises Interrupted after Ctrl-C or SIGTERM; a second one ends what runs at once."""
        is_stopping = False
        try:
            with heeding(self._stops, self._kill):
                while (self._waiting or self._disputed or self._put_off or self._in_hand) and len(self._stops) < 2:
                    slots = self._workers.slots
                    if not self._stops:
                        self._hand_out(slots)
                    elif not self._in_hand:
                        break
                    elif not is_stopping:
                        is_stopping = True
                        self._watch(Event(kind="stopping", student_id=""))
                    self._collect()
                if self._stops:
                    raise Interrupted
        except BaseException:
            self._kill()
            raise
        finally:
            for workers in (self._workers, self._judge):
                workers.shutdown(cancel_futures=True)

    def _kill(self) -> None:
        for workers in (self._workers, self._judge):
            workers.kill()

    def _hand_out(self, slots: int) -> None:
        """Give each free worker one submission: a worker that is lost takes only what it held."""
        while self._put_off and self._put_off[0][0] <= time.monotonic():
            self._line_up(heapq.heappop(self._put_off)[-1])
        for _ in range(len(self._disputed)):
            submission = self._disputed.popleft()
            if len(self._heard(submission)) < (1 if self._is_used_up(submission) else 2):  # one is believed no longer
                self._waiting.appendleft(submission)
                continue
            self._tell("started", submission)
            self._in_hand[self._judge.submit(grade_proven, submission)] = submission, self._judge
        free = slots - sum(who is self._workers for _, who in self._in_hand.values())
        for _ in range(min(free, len(self._waiting))):
            submission = self._waiting.popleft()
            self._tell("started", submission)
            self._in_hand[self._workers.grade(submission, self._to_avoid(submission))] = submission, self._workers

    def _line_up(self, submission: Submission, *, first: bool = False) -> None:
        if len(self._heard(submission)) > 1:
            self._disputed.append(submission)
        elif first:
            self._waiting.appendleft(submission)
        else:
            self._waiting.append(submission)

    def _to_avoid(self, submission: Submission) -> list[str]:
        """Who has answered, which somebody else is to confirm; then whom it failed on, those that grade others last."""
        failed_on = sorted(self._failed_on[submission.student_id], key=lambda worker: worker in self._able)
        return [*self._heard(submission), *failed_on]

    def _is_used_up(self, submission: Submission) -> bool:
        return self._attempts[submission.student_id] >= ATTEMPTS

    def _heard(self, submission: Submission) -> list[str]:
        return self._audit.heard(submission.student_id) if self._audit else []

    def _collect(self) -> None:
        """Record what is done; put off what a fault of ours hit, or record it as unknown when it keeps failing."""
        if not self._in_hand:
            time.sleep(LOOK_EVERY_S)
        for future in wait(self._in_hand, LOOK_EVERY_S, FIRST_COMPLETED).done:
            submission, who = self._in_hand[future]
            worker = who.where(future)
            done = self._outcome(future, submission, who)
            if done.grade:
                if who is self._workers:
                    self._able.add(worker)
                    self._faults.pop(worker, None)
                self._lacking.pop(worker, None)
                answer = Answer(submission=submission, worker=worker, attempt=done, grade=done.grade)
                self._take(answer, is_final=who is self._judge)
            elif len(self._stops) < 2:  # else we have ended it ourselves
                self._try_again(submission, who, worker, done, is_ours=self._is_ours(future.exception(), worker))
            del self._in_hand[future]
            self._places.pop(future, None)
        for future, (submission, who) in self._in_hand.items():
            worker = who.where(future)
            if worker and worker != self._places.get(future):
                self._places[future] = worker
                self._tell("running", submission, worker)

    def _take(self, answer: Answer, *, is_final: bool) -> None:
        """Record a grade, or have it confirmed first."""
        if self._audit:
            ruling = self._audit.take(answer, has_others=self._workers.slots > 1, is_final=is_final)
            if answer.submission not in [settled.submission for settled in ruling.stands]:
                self._tell("held", answer.submission, answer.worker)
            self._follow(ruling)
        else:
            self._settle(answer)

    def _follow(self, ruling: Ruling) -> None:
        for worker in ruling.exposed:
            self._workers.dismiss(worker)
            self._able.discard(worker)
            for submission, status in ruling.withdrawn:
                why = f"it rested on the word of {worker} alone, whose verdicts others contradict"
                self._record(unmeasured(submission, self._bench, f"The grade was withdrawn: {why}."))
                self._tell("withdrawn", submission, worker, message=why, status=status)
                self._waiting.appendleft(submission)
        for answer in ruling.stands:
            self._settle(answer)
        for submission in ruling.again:
            self._line_up(submission, first=True)

    def _settle(self, answer: Answer) -> None:
        self._record(answer.grade)
        self._tell("graded", answer.submission, answer.worker, grade=answer.grade, log=answer.attempt.log)

    def _outcome(self, future: Future[Attempt], submission: Submission, who: Workers) -> Attempt:
        """What came back, with whatever prevented it as a fault of ours. Raises AssignmentError."""
        error, is_remote, worker = future.exception(), who.is_remote, who.where(future)
        if error is None:
            done = future.result()
            why = objection(done, submission, self._bench) if is_remote else ""
            if not why:
                return done
            self._dismiss(worker)
            error = InfrastructureError(f"the grade that {worker or 'a runner'} sent was refused: {why}")
        is_here = not self._workers.is_remote  # where it does not stand for what a single runner lacks
        if isinstance(error, GraderError) and not isinstance(error, InfrastructureError) and is_here:
            raise error
        said = str(error) if isinstance(error, GraderError) else f"unexpected {type(error).__name__}: {error}"
        return Attempt(grade=None, fault=said, log="")

    def _dismiss(self, worker: str) -> None:
        if self._audit and worker:
            self._follow(self._audit.expose(worker))

    def _is_ours(self, error: BaseException | None, worker: str) -> bool:
        """Whether neither the submission nor the worker has to do with a fault.

        Another batch of the same assignment takes the package along when it ends; then it is brought again.
        """
        if isinstance(error, PackageMissing):
            since = self._lacking.setdefault(worker, time.monotonic())
            return time.monotonic() - since < LACKING_S
        self._lacking.pop(worker, None)
        return isinstance(error, SchedulerLost)

    def _note_fault(self, student_id: str, worker: str) -> None:
        """Dismiss a runner on which one after the other fails, if there are others: else it would take the whole class.

        One that is idle again at once is given most of what waits. Those whom it hit have lost no attempt by it.
        """
        hit = self._faults[worker]
        hit.append(student_id)
        others = self._able - {worker} or (worker not in self._able and self._workers.slots > 1)
        if self._workers.is_remote and worker and len(set(hit)) >= ATTEMPTS and others:
            self._workers.dismiss(worker)
            self._able.discard(worker)
            self._attempts.subtract(self._faults.pop(worker))

    def _tell(self, kind: str, submission: Submission, worker: str = "", **more: Any) -> None:
        self._watch(Event(kind=kind, student_id=submission.student_id, worker=worker, **more))

    def _try_again(
        self, submission: Submission, who: Workers, worker: str, done: Attempt, *, is_ours: bool = False
    ) -> None:
        student_id = submission.student_id
        if not is_ours:
            self._attempts[student_id] += 1
            if who is self._workers:
                self._note_fault(student_id, worker)
                self._failed_on[student_id][:0] = [worker] if worker else []
        self._tell("failed", submission, worker, message=done.fault, log=done.log)
        if not self._is_used_up(submission):
            ready_at = time.monotonic() + BACK_OFF_S * 2 ** (max(self._attempts[student_id], 1) - 1)
            heapq.heappush(self._put_off, (ready_at, next(self._numbers), submission))
        elif self._audit and who is self._workers and self._audit.rests_on_trial(student_id):
            self._disputed.append(submission)
        else:
            self._give_up(submission, worker, done.fault)

    def _give_up(self, submission: Submission, worker: str, fault: str) -> None:
        """Its score is unknown; but the grade of a runner that has passed stands, which was only to be confirmed."""
        heard = self._heard(submission)
        if self._audit:
            ruling = self._audit.give_up(submission.student_id)
            self._follow(ruling)
            if ruling.stands:
                return
        if len(heard) > 1:
            fault = f"{' and '.join(heard)} contradict each other, and this machine cannot decide ({fault})"
        elif heard:
            fault = (
                f"only {heard[0]} has graded it, which nobody has confirmed yet, and nobody else can grade it ({fault})"
            )
        grade = unmeasured(submission, self._bench, f"Not graded, by a fault of ours: {fault}")
        self._record(grade)
        self._tell("graded", submission, worker, grade=grade)


def ungraded(grades: Iterable[Grade]) -> list[Grade]:
    """Those whose score is unknown by a fault of ours."""
    return [grade for grade in grades if grade.score is None]
