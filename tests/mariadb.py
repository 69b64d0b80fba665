"""A MariaDB server of the tests' own: on a unix socket in a folder of its own, with a password."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

SECRET = "p@ss:w/rd"
START_S = 60.0
QUICK = ("--no-defaults", "--skip-networking", "--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=32M")
QUICK += ("--innodb-use-native-aio=0",)  # the machine has only so many of these requests for all its servers
QUICK += ("--character-set-server=latin1",)  # what a gradebook needs it says itself


class Server:
    """Starts a server that nobody else can reach; `database` makes an empty one on it."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.folder, self._program, self._made = folder, program, 0
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:  # as whom MariaDB does not like to run
            self._user = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}
            self.folder = folder = folder / "own"  # in the shared folder there is nothing of another user's
            folder.mkdir()
            shutil.chown(folder, "nobody")
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={folder / 'data'}", f"--tmpdir={folder}"]
        done = subprocess.run(
            [*install, "--skip-test-db", "--innodb-use-native-aio=0"], capture_output=True, cwd=folder, **self._user
        )
        if done.returncode:
            raise RuntimeError((done.stdout + done.stderr).decode(errors="replace"))
        made = f"CREATE USER grader IDENTIFIED BY '{SECRET}'; GRANT ALL ON *.* TO grader WITH GRANT OPTION;"
        (folder / "first.sql").write_text(made.replace("; ", ";\n"))
        (folder / "first.sql").chmod(0o644)
        self.start(f"--init-file={folder / 'first.sql'}")

    def start(self, *options: str) -> None:
        places = (f"--datadir={self.folder / 'data'}", f"--socket={self.folder / 's'}", f"--pid-file={self.folder}/pid")
        places += (f"--tmpdir={self.folder}",)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._program, *QUICK, *places, *options], cwd=self.folder, stdout=log, stderr=log, **self._user
            )
        deadline = time.monotonic() + START_S
        while True:
            if (self.folder / "s").exists():
                with suppress(OperationalError):
                    return self.execute("SELECT 1")
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.05)

    def stop(self) -> None:
        """At once, as a power cut would."""
        self.process.kill()
        self.process.wait(START_S)
        (self.folder / "s").unlink()

    def url(self, database: str = "") -> sa.URL:
        place = {"unix_socket": str(self.folder / "s")}
        return sa.URL.create("mysql+pymysql", "grader", SECRET, database=database or None, query=place)

    def execute(self, statement: str, database: str = "") -> None:
        """As whoever owns the server."""
        engine = sa.create_engine(self.url(database), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def database(self, options: str = "") -> sa.URL:
        """An empty database."""
        self._made += 1
        self.execute(f"CREATE DATABASE made{self._made} {options}")
        return self.url(f"made{self._made}")

    schema = database


def find_program() -> Path | None:
    """The server; Debian keeps it off the PATH of most users."""
    found = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    return Path(found) if found and shutil.which("mariadb-install-db") else None


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Server]:
    """Skips, and says why, where there is no MariaDB or no driver for it."""
    program = find_program()
    if program is None:
        pytest.skip("no MariaDB server is installed here (Debian: apt-get install mariadb-server)")
    if importlib.util.find_spec("pymysql") is None:
        pytest.skip("no driver for MariaDB is installed here (pip install pymysql)")
    with tempfile.TemporaryDirectory(prefix="my-") as folder:  # short: the path of a socket has 107 bytes at most
        Path(folder).chmod(0o755)
        started = Server(program, Path(folder))
        try:
            yield started
        finally:
            started.stop()
