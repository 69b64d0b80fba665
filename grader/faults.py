"""What a database reports, as one sentence: what happened, whose fault it is, and what to do next."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from grader.errors import GraderError, InfrastructureError, UsageError
from grader.place import KNOWN, PASSWORD, Place, shown

# What SQLite says, and the sentence that we make of it; `{path}` is the file.
USAGE = {
    "file is not a database": "{path} is not a gradebook (no SQLite database): name another file.",
    "unable to open database": "The gradebook {path} cannot be opened: its folder must exist, writable.",
    "readonly database": "The gradebook {path} cannot be written: make it and its folder writable.",
}
OURS = {
    "locked": "The gradebook {path} stayed locked by another process: let that end, then run again.",
    "malformed": "The gradebook {path} is damaged: `grader db check` with --repair keeps the file and saves what "
    "can be read of it; or put a backup in its place. Then run again.",
    "disk I/O error": "The disk of the gradebook {path} cannot be written: make room if it is full, or check it; then "
    "run the same command again.",
    "disk is full": "The disk of the gradebook {path} is full: make room, then run the same command again.",
}

# The same of a server: by the code of an error or, as a connection to PostgreSQL that fails has none, by its words.
SERVER_USAGE = {
    "password authentication failed": f"{{path}} refuses the password: give the right one in {PASSWORD}.",
    "no password supplied": f"{{path}} asks for a password: give it in {PASSWORD}.",
    "role .* (does not exist|not permitted)": "{path} does not let this user in ({said}): name another user.",
    "database .* does not exist": "There is no such database as {path}: make it first (`createdb`), or name another.",
    "invalid connection option": "{path} has an option that its driver does not know ({said}): correct it.",
    "1049": "There is no such database as {path}: make it first (`CREATE DATABASE`), or name another.",
    "1045|1698": f"{{path}} refuses this user or the password ({{said}}): give the right one in {PASSWORD}.",
    "1419": "{path} lets only administrators make triggers, without which a gradebook could be changed: have "
    "log_bin_trust_function_creators = 1 set there.",
    "1406": "{path} holds no name or key as long as that ({said}): shorten it.",
    "1273": "{path} is too old for a gradebook ({said}): it should be MySQL 8.0.17, MariaDB 10.3, or later.",
    "42501|1044|1142|1143|1290|1370": "The user of {path} may not do that ({said}): to grade, one must be able to make "
    "tables and to insert.",
}
SERVER_OURS = {
    "55P03|1205": "The gradebook {path} stayed locked by another process: let that end, then run again.",
    "53100|1021|1114": "The disk of the gradebook {path} is full: make room on its server, then run the same command "
    "again.",
}
# Where no lock keeps writers apart, both give their rows the same number, and the later one is refused.
OVERTAKEN = "Another process wrote to {path} at the same time: let that end, then run the same command again."
LOCKED = SERVER_OURS["55P03|1205"]


@contextmanager
def plain_faults(place: Place) -> Iterator[None]:
    """Say in one sentence what the database reports, and whose fault it is."""
    try:
        yield
    except GraderError:
        raise
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = getattr(error, "orig", None) or error
        said, usage, ours, check = str(cause), USAGE, OURS, "its disk"
        if isinstance(place, sa.URL):
            usage, ours, check = SERVER_USAGE, SERVER_OURS, "that its server runs and can be reached"
            said = one_line(str(cause.args[-1]) if cause.args else said, place)
            if isinstance(error, IntegrityError) and place.get_backend_name() not in KNOWN:
                raise InfrastructureError(OVERTAKEN.format(path=shown(place))) from error
        code = _code(cause)
        for sentences, kind in ((usage, UsageError), (ours, InfrastructureError)):
            for part, sentence in sentences.items():
                if part[0].isdigit() == bool(code) and re.search(f"^({part})$" if code else part, code or said):
                    raise kind(sentence.format(path=shown(place), said=said)) from error
        raise InfrastructureError(
            f"The gradebook {shown(place)} could not be used ({said}): check {check}, then run again."
        ) from error


def _code(cause: BaseException) -> str | None:
    """What psycopg and psycopg2 call a state, and the drivers of MySQL a number."""
    found = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    number = next(iter(cause.args), None)
    return str(number) if isinstance(number, int) else found


def one_line(said: str, url: sa.URL) -> str:
    """The first line of what a driver says, hints and context left out; never with the password in it."""
    first = said.strip().partition("\n")[0] or "no reason given"
    return first.replace(url.password, "***") if url.password else first
