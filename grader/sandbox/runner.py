"""Runs one notebook inside the sandbox: nbclient and the kernel live here, events go out by one inherited socket.

Started as `python -I runner.py CONTROL_FD BRIDGE_FD [FILTER_FD]` with the job on standard input. Everything it reports
is shown or bounds the work; the grader decides nothing by it. Standard library, nbformat, nbclient and `wire.py` only.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)
import wire  # type: ignore[import-not-found, unused-ignore]  # noqa: E402  lies beside this file in the sandbox

IMPORT = f"import sys as _s; _s.path.insert(0, {HERE!r}); import guest as _g; "
CAP = IMPORT + "_g.OutputCap({limit}).install(get_ipython())"
SERVE = IMPORT + "_g.Guest({fd}, globals()).serve()"
WATCH_INTERVAL_S = 0.1
INTERRUPT_GRACE_S = 15.0  # for what was written before to be read, too
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 4, 22, 38
SECCOMP_MODE_FILTER = 2
RUNNER_BYTES = 310 << 20  # besides what it has before the first cell


class Run:
    """One notebook from its first cell to the end of the checks."""

    def __init__(
        self, job: dict[str, Any], notebook: Any, control_fd: int, bridge_fd: int, provisioner: Any = None
    ) -> None:
        from jupyter_client.manager import AsyncKernelManager
        from nbclient import NotebookClient

        manager = AsyncKernelManager(kernel_name="python3", transport="ipc")  # where there may be no loopback
        manager.client_factory = _client_class()
        if provisioner:
            manager.provisioner = provisioner(parent=manager, kernel_id="", kernel_spec=manager.kernel_spec)

        self.job, self.notebook, self.bridge_fd = job, notebook, bridge_fd
        self.control = socket.socket(fileno=control_fd)
        self.deadline = time.monotonic() + job["notebook_wall_s"]
        self.most_bytes = _resident_bytes() + RUNNER_BYTES
        self.current: tuple[Any, int] = ({}, 0)  # the running cell and its number; None once all have run
        self.trouble: tuple[str, str] | None = None  # the first outcome other than PASSED, and its sentence
        self.client: Any = NotebookClient(
            notebook,
            timeout=None,
            timeout_func=self._remaining,
            interrupt_on_timeout=True,
            error_on_timeout={"ename": "TimeoutError", "evalue": "out of time", "traceback": []},
            allow_errors=True,
            km=manager,
            ipython_hist_file=":memory:",
        )

    def _remaining(self, _cell: Any) -> float:
        """How long a cell may run. It is polled in whole milliseconds, and must not be stopped before the deadline."""
        return max(0.1, float(self.deadline) - time.monotonic() + 0.01)

    def emit(self, event: str, body: bytes = b"", **fields: Any) -> None:
        self.control.sendall(wire.pack({"event": event, **fields}, body))

    @property
    def stopped(self) -> bool:
        """Whether the rest of the cells is left out."""
        return self.trouble is not None and self.trouble[0] in ("TIMED_OUT", "OUTPUT_EXCEEDED")

    def note(self, outcome: str, message: str) -> None:
        """Keep the first trouble, unless a later one ended the run."""
        goes_on = ("RAISED", "MEMORY_EXCEEDED", "GPU_MEMORY_EXCEEDED")
        if self.trouble is None or (self.trouble[0] in goes_on and outcome != "RAISED"):
            self.trouble = (outcome, message)

    async def run(self) -> None:
        """Execute every cell, report, then serve the checks until the grader hangs up."""
        from nbclient.exceptions import DeadKernelError

        async with self.client.async_setup_kernel(pass_fds=(self.bridge_fd,)):
            os.close(self.bridge_fd)
            self.emit("started", python=sys.version)
            self._tell_kernel(CAP.format(limit=self.job["output_bytes"]))
            threading.Thread(target=self._watch, daemon=True).start()
            try:
                await self._cells()
                alive = True
            except DeadKernelError:
                self.note("KERNEL_DIED", "The kernel died while the notebook ran.")
                alive = False
            self.current = (None, 0)
            outcome, message = self.trouble or ("PASSED", "")
            status = None if alive else await self._exit_status()
            self.emit("executed", self._executed(), outcome=outcome, message=message, status=status)
            if alive:
                await self._serve()

    async def _exit_status(self) -> int | None:
        """What the kernel's process ended with, negative for a signal; None if it runs on for a while."""
        for _ in range(20):
            status: int | None = await self.client.km.provisioner.poll()
            if status is not None:
                return status
            await asyncio.sleep(WATCH_INTERVAL_S)
        return None

    async def _cells(self) -> None:
        code_cells = [i for i, cell in enumerate(self.notebook.cells) if cell.cell_type == "code"]
        for count, index in enumerate(code_cells, 1):
            if self.stopped:
                return
            cell = self.notebook.cells[index]
            self.current = (cell, count)
            await self.client.async_execute_cell(cell, index)
            self._inspect(cell, count)

    def _inspect(self, cell: Any, number: int) -> None:
        if time.monotonic() >= self.deadline:
            self._out_of_time(number, f"{self.job['notebook_wall_s']:.0f} s")
        for output in cell.outputs:
            if output.output_type == "error" and wire.is_gpu_memory(output.ename, output.evalue):
                self.note("GPU_MEMORY_EXCEEDED", f"Code cell {number} ran out of GPU memory.")
            elif output.output_type == "error":
                outcome = "MEMORY_EXCEEDED" if output.ename == "MemoryError" else "RAISED"
                self.note(outcome, f"Code cell {number} raised {wire.gist(output.ename, output.evalue)}")

    def _out_of_time(self, number: int, limit: str) -> None:
        self.note("TIMED_OUT", f"Code cell {number} was still running when the notebook's {limit} were over.")

    def _watch(self) -> None:
        """In a thread: stop a cell that writes more than the cap or uses up the CPU time; kill what does not stop.

        What a flood of output leaves unread piles up in this process, so its size is watched as well.
        """
        kernel = self.client.km.provisioner.pid
        while not self.stopped:
            time.sleep(WATCH_INTERVAL_S)
            cell, number = self.current
            if cell is None:
                return
            if _output_size(cell) > self.job["output_bytes"] or _resident_bytes() > self.most_bytes:
                self.note("OUTPUT_EXCEEDED", f"A cell wrote more than {self.job['output_bytes']:,} bytes of output.")
                cell.outputs = []
            elif _cpu_s(kernel) > self.job["notebook_cpu_s"]:
                self._out_of_time(number, f"{self.job['notebook_cpu_s']:.0f} s of CPU time")
        os.kill(kernel, signal.SIGINT)
        time.sleep(INTERRUPT_GRACE_S)
        if self.current[1] == number:
            os.kill(kernel, signal.SIGKILL)

    def _executed(self) -> bytes:
        """The notebook with its outputs; without those of the largest cells if it would be too long."""
        cells = [cell for cell in self.notebook.cells if cell.cell_type == "code"]
        for cell in [None, *sorted(cells, key=_output_size, reverse=True)]:
            if cell:
                cell.outputs = []
            text = json.dumps(self.notebook).encode()
            if len(text) <= self.job["output_bytes"]:
                return text
        return b""

    def _tell_kernel(self, source: str) -> None:
        """Have the kernel run some code of ours after what it runs now."""
        self.client.kc.execute(source, silent=True, store_history=False)

    async def _serve(self) -> None:
        kernel_client, loop = self.client.kc, asyncio.get_running_loop()
        self._tell_kernel(SERVE.format(fd=self.bridge_fd))
        self.control.setblocking(False)
        drain = asyncio.ensure_future(_drain(kernel_client))
        try:
            while command := await loop.sock_recv(self.control, 1):
                if command == b"i":
                    await self.client.km.interrupt_kernel()
                elif command == b"s":
                    event = {"event": "ended", "status": await self._exit_status()}
                    await loop.sock_sendall(self.control, wire.pack(event, b""))
        finally:
            drain.cancel()


def _client_class() -> Any:
    """Jupyter's client, ready 0.2 s sooner: it listens so long for what nbclient, which goes by ids, would skip."""
    from queue import Empty

    from jupyter_client.asynchronous.client import AsyncKernelClient

    class Client(AsyncKernelClient):
        async def wait_for_ready(self, timeout: float | None = None) -> None:
            """Until the kernel answers and its output is heard. Raises RuntimeError if it ends, or at the timeout."""
            deadline = time.monotonic() + (timeout or float("inf"))
            while time.monotonic() < deadline:
                self.kernel_info()
                with contextlib.suppress(Empty):
                    reply = await self.shell_channel.get_msg(timeout=1)
                    if reply["msg_type"] == "kernel_info_reply":
                        await self.iopub_channel.get_msg(timeout=0.2)
                        return
                if not await self.is_alive():
                    raise RuntimeError("the kernel ended before it was ready")
            raise RuntimeError("the kernel was not ready in time")

    return Client


async def _drain(kernel_client: Any) -> None:
    """Throw away what the student's code prints while it is checked, so that it piles up nowhere."""
    while True:
        await kernel_client.get_iopub_msg(timeout=None)


def _cpu_s(pid: int) -> float:
    """CPU time of a process and of its children that have ended (fields 14 to 17 of proc_pid_stat(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _output_size(cell: Any) -> int:
    size = 0
    for output in cell.get("outputs", []):
        size += len(output.get("text", "")) + sum(len(str(v)) for v in output.get("data", {}).values()) + 50
    return size


def _limit(job: dict[str, Any]) -> None:
    for name, value in job["rlimits"].items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


class _Program(ctypes.Structure):
    """struct sock_fprog of seccomp(2)."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def filter_calls(code: bytes) -> None:
    """Take a seccomp filter, where no bubblewrap has done so. Raises OSError."""
    program, libc = _Program(len(code) // 8, code), ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "the filter of system calls could not be taken")


def main() -> None:
    """Take the filter where it is ours to take, and run the job on standard input."""
    if len(sys.argv) > 3:
        filter_calls(os.pread(int(sys.argv[3]), 1 << 16, 0))
        os.close(int(sys.argv[3]))
    run_job(sys.stdin.buffer.read, int(sys.argv[1]), int(sys.argv[2]))


def run_job(
    read: Callable[[int], bytes], control_fd: int, bridge_fd: int, fork_kernel: Callable[[int], Any] | None = None
) -> None:
    """Read the job, take the limits, lay out the files, run.

    `fork_kernel` makes the kernel's process beforehand, and returns the class of its provisioner.
    """
    # the kernel runs under the same uid: without this it could write into this process's memory
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
    job, body = wire.read_frame(read)
    _limit(job)
    for name, value in job["environment"].items():
        os.environ[name] = value.replace("$HOME", str(Path.cwd()))
    provisioner = fork_kernel(bridge_fd) if fork_kernel else None
    offset = 0
    for name, size in job["files"]:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body[offset : offset + size])
        offset += size
    from nbformat import v4

    notebook = v4.reads(body[offset:].decode())  # which the grader has found to be a valid one
    asyncio.run(Run(job, notebook, control_fd, bridge_fd, provisioner).run())


if __name__ == "__main__":
    main()
