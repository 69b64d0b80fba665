"""A small assignment folder: one check, one profile, whatever else a test asks for."""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import notebook_of

CHECK = """
import pytest

@pytest.mark.check("f")
def test_f(student):
    assert student.f(2) == 4, "f(2) should be 4"
"""
LIMITS = {
    "notebook_cpu_s": 10,
    "notebook_wall_s": 30,
    "check_wall_s": 2,
    "total_wall_s": 60,
    "memory_bytes": 1 << 30,
    "output_bytes": 1 << 20,
    "file_bytes": 16 << 20,
    "processes": 64,
    "open_files": 256,
}


def folder_with(tmp_path: Path, *, curves: bool = True, **changes: Any) -> Path:
    """A minimal assignment folder; a change of None takes the entry away. Without curves no model is scored."""
    curve = {"model": "rnn", "credit": [[2.8, 0], [2.0, 4]]}
    raw: dict[str, Any] = {
        "name": "hw",
        "title": "Homework",
        "corpus": "shakespeare-plays",
        "seed": 7,
        "limits": LIMITS,
        "checks": [{"id": "f", "title": "F", "points": 2, "hidden": True, "hint": "Look."}],
        "profiles": [
            {
                "name": "smoke",
                "train_chars": None,
                "test_chars": 100,
                "held_out_chars": 100,
                "time_budget_s": 60,
                "lanes": 4,
                "curves": [curve] if curves else [],
            }
        ],
    }
    raw.update(changes)
    (tmp_path / "checks").mkdir(exist_ok=True)
    (tmp_path / "checks" / "stubs.py").write_text("")
    kept = {key: value for key, value in raw.items() if value is not None}
    (tmp_path / "assignment.yaml").write_text(yaml.safe_dump(kept))
    return tmp_path


CLASS = {
    "right": "def f(x): return 2 * x",
    "slow": "import time; time.sleep(3)\ndef f(x): return x + x",
    "wrong": "def f(x): return x",
}


def course_in(folder: Path, notebooks: Mapping[str, str] = CLASS) -> Path:
    """An assignment with one check, a text of random letters, and a class: one cell for each student."""
    (folder / "assignment").mkdir()
    folder_with(folder / "assignment", corpus="time-machine", curves=False)
    (folder / "assignment" / "checks" / "test_f.py").write_text(CHECK)
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz ", k=180_000)
    (folder / "text.txt").write_text("".join(letters))
    for name, source in notebooks.items():
        (folder / "submitted" / name).mkdir(parents=True)
        (folder / "submitted" / name / "homework.ipynb").write_bytes(notebook_of(source))
    return folder


def grade_command(course: Path, out: str, *more: str) -> list[str]:
    """What grades such a class into one of its folders."""
    arguments = [str(course / "submitted"), "-o", str(course / out), "--assignment", str(course / "assignment")]
    options = ["--profile", "smoke", "--corpus-file", str(course / "text.txt"), *more]
    return [sys.executable, "-m", "grader.cli", "grade", *arguments, *options]


def scores(course: Path, out: str) -> dict[str, str]:
    """By student, the score in grades.csv."""
    with (course / out / "grades.csv").open(newline="") as file:
        return {row["student_id"]: row["score"] for row in csv.DictReader(file)}
