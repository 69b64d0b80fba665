"""Whether what runners send is true: some submissions are graded by two of them, and if these differ by this machine.

A runner's first answer is always put to this test, and until it has passed nothing else of that runner is believed;
later answers are drawn at random. Whom another runner and this machine contradict is put to the test again; if it fails
twice on end, it is exposed: what was recorded on its word alone is graded again. Once is no proof: a notebook may come
out differently each time.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

from grader.executors import Attempt
from grader.types import Grade, Status, Submission
from grader.verify import contradiction

SHARE = 0.02  # of the answers of runners that have passed


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a worker made of a submission."""

    submission: Submission
    worker: str
    attempt: Attempt
    grade: Grade  # the attempt's


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What follows from one more answer."""

    stands: tuple[Answer, ...] = ()  # to be recorded
    again: tuple[Submission, ...] = ()  # to be graded once more
    exposed: tuple[str, ...] = ()  # workers that said what is not so
    withdrawn: tuple[tuple[Submission, Status], ...] = ()  # recorded on their word, and how; to be graded again


class Audit:
    """Takes the answers of runners, and says what becomes of each."""

    def __init__(self, share: float = SHARE) -> None:
        """`share`: of the answers, from 0 (only a runner's first one) to 1 (everything is graded twice)."""
        self._share = share
        self._cases: dict[str, list[Answer]] = {}  # by student, the answers that somebody else is to confirm
        self._tested: set[str] = set()
        self._on_trial: set[str] = set()  # those whose first answer nobody has confirmed yet
        self._held: defaultdict[str, list[Answer]] = defaultdict(list)  # of workers on trial
        self._alone: defaultdict[str, list[tuple[Submission, Status]]] = defaultdict(list)  # recorded, by one's word
        self._doubted: set[str] = set()  # those that were contradicted when they were last put to the test
        self._exposed: set[str] = set()

    def heard(self, student_id: str) -> list[str]:
        """Who has answered so far and waits to be confirmed: nobody, one, or two that contradict each other."""
        return [answer.worker for answer in self._cases.get(student_id, [])]

    def rests_on_trial(self, student_id: str) -> bool:
        """Whether all there is of a student is the answer of a runner that has not passed."""
        case = self._cases.get(student_id, [])
        return len(case) == 1 and not self._has_passed(case[0].worker)

    def _has_passed(self, worker: str) -> bool:
        return worker in self._tested and worker not in self._on_trial

    def take(self, answer: Answer, *, has_others: bool, is_final: bool = False) -> Ruling:
        """Go on by one answer; `has_others`: there is somebody else to ask; `is_final`: it is this machine's."""
        worker, student_id = answer.worker, answer.submission.student_id
        if worker in self._exposed:
            return Ruling(again=(answer.submission,))
        case = self._cases.get(student_id, [])
        if case:
            return self._decide(case, answer) if is_final else self._compare(case[0], answer)
        if is_final:  # those who contradicted each other are believed no longer
            return Ruling(stands=(answer,))
        if has_others and self._is_drawn(worker):
            self._cases[student_id] = [answer]
            return Ruling(again=(answer.submission,))
        if worker in self._on_trial:
            self._held[worker].append(answer)
            return Ruling()
        return Ruling(stands=(self._believed(answer),))

    def give_up(self, student_id: str) -> Ruling:
        """Nobody else can grade it: the single answer of one that has passed stands, and nothing else.

        Of two that contradict each other none is better than the other.
        """
        case = self._cases.pop(student_id, [])
        stand = case[0] if len(case) == 1 and self._has_passed(case[0].worker) else None
        return self._close(case, stand, passed=set())

    def expose(self, worker: str) -> Ruling:
        """Believe a worker no longer."""
        return self._close([], None, passed=set(), exposed=(worker,))

    def _is_drawn(self, worker: str) -> bool:
        if worker in self._tested:
            return random.SystemRandom().random() < self._share
        self._tested.add(worker)
        self._on_trial.add(worker)
        return True

    def _compare(self, first: Answer, second: Answer) -> Ruling:
        """Two that agree are believed; between two that do not, this machine decides."""
        student_id, both = first.submission.student_id, {first.worker, second.worker}
        if len(both) == 2 and contradiction(first.grade, second.grade):
            self._cases[student_id] = [first, second]
            return Ruling(again=(first.submission,))
        self._cases.pop(student_id)
        return self._close([first, second], first, passed=both if len(both) == 2 else set())

    def _decide(self, case: list[Answer], final: Answer) -> Ruling:
        """What this machine says stands; who alone says otherwise is in doubt, and exposed if he was before."""
        self._cases.pop(final.submission.student_id)
        wrong = {answer.worker for answer in case if contradiction(answer.grade, final.grade)}
        exposed = tuple(wrong & self._doubted) if len(wrong) == 1 else ()
        self._doubted |= wrong if len(wrong) == 1 else set()
        return self._close([*case, final], final, passed={answer.worker for answer in case} - wrong, exposed=exposed)

    def _close(
        self, case: list[Answer], stand: Answer | None, *, passed: set[str], exposed: tuple[str, ...] = ()
    ) -> Ruling:
        """A case is decided: what was held of those that passed stands; of those exposed nothing does.

        Of the others what was held is graded again, and their next answer is put to the test as if it were the first.
        """
        workers = {answer.worker for answer in case}
        stands = [self._believed(stand) if len(workers) == 1 else stand] if stand else []
        again: list[Submission] = []
        withdrawn: list[tuple[Submission, Status]] = []
        self._doubted -= passed
        for worker in workers - set(exposed):
            held = self._held.pop(worker, [])
            self._on_trial.discard(worker)
            if worker in passed:
                self._tested.add(worker)
                stands += [self._believed(answer) for answer in held]
            else:
                self._tested.discard(worker)
                again += [answer.submission for answer in held]
        for worker in exposed:
            self._exposed.add(worker)
            again += [answer.submission for answer in self._held.pop(worker, [])]
            withdrawn += self._alone.pop(worker, [])
            for answers in self._cases.values():
                answers[:] = [answer for answer in answers if answer.worker != worker]
        return Ruling(stands=tuple(stands), again=tuple(again), exposed=exposed, withdrawn=tuple(withdrawn))

    def _believed(self, answer: Answer) -> Answer:
        self._alone[answer.worker].append((answer.submission, answer.grade.status))
        return answer
