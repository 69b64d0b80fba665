"""Grading: a batch, one notebook, marks by a person, and what came of them."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from grader.audit import SHARE
from grader.batch import grade_batch, hire, ungraded
from grader.bench import set_up
from grader.checks import run_checks
from grader.cli.common import (
    AllowCpuOption,
    AssignmentOption,
    AuditOption,
    CorpusOption,
    GradebookOption,
    JsonOption,
    ProfileOption,
    RememberedOption,
    SandboxOption,
    SchedulerOption,
    UnsandboxedOption,
    alone,
    app,
    gradebook_to_grade_into,
    load,
    login_name,
    make_folder,
    now,
    open_gradebook,
    profile_of,
    usable_device,
    usable_jobs,
    usable_tier,
    usable_tier_and_device,
)
from grader.database import require_server
from grader.errors import GraderError, UsageError
from grader.gradebook import Gradebook
from grader.intake import absent, collect
from grader.leaderboard import baselines_of
from grader.marks import Marking, points_for
from grader.origin import ORIGIN, as_text, assignment_of
from grader.outputs import (
    keep_submission,
    submission_of,
    write_class,
    write_grades,
    write_student,
    write_text,
)
from grader.pipeline import grade_submission, ran
from grader.place import chosen, shown, untested
from grader.render import one_line, points
from grader.terminal import (
    grading_progress,
    list_waiting,
    mark_command,
    print_boards,
    print_standing,
    replayed,
    say,
    summary,
)
from grader.types import Assignment, Grade, Mark, Outcome

log = logging.getLogger(__name__)


@app.command()
def grade(
    submissions: Annotated[Path, typer.Argument(help="A folder, a zip of an LMS, or one notebook.")],
    out: Annotated[Path, typer.Option("-o", "--output", help="Where results go; the same folder again resumes.")],
    assignment: RememberedOption = None,
    profile: ProfileOption = "cpu",
    jobs: Annotated[int, typer.Option(min=0, help="Worker processes; 0: none, to debug the grader.")] = os.cpu_count()
    or 1,
    scheduler: SchedulerOption = "",
    sandbox: SandboxOption = "",
    audit: AuditOption = SHARE,
    json_lines: JsonOption = False,
    corpus_file: CorpusOption = None,
    allow_unsandboxed: UnsandboxedOption = False,
    allow_cpu: AllowCpuOption = False,
    gradebook: GradebookOption = "",
) -> None:
    """Grade a batch of submissions; exit 1 if some could not be graded by a fault of ours."""
    loaded = assignment_of(out, assignment)
    scale = profile_of(loaded, profile)
    place = chosen(out, gradebook)
    if warning := untested(place):
        say(escape(warning), style="bold red")
    if not isinstance(place, Path):
        require_server(place)  # now, and not after the texts are drawn and the baselines fitted
    collected = collect(submissions, out / "submissions", exclude=out, weights_of=loaded.weights_of(scale))
    tier, device = usable_tier_and_device(scale, scheduler, sandbox, allow_unsandboxed, allow_cpu)
    private = (out, submissions if submissions.is_dir() else submissions.parent)
    bench = set_up(loaded, scale, tier, str(corpus_file) if corpus_file else None, private, device)
    make_folder(out)
    if not loaded.has_secret:
        log.warning("The seed in %s/assignment.yaml is no secret: `grader init COURSE` makes one.", loaded.folder)
    with alone(out), gradebook_to_grade_into(out, place) as book:
        write_text(out / ORIGIN, as_text(loaded))
        run_id = book.begin_run(command="grade", profile=profile, started_at=now())
        marking = Marking(items=loaded.manual, marks=book.marks())
        if submissions.is_dir() or submissions.suffix.lower() == ".zip":
            collected += absent(loaded.roster, collected, book.latest())
        handed_in = {submission.student_id: submission for submission in collected}

        def publish(grade: Grade) -> None:
            keep_submission(out, handed_in[grade.student_id])
            write_student(out, grade, loaded, marking)

        def export() -> dict[str, Grade]:
            book.record_rules(loaded.rules)
            found = {grade.student_id: grade for grade in book.counting(loaded.rules)}
            lines = baselines_of(bench.yardsticks, bench.split.sha256)
            write_class(out, list(found.values()), loaded, lines, marking)
            return found

        try:
            with grading_progress(out, len(collected), marking, json_lines=json_lines) as watch:
                most = jobs if scheduler else usable_jobs(jobs, device, scale)
                workers = functools.partial(hire, bench, jobs=min(most, len(collected)), scheduler=scheduler)
                grade_batch(collected, bench, book, run_id, workers=workers, watch=watch, publish=publish, audit=audit)
        except BaseException:
            with suppress(GraderError, OSError):  # what stopped the batch is told, not what that has kept from us since
                export()
            raise
        grades = export()
    left = len(marking.open(grades.values()))
    to_mark = f"{left} to be marked by a person; this lists them: {mark_command(out)}" if left else ""
    done = [grades[s.student_id] for s in collected if s.student_id in grades]
    if not json_lines:
        summary(out, loaded, done, to_mark)
    if unknown := ungraded(done):
        if not json_lines:
            say(f"{len(unknown)} could not be graded by a fault of ours; run the same command again.", style="red")
        raise typer.Exit(1)


@app.command()
def status(out: Annotated[Path, typer.Argument(help="The results folder of `grader grade`.")]) -> None:
    """Say how a batch stands: what is done, what runs where and since when, and how long the rest will take."""
    print_standing(out)


@app.command(context_settings={"ignore_unknown_options": True})  # points of -1 are an argument, and get their sentence
def mark(
    out: Annotated[Path, typer.Option("-o", "--output", help="The results folder of `grader grade`.")],
    student: Annotated[str | None, typer.Argument(help="As in the gradebook.")] = None,
    item: Annotated[str | None, typer.Argument(help="An entry under `manual` in assignment.yaml.")] = None,
    given: Annotated[str | None, typer.Argument(metavar="[POINTS]", help="From 0 to what the item has.")] = None,
    comment: Annotated[str, typer.Option("--comment", help="For the student to read.")] = "",
    assignment: RememberedOption = None,
) -> None:
    """Enter the points that a person gives for one item; without arguments, list what waits for a mark."""
    loaded = assignment_of(out, assignment)
    with open_gradebook(out) as book:
        if student is None and not comment:
            list_waiting(out, book, loaded, assignment)
        elif student is None or item is None or given is None:
            raise UsageError("to enter a mark give STUDENT, ITEM and POINTS; to list what waits give none of them.")
        else:
            with alone(out):
                _enter_mark(out, book, loaded, student, item, given, comment)


def _enter_mark(
    out: Path, book: Gradebook, assignment: Assignment, student: str, item_id: str, given: str, comment: str
) -> None:
    """Record one mark and write what shows it. Raises UsageError for what cannot be entered."""
    grades = {grade.student_id: grade for grade in book.counting(assignment.rules)}
    if student not in grades:
        raise UsageError(
            f"there is no student {student!r} in {shown(book.place)}: give an id as in {out / 'grades.csv'}."
        )
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
        marked_by=login_name(),
        marked_at=now(),
    )
    book.record_rules(assignment.rules)
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
    assignment: RememberedOption = None,
    corpus_file: CorpusOption = None,
) -> None:
    """Run checks again on a graded notebook, with the same random inputs; exit 1 if a verdict is another now."""
    loaded = assignment_of(out, assignment)
    with open_gradebook(out) as book:
        graded = {grade.student_id: grade for grade in book.counting(loaded.rules)}.get(student)
    if graded is None:
        raise UsageError(f"there is no student {student!r} in {shown(book.place)}: give an id as in grades.csv.")
    recorded = {result.check_id: result for result in graded.checks}
    strange = sorted(set(checks or ()) - set(recorded))
    if strange:
        raise UsageError(f"{student} has no verdict on {strange[0]!r}: choose from {', '.join(recorded)}.")
    submission = submission_of(out, graded)
    if submission is None or graded.seed is None:
        raise UsageError(f"{out} does not hold what {student} handed in, or not the seed: grade it once more.")
    scale = profile_of(loaded, graded.profile)
    tier = usable_tier(False)
    device = usable_device(scale, tier, graded.cpu_instead)
    bench = set_up(loaded, scale, tier, str(corpus_file) if corpus_file else None, (out,), device)
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
    loaded, scale = load(assignment, profile)
    with tempfile.TemporaryDirectory() as work:
        submissions = collect(notebook, Path(work))
        bench = set_up(loaded, scale, usable_tier(allow_unsandboxed), str(corpus_file) if corpus_file else None)
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
    assignment: RememberedOption = None,
    names: Annotated[bool, typer.Option("--names", help="Student ids and flags instead of pseudonyms.")] = False,
) -> None:
    """Print the leaderboard of a results folder."""
    loaded = assignment_of(out, assignment)
    with open_gradebook(out) as book:
        print_boards(out, book.counting(loaded.rules), loaded, names=names)
