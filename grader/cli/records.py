"""What is on record: what decided a grade, whether the gradebook is well, and what grading again would change."""

from __future__ import annotations

import functools
import os
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from grader import regrade as again
from grader import upkeep
from grader.audit import SHARE
from grader.batch import hire
from grader.bench import set_up
from grader.cli.common import (
    AllowCpuOption,
    AuditOption,
    CorpusOption,
    JsonOption,
    RememberedOption,
    SandboxOption,
    SchedulerOption,
    UnsandboxedOption,
    alone,
    app,
    is_busy,
    now,
    open_gradebook,
    profile_of,
    usable_jobs,
    usable_tier_and_device,
)
from grader.errors import SandboxUnavailable, UsageError
from grader.executors import Workers
from grader.identity import PARTS, changed
from grader.leaderboard import baselines_of
from grader.marks import Marking
from grader.origin import assignment_of
from grader.outputs import kept_params, submission_of, write_class, write_text
from grader.place import place_of, shown, untested
from grader.progress import log_published
from grader.render import one_line, points
from grader.sandbox.tiers import NONE, WHAT, pick_tier
from grader.terminal import NARROW, console, grading_progress, say
from grader.types import Grade, Status, Submission

db = typer.Typer(no_args_is_help=True, help="Check, repair and back up the gradebook of a results folder.")
app.add_typer(db, name="db")

OutOption = Annotated[Path, typer.Option("-o", "--output", help="The results folder of `grader grade`.")]


@app.command()
def why(
    student: Annotated[str, typer.Argument(help="As in the gradebook.")],
    out: OutOption,
    assignment: RememberedOption = None,
    profile: Annotated[str, typer.Option("--profile", help="The scale now; that of the grade if not given.")] = "",
    sandbox: Annotated[str, typer.Option(help="As for `grade`; this machine's if not given.")] = "",
    corpus_file: CorpusOption = None,
) -> None:
    """Show what decided a student's latest grade, and what of it is another now: exit 1 if grading would run again."""
    if sandbox and sandbox not in WHAT:
        raise UsageError(f"--sandbox is {sandbox!r}; expected one of {', '.join(WHAT)}.")
    with open_gradebook(out) as book:
        history = book.history(student)
    if not history:
        raise UsageError(f"there is no student {student!r} in {shown(book.place)}: give an id as in grades.csv.")
    real = [grade for grade in history if grade.status is not Status.NEEDS_REGRADE]
    latest, before = (real or history)[-1], (real or history)[-2:-1]
    loaded = assignment_of(out, assignment)
    scale = profile_of(loaded, profile or latest.profile)
    try:
        tier = sandbox or pick_tier()
    except SandboxUnavailable:
        tier = NONE
    device = "cpu" if latest.cpu_instead else scale.device
    bench = set_up(loaded, scale, tier, str(corpus_file) if corpus_file else None, device=device)
    parts = bench.key_parts(_submission(out, latest))
    _parts_table(latest, before[0] if before else None, parts)
    if latest.status is Status.NEEDS_REGRADE:
        say(f"It was never graded, by a fault of ours ({escape(latest.message)}): it would be graded again.")
    elif not latest.key_parts:
        say("It was graded by a grader that did not record what decides a grade: it would be graded again.")
    elif different := changed(latest.key_parts, parts):
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
    place, lost = place_of(out), []
    if isinstance(place, Path):
        if mend and place.exists():
            with alone(out):
                mended = upkeep.repair(place)
            for sentence in mended.done:
                say(escape(sentence))
            lost = [upkeep.Problem(what=mended.lost)] if mended.lost else []
        problems = lost + upkeep.check(place, out, busy=place.exists() and is_busy(out))
    else:
        if warning := untested(place):
            say(escape(warning), style="bold red")
        for sentence in upkeep.repair_server(place) if mend else ():
            say(escape(sentence))
        problems = upkeep.check_server(place, out)
    for problem in problems:
        say(f"{escape(problem.what)}{escape(f' --repair: {problem.repair}.') if problem.repair else ''}", style="red")
    say(f"{len(problems)} problems in {escape(shown(place))}" if problems else f"{escape(shown(place))} is well")
    raise typer.Exit(1 if problems else 0)


@db.command("backup")
def db_backup(
    out: Annotated[Path, typer.Argument(help="The results folder of `grader grade`.")],
    copy: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where the copy goes; an earlier copy is replaced, no other file.")
    ],
) -> None:
    """Copy the gradebook, also while a batch writes to it; the copy is tried before it gets its name."""
    place = place_of(out)
    if not isinstance(place, Path):
        raise UsageError(
            f"{shown(place)} is on a server: copy it with the database's own tool, `pg_dump` for PostgreSQL, "
            "`mariadb-dump` or `mysqldump` for MySQL."
        )
    upkeep.back_up(place, copy)
    say(f"wrote {copy}")


@app.command()
def regrade(
    out: Annotated[Path, typer.Argument(help="The results folder of `grader grade`.")],
    diff: Annotated[
        bool, typer.Option("--diff", help="Only say what would change; so it is without --publish.")
    ] = False,
    publish: Annotated[bool, typer.Option("--publish", help="Have the new grades count, and write all files.")] = False,
    assignment: RememberedOption = None,
    profile: Annotated[str, typer.Option("--profile", help="The scale; that of the grades if not given.")] = "",
    jobs: Annotated[int, typer.Option("--jobs", min=0, help="Worker processes; 0: none.")] = os.cpu_count() or 1,
    scheduler: SchedulerOption = "",
    sandbox: SandboxOption = "",
    audit: AuditOption = SHARE,
    json_lines: JsonOption = False,
    corpus_file: CorpusOption = None,
    allow_unsandboxed: UnsandboxedOption = False,
    allow_cpu: AllowCpuOption = False,
) -> None:
    """Grade what counts again, by the assignment as it is now, and say who gains, who loses, and why; in the shadow.

    Exit 1 if some could not be graded.
    """
    if diff and publish:
        raise UsageError("--diff only says what would change, and --publish has it count: choose one of them.")
    with open_gradebook(out) as book, alone(out):
        loaded = assignment_of(out, assignment)
        attempts = book.may_count(loaded.rules)
        if not attempts:
            raise UsageError(f"there is no grade in {shown(book.place)}: grade first.")
        usual = Counter(grade.profile for grade in attempts).most_common(1)[0][0]
        scale = profile_of(loaded, profile or usual)
        tier, device = usable_tier_and_device(scale, scheduler, sandbox, allow_unsandboxed, allow_cpu)
        bench = set_up(loaded, scale, tier, str(corpus_file) if corpus_file else None, (out,), device)
        most = jobs if scheduler else usable_jobs(jobs, device, scale)
        marking = Marking(items=loaded.manual, marks=book.marks())
        lost = [grade for grade in attempts if submission_of(out, grade) is None]
        aside = out / again.SHADOW

        def hired(count: int) -> Workers:
            return hire(bench, jobs=min(most, count), scheduler=scheduler)

        total = len(attempts) - len(lost)
        with grading_progress(out, total, marking, json_lines=json_lines, logs_in=aside) as watch:
            new = again.regrade(out, attempts, bench, hired=hired, started_at=now(), watch=watch, audit=audit)
        before = book.counting(book.recorded_rules())
        changes = again.changes(before, attempts, new, loaded.rules, marking)
        write_text(out / again.REGRADE_CSV, again.regrade_csv(changes))
        if not json_lines:
            _changes(changes, lost)
        count = 0
        if publish:
            logged = functools.partial(log_published, out, aside)
            count = again.publish(out, book, changes, new, bench, marking, started_at=now(), published=logged)
            lines = baselines_of(bench.yardsticks, bench.split.sha256)
            book.record_rules(loaded.rules)
            write_class(out, book.counting(loaded.rules), loaded, lines, marking)
    if not json_lines:
        unchanged = "nothing that counts was changed; --publish instead of --diff has these grades count"
        say(f"published {count} new grades in {out}" if publish else unchanged)
        say(f"wrote {out / again.REGRADE_CSV}")
    raise typer.Exit(1 if any(change.after.counts is None for change in changes) else 0)


def _changes(changes: Sequence[again.Change], lost: Sequence[Grade]) -> None:
    """Who gains and who loses, by what, and what it comes to for the class."""
    moved = [change for change in changes if change.items or change.points]
    table = Table("student", "before", "after", "change", "why", title="What would change")
    for change in sorted(moved, key=lambda change: (change.points or 0.0, change.student_id)):
        style = "red" if (change.points or 0.0) < 0 else "green"
        moves = [f"{item.name}: {_moved(item)} ({item.change:+.4g})" for item in change.items]
        scores = (points(change.before.counts), points(change.after.counts))
        points_moved = "unknown" if change.points is None else f"[{style}]{change.points:+.4g}[/]"
        table.add_row(escape(change.student_id), *scores, points_moved, escape(one_line("; ".join(moves), 2000)))
    if moved:
        console.print(table)
    known = [change for change in changes if change.points is not None]
    gain, lose = (sum(sign * (change.points or 0.0) > 0 for change in known) for sign in (1, -1))
    say(f"{gain} gain, {lose} lose, {len(known) - gain - lose} keep their points", style="bold")
    if known:
        before, after = (statistics.mean(scores) for scores in zip(*map(_scores, known), strict=True))
        say(f"mean of the class: {before:.2f} before, {after:.2f} after")
    by_item: dict[str, list[float]] = {}
    for change in changes:
        for item in change.items:
            by_item.setdefault(item.name, []).append(item.change)
    for name, found in sorted(by_item.items()):
        up, down = sum(one > 0 for one in found), sum(one < 0 for one in found)
        say(f"  {escape(name)}: {up} gain, {down} lose, {sum(found):+.4g} points in all")
    for change in changes:
        if change.after.counts is None:
            say(f"{escape(change.student_id)} could not be graded: {escape(change.after.grade.message)}", style="red")
    for grade in lost:
        why_not = f"the notebook {grade.submission_sha256[:12]} is not kept in the results folder"
        say(f"{escape(grade.student_id)} keeps the grade there is: {why_not}", style="yellow")


def _moved(item: again.Item) -> str:
    return f"{item.outcome_before or 'not there'} -> {item.outcome_after or 'not there'}"


def _scores(change: again.Change) -> tuple[float, float]:
    return change.before.counts or 0.0, change.after.counts or 0.0


def _submission(out: Path, grade: Grade) -> Submission:
    """The submission of a grade; without a path if the results folder does not keep it."""
    params = kept_params(out, grade.submission_sha256)
    who = {"student_id": grade.student_id, "sha256": grade.submission_sha256, "submitted_at": grade.submitted_at}
    return submission_of(out, grade) or Submission(path="", params=params, **who)


def _parts_table(latest: Grade, before: Grade | None, now: dict[str, str]) -> None:
    """What decided the latest grade, beside what would decide it now and what decided the one before."""
    of_what = f"Of what was handed in {latest.submitted_at}; whether there is a newer one, `grader grade` looks."
    table = Table(title=f"Why {escape(latest.student_id)}", caption=escape(of_what))
    is_wide = console.width >= NARROW
    table.add_column("part", no_wrap=True)
    for heading in (*(["what it is"] if is_wide else []), f"graded {latest.graded_at}", "now"):
        table.add_column(heading, overflow="fold")
    recorded = [latest.key_parts, now]
    if before:
        table.add_column(f"before, {before.graded_at}", overflow="fold")
        recorded.append(before.key_parts)
    for name in PARTS:
        cells = [escape(_short(parts.get(name, "not recorded"))) for parts in recorded]
        for column, parts in enumerate(recorded[1:], start=1):
            if parts.get(name) != latest.key_parts.get(name):
                cells[column] = f"[yellow]{cells[column]} differs[/]"
        table.add_row(name, *([PARTS[name]] if is_wide else []), *cells)
    console.print(table)


def _short(part: str) -> str:
    """The beginning of a hash; all of what is a name or a version."""
    return part[:12] if re.fullmatch("[0-9a-f]{40,}", part) else part
