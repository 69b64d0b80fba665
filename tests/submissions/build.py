"""Builds each example submission: a notebook of its own, or a variant of the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from grader.notebook import read_percent, to_json
from grader.variants import changed

HERE = Path(__file__).parent
MASTER = HERE.parents[1] / "reference" / "homework.py"
RELEASED = HERE.parents[1] / "assignment" / "homework.ipynb"


def names() -> list[str]:
    """Every example submission."""
    return sorted(path.parent.name for path in HERE.glob("*/expect.yaml"))


def expectation(name: str) -> dict[str, Any]:
    """What grading this submission must come to (README.md in this folder says what the keys mean)."""
    return yaml.safe_load((HERE / name / "expect.yaml").read_text(encoding="utf-8"))


def build(name: str) -> bytes:
    """The notebook of one submission, as handed in."""
    folder = HERE / name
    if (folder / "homework.ipynb").exists():
        return (folder / "homework.ipynb").read_bytes()
    if (folder / "homework.py").exists():
        return to_json(read_percent(folder / "homework.py")).encode()
    overlay = yaml.safe_load((folder / "overlay.yaml").read_text(encoding="utf-8"))
    if overlay["base"] == "release":
        return RELEASED.read_bytes()
    return to_json(changed(read_percent(MASTER), overlay.get("change", {}), str(folder))).encode()


def build_class(folder: Path, *, demo: bool = False) -> None:
    """Write every submission, or those of the demo, as FOLDER/<name>/homework.ipynb."""
    chosen = [name for name in names() if not demo or expectation(name).get("demo", True)]
    for name in chosen:
        path = folder / name / "homework.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(build(name))
    print(f"{len(chosen)} submissions in {folder}")
