"""Which GPUs a machine has, and which of them MXNet 1.9.1 can use; nvidia-smi is a script, all else is real."""

from __future__ import annotations

import os
import signal
import time

import pytest

from grader.errors import RuntimeUnavailable
from grader.sandbox import child
from grader.sandbox.devices import Gpu, can_run, find_gpus, granted, usable_gpus
from tests.gpus import AMPERE, HOPPER, TURING, FakeMachine


def gpu(capability: str = "8.6", driver: str = "535.104.05") -> Gpu:
    major, minor = map(int, capability.split("."))
    return Gpu(index=0, uuid="GPU-1", name="G", capability=(major, minor), memory_bytes=None, driver=driver)


def test_what_nvidia_smi_lists_is_read(gpu_machine: FakeMachine) -> None:
    """Index, uuid, name, capability, memory in bytes and driver; memory that is not known is unknown, not zero."""
    gpu_machine.gpus(AMPERE, "1, GPU-d, NVIDIA GB10, 12.1, [N/A], 580.65.06")
    first, second = find_gpus()
    assert (first.index, first.uuid, first.name, first.compute) == (0, "GPU-aaaa-1", "NVIDIA A10", "8.6")
    assert (first.memory_bytes, first.driver) == (23028 << 20, "535.104.05")
    assert (second.compute, second.memory_bytes) == ("12.1", None)


@pytest.mark.parametrize("body", ["exit 6", "true"])
def test_a_driver_without_a_gpu_is_no_error(gpu_machine: FakeMachine, body: str) -> None:
    """The driver may be installed where there is no GPU: then there is none, and nothing is wrong."""
    gpu_machine.script(body)
    assert find_gpus() == ()
    with pytest.raises(RuntimeUnavailable, match="no GPU"):
        usable_gpus()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            'echo "NVIDIA-SMI has failed because it couldn\'t communicate with the NVIDIA driver."; exit 9',
            "communicate",
        ),
        ("echo 'Field \"compute_cap\" is not a valid field to query.' >&2; exit 2", "not a valid field"),
        ("echo 'Unable to determine the device handle for GPU 0'", "cannot be read"),
        ("echo '0, GPU-1, A10, eight, 1, 535'", "cannot be read"),
    ],
)
def test_a_broken_driver_says_what_it_said(gpu_machine: FakeMachine, body: str, sentence: str) -> None:
    """A driver that fails, is too old for the question, or writes something else is a fault of the machine's."""
    gpu_machine.script(body)
    with pytest.raises(RuntimeUnavailable, match=sentence):
        find_gpus()


def test_a_hung_driver_does_not_hang_the_grader(gpu_machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer in time is said to be none, also when the child cannot be killed, as in a driver's system call."""
    gpu_machine.script("exec sleep 60")
    kill, groups = os.killpg, []
    monkeypatch.setattr(child.os, "killpg", lambda group, _: groups.append(group))  # SIGKILL waits for the driver
    monkeypatch.setattr(child, "KILL_GRACE_S", 0.1)
    started = time.monotonic()
    try:
        with pytest.raises(RuntimeUnavailable, match=r"no answer: nvidia-smi did not end in 0.3 s"):
            find_gpus(wall_s=0.3)
        assert time.monotonic() - started < 5
    finally:
        kill(groups[0], signal.SIGKILL)
        child._stuck.pop().wait()


@pytest.mark.parametrize(
    "capability", ["5.0", "5.2", "5.3", "6.0", "6.1", "6.2", "7.0", "7.2", "7.5", "8.0", "8.6", "8.9"]
)
def test_maxwell_to_ada_can_run_mxnet(capability: str) -> None:
    """There is native code of the same major and of no higher minor capability."""
    assert can_run(gpu(capability)) == ""


@pytest.mark.parametrize(
    ("capability", "whose"),
    [
        ("9.0", "Hopper and later"),
        ("10.0", "Hopper and later"),
        ("12.1", "Hopper and later"),
        ("3.7", "older than Max"),
    ],
)
def test_others_cannot_and_the_sentence_says_why(capability: str, whose: str) -> None:
    """Without code for a GPU and without PTX there is no kernel image."""
    reason = can_run(gpu(capability))
    assert whose in reason
    assert f"no kernel image for {capability}" in reason


def test_each_build_needs_its_driver() -> None:
    """CUDA 11.7 needs driver 515, CUDA 11.2 needs 450.80; versions are compared as numbers."""
    assert can_run(gpu(driver="515.43.04")) == ""
    assert "needs driver 515 or later, and this is 510.108.03" in can_run(gpu(driver="510.108.03"))
    assert can_run(gpu(driver="450.80.02"), "mxnet-cu112") == ""
    assert "needs driver 450.80 or later" in can_run(gpu(driver="450.9.1"), "mxnet-cu112")


def test_a_job_schedulers_choice_is_kept(gpu_machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES names GPUs by index or uuid; others belong to somebody else's job."""
    for chosen, indices in (("1", [1]), ("GPU-aaaa", [0]), ("0,1", [0, 1]), ("", []), ("-1", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert [each.index for each in granted(find_gpus())] == indices
    with pytest.raises(RuntimeUnavailable, match="CUDA_VISIBLE_DEVICES"):
        usable_gpus()


def test_what_was_found_is_said_when_nothing_can_be_used(gpu_machine: FakeMachine) -> None:
    """A machine with an H200 only has no usable GPU; one with a T4 as well has the T4."""
    gpu_machine.gpus(HOPPER)
    with pytest.raises(RuntimeUnavailable, match=r"NVIDIA H200: Hopper and later cannot run MXNet 1\.9\.1"):
        usable_gpus()
    gpu_machine.gpus(HOPPER, TURING)
    assert [each.name for each in usable_gpus()] == ["Tesla T4"]
