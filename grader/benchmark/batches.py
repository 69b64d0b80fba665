"""Batches of copies of one small notebook, graded as a class is: how many an hour, and in how much memory."""

from __future__ import annotations

import hashlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil
import yaml

from grader.batch import grade_each
from grader.bench import Bench
from grader.benchmark.record import Memory, Rate
from grader.benchmark.specimen import CALLS, CELLS, fork, warm_parent, write_script
from grader.config import load_assignment
from grader.errors import InfrastructureError
from grader.gradebook import Gradebook
from grader.sandbox.selftest import LIMITS, notebook_of
from grader.sandbox.tiers import WARM
from grader.types import Grade, Split, Status, Submission

GRADED, BARE = "graded", "fork of a warm parent"
FIRST = 2  # submissions of each worker that start what all later ones use, and do not count
SAMPLES = 100  # of memory in a long batch
_CHECK = """

@pytest.mark.check("{id}")
def test_{id}(student):
    assert numpy.size(student.predict(numpy.ones((4, 27), numpy.float32))) == 1
"""

Advance = Callable[[int], None]


def pool(tier: str, most: int, batch: int, runs: int, advance: Advance) -> list[Rate]:
    """How fast submissions are graded by one worker and by `most`, and how fast the same cells run without a grader.

    `batch` submissions of each worker are counted, from when the first ones are done until the last is. The floor is
    that many forks of as many processes that have imported MXNet: what this machine gains by more processes.

    Raises:
        InfrastructureError: a submission did not get its points.
    """
    spans: dict[tuple[str, int], list[float]] = {}
    with small_bench(tier) as (bench, notebook), _parents(most) as forked:
        for _ in range(runs):
            for workers in dict.fromkeys((1, most)):
                spans.setdefault((GRADED, workers), []).append(_graded(bench, notebook, workers, batch, advance))
                spans.setdefault((BARE, workers), []).append(forked(workers, batch))
    return [
        Rate(what=what, workers=workers, submissions=batch * workers, spans_s=tuple(spans[what, workers]))
        for what, workers in sorted(spans, key=lambda way: (way[0] != GRADED, way[1]))
    ]


def pool_size(most: int, batch: int, runs: int) -> int:
    """How many submissions `pool` has graded."""
    return runs * sum(workers * (batch + FIRST) for workers in {1, most})


def _graded(bench: Bench, notebook: Path, workers: int, batch: int, advance: Advance) -> float:
    """Seconds in which `batch` submissions of each worker were graded and recorded."""
    at: list[float] = []

    def note(_: Grade) -> None:
        at.append(time.monotonic())
        advance(1)

    grade_copies(bench, notebook, workers * (batch + FIRST), workers, note)
    return at[-1] - at[FIRST * workers - 1]


@contextmanager
def _parents(most: int) -> Iterator[Callable[[int, int], float]]:
    """Yields what runs the script `each` times in each of so many processes, side by side, in how many seconds."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
        script = write_script(Path(folder))
        parents = [stack.enter_context(warm_parent(script)) for _ in range(most)]
        threads = stack.enter_context(ThreadPoolExecutor(most))
        list(threads.map(fork, parents))

        def forked(workers: int, each: int) -> float:
            started = time.monotonic()
            list(threads.map(lambda parent: [fork(parent) for _ in range(each)], parents[:workers]))
            return time.monotonic() - started

        yield forked


def memory(tier: str, submissions: int, workers: int, advance: Advance) -> Memory:
    """What coordinator, workers and templates hold while so many submissions are graded; not what notebooks take.

    Samples are taken when a grade is recorded, while the other workers are at work.

    Raises:
        InfrastructureError: a submission did not get its points, or a worker was lost.
    """
    every = max(1, submissions // SAMPLES)
    started, done = time.monotonic(), 0
    at: list[tuple[int, float]] = []
    samples: list[dict[str, tuple[int, int | None]]] = []

    def note(_: Grade) -> None:
        nonlocal done
        done += 1
        if done >= FIRST * workers and done % every == 0 and (found := _held(workers, tier)):
            at.append((done, round(time.monotonic() - started, 3)))
            samples.append(found)
        advance(1)

    with small_bench(tier) as (bench, notebook):
        grade_copies(bench, notebook, submissions, workers, note)
    if len(samples) < 2:
        raise InfrastructureError(f"{submissions} submissions are too few to see how memory goes: ask for more.")
    parts = {who: [sample[who] for sample in samples] for who in samples[0]}
    shares = {who: tuple(share for _, share in sizes if share is not None) for who, sizes in parts.items()}
    return Memory(
        submissions=submissions,
        workers=workers,
        done=tuple(number for number, _ in at),
        elapsed_s=tuple(seconds for _, seconds in at),
        resident={who: tuple(size for size, _ in sizes) for who, sizes in parts.items()},
        proportional={who: sizes for who, sizes in shares.items() if len(sizes) == len(at)},
    )


def _held(workers: int, tier: str) -> dict[str, tuple[int, int | None]] | None:
    """Resident and proportional bytes of the grader's processes; None at a moment when one of them is missing."""
    here = psutil.Process()
    try:
        processes = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
        templates = _templates(here)
        found = {"coordinator": _sizes([here]), "workers": _sizes(processes)}
        if tier in WARM:
            found["templates"] = _sizes(templates)
    except psutil.NoSuchProcess:
        return None
    return found if len(processes) == workers and (templates or tier not in WARM) else None


def _templates(coordinator: psutil.Process) -> list[psutil.Process]:
    """The template of the workers, those forked from it, and the sandbox around them; none of the latter's copies."""
    for outer in coordinator.children():
        if any(word.endswith("zygote.py") for word in outer.cmdline()):
            inside = outer.children()
            first = [member for one in inside for member in one.children()]
            return [outer, *inside, *first, *(member for one in first for member in one.children())]
    return []


def _sizes(processes: Iterable[psutil.Process]) -> tuple[int, int | None]:
    resident, shares = 0, 0
    known = True
    for process in processes:
        try:
            full = process.memory_full_info()
        except psutil.AccessDenied:
            known = False
            full = process.memory_info()
        resident += int(full.rss)
        shares += int(getattr(full, "pss", 0))
    return resident, shares if known else None


@contextmanager
def small_bench(tier: str) -> Iterator[tuple[Bench, Path]]:
    """An assignment with one check for each call, and the notebook that passes them all."""
    ids = [f"call{i:02}" for i in range(CALLS)]
    raw: Mapping[str, object] = {
        "name": "small",
        "title": "A small notebook",
        "corpus": "none",
        "limits": asdict(LIMITS),
        "checks": [{"id": one, "title": one, "points": 1, "hidden": True, "hint": ""} for one in ids],
        "profiles": [
            {"name": "small", "train_chars": 1, "test_chars": 1, "held_out_chars": 1, "time_budget_s": 1.0, "lanes": 1}
        ],
    }
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch)
        (folder / "checks").mkdir()
        (folder / "checks" / "stubs.py").write_text("")
        (folder / "checks" / "test_calls.py").write_text(
            "import numpy\nimport pytest\n" + "".join(_CHECK.format(id=one) for one in ids)
        )
        (folder / "assignment.yaml").write_text(yaml.safe_dump(raw))
        notebook = folder / "homework.ipynb"
        notebook.write_bytes(notebook_of(*CELLS))
        assignment = load_assignment(folder)
        bench = Bench(
            assignment=assignment,
            profile=assignment.profiles[0],
            split=Split(train="a", test="a", held_out="a", sha256=""),
            yardsticks={},
            tier=tier,
            private=(str(folder),),
        )
        yield bench, notebook


def grade_copies(bench: Bench, notebook: Path, count: int, workers: int, note: Callable[[Grade], None]) -> None:
    """Grade the notebook as handed in by so many students, into a gradebook; `note` is called after each record.

    Raises:
        InfrastructureError: a submission did not get its points.
    """
    sha256 = hashlib.sha256(notebook.read_bytes()).hexdigest()
    class_ = [
        Submission(student_id=f"s{i:05}", path=str(notebook), sha256=sha256, submitted_at="") for i in range(count)
    ]
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as scratch,
        Gradebook.open(Path(scratch, "gradebook.sqlite")) as book,
    ):
        run_id = book.begin_run(command="bench", profile=bench.profile.name, started_at="")

        def record(grade: Grade) -> None:
            if grade.status is not Status.GRADED or grade.score != grade.max_score:
                raise InfrastructureError(
                    f"the notebook of `grader bench` came to {grade.status.value} with {grade.score} points instead "
                    f"of {grade.max_score}, so that nothing was measured: {grade.message or 'a check failed'}"
                )
            book.add(run_id, grade)
            note(grade)

        grade_each(class_, bench, jobs=workers, record=record)
