"""Draws a record of `grader bench`: times as multiples of their floors, submissions an hour, memory over a batch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grader.benchmark.prose import TITLES
from grader.benchmark.record import Figure, Memory, Rate, Section
from grader.corpus import write_whole

INK, FAINT, GRID = "#1f5fa8", "#8fb3dc", "#dddddd"
COLORS = {"coordinator": "#555555", "workers": "#1f5fa8", "templates": "#c8641e"}
ROW, FEWEST_ROWS = 0.26, 16  # inches for a figure; the panels beside want some height, too
TICKS = (0.5, 1, 1.5, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)


def draw(sections: Mapping[str, Section], path: Path, record_sha256: str) -> None:
    """Write the plot as SVG, the same from the same figures; it names the record that it was drawn from."""
    import matplotlib  # takes half a second
    from matplotlib.figure import Figure as Canvas

    timed = {name: section.found for name, section in sections.items() if isinstance(section.found[0], Figure)}
    rates = next((section.found for section in sections.values() if isinstance(section.found[0], Rate)), ())
    memory = next((section.found[0] for section in sections.values() if isinstance(section.found[0], Memory)), None)
    rows = sum(len(figures) + 1 for figures in timed.values())
    beside = [one for one in (rates, memory) if one]
    settings = {"svg.hashsalt": "performance", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        canvas = Canvas(
            figsize=(10.5 if timed and beside else 6, ROW * max(rows, FEWEST_ROWS) + 1), layout="constrained"
        )
        columns = list(canvas.subfigures(1, 2, width_ratios=(1.2, 1))) if timed and beside else [canvas]
        if timed:
            _ratios(columns[0].subplots(), timed)
        if beside:
            places = columns[-1].subplots(len(beside), 1, squeeze=False)[:, 0]
            for axes, one in zip(places, beside, strict=True):
                _memory(axes, one) if isinstance(one, Memory) else _rates(axes, one)
        image = io.BytesIO()
        canvas.savefig(image, format="svg", metadata={"Date": None, "Source": f"sha256:{record_sha256}"})
    write_whole(path, image.getvalue())


def _ratios(axes: Any, timed: Mapping[str, Sequence[Figure]]) -> None:
    """Each figure as a multiple of its floor: the median as a dot, single runs as faint ones, the floor as a line."""
    labels: list[tuple[int, str]] = []
    headings: list[int] = []
    row, before = 0, ""
    for name, figures in timed.items():
        labels.append((row, TITLES[name]))
        headings.append(row)
        row += 1
        for figure in figures:
            singles = [time_s / figure.floor_s for time_s in figure.times_s]
            axes.plot([1, figure.ratio], [row, row], color=FAINT, lw=1.2, zorder=1)
            axes.plot(singles, [row] * len(singles), ls="", marker="o", ms=3.5, color=FAINT, zorder=2)
            axes.plot([figure.ratio], [row], ls="", marker="o", ms=6, color=INK, zorder=3)
            is_again = figure.what == before  # beside another floor
            labels.append((row, f"({figure.floor})" if is_again else figure.what.replace("`", "")))
            before, row = figure.what, row + 1
    axes.axvline(1, color="#333333", lw=1)
    axes.set(xscale="log", ylim=(row - 0.4, -0.7), title="Time, as a multiple of its floor (logarithmic)")
    low, high = axes.get_xlim()
    low, high = min(low, 0.85), max(high, 2.2)
    ticks = [tick for tick in TICKS if low <= tick <= high and (high < 20 or tick != 1.5)]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks([place for place, _ in labels], [label for _, label in labels])
    for place in headings:
        axes.get_yticklabels()[place].set_fontweight("bold")
    _plain(axes, "x")


def _rates(axes: Any, rates: Sequence[Rate]) -> None:
    """Submissions an hour, by what and with how many workers."""
    for place, rate in enumerate(rates):
        is_ours = rate.what == rates[0].what
        axes.barh(place, rate.per_hour, height=0.62, color=INK if is_ours else FAINT)
        axes.plot(
            rate.per_hour_of_each, [place] * len(rate.spans_s), ls="", marker="o", ms=3.5, color="#333333", alpha=0.6
        )
        color = "white" if is_ours else "black"
        inside = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontweight": "bold"}
        axes.annotate(f"{rate.per_hour:,.0f}", (0, place), color=color, **inside)
    names = [f"{rate.what},\n{rate.workers} at once" for rate in rates]
    axes.set_yticks(range(len(rates)), names)
    axes.set(ylim=(len(rates) - 0.4, -0.6), title="Small submissions an hour")
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _plain(axes, "x")


def _memory(axes: Any, memory: Memory) -> None:
    """Resident sizes by submissions done: proportional ones go up and down with the copies that live at a moment."""
    for who, found in memory.resident.items():
        axes.plot(memory.done, [size / (1 << 20) for size in found], color=COLORS[who], lw=1.4, label=who)
    axes.set(xlabel="submissions graded", ylabel="MiB (RSS)", title=f"The grader's memory, {memory.workers} workers")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="lower left", fontsize=8)
    _plain(axes, "y")


def _plain(axes: Any, grid: str) -> None:
    axes.grid(axis=grid, color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
    axes.title.set_fontsize(10)
