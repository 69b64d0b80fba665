"""A PostgreSQL server of the tests' own: on a unix socket in a folder of its own, with a password."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

SECRET = "p@ss:w/rd"
START_S = 60.0
QUICK = ("-F", "-c", "listen_addresses=", "-c", "synchronous_commit=off")
QUICK += ("-c", "dynamic_shared_memory_type=mmap")  # in its folder, not in /dev/shm


class Server:
    """Starts a server that nobody else can reach; `database` and `schema` make an empty one on it."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.folder, self._programs, self._made = folder, programs, 0
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:  # as whom PostgreSQL refuses to run
            self._user = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}
            self.folder = folder = folder / "own"  # in the shared folder there is nothing of another user's
            folder.mkdir()
            shutil.chown(folder, "nobody")
        (folder / "secret").write_text(SECRET)
        (folder / "secret").chmod(0o644)
        options = ["-U", "grader", "--auth=scram-sha-256", "--pwfile", str(folder / "secret"), "-E", "UTF8", "-N"]
        subprocess.run(
            [programs / "initdb", "-D", folder / "data", *options, "--locale=C.UTF-8"],
            check=True,
            capture_output=True,
            cwd=folder,
            **self._user,
        )
        self.start()

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.folder / "data", "-k", self.folder, *QUICK],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                **self._user,
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                return self.execute("SELECT 1")
            except OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "log").read_text()) from None
                time.sleep(0.05)

    def stop(self) -> None:
        """At once, as a power cut would."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(START_S)

    def url(self, database: str = "postgres") -> sa.URL:
        place = {"host": str(self.folder)}
        return sa.URL.create("postgresql+psycopg", "grader", SECRET, database=database, query=place)

    def execute(self, statement: str, database: str = "postgres") -> None:
        """As whoever owns the server."""
        engine = sa.create_engine(self.url(database), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def database(self, options: str = "") -> sa.URL:
        """An empty database."""
        self._made += 1
        self.execute(f"CREATE DATABASE made{self._made} {options}")
        return self.url(f"made{self._made}")

    def schema(self) -> sa.URL:
        """An empty schema of the database that is there from the start: quicker made and taken away."""
        self._made += 1
        self.execute(f"CREATE SCHEMA made{self._made}")
        return self.url().update_query_dict({"options": f"-csearch_path=made{self._made}"})


def find_programs() -> Path | None:
    """The folder of initdb and postgres; Debian keeps it off PATH."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    return next((place for place in places if (place / "postgres").exists()), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """Skips, and says why, where there is no PostgreSQL or no driver for it."""
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed here (Debian: apt-get install postgresql)")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("no driver for PostgreSQL is installed here (pip install 'psycopg[binary]')")
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:  # short: the path of a socket has 107 bytes at most
        Path(folder).chmod(0o755)
        started = Server(programs, Path(folder))
        try:
            yield started
        finally:
            started.stop()
