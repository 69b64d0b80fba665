"""Who has a GPU, and what a sandbox gets of it; nvidia-smi and the device nodes are made up, locks are real."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from grader.errors import RuntimeUnavailable
from grader.sandbox import lease, tiers
from grader.sandbox.lease import Lease, leased, require_present, require_working
from grader.sandbox.limits import CUDA_DATA_BYTES, rlimits
from tests.conftest import LIMITS
from tests.gpus import AMPERE, TURING, FakeMachine

HOLD = """
import sys
from pathlib import Path
from grader.sandbox import lease
lease.ROOT = Path(sys.argv[1])
with lease.leased(sys.executable) as held:
    print(held.index, flush=True)
    sys.stdin.read()
"""


def a_lease(gpu_machine: FakeMachine) -> Lease:
    with leased(sys.executable) as held:
        return held


def test_a_lease_is_of_one_gpu(gpu_machine: FakeMachine) -> None:
    """Its own device node and those that all GPUs share, its name for CUDA, and float32 as float32."""
    held = a_lease(gpu_machine)
    inside = sorted(inner for _, inner in held.nodes)
    assert inside == ["/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia0", "/dev/nvidiactl"]
    assert held.environment["CUDA_VISIBLE_DEVICES"] == held.uuid == "GPU-aaaa-1"
    assert held.environment["NVIDIA_TF32_OVERRIDE"] == "0"


def test_the_device_node_is_the_drivers_number_and_not_nvidia_smis(gpu_machine: FakeMachine) -> None:
    """In a container with one of two GPUs, nvidia-smi counts from 0 and the node is /dev/nvidia1."""
    gpu_machine.gpus(TURING.replace("1, GPU", "0, GPU"))
    about = gpu_machine.root / "proc/driver/nvidia/gpus/0000:65:00.0"
    about.mkdir(parents=True)
    (about / "information").write_text("Model: \t\t Tesla T4\nGPU UUID: \t GPU-bbbb-2\nDevice Minor: \t 1\n")
    assert "/dev/nvidia1" in dict(a_lease(gpu_machine).nodes).values()
    assert "/dev/nvidia0" not in dict(a_lease(gpu_machine).nodes).values()


def test_a_missing_device_node_is_said(gpu_machine: FakeMachine) -> None:
    """nvidia-smi works without /dev/nvidia-uvm and CUDA does not."""
    (gpu_machine.root / "dev/nvidia-uvm").unlink()
    with pytest.raises(RuntimeUnavailable, match=r"/dev/nvidia-uvm .*nvidia-modprobe"):
        a_lease(gpu_machine)


def test_the_drivers_libraries_outside_usr_are_bound(gpu_machine: FakeMachine) -> None:
    """/usr is bound as a whole; of the rest only the driver's libraries of this machine's kind are."""
    listed = """
    libnvidia-ml.so.1 (libc6,x86-64) => /opt/driver/lib/libnvidia-ml.so.1
    libcudart.so.11.0 (libc6,x86-64) => /opt/cuda/lib/libcudart.so.11.0
    libcuda.so.1 (libc6,x86-64) => /opt/driver/lib/libcuda.so.1
    libcuda.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libcuda.so.1
    libcuda.so.1 (libc6) => /opt/driver/lib32/libcuda.so.1
    libc.so.6 (libc6,x86-64) => /lib/x86_64-linux-gnu/libc.so.6"""
    gpu_machine.script(f"cat <<'END'\n{listed}\nEND", program="ldconfig")
    assert a_lease(gpu_machine).libraries == ("/opt/driver/lib/libnvidia-ml.so.1", "/opt/driver/lib/libcuda.so.1")


def test_cuda_libraries_of_the_environment_are_found_by_the_loader(
    gpu_machine: FakeMachine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pip puts each CUDA library into a folder of its own, and MXNet finds them by LD_LIBRARY_PATH."""
    folders = [str(tmp_path / f"nvidia/{name}/lib") for name in ("cublas", "cudnn")]
    monkeypatch.setattr(lease, "cuda_folders", lambda _: tuple(folders))
    assert a_lease(gpu_machine).environment["LD_LIBRARY_PATH"] == ":".join(folders)


def test_every_slot_goes_to_one_holder(gpu_machine: FakeMachine) -> None:
    """GPUs are filled evenly; who comes when all are taken waits until one is given back."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(leased(sys.executable, slots_per_gpu=2)).index for _ in range(4)]
        assert held == [0, 1, 0, 1]
        late: list[int] = []

        def wait() -> None:
            with leased(sys.executable, slots_per_gpu=2) as lease:
                late.append(lease.index)

        waiter = threading.Thread(target=wait)
        waiter.start()
        waiter.join(1)
        assert late == []
    waiter.join(10)
    assert late == [0]


def test_a_process_that_is_killed_gives_its_gpu_back(gpu_machine: FakeMachine) -> None:
    """No lock outlives its holder, however that ended; until then another process gets another GPU."""
    command = [sys.executable, "-c", HOLD, str(gpu_machine.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "0\n"
        assert a_lease(gpu_machine).index == 1
        os.kill(other.pid, signal.SIGKILL)
    assert a_lease(gpu_machine).index == 0


def test_locks_lie_where_no_student_code_can_hold_them(gpu_machine: FakeMachine) -> None:
    """Whoever can open a lock can take it, so the folder is closed to other users."""
    a_lease(gpu_machine)
    assert (gpu_machine.root.parent / "cache" / "gpu").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("tier", [tiers.USER, tiers.ROOT, tiers.NO_USERNS])
def test_each_bubblewrap_binds_the_leased_nodes_and_no_others(gpu_machine: FakeMachine, tier: str) -> None:
    """Nodes are bound before /dev is closed; without a lease there is none."""
    held = a_lease(gpu_machine)
    with_lease = tiers.command(tier, sys.executable, (3, 4), 5, (), held)
    binds = [with_lease[i + 1 : i + 3] for i, word in enumerate(with_lease) if word == "--dev-bind"]
    assert sorted(map(tuple, binds)) == sorted(held.nodes)
    last = max(i for i, word in enumerate(with_lease) if word == "--dev-bind")
    assert last < with_lease.index("--remount-ro")
    assert "--dev-bind" not in tiers.command(tier, sys.executable, (3, 4), 5, ())


@pytest.mark.parametrize("tier", [tiers.UID, tiers.NONE])
def test_without_a_mount_namespace_nothing_is_bound(gpu_machine: FakeMachine, tier: str) -> None:
    """There a GPU is only named, by the environment."""
    held = a_lease(gpu_machine)
    assert tiers.command(tier, sys.executable, (3, 4), 5, (), held) == tiers.command(
        tier, sys.executable, (3, 4), 5, ()
    )


def test_memory_limits_leave_room_for_cuda() -> None:
    """Address space has no limit at all, and CUDA's own private memory comes on top of the notebook's."""
    assert rlimits(LIMITS, gpu=True)["DATA"] == LIMITS.memory_bytes + CUDA_DATA_BYTES
    assert "AS" not in rlimits(LIMITS, gpu=True)
    assert rlimits(LIMITS)["DATA"] == LIMITS.memory_bytes


def test_a_gpu_that_the_driver_no_longer_lists_is_lost(gpu_machine: FakeMachine) -> None:
    """That is a fault of ours, told by the grader's own question; so is a driver that no longer answers."""
    held = a_lease(gpu_machine)
    require_present(held)
    gpu_machine.gpus(TURING)
    with pytest.raises(RuntimeUnavailable, match=r"GPU 0 .* no longer lists it"):
        require_present(held)
    gpu_machine.script("echo 'GPU is lost. Reboot the system to recover this GPU' ; exit 15")
    with pytest.raises(RuntimeUnavailable, match=r"was lost while a notebook ran: .*GPU is lost"):
        require_present(held)


def test_a_gpu_on_which_code_of_ours_fails_is_lost(gpu_machine: FakeMachine) -> None:
    """The trial is a program of ours, outside any sandbox, and gets the leased GPU only."""
    held = a_lease(gpu_machine)
    gpu_machine.script("echo CUDA: unspecified launch failure >&2; exit 1", program="python-gpu")
    with pytest.raises(RuntimeUnavailable, match="trial of the grader's own: CUDA: unspecified launch failure"):
        require_working(held, str(gpu_machine.bin / "python-gpu"))
    gpu_machine.script('test "$CUDA_VISIBLE_DEVICES" = GPU-aaaa-1', program="python-gpu")
    require_working(held, str(gpu_machine.bin / "python-gpu"))
    gpu_machine.gpus(AMPERE.replace("aaaa", "zzzz"))
    with pytest.raises(RuntimeUnavailable, match="no longer lists"):
        require_working(held, str(gpu_machine.bin / "python-gpu"))


def test_a_lost_gpu_is_not_leased_again(gpu_machine: FakeMachine) -> None:
    """What is tried again after a loss goes to another GPU, and where there is none it fails at once."""
    held = a_lease(gpu_machine)
    gpu_machine.script("exit 1", program="python-gpu")
    with pytest.raises(RuntimeUnavailable):
        require_working(held, str(gpu_machine.bin / "python-gpu"))
    assert a_lease(gpu_machine).index == 1
    gpu_machine.gpus(AMPERE)
    with pytest.raises(RuntimeUnavailable, match=r"GPU 0 .* no longer works"):
        a_lease(gpu_machine)
