"""A small assignment folder: one check, one profile, whatever else a test asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

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
