"""The GPUs of this machine, and whether MXNet 1.9.1 can use them.

The CUDA builds of MXNet 1.9.1 hold native code for compute capabilities 5.0, 6.0, 7.0, 8.0 and 8.6 and no PTX. Native
code for X.y runs on a GPU of capability X.z with z >= y, and on no other X (CUDA C++ Programming Guide, "Binary
Compatibility"): 7.5 runs the code for 7.0 and 8.9 that for 8.6, while 3.x and 9.0 have none. NVIDIA promises that for
its graphics cards; for systems on a chip (5.3, 6.2, 7.2, 8.7) only a trial can say.
"""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import dataclass

from grader.errors import RuntimeUnavailable
from grader.sandbox.child import Answer, ask

NATIVE = ((5, 0), (6, 0), (7, 0), (8, 0), (8, 6))
DRIVERS = {"mxnet-cu117": (515,), "mxnet-cu112": (450, 80)}  # by build, the oldest driver
BUILD = "mxnet-cu117"
# The CUDA libraries that the build loads and does not declare.
LIBRARIES = (
    "nvidia-cudnn-cu11==8.5.0.96",
    "nvidia-cublas-cu11==11.10.3.66",
    "nvidia-cuda-runtime-cu11==11.7.99",
    "nvidia-cuda-nvrtc-cu11==11.7.99",
    "nvidia-cufft-cu11==10.7.2.91",
    "nvidia-curand-cu11==10.2.10.91",
    "nvidia-cusolver-cu11==11.4.0.1",
    "nvidia-cusparse-cu11==11.7.4.91",
    "nvidia-nccl-cu11==2.14.3",
    "nvidia-nvtx-cu11==11.7.91",
)
FIELDS = ("index", "uuid", "name", "compute_cap", "memory.total", "driver_version")
NO_DEVICES = 6  # exit status of nvidia-smi where there is a driver and no GPU
SMI_WALL_S = 20.0  # it answers in one second; after a fresh start, without persistence mode, in several


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as the driver describes it."""

    index: int  # nvidia-smi's
    uuid: str
    name: str
    capability: tuple[int, int]
    memory_bytes: int | None  # None: the driver does not say, as where GPU and CPU share their memory
    driver: str

    @property
    def compute(self) -> str:
        """The compute capability, `8.6`."""
        return f"{self.capability[0]}.{self.capability[1]}"


def find_gpus(wall_s: float = SMI_WALL_S) -> tuple[Gpu, ...]:
    """All GPUs of this machine; none where there is no driver. Raises RuntimeUnavailable if the driver is no help."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        answer = ask([program, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"], wall_s=wall_s)
    except OSError as error:
        raise RuntimeUnavailable(f"{program} cannot be started: {error.strerror}.") from None
    if answer.code is None:
        raise RuntimeUnavailable(
            f"no answer: nvidia-smi did not end in {wall_s:g} s, so the driver hangs; restart the machine."
        )
    if answer.code == NO_DEVICES:
        return ()
    if answer.code:
        raise RuntimeUnavailable(f"nvidia-smi failed ({answer.last_words}): repair or update the driver.")
    return _parsed(answer)


def _parsed(answer: Answer) -> tuple[Gpu, ...]:
    found = []
    for row in csv.reader(answer.out.splitlines(), skipinitialspace=True):
        try:
            index, uuid, name, compute, memory, driver = (cell.strip() for cell in row)
            major, minor = map(int, compute.split("."))
            size = int(memory) << 20 if memory.isdigit() else None
            gpu = Gpu(
                index=int(index), uuid=uuid, name=name, capability=(major, minor), memory_bytes=size, driver=driver
            )
        except ValueError:
            raise RuntimeUnavailable(
                f"nvidia-smi described a GPU in a way that cannot be read ({', '.join(row)[:200]}): update the driver."
            ) from None
        found.append(gpu)
    return tuple(found)


def can_run(gpu: Gpu, build: str = BUILD) -> str:
    """Why a build of MXNet 1.9.1 cannot run on a GPU, in one sentence; empty if nothing is known against it."""
    major, minor = gpu.capability
    if not any(major == code[0] and minor >= code[1] for code in NATIVE):
        whose = "Hopper and later" if major >= 9 else "GPUs older than Maxwell" if major < 5 else "This GPU"
        return (
            f"{whose} cannot run MXNet 1.9.1: its builds have code for compute capability 5.0 to 8.9 and no PTX, so "
            f"there is no kernel image for {gpu.compute}."
        )
    needed = DRIVERS[build]
    if _numbers(gpu.driver) < needed:
        return f"{build} needs driver {'.'.join(map(str, needed))} or later, and this is {gpu.driver}: update it."
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    """`535.104.05` as numbers; none of what is no number."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def granted(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """Those that this process may use: CUDA_VISIBLE_DEVICES, as a job scheduler sets it, names them, or is not set."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return gpus
    names = [name.strip() for name in chosen.split(",")]
    return tuple(
        gpu for gpu in gpus if any(name and (name == str(gpu.index) or gpu.uuid.startswith(name)) for name in names)
    )


def usable_gpus() -> tuple[Gpu, ...]:
    """The GPUs that notebooks can run on. Raises RuntimeUnavailable, with what was found, if there is none."""
    found = find_gpus()
    mine = granted(found)
    usable = tuple(gpu for gpu in mine if not can_run(gpu))
    if usable:
        return usable
    if not found:
        raise RuntimeUnavailable("this machine has no GPU.")
    if not mine:
        raise RuntimeUnavailable("CUDA_VISIBLE_DEVICES keeps every GPU of this machine from the grader.")
    raise RuntimeUnavailable("; ".join(f"{gpu.name}: {can_run(gpu)}" for gpu in mine))
