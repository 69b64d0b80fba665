"""Proves a sandbox before it is trusted: a canary notebook tries what is forbidden and must fail at it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from grader.errors import RuntimeUnavailable, SandboxUnavailable
from grader.sandbox import tiers
from grader.sandbox.bridge import Session, StudentError
from grader.sandbox.launch import SHARED_FOLDERS
from grader.sandbox.lease import PROBE, Lease, leased
from grader.sandbox.runtime import require as require_runtime
from grader.sandbox.student import Student
from grader.sandbox.template import OFF, end_templates, template_for, why_cold
from grader.types import Limits, Profile

PROMISES = {
    "imports_mxnet": "MXNet can be imported inside",
    "no_network": "no host socket can be reached",
    "no_vsock": "no socket to the machine's hypervisor",
    "no_closed_files": "files that are closed to other users cannot be read",
    "no_host_files": "no file of the host can be read, whatever its mode",
    "no_descriptors": "no open file of the grader is inherited",
    "no_host_processes": "processes of the host cannot be seen",
    "no_environment": "the grader's environment cannot be read",
    "not_root": "the notebook is not root and cannot become it",
    "runner_sealed": "the process that runs the notebook cannot be written to",
    "no_kernel_calls": "system calls that no notebook needs are refused",
    "no_core_pattern": "kernel settings cannot be written",
    "read_only_system": "system folders cannot be written",
    "own_folders_only": "nothing that it writes lies in a folder of the host",
    "small_dev": "no device but the harmless ones",
    "disk_limit": "all that it writes has a size limit",
    "process_limit": "the number of processes has a limit",
}
NOT_PROMISED = {
    tiers.UID: {"no_host_files", "no_host_processes", "own_folders_only", "small_dev", "disk_limit"},
}
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}  # with which a sandbox can be started warm
_DEVICES = ["console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin"]
_DEVICES += ["stdout", "tty", "urandom", "zero"]
LIMITS = Limits(  # of a notebook of ours
    notebook_cpu_s=60,
    notebook_wall_s=60,
    check_wall_s=10,
    total_wall_s=90,
    memory_bytes=2 << 30,
    output_bytes=1 << 20,
    file_bytes=64 << 20,
    processes=64,
    open_files=256,
)
GPU_LIMITS = dataclasses.replace(LIMITS, memory_bytes=8 << 30, processes=256)  # of which CUDA takes the most
_CANARY = """
import ctypes, glob, os, platform, socket, subprocess

def fails(attempt):
    try:
        attempt()
    except (OSError, ValueError, subprocess.SubprocessError):
        return True
    return False

def fill():
    for i in range(64):
        with open(f"fill{i}", "wb") as file:
            file.write(bytes(8 << 20))

def multiply():
    children = []  # not forked: with MXNet loaded that starts threads, and ends the process when it cannot
    try:
        for _ in range(100):
            children.append(os.posix_spawn("/bin/sleep", ["sleep", "30"], {}))
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)

def environments():
    found = []
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file:
                found.append(file.read())
        except OSError:
            pass
    return b"".join(found)

def descriptors():
    found = []
    for fd in range(3, 256):
        try:
            found.append(os.pread(fd, 1 << 16, 0))
        except OSError:
            pass
    return b"".join(found)

def leave_a_file():
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        fails(lambda: open(f"{folder}/{MARK}", "w").close())

# ptrace, keyctl, bpf, userfaultfd, mount, unshare, perf_event_open, kexec_load, io_uring_setup
CALLS = {
    "x86_64": (101, 250, 321, 323, 165, 272, 298, 246, 425),
    "aarch64": (117, 219, 280, 282, 40, 97, 241, 104, 425),
}

def is_refused(number):
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(number, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1

leave_a_file()
status = open("/proc/self/status").read()
kept = {
    "no_network": fails(lambda: socket.create_connection(("127.0.0.1", PORT), timeout=2)),
    "no_vsock": fails(lambda: socket.socket(40, socket.SOCK_STREAM)),
    "no_closed_files": fails(lambda: open(CLOSED).read()),
    "no_host_files": fails(lambda: open(SECRET).read()),
    "no_descriptors": MARK.encode() not in descriptors(),
    "no_host_processes": len(glob.glob("/proc/[0-9]*")) < 16,
    "no_environment": MARK.encode() not in environments(),
    "not_root": os.getuid() != 0 and all(f"Cap{kind}:\\t0000000000000000" in status for kind in ("Inh", "Prm", "Eff"))
        and "NoNewPrivs:\\t1" in status,
    "runner_sealed": fails(lambda: open(f"/proc/{os.getppid()}/mem", "r+b")),
    "no_core_pattern": fails(lambda: open("/proc/sys/kernel/core_pattern", "w")),
    "read_only_system": all(fails(lambda p=p: open(p + "/x", "w")) for p in ("/", "/usr", "/dev", "/opt", "/etc")),
    "no_kernel_calls": "Seccomp:\\t2" in status and all(map(is_refused, CALLS.get(platform.machine(), ()))),
    "small_dev": not [name for name in os.listdir("/dev") if name not in DEVICES],
    "process_limit": fails(multiply),
    "disk_limit": fails(fill),
}
try:
    import mxnet
    kept["imports_mxnet"] = float(mxnet.nd.ones(2).sum().asscalar()) == 2.0
except Exception:
    kept["imports_mxnet"] = False
"""


def prove(tier: str, *, warm: bool = False) -> dict[str, bool]:
    """Which promises this tier keeps on this machine, started from nothing or as a copy of a warm template.

    Raises SandboxUnavailable if the canary could not run.
    """
    with _bait() as bait:
        head = "".join(f"{name} = {value!r}\n" for name, value in bait.items())
        with Session(
            notebook=notebook_of(head + _CANARY), files={}, environment=ENVIRONMENT, limits=LIMITS, tier=tier, warm=warm
        ) as session:
            if warm and not session.is_warm:
                raise SandboxUnavailable(f"the sandbox could not be started warm: {why_cold()[-1]}")
            execution = session.execute()
            try:
                kept = Student(session, "").get("kept")
            except StudentError as error:
                raise SandboxUnavailable(
                    f"the sandbox's self-test did not end: {execution.message or error}"
                ) from error
            left = [folder for folder in SHARED_FOLDERS if (Path(folder) / str(bait["MARK"])).exists()]
    if not isinstance(kept, dict):
        raise SandboxUnavailable("the sandbox's self-test did not report what it found")
    kept["own_folders_only"] = not left
    return {name: kept.get(name) is True for name in PROMISES}


def trouble(tier: str, python: str, lease: Lease | None) -> str:
    """What goes wrong when a notebook of ours computes by an interpreter in this sandbox; empty if nothing does."""
    cell, limits = notebook_of(PROBE), GPU_LIMITS if lease else LIMITS
    with Session(
        notebook=cell, files={}, environment={}, limits=limits, tier=tier, python=python, lease=lease
    ) as session:
        execution = session.execute()
        try:
            works = Student(session, "").get("works")
        except StudentError as error:
            return execution.message or str(error)
    return "" if works is True else "it computes something wrong"


def require_device(tier: str, profile: Profile) -> None:
    """Refuse a machine on which notebooks of a profile cannot compute as it wants, in the sandbox.

    Raises RuntimeUnavailable, SandboxUnavailable.
    """
    python = profile.runtime.python or sys.executable
    if python != sys.executable:
        require_runtime(python)
    if profile.device == "gpu":
        with leased(python, slots_per_gpu=profile.runtime.slots_per_gpu) as lease:
            if said := trouble(tier, python, lease):
                raise RuntimeUnavailable(f"GPU {lease.index} failed a trial in the sandbox: {said}")
    elif python != sys.executable and (said := trouble(tier, python, None)):
        raise RuntimeUnavailable(f"{python} failed a trial in the sandbox: {said}")


def promised(tier: str) -> list[str]:
    """The promises that a tier makes: all, but for the weaker tier."""
    return [name for name in PROMISES if name not in NOT_PROMISED.get(tier, ())]


def require(tier: str) -> bool:
    """Refuse a sandbox that does not keep every promise that it makes, however started.

    Whether that was proven of copies of a warm template, too. Raises SandboxUnavailable.
    """
    with ThreadPoolExecutor(1, "proof") as beside:
        cold = beside.submit(prove, tier)
        proofs = [(True, prove(tier, warm=True))] if can_be_warm(tier) else []
        proofs.append((False, cold.result()))
    for warm, kept in proofs:
        broken = [PROMISES[name] for name in promised(tier) if not kept[name]]
        if broken:
            remedy = f" as a copy of a warm template: {OFF}=0 has each started from nothing" if warm else ""
            raise SandboxUnavailable(
                f"the sandbox does not hold here: not kept is «{broken[0]}» ({len(broken)} in all){remedy}."
            )
    end_templates()  # that of a submission begins with another environment, and hides other folders
    return len(proofs) > 1


def is_to_be_warm(tier: str) -> bool:
    """Whether sandboxes of this tier start as copies of a warm template unless something goes wrong."""
    return tier in tiers.WARM and os.environ.get(OFF) != "0"


def can_be_warm(tier: str) -> bool:
    """Whether sandboxes of this tier can be copies of a warm template on this machine."""
    return template_for(tier, sys.executable, (), {**ENVIRONMENT, "GRADER_DEVICE": "cpu"}) is not None


@contextlib.contextmanager
def _bait() -> Iterator[dict[str, object]]:
    """A listening socket, a file for all, a file of ours, open and closed, and an environment variable, all outside."""
    mark = f"canary-{os.getpid()}-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        for name, mode in (("secret", 0o644), ("closed", 0o600)):
            (Path(folder) / name).write_text(mark)
            (Path(folder) / name).chmod(mode)
        Path(folder).chmod(0o755)
        os.environ[mark] = mark
        with (Path(folder) / "closed").open("rb") as opened:
            os.set_inheritable(opened.fileno(), True)
            try:
                yield {
                    "PORT": server.getsockname()[1],
                    "SECRET": f"{folder}/secret",
                    "CLOSED": f"{folder}/closed",
                    "MARK": mark,
                    "DEVICES": _DEVICES,
                }
            finally:
                del os.environ[mark]


def notebook_of(*sources: str) -> bytes:
    """A notebook of these code cells."""
    cells: list[dict[str, object]] = [
        {
            "cell_type": "code",
            "id": f"cell-{i}",
            "metadata": {},
            "outputs": [],
            "execution_count": None,
            "source": source,
        }
        for i, source in enumerate(sources)
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()
