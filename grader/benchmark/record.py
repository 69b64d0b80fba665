"""What `grader bench` found, as JSON: in sections, each with its date, its machine and every single run.

A section that is measured again replaces the one in the file and leaves the others as they are: a page can be made
from several commands, on several days.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timezone
from importlib import metadata
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import psutil

from grader import __version__
from grader.corpus import write_whole
from grader.errors import UsageError

FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A time and the floor it is compared with, in seconds: single runs, taken in turns."""

    DERIVED: ClassVar = ("time_s", "floor_s", "overhead_s", "ratio")
    what: str
    floor: str
    times_s: tuple[float, ...]
    floors_s: tuple[float, ...]

    @property
    def time_s(self) -> float:
        return statistics.median(self.times_s)

    @property
    def floor_s(self) -> float:
        return statistics.median(self.floors_s)

    @property
    def overhead_s(self) -> float:
        return self.time_s - self.floor_s

    @property
    def ratio(self) -> float:
        return self.time_s / self.floor_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How long the same number of submissions took in each of several batches, in seconds."""

    DERIVED: ClassVar = ("per_hour", "per_hour_of_each")
    what: str
    workers: int
    submissions: int  # that were counted in each batch
    spans_s: tuple[float, ...]

    @property
    def per_hour_of_each(self) -> tuple[float, ...]:
        return tuple(3600 * self.submissions / span_s for span_s in self.spans_s)

    @property
    def per_hour(self) -> float:
        return statistics.median(self.per_hour_of_each)


def efficiency(rates: Sequence[Rate], what: str) -> float:
    """rate(N) / (N · rate(1)), of the most workers N; 1 if each adds as much as the first."""
    of_it = sorted((rate for rate in rates if rate.what == what), key=lambda rate: rate.workers)
    return of_it[-1].per_hour / (of_it[-1].workers * of_it[0].per_hour)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """How a quantity went over a batch: medians of its parts, and how much it grew."""

    first_tenth: float
    median: float
    last_tenth: float
    per_1000: float  # submissions: the median of the slopes between any two samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the grader's own processes held while a batch went on, in bytes, by kind of process."""

    DERIVED: ClassVar = ("trends",)
    submissions: int
    workers: int
    done: tuple[int, ...]  # submissions recorded when a sample was taken
    elapsed_s: tuple[float, ...]
    resident: Mapping[str, tuple[int, ...]]
    proportional: Mapping[str, tuple[int, ...]]  # shared pages in parts; empty where the system does not tell

    @property
    def trends(self) -> dict[str, dict[str, Trend]]:
        """By measure, by kind of process."""
        measures = {"resident": self.resident, "proportional": self.proportional}
        return {
            name: {who: trend(self.done, sizes) for who, sizes in measure.items()} for name, measure in measures.items()
        }


def trend(done: Sequence[int], sizes: Sequence[int]) -> Trend:
    """Of at least two samples; Theil and Sen's slope, on which a few outliers have no influence."""
    tenth = max(1, len(sizes) // 10)
    slopes = [(b - a) / (y - x) for (x, a), (y, b) in combinations(zip(done, sizes, strict=True), 2)]
    return Trend(
        first_tenth=statistics.median(sizes[:tenth]),
        median=statistics.median(sizes),
        last_tenth=statistics.median(sizes[-tenth:]),
        per_1000=1000 * statistics.median(slopes),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What so many submissions of so many seconds took on so many slots; times in seconds."""

    DERIVED: ClassVar = ("ideal_s", "idle")
    submissions: int
    slots: int
    task_s: float
    makespan_s: float
    coordinator_cpu_s: float
    scheduler_cpu_s: float
    measured_at: str  # ISO 8601, UTC: its end; those of one section may be of several days

    @property
    def scale(self) -> tuple[int, int, float]:
        """What it is of: another measurement of the same replaces it."""
        return self.submissions, self.slots, self.task_s

    @property
    def ideal_s(self) -> float:
        """Without a moment between one submission and the next: ceil(submissions / slots) rounds."""
        return math.ceil(self.submissions / self.slots) * self.task_s

    @property
    def idle(self) -> float:
        """The share of the slots' time in which they had nothing to do."""
        return 1 - self.submissions * self.task_s / (self.slots * self.makespan_s)


Found = Figure | Rate | Memory | Simulation
KINDS: Mapping[str, type[Found]] = {
    "gradebook": Figure,
    "sandbox": Figure,
    "submission": Figure,
    "pool": Rate,
    "memory": Memory,
    "reading": Figure,
    "simulated": Simulation,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where something was measured, and with what."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    mxnet: str
    grader: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What was measured of one subject, when, where, and how it was asked for."""

    measured_at: str  # ISO 8601, UTC: its end
    load_at_start: float  # of the machine, averaged over the minute before the command began
    sandbox: str  # the tier; empty where none was used
    settings: Mapping[str, float]
    machine: Machine
    found: tuple[Any, ...]  # of the kind that KINDS names


def this_machine() -> Machine:
    """The machine and the versions that are in use."""
    names = re.findall(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return Machine(
        cpu=names[0] if names else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        mxnet=metadata.version("mxnet"),
        grader=__version__,
    )


def now() -> str:
    """ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def section(found: Sequence[Found], *, load_at_start: float, sandbox: str, **settings: float) -> Section:
    """A section that was measured just now, here, rounded as it is recorded."""
    made = Section(
        measured_at=now(),
        load_at_start=load_at_start,
        sandbox=sandbox,
        settings=settings,
        machine=this_machine(),
        found=tuple(found),
    )
    return _section(type(found[0]), _plain(made))


def read_record(path: Path) -> dict[str, Section]:
    """The sections of a file, by name. Raises UsageError if it is none of ours."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError(f"its format is {raw['format']}, and this version of the grader reads {FORMAT}")
        return {name: _section(KINDS[name], raw["sections"][name]) for name in KINDS if name in raw["sections"]}
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}. Name a file that `grader bench -o` wrote."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UsageError(
            f"{path} is not a record of `grader bench` ({error or type(error).__name__}): "
            "name one that `-o` wrote, or measure into a new file."
        ) from None


def merge_into(path: Path, sections: Mapping[str, Section]) -> None:
    """Put sections into a file, which may hold others, and simulations of other scales.

    Raises UsageError for a file of another kind.
    """
    kept = read_record(path) if path.exists() else {}
    merged = {**kept, **sections}
    if "simulated" in kept and "simulated" in sections:
        every = {one.scale: one for one in (*kept["simulated"].found, *sections["simulated"].found)}
        found = tuple(every[scale] for scale in sorted(every))
        merged["simulated"] = replace(sections["simulated"], found=found)
    ordered = {name: _plain(merged[name]) for name in KINDS if name in merged}
    write_whole(path, _lines({"format": FORMAT, "sections": ordered}).encode())


def _section(kind: type[Found], raw: Mapping[str, Any]) -> Section:
    found = tuple(_build(kind, entry) for entry in raw["found"])
    for record in found:
        _plain(record)  # which fails for values of wrong types
    values = {**raw, "load_at_start": float(raw["load_at_start"]), "machine": _build(Machine, raw["machine"])}
    section: Section = _build(Section, {**values, "found": found})
    return section


def _build(kind: type, entry: Mapping[str, Any]) -> Any:
    """A dataclass from a mapping, which may hold more."""
    return kind(**{field.name: _tuples(entry[field.name]) for field in fields(kind)})


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return {key: _tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    """What JSON can say, with what follows from it; a tenth of a microsecond is enough."""
    if hasattr(value, "__dataclass_fields__"):
        names = [*(field.name for field in fields(value)), *getattr(value, "DERIVED", ())]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return round(value, 7) if isinstance(value, float) else value


def _lines(value: Any) -> str:
    """JSON with each list of numbers on one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return re.sub(r"\[[-+.,\deE\s]+\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text) + "\n"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
