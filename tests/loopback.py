"""A real Dask cluster on this machine: a scheduler and runners, each a process that a test can kill."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
START_S = 60.0


class Loopback:
    """Starts a scheduler on a free port; `runner` adds runners. Everything ends with the `with` block."""

    def __init__(self, folder: Path, protocol: str = "tcp", environment: Mapping[str, str] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"{protocol}://127.0.0.1:{self.port}"
        self.environment = {**os.environ, **(environment or {}), "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s"}
        self._folder, self._protocol = folder, protocol
        self.started: list[subprocess.Popen[Any]] = []  # all that ends with the block
        self.scheduler = self.start_scheduler()

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            kill_tree(process.pid)
            process.communicate()

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        """Also again, at the same address, after it was killed."""
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--protocol", self._protocol, "--no-dashboard"]
        return self._start("distributed.cli.dask_scheduler", *options)

    def runner(self, *options: str, slots: int = 1) -> subprocess.Popen[bytes]:
        """A runner as an instructor starts it."""
        return self._start("grader.cli", "worker", "--scheduler", self.address, "--slots", str(slots), *options)

    def wait_for(self, runners: int) -> None:
        """Until so many runners have joined; at most a minute."""
        code = f"from distributed import Client; c = Client({self.address!r}); c.wait_for_workers({runners}, {START_S})"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=self.environment, check=True)

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / "cluster.log").open("ab") as log:
            command = [sys.executable, "-m", module, *arguments]
            process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)
        self.started.append(process)
        return process


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and all that it started, as when a machine goes away."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)


def after(seconds: float, value: str) -> str:
    """A task that takes a while; a runner can import it from here."""
    time.sleep(seconds)
    return value


def raise_timeout() -> None:
    """A task that raises what executors raise for other reasons."""
    raise TimeoutError("the task's own")
