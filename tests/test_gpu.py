"""GPU profiles without a GPU: real sandboxes, real grading, device nodes that are none, refusals that say why."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from grader.bench import Bench, set_up
from grader.cli import machine
from grader.cli.root import app
from grader.config import load_assignment
from grader.disclose import CPU_INSTEAD
from grader.errors import InfrastructureError, RuntimeUnavailable
from grader.intake import collect
from grader.pipeline import grade_submission
from grader.sandbox import lease as leases
from grader.sandbox.bridge import Session, StudentError
from grader.sandbox.devices import find_gpus
from grader.sandbox.lease import leased
from grader.sandbox.selftest import PROMISES, trouble
from grader.sandbox.student import Student
from grader.sandbox.tiers import UID, candidates, why_not
from grader.sandbox.wire import is_gpu_memory
from grader.terminal import console, gpu_table
from grader.types import Outcome, Status
from tests.conftest import LIMITS, notebook_of
from tests.gpus import AMPERE, HOPPER, FakeMachine
from tests.small import folder_with

REPOSITORY = Path(__file__).parents[1]
CUDA_OUT_OF_MEMORY = "[10:42:17] src/storage/./pooled_storage_manager.h:187: cudaMalloc retry failed: out of memory"
LOOK = "import os\nseen = sorted(n for n in os.listdir('/dev') if n.startswith('nvidia'))\nenv = dict(os.environ)"


@pytest.fixture(scope="module")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another interpreter, which finds the packages of the grader's."""
    folder = tmp_path_factory.mktemp("runtime")
    folder.chmod(0o755)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (next(folder.glob("lib/python3*/site-packages")) / "packages.pth").write_text(sysconfig.get_path("purelib"))
    return str(folder / "bin" / "python")


@pytest.mark.parametrize("tier", [tier for tier in candidates() if tier != UID and not why_not(tier)])
def test_a_notebook_sees_the_gpu_that_was_leased_and_no_other(gpu_machine: FakeMachine, tier: str) -> None:
    """In every sandbox with folders of its own: there is no node of the other, and none at all without a lease.

    Without a mount namespace every node that all users may open is there.
    """
    opened = "ok = [open(f'/dev/{name}', 'rb').read(1) for name in seen]"
    with (
        leased(sys.executable) as lease,
        Session(
            notebook=notebook_of(LOOK, opened), files={}, environment={}, limits=LIMITS, tier=tier, lease=lease
        ) as session,
    ):
        assert session.execute().outcome is Outcome.PASSED
        student = Student(session, "")
        assert student.get("seen") == ["nvidia-uvm", "nvidia-uvm-tools", "nvidia0", "nvidiactl"]
        inside = student.get("env")
        assert (inside["CUDA_VISIBLE_DEVICES"], inside["NVIDIA_TF32_OVERRIDE"]) == ("GPU-aaaa-1", "0")
        assert (inside["GRADER_DEVICE"], student.device) == ("gpu", "gpu")
    with Session(notebook=notebook_of(LOOK), files={}, environment={}, limits=LIMITS, tier=tier) as session:
        session.execute()
        student = Student(session, "")
        assert (student.get("seen"), student.device) == ([], "cpu")
        assert "CUDA_VISIBLE_DEVICES" not in student.get("env")


def test_a_notebook_runs_on_the_interpreter_that_is_named(
    other_python: str, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel is the other interpreter, MXNet works there, and its version need not be that of the grader's."""
    monkeypatch.setattr(sys, "version", "3.10.99 (the grader's own)")
    cells = ("import sys, mxnet\nwhere = sys.executable, sys.prefix", "def f(x): return (x * 2)")
    with Session(
        notebook=notebook_of(*cells), files={}, environment={}, limits=LIMITS, tier=tier, python=other_python
    ) as session:
        execution = session.execute()
        assert execution.outcome is Outcome.PASSED, execution.message
        student = Student(session, "")
        assert student.get("where") == (other_python, str(Path(other_python).parents[1]))
        assert student.f(2.0) == 4.0


def test_a_gpu_that_mxnet_cannot_use_in_the_sandbox_is_found_before_any_grading(
    gpu_machine: FakeMachine, tier: str
) -> None:
    """The trial is a notebook of ours in the real sandbox: here MXNet has no code for GPUs, and says so."""
    with leased(sys.executable) as lease:
        assert "MXNetError" in trouble(tier, sys.executable, lease)


@pytest.mark.parametrize(
    ("kind", "text", "is_lack"),
    [
        ("MXNetError", CUDA_OUT_OF_MEMORY, True),
        ("MXNetError", "Check failed: e == cudaSuccess: CUDA: out of memory", True),
        ("MXNetError", "cuDNN: CUDNN_STATUS_ALLOC_FAILED", True),
        ("MXNetError", "Check failed: err == cudaSuccess: CUDA: unspecified launch failure", False),
        ("MXNetError", "out of memory", False),
        ("RuntimeError", CUDA_OUT_OF_MEMORY, False),
    ],
)
def test_a_lack_of_gpu_memory_is_told_by_type_and_message(kind: str, text: str, is_lack: bool) -> None:
    """MXNet's own exception with the words of cudaMalloc, cuDNN or cuBLAS; other errors keep their names."""
    assert is_gpu_memory(kind, text) == is_lack


def test_gpu_memory_has_an_outcome_of_its_own(start: Any) -> None:
    """In a cell and in a call, each with its sentence; what is only printed says nothing; a dead kernel says more."""
    fails = f"from mxnet.base import MXNetError\ndef f(): raise MXNetError({CUDA_OUT_OF_MEMORY!r})"
    assert start(fails, "f()", "import os; os.kill(os.getpid(), 9)").execute().outcome is Outcome.KERNEL_DIED
    session = start(fails, f"print({CUDA_OUT_OF_MEMORY!r})", "f()")
    execution = session.execute()
    assert execution.outcome is Outcome.GPU_MEMORY_EXCEEDED
    assert execution.message == "Code cell 3 ran out of GPU memory."
    with pytest.raises(StudentError, match=r"^The code ran out of GPU memory\.$") as caught:
        Student(session, "").f()
    assert caught.value.outcome is Outcome.GPU_MEMORY_EXCEEDED


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ["no GPU: grading runs on the CPU"]),
        ([HOPPER], ["NVIDIA H200", "9.0", "550.54.15", "Hopper and later", "no GPU that MXNet can use"]),
        ([AMPERE], ["NVIDIA A10", "8.6", "mxnet-cu117==1.9.1", "nvidia-cudnn-cu11==8.5.0.96", "LD_LIBRARY_PATH"]),
    ],
    ids=["none", "Hopper", "Ampere"],
)
def test_doctor_says_what_mxnet_can_use(gpu_machine: FakeMachine, lines: list[str], words: list[str]) -> None:
    """Name, capability and driver, why not if not, and what to install if so."""
    gpu_machine.gpus(*lines)
    with console.capture() as captured:
        gpu_table(find_gpus())
    shown = " ".join(captured.get().replace("│", " ").split())
    for word in words:
        assert word in shown


def test_doctor_needs_no_gpu(gpu_machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that hangs or fails is said, and the machine can grade all the same: exit 0."""
    monkeypatch.setattr(machine, "prove", lambda tier, warm=False: dict.fromkeys(PROMISES, True))
    gpu_machine.script("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0
    assert "GPU: nvidia-smi failed (Failed to initialize NVML" in done.output


# -- grading -------------------------------------------------------------------------------------------------------


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One check, one student who passes it, and a profile that asks for a GPU."""
    (tmp_path / "assignment").mkdir()
    profile = {"name": "gpu", "device": "gpu", "train_chars": None, "test_chars": 2000, "held_out_chars": 2000}
    profile |= {"time_budget_s": 60, "lanes": 4, "curves": []}
    folder_with(tmp_path / "assignment", profiles=[profile], corpus="time-machine")
    (tmp_path / "assignment" / "checks" / "test_f.py").write_text(
        "import pytest\n\n@pytest.mark.check('f')\ndef test_f(student):\n    assert student.f(2) == 4\n"
    )
    (tmp_path / "text.txt").write_text("abcdefghijklmnopqrstuvwxyz " * 6700)
    (tmp_path / "class" / "ada").mkdir(parents=True)
    (tmp_path / "class" / "ada" / "homework.ipynb").write_bytes(notebook_of("def f(x): return 2 * x"))
    monkeypatch.setenv("GRADER_CACHE", str(tmp_path / "cache"))
    return tmp_path


def grade(course: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "grader.cli", "grade", str(course / "class"), "-o", str(course / "out")]
    command += ["--assignment", str(course / "assignment"), "--profile", "gpu", "--jobs", "1"]
    command += ["--corpus-file", str(course / "text.txt"), *options]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=dict(os.environ))


def test_a_gpu_profile_is_refused_where_there_is_no_gpu(course: Path, gpu_machine: FakeMachine) -> None:
    """One sentence says what was found and what to do, exit 3 as with a missing sandbox; nothing is graded."""
    gpu_machine.gpus(HOPPER)
    done = grade(course)
    assert done.returncode == 3
    assert "NVIDIA H200: Hopper and later cannot run MXNet 1.9.1" in done.stderr
    assert "--allow-cpu" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (course / "out" / "grades.csv").exists()


def test_on_the_cpu_by_choice_every_report_says_so(course: Path) -> None:
    """With --allow-cpu it is graded; the page, Gradescope's file, the leaderboard and the gradebook say how."""
    done = grade(course, "--allow-cpu")
    assert done.returncode == 0, done.stderr
    assert "Notebooks run on the CPU" in done.stdout
    out = course / "out"
    with (out / "grades.csv").open() as file:
        assert [row["score"] for row in csv.DictReader(file)] == ["2.0"]
    assert CPU_INSTEAD in (out / "feedback" / "ada.html").read_text()
    assert CPU_INSTEAD in (out / "leaderboard.html").read_text()
    assert CPU_INSTEAD in json.loads((out / "results" / "ada.json").read_text())["output"]


def bench_with_gpu(course: Path, tier: str) -> Bench:
    assignment = load_assignment(course / "assignment")
    return set_up(assignment, assignment.profile("gpu"), tier, str(course / "text.txt"), device="gpu")


def test_a_gpu_that_is_lost_is_nobodys_fault(course: Path, gpu_machine: FakeMachine, tier: str) -> None:
    """With the GPU there, the notebook is graded on it; when the driver lists it no longer, no verdict is believed."""
    submission = collect(course / "class", course / "work")[0]
    bench = bench_with_gpu(course, tier)
    graded = grade_submission(submission, bench)
    assert (graded.status, graded.score, graded.cpu_instead) == (Status.GRADED, 2.0, False)
    gpu_machine.script('test -e "$0.asked" && exit 0; touch "$0.asked"; echo \'0, GPU-aaaa-1, A10, 8.6, 1, 535.1\'')
    with pytest.raises(InfrastructureError, match="was lost while a notebook ran"):
        grade_submission(submission, bench)


def test_who_is_to_blame_for_a_cuda_error_is_decided_by_a_trial_of_ours(
    course: Path, gpu_machine: FakeMachine, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook says that its GPU broke, and code of ours, outside the sandbox, fails as well: a fault of ours."""
    cell = "from mxnet.base import MXNetError\nraise MXNetError('CUDA: unspecified launch failure')"
    (course / "class" / "ada" / "homework.ipynb").write_bytes(notebook_of("def f(x): return 2 * x", cell))
    monkeypatch.setattr(leases, "PROBE", "works = False\n")
    with pytest.raises(RuntimeUnavailable, match=r"GPU 0 .* no longer works, by a trial of the grader's own"):
        grade_submission(collect(course / "class", course / "work")[0], bench_with_gpu(course, tier))


def test_a_notebook_without_gpu_memory_has_a_status_and_a_sentence(
    course: Path, gpu_machine: FakeMachine, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU works when it is tried: the student's fault, with the points for what the checks can still ask."""
    cell = f"from mxnet.base import MXNetError\nraise MXNetError({CUDA_OUT_OF_MEMORY!r})"
    (course / "class" / "ada" / "homework.ipynb").write_bytes(notebook_of("def f(x): return 2 * x", cell))
    monkeypatch.setattr(leases, "PROBE", "works = True\n")
    graded = grade_submission(collect(course / "class", course / "work")[0], bench_with_gpu(course, tier))
    assert (graded.status, graded.score) == (Status.MEMORY_EXCEEDED, 2.0)
    assert graded.message == "Code cell 2 ran out of GPU memory."


def test_the_interpreter_of_a_profile_runs_its_notebooks(course: Path, other_python: str, tier: str) -> None:
    """`runtime` names it, for all profiles or for one; on the CPU instead of a GPU the grader's own is taken."""
    (course / "class" / "ada" / "homework.ipynb").write_bytes(
        notebook_of(f"import sys\ndef f(x): return 2 * x if sys.executable == {other_python!r} else sys.executable")
    )
    path = course / "assignment" / "assignment.yaml"
    path.write_text(path.read_text().replace("device: gpu", "device: cpu") + f"runtime: {{python: {other_python}}}\n")
    assignment = load_assignment(course / "assignment")
    bench = set_up(assignment, assignment.profile("gpu"), tier, str(course / "text.txt"))
    submission = collect(course / "class", course / "work")[0]
    assert grade_submission(submission, bench).checks[0].outcome is Outcome.PASSED
    wants_gpu = dataclasses.replace(bench, profile=dataclasses.replace(bench.profile, device="gpu"))
    assert (wants_gpu.cpu_instead, wants_gpu.python) == (True, sys.executable)
