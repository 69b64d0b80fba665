"""Starts one sealed process tree, and ends it with all that belongs to it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from grader.errors import SandboxUnavailable
from grader.sandbox import tiers
from grader.sandbox.lease import Lease
from grader.sandbox.limits import anonymous_file, seccomp_filter
from grader.sandbox.template import LAUNCHER, Copy, warm_copy

KILL_GRACE_S = 5.0
SHARED_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run/lock")  # where every user may write


class Sealed:
    """A started process tree, and the two sockets that lead into it."""

    def __init__(
        self,
        tier: str,
        job: bytes,
        *,
        python: str = sys.executable,
        private: Sequence[str] = (),
        lease: Lease | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Run `job` in a sandbox; what lies in the folders `private` cannot be read inside.

        With the job's `environment` it may be a copy of a warm template; without, it is started from nothing.

        Raises SandboxUnavailable if the command cannot be started, or if this tier cannot close a private folder.
        """
        tiers.require_closed(tier, private)
        self.control, control_inside = socket.socketpair()
        self.bridge, bridge_inside = socket.socketpair()
        self.stderr = anonymous_file(b"")
        job_fd = anonymous_file(job)
        inside = (control_inside.fileno(), bridge_inside.fileno())
        self._uid, self._folder = tiers.slot_uid() if tier == tiers.UID else None, ""
        self.copy: Copy | None = None
        try:
            if environment:
                self.copy = warm_copy(tier, python, private, environment, (*inside, job_fd, self.stderr))
            self.process = self.copy or self._start(tier, python, private, inside, job_fd, lease)
        except SandboxUnavailable:
            self._give_back()
            raise
        except OSError as error:
            self._give_back()
            raise SandboxUnavailable(f"the sandbox could not be started: {error}") from error
        finally:
            os.close(job_fd)
            control_inside.close()
            bridge_inside.close()

    def _start(
        self,
        tier: str,
        python: str,
        private: Sequence[str],
        inside: tuple[int, int],
        job_fd: int,
        lease: Lease | None,
    ) -> subprocess.Popen[bytes]:
        """A tree of its own from nothing: `runner.py`, started by the command of the tier."""
        filter_fd = anonymous_file(seccomp_filter(network=tier != tiers.UID))
        try:
            command = tiers.command(tier, python, inside, filter_fd, private, lease)
            self._folder = self._own_folder() if tier in (tiers.UID, tiers.NONE) else ""
            return LAUNCHER.submit(
                subprocess.Popen,
                command,
                env={"PATH": tiers.PATH, **({"HOME": self._folder, "TMPDIR": self._folder} if self._folder else {})},
                stdin=job_fd,
                stdout=self.stderr,
                stderr=self.stderr,
                pass_fds=(*inside, filter_fd),
                start_new_session=True,
                cwd=self._folder or "/",
            ).result()
        finally:
            os.close(filter_fd)

    def _own_folder(self) -> str:
        """A folder outside any mount namespace, which goes when the sandbox does."""
        folder = tempfile.mkdtemp(prefix="sandbox-")
        if self._uid is not None:
            os.chown(folder, self._uid, self._uid)
        return folder

    def complaint(self) -> str:
        """The last line that the sandbox's own tools wrote, for an error message of ours."""
        size = os.fstat(self.stderr).st_size
        text = os.pread(self.stderr, 2000, max(0, size - 2000)).decode(errors="replace").strip()
        return text.splitlines()[-1] if text else "it said nothing"

    @property
    def is_orphaned(self) -> bool:
        """Whether it has lost the template that it is a copy of, and was ended by that."""
        return self.copy is not None and self.copy.template.is_gone

    def kill(self) -> None:
        """End every process of the tree and wait until they are gone."""
        if isinstance(self.process, Copy):
            self.process.end(KILL_GRACE_S)
            return
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        deadline = time.monotonic() + KILL_GRACE_S
        while True:  # without a pid namespace nothing else ends what has left the group, and it may fork meanwhile
            family = [member for member in [*family, *self._strays()] if _is_alive(member)]
            if not family or time.monotonic() > deadline:
                break
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            time.sleep(0.005)
        self.process.wait()

    def _strays(self) -> list[psutil.Process]:
        """Every process of the slot's own uid."""
        if self._uid is None:
            return []
        found = []
        for member in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):
                if member.uids().real == self._uid:
                    found.append(member)
        return found

    def close(self) -> None:
        """Kill, remove what is left of its files, and give the descriptors back."""
        self.kill()
        self._give_back()
        if self._uid is not None:
            _remove_files_of(self._uid)

    def _give_back(self) -> None:
        if self.copy:
            self.copy.close()
        self.control.close()
        self.bridge.close()
        os.close(self.stderr)
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


def _is_alive(process: psutil.Process) -> bool:
    """Whether it still runs; one that has ended and waits for its parent to notice does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _remove_files_of(uid: int) -> None:
    """Remove what a user has left in the folders that all share; no link is followed."""
    for folder in SHARED_FOLDERS:
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.stat(follow_symlinks=False).st_uid != uid:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink(missing_ok=True)
