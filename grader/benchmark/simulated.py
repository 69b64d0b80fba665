"""A cluster of any size on this machine: Dask workers whose tasks sleep for as long as a submission would take.

What is real is the coordinator, the scheduler and what goes between them: how long free slots wait for their next
submission, and what that costs in CPU time.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

import psutil
from distributed import Client

from grader.batch import grade_each
from grader.bench import Bench
from grader.benchmark.record import Simulation, now
from grader.cluster import Cluster
from grader.executors import Attempt
from grader.pipeline import unmeasured
from grader.types import Grade, Submission

WORKERS = 2  # processes; each has its share of the slots as threads
START_S = 60.0


class _Sleepers(Cluster):
    """A cluster whose grades are made up."""

    is_remote = False

    def __init__(self, address: str, bench: Bench, task_s: float) -> None:
        super().__init__(address, None)
        self._made_up, self._task_s = unmeasured(_submission(0), bench, "a simulation"), task_s

    def grade(self, submission: Submission, avoid: Sequence[str] = ()) -> Future[Attempt]:
        return self._send(_sleep, self._task_s, self._made_up)


def _sleep(seconds: float, grade: Grade) -> Attempt:
    time.sleep(seconds)
    return Attempt(grade=grade, fault="", log="")


def simulate(submissions: int, slots: int, task_s: float, bench: Bench) -> Simulation:
    """Hand out that many submissions. Raises InfrastructureError if the cluster does not come up."""
    with _cluster(slots) as (address, scheduler):
        workers = _Sleepers(address, bench, task_s)
        grades: list[Grade] = []
        before, began, cpu = scheduler.cpu_times(), time.monotonic(), time.process_time()
        grade_each([_submission(i) for i in range(submissions)], bench, record=grades.append, workers=workers)
        after = scheduler.cpu_times()
        assert len(grades) == submissions
        return Simulation(
            submissions=submissions,
            slots=slots,
            task_s=task_s,
            makespan_s=time.monotonic() - began,
            coordinator_cpu_s=time.process_time() - cpu,
            scheduler_cpu_s=sum(after[:2]) - sum(before[:2]),
            measured_at=now(),
        )


def _submission(number: int) -> Submission:
    name = f"s{number:05}"
    return Submission(student_id=name, path="", sha256=hashlib.sha256(name.encode()).hexdigest(), submitted_at="")


@contextmanager
def _cluster(slots: int) -> Iterator[tuple[str, psutil.Process]]:
    """A scheduler and workers with that many slots together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, share = f"tcp://127.0.0.1:{port}", slots // WORKERS
    scheduler = ["dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = ["dask_worker", address, "--no-nanny", "--no-dashboard", "--nthreads", str(share)]
    worker += ["--memory-limit", "0", "--resources", f"CPU={share}"]
    processes = []
    try:
        for module, *options in (scheduler, *[worker] * WORKERS):
            command = [sys.executable, "-m", f"distributed.cli.{module}", *options]
            quiet = {**os.environ, "DASK_LOGGING__DISTRIBUTED": "error"}
            processes.append(subprocess.Popen(command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        with Client(address, timeout=START_S, set_as_default=False) as client:
            client.wait_for_workers(WORKERS, timeout=START_S)
        yield address, psutil.Process(processes[0].pid)
    finally:
        for process in processes:
            process.kill()
            process.wait()
