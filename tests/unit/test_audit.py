"""Answers of runners: which stand, which are asked for again, and what becomes of a runner that is contradicted."""

from __future__ import annotations

from grader.audit import Answer, Audit, Ruling
from grader.executors import Attempt
from grader.types import CheckResult, Outcome, Status, Submission
from tests.unit.records import a_grade

HERE = "this machine"


def answer(student_id: str, worker: str, outcome: Outcome = Outcome.PASSED) -> Answer:
    submission = Submission(student_id=student_id, path="", sha256="0", submitted_at="")
    check = CheckResult(check_id="one", outcome=outcome, points=0.0, max_points=1.0, message="", wall_time_s=0.0)
    grade = a_grade(student_id, checks=(check,))
    return Answer(submission=submission, worker=worker, attempt=Attempt(grade=grade, fault="", log=""), grade=grade)


def take(audit: Audit, student_id: str, worker: str, outcome: Outcome = Outcome.PASSED) -> Ruling:
    return audit.take(answer(student_id, worker, outcome), has_others=True, is_final=worker == HERE)


def students(ruling: Ruling) -> list[str]:
    return [one.submission.student_id for one in ruling.stands]


def again(ruling: Ruling) -> list[str]:
    return [submission.student_id for submission in ruling.again]


def test_nothing_of_a_runner_is_recorded_before_its_first_answer_is_confirmed() -> None:
    """Then all that it has sent meanwhile is; also that of whoever confirmed it."""
    audit = Audit(0)
    assert again(take(audit, "ann", "a")) == ["ann"]
    assert take(audit, "bob", "a") == Ruling()
    assert audit.heard("ann") == ["a"]
    assert students(take(audit, "ann", "b")) == ["ann", "bob"]
    assert students(take(audit, "cyd", "a")) == ["cyd"]
    assert students(take(audit, "dan", "b")) == ["dan"]


def contradicted(audit: Audit, student_id: str, liar: str = "liar") -> Ruling:
    """A runner says what another and this machine do not say."""
    take(audit, student_id, liar, Outcome.FAILED)
    assert again(take(audit, student_id, "b")) == [student_id]
    assert audit.heard(student_id) == [liar, "b"]
    return take(audit, student_id, HERE)


def test_a_runner_that_forges_from_the_start_has_nothing_recorded() -> None:
    """Contradicted twice on end it is exposed; all it has sent meanwhile is graded again, and all it sends then."""
    audit = Audit(0)
    take(audit, "ann", "liar", Outcome.FAILED)
    assert take(audit, "bob", "liar", Outcome.FAILED) == Ruling()
    take(audit, "ann", "b")
    ruling = take(audit, "ann", HERE)
    assert [(one.submission.student_id, one.worker) for one in ruling.stands] == [("ann", HERE)]
    assert (again(ruling), ruling.exposed, ruling.withdrawn) == (["bob"], (), ())
    ruling = contradicted(audit, "cyd")
    assert ruling.exposed == ("liar",)
    assert again(take(audit, "dan", "liar")) == ["dan"]
    assert students(take(audit, "bob", "b")) == ["bob"]


def test_one_notebook_that_comes_out_at_random_exposes_nobody() -> None:
    """Who was contradicted once is put to the test again, and is believed as before when that is passed."""
    audit = Audit(1)
    for student_id in ("ann", "bob"):
        assert contradicted(audit, student_id, "honest").exposed == ()
        assert again(take(audit, f"{student_id} 2", "honest")) == [f"{student_id} 2"]
        assert students(take(audit, f"{student_id} 2", "b")) == [f"{student_id} 2"]


def test_a_trial_that_nobody_could_decide_is_no_trial_passed() -> None:
    """Neither by asking the same runner again nor by giving up: what was held is graded again, and so is the trial."""
    audit = Audit(0)
    take(audit, "ann", "liar", Outcome.FAILED)
    take(audit, "bob", "liar", Outcome.FAILED)
    take(audit, "ann", "b")
    ruling = audit.give_up("ann")
    assert (students(ruling), again(ruling)) == ([], ["bob"])
    take(audit, "cyd", "liar", Outcome.FAILED)
    assert students(take(audit, "cyd", "liar", Outcome.FAILED)) == ["cyd"]
    assert again(take(audit, "dan", "liar")) == ["dan"]


def test_what_rested_on_the_word_of_one_that_turns_is_withdrawn() -> None:
    """What another runner has confirmed stays."""
    audit = Audit(0)
    take(audit, "ann", "liar")
    take(audit, "ann", "b")
    take(audit, "bob", "liar")
    ruling = audit.expose("liar")
    assert [(submission.student_id, status) for submission, status in ruling.withdrawn] == [("bob", Status.GRADED)]


def test_a_notebook_that_comes_out_differently_each_time_exposes_nobody() -> None:
    """This machine contradicts both: then neither is to blame, and its own grade stands."""
    audit = Audit(0)
    take(audit, "ann", "a", Outcome.FAILED)
    take(audit, "ann", "b", Outcome.TIMED_OUT)
    ruling = take(audit, "ann", HERE)
    assert ruling.exposed == ()
    assert [one.worker for one in ruling.stands] == [HERE]


def test_who_confirms_the_liar_is_believed_no_longer_than_the_liar() -> None:
    """An answer that waits to be confirmed is forgotten when its runner is exposed by another."""
    audit = Audit(1)
    take(audit, "ann", "liar")
    take(audit, "ann", "b")
    take(audit, "bob", "liar")
    assert audit.heard("bob") == ["liar"]
    audit.expose("liar")
    assert audit.heard("bob") == []


def test_a_single_answer_stands_unconfirmed_only_if_its_runner_has_passed() -> None:
    """Neither that of a runner nobody has confirmed yet, nor two that contradict each other."""
    audit = Audit(1)
    take(audit, "ann", "a")
    assert audit.rests_on_trial("ann")
    assert students(audit.give_up("ann")) == []
    take(audit, "bob", "a")
    take(audit, "bob", "b")
    take(audit, "cyd", "a")
    assert not audit.rests_on_trial("cyd")
    assert students(audit.give_up("cyd")) == ["cyd"]
    take(audit, "dan", "a")
    take(audit, "dan", "b", Outcome.FAILED)
    assert students(audit.give_up("dan")) == []


def test_this_machine_can_be_the_second_to_grade() -> None:
    """Who agrees with it has passed, and what was held of him stands; else only this machine's grade does."""
    audit = Audit(0)
    for student_id in ("ann", "bob"):
        take(audit, student_id, "a")
    assert students(take(audit, "ann", HERE)) == ["ann", "bob"]
    audit = Audit(0)
    for student_id in ("ann", "bob"):
        take(audit, student_id, "liar", Outcome.FAILED)
    ruling = take(audit, "ann", HERE)
    assert [(one.submission.student_id, one.worker) for one in ruling.stands] == [("ann", HERE)]
    assert again(ruling) == ["bob"]


def test_the_grade_of_this_machine_is_tested_by_nobody() -> None:
    """Also if those who contradicted each other are believed no longer by the time it has graded."""
    audit = Audit(1)
    take(audit, "ann", "a")
    take(audit, "ann", "b", Outcome.FAILED)
    for worker in ("a", "b"):
        audit.expose(worker)
    assert students(take(audit, "ann", HERE)) == ["ann"]


def test_every_answer_is_confirmed_with_a_share_of_one_and_none_without_others() -> None:
    """A single runner has nobody to confirm it."""
    audit = Audit(1)
    for student_id in ("ann", "bob"):
        assert again(take(audit, student_id, "a")) == [student_id]
        assert students(take(audit, student_id, "b")) == [student_id]
    alone = audit.take(answer("cyd", "a"), has_others=False)
    assert students(alone) == ["cyd"]


def test_the_same_runner_twice_confirms_nothing_and_hinders_nobody() -> None:
    """With all others gone it was asked again itself: its first answer stands."""
    audit = Audit(0)
    take(audit, "ann", "a", Outcome.FAILED)
    assert students(take(audit, "ann", "a", Outcome.PASSED)) == ["ann"]


def test_grades_that_are_confirmed_are_recorded_whole() -> None:
    """Only what is kept in mind for later loses its parts."""
    audit = Audit(0)
    take(audit, "ann", "a")
    (stands,) = take(audit, "ann", "b").stands
    assert stands.grade == answer("ann", "a").grade
