"""grader.curves: what a drawing of the credit curves shows."""

from __future__ import annotations

import re

import numpy as np
import pytest
from rich.console import Console

from grader.curves import HEIGHT, curves_html, curves_table, panels
from grader.types import Curve, Outcome, PerplexityScore
from tests.unit.records import a_grade

CURVE = Curve(model="rnn", relative_to="", credit=((2.8, 0.0), (2.0, 3.0), (1.8, 4.0)))
BASELINES = {"trigram": (np.full(3, 1.9), np.full(3, 1.9)), "PPMd": (np.full(3, 1.2), np.full(3, 1.2))}


def measured(nats: float | None) -> PerplexityScore:
    return PerplexityScore(model="rnn", outcome=Outcome.PASSED, points=0.0, max_points=4.0, nats_per_char=nats)


def test_each_score_stands_on_the_curve() -> None:
    """A dot's height is its points; who was not measured has no dot, and the median is of those who were."""
    class_ = [a_grade(f"s{i}", perplexities=(measured(x),)) for i, x in enumerate((2.4, 1.8, None))]
    (panel,) = panels([CURVE], BASELINES, class_)
    assert panel.scores == (1.8, 2.4)
    assert [height for _, height in panel.dots] == pytest.approx([0.0, HEIGHT * (1 - 1.5 / 4)], abs=0.01)
    assert (panel.median, panel.median_points) == (pytest.approx(2.1), pytest.approx(2.75))
    corners = [end for _, end in panel.segments]
    assert [height for _, height in corners] == pytest.approx([0.0, HEIGHT / 4, HEIGHT, HEIGHT])


def test_baselines_beyond_the_curve_are_left_out() -> None:
    """What lies far off would push the curve into a corner."""
    (panel,) = panels([CURVE], BASELINES, [])
    assert [name for name, _ in panel.baselines] == ["trigram"]
    assert (panel.median, panel.median_points) == (None, None)


def test_page_and_table_say_what_gives_how_many_points() -> None:
    """Both without a class and with a hostile title."""
    drawn = panels([CURVE], BASELINES, [])
    html = curves_html(drawn, "<script>alert(1)</script>", "cpu")
    assert "<script" not in html
    assert "0 at 2.800, 3 at 2.000, 4 at 1.800 nats/char" in re.sub(r"\s+", " ", html)
    assert "0 measured" in html
    console = Console(width=200)
    with console.capture() as said:
        console.print(curves_table(drawn))
    assert "0 at 2.800, 3 at 2.000, 4 at 1.800" in said.get()
