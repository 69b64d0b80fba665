"""What the terminal shows while work goes on, and what it says at the end."""

from __future__ import annotations

import os
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from grader.batch import Report
from grader.benchmark import Figure
from grader.gradebook import Gradebook
from grader.leaderboard import leaderboard_table
from grader.marks import Marking
from grader.outputs import GRADEBOOK, board_rows, work_of
from grader.pipeline import Bench
from grader.render import one_line, points
from grader.sandbox.selftest import PROMISES, promised
from grader.sandbox.tiers import WHAT
from grader.selftest import Alarms, Trial, run_matrix, run_seeds
from grader.types import Assignment, CheckResult, Grade, Outcome
from grader.variants import Variant


class Terminal(Console):
    """A console whose reader may go away: grading goes on without one."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


console = Terminal(highlight=False, width=None if sys.stdout.isatty() else 120)


def say(text: str, style: str | None = None) -> None:
    """One line, which only a terminal may wrap."""
    console.print(text, style=style, soft_wrap=True)


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar with an ETA on a terminal, nothing elsewhere; yields the function that advances it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as shown:
        task = shown.add_task(what, total=total)
        yield lambda count=1: shown.advance(task, count)


@contextmanager
def grading_progress(total: int, marking: Marking) -> Iterator[Report]:
    """A line for each grade, with an ETA: below a bar on a terminal, in each line elsewhere."""
    done, started = 0, datetime.now()
    with bar("grading", total) as advance:

        def report(grade: Grade, known: bool) -> None:
            nonlocal done
            done += 1
            advance()
            standing = marking.of(grade)
            score = f"{points(standing.score)}/{points(standing.max_score)}"
            score = "not graded" if standing.score is None else score
            left = (datetime.now() - started).total_seconds() / done * (total - done)
            eta = "" if console.is_terminal else f"  about {left:.0f} s left"
            how = "already graded" if known else f"{grade.wall_time_s:.0f} s{eta}"
            say(f"{done:>4}/{total}  {escape(grade.student_id):<28} {grade.status.value:<18} {score:>10}  {how}")

        yield report


def print_boards(out: Path, grades: list[Grade], assignment: Assignment, *, names: bool = False) -> None:
    """The leaderboard, and that of the open class if anybody is in it."""
    console.print(leaderboard_table(board_rows(out, grades, assignment, names=names)))
    if rows := board_rows(out, grades, assignment, names=names, open_class=True):
        console.print(leaderboard_table(rows, "Open class"))


def summary(out: Path, assignment: Assignment, grades: list[Grade], to_mark: str) -> None:
    """The leaderboard, the files to open, and what is left to do."""
    print_boards(out, grades, assignment)
    say("\nOpen these:")
    for name, what in (
        ("leaderboard.html", "the leaderboard with its intervals"),
        ("grades.csv", "every grade"),
        ("feedback/", "a page for each student"),
        ("results/", "Gradescope's results.json for each student"),
        (GRADEBOOK, "the gradebook"),
    ):
        say(f"  {out / name}{'/' if name.endswith('/') else ''}  {what}")
    if to_mark:
        say(to_mark)


def list_waiting(out: Path, book: Gradebook, assignment: Assignment, folder: Path) -> None:
    """A line for each mark that is to be given or looked at again, then what to look for."""
    marking = Marking(items=assignment.manual, marks=book.marks())
    grades = {grade.student_id: grade for grade in book.latest()}
    waiting = marking.open(grades.values())
    work = {student: work_of(out, grades[student]) for student in {grade.student_id for grade, _ in waiting}}
    for grade, item in waiting:
        again = f"  marked on an earlier submission: {points(item.points)}" if item.earlier else ""
        what = f"{item.id:<24} {points(item.max_points):>4} points  {item.section:<40}"
        say(f"{escape(grade.student_id):<28} {escape(what)} {escape(str(work[grade.student_id]))}{again}")
    for entry in assignment.manual:
        if waiting and entry.guide:
            say(f"\n{escape(f'{entry.id}: {entry.title}')}\n  {escape(one_line(entry.guide, 4000))}")
    if waiting:
        say(f"\n{len(waiting)} to mark, each by: {mark_command(out, folder, 'STUDENT ITEM POINTS --comment TEXT')}")
    else:
        say("nothing waits for a mark")


def mark_command(out: Path, assignment: Path, arguments: str = "") -> str:
    """What to type, as it was typed for this results folder."""
    words = ["grader mark", arguments, "-o", shlex.quote(str(out))]
    if assignment != Path("reference"):
        words += ["--assignment", shlex.quote(str(assignment))]
    return escape(" ".join(filter(None, words)))


def wrong_verdicts(variants: list[Variant], bench: Bench, jobs: int) -> int:
    """Run the matrix, a line for each variant; how many came out wrong."""
    trials: list[Trial] = []
    with bar("variants", len(variants)) as advance:

        def report(trial: Trial) -> None:
            trials.append(trial)
            verdict = f"[red]{escape(trial.problem)}[/]" if trial.problem else "[green]as it should[/]"
            by = ", ".join(sorted(trial.failed)) or "nothing fails"
            say(f"{len(trials):>4}/{len(variants)}  {escape(trial.variant.name):<44} {by:<60} {verdict}")
            for result in trial.checks:
                if result.check_id in trial.bystanders:
                    say(f"           {result.check_id}: {escape(one_line(result.message))}")
            advance()

        run_matrix(variants, bench, jobs=jobs, report=report)
    mutated = [trial for trial in trials if trial.variant.fails]
    killed = sum(not trial.survived for trial in mutated)
    bystanders = sum(bool(trial.bystanders) for trial in mutated)
    alarms = sum(bool(trial.bystanders) for trial in trials if not trial.variant.fails)
    say(f"{killed} of {len(mutated)} mutants killed by the checks meant for them, {bystanders} with bystanders")
    say(f"{alarms} of {len(trials) - len(mutated)} correct solutions lose points")
    return sum(bool(trial.problem) for trial in trials)


def false_alarms(correct: list[Variant], bench: Bench, seeds: range, jobs: int) -> int:
    """Run correct solutions with many seeds; how many checks failed."""
    failures: list[str] = []
    seconds: list[float] = []
    with bar("seeds", len(seeds) * len(correct)) as advance:

        def report(alarms: Alarms) -> None:
            failures.extend(alarms.failures)
            seconds.extend(alarms.seconds)
            for failure in alarms.failures:
                say(f"[red]{escape(alarms.name)}, {escape(one_line(failure))}[/]")
            between = f"seeds {alarms.seeds[0]} to {alarms.seeds[-1]}"
            say(f"{len(seconds):>6}/{len(seeds) * len(correct)}  {escape(alarms.name):<44} {between}")
            advance(len(alarms.seeds))

        run_seeds(correct, bench, seeds, jobs=jobs, report=report)
    runs = len(seeds) * len(correct)
    say(f"{len(failures)} false alarms in {runs} runs of {len(correct)} correct solutions")
    say(f"all checks of one submission took {statistics.median(seconds):.2f} s (median), {max(seconds):.2f} s at most")
    return len(failures)


def diagnosis(reasons: Mapping[str, str], kept: Mapping[str, Mapping[str, bool]], cold: Sequence[str]) -> bool:
    """Print which tiers start here and what the first of them keeps; whether this machine can grade.

    `kept` is by how a sandbox starts, from nothing (cold) and as a copy (warm); `cold` is what kept it from the latter.
    """
    in_use = next((tier for tier, reason in reasons.items() if not reason), None)
    tiers = Table("sandbox", "what it is", "on this machine", title="Sandboxes, the strongest first")
    for tier, reason in reasons.items():
        starts = "[green]in use[/]" if tier == in_use else "starts"
        tiers.add_row(tier, WHAT[tier], f"[yellow]{escape(reason)}[/]" if reason else starts)
    console.print(tiers)
    if in_use is None:
        say("There is no sandbox on this machine, and nothing is graded without one.", style="bold red")
        return False
    table = Table(
        "promise", *(f"kept, started {start}" for start in kept), title=f"What {in_use} keeps, tried just now"
    )
    for name in PROMISES:
        no = "[red]NO[/]" if name in promised(in_use) else "[yellow]no: not promised by this weaker sandbox[/]"
        table.add_row(PROMISES[name], *("[green]yes[/]" if found[name] else no for found in kept.values()))
    console.print(table)
    for reason in cold[-1:]:
        say(f"Every sandbox starts cold here: {reason}", style="yellow")
    return all(found[name] for found in kept.values() for name in promised(in_use))


def measured(figures: Sequence[Figure], title: str) -> None:
    """Print times beside their floors."""
    table = Table("what", "time", "floor", "of the floor", "overhead", "ratio", title=title)
    for figure in figures:
        times = (f"{figure.time_s * 1000:.0f} ms", figure.floor, f"{figure.floor_s * 1000:.0f} ms")
        table.add_row(figure.what, *times, f"{figure.overhead_s * 1000:.0f} ms", f"{figure.ratio:.2f}")
    console.print(table)


def replayed(results: list[CheckResult], recorded: Mapping[str, CheckResult]) -> int:
    """A line for each check that was run again; how many verdicts are others than before."""
    differ = 0
    for result in results:
        before = recorded[result.check_id].outcome
        style = "green" if result.outcome is Outcome.PASSED else "red"
        now = "" if before is result.outcome else f"  [yellow](was {before.value})[/]"
        say(f"[{style}]{result.outcome.value:>9}[/]  {escape(result.check_id)}{now}")
        if result.message:
            say(f"           {escape(one_line(result.message))}")
        differ += before is not result.outcome
    return differ
