"""Measures what the grader costs: each figure beside a floor, taken in turns in the same minutes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from grader.sandbox.bridge import Session
from grader.sandbox.selftest import LIMITS, one_cell
from grader.sandbox.tiers import NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A time and the floor it is compared with: medians over the same number of runs, in seconds."""

    what: str
    floor: str
    time_s: float
    floor_s: float

    @property
    def overhead_s(self) -> float:
        return self.time_s - self.floor_s

    @property
    def ratio(self) -> float:
        return self.time_s / self.floor_s


def sandbox_start(tier: str, runs: int) -> Figure:
    """From nothing to the end of an empty cell: in a sandbox, and in the same runner without one."""
    sealed, bare = _in_turns(lambda: _empty_notebook(tier), lambda: _empty_notebook(NONE), runs)
    return Figure(what=f"start of a sandbox ({tier})", floor="without a sandbox", time_s=sealed, floor_s=bare)


def _in_turns(first: Callable[[], None], second: Callable[[], None], runs: int) -> tuple[float, float]:
    """Medians of both, measured alternately; the first of each warms up and does not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs + 1):
        for found, act in zip(times, (first, second), strict=True):
            started = time.monotonic()
            act()
            found.append(time.monotonic() - started)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def _empty_notebook(tier: str) -> None:
    with Session(notebook=one_cell("pass"), files={}, environment={}, limits=LIMITS, tier=tier) as session:
        session.execute()
