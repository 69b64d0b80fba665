"""Place perplexities on a logarithmic axis: nats/char are its length, perplexities its labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
_FARTHEST = math.log(
    60
)  # beyond it an entry is drawn at the edge: one lost model must not flatten all others
_MOST_TICKS, _CLOSEST_TICKS = 7, 9.0


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
        step = next((step for step in _STEPS if (last - first) / step <= _MOST_TICKS), _STEPS[-1])
        ticks: list[tuple[float, str]] = []
        for number in range(math.ceil(first / step), math.floor(last / step) + 1):
            place = self.at(math.log(number * step))
            if not ticks or place - ticks[-1][0] >= _CLOSEST_TICKS:
                ticks.append((place, f"{number * step:.3g}"))
        return ticks


def axis(values: Sequence[float]) -> Axis:
    """An axis with room for all values in nats/char, and a little around them."""
    inside = [min(max(value, 0.0), _FARTHEST) for value in values if math.isfinite(value)]
    low, high = min(inside, default=0.0), max(inside, default=_FARTHEST)
    margin = max(0.06 * (high - low), 0.03)
    return Axis(low=max(0.0, low - margin), high=high + margin)
