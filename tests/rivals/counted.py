"""Runs commands side by side and counts the CPU time of everything that comes of them, by a cgroup (v2) of their own.

Waiting for processes would not do: what the kernel ends together with its pid namespace, as it does a sandbox, is in
nobody's `wait4`. A cgroup counts what ever ran in it, whoever its parent was and however it ended.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from grader.errors import InfrastructureError, UsageError

PATIENCE_S = 60.0  # for what a command leaves behind, to end
_numbers = count()
_ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """CPU seconds of all that ran, and seconds from the start to the end of the last command."""

    cpu_s: float
    wall_s: float


def run(workers: Sequence[Sequence[Sequence[str]]], folder: Path, environment: Mapping[str, str]) -> Cost:
    """For each worker, its commands one after another.

    Raises:
        InfrastructureError: a command failed, or left something behind that does not end.
        UsageError: no cgroup can be made here.
    """
    with _cgroup() as group, ThreadPoolExecutor(len(workers)) as threads:
        started = time.monotonic()
        for done in [threads.submit(_work, commands, group, folder, environment) for commands in workers]:
            done.result()
        wall_s = time.monotonic() - started
        _wait_until_empty(group)
        return Cost(cpu_s=_field(group / "cpu.stat", "usage_usec") / 1e6, wall_s=wall_s)


@contextlib.contextmanager
def _cgroup() -> Iterator[Path]:
    group = Path(_own_cgroup(), f"rivals-{os.getpid()}-{next(_numbers)}")
    try:
        group.mkdir()
    except OSError as error:
        raise UsageError(
            f"{group} cannot be made ({error.strerror}), and CPU time is counted by it: run this as root, or with "
            "`systemd-run --user --scope -p Delegate=yes` in front."
        ) from None
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):
            (group / "cgroup.kill").write_text("1")
            _wait_until_empty(group)
        group.rmdir()


def _own_cgroup() -> Path:
    """Raises UsageError where there is no cgroup v2."""
    places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"]
    own = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    if not places or not own:
        raise UsageError("this machine has no cgroup v2, by which CPU time is counted: run this on one that has.")
    return Path(places[0], own[0].lstrip("/"))


def _work(commands: Sequence[Sequence[str]], group: Path, folder: Path, environment: Mapping[str, str]) -> None:
    """The output goes to a file: a pipe would be read until the last descendant has closed it."""
    for command in commands:
        with tempfile.TemporaryFile() as said:
            entered = ["/bin/sh", "-c", _ENTER, str(group), *command]
            code = subprocess.call(
                entered, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
            if code:
                said.seek(0)
                words = " ".join(said.read().decode(errors="replace").split())[-1500:]
                raise InfrastructureError(f"{' '.join(command)} in {folder} ended with {code}: {words}")


def _wait_until_empty(group: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while _field(group / "cgroup.events", "populated"):
        if time.monotonic() > until:
            raise InfrastructureError(f"something that was started in {group} has not ended for {PATIENCE_S:.0f} s.")
        time.sleep(0.02)


def _field(path: Path, name: str) -> int:
    fields = path.read_text().split()
    return int(fields[fields.index(name) + 1])
