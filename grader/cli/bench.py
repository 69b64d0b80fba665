"""`grader bench`: what the grader costs, measured on this machine, recorded, and laid out as a page."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from grader.bench import set_up
from grader.benchmark.batches import memory, pool, pool_size
from grader.benchmark.costs import counting, reading, require_solution, sandbox_start, submission
from grader.benchmark.drawing import draw
from grader.benchmark.record import KINDS, Found, Section, merge_into, read_record, section
from grader.benchmark.report import page
from grader.benchmark.specimen import CALLS
from grader.cli.common import AssignmentOption, ProfileOption, app, load, usable_tier
from grader.corpus import write_whole
from grader.errors import UsageError
from grader.sandbox.selftest import can_be_warm
from grader.sandbox.tiers import NONE
from grader.selftest import small
from grader.stopping import Interrupted
from grader.terminal import bar, measured, say
from grader.types import Assignment, Profile

EACH = 100  # grades of a student, in the gradebook that is measured
MEMORY, LEAST_MEMORY = 100, 20  # submissions: of a full run, and below which nothing can be said of growth
SIMULATION = (96, 16, 5.0)  # of a full run: submissions, slots, seconds of each
INTERRUPTED = 130

Measured = tuple[Sequence[Found], Mapping[str, float]]  # and how it was asked for


@app.command()
def bench(
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Record every run as JSON; sections that are measured replace its own."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help=f"Of {', '.join(KINDS)}; can be repeated.")] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Of each figure, and as many of its floor.")] = 5,
    chars: Annotated[int, typer.Option("--chars", min=7_500, help="Of text that is read.")] = 25_600,
    students: Annotated[int, typer.Option(min=1, help=f"Of the gradebook; each has {EACH} grades.")] = 1_000,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Workers of a batch.")] = os.cpu_count() or 1,
    batch: Annotated[int, typer.Option(min=1, help="Submissions of each worker in a batch whose rate counts.")] = 8,
    long: Annotated[
        int | None,
        typer.Option("--memory", min=LEAST_MEMORY, help="Instead: memory over a batch of so many submissions."),
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=2, help="Instead: a simulated cluster with so many slots; an even number.")
    ] = None,
    submissions: Annotated[int, typer.Option(min=1, help="What these --slots are given.")] = 1_000,
    seconds: Annotated[float, typer.Option(min=0.1, help="What each of them takes.")] = 60.0,
    record: Annotated[Path | None, typer.Option("--from", help="Measure nothing: show what -o recorded.")] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a page (PAGE.md) of the record, and a plot beside it.")
    ] = None,
    assignment: AssignmentOption = Path("reference"),
    profile: ProfileOption = "smoke",
) -> None:
    """Measure what the grader costs, each figure beside a floor; about ten minutes on an idle machine."""
    _refuse(only or [], slots or 0, record, report, out)
    if record and (out or only or long or slots):
        raise UsageError(
            "--from measures nothing, it shows what was recorded: leave out -o, --only, --memory, --slots."
        )
    if record:
        for name, found in read_record(record).items():
            measured(name, found)
    else:
        loaded, scale = load(assignment, profile)
        wanted = only or [*(["memory"] if long else []), *(["simulated"] if slots else [])] or list(KINDS)
        if "reading" in wanted:
            require_solution(loaded)
        tier = usable_tier(False) if {*wanted} - {"gradebook", "simulated"} else ""
        measures = _Measures(
            assignment=loaded,
            profile=scale,
            tier=tier,
            runs=runs,
            chars=chars,
            students=students,
            jobs=jobs,
            batch=batch,
            length=long or MEMORY,
            simulation=(submissions, slots, seconds) if slots else SIMULATION,
        )
        _measure({name: getattr(measures, name) for name in KINDS if name in wanted}, tier, out)
    source = record or out
    if report and source:
        write_report(source, report)
        say(f"{escape(str(report))} and its plot are written.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measures:
    """What can be measured, by the names of the sections, at the scale that was asked for."""

    assignment: Assignment
    profile: Profile
    tier: str
    runs: int
    chars: int
    students: int
    jobs: int
    batch: int
    length: int  # of the batch over which memory is watched
    simulation: tuple[int, int, float]

    def gradebook(self) -> Measured:
        settings = {"runs": self.runs, "students": self.students, "each": EACH, "grades": self.students * EACH}
        return counting(self.students, EACH, self.runs), settings

    def sandbox(self) -> Measured:
        return [sandbox_start(self.tier, self.runs)], {"runs": self.runs}

    def submission(self) -> Measured:
        return submission(self.tier, self.runs), {"runs": self.runs, "calls": CALLS}

    def pool(self) -> Measured:
        settings = {"runs": self.runs, "batch": self.batch, "calls": CALLS, "warm": can_be_warm(self.tier)}
        with bar("submissions", pool_size(self.jobs, self.batch, self.runs)) as advance:
            return pool(self.tier, self.jobs, self.batch, self.runs, advance), settings

    def memory(self) -> Measured:
        settings = {"submissions": self.length, "workers": self.jobs, "warm": can_be_warm(self.tier)}
        with bar("submissions", self.length) as advance:
            return [memory(self.tier, self.length, self.jobs, advance)], settings

    def reading(self) -> Measured:
        settings = {"runs": self.runs, "chars": self.chars}
        return reading(self.assignment, self.profile, self.tier, self.chars, self.runs), settings

    def simulated(self) -> Measured:
        from grader.benchmark.simulated import simulate  # imports Dask

        return [simulate(*self.simulation, set_up(self.assignment, small(self.profile), NONE))], {}


def _refuse(only: Sequence[str], slots: int, record: Path | None, report: Path | None, out: Path | None) -> None:
    """What would fail at the end of a long run. Raises UsageError."""
    for name in only:
        if name not in KINDS:
            raise UsageError(f"--only is {name!r}; expected one of {', '.join(KINDS)}.")
    if slots % 2:
        raise UsageError(f"--slots is {slots}; expected an even number, as the simulated cluster has two workers.")
    if report and not (record or out):
        raise UsageError("--report is made from a record: name one by --from, or have this run recorded with -o.")
    if report and report.suffix != ".md":
        raise UsageError(f"--report is {report}; expected a name that ends in .md (the plot beside it ends in .svg).")
    if out and out.exists():
        read_record(out)  # which refuses what is no record


def _measure(measures: dict[str, Callable[[], Measured]], tier: str, out: Path | None) -> None:
    """Measure one after the other; what is done is shown, and recorded, at once."""
    load, before = os.getloadavg()[0], read_record(out) if out and out.exists() else {}
    for name, measure in measures.items():
        try:
            found, settings = measure()
        except Interrupted:
            say("Stopped: this section is not recorded; those before it are, if there is an -o.")
            raise typer.Exit(INTERRUPTED) from None
        sandbox = "" if name in ("gradebook", "simulated") else tier
        done = section(found, load_at_start=round(load, 2), sandbox=sandbox, **settings)
        measured(name, done)
        if out:
            merge_into(out, {name: done})
            _tell_replaced(name, before, out)


def _tell_replaced(name: str, before: dict[str, Section], out: Path) -> None:
    if name in before:
        say(f"{escape(str(out))}: this replaces what was measured at {before[name].measured_at}.")


def write_report(record: Path, report: Path) -> None:
    """The page of a record, and its plot under the same name."""
    sections, plot = read_record(record), report.with_suffix(".svg")
    beside = os.path.relpath(record, report.parent)
    write_whole(report, page(sections, record=beside, plot=plot.name).encode())
    draw(sections, plot, hashlib.sha256(record.read_bytes()).hexdigest())
