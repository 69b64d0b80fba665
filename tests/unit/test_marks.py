"""Grades and marks put together: unknown is not zero, and a mark stays the student's."""

from __future__ import annotations

import pytest
from records import ITEMS, a_grade, a_mark, marking

from grader.errors import UsageError
from grader.marks import MARKED, NOTHING, NOTHING_HANDED_IN, UNMARKED, WAITING, points_for
from grader.types import Status


def test_without_items_the_grade_is_all_there_is() -> None:
    """An assignment that needs no person: score and points possible are those of the grade."""
    standing = UNMARKED.of(a_grade(score=62.5))
    assert (standing.score, standing.final, standing.max_score, standing.possible) == (62.5, 62.5, 100.0, 100.0)


def test_an_item_that_waits_counts_in_neither_number() -> None:
    """Without a mark there are no points and nothing that they are out of, and the score is not final."""
    standing = marking().of(a_grade(score=62.5))
    assert (standing.score, standing.final, standing.max_score, standing.possible) == (62.5, None, 100.0, 110.0)
    assert [(item.word, item.points) for item in standing.items] == [(WAITING, None), (WAITING, None)]


def test_a_marked_item_counts_in_both() -> None:
    """One mark of two adds its points and its possible points; with the second the score is final."""
    half = marking(a_mark(points=4.5)).of(a_grade(score=62.5))
    assert (half.score, half.final, half.max_score) == (67.0, None, 106.0)
    assert [item.id for item in half.waiting] == ["poem"]
    whole = marking(a_mark(points=4.5), a_mark("poem", 0.0)).of(a_grade(score=62.5))
    assert (whole.score, whole.final, whole.max_score) == (67.0, 67.0, 110.0)
    assert [item.word for item in whole.items] == [MARKED, MARKED]


def test_a_grade_without_a_score_gets_none_by_a_mark() -> None:
    """What a fault of ours left unknown stays unknown."""
    lost = a_grade(status=Status.NEEDS_REGRADE, score=None)
    standing = marking(a_mark(), a_mark("poem", 4.0)).of(lost)
    assert (standing.score, standing.final) == (None, None)


@pytest.mark.parametrize("status", [Status.MISSING, Status.INVALID_NOTEBOOK], ids=lambda status: status.value)
def test_where_nothing_was_handed_in_nothing_waits(status: Status) -> None:
    """No notebook, nothing to mark: no points of those possible, at once, unless a person decides otherwise."""
    grade = a_grade(status=status, score=0.0)
    standing = marking().of(grade)
    assert (standing.final, standing.max_score) == (0.0, 110.0)
    assert [(item.word, item.points) for item in standing.items] == [(NOTHING, 0.0), (NOTHING, 0.0)]
    assert marking().open([grade]) == []
    assert marking(a_mark(points=3.0)).of(grade).final == 3.0


@pytest.mark.parametrize("status", [status for status in Status if status not in NOTHING_HANDED_IN])
def test_whatever_was_handed_in_can_be_marked(status: Status) -> None:
    """A notebook that raised, ran out of time or is held for review still has answers in it."""
    assert len(marking().of(a_grade(status=status)).waiting) == 2


def test_a_mark_for_an_earlier_submission_counts_and_is_listed() -> None:
    """Its points stay, and a person is asked to look again."""
    grade = a_grade(submission_sha256="ff" * 32)
    [essay, poem] = marking(a_mark(), a_mark("poem", 4.0, submission_sha256="ff" * 32)).of(grade).items
    assert (essay.points, essay.earlier, poem.earlier) == (4.5, True, False)
    assert [item.id for _, item in marking(a_mark(), a_mark("poem", 4.0)).open([grade])] == ["essay", "poem"]
    assert marking(a_mark(), a_mark("poem", 4.0)).open([a_grade()]) == []


def test_a_mark_above_what_the_item_has_waits_for_a_person() -> None:
    """An item that lost points since it was marked is not paid more than it has, nor silently cut."""
    [essay, _] = marking(a_mark(points=6.5)).of(a_grade()).items
    assert essay.waiting


def test_a_mark_for_another_item_or_student_counts_nowhere() -> None:
    """Marks of items that the assignment no longer has, and of others, change nothing."""
    standing = marking(a_mark("gone"), a_mark(student_id="bob")).of(a_grade(score=1.0))
    assert (standing.score, len(standing.waiting)) == (1.0, 2)


def test_what_waits_is_listed_item_by_item() -> None:
    """All essays, then all poems: in the order in which they are marked best."""
    listed = marking(a_mark()).open([a_grade("bob"), a_grade("ada")])
    assert [(grade.student_id, item.id) for grade, item in listed] == [
        ("bob", "essay"),
        ("ada", "poem"),
        ("bob", "poem"),
    ]


def test_a_sum_is_no_longer_than_its_parts() -> None:
    """The last bits of a sum of floats do not show."""
    assert marking(a_mark(points=0.2), a_mark("poem", 0.4)).of(a_grade(score=0.1)).score == 0.7


def test_the_guide_is_not_in_what_outputs_get() -> None:
    """What is handed on has no word of what the person looks for."""
    assert "SECRET" not in repr(marking(a_mark()).of(a_grade()))


@pytest.mark.parametrize(("text", "points"), [("0", 0.0), ("6", 6.0), ("2.5", 2.5), (" 1e0 ", 1.0)])
def test_points_are_read(text: str, points: float) -> None:
    """From none to all that the item has."""
    assert points_for(ITEMS[0], text) == points


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("two", "'two' are no number"),
        ("2,5", "as in 2.5"),
        ("", "no number"),
        ("nan", "no number"),
        ("inf", "no number"),
        ("-0.5", "essay has from 0 to 6"),
        ("6.01", "essay has from 0 to 6"),
    ],
)
def test_points_that_cannot_be_given_are_refused(text: str, sentence: str) -> None:
    """One sentence that names the item and what it has."""
    with pytest.raises(UsageError, match=sentence):
        points_for(ITEMS[0], text)
