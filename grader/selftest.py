"""Tests the checks themselves: every mutant must fail the checks meant for it and no other, no correct solution any."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from grader.batch import grade_each
from grader.errors import AssignmentError, SubmissionError, UsageError
from grader.notebook import to_json
from grader.pipeline import Bench, replay
from grader.types import Assignment, Grade, Outcome, Profile, Submission
from grader.variants import Variant, read_variants, read_yaml

LITE = "lite.yaml"  # beside the mutants: makes every notebook small, since its training is not what is tested
TRAIN_CHARS, TEST_CHARS = 30_000, 3_000
SEEDS_A_RUN = 20  # of the checks, on one run of a notebook


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What the checks made of one variant."""

    variant: Variant
    grade: Grade

    @property
    def failed(self) -> frozenset[str]:
        return frozenset(check.check_id for check in self.grade.checks if check.outcome is not Outcome.PASSED)

    @property
    def survived(self) -> frozenset[str]:
        """Checks that should have noticed and did not."""
        return self.variant.fails - self.failed

    @property
    def bystanders(self) -> frozenset[str]:
        """Checks that failed and should not have."""
        return self.failed - self.variant.fails

    @property
    def mistakes(self) -> frozenset[str]:
        """The names that failing checks gave to the mistake."""
        return frozenset(check.mistake for check in self.grade.checks if check.mistake)

    @property
    def problem(self) -> str:
        """What is wrong with the checks; empty if nothing is."""
        if self.grade.score is None:
            return f"not graded: {self.grade.message}"
        parts = [f"not noticed by {name}" for name in sorted(self.survived)]
        word = "bystander" if self.variant.fails else "false alarm:"
        parts += [f"{word} {name}" for name in sorted(self.bystanders)]
        if self.variant.mistake and self.variant.mistake not in self.mistakes:
            found = ", ".join(sorted(self.mistakes)) or "nothing"
            parts.append(f"the mistake should be called {self.variant.mistake}, not {found}")
        return "; ".join(parts)


def read_matrix(folder: Path, solutions: Path, assignment: Assignment) -> list[Variant]:
    """Mutants and correct solutions, all lite.

    Raises:
        AssignmentError: names the file and the variant that is wrong.
        UsageError: a folder holds none.
    """
    master = Path(assignment.folder) / "homework.py"
    lite = read_yaml(folder / LITE) if (folder / LITE).exists() else {}
    checks = {check.id for check in assignment.checks}
    found: list[Variant] = []
    for place, is_mutant in ((folder, True), (solutions, False)):
        paths = [path for path in sorted(place.glob("*.yaml")) if path.name != LITE]
        if not paths:
            raise UsageError(f"there are no .yaml files in {place}: name the folder that holds them.")
        for path in paths:
            for variant in read_variants(path, master, lite):
                strange = variant.fails - checks
                if strange or is_mutant != bool(variant.fails):
                    expected = "at least one" if is_mutant else "no"
                    raise AssignmentError(
                        f"{path}: {variant.name} names {sorted(strange) or 'none'} in `fails`; expected {expected} "
                        "check of assignment.yaml."
                    )
                found.append(variant)
    return found


def small(profile: Profile) -> Profile:
    """A profile for checks only: little text, no model scored."""
    return dataclasses.replace(
        profile, train_chars=TRAIN_CHARS, test_chars=TEST_CHARS, held_out_chars=TEST_CHARS, curves=()
    )


def run_matrix(variants: Sequence[Variant], bench: Bench, *, jobs: int, report: Callable[[Trial], None]) -> None:
    """Grade every variant, in its own sandbox; `report` is called with each trial as it comes."""
    by_name = {variant.name: variant for variant in variants}
    with tempfile.TemporaryDirectory(prefix="selftest-") as scratch:
        submissions = list(as_submissions(variants, Path(scratch)))
        grade_each(
            submissions,
            bench,
            jobs=jobs,
            record=lambda grade: report(Trial(variant=by_name[grade.student_id], grade=grade)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarms:
    """What one run of a correct solution came to under some seeds."""

    name: str
    seeds: Sequence[int]
    failures: Sequence[str]  # each with its seed; none if all is well
    seconds: Sequence[float]  # that all checks took, for each seed


def run_seeds(
    variants: Sequence[Variant], bench: Bench, seeds: int, *, jobs: int, report: Callable[[Alarms], None]
) -> None:
    """Run the checks on correct solutions with the seeds 0 to `seeds` - 1; `report` is called as results come."""
    parts = [range(start, min(start + SEEDS_A_RUN, seeds)) for start in range(0, seeds, SEEDS_A_RUN)]
    with tempfile.TemporaryDirectory(prefix="selftest-") as scratch:
        tasks = [(one, bench, part) for one in as_submissions(variants, Path(scratch)) for part in parts]
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            for alarms in pool.map(_alarms, *zip(*tasks, strict=True)):
                report(alarms)


def _alarms(submission: Submission, bench: Bench, seeds: Sequence[int]) -> Alarms:
    wanted = {check.id for check in bench.assignment.checks}
    failures, seconds = [], []
    try:
        for seed, results in zip(seeds, replay(submission, bench, seeds, wanted), strict=True):
            seconds.append(sum(result.wall_time_s for result in results))
            undecided = wanted - {result.check_id for result in results}
            failures += [f"seed {seed}: {check_id} NOT_RUN" for check_id in sorted(undecided)]
            failures += [
                f"seed {seed}: {result.check_id} {result.outcome.value}: {result.message}"
                for result in results
                if result.outcome is not Outcome.PASSED
            ]
    except SubmissionError as error:
        failures.append(f"seed {seeds[len(seconds)]}: {error}")
    return Alarms(name=submission.student_id, seeds=seeds, failures=failures, seconds=seconds)


def as_submissions(variants: Collection[Variant], folder: Path) -> Iterator[Submission]:
    """Write the notebooks of variants to a folder, as if handed in."""
    for variant in variants:
        path = folder / f"{variant.name}.ipynb"
        data = to_json(variant.notebook).encode()
        path.write_bytes(data)
        yield Submission(
            student_id=variant.name,
            path=str(path),
            sha256=hashlib.sha256(data).hexdigest(),
            submitted_at="",
        )
