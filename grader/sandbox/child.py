"""A question to another program, with a time limit that holds even where the program cannot be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

KILL_GRACE_S = 2.0
_stuck: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a program came to."""

    code: int | None  # its exit status; None: it did not end in time
    out: str
    err: str

    @property
    def last_words(self) -> str:
        """The last line that it wrote, for an error message of ours."""
        return ((self.err.strip() or self.out.strip()).splitlines() or ["it said nothing"])[-1].strip()[:300]


def ask(command: Sequence[str], *, wall_s: float, environment: Mapping[str, str] | None = None) -> Answer:
    """Run a program to its end, for `wall_s` seconds at most. Raises OSError if it cannot be started."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,  # a file: a pipe would be read until the last descendant has closed it
            stderr=err,
            env=None if environment is None else dict(environment),
            start_new_session=True,
            cwd="/",
        )
        code = None
        try:
            code = process.wait(wall_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if code is None:
                _kill(process)
        return Answer(code=code, out=_text(out), err=_text(err))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and its group; one that is stuck in a driver dies when that lets go, and is not waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(KILL_GRACE_S)
    except subprocess.TimeoutExpired:
        _stuck.append(process)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(1 << 20).decode(errors="replace")
