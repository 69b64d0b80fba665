"""The comparison: every tool grades the same class in turns; a table, JSON, and whether the goals are met."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from grader.errors import GraderError, InfrastructureError
from tests.rivals import notebooks
from tests.rivals.counted import Cost
from tests.rivals.tools import TOOLS, Fork, Grader, NbGrader, Tool, environment_in

WORKERS = (1, 2)
WIDTH = 100  # characters that the table needs
SKIPPABLE = [kind.name for kind in TOOLS if kind not in (Grader, NbGrader, Fork)]
MOST_CPU_S = 1.75  # of this grader for one notebook, of which the notebook itself takes 1 s
MOST_OVER_FORK_S = 0.5
LEAST_TIMES_NBGRADER = 4.0  # throughput, two workers each


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One tool with so many workers: medians over the runs, for one notebook."""

    tool: str
    workers: int
    cpu_s: float
    wall_s: float  # of the batch, divided by its notebooks

    @property
    def per_minute(self) -> float:
        return 60 / self.wall_s


def compare(folder: Path, venv: Path, *, copies: int, runs: int, kinds: Sequence[type[Tool]]) -> list[Line]:
    """Have every tool grade the class with 1 and 2 workers, in turns.

    Raises InfrastructureError if one fails, or gives a student other points than the others.
    """
    tools = [kind(folder / kind.__name__, copies, venv) for kind in kinds]
    found: dict[tuple[Tool, int], list[Cost]] = {(tool, workers): [] for tool in tools for workers in WORKERS}
    for turn in range(runs):
        for (tool, workers), costs in found.items():
            cost = tool.run(workers)
            require_fair(tool.name, tool.points(), copies)
            costs.append(cost)
            said = f"{tool.name}, {workers} workers: {cost.cpu_s:.1f} s CPU, {cost.wall_s:.1f} s"
            print(f"run {turn + 1} of {runs}: {said}", file=sys.stderr, flush=True)
    return [
        Line(
            tool=tool.name,
            workers=workers,
            cpu_s=statistics.median(cost.cpu_s for cost in costs) / copies,
            wall_s=statistics.median(cost.wall_s for cost in costs) / copies,
        )
        for (tool, workers), costs in found.items()
    ]


def require_fair(tool: str, points: Mapping[str, float], copies: int) -> None:
    """Every tool gives every copy the same points, a floor none. Raises InfrastructureError."""
    wanted = notebooks.expected(copies)
    if points and points != wanted:
        name = next(name for name in sorted({*points, *wanted}) if points.get(name) != wanted.get(name))
        raise InfrastructureError(
            f"{tool} gave {name} {points.get(name)} points where {wanted.get(name)} are right: nothing can be compared."
        )


def goals(lines: Sequence[Line]) -> list[tuple[str, bool]]:
    """What was aimed at, in words with what was measured, and whether it is reached."""
    by = {(line.tool, line.workers): line for line in lines}
    ours, theirs = by[Grader.name, 2], by[NbGrader.name, 2]
    cpu_s = max(by[Grader.name, workers].cpu_s for workers in WORKERS)
    over_s = max(by[Grader.name, workers].cpu_s - by[Fork.name, workers].cpu_s for workers in WORKERS)
    times, alone = theirs.wall_s / ours.wall_s, by[NbGrader.name, 1].wall_s / ours.wall_s
    return [
        (f"CPU of a notebook: {cpu_s:.2f} s (at most {MOST_CPU_S:.2f})", cpu_s <= MOST_CPU_S),
        (f"of it over the fork floor: {over_s:.2f} s (at most {MOST_OVER_FORK_S:.2f})", over_s <= MOST_OVER_FORK_S),
        (
            f"throughput, 2 workers: {times:.1f} times that of two nbgraders (at least {LEAST_TIMES_NBGRADER:.0f}); "
            f"{alone:.1f} times that of one, which is all that it starts by itself",
            times >= LEAST_TIMES_NBGRADER,
        ),
    ]


def table_of(lines: Sequence[Line]) -> Table:
    """CPU and wall seconds of one notebook, and how they compare with this grader's for as many workers."""
    by = {(line.tool, line.workers): line for line in lines}
    table = Table("", title="One notebook, medians", caption="only this grader's notebooks run in sandboxes")
    for head in ("workers", "CPU s", "over fork", "of ours", "wall s", "a minute", "ours is faster"):
        table.add_column(head, justify="right", no_wrap=True)
    for line in lines:
        ours, floor = by[Grader.name, line.workers], by[Fork.name, line.workers]
        table.add_row(
            line.tool,
            str(line.workers),
            f"{line.cpu_s:.2f}",
            f"{line.cpu_s - floor.cpu_s:+.2f}",
            f"{line.cpu_s / ours.cpu_s:.2f}",
            f"{line.wall_s:.2f}",
            f"{line.per_minute:.0f}",
            f"{line.wall_s / ours.wall_s:.1f} times",
        )
    return table


def as_json(lines: Sequence[Line], *, copies: int, runs: int) -> dict[str, Any]:
    machine = {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    rows = [
        {"tool": line.tool, "workers": line.workers, "cpu_s": line.cpu_s, "wall_s": line.wall_s}
        | {"notebooks_per_minute": line.per_minute}
        for line in lines
    ]
    reached = [{"goal": words, "reached": is_reached} for words, is_reached in goals(lines)]
    return (
        {"copies": copies, "runs": runs, "checks": len(notebooks.ASKED)} | machine | {"lines": rows, "goals": reached}
    )


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(tempfile.gettempdir(), "cache")) / "grader-rivals"


def main() -> int:
    """0: all goals are reached; 1: one is missed; 2 and 3 as the grader's own."""
    parser = argparse.ArgumentParser(prog="python -m tests.rivals", description=__doc__)
    parser.add_argument("--copies", type=int, default=16, help="notebooks in the class, at least 2")
    parser.add_argument("--runs", type=int, default=3, help="how often each tool grades it")
    parser.add_argument("--skip", action="append", default=[], choices=SKIPPABLE, help="a tool, to save time")
    parser.add_argument("--cache", type=Path, default=_cache(), help="where the rivals are installed, once")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    kinds = [kind for kind in TOOLS if kind.name not in options.skip]
    if options.copies < 2 or options.runs < 1:
        parser.error("--copies is 2 or more, --runs 1 or more")
    try:
        venv = environment_in(options.cache.resolve())
        with tempfile.TemporaryDirectory(prefix="rivals-") as folder:
            Path(folder).chmod(0o755)
            lines = compare(Path(folder), venv, copies=options.copies, runs=options.runs, kinds=kinds)
    except GraderError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    console = Console(width=max(WIDTH, Console().width))
    console.print(table_of(lines))
    for words, is_reached in goals(lines):
        console.print(("reached  " if is_reached else "MISSED   ") + words, highlight=False)
    if options.json:
        figures = as_json(lines, copies=options.copies, runs=options.runs)
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if all(is_reached for _, is_reached in goals(lines)) else 1


if __name__ == "__main__":
    sys.exit(main())
