"""One GPU for one sandbox: who has it, which of its device nodes and libraries are bound, and whether it still works.

A lease is a lock on a file (flock(2)), which the kernel gives back when the process that holds it ends in any way.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from grader.corpus import cache_folder
from grader.errors import RuntimeUnavailable
from grader.sandbox.child import ask
from grader.sandbox.devices import Gpu, find_gpus, usable_gpus
from grader.sandbox.runtime import cuda_folders

ROOT = Path("/")  # below which device nodes and the driver's own files lie
SHARED_NODES = ("nvidiactl", "nvidia-uvm")
POLL_S = 0.5
LDCONFIG_WALL_S = 20.0
PROBE_WALL_S = 120.0
_DRIVER_LIBRARY = re.compile(r"^\s*(libcuda|libnvidia-\S+|libcudadebugger)\.so\S* \([^)]*64[^)]*\) => (\S+)$")
PROBE = """
import os, mxnet
ctx = mxnet.gpu() if "CUDA_VISIBLE_DEVICES" in os.environ else mxnet.cpu()
x = mxnet.nd.ones((64, 64), ctx=ctx)
total = float(mxnet.nd.dot(x, x).sum().asscalar())
layer = mxnet.gluon.rnn.LSTM(8)
layer.initialize(ctx=ctx)
works = total == 64.0 ** 3 and layer(x.reshape((8, 8, 64))).asnumpy().shape == (8, 8, 8)
"""
_lost: dict[str, str] = {}  # by uuid, what went wrong with GPUs that this process takes no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a sandbox gets of one GPU."""

    index: int
    uuid: str
    nodes: tuple[tuple[str, str], ...]  # device nodes: outside, inside
    libraries: tuple[str, ...]  # of the driver, outside /usr, which is bound already
    environment: Mapping[str, str]


@contextmanager
def leased(python: str, *, slots_per_gpu: int = 1) -> Iterator[Lease]:
    """Hold one slot of one GPU; waits until one is free. Raises RuntimeUnavailable if there is no GPU to wait for."""
    usable = usable_gpus()
    gpus = [gpu for gpu in usable if gpu.uuid not in _lost]
    if not gpus:
        raise RuntimeUnavailable(_lost[usable[0].uuid])
    folder = cache_folder() / "gpu"  # closed: whoever can open a lock can hold it
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeUnavailable(f"{folder}, for the locks of GPUs, cannot be made: {error.strerror}.") from None
    slots = [(gpu, folder / f"{gpu.uuid}.{slot}") for slot in range(slots_per_gpu) for gpu in gpus]
    while True:
        for gpu, path in slots:
            with path.open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield lease_of(gpu, python)
                return
        time.sleep(POLL_S)


def lease_of(gpu: Gpu, python: str) -> Lease:
    """All that a sandbox needs of a GPU. Raises RuntimeUnavailable if a device node is missing."""
    environment = {"CUDA_VISIBLE_DEVICES": gpu.uuid, "NVIDIA_TF32_OVERRIDE": "0"}
    if folders := cuda_folders(python):
        environment["LD_LIBRARY_PATH"] = ":".join(folders)
    return Lease(
        index=gpu.index, uuid=gpu.uuid, nodes=_nodes(gpu), libraries=_driver_libraries(), environment=environment
    )


def _nodes(gpu: Gpu) -> tuple[tuple[str, str], ...]:
    names = [*SHARED_NODES, f"nvidia{_minor(gpu)}"]
    for name in names:
        if not (ROOT / "dev" / name).exists():
            raise RuntimeUnavailable(
                f"there is no device node /dev/{name} for GPU {gpu.index}: as root, "
                f"`nvidia-modprobe -u -c {gpu.index}` makes it."
            )
    if (ROOT / "dev" / "nvidia-uvm-tools").exists():
        names.append("nvidia-uvm-tools")
    return tuple((str(ROOT / "dev" / name), f"/dev/{name}") for name in names)


def _minor(gpu: Gpu) -> int:
    """N of /dev/nvidiaN. The driver's own files say it; nvidia-smi's index is another number where a GPU is missing."""
    for path in (ROOT / "proc/driver/nvidia/gpus").glob("*/information"):
        said = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        if said.get("GPU UUID", "").strip() == gpu.uuid:
            return int(said.get("Device Minor", str(gpu.index)))
    return gpu.index


def _driver_libraries() -> tuple[str, ...]:
    """The driver's libraries that the loader knows (ldconfig(8)) and that lie outside /usr."""
    program = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        return ()
    found = []
    for line in ask([program, "-p"], wall_s=LDCONFIG_WALL_S).out.splitlines():
        match = _DRIVER_LIBRARY.match(line)
        if match and not Path(match[2]).parent.resolve().is_relative_to("/usr"):
            found.append(match[2])
    return tuple(dict.fromkeys(found))


def require_present(lease: Lease) -> None:
    """Raises RuntimeUnavailable if the driver no longer lists the GPU, or no longer answers."""
    try:
        present = any(gpu.uuid == lease.uuid for gpu in find_gpus())
    except RuntimeUnavailable as error:
        raise _loss(lease, f"was lost while a notebook ran: {error}") from None
    if not present:
        raise _loss(lease, "was lost while a notebook ran: the driver no longer lists it. Look for `Xid` in dmesg.")


def require_working(lease: Lease, python: str) -> None:
    """Raises RuntimeUnavailable if code of ours, outside any sandbox, no longer runs on the GPU."""
    require_present(lease)
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), **lease.environment}
    command = [python, "-I", "-B", "-c", f"{PROBE}raise SystemExit(not works)"]
    try:
        answer = ask(command, wall_s=PROBE_WALL_S, environment=environment)
    except OSError as error:
        raise RuntimeUnavailable(f"{python} can no longer be started: {error.strerror}.") from None
    if answer.code != 0:
        said = "no answer" if answer.code is None else answer.last_words
        raise _loss(lease, f"no longer works, by a trial of the grader's own: {said}")


def _loss(lease: Lease, what: str) -> RuntimeUnavailable:
    """The error of a GPU that is lost; the next lease of this process is of another."""
    _lost[lease.uuid] = f"GPU {lease.index} ({lease.uuid}) {what}"
    return RuntimeUnavailable(_lost[lease.uuid])
