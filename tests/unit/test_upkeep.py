"""A gradebook is checked without a change, mended without a loss, and copied whole while it is written."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from contextlib import closing
from pathlib import Path

import pytest
from records import a_grade

from grader.errors import InfrastructureError, UsageError
from grader.gradebook import Gradebook
from grader.types import Grade, Rules, Status
from grader.upkeep import Problem, back_up, check, repair


def whole(student_id: str = "ada", **changes: object) -> Grade:
    """A grade whose parts add up."""
    return a_grade(student_id, **({"score": 7.9, "max_score": 32.0} | changes))


def add(path: Path, *grades: Grade) -> None:
    with Gradebook.open(path) as book:
        run = book.begin_run(command="grade", profile="smoke", started_at="t")
        for grade in grades:
            book.add(run, grade)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A gradebook of three whole grades in a complete results folder."""
    path = tmp_path / "gradebook.sqlite"
    add(path, whole("ada"), whole("bob", status=Status.MISSING), whole("cy", key="k2"))
    for name in ("grades.csv", "leaderboard.csv", "leaderboard.html", f".submissions/{'ab' * 32}.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    for student in ("ada", "bob", "cy"):
        for name in (f"feedback/{student}.html", f"results/{student}.json"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("x")
    return path


def change(path: Path, *statements: str) -> None:
    """What another program might do to the file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        for statement in statements:
            raw.execute(statement)


def said(problems: list[Problem]) -> str:
    return " ".join(problem.what for problem in problems)


def test_a_sound_gradebook_has_no_problem_and_is_left_as_it_is(path: Path) -> None:
    """Nothing is found, repairing does nothing, and no byte of the file changes."""
    before = path.read_bytes()
    assert check(path) == []
    assert repair(path).done == []
    assert path.read_bytes() == before


@pytest.mark.parametrize("broken", ["TRIGGER grades_no_update", "INDEX grades_by_key", "VIEW judged"])
def test_what_holds_no_data_is_made_again(path: Path, broken: str) -> None:
    """A trigger or an index that was dropped is named, and is back after a repair; grades are untouched."""
    change(path, f"DROP {broken}")
    kind, name = broken.lower().split()
    assert said(check(path)) == f"The {kind} {name} is missing."
    assert repair(path).done == [f"The {kind} {name} was made again."]
    assert check(path) == []


def test_a_trigger_that_was_weakened_is_noticed(path: Path) -> None:
    """One of the right name that lets everything through is not as the grader makes it."""
    change(path, "DROP TRIGGER grades_no_update")
    change(path, "CREATE TRIGGER grades_no_update BEFORE UPDATE ON grades BEGIN SELECT 1; END")
    assert "grades_no_update is not as the grader makes it" in said(check(path))
    repair(path)
    with pytest.raises(sqlite3.IntegrityError, match="only grows"):
        change(path, "UPDATE grades SET score = 9")


def test_a_score_that_its_parts_do_not_give_is_named(path: Path) -> None:
    """Somebody who changed a score by hand is found, with the student's name, and the grade is not touched."""
    change(path, "DROP TRIGGER grades_no_update", "UPDATE grades SET score = 30 WHERE id = 1")
    repair(path)
    assert said(check(path)) == "The parts of grade 1 (ada) do not add up to its score."


def test_a_lost_part_is_noticed(path: Path) -> None:
    """A check result that was deleted, also one of no points, leaves a gap."""
    add(path, whole("dan", checks=tuple(), score=3.9, max_score=8.0, key="d"))
    change(path, "DROP TRIGGER perplexity_scores_no_delete", "DROP TRIGGER flags_no_delete")
    change(path, "DELETE FROM perplexity_scores WHERE grade_id = 1 AND position = 0")
    assert "The parts of grade 1 (ada)" in said(check(path))


def test_rows_that_refer_to_nothing_are_named(path: Path) -> None:
    """A grade whose submission is gone."""
    change(path, "DROP TRIGGER submissions_no_delete", "DELETE FROM submissions WHERE student_id = 'cy'")
    assert "Row 3 of grades refers to a row of submissions that is not there." in said(check(path))


def test_a_grade_given_twice_is_named_and_a_regrade_is_not(path: Path) -> None:
    """Same submission and key, nothing between: a repeat. A withdrawal, another key or submission between: none."""
    other = {"submission_sha256": "cd" * 32, "key": "k9", "status": Status.MISSING}
    add(path, whole("ada", key="k3"), whole("ada", **other), whole("ada", key="k3", status=Status.MISSING))
    add(path, whole("cy", key="k2", status=Status.NEEDS_REGRADE, score=None))
    add(path, whole("cy", key="k2"))
    assert check(path) == []
    add(path, whole("cy", key="k2"))
    assert said(check(path)) == "Grade 9 (cy) repeats the one before: same submission, same key."


def test_what_counts_is_compared_with_the_rules(path: Path) -> None:
    """A grade that came in while the trigger was away is noticed, and reckoned with by a repair."""
    change(path, "DROP TRIGGER grades_stand")
    add(path, whole("ada", key="k7", submission_sha256="cd" * 32))
    assert [problem.repair for problem in check(path) if "ada is not what" in problem.what] == ["it is reckoned again"]
    assert "What counts was reckoned again, for 1 students" in " ".join(repair(path).done)
    assert not [problem for problem in check(path) if "missing:" not in problem.what]
    with Gradebook.open(path) as book:
        assert "k7" in {one.key for one in book.counting(Rules(most=9))}


def test_missing_files_are_named(path: Path) -> None:
    """A page, the class's table, a notebook that was handed in; nobody misses that of who handed in nothing."""
    for name in ("feedback/bob.html", "grades.csv", f".submissions/{'ab' * 32}.ipynb"):
        (path.parent / name).unlink()
    found = check(path)
    assert [problem.what.split(" is missing")[0].removeprefix(f"{path.parent}/") for problem in found] == [
        *("grades.csv", f".submissions/{'ab' * 32}.ipynb", "feedback/bob.html", f".submissions/{'ab' * 32}.ipynb")
    ]
    assert "the `grader grade` command of this folder writes it again" in said(found)


def killed_writer(path: Path) -> None:
    """A process that has added a grade and is killed while it holds the file open: its WAL stays."""
    code = f"""
        import os, signal, sqlite3, sys
        raw = sqlite3.connect({str(path)!r}, isolation_level=None)
        raw.execute("INSERT INTO runs (command, profile, started_at) VALUES ('c', 'p', 't')")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert done.returncode == -signal.SIGKILL


def test_a_wal_left_behind_is_moved_in(path: Path) -> None:
    """A check sees it and leaves it, a repair moves it in and loses nothing; a running batch has one anyway."""
    killed_writer(path)
    wal = path.with_name(f"{path.name}-wal")
    assert "was left behind by a process that was killed" in said(check(path))
    assert wal.stat().st_size
    assert check(path, busy=True) == []
    assert repair(path).done == ["What a killed process had left beside the gradebook was moved into it."]
    assert check(path) == []
    with closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT count(*) FROM runs").fetchone() == (2,)


def damage(path: Path, table: str) -> None:
    """Overwrite one page in the middle of a table."""
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages = raw.execute("SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf'", (table,)).fetchall()
    with path.open("r+b") as file:
        file.seek((pages[len(pages) // 2][0] - 1) * 4096)
        file.write(b"\xa5" * 4096)


@pytest.mark.parametrize("table", ["check_results", "grades", "perplexity_scores", "submissions"])
def test_what_can_be_read_of_a_damaged_file_is_kept(path: Path, table: str) -> None:
    """Most grades come back whole, none in part, those lost are told, and the damaged file is still there."""
    grades = [whole(f"s{number:03d}", message="x" * 300) for number in range(60)]
    add(path, *grades)
    with Gradebook.open(path) as book:
        book.record_rules(Rules(most=3))
    try:
        damage(path, table)
    except sqlite3.OperationalError:
        pytest.skip("this SQLite cannot say where a table's pages are")
    before = path.read_bytes()
    assert any(problem.damaged for problem in check(path))
    assert path.read_bytes() == before
    report = " ".join(repair(path).done)
    assert f"Rows of {table} could not be read." in report
    [kept] = path.parent.glob("gradebook.damaged-*.sqlite")
    assert kept.read_bytes() == before
    assert f"The damaged file is kept as {kept}." in report
    assert not [problem for problem in check(path) if "missing:" not in problem.what]
    with Gradebook.open(path) as book:
        there = book.latest()
        assert book.counting(Rules(most=3)) == there
    assert len(there) > 5
    known = {grade.student_id: grade for grade in grades}
    assert all(known.get(grade.student_id, grade) == grade for grade in there)


def test_a_repair_says_how_much_of_what_there_was_it_saved(path: Path) -> None:
    """Of grades and of marks by a person, with what to do next; and whose pages have no grade any more."""
    add(path, *(whole(f"s{number:03d}", message="x" * 300) for number in range(60)))
    try:
        damage(path, "grades")
    except sqlite3.OperationalError:
        pytest.skip("this SQLite cannot say where a table's pages are")
    lost = repair(path).lost
    with Gradebook.open(path) as book:
        there = len(book.latest())
    assert there < 63
    assert lost.startswith(
        f"{there} of at least 63 grades and 0 of at least 0 manual marks could be saved: put a backup"
    )


def test_pages_without_a_grade_are_named(path: Path) -> None:
    """As after a repair that could not save every grade: a person has to know of whom."""
    for name in ("feedback/eve.html", "results/fay.json"):
        (path.parent / name).write_text("x")
    assert f"There are pages in {path.parent} and no grades any more of eve, fay: put a backup" in said(check(path))


@pytest.mark.parametrize("content", ["corpus", "database", "empty", "folder"])
def test_a_backup_replaces_nothing_but_a_backup(path: Path, tmp_path: Path, content: str) -> None:
    """A text, another program's database, an empty file, a folder: each stays as it is."""
    target = tmp_path / "target"
    if content == "database":
        change(target, "CREATE TABLE bookmarks (url TEXT)")
    elif content == "folder":
        target.mkdir()
    else:
        target.write_text("to be or not to be" if content == "corpus" else "")
    before = target.read_bytes() if target.is_file() else b""
    with pytest.raises(UsageError, match="is no gradebook, and was left as it is"):
        back_up(path, target)
    assert (target.read_bytes() if target.is_file() else b"") == before


def test_a_file_of_which_nothing_can_be_read(path: Path) -> None:
    """It is left as it is, and the sentence is for a person."""
    content = path.read_bytes()[:100] + b"\xa5" * 20_000
    path.write_bytes(content)
    for act in (check, repair):
        with pytest.raises(InfrastructureError, match="damaged"):
            act(path)
    assert path.read_bytes() == content


def test_no_gradebook(tmp_path: Path) -> None:
    """Another program's file and no file at all are the caller's mistake."""
    with pytest.raises(UsageError, match="There is no gradebook"):
        check(tmp_path / "nowhere.sqlite")
    change(tmp_path / "other.sqlite", "CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(UsageError, match="another program"):
        check(tmp_path / "other.sqlite")


def test_a_backup_during_a_run_is_whole(path: Path, tmp_path: Path) -> None:
    """Copies taken while grades are added open, are sound, and hold what was there at one moment."""
    stop, copies = threading.Event(), tmp_path / "copies"
    copies.mkdir()

    def write() -> None:
        number = 0
        while not stop.is_set():
            add(path, whole(f"w{number:04d}"))
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(8):
            back_up(path, copies / f"{number}.sqlite")
    finally:
        stop.set()
        writer.join()
    sizes = []
    for number in range(8):
        with Gradebook.open(copies / f"{number}.sqlite") as book:
            there = book.latest()
        assert all((grade.checks, grade.flags) == (whole().checks, whole().flags) for grade in there)
        sizes.append(len(there))
    assert sizes == sorted(sizes)
    assert {path.name for path in copies.iterdir()} == {f"{number}.sqlite" for number in range(8)}


def test_a_backup_that_fails_leaves_the_one_before(path: Path, tmp_path: Path) -> None:
    """A damaged gradebook does not replace a good copy, and no half file is left."""
    copies = tmp_path / "copies"
    copies.mkdir()
    back_up(path, copies / "b.sqlite")
    good = (copies / "b.sqlite").read_bytes()
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xa5" * (len(content) - 8192)
    path.write_bytes(content)
    with pytest.raises(InfrastructureError, match="is damaged"):
        back_up(path, copies / "b.sqlite")
    assert (copies / "b.sqlite").read_bytes() == good
    assert len(list(copies.iterdir())) == 1


def test_a_backup_in_the_wrong_place(path: Path, tmp_path: Path) -> None:
    """Over the gradebook itself, or into a folder that is not there: one sentence, nothing changed."""
    with pytest.raises(UsageError, match="is the gradebook itself"):
        back_up(path, path)
    with pytest.raises(UsageError, match="is no folder"):
        back_up(path, tmp_path / "nowhere" / "b.sqlite")
