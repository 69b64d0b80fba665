"""The command line: each command reads its arguments, calls one layer below and turns errors into one sentence."""

from __future__ import annotations

import fcntl
import getpass
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from typer._click.exceptions import ClickException  # typer carries its own click, and names only some of its errors

from grader import __version__
from grader.batch import Interrupted, grade_batch, ungraded
from grader.benchmark import reading, sandbox_start
from grader.checks import run_checks
from grader.config import load_assignment
from grader.course import ROSTER, make_course
from grader.curves import curves_table
from grader.errors import GraderError, SandboxUnavailable, UsageError
from grader.gradebook import Gradebook
from grader.intake import absent, collect
from grader.leaderboard import baselines_of
from grader.marks import Marking, points_for
from grader.outputs import (
    CURVES,
    GRADEBOOK,
    keep_submission,
    kept_params,
    kept_submission,
    write_class,
    write_curves,
    write_grades,
    write_student,
    write_text,
)
from grader.pipeline import grade_submission, ran, set_up
from grader.release import release as write_release
from grader.render import one_line, points
from grader.sandbox.selftest import prove, require
from grader.sandbox.tiers import candidates, pick_tier, why_not
from grader.selftest import read_matrix, small
from grader.terminal import (
    console,
    diagnosis,
    false_alarms,
    grading_progress,
    list_waiting,
    mark_command,
    measured,
    print_boards,
    replayed,
    say,
    summary,
    wrong_verdicts,
)
from grader.types import Assignment, Grade, Mark, Outcome, Profile, Submission

INTERRUPTED = 130
log = logging.getLogger(__name__)
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


AssignmentOption = Annotated[Path, typer.Option("--assignment", help="The assignment folder.")]
ProfileOption = Annotated[str, typer.Option("--profile", help="The scale: a profile of assignment.yaml.")]
CorpusOption = Annotated[
    Path | None, typer.Option("--corpus-file", help="A local copy of the corpus instead of the download.")
]
UnsandboxedOption = Annotated[
    bool,
    typer.Option("--allow-unsandboxed", help="Run without a sandbox where there is none; every report says so."),
]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Grade notebooks of a character language model homework: sandboxed, with held-out perplexity in lock-step."""
    if version:
        say(f"grader {__version__}")
        raise typer.Exit


@app.command()
def grade(
    submissions: Annotated[Path, typer.Argument(help="A folder, a zip of an LMS, or one notebook.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Where results go; the same folder again resumes.")],
    assignment: AssignmentOption = Path("reference"),
    profile: ProfileOption = "cpu",
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Worker processes.")] = os.cpu_count() or 1,
    corpus_file: CorpusOption = None,
    allow_unsandboxed: UnsandboxedOption = False,
) -> None:
    """Grade a batch of submissions; exit 1 if some could not be graded by a fault of ours."""
    loaded, scale = _load(assignment, profile)
    collected = collect(submissions, out / "submissions", exclude=out, weights_of=loaded.weights_of(scale))
    tier = _tier(allow_unsandboxed)
    private = (out, submissions if submissions.is_dir() else submissions.parent)
    bench = set_up(loaded, scale, tier, str(corpus_file) if corpus_file else None, private)
    _folder(out)
    if not loaded.has_secret:
        log.warning("The seed in %s/assignment.yaml is no secret: `grader init COURSE` makes one.", assignment)
    with _alone(out), Gradebook.open(out / GRADEBOOK) as book:
        run_id = book.begin_run(command="grade", profile=profile, started_at=_now())
        marking = Marking(items=loaded.manual, marks=book.marks())
        if submissions.is_dir() or submissions.suffix.lower() == ".zip":
            collected += absent(loaded.roster, collected, book.latest())
        handed_in = {submission.student_id: submission for submission in collected}

        def publish(grade: Grade) -> None:
            keep_submission(out, handed_in[grade.student_id])
            write_student(out, grade, loaded, marking)

        try:
            with grading_progress(len(collected), marking) as report:
                grade_batch(
                    collected,
                    bench,
                    book,
                    run_id,
                    jobs=jobs,
                    report=report,
                    publish=publish,
                )
        finally:
            lines = baselines_of(bench.yardsticks, bench.split.sha256)
            write_class(out, book.latest(), loaded, lines, marking)
        grades = {grade.student_id: grade for grade in book.latest()}
    left = len(marking.open(grades.values()))
    to_mark = f"{left} to be marked by a person; this lists them: {mark_command(out, assignment)}" if left else ""
    done = [grades[s.student_id] for s in collected if s.student_id in grades]
    summary(out, loaded, done, to_mark)
    if unknown := ungraded(done):
        say(f"{len(unknown)} could not be graded by a fault of ours; run the same command again.", style="red")
        raise typer.Exit(1)


@app.command(context_settings={"ignore_unknown_options": True})  # points of -1 are an argument, and get their sentence
def mark(
    out: Annotated[Path, typer.Option("-o", "--output", help="The results folder of `grader grade`.")],
    student: Annotated[str | None, typer.Argument(help="As in the gradebook.")] = None,
    item: Annotated[str | None, typer.Argument(help="An entry under `manual` in assignment.yaml.")] = None,
    given: Annotated[str | None, typer.Argument(metavar="[POINTS]", help="From 0 to what the item has.")] = None,
    comment: Annotated[str, typer.Option("--comment", help="For the student to read.")] = "",
    assignment: AssignmentOption = Path("reference"),
) -> None:
    """Enter the points that a person gives for one item; without arguments, list what waits for a mark."""
    loaded = load_assignment(assignment)
    with Gradebook.open(out / GRADEBOOK, create=False) as book:
        if student is None and not comment:
            list_waiting(out, book, loaded, assignment)
        elif student is None or item is None or given is None:
            raise UsageError("to enter a mark give STUDENT, ITEM and POINTS; to list what waits give none of them.")
        else:
            with _alone(out):
                _enter_mark(out, book, loaded, student, item, given, comment)


def _enter_mark(
    out: Path, book: Gradebook, assignment: Assignment, student: str, item_id: str, given: str, comment: str
) -> None:
    """Record one mark and write what shows it. Raises UsageError for what cannot be entered."""
    grades = {grade.student_id: grade for grade in book.latest()}
    if student not in grades:
        raise UsageError(f"there is no student {student!r} in {book.path}: give an id as in {out / 'grades.csv'}.")
    items = {item.id: item for item in assignment.manual}
    if item_id not in items:
        known = f"choose one of {', '.join(items)}" if items else f"{assignment.folder} has none"
        raise UsageError(f"there is no item {item_id!r} to mark: {known}.")
    entered = Mark(
        student_id=student,
        item=item_id,
        points=points_for(items[item_id], given),
        comment=comment,
        submission_sha256=grades[student].submission_sha256,
        marked_by=_login_name(),
        marked_at=_now(),
    )
    book.mark(entered)
    marking = Marking(items=assignment.manual, marks=book.marks())
    write_grades(out, list(grades.values()), assignment, marking)
    score = f"{points(entered.points)}/{points(items[item_id].points)}"
    left = len(marking.open(grades.values()))
    say(f"{escape(student)}: {escape(item_id)} {score} by {escape(one_line(entered.marked_by))}; {left} left to mark")


@app.command()
def replay(
    student: Annotated[str, typer.Argument(help="As in the gradebook.")],
    checks: Annotated[list[str] | None, typer.Argument(help="Ids of checks; all if none is named.")] = None,
    out: Annotated[Path, typer.Option("-o", "--output", help="The results folder of `grader grade`.")] = Path("out"),
    assignment: AssignmentOption = Path("reference"),
    corpus_file: CorpusOption = None,
) -> None:
    """Run checks again on a graded notebook, with the same random inputs; exit 1 if a verdict is another now."""
    loaded = load_assignment(assignment)
    with Gradebook.open(out / GRADEBOOK, create=False) as book:
        graded = {grade.student_id: grade for grade in book.latest()}.get(student)
    if graded is None:
        raise UsageError(f"there is no student {student!r} in {out / GRADEBOOK}: give an id as in grades.csv.")
    recorded = {result.check_id: result for result in graded.checks}
    strange = sorted(set(checks or ()) - set(recorded))
    if strange:
        raise UsageError(f"{student} has no verdict on {strange[0]!r}: choose from {', '.join(recorded)}.")
    kept = kept_submission(out, graded.submission_sha256)
    if not kept.exists() or graded.seed is None:
        raise UsageError(f"{out} does not hold what {student} handed in, or not the seed: grade it once more.")
    _, scale = _load(assignment, graded.profile)
    bench = set_up(loaded, scale, _tier(False), str(corpus_file) if corpus_file else None, (out,))
    submission = Submission(
        student_id=student,
        path=str(kept),
        sha256=graded.submission_sha256,
        submitted_at=graded.submitted_at,
        params=kept_params(out, graded.submission_sha256),
    )
    if bench.key(submission) != graded.key:
        say("The checks, the text or the grader changed since: verdicts may be others.", style="yellow")
    with ran(submission, bench) as notebook:
        results = run_checks(loaded, set(checks or recorded), notebook, graded.seed, bench.split.test)
    raise typer.Exit(1 if replayed(results, recorded) else 0)


@app.command()
def check(
    notebook: Annotated[Path, typer.Argument(help="Your notebook.")] = Path("homework.ipynb"),
    assignment: AssignmentOption = Path("assignment"),
    profile: ProfileOption = "smoke",
    corpus_file: CorpusOption = None,
    allow_unsandboxed: UnsandboxedOption = False,
) -> None:
    """Run the visible checks on one notebook, as grading will; exit 1 if any fails."""
    loaded, scale = _load(assignment, profile)
    with tempfile.TemporaryDirectory() as work:
        submissions = collect(notebook, Path(work))
        bench = set_up(loaded, scale, _tier(allow_unsandboxed), str(corpus_file) if corpus_file else None)
        result = grade_submission(submissions[0], bench)
    titles = {item.id: item for item in loaded.checks}
    for verdict in result.checks:
        passed = verdict.outcome is Outcome.PASSED
        say(f"[{'green' if passed else 'red'}]{verdict.outcome.value:>9}[/]  {escape(verdict.check_id)}")
        if not passed:
            item = titles[verdict.check_id]
            say(f"           {escape(one_line(verdict.message))}\n           {item.hint} (section {item.section})")
    failed = sum(verdict.outcome is not Outcome.PASSED for verdict in result.checks)
    if result.message:
        say(escape(one_line(result.message)), style="yellow")
    say(f"{len(result.checks) - failed} passed, {failed} failed in {result.wall_time_s:.0f} s")
    raise typer.Exit(1 if failed else 0)


@app.command()
def leaderboard(
    out: Annotated[Path, typer.Argument(help="The results folder of `grader grade`.")],
    assignment: AssignmentOption = Path("reference"),
    names: Annotated[bool, typer.Option("--names", help="Student ids and flags instead of pseudonyms.")] = False,
) -> None:
    """Print the leaderboard of a results folder."""
    loaded = load_assignment(assignment)
    with Gradebook.open(out / GRADEBOOK, create=False) as book:
        print_boards(out, book.latest(), loaded, names=names)


@app.command()
def curve(
    out: Annotated[Path, typer.Option("-o", "--output", help="Where curves.html goes; the results folder, if any.")],
    assignment: AssignmentOption = Path("reference"),
    profile: ProfileOption = "cpu",
    corpus_file: CorpusOption = None,
) -> None:
    """Draw the credit curves, with the class's scores on them if OUT holds a gradebook."""
    loaded, scale = _load(assignment, profile)
    if not scale.curves:
        raise UsageError(f"profile {profile!r} of {assignment}/assignment.yaml has no curves to draw.")
    bench = set_up(loaded, scale, "none", str(corpus_file) if corpus_file else None)
    grades = []
    if (out / GRADEBOOK).exists():
        with Gradebook.open(out / GRADEBOOK, create=False) as book:
            grades = book.latest()
    _folder(out)
    console.print(curves_table(write_curves(out, bench, grades)))
    say(f"wrote {out / CURVES}")


@app.command("init")
def new_course(
    course: Annotated[Path, typer.Argument(help="The folder to make; it must not be there yet.")],
    assignment: AssignmentOption = Path("reference"),
) -> None:
    """Make a course folder: the assignment, a roster to fill in, and the secret seed of the draw of the texts."""
    load_assignment(assignment)
    make_course(course, assignment)
    say(f"wrote {course}: enter the students in {course / ROSTER}; grade with --assignment {course}")


@app.command()
def release(
    assignment: AssignmentOption = Path("reference"),
    out: Annotated[Path, typer.Option("-o", "--output", help="The folder that students receive.")] = Path("assignment"),
    verify: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if something would change.")] = False,
) -> None:
    """Write the student's version of the homework from the master notebook."""
    changed = write_release(assignment, out, check=verify)
    for path in changed:
        say(f"{'would change' if verify else 'wrote'} {path}")
    if not changed:
        say(f"{out} is up to date")
    raise typer.Exit(1 if verify and changed else 0)


@app.command()
def data(
    out: Annotated[Path, typer.Option("-o", "--output", help="Where train.txt and test.txt go.")] = Path("data"),
    assignment: AssignmentOption = Path("assignment"),
    profile: ProfileOption = "smoke",
    corpus_file: CorpusOption = None,
) -> None:
    """Write the texts that a notebook trains and tests on; grading uses another draw of the same corpus."""
    loaded, scale = _load(assignment, profile)
    split = set_up(loaded, scale, "none", str(corpus_file) if corpus_file else None).split
    for name, text in (("train.txt", split.train), ("test.txt", split.test)):
        write_text(out / name, text)
        say(f"wrote {out / name} ({len(text):,} characters)")


@app.command()
def selftest(
    mutants: Annotated[Path, typer.Option("--mutants", help="One mistake each.")] = Path("tests/mutants"),
    solutions: Annotated[Path, typer.Option("--solutions", help="Correct notebooks.")] = Path("tests/solutions"),
    only: Annotated[str, typer.Option("--only", help="Only those whose name holds this.")] = "",
    seeds: Annotated[int, typer.Option("--seeds", min=0, help="Instead: correct ones only, with so many seeds.")] = 0,
    first: Annotated[int, typer.Option("--first-seed", min=0, help="The first of the seeds.")] = 0,
    assignment: AssignmentOption = Path("reference"),
    profile: ProfileOption = "smoke",
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Worker processes.")] = os.cpu_count() or 1,
) -> None:
    """Test the checks: a mutant must fail those meant for it and no other, a correct solution none; else exit 1."""
    loaded, scale = _load(assignment, profile)
    variants = [variant for variant in read_matrix(mutants, solutions, loaded) if only in variant.name]
    if not variants:
        raise UsageError(f"no mutant or solution has {only!r} in its name.")
    bench = set_up(loaded, small(scale), _tier(False))
    if seeds:
        correct = [variant for variant in variants if not variant.fails]
        raise typer.Exit(1 if false_alarms(correct, bench, range(first, first + seeds), jobs) else 0)
    raise typer.Exit(1 if wrong_verdicts(variants, bench, jobs) else 0)


@app.command()
def bench(
    runs: Annotated[int, typer.Option("--runs", min=1, help="Of each figure, and as many of its floor.")] = 5,
    chars: Annotated[int, typer.Option("--chars", min=7_500, help="Of text that is read.")] = 25_600,
    assignment: AssignmentOption = Path("reference"),
    profile: ProfileOption = "smoke",
) -> None:
    """Measure what the grader costs, each figure beside a floor."""
    loaded, scale = _load(assignment, profile)
    tier = _tier(False)
    measured([sandbox_start(tier, runs)], "The sandbox (medians)")
    measured(reading(loaded, scale, tier, chars, runs), f"Reading {chars:,} characters (medians)")


@app.command()
def doctor() -> None:
    """Say whether this machine can grade: the sandbox's promises, each one tried; exit 3 if one is not kept."""
    reasons = {tier: why_not(tier) for tier in candidates()}
    usable = [tier for tier, reason in reasons.items() if not reason]
    kept = prove(usable[0]) if usable else {}
    raise typer.Exit(0 if diagnosis(reasons, kept) else 3)


def _load(folder: Path, profile: str) -> tuple[Assignment, Profile]:
    loaded = load_assignment(folder)
    try:
        return loaded, loaded.profile(profile)
    except KeyError:
        names = ", ".join(item.name for item in loaded.profiles)
        raise UsageError(
            f"there is no profile {profile!r} in {folder}/assignment.yaml: choose one of {names}."
        ) from None


def _tier(allow_unsandboxed: bool) -> str:
    """The sandbox of this machine, proven. Raises SandboxUnavailable."""
    try:
        tier = pick_tier()
        require(tier)
    except SandboxUnavailable:
        if not allow_unsandboxed:
            raise
        say("WARNING: no sandbox. Student code runs with your rights; every report says so.", style="bold red")
        return "none"
    return tier


def _folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the results folder {out} cannot be made: {error.strerror}. Choose another with -o."
        ) from None


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user id without an entry in the system's list of users
        return "unknown"


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep a second batch out of the same results folder. Raises UsageError."""
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another batch is writing to {out}: wait for it, or choose another folder.") from None
        yield


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def main() -> None:
    """Run a command; every expected error is one sentence on standard error and the exit code of its kind."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = app(standalone_mode=False) or 0
    except Interrupted:
        print("grader: interrupted; the same command goes on where it stopped.", file=sys.stderr)
        code = INTERRUPTED
    except (KeyboardInterrupt, typer.Abort):
        print("grader: interrupted before anything was graded.", file=sys.stderr)
        code = INTERRUPTED
    except ClickException as error:
        print(f"grader: {error.format_message()} (`grader --help` lists commands and options)", file=sys.stderr)
        code = 2
    except GraderError as error:
        print(f"grader: {error}", file=sys.stderr)
        code = error.exit_code
    except OSError as error:
        print(f"grader: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        code = 3
    sys.exit(code)


if __name__ == "__main__":
    main()
