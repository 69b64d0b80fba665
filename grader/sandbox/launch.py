"""Starts one sealed process tree: bubblewrap as an ordinary user, or as root after dropping the uid.

bubblewrap started as root is no sandbox, so root first takes a uid of its own (one for each grading process, so that
process limits do not add up). That uid may not reach the interpreter (a home folder is closed), so root binds it into
a private mount namespace before the uid is dropped.
"""

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
from collections.abc import Sequence
from pathlib import Path

import psutil

from grader.errors import SandboxUnavailable
from grader.sandbox.limits import anonymous_file, seccomp_filter

HOME, GUEST = "/home/student", "/opt/guest"
SLOT_UID_BASE = 0x60000000  # far above the uids of people and services; the process id is added
KILL_GRACE_S = 5.0
_HERE = Path(__file__).parent
_STAGE = """
set -e
mount -t tmpfs -o mode=0755,size=64k tmpfs /mnt
n=$1; shift
i=0
while [ $i -lt $n ]; do
  if [ -d "$1" ]; then mkdir /mnt/$i; else : > /mnt/$i; fi
  mount --bind "$1" /mnt/$i
  shift; i=$((i+1))
done
exec "$@"
"""


def pick_tier() -> str:
    """The tier this machine can have. Raises SandboxUnavailable where there is none."""
    if shutil.which("bwrap"):
        return "bubblewrap-root" if os.geteuid() == 0 else "bubblewrap"
    raise SandboxUnavailable(
        "bubblewrap (the command bwrap) was not found, and nothing is graded without a sandbox: "
        "install the package bubblewrap and run this again."
    )


class Sealed:
    """A started process tree, and the two sockets that lead into it."""

    def __init__(self, tier: str, job: bytes, *, python: str = sys.executable, private: Sequence[str] = ()) -> None:
        """Start `runner.py` on `job`; folders in `private` are empty inside, wherever they lie.

        Raises SandboxUnavailable if the command cannot be started.
        """
        self.control, control_inside = socket.socketpair()
        self.bridge, bridge_inside = socket.socketpair()
        self.stderr = anonymous_file(b"")
        job_fd, filter_fd = anonymous_file(job), anonymous_file(seccomp_filter())
        inside = (control_inside.fileno(), bridge_inside.fileno())
        self._folder = tempfile.mkdtemp(prefix="unsandboxed-") if tier == "none" else ""
        try:
            self.process = subprocess.Popen(
                _command(tier, python, inside, filter_fd, private),
                env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", **({"HOME": self._folder} if self._folder else {})},
                stdin=job_fd,
                stdout=self.stderr,
                stderr=self.stderr,
                pass_fds=(*inside, filter_fd),
                start_new_session=True,
                cwd=self._folder or "/",
            )
        except OSError as error:
            raise SandboxUnavailable(f"the sandbox could not be started: {error}") from error
        finally:
            for fd in (job_fd, filter_fd):
                os.close(fd)
            control_inside.close()
            bridge_inside.close()

    def complaint(self) -> str:
        """The last line that the sandbox's own tools wrote, for an error message of ours."""
        size = os.fstat(self.stderr).st_size
        text = os.pread(self.stderr, 2000, max(0, size - 2000)).decode(errors="replace").strip()
        return text.splitlines()[-1] if text else "it said nothing"

    def kill(self) -> None:
        """End every process of the tree and wait until they are gone."""
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for member in family:  # without a pid namespace nothing else would end them
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait()
        deadline = time.monotonic() + KILL_GRACE_S
        while any(map(_is_alive, family)) and time.monotonic() < deadline:
            time.sleep(0.005)

    def close(self) -> None:
        """Kill, and give the descriptors back."""
        self.kill()
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


def _interpreter_folders(python: str) -> list[str]:
    """Folders outside /usr that the interpreter needs: its environment and its installation."""
    if python == sys.executable:
        prefixes = [sys.prefix, sys.base_prefix]
    else:
        script = "import sys; print(sys.prefix); print(sys.base_prefix)"
        prefixes = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )[:2]
    folders = {str(Path(prefix)) for prefix in prefixes} | {str(Path(prefix).resolve()) for prefix in prefixes}
    return sorted(folder for folder in folders if not folder.startswith("/usr/") and folder != "/usr")


def _command(tier: str, python: str, inside: Sequence[int], filter_fd: int, private: Sequence[str] = ()) -> list[str]:
    runner = [python, "-I", "-B"]
    arguments = [str(fd) for fd in inside]
    if tier == "none":
        return [*runner, str(_HERE / "runner.py"), *arguments]
    binds = [(folder, folder) for folder in _interpreter_folders(python)]
    binds += [(str(_HERE / name), f"{GUEST}/{name}") for name in ("runner.py", "guest.py", "wire.py")]
    program = [*runner, f"{GUEST}/runner.py", *arguments]
    bound = ["/usr", *(inner for _, inner in binds)]
    hidden = [folder for folder in map(os.path.realpath, private) if any(_below(folder, top) for top in bound)]
    if tier == "bubblewrap":
        return [*_bubblewrap(binds, filter_fd, hidden), *program]
    staged = [(f"/mnt/{i}", inner) for i, (_, inner) in enumerate(binds)]
    uid = str(SLOT_UID_BASE + os.getpid())
    drop = ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "--no-new-privs"]
    stage = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "--",
        "sh",
        "-c",
        _STAGE,
        "stage",
        str(len(binds)),
    ]
    return [*stage, *(outer for outer, _ in binds), *drop, *_bubblewrap(staged, filter_fd, hidden), *program]


def _below(path: str, folder: str) -> bool:
    return Path(path).is_dir() and Path(path).is_relative_to(folder)


def _bubblewrap(binds: Sequence[tuple[str, str]], filter_fd: int, hidden: Sequence[str]) -> list[str]:
    """The sandbox itself: own namespaces, no network, read-only system, private sized tmpfs, empty environment."""
    command = ["bwrap", "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--disable-userns", "--uid", "65534", "--gid", "65534"]
    command += [
        "--die-with-parent",
        "--new-session",
        "--hostname",
        "grader",
        "--cap-drop",
        "ALL",
        "--clearenv",
    ]
    environment = {"HOME": HOME, "TMPDIR": "/tmp", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    for name, value in environment.items():
        command += ["--setenv", name, value]
    command += ["--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"]
    command += ["--symlink", "usr/lib64", "/lib64", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    command += ["--proc", "/proc", "--ro-bind-try", "/proc/sys", "/proc/sys", "--dev", "/dev"]
    for path, mode, size in (("/dev/shm", "1777", 32), ("/tmp", "1777", 64), (HOME, "0700", 128)):
        command += ["--perms", mode, "--size", str(size << 20), "--tmpfs", path]
    for outer, inner in binds:
        command += ["--ro-bind", outer, inner]
    for folder in hidden:
        command += ["--tmpfs", folder, "--remount-ro", folder]
    command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", HOME]
    return [*command, "--seccomp", str(filter_fd), "--"]
