"""What is on record: why a grade would be given again, and whether the gradebook is well."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from grader import upkeep
from grader.cli.common import AssignmentOption, CorpusOption, alone, app, is_busy, load
from grader.errors import SandboxUnavailable, UsageError
from grader.gradebook import Gradebook
from grader.identity import PARTS, changed
from grader.outputs import GRADEBOOK, kept_params, kept_submission
from grader.pipeline import set_up
from grader.sandbox.tiers import NONE, pick_tier
from grader.terminal import console, say
from grader.types import Grade, Status, Submission

db = typer.Typer(no_args_is_help=True, help="Check, repair and back up the gradebook of a results folder.")
app.add_typer(db, name="db")

OutOption = Annotated[Path, typer.Option("-o", "--output", help="The results folder of `grader grade`.")]


@app.command()
def why(
    student: Annotated[str, typer.Argument(help="As in the gradebook.")],
    out: OutOption,
    assignment: AssignmentOption = Path("reference"),
    profile: Annotated[str, typer.Option("--profile", help="The scale now; that of the grade if not given.")] = "",
    corpus_file: CorpusOption = None,
) -> None:
    """Show what decided a student's latest grade, and what of it is another now: exit 1 if grading would run again."""
    with Gradebook.open(out / GRADEBOOK, create=False) as book:
        history = book.history(student)
    if not history:
        raise UsageError(f"there is no student {student!r} in {out / GRADEBOOK}: give an id as in grades.csv.")
    real = [grade for grade in history if grade.status is not Status.NEEDS_REGRADE]
    latest, before = (real or history)[-1], (real or history)[-2:-1]
    loaded, scale = load(assignment, profile or latest.profile)
    try:
        tier = pick_tier()
    except SandboxUnavailable:
        tier = NONE
    bench = set_up(loaded, scale, tier, str(corpus_file) if corpus_file else None)
    now = bench.key_parts(kept_or_missing(out, latest))
    _parts_table(latest, before[0] if before else None, now)
    if latest.status is Status.NEEDS_REGRADE:
        say(f"It was never graded, by a fault of ours ({escape(latest.message)}): it would be graded again.")
    elif not latest.key_parts:
        say("It was graded by a grader that did not record what decides a grade: it would be graded again.")
    elif different := changed(latest.key_parts, now):
        say(f"It would be graded again: {', '.join(different)} changed.", style="yellow")
    else:
        say("Nothing changed: the same grade is taken from the gradebook.", style="green")
        return
    raise typer.Exit(1)


@db.command("check")
def db_check(
    out: Annotated[Path, typer.Argument(help="The results folder of `grader grade`.")],
    mend: Annotated[bool, typer.Option("--repair", help="Mend what can be mended; a damaged file is kept.")] = False,
) -> None:
    """Read the whole gradebook and say what is wrong: exit 1 if something is, 3 if it cannot be read at all."""
    path = out / GRADEBOOK
    if mend and path.exists():
        with alone(out):
            for sentence in upkeep.repair(path):
                say(escape(sentence))
    problems = upkeep.check(path, busy=path.exists() and is_busy(out))
    for problem in problems:
        say(f"{escape(problem.what)}{escape(f' --repair: {problem.repair}.') if problem.repair else ''}", style="red")
    say(f"{len(problems)} problems in {path}" if problems else f"{path} is well")
    raise typer.Exit(1 if problems else 0)


@db.command("backup")
def db_backup(
    out: Annotated[Path, typer.Argument(help="The results folder of `grader grade`.")],
    copy: Annotated[Path, typer.Argument(metavar="FILE", help="Where the copy goes; an older one is replaced.")],
) -> None:
    """Copy the gradebook, also while a batch writes to it; the copy is tried before it gets its name."""
    upkeep.back_up(out / GRADEBOOK, copy)
    say(f"wrote {copy}")


def kept_or_missing(out: Path, grade: Grade) -> Submission:
    """The submission of a grade, as the results folder keeps it; without a path if it does not."""
    kept, sha256 = kept_submission(out, grade.submission_sha256), grade.submission_sha256
    return Submission(
        student_id=grade.student_id,
        path=str(kept) if kept.exists() else "",
        sha256=sha256,
        submitted_at=grade.submitted_at,
        params=kept_params(out, sha256),
    )


def _parts_table(latest: Grade, before: Grade | None, now: dict[str, str]) -> None:
    """What decided the latest grade, beside what would decide it now and what decided the one before."""
    table = Table("part", "what it is", f"graded {latest.graded_at}", "now", title=f"Why {escape(latest.student_id)}")
    recorded = [latest.key_parts, now]
    if before:
        table.add_column(f"before, {before.graded_at}")
        recorded.append(before.key_parts)
    for name in PARTS:
        cells = [escape(parts.get(name, "not recorded")[:12]) for parts in recorded]
        for column, parts in enumerate(recorded[1:], start=1):
            if parts.get(name) != latest.key_parts.get(name):
                cells[column] = f"[yellow]{cells[column]} differs[/]"
        table.add_row(name, PARTS[name], *cells)
    console.print(table)
