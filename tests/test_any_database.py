"""A gradebook in a kind of database that the grader does not know: DuckDB, with SQLAlchemy's own words only."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mssql, mysql, oracle

from grader import cli
from grader.database import _same_text
from grader.errors import InfrastructureError, UsageError
from grader.gradebook import Gradebook
from grader.migrations import anywhere
from grader.place import ADDRESS, PASSWORD, untested
from grader.tables import METADATA
from grader.types import Rules, Status
from grader.upkeep import check_server
from tests.small import course_in
from tests.unit.records import HOSTILE, a_grade, a_mark

DUE = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
WHOLE = {"score": 7.9, "max_score": 32.0}
needs_duckdb = pytest.mark.skipif(
    importlib.util.find_spec("duckdb_engine") is None,
    reason="no database of another kind is installed here (pip install duckdb duckdb-engine)",
)


@pytest.fixture
def url(tmp_path: Path) -> sa.URL:
    return sa.URL.create("duckdb", database=str(tmp_path / "g.duckdb"))


@pytest.fixture
def book(url: sa.URL) -> Iterator[Gradebook]:
    with Gradebook.open(url) as opened:
        yield opened


def begin(book: Gradebook) -> int:
    return book.begin_run(command="grade", profile="smoke", started_at="2026-03-01T09:00:00+00:00")


def found(url: sa.URL, out: Path) -> list[str]:
    return [problem.what for problem in check_server(url, out) if "missing: " not in problem.what]


@needs_duckdb
def test_what_is_kept_comes_back(book: Gradebook, url: sa.URL) -> None:
    """Grades, marks and texts as they were, also when it is opened again; a NUL stays readable."""
    grades = [a_grade(text, message=text) for text in HOSTILE]
    book.add(begin(book), *grades)
    book.mark(a_mark())
    kept = sorted(text.replace("\0", "\\x00") for text in HOSTILE)
    with Gradebook.open(url, create=False) as again:
        assert again.latest() == [a_grade(text, message=text) for text in kept]
        assert again.marks() == {("ada", "essay"): a_mark()}
        assert again.known() == {(text, "k1") for text in kept}
        assert len(again.of_run(1)) == len(HOSTILE)


@needs_duckdb
def test_what_counts_is_the_same_as_in_a_file(book: Gradebook, tmp_path: Path) -> None:
    """Random histories, times in other zones and no times at all, unknown scores: both views say the same."""
    dice, grades = random.Random(5), []
    for number in range(100):
        when = DUE + timedelta(seconds=dice.randint(-200_000, 400_000))
        times = [when.isoformat(), when.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat(), "", "2026-02"]
        status = dice.choice([Status.GRADED, Status.GRADED, Status.MISSING, Status.NEEDS_REGRADE])
        score = None if status is Status.NEEDS_REGRADE or dice.random() < 0.1 else float(dice.randint(0, 4))
        known = {"submitted_at": dice.choice(times), "submission_sha256": dice.choice("abcd"), "key": str(number)}
        grades.append(a_grade(f"s{dice.randint(0, 20):02d}", score=score, status=status, **known))
    with Gradebook.open(tmp_path / "g.sqlite") as file:
        for one in (file, book):
            one.add(begin(one), *grades)
        assert book.latest() == file.latest()
        for _ in range(8):
            rules = Rules(
                most=dice.choice([None, 1, 2]),
                counts=dice.choice(["latest", "best"]),
                due=dice.choice(["", DUE.isoformat()]),
                grace_minutes=dice.choice([0.0, 600.0]),
                penalty_per_day=dice.choice([0.25, 0.5]),
                max_days=dice.choice([None, 2]),
            )
            assert book.counting(rules) == file.counting(rules), rules
            for one in (file, book):
                one.record_rules(rules)
            assert book.counting(rules) == file.counting(rules), rules
            assert [type(one.late_days) for one in book.counting(rules)] == [int] * len(book.latest())


@needs_duckdb
def test_what_is_missing_is_named(book: Gradebook, url: sa.URL, tmp_path: Path) -> None:
    """A sound one has no problem; a view that was dropped and parts that do not add up are told."""
    book.add(begin(book), a_grade(**WHOLE), a_grade("bob", **WHOLE))
    assert found(url, tmp_path) == []
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.exec_driver_sql("DROP VIEW best")
        connection.exec_driver_sql("UPDATE check_results SET points = 9 WHERE grade_id = 1 AND position = 0")
    assert found(url, tmp_path) == [
        "The view best is missing.",
        "The parts of grade 1 (ada) do not add up to its score.",
    ]


@needs_duckdb
def test_another_programs_database_is_refused(url: sa.URL) -> None:
    """It is not touched."""
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(UsageError, match="database of another program"):
        Gradebook.open(url)


@needs_duckdb
def test_two_that_write_at_once_do_not_mix(book: Gradebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both give their rows the same number: the later one is told to run again, and nothing of it is kept."""
    book.mark(a_mark())
    monkeypatch.setattr(sa.Result, "scalar", lambda result: 0)  # as if the other had not been there yet
    with pytest.raises(InfrastructureError, match=r"wrote to .* at the same time: let that end"):
        book.mark(a_mark())
    monkeypatch.undo()
    assert len(book.marks()) == 1


@needs_duckdb
def test_a_class_is_graded_into_it_with_a_warning(
    tmp_path: Path, url: sa.URL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says that it is untested and refuses no change; every later command finds it by the folder."""
    monkeypatch.delenv(PASSWORD, raising=False)
    course = course_in(tmp_path, {"right": "def f(x): return 2 * x"})

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["grader", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), " ".join((said.out + said.err).split())

    hw = ("--assignment", course / "assignment", "--profile", "smoke", "--corpus-file", course / "text.txt")
    code, said = run("grade", course / "submitted", "-o", course / "out", *hw, "--jobs", 1, "--gradebook", url)
    assert code == 0, said
    assert said.count("WARNING: duckdb is a kind of database that is untested here") == 1
    assert "does not itself refuse changes" in said
    assert (course / "out" / ADDRESS).exists()
    code, said = run("db", "check", course / "out")
    assert (code, "is well" in said) == (0, True), said


@pytest.mark.parametrize("dialect", [mssql.dialect(), oracle.dialect(), mysql.dialect()], ids=lambda one: one.name)
def test_others_have_words_for_it(dialect: sa.Dialect) -> None:
    """Microsoft's and Oracle's servers are not at hand: every table and view can be said in their words, at least."""
    for table in anywhere.tables(dialect):
        assert f"CREATE TABLE {table.name}" in str(sa.schema.CreateTable(table).compile(dialect=dialect))
    views = anywhere.views(dialect)
    assert list(views) == ["latest", "attempts", "judged", "best", "reckoned", "counting"]
    assert not [query for query in views.values() if "%" in query or ":" in query]
    assert "SELECT CASE WHEN" in str(sa.select(_same_text("a", "A")).compile(dialect=dialect))  # neither selects truth


def test_an_empty_text_is_kept_where_it_would_be_none() -> None:
    """Oracle knows no empty text: there it is a blank, and comes back as it was."""
    kind = METADATA.tables["grades"].c.message.type
    there = oracle.dialect()
    assert kind.bind_processor(there)("") == " "
    assert kind.result_processor(there, None)(" ") == ""
    assert kind.bind_processor(mssql.dialect())("") == ""


def test_who_is_warned() -> None:
    """Nobody of a database whose triggers we know; else the password is not shown."""
    for known in ("postgresql+psycopg", "mysql+pymysql", "mariadb"):
        assert untested(sa.URL.create(known, "ann", "s3cret", "host")) == ""
    assert untested(Path("g.sqlite")) == ""
    warning = untested(sa.URL.create("oracle", "ann", "s3cret", "host"))
    assert "oracle" in warning
    assert "s3cret" not in warning
