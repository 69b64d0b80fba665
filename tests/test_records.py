"""`grader why`, `db` and `regrade`, by the command line: what decided a grade, and what grading again would change."""

from __future__ import annotations

import csv
import json
import random
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from grader import cli
from grader.bench import Bench, set_up
from grader.cli import common
from grader.config import load_assignment
from grader.gradebook import Gradebook
from grader.identity import PARTS
from grader.origin import ORIGIN
from grader.place import GRADEBOOK
from grader.terminal import console
from grader.types import Grade, Rules, Status, Submission
from tests.conftest import notebook_of
from tests.small import CHECK, folder_with
from tests.unit.records import a_grade

ROOT = Path(__file__).parents[1]
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """An assignment with one check, a text of random letters, and an empty results folder."""
    for name in ("assignment", "out"):
        (tmp_path / name).mkdir()
    folder_with(tmp_path / "assignment", corpus="time-machine", curves=False)
    (tmp_path / "assignment" / "checks" / "test_f.py").write_text(CHECK)
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz ", k=180_000)
    (tmp_path / "text.txt").write_text("".join(letters))
    return tmp_path


@pytest.fixture
def run(course: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: its exit code and all that it says."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["grader", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return call


def bench_of(course: Path, tier: str) -> Bench:
    assignment = load_assignment(course / "assignment")
    return set_up(assignment, assignment.profile("smoke"), tier, str(course / "text.txt"))


def graded(course: Path, tier: str, **changes: object) -> Grade:
    """A grade of ada's, as the assignment is now."""
    bench = bench_of(course, tier)
    handed_in = Submission(student_id="ada", path="", sha256="ab" * 32, submitted_at="2026-03-01T10:00:00+00:00")
    grade = a_grade(key=bench.key(handed_in), key_parts=bench.key_parts(handed_in), sandbox=tier)
    return replace(grade, **changes)  # type: ignore[arg-type]


def record(course: Path, *grades: Grade) -> None:
    with Gradebook.open(course / "out" / GRADEBOOK) as book:
        run_id = book.begin_run(command="grade", profile="smoke", started_at="2026-03-01T09:00:00+00:00")
        for grade in grades:
            book.add(run_id, grade)


def why(course: Path, run: Run, student: str = "ada") -> tuple[int, str]:
    options = ["-o", str(course / "out"), "--assignment", str(course / "assignment")]
    return run("why", student, *options, "--corpus-file", str(course / "text.txt"))


def test_nothing_changed(course: Path, tier: str, run: Run) -> None:
    """Exit 0, as `git diff --exit-code`: grading again would take the grade from the gradebook."""
    record(course, graded(course, tier))
    code, said = why(course, run)
    assert code == 0, said
    assert "Nothing changed" in said
    assert "differs" not in said


def test_what_changed_is_named(course: Path, tier: str, run: Run) -> None:
    """Another check file and another seed: exit 1, and these two parts are named, by hashes only."""
    record(course, graded(course, tier))
    (course / "assignment" / "checks" / "test_f.py").write_text(CHECK + "\n")
    text = (course / "assignment" / "assignment.yaml").read_text()
    (course / "assignment" / "assignment.yaml").write_text(text.replace("seed: 7\n", "seed: 987654321\n"))
    code, said = why(course, run)
    assert code == 1
    assert "It would be graded again: checks, draw changed." in said
    assert "987654321" not in said


def test_the_grade_before_is_shown(course: Path, tier: str, run: Run) -> None:
    """A column of its own says what the grade before was decided by; a fault of ours in between is no grade."""
    latest = graded(course, tier)
    before = replace(latest, key="k0", key_parts=latest.key_parts | {"grader": "0.0.9"})
    record(course, before, replace(latest, status=Status.NEEDS_REGRADE, score=None, key="k"), latest)
    code, said = why(course, run)
    assert code == 0, said
    assert "0.0.9 differs" in said


def test_names_are_whole_and_only_hashes_are_shortened(course: Path, tier: str, run: Run) -> None:
    """Two versions of MXNet on one Python are told apart, and it is said that the latest grade is looked at."""
    latest = graded(course, tier)
    parts = latest.key_parts | {"runtime": "Python 3.11.2, mxnet==1.8.0"}
    record(course, replace(latest, key_parts=parts))
    said = why(course, run)[1]
    assert "mxnet==1.8.0" in said
    assert parts["settings"][:12] in said
    assert parts["settings"][:13] not in said
    assert f"Of what was handed in {latest.submitted_at}" in said


def test_a_narrow_terminal_loses_words_and_no_value(
    course: Path, tier: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 50 columns every part and every short hash can still be read."""
    monkeypatch.setattr(console, "width", 50)
    latest = graded(course, tier)
    record(course, latest)
    said = why(course, run)[1]
    for name in PARTS:
        assert f" {name} " in said
    assert said.count(latest.key_parts["settings"][:12]) == 2


def test_a_sandbox_that_there_is_not(course: Path, tier: str, run: Run) -> None:
    """As `grade` says it."""
    record(course, graded(course, tier))
    code, said = run("why", "ada", "-o", str(course / "out"), "--sandbox", "zzz")
    assert (code, "--sandbox is 'zzz'; expected one of bubblewrap" in said) == (2, True)


def test_a_grade_of_an_earlier_grader(course: Path, tier: str, run: Run) -> None:
    """What decided it was not recorded: that is said, and it would be graded again."""
    record(course, graded(course, tier, key_parts={}))
    code, said = why(course, run)
    assert (code, "did not record what decides a grade" in said) == (1, True)


def test_a_student_who_is_not_there(course: Path, tier: str, run: Run) -> None:
    """One sentence, and the exit code of a mistyped command."""
    record(course, graded(course, tier))
    code, said = why(course, run, "eve")
    assert (code, "there is no student 'eve'" in said) == (2, True)


# --- the assignment of a results folder ---


def test_a_results_folder_remembers_its_assignment(course: Path, run: Run) -> None:
    """A mark without --assignment keeps names, due date and penalty in grades.csv; another assignment is refused."""
    hw, out = course / "assignment", course / "out"
    changes = {"duedate": "2020-01-01T00:00:00+00:00", "late": {"penalty_per_day": 0.5}}
    essay = {"id": "essay", "title": "The essay", "section": "Part 5", "points": 6}
    folder_with(hw, corpus="time-machine", curves=False, manual=[essay], **changes)
    (hw / "roster.csv").write_text("student_id,last_name\nada,Lovelace\n")
    (course / "submitted" / "ada").mkdir(parents=True)
    (course / "submitted" / "ada" / "homework.ipynb").write_bytes(notebook_of("def f(x): return 2 * x"))
    grade = ("grade", str(course / "submitted"), "-o", str(out), "--profile", "smoke")
    code, said = command(course, run, *grade)
    assert (code, f"grader mark -o {out}\n" in said) == (0, True), said
    assert "pseudonym" not in said  # nobody's model is scored: there is no board
    assert "1 to mark, each by" in run("mark", "-o", str(out))[1]
    assert run("mark", "ada", "essay", "4.5", "-o", str(out))[0] == 0
    row = rows(course, "grades.csv")["ada"]
    expected = ["hw", "Lovelace", "2020-01-01T00:00:00+00:00", "6.5", "6.5"]
    found = [row[name] for name in ("assignment", "last_name", "duedate", "raw_score", "late_submission_penalty")]
    assert found == expected

    for arguments in (("leaderboard", str(out)), grade):
        code, said = run(*arguments, "--assignment", "reference")
        assert (code, "was graded by the assignment 'hw'" in said) == (2, True), said
    hw.rename(course / "moved")
    code, said = run("leaderboard", str(out))
    assert (code, f"in {hw}, where it is no more: say by --assignment" in said) == (2, True), said
    assert run("leaderboard", str(out), "--assignment", str(course / "moved"))[0] == 0
    again = ("--assignment", str(course / "moved"), "--corpus-file", str(course / "text.txt"))
    code, said = run(*grade, *again)
    assert (code, "already graded" in said) == (0, True), said
    assert run("leaderboard", str(out))[0] == 0


@pytest.mark.parametrize("kept", ["", "[]", "5", '{"name": "hw"}', '{"name": 5, "folder": "x"}', "[" * 100_000])
def test_what_a_results_folder_remembers_is_checked(course: Path, run: Run, kept: str) -> None:
    """Whatever somebody wrote there."""
    (course / "out" / ORIGIN).write_text(kept)
    code, said = run("leaderboard", str(course / "out"))
    assert (code, f"{course / 'out' / ORIGIN} is not what `grader grade` writes" in said) == (2, True)


# --- grader db ---


def test_db_check_and_backup(course: Path, tier: str, run: Run) -> None:
    """Exit 1 for problems, of which a repair mends what it can; 3 if nothing can be read, 2 if nothing is there."""
    out = course / "out"
    record(course, graded(course, tier, score=7.9, max_score=32.0))
    with closing(sqlite3.connect(out / GRADEBOOK)) as raw:
        raw.execute("DROP TRIGGER marks_no_delete")
    code, said = run("db", "check", str(out))
    assert (code, "The trigger marks_no_delete is missing. --repair: it is made again." in said) == (1, True)
    assert not (out / ".lock").exists()
    code, said = run("db", "check", str(out), "--repair")
    assert "The trigger marks_no_delete was made again." in said
    assert "grades.csv is missing" in said
    assert run("db", "backup", str(out), str(course / "copy.sqlite"))[0] == 0
    with Gradebook.open(course / "copy.sqlite") as book:
        assert [grade.student_id for grade in book.latest()] == ["ada"]
    (out / GRADEBOOK).write_bytes((out / GRADEBOOK).read_bytes()[:100] + bytes(range(256)) * 40)
    assert run("db", "check", str(out))[0] == 3
    assert run("db", "check", str(course / "nowhere"))[0] == 2


def test_a_repair_that_lost_grades_does_not_end_well(course: Path, tier: str, run: Run) -> None:
    """Exit 1, with how many of how many are left, and of whom there is a page and no grade any more."""
    out = course / "out"
    record(course, *(graded(course, tier, student_id=f"s{number:02d}", message="x" * 3000) for number in range(9)))
    for number in range(9):
        for name in ("feedback", "results"):
            (out / name).mkdir(exist_ok=True)
        (out / "feedback" / f"s{number:02d}.html").write_text("x")
        (out / "results" / f"s{number:02d}.json").write_text("x")
    for name in ("grades.csv", "leaderboard.csv", "leaderboard.html", f".submissions/{'ab' * 32}.ipynb"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("x")
    with closing(sqlite3.connect(out / GRADEBOOK)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [page] = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = 'grades'").fetchone()
    with (out / GRADEBOOK).open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 4096)
    code, said = run("db", "check", str(out), "--repair")
    assert (code, "is well" in said) == (1, False), said
    assert "0 of at least 9 grades and 0 of at least 0 manual marks could be saved" in said
    assert "no grades any more of s00, s01, s02" in said


@pytest.mark.parametrize(
    "arguments", [("leaderboard",), ("db", "check"), ("regrade",), ("mark", "-o"), ("curve", "-o")]
)
def test_an_empty_gradebook_is_one_thing_to_every_command(course: Path, run: Run, arguments: tuple[str, ...]) -> None:
    """It may have held grades: exit 2, what to do, and nothing is made in it."""
    (course / "out" / GRADEBOOK).touch()
    more = [] if arguments[0] == "db" else ["--assignment", str(course / "assignment")]
    if arguments[0] == "curve":
        folder_with(course / "assignment", corpus="time-machine")
        more += ["--profile", "smoke", "--corpus-file", str(course / "text.txt")]
    code, said = run(*arguments, str(course / "out"), *more)
    assert (code, "is empty (0 bytes): put a backup in its place" in said) == (2, True), said
    assert (course / "out" / GRADEBOOK).stat().st_size == 0


# --- who only looks ---


def test_who_only_looks_changes_nothing_for_others(course: Path, tier: str, run: Run) -> None:
    """By another assignment, the commands that read leave the view that other programs read as the course has it."""
    out, due = course / "out", "2026-03-01T09:00:00+00:00"
    record(course, graded(course, tier))
    with Gradebook.open(out / GRADEBOOK) as book:
        book.record_rules(Rules(due=due, penalty_per_day=0.1))
    options = ["--assignment", str(course / "assignment")]
    for arguments in (["leaderboard", str(out)], ["mark", "-o", str(out)], ["regrade", str(out), "--diff"]):
        text = ["--corpus-file", str(course / "text.txt")] if arguments[0] == "regrade" else []
        code, said = run(*arguments, *options, *text)
        assert code == 0, said
    run("replay", "ada", "-o", str(out), *options)
    with closing(sqlite3.connect(out / GRADEBOOK)) as raw:
        assert raw.execute("SELECT late_days, late_penalty FROM counting").fetchall() == [(1, 0.1)]


# --- grader regrade ---


def command(course: Path, run: Run, *arguments: str) -> tuple[int, str]:
    options = ["--assignment", str(course / "assignment"), "--corpus-file", str(course / "text.txt"), "--jobs", "1"]
    return run(*arguments, *options)


def rows(course: Path, name: str) -> dict[str, dict[str, str]]:
    with (course / "out" / name).open(newline="") as file:
        return {row["student_id"]: row for row in csv.DictReader(file)}


def submit(course: Path, **sources: str) -> tuple[str, ...]:
    """Puts a notebook of one cell there for each student; the command that grades them."""
    for student, source in sources.items():
        (course / "submitted" / student).mkdir(parents=True, exist_ok=True)
        (course / "submitted" / student / "homework.ipynb").write_bytes(notebook_of(source))
    return "grade", str(course / "submitted"), "-o", str(course / "out"), "--profile", "smoke"


def rule(course: Path, **rules: object) -> None:
    """Has the assignment say so of attempts or lateness."""
    path = course / "assignment" / "assignment.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | rules))


def test_a_regrade_changes_nothing_until_it_is_published(course: Path, run: Run) -> None:
    """Who gains, who loses and by which check is said and written; to publish it runs nothing again, and it counts."""
    grade, out = submit(course, twice="def f(x): return 2 * x", once="def f(x): return x"), course / "out"
    assert command(course, run, *grade)[0] == 0
    names = ("grades.csv", "feedback/once.html", "results/once.json", "logs/once.log", "leaderboard.csv")
    files = [out / name for name in names]
    before = [file.read_bytes() for file in files]
    code, said = command(course, run, "regrade", str(out), "--diff")
    assert (code, "0 gain, 0 lose, 2 keep their points" in said, said.count("already graded")) == (0, True, 2)

    (course / "assignment" / "checks" / "test_f.py").write_text(CHECK.replace("== 4", "== 2"))
    code, said = command(course, run, "regrade", str(out), "--diff")
    assert code == 0, said
    assert "2/2  " in said
    assert "already graded" not in said
    assert "f: PASSED -> FAILED (-2)" in said
    assert "f: FAILED -> PASSED (+2)" in said
    assert "1 gain, 1 lose, 0 keep their points" in said
    assert "f: 1 gain, 1 lose, +0 points in all" in said
    found = rows(course, "regrade.csv")
    assert [found["twice"][name] for name in ("before", "after", "change", "item")] == ["2.0", "0.0", "-2.0", "f"]
    assert [file.read_bytes() for file in files] == before
    assert "2/2 done" in run("status", str(out))[1]

    code, said = command(course, run, "regrade", str(out), "--publish")
    assert (code, said.count("already graded"), "published 2 new grades" in said) == (0, 2, True)
    assert {student: row["score"] for student, row in rows(course, "grades.csv").items()} == {
        "once": "2.0",
        "twice": "0.0",
    }
    assert "def f(x)" in (out / "feedback" / "once.html").read_text()
    assert [file.read_bytes() == old for file, old in zip(files[:4], before, strict=False)] == [False] * 4
    assert "0 gain, 0 lose, 2 keep" in command(course, run, "regrade", str(out))[1]
    code, said = command(course, run, *grade)
    assert said.count("already graded") == 2
    code, said = run("db", "check", str(out))
    assert code == 0, said


def test_the_log_tells_of_a_regrade_once_it_counts(course: Path, run: Run) -> None:
    """Who graded it and what it came to, then that it was published; and of a notebook that is handed in once more."""
    grade, log = submit(course, ada="def f(x): return 2 * x"), course / "out" / "logs" / "ada.log"
    assert command(course, run, *grade)[0] == 0
    first = log.read_text()
    (course / "assignment" / "checks" / "test_f.py").write_text(CHECK.replace("== 4", "== 2"))
    assert command(course, run, "regrade", str(course / "out"))[0] == 0
    assert log.read_text() == first
    assert command(course, run, "regrade", str(course / "out"), "--publish")[0] == 0
    graded, *_, published = log.read_text().removeprefix(first).splitlines()
    assert " by worker 1: graded, score 0.0, key " in graded
    assert " by grader regrade: published: graded, score 0.0, key " in published

    assert command(course, run, *submit(course, ada="def f(x): return x"))[0] == 0
    assert command(course, run, *submit(course, ada="def f(x): return 2 * x"))[0] == 0
    last = log.read_text().splitlines()[-1]
    assert " by the gradebook: handed in again as before the latest: graded, score 0.0, key " in last
    before = log.read_text()
    assert command(course, run, *submit(course))[0] == 0
    assert log.read_text() == before


def test_all_attempts_are_graded_again_where_the_best_counts(course: Path, run: Run) -> None:
    """The first passed and fails by the new check, the second the other way round: nobody loses, in one pass."""
    rule(course, attempts={"counts": "best"})
    for source in ("def f(x): return 2 * x", "def f(x): return x"):
        assert command(course, run, *submit(course, ada=source))[0] == 0
    (course / "assignment" / "checks" / "test_f.py").write_text(CHECK.replace("== 4", "== 2"))
    code, said = command(course, run, "regrade", str(course / "out"))
    assert (code, "0 gain, 0 lose, 1 keep" in said) == (0, True)
    code, said = command(course, run, "regrade", str(course / "out"), "--publish")
    assert (code, "published 2 new grades" in said) == (0, True)
    assert rows(course, "grades.csv")["ada"]["score"] == "2.0"
    kept = json.loads((course / "out" / ".executed" / "ada.json").read_text())
    assert "return x" in kept["notebook_json"]  # its page shows the notebook that counts
    assert "0 gain, 0 lose, 1 keep" in command(course, run, "regrade", str(course / "out"))[1]
    code, said = run("db", "check", str(course / "out"))
    assert code == 0, said


def test_lateness_that_costs_more_is_a_change(course: Path, run: Run) -> None:
    """Of what counted by the rules on record, to what would count by those of the assignment; nothing is graded."""
    late = {"due": "2020-01-01T00:00:00+00:00", "max_days": 99999}
    rule(course, late=late | {"penalty_per_day": 0.00001})
    assert command(course, run, *submit(course, ada="def f(x): return 2 * x"))[0] == 0
    rule(course, late=late | {"penalty_per_day": 1.0})
    code, said = command(course, run, "regrade", str(course / "out"))
    assert (code, said.count("already graded"), "1 lose" in said) == (0, 1, True)
    found = rows(course, "regrade.csv")["ada"]
    assert (found["item"], found["after"], found["outcome_after"]) == ("late", "0.0", "-2")
    assert found["before"] == rows(course, "grades.csv")["ada"]["score"]
    assert command(course, run, "regrade", str(course / "out"), "--publish")[0] == 0
    assert rows(course, "grades.csv")["ada"]["score"] == "0.0"
    assert "0 gain, 0 lose, 1 keep" in command(course, run, "regrade", str(course / "out"))[1]


def test_a_regrade_without_the_notebook(course: Path, tier: str, run: Run) -> None:
    """A grade whose notebook is not kept stays as it is, and that is said."""
    record(course, graded(course, tier, key="k1"))
    code, said = command(course, run, "regrade", str(course / "out"))
    assert (code, "ada keeps the grade there is: the notebook abababababab is not kept" in said) == (0, True)
    assert "0 gain, 0 lose, 1 keep" in said


def test_a_regrade_is_a_batch_as_any(course: Path, tier: str, run: Run) -> None:
    """Its events are lines for machines, and what a scheduler would be needed for is refused without one."""
    assert command(course, run, *submit(course, ada="def f(x): return 2 * x"))[0] == 0
    code, said = command(course, run, "regrade", str(course / "out"), "--json")
    assert (code, [json.loads(line)["event"] for line in said.splitlines() if line[0] == "{"]) == (0, ["known"])
    code, said = command(course, run, "regrade", str(course / "out"), "--sandbox", "bubblewrap")
    assert (code, "expected, with --scheduler" in said) == (2, True)
    code, said = command(course, run, "regrade", str(course / "out"), "--scheduler", "tcp://127.0.0.1:1")
    assert (code, "already graded" in said) == (0, True)  # nobody is asked where there is nothing to do


def test_a_regrade_needs_to_know_what_is_meant(course: Path, tier: str, run: Run) -> None:
    """Both options at once, or no gradebook: one sentence."""
    record(course, graded(course, tier))
    code, said = command(course, run, "regrade", str(course / "out"), "--diff", "--publish")
    assert (code, "choose one of them" in said) == (2, True)
    assert command(course, run, "regrade", str(course / "nowhere"))[0] == 2


# --- the machine ---


def test_fewer_workers_than_asked_for_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two slots on GPUs run two notebooks at a time, whatever `--jobs` says; on a CPU all of them run."""
    monkeypatch.setattr(common, "usable_gpus", lambda: ("the only one",))
    profile = load_assignment(ROOT / "reference").profile("gpu")
    two = replace(profile, runtime=replace(profile.runtime, slots_per_gpu=2))
    assert common.usable_jobs(2, "gpu", two) == 2
    assert common.usable_jobs(8, "cpu", two) == 8
    assert not caplog.messages
    assert common.usable_jobs(8, "gpu", two) == 2
    assert caplog.messages == ["2 at a time instead of 8: so many notebooks fit on the GPUs (docs/gpu.md)."]
