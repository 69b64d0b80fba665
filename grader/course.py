"""A course folder: an assignment of one's own, with the seed that only staff know and the roster."""

from __future__ import annotations

import csv
import re
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from grader.errors import AssignmentError, UsageError
from grader.types import Person

SECRET, ROSTER = "secret", "roster.csv"
COLUMNS = ("student_id", "last_name", "first_name", "email", "section", "lms_id")
ID = re.compile(r"(?!\.+$)[A-Za-z0-9._-]{1,80}")  # what can be a file's name anywhere
_SEED_LINE = re.compile("^seed:.*\n", re.MULTILINE)


def make_course(course: Path, assignment: Path) -> None:
    """Make a course folder from an assignment folder: its checks and configuration, a new secret, an empty roster.

    The folder appears whole or not at all. Raises UsageError if there is something already, or it cannot be made.
    """
    try:
        if course.exists() and (not course.is_dir() or any(course.iterdir())):
            raise UsageError(f"{course} is not empty, and nothing was changed: name a folder that is not there yet.")
        course.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".course-", dir=course.parent) as work:
            made = Path(work, "course")
            shutil.copytree(assignment / "checks", made / "checks", ignore=shutil.ignore_patterns("__pycache__"))
            text = (assignment / "assignment.yaml").read_text(encoding="utf-8")
            here = f"seed: {SECRET}  # it lies in a file of that name, for staff only, and to be kept with the grades\n"
            (made / "assignment.yaml").write_text(here + _SEED_LINE.sub("", text), encoding="utf-8")
            (made / ROSTER).write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
            (made / ".gitignore").write_text(f"{SECRET}\n", encoding="utf-8")
            (made / SECRET).touch(mode=0o600)
            (made / SECRET).write_text(f"{secrets.token_hex(16)}\n", encoding="utf-8")
            made.replace(course)
    except OSError as error:
        raise UsageError(f"the course folder {course} cannot be made: {error.strerror}: {error.filename}.") from None


def read_secret(folder: Path) -> int:
    """The seed of a course's draw of the texts.

    Raises:
        AssignmentError: it is lost, others may read it, or it is not what `make_course` writes.
    """
    path = folder / SECRET
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise AssignmentError(
            f"the course's secret {path} cannot be read ({error}): put back the one that its grades were given with."
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise AssignmentError(
            f"{path} can be read by other users of this machine, and whoever knows it knows the held-out text: "
            f"chmod 600 {path}, or make a new course."
        )
    if not re.fullmatch("[0-9a-f]{32}", text):
        raise AssignmentError(f"{path} should hold 32 hexadecimal digits, as `grader init` writes them.")
    return int(text, 16)


def read_roster(folder: Path) -> dict[str, Person]:
    """Who takes the course, by student id; nobody if the folder has no roster.

    The columns of COLUMNS, of which only the first must be there; nbgrader's `id` is understood.

    Raises:
        AssignmentError: names the line that is wrong.
    """
    path = folder / ROSTER
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            columns = {"id": "student_id", "lms_user_id": "lms_id"}
            names = [columns.get(name.strip(), name.strip()) for name in rows.fieldnames or ()]
            if "student_id" not in names:
                raise AssignmentError(f"{path} should begin with column names, by commas, one of them student_id.")
            rows.fieldnames = names
            people: dict[str, Person] = {}
            for row in rows:
                known = {name: (row.get(name) or "").strip() for name in COLUMNS}
                student = known.pop("student_id")
                if not student and not any(known.values()):
                    continue  # a spreadsheet's empty row
                if not ID.fullmatch(student):
                    what = f"has the student_id {student!r}; expected up to 80 letters, digits, `.`, `_` and `-`"
                    raise AssignmentError(f"{path}: line {rows.line_num} {what}.")
                if student.casefold() in (one.casefold() for one in people):
                    raise AssignmentError(f"{path}: line {rows.line_num} lists {student!r} twice.")
                people[student] = Person(**known)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AssignmentError(f"the roster {path} cannot be read as CSV in UTF-8: {error}.") from None
    return people
