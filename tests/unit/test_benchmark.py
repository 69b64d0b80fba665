"""What the grader costs is measured on what works, recorded run by run, and laid out as it was recorded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from grader.benchmark.costs import counting
from grader.benchmark.drawing import draw
from grader.benchmark.prose import TITLES
from grader.benchmark.record import (
    KINDS,
    Figure,
    Memory,
    Rate,
    Section,
    Simulation,
    efficiency,
    merge_into,
    read_record,
    section,
    trend,
)
from grader.benchmark.report import page
from grader.errors import UsageError

DOCS = Path(__file__).parents[2] / "docs"
SETTINGS = {
    "runs": 3,
    "students": 10,
    "each": 2,
    "grades": 20,
    "calls": 12,
    "submissions": 40,
    "workers": 2,
    "chars": 9,
}


def rate(what: str, workers: int, *spans_s: float) -> Rate:
    """Of 6 submissions for each worker."""
    return Rate(what=what, workers=workers, submissions=6 * workers, spans_s=spans_s)


def of_all_kinds() -> dict[str, Section]:
    """A record with every section, its numbers made up."""
    memory = Memory(
        submissions=40,
        workers=2,
        done=(10, 20, 30, 40),
        elapsed_s=(1.0, 2.0, 3.0, 4.0),
        resident={"coordinator": (90 << 20,) * 4, "workers": (200 << 20, 201 << 20, 202 << 20, 203 << 20)},
        proportional={"coordinator": (70 << 20,) * 4, "workers": (160 << 20, 161 << 20, 162 << 20, 163 << 20)},
    )
    simulation = Simulation(
        submissions=40,
        slots=8,
        task_s=1.0,
        makespan_s=5.5,
        coordinator_cpu_s=0.1,
        scheduler_cpu_s=0.2,
        measured_at="2030-01-01T00:00:00+00:00",
    )
    rates = [rate("graded", 1, 9.0, 9.5, 9.2), rate("graded", 2, 10.0, 9.9, 9.8)]
    rates += [rate("alone", 1, 6.0, 6.1, 6.2), rate("alone", 2, 6.1, 6.2, 6.3)]

    def found(name: str) -> list[Figure | Rate | Memory | Simulation]:
        if KINDS[name] is Figure:
            return [Figure(what=f"the {name}", floor="less", times_s=(0.3, 0.1, 0.2), floors_s=(0.1, 0.1, 0.1))]
        return {"pool": rates, "memory": [memory], "simulated": [simulation]}[name]  # type: ignore[return-value]

    return {name: section(found(name), load_at_start=0.5, sandbox="", **SETTINGS) for name in KINDS}


def test_the_grades_that_count_in_a_large_gradebook_come_at_once() -> None:
    """The latest or by rules: the query reads no grade but these, so that many grades of a student cost little."""
    assert all(figure.time_s < 0.05 for figure in counting(200, 50, 3))


# ---------------------------------------------------------------- the record


def test_every_single_run_is_recorded_beside_its_median(tmp_path: Path) -> None:
    """A reader of the file needs nothing else to work a ratio out again, or to see how runs scatter."""
    merge_into(tmp_path / "bench.json", of_all_kinds())
    found = json.loads((tmp_path / "bench.json").read_text())["sections"]["sandbox"]["found"][0]
    assert found["times_s"] == [0.3, 0.1, 0.2]
    assert (found["time_s"], found["floor_s"], found["ratio"]) == (0.2, 0.1, 2.0)


def test_what_is_read_is_what_was_measured(tmp_path: Path) -> None:
    """Figures, machine, date, load and settings of every kind of section survive the file."""
    measured = of_all_kinds()
    merge_into(tmp_path / "bench.json", measured)
    assert read_record(tmp_path / "bench.json") == measured


def test_a_section_replaces_its_own_and_leaves_the_others(tmp_path: Path) -> None:
    """A long measurement of one section, on another day, does not cost those that are there."""
    path, before = tmp_path / "bench.json", of_all_kinds()
    merge_into(path, before)
    again = replace(before["memory"], measured_at="2030-01-01T00:00:00+00:00")
    merge_into(path, {"memory": again})
    assert read_record(path) == {**before, "memory": again}


def test_a_simulation_replaces_only_one_of_its_scale(tmp_path: Path) -> None:
    """1,000 submissions on 64 slots and 10,000 on 256 stand side by side, each with its own day."""
    path, before = tmp_path / "bench.json", of_all_kinds()["simulated"]
    [small] = before.found
    large, again = replace(small, submissions=400), replace(small, makespan_s=6.0)
    for one in (small, large, again):
        merge_into(path, {"simulated": replace(before, found=(one,))})
    assert read_record(path)["simulated"].found == (again, large)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 9, "sections": {}}', '{"format": 2, "sections": {"sandbox": {"found": [{}]}}}'],
)
def test_another_file_is_no_record(tmp_path: Path, text: str) -> None:
    """A sentence names the file, and nothing is written over it."""
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(UsageError, match=r"bench\.json is not a record"):
        merge_into(tmp_path / "bench.json", of_all_kinds())
    assert (tmp_path / "bench.json").read_text() == text


def test_a_time_of_the_wrong_type_is_no_record(tmp_path: Path) -> None:
    """What was edited by hand fails where it is read, and not while a page is made."""
    merge_into(tmp_path / "bench.json", of_all_kinds())
    text = (tmp_path / "bench.json").read_text()
    (tmp_path / "bench.json").write_text(text.replace("[0.3, 0.1, 0.2]", '["a", "b"]'))
    with pytest.raises(UsageError, match="is not a record"):
        read_record(tmp_path / "bench.json")


# ---------------------------------------------------------------- what follows from the figures


@pytest.mark.parametrize(("span_s", "expected"), [(6.0, 1.0), (12.0, 0.5), (8.0, 0.75)])
def test_efficiency_is_1_if_each_worker_adds_as_much_as_the_first(span_s: float, expected: float) -> None:
    """Two workers that have graded twice as many in the same time are worth two, in twice the time one."""
    rates = [rate("graded", 1, 5.0, 6.0, 7.0), rate("graded", 2, span_s, span_s, 99.0), rate("other", 2, 1.0)]
    assert efficiency(rates, "graded") == pytest.approx(expected)


def test_an_hour_has_3600_seconds() -> None:
    """6 submissions in 12 s are 1,800 an hour."""
    assert rate("graded", 1, 12.0).per_hour == 1800


def test_one_large_sample_is_no_growth() -> None:
    """Memory that is taken and given back leaves the slope alone; memory that is kept does not."""
    done = tuple(range(100, 2100, 100))
    assert trend(done, [50] * 10 + [900] + [50] * 9).per_1000 == 0
    grown = trend(done, [50 + count // 10 for count in done])
    assert grown.per_1000 == pytest.approx(100)
    assert (grown.first_tenth, grown.last_tenth) == (65, 245)


# ---------------------------------------------------------------- the page and the plot


def test_the_page_is_what_the_record_makes() -> None:
    """docs/performance.md has not been edited, and is not older than docs/performance.json."""
    made = page(read_record(DOCS / "performance.json"), record="performance.json", plot="performance.svg")
    assert (DOCS / "performance.md").read_text() == made


def test_the_plot_is_of_the_same_record() -> None:
    """docs/performance.svg names the hash of the record that it was drawn from."""
    sha256 = hashlib.sha256((DOCS / "performance.json").read_bytes()).hexdigest()
    assert f"sha256:{sha256}" in (DOCS / "performance.svg").read_text()


def test_the_record_of_the_page_has_every_section() -> None:
    """Nothing that `grader bench` measures is missing on the page."""
    assert list(read_record(DOCS / "performance.json")) == list(KINDS)


def test_the_page_shows_each_figure_with_its_date_and_machine(tmp_path: Path) -> None:
    """Sections that were measured on two machines name each its own."""
    sections = of_all_kinds()
    other = replace(sections["pool"].machine, cpu="Another CPU")
    sections["pool"] = replace(sections["pool"], machine=other, measured_at="2030-01-01T12:34:00+00:00")
    text = page(sections, record="r.json", plot="r.svg")
    assert all(f"## {title}\n" in text for title in TITLES.values())
    row = next(line for line in text.splitlines() if line.startswith("| Several workers"))
    assert row.split("|")[2].strip() == "2030-01-01 12:34 UTC"
    assert row.split("|")[6].strip() == "B"
    assert "- B: Another CPU" in text
    assert "graded: 0.93; alone: 0.98" in text


def test_the_plot_names_each_figure_and_is_drawn_alike_again(tmp_path: Path) -> None:
    """Every time, every rate and every kind of process stands in it; the same record gives the same bytes."""
    draw(of_all_kinds(), tmp_path / "one.svg", "abc")
    draw(of_all_kinds(), tmp_path / "two.svg", "abc")
    words = " ".join(ElementTree.parse(tmp_path / "one.svg").getroot().itertext())
    for name in ("the gradebook", "the reading", "graded,", "alone,", "coordinator", "workers", "One small submission"):
        assert name in words
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_record_of_one_section_can_be_drawn(tmp_path: Path) -> None:
    """A plot needs neither all sections nor any that it draws."""
    for name, found in of_all_kinds().items():
        draw({name: found}, tmp_path / f"{name}.svg", "abc")
        assert page({name: found}, record="r.json", plot="r.svg").count("\n## ") == 2
        ElementTree.parse(tmp_path / f"{name}.svg")
