"""Whatever is mistyped, the command line answers with one sentence and the right exit code, never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_grader(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "grader.cli", *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nosuch"], 2, "nosuch"),
        (["grade"], 2, "submissions"),
        (["grade", "."], 2, "--output"),
        (["grade", "nowhere", "-o", "TMP/out"], 2, "nowhere"),
        (["grade", "TMP/empty", "-o", "TMP/out"], 2, "TMP/empty"),
        (["grade", ".", "-o", "TMP/out", "--jobs", "-1"], 2, "--jobs"),
        (["grade", ".", "-o", "TMP/out", "--jobs", "two"], 2, "--jobs"),
        (["grade", ".", "-o", "TMP/out", "--profile", "huge"], 2, "choose one of smoke, cpu, gpu"),
        (["grade", ".", "-o", "TMP/out", "--assignment", "tests"], 2, "assignment.yaml"),
        (["grade", ".", "-o", "TMP/out", "--frobnicate"], 2, "--frobnicate"),
        (["grade", "tests/submissions/empty_notebook", "-o", "Makefile/x", "--profile", "smoke"], 2, "Makefile/x"),
        (["check", "nowhere.ipynb"], 2, "nowhere.ipynb"),
        (["leaderboard", "nowhere"], 2, "nowhere"),
        (["mark"], 2, "--output"),
        (["mark", "-o", "TMP/empty"], 2, "There is no gradebook at TMP/empty"),
        (["mark", "ada", "report.discussion", "3", "-o", "nowhere"], 2, "There is no gradebook at nowhere"),
        (["mark", "ada", "report.discussion", "3", "-o", "TMP/text"], 2, "TMP/text"),
        (["leaderboard", "TMP/text"], 2, "TMP/text"),
        (["release", "--assignment", "nowhere"], 2, "nowhere"),
        (["data", "-o", "Makefile/x"], 3, "Makefile/x"),
        (["init", "tests"], 2, "tests is not empty"),
        (["init", "Makefile/x"], 2, "Makefile/x cannot be made"),
        (["init", "TMP/x", "--assignment", "tests"], 2, "assignment.yaml"),
        (["curve"], 2, "--output"),
        (["curve", "-o", "TMP/x", "--assignment", "assignment"], 2, "no curves to draw"),
        (["curve", "-o", "Makefile/x", "--profile", "smoke"], 2, "Makefile/x"),
        (["data", "-o", "TMP/x", "--corpus-file", "TMP/text"], 3, "truncated"),
        (["bench", "--only", "everything"], 2, "expected one of gradebook, sandbox"),
        (["bench", "--slots", "7"], 2, "expected an even number"),
        (["bench", "--from", "nowhere"], 2, "nowhere cannot be read"),
        (["bench", "--from", "TMP/text"], 2, "TMP/text is not a record"),
        (["bench", "--from", "TMP/text", "-o", "TMP/x"], 2, "leave out -o"),
        (["bench", "-o", "TMP/text"], 2, "TMP/text is not a record"),
        (["bench", "--report", "TMP/x.md"], 2, "name one by --from"),
        (["bench", "-o", "TMP/x", "--report", "TMP/x.svg"], 2, "ends in .md"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_sentence(tmp_path: Path, arguments: list[str], code: int, sentence: str) -> None:
    """The sentence names what was wrong; nothing else is printed."""
    (tmp_path / "text").write_text("too short")
    (tmp_path / "empty").mkdir()
    done = run_grader(*(argument.replace("TMP", str(tmp_path)) for argument in arguments))
    assert done.returncode == code, done.stderr
    assert sentence.replace("TMP", str(tmp_path)) in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


COMMANDS = ["grade", "regrade", "why", "db", "db check", "db backup", "mark", "check", "leaderboard", "release", "data"]
COMMANDS += ["doctor", "bench", "init", "curve"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_explains_itself(command: str) -> None:
    """--help exits with 0 and says what the command does."""
    done = run_grader(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


@pytest.mark.parametrize("command", ["", "worker", "doctor"])
@pytest.mark.parametrize("place", ["| true", "> /dev/full", "1>&-", "<&- 1>&- 2>&-"])
def test_help_that_nobody_reads_is_no_failure(command: str, place: str) -> None:
    """A pipe that closes, a full disk, no standard output at all: exit 0, and never a traceback."""
    line = f"set -o pipefail; {sys.executable} -m grader.cli {command} --help {place}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert ("could not be written (No space left on device)" in done.stderr) == (place == "> /dev/full")


@pytest.mark.parametrize("command", [[], ["db"]])
def test_a_command_without_its_words_is_answered_by_its_help(command: list[str]) -> None:
    """Exit 2, and nothing is glued to the last line."""
    done = run_grader(*command)
    assert done.returncode == 2
    assert "Usage" in done.stdout + done.stderr
    assert "lists commands and options" not in done.stderr


def test_the_released_folder_is_what_the_master_makes() -> None:
    """assignment/ in the repository is up to date."""
    done = run_grader("release", "--check")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_bench_shows_each_time_beside_its_floor() -> None:
    """The start of a sandbox beside one without, lock-step beside teacher forcing, for each model and for all."""
    parts = ("--only", "sandbox", "--only", "reading")
    done = run_grader("bench", *parts, "--runs", "1", "--chars", "7680")
    assert done.returncode == 0, done.stderr
    for words in ("start of a sandbox", "without a sandbox", "teacher forcing", "lstm2: held-out", "all: test"):
        assert words in done.stdout


def test_bench_needs_a_solution() -> None:
    """The student's folder has none, and the sentence says so."""
    done = run_grader("bench", "--runs", "1", "--assignment", "assignment")
    assert done.returncode == 2, done.stderr
    assert "homework.py does not exist" in done.stderr


def test_doctor_shows_each_promise() -> None:
    """On a machine that can grade, every promise is kept and the exit code is 0."""
    done = run_grader("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NO" not in done.stdout
    assert "no host socket can be reached" in done.stdout


def test_check_runs_the_visible_checks_as_grading_does() -> None:
    """On the untouched homework every visible check says that its part is to be written; the exit code is 1."""
    done = run_grader("check", "assignment/homework.ipynb")
    assert done.returncode == 1, done.stderr
    assert "0 passed, 20 failed" in done.stdout
    assert "still the stub" in done.stdout


def test_data_for_working_at_home_is_another_draw_than_the_graded_one(tmp_path: Path) -> None:
    """`grader data` writes both texts, and neither the train nor the test text is the one that grading draws."""
    for folder, assignment in (("home", "assignment"), ("graded", "reference")):
        done = run_grader("data", "-o", str(tmp_path / folder), "--assignment", assignment)
        assert done.returncode == 0, done.stderr
    for name in ("train.txt", "test.txt"):
        assert (tmp_path / "home" / name).read_text() != (tmp_path / "graded" / name).read_text()


def test_a_course_draws_texts_of_its_own(tmp_path: Path) -> None:
    """`grader init` makes the folder; its draw is neither that of the reference nor that of another course."""
    texts = {(ROOT / "reference").name: ""}
    for name in ("one", "two"):
        assert run_grader("init", str(tmp_path / name)).returncode == 0
    for name in ("reference", str(tmp_path / "one"), str(tmp_path / "two")):
        done = run_grader("data", "-o", str(tmp_path / "data"), "--assignment", name)
        assert done.returncode == 0, done.stderr
        texts[name] = (tmp_path / "data" / "test.txt").read_text()
    assert len(set(texts.values())) == 3


def test_curve_draws_what_a_score_is_worth(tmp_path: Path) -> None:
    """Without a class too: an instructor looks at the curves before grading."""
    done = run_grader("curve", "-o", str(tmp_path), "--profile", "smoke")
    assert done.returncode == 0, done.stderr
    assert "lstm2" in done.stdout
    assert "credit for lstm2" in (tmp_path / "curves.html").read_text()
