"""How each tool grades the class: its commands for so many workers, and where it writes the points."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from abc import abstractmethod
from pathlib import Path

from grader.errors import InfrastructureError, UsageError
from tests.rivals import counted, notebooks
from tests.rivals.counted import Cost
from tests.small import grade_command

HERE = Path(__file__).parent
LOCK = HERE / "requirements.lock"
ROOT = HERE.parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # as this grader's sandboxes have it
Commands = list[list[list[str]]]  # for each worker, one after another


class Tool:
    """One way to grade the class."""

    name = ""

    def __init__(self, folder: Path, copies: int, venv: Path) -> None:
        """Write the class in this tool's format into a folder of its own."""
        self.copies, self.venv = copies, venv
        self.template, self.place = folder / "template", folder / "run"
        self.template.mkdir(parents=True)
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """What is done once for an assignment, and is not measured."""

    @abstractmethod
    def commands(self, workers: int) -> Commands:
        """What grades the class in `place`, a fresh copy of the template."""

    def points(self) -> dict[str, float]:
        """By student, as the tool has written them; empty for a floor, which grades nothing."""
        return {}

    def halves(self, workers: int) -> list[list[str]]:
        """The students of each worker."""
        students = notebooks.students(self.copies)
        return [students[i::workers] for i in range(workers)]

    @property
    def environment(self) -> dict[str, str]:
        """That of a person who has activated the rivals' environment: they start programs of it by name."""
        return {**ENVIRONMENT, "PATH": f"{self.venv / 'bin'}:{ENVIRONMENT['PATH']}"}

    def bin(self, program: str) -> str:
        """A program of the rivals' environment."""
        return str(self.venv / "bin" / program)

    def require(self, folder: Path, program: str, *arguments: str) -> None:
        """Run one of their programs, which must succeed. Raises InfrastructureError."""
        _require([self.bin(program), *arguments], folder, self.environment)

    def run(self, workers: int) -> Cost:
        """Grade the class once. Raises InfrastructureError if a command fails."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.template, self.place)
        return counted.run(self.commands(workers), self.place, self.environment)


class Grader(Tool):
    """The whole command: it proves the sandbox, grades, and writes the gradebook and every student's page."""

    name = "grader grade"

    @property
    def environment(self) -> dict[str, str]:
        return {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}

    def prepare(self) -> None:
        notebooks.for_grader(self.template, self.copies)

    def commands(self, workers: int) -> Commands:
        return [[grade_command(self.place, "out", "--jobs", str(workers))]]

    def points(self) -> dict[str, float]:
        return _scores(self.place / "out" / "grades.csv")


class NbGrader(Tool):
    """It has no option for workers: two are two processes, each with the half of the class that a pattern names."""

    name = "nbgrader autograde"

    def prepare(self) -> None:
        notebooks.for_nbgrader(self.template, self.copies)
        self.require(self.template, "nbgrader", "generate_assignment", notebooks.HOMEWORK)

    def commands(self, workers: int) -> Commands:
        autograde = [self.bin("nbgrader"), "autograde", notebooks.HOMEWORK, "--log-level=ERROR"]
        return [[[*autograde, f"--student={pattern}"]] for pattern in (["*"] if workers == 1 else ["a*", "b*"])]

    def points(self) -> dict[str, float]:
        self.require(self.place, "nbgrader", "export", "--to", "grades.csv")
        return _scores(self.place / "grades.csv")


class OtterRun(Tool):
    """`otter grade` is this in containers, and needs Docker; `otter run` takes one notebook."""

    name = "otter run"

    def prepare(self) -> None:
        notebooks.for_otter(self.template, self.copies)
        self.require(self.template, "otter", "generate", "-t", "tests", "-o", "autograder.zip")

    def commands(self, workers: int) -> Commands:
        return [
            [[self.bin("otter"), "run", "--no-logo", "-o", self._out(name), self._notebook(name)] for name in half]
            for half in self.halves(workers)
        ]

    def points(self) -> dict[str, float]:
        found = {}
        for name in notebooks.students(self.copies):
            tests = json.loads(Path(self._out(name), "results.json").read_text())["tests"]
            found[name] = float(sum(test.get("score", 0) for test in tests))
        return found

    def _out(self, name: str) -> str:
        out = self.place / "out" / name
        out.mkdir(parents=True, exist_ok=True)
        return str(out)

    def _notebook(self, name: str) -> str:
        return f"submitted/{name}.ipynb"


class OtterApi(OtterRun):
    """`otter.api.grade_submission`: one process for each worker, which imports Otter once."""

    name = "otter api"

    def commands(self, workers: int) -> Commands:
        loop = [self.bin("python"), str(HERE / "otter_loop.py"), "autograder.zip", self._out("")]
        return [[[*loop, *(self._notebook(name) for name in half)]] for half in self.halves(workers)]

    def points(self) -> dict[str, float]:
        out = Path(self._out(""))
        return {name: float(json.loads((out / f"{name}.json").read_text())) for name in notebooks.students(self.copies)}


class Script(Tool):
    """A floor: `python script.py` for each notebook, with the same cells and checks; it gives no points."""

    name = "script"

    def prepare(self) -> None:
        for number, name in enumerate(notebooks.students(self.copies)):
            (self.template / f"{name}.py").write_text(notebooks.script(number))

    def commands(self, workers: int) -> Commands:
        return [[[sys.executable, f"{name}.py"] for name in half] for half in self.halves(workers)]


class Fork(Script):
    """The floor: a fork of a process that has imported MXNet; no kernel, no sandbox, no record."""

    name = "fork"

    def commands(self, workers: int) -> Commands:
        forking = [sys.executable, str(HERE / "forking.py")]
        return [[[*forking, *(f"{name}.py" for name in half)]] for half in self.halves(workers)]


TOOLS: tuple[type[Tool], ...] = (Grader, NbGrader, OtterRun, OtterApi, Script, Fork)


def environment_in(cache: Path) -> Path:
    """The rivals' own virtual environment, made once for each lock file. Raises UsageError, InfrastructureError."""
    if sys.version_info[:2] != (3, 11):
        raise UsageError("the rivals are pinned for Python 3.11: run this with one.")
    venv = cache / f"venv-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    if not (venv / ".ready").exists():
        shutil.rmtree(venv, ignore_errors=True)
        print(f"Installing nbgrader and otter-grader into {venv} (once; about 1 GB)", file=sys.stderr)
        _require([sys.executable, "-m", "venv", "--without-pip", str(venv)], ROOT)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(venv / "bin" / "python")]
        _require([*pip, "install", "-q", "--require-hashes", "-r", str(LOCK)], ROOT)
        (venv / ".ready").touch()
    return venv


def _require(command: list[str], folder: Path, environment: dict[str, str] = ENVIRONMENT) -> None:
    """Run what must succeed. Raises InfrastructureError with what it said."""
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        said = " ".join(done.stdout.split())[-1000:]
        raise InfrastructureError(f"{' '.join(command)} in {folder} ended with {done.returncode}: {said}")


def _scores(path: Path) -> dict[str, float]:
    with path.open(newline="") as file:
        return {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
