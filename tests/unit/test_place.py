"""Where a gradebook is: read from a URL or the results folder, refused in one sentence, never with its password."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from records import a_grade

from grader.cli.common import gradebook_to_grade_into, open_gradebook
from grader.errors import UsageError
from grader.gradebook import Gradebook
from grader.place import ADDRESS, GRADEBOOK, PASSWORD, address, chosen, place_of, read_url, shown

URL = "postgresql+psycopg://ann:s3cret%21@db.example.edu:5433/hw8?sslmode=require"


@pytest.fixture(autouse=True)
def no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD, raising=False)


def url_of(text: str) -> sa.URL:
    place = read_url(text, "--gradebook")
    assert isinstance(place, sa.URL)
    return place


def test_a_folder_has_its_own_file_unless_it_says_otherwise(tmp_path: Path) -> None:
    """Without a word it is OUT/gradebook.sqlite, as it always was; else what stands in OUT/gradebook.url."""
    assert place_of(tmp_path) == chosen(tmp_path, "") == tmp_path / GRADEBOOK
    (tmp_path / ADDRESS).write_text(f"{address(url_of(URL))}\n")
    assert shown(place_of(tmp_path)) == "postgresql+psycopg://ann@db.example.edu:5433/hw8?sslmode=require"
    assert chosen(tmp_path, URL) == url_of(URL)  # the same one, named once more


def test_a_password_is_neither_shown_nor_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in the URL is used; one in the environment completes a URL with none."""
    place = url_of(URL)
    assert place.password == "s3cret!"
    assert "s3cret" not in shown(place) + address(place)
    monkeypatch.setenv(PASSWORD, "other")
    assert url_of(URL).password == "s3cret!"
    assert url_of(address(place)).password == "other"
    assert "other" not in shown(url_of("postgresql+psycopg:///hw8"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("s3cret", "holds no URL of a database"),
        ("postgresql://ann:s3cret@host:port/hw8", "holds no URL of a database"),
        ("postgresql+psycopg://ann@host/hw8?password=s3cret", "a secret after the question mark"),
        ("mysql+pymysql://ann@host/hw8?passwd=s3cret", "a secret after the question mark"),
        ("mssql+pyodbc:///?odbc_connect=SERVER%3Dhost%3BPWD%3Ds3cret", "a secret after the question mark"),
        ("duckdb:///hw8.db?motherduck_token=s3cret", "a secret after the question mark"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///s3cret?mode=ro", "names no file"),
    ],
)
def test_a_url_that_cannot_be_used(text: str, sentence: str) -> None:
    """The sentence says what to write, and repeats nothing that might be a password."""
    with pytest.raises(UsageError, match=r"^--gradebook ") as refused:
        read_url(text, "--gradebook")
    assert sentence in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("driver", "sentence"),
    [
        ("nosuch", r"knows no driver 'postgresql\+nosuch'"),
        ("pygresql", r"knows no driver|is not installed"),
        ("psycopg2", r"is not installed .*pip install 'rnn-grader\[postgresql\]'"),
    ],
)
def test_a_driver_that_there_is_not(driver: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that SQLAlchemy does not know, and one that is not installed: what to do, without the password."""
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(UsageError, match=sentence) as refused:
        Gradebook.open(url_of(f"postgresql+{driver}://ann:s3cret@host/hw8"))
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nosuch://ann:s3cret@host/hw8", r"knows no driver 'nosuch'"),
        (
            "mysql+pymysql://ann:s3cret@host/hw8",
            r"is not installed .*pip install 'rnn-grader\[mysql\]' has that of mysql\+pymysql://",
        ),
        ("oracle+oracledb://ann:s3cret@host/hw8", r"is not installed .*: install it"),
    ],
)
def test_any_kind_of_database_may_be_named(url: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SQLAlchemy has heard of takes only its driver; the sentence says which, without the password."""
    for driver in ("pymysql", "oracledb"):
        monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(UsageError, match=sentence) as refused:
        Gradebook.open(url_of(url))
    assert "s3cret" not in str(refused.value)


def test_a_folder_with_a_gradebook_takes_no_other(tmp_path: Path) -> None:
    """Grades would be in two places: the sentence names both."""
    Gradebook.open(tmp_path / GRADEBOOK).close()
    with pytest.raises(UsageError, match=r"gradebook.sqlite, and --gradebook names postgresql.*ann:\*\*\*@"):
        chosen(tmp_path, URL)
    assert chosen(tmp_path, f"sqlite:///{tmp_path / GRADEBOOK}") == tmp_path / GRADEBOOK


def test_a_file_elsewhere(tmp_path: Path) -> None:
    """SQLite's URL is the path of a file, wherever it is."""
    (tmp_path / "out").mkdir()
    place = chosen(tmp_path / "out", f"sqlite:///{tmp_path / 'elsewhere.sqlite'}")
    assert place == tmp_path / "elsewhere.sqlite"
    (tmp_path / "out" / ADDRESS).write_text(address(place))
    assert place_of(tmp_path / "out") == place


def test_an_address_that_was_spoilt(tmp_path: Path) -> None:
    """The sentence names the file that holds it."""
    (tmp_path / ADDRESS).write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"gradebook\.url cannot be read"):
        place_of(tmp_path)
    (tmp_path / ADDRESS).write_text("hello")
    with pytest.raises(UsageError, match=r"gradebook\.url holds no URL"):
        place_of(tmp_path)


def test_the_folder_remembers_where_its_grades_go(tmp_path: Path) -> None:
    """Named once, it is found by every later command; another folder's grades are not mixed into it."""
    place = tmp_path / "elsewhere.sqlite"
    for name in ("out", "other"):
        (tmp_path / name).mkdir()
    with gradebook_to_grade_into(tmp_path / "out", place) as book:
        book.add(book.begin_run(command="grade", profile="smoke", started_at="t"), a_grade())
    with gradebook_to_grade_into(tmp_path / "out", chosen(tmp_path / "out", "")) as book:
        assert book.latest() == [a_grade()]
    with open_gradebook(tmp_path / "out") as book:
        assert book.place == place
    with pytest.raises(UsageError, match="holds grades already, and not those of"):
        gradebook_to_grade_into(tmp_path / "other", place)
    assert list((tmp_path / "other").iterdir()) == []
