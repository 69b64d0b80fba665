"""Place perplexities on a logarithmic axis: nats/char are its length, perplexities its labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10)  # between round perplexities on a short axis
_LONG = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100)  # on a long one
_FARTHEST = math.log(100)
_MOST_TICKS, _CLOSEST_TICKS = 7, 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """From `low` to `high` nats/char on a line of length 100."""

    low: float
    high: float

    def at(self, nats_per_char: float) -> float:
        """Where to draw a value, 0 to 100; what lies beyond the axis is drawn at its end."""
        share = (nats_per_char - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)

    def beyond(self, nats_per_char: float) -> bool:
        return nats_per_char > self.high

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(place, perplexity) of round perplexities that leave room for each other."""
        first, last = math.exp(self.low), math.exp(self.high)
        if last > 3 * first:
            candidates = [float(value) for value in _LONG if first <= value <= last]
        else:
            step = next((step for step in _STEPS if (last - first) / step <= _MOST_TICKS), _STEPS[-1])
            candidates = [n * step for n in range(math.ceil(first / step), math.floor(last / step) + 1)]
        ticks: list[tuple[float, str]] = []
        for value in candidates:
            place = self.at(math.log(value))
            if not ticks or place - ticks[-1][0] >= _CLOSEST_TICKS:
                ticks.append((place, f"{value:.3g}"))
        return ticks


def axis(values: Sequence[float]) -> Axis:
    """An axis with room for the values in nats/char, but for outliers far above the others.

    What lies more than three interquartile ranges above the third quartile is drawn at the edge: one model that
    learnt nothing must not press all others into one spot.
    """
    inside = sorted(min(max(value, 0.0), _FARTHEST) for value in values if math.isfinite(value))
    if not inside:
        return Axis(low=0.0, high=_FARTHEST)
    lower, upper = inside[len(inside) // 4], inside[(3 * len(inside)) // 4]
    fence = upper + max(3 * (upper - lower), 0.5)
    low, high = inside[0], max(value for value in inside if value <= fence)
    margin = max(0.06 * (high - low), 0.03)
    return Axis(low=max(0.0, low - margin), high=high + margin)
