"""A student's page: says what it may, hides what it must, and runs nothing that a student wrote."""

from __future__ import annotations

import base64
import json
import struct
import time
import zlib
from typing import Any

import pytest
from records import HOSTILE, a_grade, a_mark, marking

from grader.cells import cells
from grader.disclose import WEAKER_PROMISE
from grader.feedback import feedback_html
from grader.marks import UNMARKED, Marking
from grader.render import one_line, plain, points, when
from grader.types import Check, CheckResult, ManualItem, Outcome, PerplexityScore, Status
from tests.harmless import Page, assert_harmless

CHECKS = (
    Check(id="f.example", title="f by example", points=1.0, hidden=False, hint="Look at shapes.", section="Part 1"),
    Check(id="f", title="all of f", points=2.0, hidden=True, hint="Carry the state.", section="Part 1"),
    Check(id="g", title="all of g", points=2.0, hidden=True, hint="Clip once.", section="Part 2"),
)


def result(check_id: str, outcome: Outcome = Outcome.PASSED, message: str = "", points: float = 1.0) -> CheckResult:
    return CheckResult(check_id=check_id, outcome=outcome, points=points, max_points=2.0, message=message)


def html(notebook: Any = None, marks: Marking = UNMARKED, **changes: Any) -> str:
    if notebook is not None:
        changes["notebook_json"] = notebook if isinstance(notebook, str) else json.dumps(notebook)
    return feedback_html(a_grade(**changes), CHECKS, assignment_title="Homework 8", marking=marks)


def code(*outputs: dict[str, Any], source: str = "x = 1") -> dict[str, Any]:
    cell = {"cell_type": "code", "execution_count": 1, "source": source, "outputs": list(outputs)}
    return {"cells": [cell]}


def png(width: int = 1, height: int = 1) -> str:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    return base64.b64encode(image).decode()


# --- what it says ---


def test_the_page_says_score_status_and_checks() -> None:
    """Score, status, sentence, points of each part and every check with its outcome in words are on the page."""
    results = (
        result("f.example"),
        result("f", Outcome.TIMED_OUT, points=0.0),
        result("g", Outcome.NOT_RUN, points=0.0),
    )
    text = Page(html(checks=results, score=78.5, status=Status.TIMED_OUT, message="Cell 3 took too long.")).text
    for words in ("78.5", "/ 100", "Ran out of time", "Cell 3 took too long.", "Part 1", "Part 2", "f by example"):
        assert words in text
    for outcome in ("passed", "timed out", "not run"):
        assert outcome in text
    assert "Carry the state." in text


def test_a_hint_is_about_a_fault_that_was_seen() -> None:
    """Checks that passed or never ran show no hint."""
    text = html(checks=(result("f"), result("g", Outcome.NOT_RUN, points=0.0)))
    assert "Carry the state." not in text
    assert "Clip once." not in text


def test_a_hidden_check_shows_no_observation() -> None:
    """What a hidden check saw is not on the page; what a visible one saw is."""
    results = (result("f.example", Outcome.FAILED, "got (3, 2)"), result("f", Outcome.FAILED, "expected 41.5"))
    page = html(checks=results)
    assert "got (3, 2)" in page
    assert "41.5" not in page
    assert "41.5" not in feedback_html(a_grade(checks=results), (), assignment_title="Homework 8")


def test_held_out_text_cannot_leave_by_an_exception() -> None:
    """The words of an exception raised while a model was scored are not on the page, the fact is."""
    score = PerplexityScore(model="gru", outcome=Outcome.RAISED, points=0.0, max_points=4.0, message="to be or not")
    page = html(perplexities=(score,))
    assert "to be or not" not in page
    assert "The model raised an error while it was being scored." in page


def test_every_unit_of_perplexity_is_there() -> None:
    """Perplexity, its interval, nats and bits per character and the points of each model."""
    score = PerplexityScore(
        model="gru",
        outcome=Outcome.PASSED,
        points=3.5,
        max_points=4.0,
        nats_per_char=1.7,
        ci_low=1.6,
        ci_high=1.8,
    )
    text = " ".join(Page(html(perplexities=(score,))).text.split())
    for words in ("5.474", "4.95 – 6.05", "1.700", "2.453", "3.5 / 4", "5.47 (gru)"):
        assert words in text


def test_an_unmeasured_model_says_why() -> None:
    """A model without a perplexity has no number, and the grader's reason stands in its place."""
    score = PerplexityScore(model="rnn", outcome=Outcome.NOT_RUN, points=0.0, max_points=4.0, message="No time left.")
    assert "No time left." in html(perplexities=(score,))


def words(page: str) -> str:
    return " ".join(Page(page).text.split())


def test_what_waits_for_a_person_is_said() -> None:
    """An item without a mark has no points and counts in no number; the page says so at its top and in its place."""
    text = words(html(score=62.5, marks=marking()))
    assert "62.5 / 100 so far" in text
    assert "2 answers in words are not marked yet, and no part of the 62.5 of 100 above." in text
    assert "Once marked, the score is out of 110." in text
    assert "waiting for a person The essay · Part 5 – / 6" in text
    assert "waiting for a person The poem – / 4" in text
    assert "Points given by a person" not in text


def test_a_mark_is_on_the_page_with_its_comment() -> None:
    """Points and comment stand beside the item and in the total; the rest still waits."""
    text = words(html(score=62.5, marks=marking(a_mark(points=4.5))))
    assert "67 / 106 so far" in text
    assert "One answer in words is not marked yet" in text
    assert "Points given by a person 4.5 / 6" in text
    assert "marked The essay · Part 5" in text
    assert "Well put. 4.5 / 6" in text
    assert "waiting for a person The poem – / 4" in text


def test_when_all_is_marked_the_page_waits_for_nobody() -> None:
    """A mark of zero is a zero; one that was given to an earlier notebook says so."""
    marks = marking(a_mark(points=4.5), a_mark("poem", 0.0, comment="", submission_sha256="ff" * 32))
    text = words(html(score=62.5, marks=marks))
    assert "67 / 110 " in text
    assert "so far" not in text
    assert "wait" not in text
    assert "marked The poem This mark was given to an earlier version of your notebook. 0 / 4" in text


def test_without_items_the_page_has_no_word_of_marks() -> None:
    """An assignment that needs no person has a page as before."""
    assert "Marked by a person" not in html()


def test_where_nothing_was_handed_in_nothing_waits() -> None:
    """A missing notebook has nothing to mark, and the page promises no mark."""
    text = words(html(status=Status.MISSING, score=0.0, checks=(), perplexities=(), marks=marking()))
    assert "0 / 110 " in text
    assert "nothing to mark The essay" in text
    assert "wait" not in text


def test_a_lost_grade_shows_no_mark() -> None:
    """Where a fault of ours left no score, no points are shown at all."""
    page = html(status=Status.NEEDS_REGRADE, score=None, checks=(), perplexities=(), marks=marking(a_mark()))
    assert "The essay" not in page
    assert "4.5" not in page


def test_the_guide_of_who_marks_stays_with_staff() -> None:
    """What a marker looks for is an answer."""
    assert "SECRET" not in html(marks=marking(a_mark()))


def test_flags_are_for_staff() -> None:
    """A student's page holds no flag and no evidence."""
    page = html()
    assert "MEMORISED" not in page
    assert "0.2 against" not in page


def test_a_fault_of_ours_is_no_zero() -> None:
    """A grade lost by us says so, promises that nothing is lost, and shows no points at all."""
    parts = (result("f", Outcome.NOT_RUN, points=0.0),)
    page = html(status=Status.NEEDS_REGRADE, score=None, message="/srv/worker-3 died", checks=parts)
    text = " ".join(Page(page).text.split())
    assert "not graded because of a fault on our side" in text
    assert "Nothing is lost" in text
    assert "No score yet" in text
    assert "0 /" not in text
    assert "/srv/worker-3" not in page


def test_the_weaker_promise_is_said() -> None:
    """Where weights could be handed in, and only there."""
    assert WEAKER_PROMISE in html(checkpoint=True)
    assert WEAKER_PROMISE not in html()


def test_no_sandbox_is_said_first() -> None:
    """A run without a sandbox opens with a warning; others have none."""
    page = html(sandbox="none")
    assert page.index("graded without a sandbox") < page.index("<h1>")
    assert "graded without a sandbox" not in html()


@pytest.mark.parametrize("status", list(Status))
def test_every_status_has_a_page(status: Status) -> None:
    """Whatever became of a submission, its student gets a harmless page, with and without parts."""
    score = None if status is Status.NEEDS_REGRADE else 0.0
    assert_harmless(html(status=status, score=score))
    assert_harmless(html(status=status, score=score, checks=(), perplexities=(), max_score=0.0, submitted_at=""))


# --- what it must not do ---


@pytest.mark.parametrize("text", [*HOSTILE, '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "\u202egnp.exe", "\ud800"])
def test_hostile_text_is_text(text: str) -> None:
    """Markup, template code, terminal codes and direction marks in any field of a grade stay inert."""
    score = PerplexityScore(model=text, outcome=Outcome.NOT_RUN, points=0.0, max_points=4.0, message=text)
    page = html(
        code({"output_type": "stream", "text": text}, {"output_type": "error", "traceback": [text]}, source=text),
        student_id=text,
        message=text,
        sandbox=text,
        profile=text,
        submitted_at=text,
        graded_at=text,
        grader_version=text,
        checks=(result("f.example", Outcome.FAILED, text), result(text)),
        perplexities=(score,),
        marks=Marking(
            items=(ManualItem(id="essay", title=text, section=text, points=6.0),),
            marks={(text, "essay"): a_mark(student_id=text, comment=text, marked_by=text)},
        ),
    )
    assert_harmless(page)
    page.encode("utf-8")
    assert "49" not in Page(page).text.replace("4949", "")


def test_rich_output_is_left_out() -> None:
    """HTML, SVG and scripts of a cell never reach the page; the plain text beside them does."""
    data = {"text/html": "<b id=evil>x</b>", "image/svg+xml": "<svg onload=alert(1)>", "text/plain": "a table"}
    data["application/javascript"] = "alert(2)"
    page = html(code({"output_type": "execute_result", "data": data}))
    assert_harmless(page)
    assert "a table" in page
    for part in ("evil", "onload", "alert"):
        assert part not in page


def test_pictures_are_pngs() -> None:
    """A real PNG is shown; anything else that calls itself one is not."""
    shown = {"output_type": "display_data", "data": {"image/png": [png()]}}
    assert f'src="data:image/png;base64,{png()}"' in html(code(shown))
    fakes = [
        base64.b64encode(b"<svg onload=alert(1)>" * 10).decode(),
        'x" onerror="alert(1)',
        png(60_000, 60_000),
        "A" * 5_000_000,
        "",
    ]
    for fake in fakes:
        assert "<img" not in html(code({"output_type": "display_data", "data": {"image/png": fake}}))


def test_errors_and_streams_lose_their_colours() -> None:
    """A traceback is readable text, and a progress bar shows its last state only."""
    outputs = (
        {"output_type": "stream", "text": ["10%\r50%\r100%\n", "\x1b]0;title\x07done"]},
        {
            "output_type": "error",
            "ename": "E",
            "evalue": "v",
            "traceback": ["\x1b[31mZeroDivisionError\x1b[0m: by zero"],
        },
        {"output_type": "error", "ename": "KeyError", "evalue": "'x'", "traceback": []},
    )
    [cell] = cells(json.dumps(code(*outputs)))
    assert [output.content for output in cell.outputs] == ["100%\ndone", "ZeroDivisionError: by zero", "KeyError: 'x'"]


@pytest.mark.parametrize(
    "notebook",
    [
        "",
        "no json",
        "null",
        "[]",
        '"text"',
        "[" * 200_000,
        '{"cells": 3}',
        '{"cells": [null, 3, {"cell_type": 7}, {"cell_type": "raw", "source": "x"}]}',
        '{"cells": [{"cell_type": "code", "source": {"a": 1}, "outputs": "x", "execution_count": "<b>"}]}',
        '{"cells": [{"cell_type": "code", "outputs": [3, {"output_type": "display_data", "data": []}]}]}',
        '{"cells": [{"cell_type": "code", "outputs": [{"output_type": "error", "traceback": [1, null]}]}]}',
        '{"cells": [{"cell_type": "code", "source": "\\ud800", "execution_count": NaN}]}',
    ],
)
def test_any_notebook_gives_a_page(notebook: str) -> None:
    """What came out of the sandbox may be anything; the page is written all the same."""
    page = html(notebook)
    assert_harmless(page)
    page.encode("utf-8")


def test_a_huge_notebook_gives_a_page_of_bounded_size() -> None:
    """Output without end is cut, and the page says so."""
    stream = {"output_type": "stream", "text": "<" * 30_000}
    [long], [short] = code(*[stream] * 60)["cells"], code()["cells"]
    page = html({"cells": [long] * 3 + [short] * 1000})
    assert "more characters left out" in page
    assert len(page) < 10_000_000


def test_stripping_codes_is_fast() -> None:
    """Text made of the beginnings of terminal codes takes no longer than other text."""
    started = time.perf_counter()
    for start in ("\x1b]", "\x1b[", "\x1b[" + "1;" * 50, "\x9b", "\x1b"):
        plain(start * 200_000, limit=400_000)
    assert time.perf_counter() - started < 5


def test_words_for_people() -> None:
    """Points have no trailing zeros, times are UTC, long lines are cut."""
    assert [points(value) for value in (1.0, 0.5, 2 / 3, 100.0, None)] == ["1", "0.5", "0.67", "100", "–"]
    assert when("2026-03-01T12:00:00+02:00") == "2026-03-01 10:00 UTC"
    assert when("2026-03-01T10:00:00Z") == "2026-03-01 10:00 UTC"
    assert when("2026-03-01") == "2026-03-01 00:00"
    assert when("soon") == "soon"
    assert one_line("a\n b\tc") == "a b c"
    assert one_line("x" * 400) == "x" * 300 + "…"
