"""Proves a sandbox before it is trusted: a canary notebook tries what is forbidden and must fail at it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from grader.errors import SandboxUnavailable
from grader.sandbox.bridge import Session, Student, StudentError
from grader.types import Limits

PROMISES = {
    "imports_mxnet": "MXNet can be imported inside",
    "no_network": "no host socket can be reached",
    "no_vsock": "no socket to the machine's hypervisor",
    "no_host_files": "files of the host cannot be read",
    "no_host_processes": "processes of the host cannot be seen",
    "no_environment": "the grader's environment cannot be read",
    "not_root": "the notebook is not root",
    "runner_sealed": "the process that runs the notebook cannot be written to",
    "no_core_pattern": "kernel settings cannot be written",
    "read_only_system": "only its own folder can be written",
    "disk_limit": "its own folder has a size limit",
    "process_limit": "the number of processes has a limit",
}
_LIMITS = Limits(
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
_CANARY = """
import glob, os, socket, subprocess

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
    children = []
    try:
        for _ in range(100):
            child = os.fork()
            if child == 0:
                import time
                time.sleep(30)
                os._exit(0)
            children.append(child)
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

kept = {
    "no_network": fails(lambda: socket.create_connection(("127.0.0.1", PORT), timeout=2)),
    "no_vsock": fails(lambda: socket.socket(40, socket.SOCK_STREAM)),
    "no_host_files": fails(lambda: open(SECRET).read()),
    "no_host_processes": len(glob.glob("/proc/[0-9]*")) < 16,
    "no_environment": MARK.encode() not in environments(),
    "not_root": os.getuid() != 0 and "CapEff:\\t0000000000000000" in open("/proc/self/status").read(),
    "runner_sealed": fails(lambda: open(f"/proc/{os.getppid()}/mem", "r+b")),
    "no_core_pattern": fails(lambda: open("/proc/sys/kernel/core_pattern", "w")),
    "read_only_system": all(fails(lambda p=p: open(p + "/x", "w")) for p in ("/", "/usr", "/dev", "/opt", "/etc")),
    "process_limit": fails(multiply),
    "disk_limit": fails(fill),
}
try:
    import mxnet
    kept["imports_mxnet"] = float(mxnet.nd.ones(2).sum().asscalar()) == 2.0
except Exception:
    kept["imports_mxnet"] = False
"""


def prove(tier: str) -> dict[str, bool]:
    """Which promises this tier keeps on this machine. Raises SandboxUnavailable if the canary could not run."""
    with _bait() as (port, secret, mark):
        head = f"PORT, SECRET, MARK = {port}, {secret!r}, {mark!r}\n"
        with Session(
            notebook=_notebook(head + _CANARY), files={}, environment={}, limits=_LIMITS, tier=tier
        ) as session:
            execution = session.execute()
            try:
                kept = Student(session, "").get("kept")
            except StudentError as error:
                raise SandboxUnavailable(
                    f"the sandbox's self-test did not end: {execution.message or error}"
                ) from error
    if not isinstance(kept, dict):
        raise SandboxUnavailable("the sandbox's self-test did not report what it found")
    return {name: kept.get(name) is True for name in PROMISES}


def require(tier: str) -> None:
    """Refuse a sandbox that does not keep every promise. Raises SandboxUnavailable."""
    broken = [PROMISES[name] for name, kept in prove(tier).items() if not kept]
    if broken:
        raise SandboxUnavailable(f"the sandbox does not hold here: not kept is «{broken[0]}» ({len(broken)} in all).")


@contextlib.contextmanager
def _bait() -> Iterator[tuple[int, str, str]]:
    """A listening socket, a readable file and an environment variable, all outside."""
    mark = f"canary-{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        secret = Path(folder) / "secret"
        secret.write_text(mark)
        Path(folder).chmod(0o755)
        os.environ["GRADER_CANARY"] = mark
        try:
            yield server.getsockname()[1], str(secret), mark
        finally:
            del os.environ["GRADER_CANARY"]


def _notebook(source: str) -> bytes:
    cell: dict[str, object] = {
        "cell_type": "code",
        "id": "canary",
        "metadata": {},
        "outputs": [],
        "execution_count": None,
        "source": source,
    }
    return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()
