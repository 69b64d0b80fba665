"""Draw the credit curves of a profile: points by nats/char, the baselines beside them, the class's scores on them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from grader import plot
from grader.baselines import Blocks
from grader.perplexity import credit
from grader.render import decimals, page, points
from grader.types import Curve, Grade

HEIGHT = 120  # of a drawing, for all the points of a curve


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """The curve of one model, and who stands where on it."""

    curve: Curve  # its nats/char as they are
    axis: plot.Axis
    baselines: tuple[tuple[str, float], ...]  # those within reach, nats/char
    scores: tuple[float, ...]  # nats/char of the class, ascending

    @property
    def segments(self) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
        """The pieces of the curve from edge to edge: (across, down) of their ends."""
        inside = [nats for nats, _ in self.curve.credit if self.axis.low < nats < self.axis.high]
        return itertools.pairwise(self.place(nats) for nats in [self.axis.low, *sorted(inside), self.axis.high])

    @property
    def dots(self) -> list[tuple[float, float]]:
        return [self.place(nats) for nats in self.scores]

    @property
    def median(self) -> float | None:
        return statistics.median(self.scores) if self.scores else None

    @property
    def median_points(self) -> float | None:
        return statistics.median(credit(self.curve, nats) for nats in self.scores) if self.scores else None

    def place(self, nats: float) -> tuple[float, float]:
        """Where a score stands: 0 to 100 across, 0 to HEIGHT down."""
        return self.axis.at(nats), round(HEIGHT * (1 - credit(self.curve, nats) / self.curve.points), 2)


def panels(curves: Sequence[Curve], yardsticks: Mapping[str, Blocks], grades: Iterable[Grade]) -> list[Panel]:
    """One panel for each curve, all on one axis, so that what is asked of the models can be compared."""
    scores: dict[str, list[float]] = {curve.model: [] for curve in curves}
    for grade in grades:
        for score in grade.perplexities:
            if score.nats_per_char is not None and score.model in scores:
                scores[score.model].append(score.nats_per_char)
    lines = tuple((name, float(held_out.mean())) for name, (held_out, _) in yardsticks.items())
    corners = [nats for curve in curves for nats, _ in curve.credit]
    axis = plot.axis([*corners, *(nats for found in scores.values() for nats in found)])
    near = tuple((name, nats) for name, nats in lines if axis.low <= nats <= axis.high)
    return [
        Panel(curve=curve, axis=axis, baselines=near, scores=tuple(sorted(scores[curve.model]))) for curve in curves
    ]


def curves_html(drawn: Sequence[Panel], title: str, profile: str, weaker: Sequence[str] = ()) -> str:
    """One page that needs nothing else; `weaker` is what all reports on these grades say of them."""
    return page("curves.html", title=title, profile=profile, panels=drawn, height=HEIGHT, weaker=weaker)


def curves_table(drawn: Sequence[Panel]) -> Table:
    """The same for a terminal: what gives how many points, and where the class stands."""
    table = Table(title="Credit by held-out nats/char", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    table.add_column("points at nats/char")
    for heading in ("measured", "median", "points at the median"):
        table.add_column(heading, justify="right")
    for panel in drawn:
        knots = ", ".join(f"{points(value)} at {decimals(nats)}" for nats, value in panel.curve.credit)
        found = ("" if value is None else decimals(value, 2) for value in (panel.median, panel.median_points))
        table.add_row(panel.curve.model, knots, str(len(panel.scores)), *found)
    return table
