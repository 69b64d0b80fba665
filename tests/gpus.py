"""A machine with GPUs that are none: a script in place of nvidia-smi, and files in place of device nodes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from grader.sandbox import lease

AMPERE = "0, GPU-aaaa-1, NVIDIA A10, 8.6, 23028, 535.104.05"
TURING = "1, GPU-bbbb-2, Tesla T4, 7.5, 15360, 535.104.05"
HOPPER = "0, GPU-cccc-3, NVIDIA H200, 9.0, 143771, 550.54.15"


class FakeMachine:
    """Says what a test wants where nvidia-smi is asked; `/dev` lies in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = folder / "root"  # which the uid that runs notebooks can enter, as it can the real /dev
        self.bin = folder / "bin"
        for made in (self.root / "dev", self.bin):
            made.mkdir(parents=True)
        monkeypatch.setenv("PATH", f"{self.bin}:{os.environ['PATH']}")
        monkeypatch.setenv("GRADER_CACHE", str(folder / "cache"))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(lease, "ROOT", self.root)
        monkeypatch.setattr(lease, "_lost", {})
        for name in ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia0", "nvidia1"):
            (self.root / "dev" / name).symlink_to("/dev/null")

    def script(self, body: str, program: str = "nvidia-smi") -> None:
        (self.bin / program).write_text(f"#!/bin/sh\n{body}\n")
        (self.bin / program).chmod(0o755)

    def gpus(self, *lines: str) -> None:
        """nvidia-smi lists these from now on."""
        self.script("".join(f"echo '{line}'\n" for line in lines))


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMachine]:
    """A machine with an A10 and a T4."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        fake = FakeMachine(Path(folder), monkeypatch)
        fake.gpus(AMPERE, TURING)
        yield fake
