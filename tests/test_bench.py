"""`grader bench` on real batches in real sandboxes, made short."""

from __future__ import annotations

from pathlib import Path

import pytest

from grader.benchmark import batches, specimen
from grader.benchmark.batches import BARE, GRADED, memory, pool, pool_size, small_bench
from grader.benchmark.record import read_record
from grader.benchmark.specimen import fork, warm_parent
from grader.errors import InfrastructureError
from grader.sandbox.tiers import WARM
from grader.types import Grade
from tests.test_cli import run_grader

QUICK = ("def predict(x): return x.sum()",)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small submission without its second of training."""
    monkeypatch.setattr(batches, "CELLS", QUICK)
    monkeypatch.setattr(specimen, "CELLS", QUICK)


@pytest.mark.usefixtures("quick")
def test_a_batch_is_graded_by_one_worker_and_by_all(tier: str) -> None:
    """Each rate is of real grades: as many submissions were recorded as the bar was promised, none left out."""
    done: list[int] = []
    rates = pool(tier, 2, 1, 1, done.append)
    assert sum(done) == pool_size(2, 1, 1) == 9
    assert [(rate.what, rate.workers, rate.submissions) for rate in rates] == [
        (GRADED, 1, 1),
        (GRADED, 2, 2),
        (BARE, 1, 1),
        (BARE, 2, 2),
    ]
    assert all(rate.per_hour > 0 for rate in rates)


@pytest.mark.usefixtures("quick")
def test_memory_is_that_of_each_kind_of_process(tier: str) -> None:
    """From the time when all workers have a template on: none of them is missed, and none counted as another."""
    found = memory(tier, 4, 1, lambda _: None)
    assert found.done == (2, 3, 4)
    kinds = ["coordinator", "workers", *(["templates"] if tier in WARM else [])]
    assert list(found.resident) == kinds
    for sizes in found.resident.values():
        assert all(30 << 20 < size < 1 << 30 for size in sizes)  # Python with its libraries, and no notebook of a GB
    for who, sizes in found.proportional.items():
        assert all(share <= size for share, size in zip(sizes, found.resident[who], strict=True))


def test_a_notebook_that_fails_measures_nothing(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Had every grade been a fault, the rate would be splendid: it is refused with what happened."""
    monkeypatch.setattr(batches, "CELLS", ("def predict(x): return [1, 2]",))
    grades: list[Grade] = []
    with small_bench(tier) as (bench, notebook), pytest.raises(InfrastructureError, match=r"0\.0 points instead of 12"):
        batches.grade_copies(bench, notebook, 1, 1, grades.append)
    assert not grades


def test_a_floor_that_fails_measures_nothing(tmp_path: Path) -> None:
    """The program beside which the grader stands must have done its work."""
    (tmp_path / "script.py").write_text("raise SystemExit(1)")
    with warm_parent(tmp_path / "script.py") as parent, pytest.raises(InfrastructureError, match="failed"):
        fork(parent)


def test_bench_records_and_shows_again(tmp_path: Path) -> None:
    """What -o recorded is shown by --from as it was when it was measured, and laid out by --report."""
    record, report = str(tmp_path / "bench.json"), str(tmp_path / "bench.md")
    done = run_grader("bench", "--only", "gradebook", "--runs", "1", "--students", "10", "-o", record)
    assert done.returncode == 0, done.stderr
    again = run_grader("bench", "--from", record, "--report", report)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith(done.stdout)
    assert list(read_record(Path(record))) == ["gradebook"]
    assert "| those that count by rules |" in Path(report).read_text()
    assert "the latest grades" in (tmp_path / "bench.svg").read_text()


def test_bench_says_what_it_replaces(tmp_path: Path) -> None:
    """A section that is measured again into the same file is not lost in silence."""
    for _ in range(2):
        done = run_grader(
            "bench", "--only", "gradebook", "--runs", "1", "--students", "1", "-o", str(tmp_path / "bench.json")
        )
        assert done.returncode == 0, done.stderr
    assert "this replaces what was measured at" in done.stdout
