"""The gradebook: whole grades or none, exact, append-only, and faults said in one sentence."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import given, settings
from hypothesis import strategies as st
from records import HOSTILE, a_grade, a_mark

from grader.database import migrations
from grader.errors import InfrastructureError, UsageError
from grader.gradebook import Gradebook, best_score
from grader.tables import METADATA
from grader.types import CheckResult, Flag, Outcome, PerplexityScore, Rules, Status


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gradebook.db"


@pytest.fixture
def book(path: Path) -> Iterator[Gradebook]:
    with Gradebook.open(path) as opened:
        yield opened


@pytest.fixture
def run(book: Gradebook) -> int:
    return book.begin_run(command="grader grade", profile="smoke", started_at="2026-03-01T09:00:00+00:00")


HEAD = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import sqlalchemy as sa
from grader.gradebook import Gradebook
from records import a_grade
path, args = Path(sys.argv[1]), sys.argv[2:]
"""


def python(code: str, *args: object) -> subprocess.Popen[str]:
    """Start code in a process of its own that has `Gradebook`, `a_grade`, `sa`, `path` and `args`."""
    argv = [sys.executable, "-c", HEAD + textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ending(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def test_round_trip(book: Gradebook, run: int) -> None:
    """What comes back equals what went in, to the last bit of every float, and None stays None."""
    grade = a_grade()
    book.add(run, grade)
    assert book.latest() == [grade]
    assert book.find("ada", "k1") == grade


numbers = st.floats(allow_nan=False, allow_infinity=False)
unknown = st.none() | numbers


@settings(max_examples=40, deadline=None)
@given(
    score=unknown,
    nats=unknown,
    low=unknown,
    blocks=st.lists(numbers | st.just(math.inf)),
    message=st.text(),
    status=st.sampled_from(Status),
    outcome=st.sampled_from(Outcome),
)
def test_round_trip_of_anything(
    tmp_path_factory: pytest.TempPathFactory,
    score: float | None,
    nats: float | None,
    low: float | None,
    blocks: list[float],
    message: str,
    status: Status,
    outcome: Outcome,
) -> None:
    """Any text that UTF-8 can hold and any finite number survives the file unchanged."""
    one = PerplexityScore(
        model="m",
        outcome=outcome,
        points=1.5,
        max_points=2.0,
        message=message,
        nats_per_char=nats,
        ci_low=low,
        block_nats=tuple(blocks),
    )
    grade = a_grade(score=score, message=message, status=status, perplexities=(one,), checks=(), flags=())
    with Gradebook.open(tmp_path_factory.mktemp("book") / "g.db") as book:
        book.add(book.begin_run(command="c", profile="p", started_at="t"), grade)
        assert book.latest() == [grade]


def test_no_nan_is_stored(book: Gradebook, run: int, path: Path) -> None:
    """A measured number that is NaN or infinite is stored as unknown, never as such."""
    odd = PerplexityScore(
        model="m",
        outcome=Outcome.FAILED,
        points=0.0,
        max_points=4.0,
        nats_per_char=math.inf,
        ci_low=math.nan,
        ci_high=-math.inf,
        block_nats=(1.0, math.inf),
    )
    book.add(run, a_grade(perplexities=(odd,)))
    stored = book.latest()[0].perplexities[0]
    assert (stored.nats_per_char, stored.ci_low, stored.ci_high) == (None, None, None)
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT block_nats FROM perplexity_scores").fetchone() == ("[1.0, null]",)
    raw.close()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused(book: Gradebook, run: int, bad: float) -> None:
    """A total or points of NaN are a fault of ours: nothing is recorded, so nobody gets a wrong grade."""
    check = CheckResult(check_id="c", outcome=Outcome.PASSED, points=bad, max_points=1.0)
    for grade in (a_grade(score=bad), a_grade(checks=(check,))):
        with pytest.raises(InfrastructureError, match="no finite number"):
            book.add(run, grade)
    assert book.latest() == []


@pytest.mark.parametrize("text", HOSTILE)
def test_student_ids_are_data(book: Gradebook, run: int, text: str) -> None:
    """An id or message full of SQL, HTML, formulas, control bytes or a NUL is just text."""
    grade = a_grade(text, message=text, flags=(Flag(kind=text, model=text, evidence=text),))
    book.add(run, grade)
    assert book.find(text, "k1") == grade
    assert book.latest() == [grade]


def test_a_file_name_that_is_not_utf8(book: Gradebook, run: int) -> None:
    """A student id with a byte that is not UTF-8 is kept readable and found again."""
    book.add(run, a_grade("b\udcff"))
    found = book.find("b\udcff", "k1")
    assert found is not None
    assert found.student_id == "b\\udcff"


def test_the_executed_notebook_is_not_kept(book: Gradebook, run: int) -> None:
    """The gradebook holds grades, not notebooks."""
    book.add(run, a_grade(notebook_json='{"cells": []}'))
    assert book.latest()[0].notebook_json == ""


def test_latest_is_the_last_added(book: Gradebook, run: int) -> None:
    """A regrade adds a row; `latest` shows the newest for each student, in order of student id."""
    book.add(run, a_grade("bob", score=1.0))
    book.add(run, a_grade("ada", score=2.0))
    book.add(run, a_grade("bob", score=3.0, key="k2"))
    assert [(g.student_id, g.score) for g in book.latest()] == [("ada", 2.0), ("bob", 3.0)]
    assert [g.score for g in book.of_run(run)] == [1.0, 2.0, 3.0]
    assert book.of_run(run + 1) == []


def test_needs_regrade_shadows_nothing(book: Gradebook, run: int) -> None:
    """A fault of ours never hides an earlier real grade, and a real grade replaces an earlier fault."""
    lost = {"status": Status.NEEDS_REGRADE, "score": None, "key": "k2"}
    book.add(run, a_grade("ada", score=2.0))
    book.add(run, a_grade("ada", **lost))
    book.add(run, a_grade("bob", **lost))
    book.add(run, a_grade("cy", **lost))
    book.add(run, a_grade("cy", score=5.0))
    assert [(g.student_id, g.score) for g in book.latest()] == [("ada", 2.0), ("bob", None), ("cy", 5.0)]


def test_a_grade_that_was_withdrawn_counts_no_longer(book: Gradebook, run: int) -> None:
    """Whatever the rules, until there is another; another student's and another key's are as they were."""
    lost = {"status": Status.NEEDS_REGRADE, "score": None}
    for rules in (Rules(), Rules(counts="best")):
        book.add(run, a_grade("ada", score=2.0), a_grade("bob", score=3.0), a_grade("ada", **lost))
        assert [(g.student_id, g.score) for g in book.counting(rules)] == [("ada", None), ("bob", 3.0)]
        assert [g.status.value for g in book.latest()] == ["needs_regrade", "graded"]
        book.add(run, a_grade("ada", score=1.0))
        assert [(g.student_id, g.score) for g in book.counting(rules)] == [("ada", 1.0), ("bob", 3.0)]


def test_needs_regrade_is_no_cache(book: Gradebook, run: int) -> None:
    """`find` offers the newest grade of exactly this student and key, unless a later record withdrew it."""
    book.add(run, a_grade("ada", status=Status.NEEDS_REGRADE, score=None))
    assert book.find("ada", "k1") is None
    book.add(run, a_grade("ada", score=1.0))
    book.add(run, a_grade("ada", score=2.0))
    found = book.find("ada", "k1")
    assert found is not None
    assert found.score == 2.0
    assert book.known() == {("ada", "k1")}
    assert book.find("ada", "k2") is None
    assert book.find("bob", "k1") is None
    book.add(run, a_grade("ada", status=Status.NEEDS_REGRADE, score=None))
    assert book.find("ada", "k1") is None
    assert book.known() == set()


def test_only_grows(book: Gradebook, run: int, path: Path) -> None:
    """Even another program cannot change or delete a row without dropping a trigger first."""
    book.add(run, a_grade())
    book.mark(a_mark())
    raw = sqlite3.connect(path)
    for table in METADATA.tables:
        with pytest.raises(sqlite3.IntegrityError, match="only grows"):
            raw.execute(f"DELETE FROM {table}")
    for change in ("grades SET score = 100", "marks SET points = 100"):
        with pytest.raises(sqlite3.IntegrityError, match="only grows"):
            raw.execute(f"UPDATE {change}")
    raw.close()


# --- marks ---


def test_the_last_mark_for_an_item_counts(book: Gradebook, path: Path) -> None:
    """A second mark for the same student and item replaces the first, which stays on record."""
    for mark in (a_mark(points=1.0), a_mark("poem", 2.0), a_mark(student_id="bob"), a_mark(points=0.1 + 0.2)):
        book.mark(mark)
    expected = [a_mark("poem", 2.0), a_mark(student_id="bob"), a_mark(points=0.1 + 0.2)]
    assert book.marks() == {(mark.student_id, mark.item): mark for mark in expected}
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT count(*) FROM marks").fetchone() == (4,)
    raw.close()


def test_a_mark_belongs_to_the_student(book: Gradebook, run: int) -> None:
    """Grading again, with another result or another notebook, leaves the marks as they are; a mark changes no grade."""
    book.add(run, a_grade())
    book.mark(a_mark())
    assert book.latest() == [a_grade()]
    book.add(run, a_grade(key="k2", submission_sha256="ff" * 32))
    assert book.marks() == {("ada", "essay"): a_mark()}


@pytest.mark.parametrize("text", HOSTILE)
def test_comments_are_data(book: Gradebook, text: str) -> None:
    """Whatever a comment, a student id or a login name holds comes back as it was."""
    mark = a_mark(student_id=text, comment=text, marked_by=text)
    book.mark(mark)
    assert book.marks() == {(text, "essay"): mark}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_mark_that_is_no_number_is_refused(book: Gradebook, bad: float) -> None:
    """Nothing is recorded."""
    with pytest.raises(InfrastructureError, match="no finite number"):
        book.mark(a_mark(points=bad))
    assert book.marks() == {}


def test_a_grade_of_no_run_is_refused(book: Gradebook) -> None:
    """A grade cannot refer to a run that was never begun, and the refusal leaves nothing behind."""
    with pytest.raises(InfrastructureError, match="could not be used"):
        book.add(99, a_grade())
    assert book.latest() == []


def test_best_score_is_the_lowest_measured() -> None:
    """A model that was not measured is never the best one, and no measured model means none."""
    grade = a_grade()
    best = best_score(grade)
    assert best is not None
    assert best.model == "gru"
    assert best_score(a_grade(perplexities=grade.perplexities[1:])) is None


# --- schema ---


def revisions() -> list[str]:
    script = ScriptDirectory.from_config(migrations())
    return [r.revision for r in script.walk_revisions()][::-1]


def migrate(path: Path, revision: str) -> None:
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool)
    config = migrations()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def old_grade(path: Path, submitted_at: str = "t") -> None:
    """A grade as the first schemas had it, written without the grader."""
    raw = sqlite3.connect(path)
    grade = {"run_id": 1, "submission_id": 1, "status": "graded", "message": "", "score": 1, "max_score": 2, "key": "k"}
    grade |= dict.fromkeys(("grader_version", "data_sha256", "profile", "sandbox", "graded_at"), "x")
    grade |= {"wall_time_s": 1.0}
    raw.execute("INSERT INTO runs VALUES (1, 'c', 'p', 't')")
    raw.execute("INSERT INTO submissions VALUES (1, 'ada', 'ab', ?)", (submitted_at,))
    raw.execute(f"INSERT INTO grades ({', '.join(grade)}) VALUES ({', '.join('?' * len(grade))})", [*grade.values()])
    raw.commit()
    raw.close()


@pytest.mark.parametrize("revision", revisions())
def test_each_earlier_schema_is_upgraded(path: Path, revision: str) -> None:
    """A gradebook of any earlier grader opens, holds the newest schema and takes grades and marks."""
    migrate(path, revision)
    with Gradebook.open(path) as book:
        book.add(book.begin_run(command="c", profile="p", started_at="t"), a_grade())
        book.mark(a_mark())
        assert book.latest() == [a_grade()]
        assert book.marks() == {("ada", "essay"): a_mark()}


def test_earlier_grades_were_of_models_trained_in_the_sandbox(path: Path) -> None:
    """A grade of a schema that knew no weights says so after the upgrade; a later one says what it is."""
    migrate(path, "0003")
    old_grade(path)
    with Gradebook.open(path) as book:
        assert [(grade.checkpoint, grade.cpu_instead) for grade in book.latest()] == [(False, False)]
        book.add(book.begin_run(command="c", profile="p", started_at="t"), a_grade(checkpoint=True, cpu_instead=True))
        assert book.latest() == [a_grade(checkpoint=True, cpu_instead=True)]


def test_earlier_grades_count_as_the_rules_say(path: Path) -> None:
    """Of a grade and rules of a schema that stored no seconds and kept no standings, lateness is as it was."""
    migrate(path, "0005")
    old_grade(path, "2026-03-02T13:00:00+01:00")
    migrate(path, "0007")
    rules = Rules(counts="best", due="2026-03-01T11:00:00Z", penalty_per_day=0.1)
    with closing(sqlite3.connect(path)) as raw:
        known = "INSERT INTO rules (counts, due, grace_minutes, penalty_per_day) VALUES ('best', ?, 0, 0.1)"
        raw.execute(known, (rules.due,))
        before = raw.execute("SELECT * FROM counting").fetchall()
        raw.commit()
    with Gradebook.open(path) as book, closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT * FROM counting").fetchall() == before == [("ada", 1, 1, 2, 0.2)]
        assert [(one.late_days, one.late_penalty) for one in book.counting(rules)] == [(2, 0.2)]
        assert raw.execute("SELECT count(*) FROM rules").fetchone() == (2,)


def test_migrations_make_the_tables_written_down(book: Gradebook, path: Path) -> None:
    """The migrations and the tables in the code describe the same schema."""
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_a_kill_in_the_middle_of_a_migration_leaves_no_half(path: Path) -> None:
    """Schema and version record come together: killed between the two, the file is as empty as before."""
    code, said = ending(
        python(
            """
        @sa.event.listens_for(sa.Engine, "before_cursor_execute")
        def stop(connection, cursor, statement, *rest):
            if statement.startswith("INSERT INTO alembic_version"):
                os.kill(os.getpid(), signal.SIGKILL)
        Gradebook.open(path)
        """,
            path,
        )
    )
    assert code == -signal.SIGKILL, said
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    raw.close()
    with Gradebook.open(path) as book:
        assert book.latest() == []


def test_a_newer_gradebook_is_refused(path: Path) -> None:
    """A file of a newer grader is left alone, and the sentence says to upgrade."""
    Gradebook.open(path).close()
    raw = sqlite3.connect(path)
    raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.commit()
    raw.close()
    with pytest.raises(UsageError, match=r"newer grader \(schema 9999.*upgrade the grader"):
        Gradebook.open(path)


# --- faults ---


def test_another_programs_database_is_refused(path: Path) -> None:
    """An SQLite file that is no gradebook is not turned into one."""
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE bookmarks (url TEXT)")
    raw.commit()
    raw.close()
    with pytest.raises(UsageError, match="database of another program"):
        Gradebook.open(path)


@pytest.mark.parametrize("content", [b"student,score\nada,3\n" * 200, os.urandom(5000)])
def test_not_a_database(path: Path, content: bytes) -> None:
    """A path that names some other file is the caller's mistake, and the file stays as it was."""
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is not a gradebook"):
        Gradebook.open(path)
    assert path.read_bytes() == content


def test_no_such_folder(tmp_path: Path) -> None:
    """A gradebook in a folder that does not exist is the caller's mistake."""
    with pytest.raises(UsageError, match="folder must exist"):
        Gradebook.open(tmp_path / "nowhere" / "g.db")


def test_a_folder_that_takes_no_files() -> None:
    """A folder that cannot be written is the caller's mistake, even for root."""
    with pytest.raises(UsageError, match="folder must exist"):
        Gradebook.open(Path("/proc/gradebook.db"))


def test_reading_makes_no_empty_gradebook(path: Path) -> None:
    """A mistyped path of a command that only reads creates nothing."""
    with pytest.raises(UsageError, match="no gradebook at"):
        Gradebook.open(path, create=False)
    assert not path.exists()


def test_a_damaged_file(book: Gradebook, run: int, path: Path) -> None:
    """Damage in the middle of the file is noticed when it is opened, before hours of grading."""
    for number in range(30):
        book.add(run, a_grade(f"s{number}"))
    content = bytearray(path.read_bytes())
    content[8192 : len(content) - 4096] = os.urandom(len(content) - 12288)
    path.write_bytes(content)
    with pytest.raises(InfrastructureError, match="is damaged"):
        Gradebook.open(path)


def test_a_row_that_we_never_wrote(book: Gradebook, run: int, path: Path) -> None:
    """A status that no grader knows is damage, not a crash."""
    book.add(run, a_grade())
    raw = sqlite3.connect(path)
    raw.execute("DROP TRIGGER grades_no_update")
    raw.execute("UPDATE grades SET status = 'splendid'")
    raw.commit()
    raw.close()
    with pytest.raises(InfrastructureError, match="is damaged"):
        book.latest()


def test_locked_for_too_long(path: Path) -> None:
    """A writer that never lets go gives one sentence after the wait, and readers go on."""
    with Gradebook.open(path, wait_s=0.1) as book:
        run = book.begin_run(command="c", profile="p", started_at="t")
        raw = sqlite3.connect(path, isolation_level=None)
        raw.execute("BEGIN IMMEDIATE")
        with pytest.raises(InfrastructureError, match="stayed locked"):
            book.add(run, a_grade())
        assert book.latest() == []
        raw.close()
        book.add(run, a_grade())
        assert book.latest() == [a_grade()]


def fill(book: Gradebook, run: int) -> None:
    for number in range(100):
        book.add(run, a_grade(f"s{number:03d}", message="x" * 5000))


def test_full_disk(path: Path) -> None:
    """With no room left the grade is not there at all, and earlier grades stay."""
    with Gradebook.open(path) as book:
        run = book.begin_run(command="c", profile="p", started_at="t")
        book.add(run, a_grade("first"))

        def small(connection: sqlite3.Connection, record: object) -> None:
            connection.execute("PRAGMA max_page_count = 1")  # SQLite takes the current size as the least

        sa.event.listen(book._engine, "connect", small)
        with pytest.raises(InfrastructureError, match="is full"):
            fill(book, run)
        for grade in book.latest():
            assert len(grade.checks) == 12
            assert len(grade.flags) == 1
        assert "first" in {grade.student_id for grade in book.latest()}


def test_a_kill_in_the_middle_of_a_grade_leaves_no_half(path: Path) -> None:
    """Killed between the checks and the flags of the third grade, the file holds two whole grades."""
    code, said = ending(
        python(
            """
        seen = 0
        @sa.event.listens_for(sa.Engine, "before_cursor_execute")
        def stop(connection, cursor, statement, *rest):
            global seen
            seen += statement.startswith("INSERT INTO flags")
            if seen == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        with Gradebook.open(path) as book:
            run = book.begin_run(command="c", profile="p", started_at="t")
            for number in range(5):
                book.add(run, a_grade(f"s{number}"))
        """,
            path,
        )
    )
    assert code == -signal.SIGKILL, said
    with Gradebook.open(path) as book:
        assert book.latest() == [a_grade("s0"), a_grade("s1")]
        book.add(book.begin_run(command="c", profile="p", started_at="t"), a_grade("s2"))
        assert len(book.latest()) == 3
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT count(*) FROM submissions").fetchone() == (3,)
    raw.close()


def test_a_kill_at_any_moment_leaves_whole_grades(path: Path) -> None:
    """Whatever was said to be added before kill -9 is there, whole; at most one more grade is."""
    Gradebook.open(path).close()
    code = """
        with Gradebook.open(path) as book:
            run = book.begin_run(command="c", profile="p", started_at="t")
            for number in range(10_000):
                book.add(run, a_grade(f"s{number:05d}"))
                print(number, flush=True)
    """
    with python(code, path) as writer:
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(25)]
        writer.kill()
        said += writer.stdout.readlines()
    added = len([line for line in said if line.strip()])
    with Gradebook.open(path) as book:
        grades = book.latest()
    assert grades == [a_grade(f"s{number:05d}") for number in range(len(grades))]
    assert added <= len(grades) <= added + 1


def test_two_writers(path: Path) -> None:
    """Two processes that open the same new file and write at the same time lose nothing to each other."""
    code = """
        with Gradebook.open(path) as book:
            run = book.begin_run(command=args[0], profile="p", started_at="t")
            for number in range(40):
                book.add(run, a_grade(f"{args[0]}{number:02d}"))
    """
    for writer in [python(code, path, name) for name in "ab"]:
        assert ending(writer) == (0, "")
    with Gradebook.open(path) as book:
        assert book.latest() == [a_grade(f"{name}{number:02d}") for name in "ab" for number in range(40)]


# --- what decided a grade ---


def test_what_decided_a_grade_comes_back(book: Gradebook, run: int) -> None:
    """Names and values as they were; a grade without any has none; the history has all in order."""
    grades = [a_grade(), a_grade(key="k2", key_parts={"engine": "ab", "mxnet": "1.9.1 \udcff"})]
    for grade in [*grades, a_grade("bob")]:
        book.add(run, grade)
    assert book.history("ada") == grades
    assert book.history("eve") == []


def test_earlier_grades_have_no_parts_of_their_key(path: Path) -> None:
    """A grade of a schema that did not record them is read, and says that nothing is recorded."""
    migrate(path, "0004")
    old_grade(path)
    with Gradebook.open(path) as book:
        assert [grade.key_parts for grade in book.latest()] == [{}]
