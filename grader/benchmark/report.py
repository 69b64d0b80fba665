"""Lays out a record of `grader bench`: tables for the terminal, and the page `docs/performance.md`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from grader.benchmark.prose import INTRODUCTION, MEANING, TITLES
from grader.benchmark.record import Figure, Machine, Memory, Rate, Section, Simulation, efficiency

Table = tuple[Sequence[str], list[Sequence[str]]]  # its header and its rows, the first column being text
_MIB, PAGE_WIDTH = 1 << 20, 118


def table(section: Section) -> Table:
    """The figures of a section."""
    found = section.found
    if isinstance(found[0], Figure):
        return _figures(found)
    if isinstance(found[0], Rate):
        return _rates(found)
    if isinstance(found[0], Memory):
        return _sizes(found[0])
    return _simulations(found)


def title(name: str, section: Section) -> str:
    """What a section is about, for the head of a table."""
    runs = section.settings.get("runs")
    return f"{TITLES[name]}{f', medians of {runs:g}' if runs else ''}"


def page(sections: Mapping[str, Section], *, record: str, plot: str) -> str:
    """The page, in Markdown; `record` and `plot` are the names of the files beside it."""
    parts = [
        "# What the grader costs",
        _paragraph(INTRODUCTION.format(record=record)),
        f"![Times as multiples of their floors; submissions an hour; memory over a batch]({plot})",
        "## Where and when",
        _provenance(sections),
    ]
    for name, section in sections.items():
        parts.append(f"## {TITLES[name]}")
        parts.append(_paragraph(MEANING[name].format(**section.settings)))
        parts.append(_markdown(table(section)))
        if said := conclusion(section):
            parts.append(_paragraph(said))
    return "\n\n".join(parts) + "\n"


def conclusion(section: Section) -> str:
    """What follows from the figures of a section, in a sentence; empty where the table says it all."""
    first = section.found[0]
    if isinstance(first, Rate):
        shares = {what: efficiency(section.found, what) for what in dict.fromkeys(rate.what for rate in section.found)}
        most = max(section.found, key=lambda rate: (rate.what == first.what, rate.workers))
        said = "; ".join(f"{what}: {share:.2f}" for what, share in shares.items())
        return f"Efficiency of {most.workers} workers: {said}. That is {most.per_hour:,.0f} such submissions an hour."
    if isinstance(first, Memory):
        trends = first.trends["proportional"] or first.trends["resident"]
        total = sum(trend.median for trend in trends.values())
        grown = sum(trend.per_1000 for trend in first.trends["resident"].values())
        return f"All of these hold {_mib(total)} together (medians), and their RSS grows by {_mib(grown)} per 1,000."
    return ""


def _figures(figures: Sequence[Figure]) -> Table:
    header = ("what", "time", "range", "floor", "of the floor", "overhead", "ratio")
    return header, [
        (
            figure.what,
            _seconds(figure.time_s),
            f"{_seconds(min(figure.times_s))} to {_seconds(max(figure.times_s))}",
            figure.floor,
            _seconds(figure.floor_s),
            _seconds(figure.overhead_s),
            f"{figure.ratio:.2f}",
        )
        for figure in figures
    ]


def _rates(rates: Sequence[Rate]) -> Table:
    header = ("what", "workers", "submissions an hour", "range", "seconds each")
    return header, [
        (
            rate.what,
            str(rate.workers),
            f"{rate.per_hour:,.0f}",
            f"{min(rate.per_hour_of_each):,.0f} to {max(rate.per_hour_of_each):,.0f}",
            f"{3600 * rate.workers / rate.per_hour:.2f}",
        )
        for rate in rates
    ]


def _sizes(memory: Memory) -> Table:
    header = ("what", "measure", "first tenth", "median", "last tenth", "growth per 1,000")
    return header, [
        (who, measure, *map(_mib, (trend.first_tenth, trend.median, trend.last_tenth)), f"{_mib(trend.per_1000, '+')}")
        for kind, measure in (("resident", "RSS"), ("proportional", "PSS"))
        for who, trend in memory.trends[kind].items()
    ]


def _simulations(simulations: Sequence[Simulation]) -> Table:
    header = ("submissions", "slots", "each", "makespan", "ideal", "ratio", "slots idle", "coordinator", "scheduler")
    return (*header, "measured"), [
        (
            f"{one.submissions:,}",
            str(one.slots),
            f"{one.task_s:g} s",
            f"{one.makespan_s:.1f} s",
            f"{one.ideal_s:.1f} s",
            f"{one.makespan_s / one.ideal_s:.3f}",
            f"{one.idle:.1%}",
            *(f"{cpu_s:.1f} s, {cpu_s / one.makespan_s:.1%}" for cpu_s in (one.coordinator_cpu_s, one.scheduler_cpu_s)),
            one.measured_at[:10],
        )
        for one in simulations
    ]


def _provenance(sections: Mapping[str, Section]) -> str:
    """When each section was measured, under which load, and the machines."""
    machines = list(dict.fromkeys(section.machine for section in sections.values()))
    rows: list[Sequence[str]] = [
        (
            TITLES[name],
            f"{section.measured_at[:16].replace('T', ' ')} UTC",
            f"{section.load_at_start:.1f}",
            section.sandbox or "–",
            f"{section.settings['runs']:g}" if "runs" in section.settings else "1",
            chr(ord("A") + machines.index(section.machine)),
        )
        for name, section in sections.items()
    ]
    header = ("section", "measured", "load at start", "sandbox", "runs", "machine")
    lines = [f"- {chr(ord('A') + i)}: {_machine(machine)}" for i, machine in enumerate(machines)]
    return "\n\n".join(
        (
            _markdown((header, rows)),
            "Load is the machine's average of the minute before the command began: above 0, others were at work, too.",
            "\n".join(lines),
        )
    )


def _machine(machine: Machine) -> str:
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_bytes / (1 << 30):.1f} GiB, {machine.system}, "
        f"Python {machine.python}, MXNet {machine.mxnet}, grader {machine.grader}"
    )


def _markdown(table: Table) -> str:
    """A table in Markdown that is aligned for reading as it is, too: first column to the left, others to the right."""
    header, rows = table
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = [
        [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        for row in (header, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def _paragraph(text: str) -> str:
    return textwrap.fill(text.strip(), PAGE_WIDTH, break_long_words=False, break_on_hyphens=False)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if abs(seconds) >= 1 else f"{1000 * seconds:.3g} ms"


def _mib(size: float, sign: str = "") -> str:
    return f"{round(size / _MIB, 1) + 0.0:{sign}.1f} MiB"  # adding zero takes the sign of a negative zero
