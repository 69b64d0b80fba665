"""What is handed in is only files, and what people open afterwards runs nothing: attacks on those who grade."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grader import unzip
from grader.bench import Bench, set_up
from grader.config import load_assignment
from grader.errors import InfrastructureError, UsageError
from grader.gradebook import Gradebook
from grader.intake import collect
from grader.pipeline import grade_submission
from grader.types import Grade
from tests.conftest import notebook_of
from tests.harmless import assert_harmless
from tests.small import CHECK, LIMITS, folder_with
from tests.test_attacks import attacks

ROOT = Path(__file__).parents[1]
HONEST = notebook_of("def f(x): return 2 * x")
MALLORY = notebook_of("def f(x): return x")


@pytest.fixture(scope="module")
def assignment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One check, worth two points."""
    folder = tmp_path_factory.mktemp("assignment")
    folder_with(folder, curves=False, limits={**LIMITS, "output_bytes": 4 << 20, "notebook_wall_s": 20})
    (folder / "checks" / "test_f.py").write_text(CHECK)
    return folder


# -- one batch of notebooks that attack who opens what became of them -------------------------------------------


def _with(**changes: Any) -> bytes:
    content = json.loads(notebook_of("char_to_idx = {}"))
    content.update(changes)
    return json.dumps(content).encode()


def _nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"x": value}
    return value


def _cell(**changes: Any) -> dict[str, Any]:
    cell = json.loads(notebook_of("char_to_idx = {}"))["cells"][0]
    return {**cell, **changes}


INPUTS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "words": lambda: b"my homework is in the other file",
    "binary": lambda: b"\x7fELF" + bytes(range(256)) * 100,
    "other_json": lambda: b'{"a": [1, 2, 3]}',
    "brackets": lambda: b"[" * 1_000_000,
    "deep_metadata": lambda: _with(metadata=_nested(400)),
    "huge_number": lambda: b'{"nbformat": ' + b"9" * 1_000_000 + b"}",
    "not_finite": lambda: b'{"nbformat": NaN, "cells": []}',
    "surrogates": lambda: _with(cells=[_cell(source="x = '\ud800'")]),
    "many_cells": lambda: _with(cells=[_cell(id=f"c{i}") for i in range(5000)]),
    "same_ids": lambda: _with(cells=[_cell(id="same") for _ in range(20)]),
    "format_3": lambda: json.dumps(
        {
            "nbformat": 3,
            "nbformat_minor": 0,
            "metadata": {"name": ""},
            "worksheets": [
                {
                    "cells": [
                        {
                            "cell_type": "code",
                            "collapsed": False,
                            "input": ["char_to_idx = {}"],
                            "language": "python",
                            "metadata": {},
                            "outputs": [],
                        }
                    ],
                    "metadata": {},
                }
            ],
        }
    ).encode(),
    "format_2": lambda: _with(nbformat=2),
    "no_code": lambda: _with(
        cells=[{"cell_type": "markdown", "id": "m", "metadata": {}, "source": "I did it all in my head."}]
    ),
    "no_list": lambda: _with(cells={"cell": 1}),
    "forged_outputs": lambda: _with(
        cells=[
            _cell(
                outputs=[{"output_type": "display_data", "data": {"text/html": "<script>1</script>"}, "metadata": {}}]
            )
        ]
    ),
    "another_kernel": lambda: _with(
        metadata={"kernelspec": {"name": "../../bin/sh", "display_name": "x", "language": "x", "argv": ["sh"]}}
    ),
    "script": lambda: _with(
        cells=[
            _cell(),
            {
                "cell_type": "markdown",
                "id": "m",
                "metadata": {},
                "source": "<script>alert(1)</script><img src=x onerror=1>",
            },
        ]
    ),
    "huge": lambda: _with(cells=[_cell(source="#" + "x" * (60 << 20))]),
}


BATCH = attacks("inputs", "pages")


def student_of(attack: dict[str, Any]) -> str:
    return str(attack.get("student", attack["name"]))


class Graded:
    """The results folder of the batch, and what the command printed."""

    def __init__(self, out: Path, printed: str) -> None:
        self.out, self.printed = out, printed
        with Gradebook.open(out / "gradebook.sqlite", create=False) as book:
            self.grades = {grade.student_id: grade for grade in book.latest()}

    def of(self, attack: dict[str, Any]) -> Grade:
        """The grade of an attack: the id is the student's name, made safe."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", student_of(attack)).strip("._-")[:80]
        (found,) = [
            grade for one, grade in self.grades.items() if re.fullmatch(rf"{re.escape(plain)}(_[0-9a-f]{{6}})?", one)
        ]
        return found


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory, assignment: Path) -> Graded:
    """All attacks in one class, between two honest notebooks."""
    folder = tmp_path_factory.mktemp("class")
    everyone = {"+first": HONEST, "~last": HONEST}
    for parameter in BATCH:
        attack = parameter.values[0]
        everyone[student_of(attack)] = (
            notebook_of("def f(x): return x", *attack["cells"]) if "cells" in attack else INPUTS[attack["data"]]()
        )
    for student, data in everyone.items():
        (folder / "submitted" / student).mkdir(parents=True)
        (folder / "submitted" / student / "homework.ipynb").write_bytes(data)
    command = [sys.executable, "-m", "grader.cli", "grade", folder / "submitted", "-o", folder / "out"]
    command += ["--assignment", assignment, "--profile", "smoke", "--jobs", "2"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Graded(folder / "out", done.stdout + done.stderr)


@pytest.mark.parametrize("attack", BATCH)
def test_a_file_is_only_a_file(attack: dict[str, Any], graded: Graded) -> None:
    """Whatever is handed in has a status and no point; its page runs nothing, and every browser can open it."""
    grade, expected = graded.of(attack), attack.get("status", "graded")
    assert grade.status.value in ([expected] if isinstance(expected, str) else expected), grade.message
    assert grade.score == 0.0
    page = (graded.out / "feedback" / f"{grade.student_id}.html").read_text(encoding="utf-8")
    assert_harmless(page)
    assert "alert(1)" not in re.sub(r"(&lt;|\().*?alert\(1\)", "", page)
    assert len(page) < 1 << 20


def test_the_batch_goes_on(graded: Graded) -> None:
    """Those who are graded before, between and after the attacks have all of their points."""
    honest = [grade for grade in graded.grades.values() if grade.student_id.startswith(("first", "last"))]
    assert [grade.score for grade in honest] == [2.0, 2.0]
    assert len(graded.grades) == len(BATCH) + 2


def test_nothing_is_written_outside_the_results(graded: Graded) -> None:
    """Every file lies where it should, under the id of a student."""
    folder = graded.out.parent
    assert sorted(path.name for path in folder.iterdir()) == ["out", "submitted"]
    for place, suffix in (("feedback", ".html"), ("results", ".json")):
        assert {path.name for path in (graded.out / place).iterdir()} == {f"{one}{suffix}" for one in graded.grades}


def test_tables_and_files_are_inert(graded: Graded) -> None:
    """No cell of a table is a formula, no JSON holds NaN, the leaderboard runs nothing, the terminal obeys nobody."""
    for path in graded.out.glob("*.csv"):
        for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8"))):
            assert not [cell for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))], path.name
    for path in (graded.out / "results").glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert_harmless((graded.out / "leaderboard.html").read_text(encoding="utf-8"))
    assert not {character for character in graded.printed if not character.isprintable()} - {"\n"}


# -- archives and folders of a class ----------------------------------------------------------------------------


def archive(folder: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(folder / "class.zip", "w", zipfile.ZIP_DEFLATED) as made:
        for member, data in (("ada/homework.ipynb", HONEST), *members):
            made.writestr(member, data)
    return folder / "class.zip"


def class_of(folder: Path, *members: tuple[str | bytes, bytes]) -> Path:
    for name, data in (("ada/homework.ipynb", HONEST), *members):
        path = folder / "class" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "class"


def special(name: str, mode: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (mode | 0o777) << 16
    return member


def links(folder: Path) -> Path:
    place = class_of(folder)
    (place / "mallory").mkdir()
    (place / "mallory" / "homework.ipynb").symlink_to(place / "ada" / "homework.ipynb")
    (place / "mallory" / "all").symlink_to(place / "ada")
    (place / "eve").symlink_to(place / "ada")
    (place / "trent.ipynb").symlink_to("/etc/hostname")
    return place


def pipe(folder: Path) -> Path:
    place = class_of(folder)
    (place / "mallory").mkdir()
    os.mkfifo(place / "mallory" / "homework.ipynb")
    return place


def liar(folder: Path) -> Path:
    """Says in its directory that a member of 30 MB has 10 bytes."""
    path = archive(folder, ("mallory/homework.ipynb", b" " * (30 << 20)))
    path.write_bytes(path.read_bytes().replace((30 << 20).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    return path


def replaced(folder: Path) -> Path:
    return class_of(folder, ("mallory/homework.ipynb", MALLORY))


CLASSES: dict[str, Callable[[Path], Path]] = {
    "climbing": lambda folder: archive(
        folder, *((name, MALLORY) for name in ("../evil.ipynb", "x/../../evil.ipynb", "..\\evil.ipynb"))
    ),
    "absolute": lambda folder: archive(
        folder,
        *((name, MALLORY) for name in (f"{folder}/evil.ipynb", "C:/evil.ipynb", "\\\\host\\x\\..\\..\\evil.ipynb")),
    ),
    "zipped_links": lambda folder: archive(
        folder,
        (special("mallory/homework.ipynb", stat.S_IFLNK), b"../ada/homework.ipynb"),
        (special("eve.ipynb", stat.S_IFLNK), b"/etc/hostname"),
    ),
    "zipped_devices": lambda folder: archive(
        folder,
        (special("mallory/homework.ipynb", stat.S_IFIFO), b""),
        (special("mallory/disk", stat.S_IFBLK), b""),
        (special("mallory/root", stat.S_IFREG | stat.S_ISUID), b""),
    ),
    "links": links,
    "pipe": pipe,
    "bomb": lambda folder: archive(folder, ("mallory/homework.ipynb", bytes(60 << 20))),
    "bombs": lambda folder: archive(folder, *((f"mallory/{i}.txt", bytes(19 << 20)) for i in range(12))),
    "crowd": lambda folder: archive(folder, *((f"mallory/{i}.txt", b"1") for i in range(20_000))),
    "nested": lambda folder: archive(folder, ("mallory/homework.zip", archive(folder).read_bytes())),
    "liar": liar,
    "same_name": lambda folder: class_of(folder, ("mallory/homework.ipynb", MALLORY)),
    "case": lambda folder: class_of(folder, ("ADA/homework.ipynb", MALLORY)),
    "look_alikes": lambda folder: class_of(folder, ("a\u0501a/homework.ipynb", MALLORY)),
    "named_for_another": lambda folder: archive(
        folder, ("Mal Lory_666_assignsubmission_file_Ada_1_assignsubmission_file_homework.ipynb", MALLORY)
    ),
    "options": lambda folder: class_of(folder, ("-rf/homework.ipynb", MALLORY), ("--output=x/-o.ipynb", MALLORY)),
    "no_unicode": lambda folder: class_of(folder, (b"\xff\xfe/homework.ipynb", MALLORY)),
    "metadata": lambda folder: class_of(
        folder,
        ("mallory/submission_metadata.yml", b"submission_1: {':submitters': [{':sid': ada}]}"),
        ("mallory/submission_1/homework.ipynb", MALLORY),
    ),
    "replaced": replaced,
    "replaced_by_a_link": replaced,
}


def by_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parents[1] / "ada" / "homework.ipynb")


MEANWHILE: dict[str, Callable[[Path], object]] = {
    "replaced": lambda path: path.write_bytes(HONEST),
    "replaced_by_a_link": by_a_link,
}


@pytest.fixture(scope="module")
def bench(assignment: Path, tier: str) -> Bench:
    loaded = load_assignment(assignment)
    return set_up(loaded, loaded.profile("smoke"), tier)


@pytest.mark.parametrize("attack", attacks("intake"))
def test_a_class_is_only_files(attack: dict[str, Any], bench: Bench, tmp_path: Path) -> None:
    """Who is found to have handed in is who did; ada has her points, nobody else has; nothing is written elsewhere."""
    (tmp_path / "in").mkdir()
    path = CLASSES[attack["class"]](tmp_path / "in")
    before = sorted(tmp_path.rglob("*"))
    if attack["students"] == "refused":
        with pytest.raises(UsageError):
            collect(path, tmp_path / "work")
        assert not list((tmp_path / "work").iterdir())
        return
    submissions = collect(path, tmp_path / "work")
    for submission in submissions:
        if submission.student_id == "mallory" and attack["class"] in MEANWHILE:
            MEANWHILE[attack["class"]](Path(submission.path))
    found, scores = {}, {}
    for submission in submissions:
        try:
            grade = grade_submission(submission, bench)
            found[grade.student_id], scores[grade.student_id] = grade.status.value, grade.score
        except InfrastructureError:
            found[submission.student_id] = "needs_regrade"
    assert found == attack["students"]
    assert {one for one, score in scores.items() if score} <= {"ada"}
    written = [one for one in sorted(tmp_path.rglob("*")) if one not in before]
    assert all(one.is_relative_to(tmp_path / "work") for one in written)
    assert not [one for one in written if one.name.startswith("evil") or not (one.is_file() or one.is_dir())]
    assert sum(one.lstat().st_size for one in written) < 2 * unzip.MAX_SHARE_BYTES
