"""Where the gradebook of a results folder is: its own file, or the address that the folder keeps in `gradebook.url`.

An address is a SQLAlchemy URL. A password is never kept and never shown: it comes from the environment variable
`GRADER_DB_PASSWORD`, or from where the database's own client looks for one (`~/.pgpass`, `PGPASSWORD`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from grader.errors import UsageError

GRADEBOOK = "gradebook.sqlite"
ADDRESS = "gradebook.url"
PASSWORD = "GRADER_DB_PASSWORD"
KNOWN = ("sqlite", "postgresql", "mysql", "mariadb")  # we know how each of these refuses a change
EXAMPLE = "postgresql+psycopg://USER@HOST/DATABASE"

Place = Path | sa.URL


def place_of(out: Path) -> Place:
    """Where the gradebook of a results folder is. Raises UsageError for an address that is none."""
    kept = out / ADDRESS
    if not kept.exists():
        return out / GRADEBOOK
    try:
        text = kept.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{kept} cannot be read: it should hold one line, the URL of the gradebook.") from None
    return read_url(text, str(kept))


def chosen(out: Path, text: str) -> Place:
    """The place that `--gradebook` names, or that of the folder if it names none.

    Raises:
        UsageError: it is no URL that can be used, or the folder has another gradebook already.
    """
    if not text:
        return place_of(out)
    wanted = read_url(text, "--gradebook")
    taken = (out / ADDRESS).exists() or (out / GRADEBOOK).exists()
    if taken and address(place_of(out)) != address(wanted):
        raise UsageError(
            f"the gradebook of {out} is {shown(place_of(out))}, and --gradebook names {shown(wanted)}: leave that out, "
            "or choose another results folder with -o."
        )
    return wanted


def read_url(text: str, where: str) -> Place:
    """A place from a URL, with the password of the environment if it has none; SQLite's is the path of its file.

    Raises:
        UsageError: it is no URL, or has a password where it would be shown.
    """
    try:
        url = sa.make_url(text)
        dialect = url.get_backend_name()
    except (ArgumentError, ValueError):  # its text is not repeated: there may be a password in it
        raise UsageError(f"{where} holds no URL of a database: write {EXAMPLE}, or sqlite:///FILE.") from None
    if dialect == "sqlite":
        if not url.database or url.database == ":memory:" or url.query:
            raise UsageError(f"{where} names no file for SQLite: write sqlite:///FILE, nothing after it.")
        return Path(url.database).absolute()
    if any(re.search(r"(?i)passw|\bpwd\b|token|secret", f"{name}={value}") for name, value in url.query.items()):
        raise UsageError(f"{where} has a secret after the question mark: give a password in {PASSWORD} instead.")
    given = os.environ.get(PASSWORD)
    return url.set(password=given) if given and url.password is None else url


def shown(place: Place) -> str:
    """For people to read; with stars for a password."""
    return place.render_as_string(hide_password=True) if isinstance(place, sa.URL) else str(place)


def untested(place: Place) -> str:
    """What whoever grades into a kind of database that we do not know should know; empty if we do."""
    if isinstance(place, Path) or place.get_backend_name() in KNOWN:
        return ""
    return (
        f"WARNING: {place.get_backend_name()} is a kind of database that is untested here, and that does not itself "
        f"refuse changes: only the grader keeps {shown(place)} append-only."
    )


def address(place: Place) -> str:
    """The URL without a password: what a results folder keeps."""
    if isinstance(place, Path):
        return f"sqlite:///{place.absolute()}"
    return sa.URL.create(
        place.drivername, place.username, None, place.host, place.port, place.database, place.query
    ).render_as_string(hide_password=False)
