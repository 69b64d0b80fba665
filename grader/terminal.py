"""What the terminal shows while work goes on, and what it says at the end."""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.progress_bar import ProgressBar
from rich.table import Table

from grader.batch import Event
from grader.bench import Bench
from grader.benchmark import report as layout
from grader.benchmark.record import Section
from grader.gradebook import Gradebook
from grader.leaderboard import leaderboard_table
from grader.marks import Marking
from grader.outputs import board_rows, work_of
from grader.place import place_of, shown
from grader.progress import Progress, Standing, as_json, standing_of
from grader.render import one_line, points
from grader.sandbox.devices import BUILD, LIBRARIES, Gpu, can_run
from grader.sandbox.selftest import PROMISES, promised
from grader.sandbox.tiers import WHAT
from grader.selftest import Alarms, Trial, run_matrix, run_seeds
from grader.types import Assignment, CheckResult, Grade, Outcome
from grader.variants import Variant

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def say(text: str, style: str | None = None) -> None:
    """One line, which only a terminal may wrap."""
    console.print(text, style=style, soft_wrap=True)


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar with an ETA on a terminal, nothing elsewhere; yields the function that advances it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with RichProgress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as shown:
        task = shown.add_task(what, total=total)
        yield lambda count=1: shown.advance(task, count)


@contextmanager
def grading_progress(
    out: Path, total: int, marking: Marking, *, json_lines: bool = False, logs_in: Path | None = None
) -> Iterator[Progress]:
    """Shows a batch: live on a terminal, a line for each grade elsewhere, or each event as a line of JSON."""
    with ExitStack() as stack:
        live = None
        if console.is_terminal and not json_lines:
            live = stack.enter_context(Live(console=console, refresh_per_second=2, transient=True))

        def show(event: Event, standing: Standing) -> None:
            if json_lines:
                console.out(as_json(event, standing), highlight=False)
                return
            if event.kind == "failed":
                say(f"           {escape(event.student_id)}: tried again, by a fault of ours: {escape(event.message)}")
            if event.kind == "withdrawn":
                say(f"           {escape(event.student_id)}: the grade was withdrawn: {escape(event.message)}")
            elif event.grade:
                say(_graded_line(event, standing, marking, eta=live is None))

        progress = stack.enter_context(Progress(out, total, show, logs_in))
        if live:
            live.get_renderable = lambda: standing_table(progress.standing, time.time())  # type: ignore[method-assign]
        yield progress


def _graded_line(event: Event, standing: Standing, marking: Marking, *, eta: bool) -> str:
    assert event.grade is not None
    grade, shown = event.grade, marking.of(event.grade)
    score = "not graded" if shown.score is None else f"{points(shown.score)}/{points(shown.max_score)}"
    left = standing.eta_s(time.time())
    how = "already graded" if event.kind == "known" else f"{grade.wall_time_s:.0f} s"
    if eta and left is not None and event.kind == "graded":
        how += f"  about {left:.0f} s left"
    count = f"{standing.done:>4}/{standing.total}"
    return f"{count}  {escape(grade.student_id):<28} {grade.status.value:<18} {score:>10}  {how}"


NARROW = 80  # columns: below, a terminal has no room for what stands beside each other elsewhere
MOST_SHOWN = 16  # of those that run


def standing_table(standing: Standing, now: float) -> Group:
    """Done, running where and since when, queued, faults by kind, and when it will be over."""
    left = standing.eta_s(now)
    counts = [
        f"{standing.done}/{standing.total} done",
        f"{len(standing.running)} running",
        f"{standing.waiting} {'left for another time' if standing.is_stopping else 'queued'}",
    ]
    counts += [f"{len(standing.held)} to be confirmed"] if standing.held else []
    counts += [f"{count} {status}" for status, count in sorted(standing.by_status.items()) if count]
    counts += [] if left is None or standing.is_stopping or standing.is_over else [f"about {_duration(left)} left"]
    table = Table("running", "where", "for", show_edge=False, box=None, padding=(0, 2, 0, 0))
    oldest = sorted(standing.running.items(), key=lambda item: item[1][1])
    for student_id, (worker, since) in oldest[:MOST_SHOWN]:
        table.add_row(escape(student_id), escape(worker), _duration(now - since))
    if len(oldest) > MOST_SHOWN:
        table.add_row(f"and {len(oldest) - MOST_SHOWN} more", "", "")
    done = ProgressBar(total=max(1, standing.total), completed=standing.done, width=min(30, console.width))
    head = Table.grid(padding=(0, 2))
    if console.width < NARROW:
        head.add_row(done)
        head.add_row("  ".join(counts))
    else:
        head.add_row(done, "  ".join(counts))
    faults = [f"[yellow]{count} x tried again: {escape(what)}[/]" for what, count in standing.faults.items()]
    return Group(head, *([table] if oldest else []), *faults)


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60} min"


def print_standing(out: Path) -> None:
    """How the batch of a results folder stands, from another terminal. Raises UsageError if there is none."""
    standing, is_going_on = standing_of(out)
    if not is_going_on:
        standing.running.clear()  # what a second Ctrl-C, or a kill, has ended
    console.print(standing_table(standing, time.time() if is_going_on else standing.written_at))
    if is_going_on and standing.is_stopping:
        say(
            f"It is stopping, as process {standing.pid}: what runs is finished; the same command goes on with the rest."
        )
    elif is_going_on:
        say(f"It is going on, as process {standing.pid}.")
    elif standing.is_over and standing.done == standing.total:
        say(f"It is over; {standing.unknown} not graded by a fault of ours." if standing.unknown else "It is over.")
    else:
        say("It was stopped before it was done; the same command goes on.", style="yellow")


def print_boards(out: Path, grades: list[Grade], assignment: Assignment, *, names: bool = False) -> None:
    """The leaderboard, and that of the open class if anybody is in it."""
    console.print(leaderboard_table(board_rows(out, grades, assignment, names=names)))
    if rows := board_rows(out, grades, assignment, names=names, open_class=True):
        console.print(leaderboard_table(rows, "Open class"))


def summary(out: Path, assignment: Assignment, grades: list[Grade], to_mark: str) -> None:
    """The leaderboard, the files to open, and what is left to do."""
    if any(profile.curves for profile in assignment.profiles) or any(grade.perplexities for grade in grades):
        print_boards(out, grades, assignment)  # else no model is scored, and every row would be empty
    say("\nOpen these:")
    for name, what in (
        ("leaderboard.html", "the leaderboard with its intervals"),
        ("grades.csv", "every grade"),
        ("feedback/", "a page for each student"),
        ("results/", "Gradescope's results.json for each student"),
    ):
        say(f"  {out / name}{'/' if name.endswith('/') else ''}  {what}")
    say(f"  {escape(shown(place_of(out)))}  the gradebook")
    if to_mark:
        say(to_mark)


def list_waiting(out: Path, book: Gradebook, assignment: Assignment, given: Path | None) -> None:
    """A line for each mark that is to be given or looked at again, then what to look for."""
    marking = Marking(items=assignment.manual, marks=book.marks())
    grades = {grade.student_id: grade for grade in book.counting(assignment.rules)}
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
        say(f"\n{len(waiting)} to mark, each by: {mark_command(out, given, 'STUDENT ITEM POINTS --comment TEXT')}")
    else:
        say("nothing waits for a mark")


def mark_command(out: Path, assignment: Path | None = None, arguments: str = "") -> str:
    """What to type, with the assignment if it was typed: a results folder remembers its own."""
    words = ["grader mark", arguments, "-o", shlex.quote(str(out))]
    if assignment:
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


def gpu_table(found: Sequence[Gpu]) -> None:
    """Print the GPUs of this machine, whether MXNet can use them, and what to install if so."""
    if not found:
        say("no GPU: grading runs on the CPU")
        return
    table = Table("GPU", "name", "memory", "capability", "driver", "MXNet 1.9.1", title="GPUs")
    for gpu in found:
        memory = "" if gpu.memory_bytes is None else f"{gpu.memory_bytes / (1 << 30):.0f} GiB"
        reason = can_run(gpu)
        verdict = f"[yellow]{escape(reason)}[/]" if reason else "[green]can use it[/], as far as this tells"
        table.add_row(str(gpu.index), escape(one_line(gpu.name)), memory, gpu.compute, escape(gpu.driver), verdict)
    console.print(table)
    if all(can_run(gpu) for gpu in found):
        say("no GPU that MXNet can use: grading runs on the CPU")
        return
    say("A GPU profile needs an environment of its own, named by `runtime` in assignment.yaml (docs/gpu.md):")
    say(f"  pip install {BUILD}==1.9.1 numpy==1.23.5 nbclient==0.11.0 ipykernel==7.4.0 {' '.join(LIBRARIES)}")
    say("The grader sets LD_LIBRARY_PATH for notebooks; to try it by hand, in that environment:")
    say("  export LD_LIBRARY_PATH=$(echo ENVIRONMENT/lib/python3*/site-packages/nvidia/*/lib | tr ' ' ':')")


def measured(name: str, found: Section) -> None:
    """Print what `grader bench` found in one of its sections."""
    header, rows = layout.table(found)
    shown = Table(header[0], title=layout.title(name, found))
    for heading in header[1:]:
        shown.add_column(heading, justify="right")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    if said := layout.conclusion(found):
        say(said)


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
