"""By which assignment a results folder was graded: its name and where it lies, kept in `assignment.json`.

Rosters, due dates and penalties stand in the assignment: to write a class's files by another one would lose them.
"""

from __future__ import annotations

import json
from pathlib import Path

from grader.config import load_assignment
from grader.errors import UsageError
from grader.types import Assignment

ORIGIN = "assignment.json"
DEFAULT = Path("reference")


def assignment_of(out: Path, given: Path | None) -> Assignment:
    """The assignment that is given, which must be that of the results folder; else the one that the folder remembers.

    Raises:
        UsageError: it is another assignment, or what the folder remembers is gone or cannot be read.
        AssignmentError: it is no assignment folder.
    """
    name, folder = _read(out / ORIGIN)
    if given is None and name and not (folder / "assignment.yaml").exists():
        raise UsageError(
            f"{out} was graded by the assignment {name!r} in {folder}, where it is no more: say by --assignment where "
            "it is now."
        )
    found = load_assignment(given or folder)
    if name and found.name != name:
        raise UsageError(
            f"{out} was graded by the assignment {name!r} in {folder}, and {given or folder} holds {found.name!r}: "
            f"each assignment has a results folder of its own; if it was renamed, delete {out / ORIGIN}."
        )
    return found


def as_text(assignment: Assignment) -> str:
    """What `grade` writes into a results folder."""
    return json.dumps({"name": assignment.name, "folder": str(Path(assignment.folder).resolve())}) + "\n"


def _read(kept: Path) -> tuple[str, Path]:
    """Name and folder; without a name if nothing is remembered, as earlier graders did not."""
    if not kept.exists():
        return "", DEFAULT
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        name, folder = found["name"], found["folder"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        name = folder = None
    if not (isinstance(name, str) and isinstance(folder, str) and name):
        raise UsageError(f"{kept} is not what `grader grade` writes: delete it, and grade again with --assignment.")
    return name, Path(folder)
