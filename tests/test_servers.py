"""A gradebook on a PostgreSQL or MariaDB server: what holds for a file holds there, commands find it by its folder."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import DatabaseError

from grader import cli
from grader.database import make_engine, writing
from grader.errors import GraderError, InfrastructureError, UsageError
from grader.gradebook import Gradebook
from grader.place import ADDRESS, PASSWORD, address
from grader.tables import METADATA
from grader.types import Grade, PerplexityScore, Rules, Status
from grader.upkeep import check_server, repair_server
from tests import mariadb as mariadb_server
from tests import postgres as postgres_server
from tests.postgres import SECRET
from tests.small import course_in
from tests.unit.records import HOSTILE, a_grade, a_mark

# PyMySQL leaves the socket open of a server that is not there.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
DUE = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


Postgres, MariaDB = postgres_server.Server, mariadb_server.Server
Server = Postgres | MariaDB


@pytest.fixture(params=["postgres", "mariadb"])
def server(request: pytest.FixtureRequest) -> Server:
    """What is true of one is true of the other, unless a test is of one of them only."""
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def url(server: Server) -> sa.URL:
    return server.schema()


@pytest.fixture
def in_postgres(postgres: Postgres) -> sa.URL:
    return postgres.schema()


@pytest.fixture
def in_mariadb(mariadb: MariaDB) -> sa.URL:
    return mariadb.database()


@pytest.fixture
def book(url: sa.URL) -> Iterator[Gradebook]:
    with Gradebook.open(url) as opened:
        yield opened


def begin(book: Gradebook) -> int:
    return book.begin_run(command="grade", profile="smoke", started_at="2026-03-01T09:00:00+00:00")


def change(url: sa.URL, *statements: str) -> None:
    """What another program might do, in one transaction."""
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def python(code: str, url: sa.URL, *args: str) -> subprocess.Popen[str]:
    """Start code in a process of its own that has `Gradebook`, `a_grade`, `sa`, `url` and `args`."""
    head = """
        import os, signal, sys
        import sqlalchemy as sa
        from grader.gradebook import Gradebook
        from tests.unit.records import a_grade
        url, args = sa.make_url(sys.argv[1]), sys.argv[2:]
    """
    argv = [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code), url.render_as_string(False), *args]
    return subprocess.Popen(argv, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True)


def ending(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=120)
    return process.returncode, said


# --- the schema ---


def test_migrations_make_the_tables_written_down(book: Gradebook, url: sa.URL) -> None:
    """From nothing to the newest schema: tables, columns, indexes and constraints are those of the code."""
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []
        assert context.get_current_revision() is not None


def killed_at(url: sa.URL, statement: str) -> None:
    """Somebody makes a gradebook, and is killed when it comes to a statement that begins like this."""
    code = """
        @sa.event.listens_for(sa.Engine, "before_cursor_execute")
        def stop(connection, cursor, statement, *rest):
            if statement.strip().startswith(args[0]):
                os.kill(os.getpid(), signal.SIGKILL)
        Gradebook.open(url)
    """
    code, said = ending(python(code, url, statement))
    assert code == -signal.SIGKILL, said


def test_a_kill_in_the_middle_of_a_migration_leaves_nothing(in_postgres: sa.URL) -> None:
    """Schema and version record come together there, too; the next one finds an empty database."""
    killed_at(in_postgres, "UPDATE alembic_version SET version_num='0005'")
    with pytest.raises(UsageError, match="There is no gradebook in"):
        Gradebook.open(in_postgres, create=False)
    with Gradebook.open(in_postgres) as book:
        assert book.latest() == []


MAKING = ("CREATE TABLE runs", "CREATE INDEX grades_by_key", "CREATE VIEW judged", "INSERT INTO rules")
MAKING += ("CREATE TRIGGER grades_stand", "INSERT INTO alembic_version")


@pytest.mark.parametrize("statement", MAKING)
def test_a_gradebook_that_was_half_made_is_made_anew(in_mariadb: sa.URL, tmp_path: Path, statement: str) -> None:
    """MariaDB keeps what there was before a kill: it is no gradebook yet, and the next one makes a whole one."""
    killed_at(in_mariadb, statement)
    with pytest.raises(UsageError, match="There is no gradebook in"):
        Gradebook.open(in_mariadb, create=False)
    with Gradebook.open(in_mariadb) as book:
        book.add(begin(book), a_grade(score=7.9, max_score=32.0))
        assert found(in_mariadb, tmp_path) == []


def test_a_gradebook_that_lost_its_revision_is_not_made_anew(in_mariadb: sa.URL) -> None:
    """What holds a row is never taken for half made."""
    with Gradebook.open(in_mariadb) as book:
        begin(book)
    change(in_mariadb, "DELETE FROM alembic_version")
    with pytest.raises(UsageError, match="database of another program"):
        Gradebook.open(in_mariadb)
    change(in_mariadb, "INSERT INTO alembic_version VALUES ('0008')")
    Gradebook.open(in_mariadb).close()


def test_another_programs_database_and_a_newer_gradebook_are_refused(url: sa.URL) -> None:
    """Neither is touched."""
    change(url, "CREATE TABLE bookmarks (url varchar(9))")
    with pytest.raises(UsageError, match="database of another program"):
        Gradebook.open(url)
    change(url, "DROP TABLE bookmarks")
    Gradebook.open(url).close()
    change(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UsageError, match=r"newer grader \(schema 9999.*upgrade the grader"):
        Gradebook.open(url)


def test_gradebooks_on_one_server_are_apart(book: Gradebook, server: Server) -> None:
    """A search path in the URL, or another database, keeps two homeworks apart."""
    book.add(begin(book), a_grade())
    with Gradebook.open(server.schema()) as other:
        assert (len(book.latest()), other.latest()) == (1, [])


def test_a_database_that_cannot_hold_every_name_is_refused(postgres: Postgres) -> None:
    """It is said when it is opened, not in the middle of a batch."""
    with pytest.raises(UsageError, match="holds texts as LATIN1"):
        Gradebook.open(postgres.database("ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"))


def test_a_connection_that_cannot_say_every_name_is_refused(in_mariadb: sa.URL) -> None:
    """The database may have whatever character set it has, the tables have their own; the connection may not."""
    with pytest.raises(UsageError, match="speaks latin1, which is not enough for every name"):
        Gradebook.open(in_mariadb.update_query_dict({"charset": "latin1"}))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # PyMySQL leaves its socket open
@pytest.mark.parametrize(
    "option", [{"foo": "bar"}, {"charset": "klingon"}, {"connect_timeout": "abc"}, {"ssl_ca": "/nowhere"}]
)
def test_an_option_that_the_driver_refuses_is_said(in_mariadb: sa.URL, option: dict[str, str]) -> None:
    """In one sentence without the password, however the driver refuses it."""
    with pytest.raises(UsageError, match="correct its options") as refused:
        Gradebook.open(in_mariadb.update_query_dict(option))
    assert SECRET not in str(refused.value)


def test_an_address_without_a_database_is_refused(in_mariadb: sa.URL) -> None:
    """MySQL would let one in, and make no table."""
    with pytest.raises(UsageError, match="names no database"):
        Gradebook.open(in_mariadb.set(database=""))


def test_a_writer_sees_what_the_one_before_it_wrote(in_postgres: sa.URL) -> None:
    """Also where the server is set to show each transaction what there was when it began to wait."""
    options = f"{in_postgres.query['options']} -cdefault_transaction_isolation=repeatable\\ read"
    with writing(make_engine(in_postgres.update_query_dict({"options": options}), 5.0), 5.0) as connection:
        assert connection.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"


def test_names_are_told_apart_as_in_a_file(book: Gradebook) -> None:
    """By case, accents and a blank at the end; in the order of their characters."""
    names = ["Ada", "ada", "ada ", "adá", "日本😀"]
    book.add(begin(book), *(a_grade(name) for name in reversed(names)))
    assert [one.student_id for one in book.counting(Rules(most=3))] == names
    assert [len(book.history(name)) for name in names] == [1] * 5
    assert book.find("ADA", "k1") is None


def test_a_name_that_is_too_long_is_said(in_mariadb: sa.URL) -> None:
    """500 characters are kept, of which a file's name has not as many; one more is refused, and none cut off."""
    with Gradebook.open(in_mariadb) as book:
        book.add(begin(book), a_grade("é" * 500))
        assert book.latest() == [a_grade("é" * 500)]
        with pytest.raises(UsageError, match=r"holds no name or key as long as that \(Data too long"):
            book.add(begin(book), a_grade("é" * 501))
        book.add(begin(book), a_grade("long", message="m" * 100_000))
        assert len(book.find("long", "k1").message) == 100_000  # type: ignore[union-attr]


# --- records ---


def test_round_trip(book: Gradebook) -> None:
    """What comes back equals what went in, to the last bit of every float, and None stays None."""
    odd = PerplexityScore(
        **{"model": "m", "outcome": a_grade().checks[0].outcome, "points": 5e-324, "max_points": 1e308},
        **{"nats_per_char": 1 / 3, "ci_low": math.nan, "block_nats": (1.0, math.inf), "reported": -0.1},
    )
    grades = [a_grade(seed=2**62), a_grade(key="k2", perplexities=(odd,), key_parts={"engine": "ab"}, score=None)]
    run = begin(book)
    for grade in grades:
        book.add(run, grade)
    read = book.history("ada")
    assert read[0] == grades[0]
    assert read[1].perplexities[0].ci_low is None
    assert read[1].perplexities[0].block_nats == (1.0, math.inf)
    assert (read[1].perplexities[0].points, read[1].perplexities[0].nats_per_char) == (5e-324, 1 / 3)
    assert (read[1].score, read[1].key_parts) == (None, {"engine": "ab"})
    assert book.find("ada", "k1") == grades[0]
    assert book.find("ada", "k3") is None
    assert book.of_run(run) == read
    assert book.known() == {("ada", "k1"), ("ada", "k2")}


def test_many_grades_at_once(book: Gradebook) -> None:
    """A class of 80 is read in one go, in order of student id, each with its own parts."""
    grades = [a_grade(f"s{number:03d}", message=str(number)) for number in range(80)]
    book.add(begin(book), *grades)
    assert book.latest() == grades


@pytest.mark.parametrize("text", [*HOSTILE, "b\udcff"])
def test_texts_are_data(book: Gradebook, url: sa.URL, text: str) -> None:
    """SQL, HTML and formulas are just text; what UTF-8 or PostgreSQL cannot hold stays readable and is found."""
    kept = text.replace("\udcff", "\\udcff")
    if url.get_backend_name() == "postgresql":
        kept = kept.replace("\0", "\\x00")
    book.add(begin(book), a_grade(text, message=text))
    book.mark(a_mark(student_id=text, comment=text))
    assert book.find(text, "k1") == a_grade(kept, message=kept)
    assert book.marks() == {(kept, "essay"): a_mark(student_id=kept, comment=kept)}


def test_the_last_mark_for_an_item_counts(book: Gradebook) -> None:
    """A second mark for the same student and item replaces the first."""
    for mark in (a_mark(points=1.0), a_mark("poem", 2.0), a_mark(points=0.1 + 0.2)):
        book.mark(mark)
    assert {mark.points for mark in book.marks().values()} == {2.0, 0.1 + 0.2}


def test_needs_regrade_shadows_nothing(book: Gradebook) -> None:
    """A fault of ours never hides an earlier real grade; whoever has nothing else is unknown."""
    lost = {"status": Status.NEEDS_REGRADE, "score": None, "key": "k2"}
    book.add(begin(book), a_grade("ada", score=2.0), a_grade("ada", **lost), a_grade("bob", **lost))
    assert [(grade.student_id, grade.score) for grade in book.latest()] == [("ada", 2.0), ("bob", None)]


def test_a_grade_that_was_withdrawn_counts_no_longer(book: Gradebook) -> None:
    """Whatever the rules, until there is another; another student's is as it was."""
    lost = {"status": Status.NEEDS_REGRADE, "score": None}
    for rules in (Rules(), Rules(counts="best")):
        book.add(begin(book), a_grade("ada", score=2.0), a_grade("bob", score=3.0), a_grade("ada", **lost))
        assert [(grade.student_id, grade.score) for grade in book.counting(rules)] == [("ada", None), ("bob", 3.0)]
        book.add(begin(book), a_grade("ada", score=1.0))
        assert [(grade.student_id, grade.score) for grade in book.counting(rules)] == [("ada", 1.0), ("bob", 3.0)]


def test_only_grows(book: Gradebook, url: sa.URL) -> None:
    """Not even who owns the tables can change or delete a row without dropping a trigger first; nor truncate it.

    MariaDB asks no trigger before it truncates: there it takes the right to drop tables, which need not be given.
    """
    truncate = url.get_backend_name() == "postgresql"
    book.add(begin(book), a_grade())
    book.mark(a_mark())
    for table in METADATA.tables:
        column = next(iter(METADATA.tables[table].columns)).name
        truncated = [f"TRUNCATE {table} CASCADE"] if truncate else []
        for statement in (f"DELETE FROM {table}", *truncated, f"UPDATE {table} SET {column} = 1"):
            with pytest.raises(DatabaseError, match="only grows"):
                change(url, statement)
    assert book.latest() == [a_grade()]


def test_a_grade_cannot_be_given_to_somebody_else(book: Gradebook, url: sa.URL) -> None:
    """The student that a grade names is the one who handed in what was graded."""
    book.add(begin(book), a_grade())
    known = [c.name for c in METADATA.tables["grades"].c if c.name not in ("id", "student_id")]
    others = ", ".join(f"grades.{name}" for name in known)
    columns = ", ".join(map(sa.create_engine(url).dialect.identifier_preparer.quote, known))
    with pytest.raises(DatabaseError, match="the student who handed in"):
        change(url, f"INSERT INTO grades ({columns}, student_id) SELECT {others}, 'eve' FROM grades")


def test_what_counts_is_the_same_as_in_a_file(book: Gradebook, url: sa.URL, tmp_path: Path) -> None:
    """Random histories, times in other zones and no times at all, unknown scores: both views say the same."""
    dice, grades = random.Random(5), []
    for number in range(100):
        when = DUE + timedelta(seconds=dice.randint(-200_000, 400_000))
        times = [when.isoformat(), when.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat()]
        times += [when.replace(tzinfo=None).isoformat(), when.isoformat().replace("+00:00", "Z"), "", "2026-02-30T99"]
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
        rules = Rules(counts="best", due=DUE.isoformat(), penalty_per_day=0.25)
        for one in (file, book):
            one.record_rules(rules)
        for last in ([], [a_grade("s00", score=9.0, key="z", submission_sha256="z"), a_grade("new", score=None)]):
            for one in (file, book):
                one.add(begin(one), *last)
            assert book.counting(rules) == file.counting(rules)
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        zone = {"postgresql": "SET timezone = 'Asia/Tokyo'", "mysql": "SET time_zone = '+09:00'"}
        connection.exec_driver_sql(zone[url.get_backend_name()])  # whoever reads the view, and from where
        held = connection.exec_driver_sql("SELECT grade_id, late_days FROM counting ORDER BY student_id")
        assert [row[1] for row in held] == [grade.late_days for grade in book.counting(rules)]


# --- several at once, and faults ---


def test_two_writers(url: sa.URL) -> None:
    """Two processes that make the same gradebook and write at the same time lose nothing to each other."""
    code = """
        with Gradebook.open(url) as book:
            run = book.begin_run(command=args[0], profile="p", started_at="t")
            for number in range(10):
                book.add(run, a_grade(f"{args[0]}{number:02d}"), a_grade("both", key=f"{args[0]}{number:02d}"))
    """
    for writer in [python(code, url, name) for name in "ab"]:
        assert ending(writer) == (0, "")
    with Gradebook.open(url) as book:
        assert len(book.latest()) == 21
        assert len(book.history("both")) == 20


def test_a_kill_in_the_middle_of_a_grade_leaves_no_half(url: sa.URL) -> None:
    """Killed between the checks and the flags of the third grade, the database holds two whole grades."""
    code = """
        seen = 0
        @sa.event.listens_for(sa.Engine, "before_cursor_execute")
        def stop(connection, cursor, statement, *rest):
            global seen
            seen += statement.startswith("INSERT INTO flags")
            if seen == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        with Gradebook.open(url) as book:
            run = book.begin_run(command="c", profile="p", started_at="t")
            for number in range(5):
                book.add(run, a_grade(f"s{number}"))
    """
    code, said = ending(python(code, url))
    assert code == -signal.SIGKILL, said
    with Gradebook.open(url) as book:
        assert book.latest() == [a_grade("s0"), a_grade("s1")]


def test_locked_for_too_long(url: sa.URL) -> None:
    """A writer that never lets go gives one sentence after the wait, and readers go on."""
    with Gradebook.open(url, wait_s=0.2) as book:
        run = begin(book)
        with writing(sa.create_engine(url, poolclass=sa.NullPool), 1.0):
            with pytest.raises(InfrastructureError, match="stayed locked"):
                book.add(run, a_grade())
            assert book.latest() == []
        book.add(run, a_grade())
        assert book.latest() == [a_grade()]


def test_what_was_added_survives_a_power_cut(in_postgres: sa.URL) -> None:
    """A server that answers before its log is on disk is told to wait for it, for what we write."""
    with writing(sa.create_engine(in_postgres, poolclass=sa.NullPool), 1.0) as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


def said_of(place: sa.URL, kind: type[GraderError], create: bool = True) -> str:
    with pytest.raises(kind) as refused:
        Gradebook.open(place, create=create, wait_s=2)
    return str(refused.value)


def test_who_is_not_let_in_by_postgresql(postgres: Postgres) -> None:
    """A wrong password, none, no such user or database, an unknown option: the caller's, and no password is shown."""
    url = postgres.database()
    sentences = [
        (url.set(password="s3cret!"), "refuses the password: give the right one in GRADER_DB_PASSWORD"),
        (sa.make_url(address(url)), "asks for a password: give it in GRADER_DB_PASSWORD"),
        (url.set(database="nowhere"), "There is no such database"),
        (
            url.update_query_dict({"colour": "red"}),
            'an option that its driver does not know (invalid connection option "',
        ),
    ]
    for place, sentence in sentences:
        said = said_of(place, UsageError)
        assert sentence in said
        assert "\n" not in said
        assert SECRET not in said
        assert "s3cret!" not in said
    postgres.execute("CREATE ROLE reader LOGIN PASSWORD 'x'")
    assert "one must be able to make tables" in said_of(url.set(username="reader", password="x"), UsageError)


def test_who_is_not_let_in_by_mariadb(mariadb: MariaDB) -> None:
    """A wrong password, none, no such user, database or right: the caller's fault, and no password is shown."""
    url = mariadb.database()
    refused = "refuses this user or the password (Access denied for user"
    sentences = [
        (url.set(password="s3cret!"), refused),
        (sa.make_url(address(url)), refused),
        (url.set(username="nobody-here"), refused),
        (url.set(database="nowhere"), "There is no such database"),
    ]
    mariadb.execute("CREATE USER reader IDENTIFIED BY 'x'")
    sentences.append((url.set(username="reader", password="x"), "one must be able to make tables"))
    mariadb.execute(f"GRANT SELECT ON {url.database}.* TO reader")
    sentences.append((url.set(username="reader", password="x"), "one must be able to make tables"))
    for place, sentence in sentences:
        said = said_of(place, UsageError)
        assert sentence in said
        assert "\n" not in said
        assert not [word for word in (SECRET, "s3cret!", "1045") if word in said]


def test_a_ta_may_mark_in_mariadb(mariadb: MariaDB) -> None:
    """Who may only read sees what counts and is refused a mark in one sentence; who may insert marks, enters one."""
    url = mariadb.database()
    with Gradebook.open(url) as book:
        book.add(begin(book), a_grade())
        book.record_rules(Rules(most=3))
    mariadb.execute("CREATE USER ta IDENTIFIED BY 'x'")
    mariadb.execute(f"GRANT SELECT ON {url.database}.* TO ta")
    with Gradebook.open(url.set(username="ta", password="x"), create=False) as theirs:
        assert theirs.counting(Rules(most=4)) == [a_grade()]
        with pytest.raises(UsageError, match="INSERT command denied"):
            theirs.mark(a_mark())
        mariadb.execute(f"GRANT INSERT ON {url.database}.marks TO ta")
        theirs.mark(a_mark())
        assert len(theirs.marks()) == 1


def test_a_reader_may_look_at_the_grades(postgres: Postgres) -> None:
    """Who may only read sees what counts and is refused a mark in one sentence; who may insert marks, enters one."""
    url = postgres.database()
    with Gradebook.open(url) as book:
        book.add(begin(book), a_grade())
        book.counting(Rules())
    postgres.execute("CREATE ROLE ta LOGIN PASSWORD 'x'")
    change(url, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO ta")
    with Gradebook.open(url.set(username="ta", password="x"), create=False) as theirs:
        assert theirs.counting(Rules()) == [a_grade()]
        with pytest.raises(UsageError, match="permission denied"):
            theirs.mark(a_mark())
        change(url, "GRANT INSERT ON marks TO ta", "GRANT USAGE ON SEQUENCE marks_id_seq TO ta")
        theirs.mark(a_mark())
        assert len(theirs.marks()) == 1


def test_a_server_that_is_gone(server: Server, url: sa.URL) -> None:
    """A fault of ours in one sentence; when it is back, the same open gradebook goes on with all that was added."""
    with Gradebook.open(url) as book:
        run = begin(book)
        book.add(run, a_grade())
        server.stop()
        try:
            with pytest.raises(InfrastructureError, match="check that its server runs") as refused:
                book.add(run, a_grade("bob"))
            assert "\n" not in str(refused.value)
            assert "check that its server runs" in said_of(url, InfrastructureError)
        finally:
            server.start()
        book.add(run, a_grade("bob"))
        assert book.latest() == [a_grade(), a_grade("bob")]


# --- grader db check ---


def found(url: sa.URL, out: Path) -> list[str]:
    return [problem.what for problem in check_server(url, out) if "missing: " not in problem.what]


WHOLE = {"score": 7.9, "max_score": 32.0}


def test_what_is_wrong_is_named_in_mariadb(in_mariadb: sa.URL, tmp_path: Path) -> None:
    """Rows that contradict each other, and what was dropped or weakened; a sound one has no problem."""
    with Gradebook.open(in_mariadb) as book:
        book.add(begin(book), a_grade(**WHOLE), a_grade("bob", **WHOLE))
    assert found(in_mariadb, tmp_path) == []
    change(in_mariadb, "DROP TRIGGER marks_no_delete", "DROP INDEX grades_by_key ON grades", "DROP VIEW best")
    change(in_mariadb, "DROP TRIGGER grades_no_update", "UPDATE grades SET score = 30 WHERE id = 1")
    weak = "CREATE TRIGGER grades_no_update BEFORE UPDATE ON grades FOR EACH ROW SET @nothing = 1"
    change(in_mariadb, weak, "DROP TRIGGER submissions_no_delete", "ALTER TABLE flags MODIFY kind LONGTEXT")
    change(in_mariadb, "SET foreign_key_checks = 0", "DELETE FROM submissions WHERE student_id = 'bob'")
    assert sorted(found(in_mariadb, tmp_path)) == [
        "Row 2 of grades refers to a row of submissions that is not there.",
        "The column kind of flags is not as the grader makes it.",
        "The index grades_by_key is missing.",
        "The parts of grade 1 (ada) do not add up to its score.",
        "The trigger grades_no_update is not as the grader makes it, or is switched off.",
        "The trigger marks_no_delete is missing.",
        "The trigger submissions_no_delete is missing.",
        "The view best is missing.",
    ]


def test_what_counts_otherwise_than_by_the_rules_is_named(book: Gradebook, url: sa.URL, tmp_path: Path) -> None:
    """A grade that came in while no trigger kept what counts."""
    book.add(begin(book), a_grade(**WHOLE))
    on = " ON grades" if url.get_backend_name() == "postgresql" else ""
    change(url, f"DROP TRIGGER grades_stand{on}")
    book.add(begin(book), a_grade(**WHOLE, submission_sha256="cd" * 32, key="k2"))
    assert sorted(found(url, tmp_path)) == [
        "The trigger grades_stand is missing.",
        "What counts of ada is not what the rules say.",
    ]
    assert repair_server(url) == ["What counts was reckoned again, for 1 students otherwise than before."]
    assert found(url, tmp_path) == ["The trigger grades_stand is missing."]
    assert repair_server(url) == []


def test_what_is_wrong_is_named_in_postgresql(in_postgres: sa.URL, tmp_path: Path) -> None:
    """Rows that contradict each other, and what was dropped, weakened or switched off; a sound one has no problem."""
    url = in_postgres
    with Gradebook.open(url) as book:
        book.add(begin(book), a_grade(**WHOLE), a_grade("bob", **WHOLE))
    assert found(url, tmp_path) == []
    change(url, "DROP TRIGGER marks_no_delete ON marks", "DROP INDEX grades_by_key", "DROP VIEW best")
    change(url, "ALTER TABLE grades DISABLE TRIGGER grades_no_delete", "ALTER TABLE flags ALTER kind DROP NOT NULL")
    weak = "CREATE OR REPLACE FUNCTION of_their_student() RETURNS trigger LANGUAGE plpgsql AS"
    change(url, f"{weak} $$ BEGIN RETURN NEW; END $$")
    change(url, "SET session_replication_role = replica", "UPDATE grades SET score = 30 WHERE id = 1")
    change(url, "SET session_replication_role = replica", "DELETE FROM submissions WHERE student_id = 'bob'")
    assert sorted(found(url, tmp_path)) == [
        "Row 2 of grades refers to a row of submissions that is not there.",
        "The column kind of flags is not as the grader makes it.",
        "The function of_their_student is not as the grader makes it, or is switched off.",
        "The index grades_by_key is missing.",
        "The parts of grade 1 (ada) do not add up to its score.",
        "The trigger grades_no_delete is not as the grader makes it, or is switched off.",
        "The trigger marks_no_delete is missing.",
        "The view best is missing.",
    ]


# --- by the command line ---


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A class of two."""
    return course_in(tmp_path, {"right": "def f(x): return 2 * x", "wrong": "def f(x): return x"})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The command line in this process, with the password in its environment: its exit code and all that it says."""
    monkeypatch.setenv(PASSWORD, SECRET)

    def call(*arguments: str | os.PathLike[str]) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["grader", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err
        return int(ended.value.code or 0), said.out + said.err

    return call


def test_a_class_is_graded_into_a_server(course: Path, url: sa.URL, run: Callable[..., tuple[int, str]]) -> None:
    """The URL is given once, without a password; every later command of the folder finds the gradebook there."""
    out, text = course / "out", ("--corpus-file", course / "text.txt")
    hw = ("--assignment", course / "assignment")
    grade = ("grade", course / "submitted", "-o", out, *hw, "--profile", "smoke", "--jobs", "1", *text)
    code, said = run(*grade, "--gradebook", address(url))
    assert code == 0, said
    assert f"/{url.database}?" in said
    assert "grader:***@" in said
    assert (out / ADDRESS).read_text() == f"{address(url)}\n"
    assert not (out / "gradebook.sqlite").exists()
    with Gradebook.open(url) as book:
        assert [(one.student_id, one.score) for one in book.latest()] == [("right", 2.0), ("wrong", 0.0)]

    before = (out / "grades.csv").read_bytes()
    code, said = run(*grade)
    assert (code, said.count("already graded")) == (0, 2)
    assert (out / "grades.csv").read_bytes() == before
    assert run("status", out)[0] == 0
    code, said = run("leaderboard", out, *hw)
    assert (code, said.count("graded")) == (0, 2), said
    code, said = run("why", "right", "-o", out, *hw, *text)
    assert (code, "Nothing changed" in said) == (0, True), said
    code, said = run("db", "check", out)
    assert code == 0, said
    code, said = run("db", "check", out, "--repair")
    assert (code, "is well" in said) == (0, True)
    code, said = run("db", "backup", out, course / "copy.sqlite")
    assert (code, "`pg_dump`" in said, "`mariadb-dump`" in said) == (2, True, True)

    assert [path for path in out.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()] == []


def test_a_mark_by_hand(course: Path, url: sa.URL, run: Callable[..., tuple[int, str]]) -> None:
    """A person's mark goes where the grades are."""
    text = (course / "assignment" / "assignment.yaml").read_text()
    (course / "assignment" / "assignment.yaml").write_text(
        text + "manual:\n- {id: essay, title: The essay, points: 6}\n"
    )
    (course / "out").mkdir()
    (course / "out" / ADDRESS).write_text(address(url))
    with Gradebook.open(url) as book:
        book.add(begin(book), a_grade())
        options = ("-o", course / "out", "--assignment", course / "assignment")
        assert run("mark", "ada", "essay", "4.5", *options)[0] == 0
        assert [mark.points for mark in book.marks().values()] == [4.5]
    code, said = run("mark", "eve", "essay", "4.5", *options)
    assert (code, f"there is no student 'eve' in {url.drivername}://grader:***@" in said) == (2, True), said


def grade_into(course: Path, out: str, *more: str) -> tuple[str | os.PathLike[str], ...]:
    hw = ("--assignment", course / "assignment", "--corpus-file", course / "text.txt", "--profile", "smoke")
    return ("grade", course / "submitted" / "right", "-o", course / out, *hw, "--jobs", "1", *more)


def test_one_database_for_one_results_folder(
    course: Path,
    server: Server,
    url: sa.URL,
    run: Callable[..., tuple[int, str]],
) -> None:
    """A second folder is not graded into a database that holds grades, nor a folder into a second database."""
    with Gradebook.open(url) as book:
        book.add(begin(book), a_grade())
    code, said = run(*grade_into(course, "out", "--gradebook", address(url)))
    assert (code, "holds grades already" in said) == (2, True)
    assert not (course / "out" / ADDRESS).exists()
    (course / "out" / ADDRESS).write_text(address(url))
    code, said = run(*grade_into(course, "out", "--gradebook", address(server.database())))
    assert (code, "leave that out, or choose another results folder" in said) == (2, True)


def test_exit_codes(
    course: Path, server: Server, url: sa.URL, run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 for a wrong password or database or one without a gradebook, 3 for a server that is not there."""
    (course / "out").mkdir()

    def leaderboard(place: sa.URL) -> tuple[int, str]:
        (course / "out" / ADDRESS).write_text(address(place))
        return run("leaderboard", course / "out", "--assignment", course / "assignment")

    for place, code, sentence in (
        (url.update_query_dict({next(iter(url.query)): "/nowhere"}), 3, "check that its server runs"),
        (url.set(database="nowhere"), 2, "There is no such database"),
        (url, 2, "There is no gradebook in"),
    ):
        ended, said = leaderboard(place)
        assert (ended, sentence in said) == (code, True), said
    (course / "out" / ADDRESS).unlink()
    monkeypatch.setenv(PASSWORD, "wrong")
    code, said = run(*grade_into(course, "out", "--gradebook", address(url)))
    assert (code, "refuses" in said) == (2, True)
    assert not (course / "out" / ADDRESS).exists()


def test_grades_of_a_whole_class_are_shown(url: sa.URL, course: Path, run: Callable[..., tuple[int, str]]) -> None:
    """The leaderboard of a class of 40 that was graded earlier."""
    (course / "out").mkdir()
    (course / "out" / ADDRESS).write_text(address(url))
    grades: list[Grade] = [a_grade(f"s{number:02d}") for number in range(40)]
    with Gradebook.open(url) as book:
        book.add(begin(book), *grades)
    code, said = run("leaderboard", course / "out", "--names", "--assignment", course / "assignment")
    assert (code, said.count("1.600–1.800")) == (0, 40), said
