"""Tests the checks themselves: every mutant must fail the checks meant for it and no other, no correct solution any."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode

from grader.batch import grade_each
from grader.bench import Bench
from grader.checks import run_checks
from grader.errors import AssignmentError, SubmissionError, UsageError
from grader.notebook import to_json
from grader.pipeline import ran
from grader.types import Assignment, CheckResult, Grade, Outcome, Profile, Submission
from grader.variants import Variant, read_variants, read_yaml

LITE = "lite.yaml"  # beside the mutants or above: makes every notebook small, since its training is not what is tested
TRAIN_CHARS, TEST_CHARS = 30_000, 3_000
SEEDS_A_RUN = 25  # of the checks, on one run of a notebook
A_GROUP = 12  # mutants, on one run of a notebook


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What the checks made of one variant."""

    variant: Variant
    checks: Sequence[CheckResult]
    fault: str = ""  # of ours, that kept it from being judged

    @property
    def failed(self) -> frozenset[str]:
        return frozenset(check.check_id for check in self.checks if check.outcome is not Outcome.PASSED)

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
        return frozenset(check.mistake for check in self.checks if check.mistake)

    @property
    def problem(self) -> str:
        """What is wrong with the checks; empty if nothing is."""
        if self.fault:
            return self.fault
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
    lites = [place / LITE for place in (folder, folder.parent) if (place / LITE).exists()]
    lite = read_yaml(lites[0]) if lites else {}
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
    """Try every variant; `report` is called with each trial as it comes.

    Mutants that only define something else share the run of a notebook, a few at a time, each defined and then taken
    back. One with which something is wrong then is tried again in a sandbox of its own, as all others are.
    """
    alone: list[Variant] = [variant for variant in variants if not variant.definitions]

    def sort(trial: Trial) -> None:
        if trial.problem:
            alone.append(trial.variant)
        else:
            report(trial)

    with tempfile.TemporaryDirectory(prefix="selftest-") as scratch:
        groups = _groups([variant for variant in variants if variant.definitions])
        bases = [_submission("base", group[0].base, Path(scratch)) for group in groups]
        tasks = [(base, group, bench) for base, group in zip(bases, groups, strict=True)]
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            for trials in pool.map(_try_group, *zip(*tasks, strict=True)) if tasks else ():
                for trial in trials:
                    sort(trial)
        by_name = {variant.name: variant for variant in alone}
        grade_each(
            [_submission(variant.name, variant.notebook, Path(scratch)) for variant in alone],
            bench,
            jobs=jobs,
            record=lambda grade: report(_trial(by_name[grade.student_id], grade)),
        )


def _trial(variant: Variant, grade: Grade) -> Trial:
    if grade.score is None:
        return Trial(variant=variant, checks=(), fault=grade.message)
    return Trial(variant=variant, checks=grade.checks)


def _groups(variants: Sequence[Variant]) -> list[list[Variant]]:
    """Variants of one base, a few together."""
    by_base: dict[str, list[Variant]] = {}
    for variant in variants:
        by_base.setdefault(to_json(variant.base), []).append(variant)
    return [group[i : i + A_GROUP] for group in by_base.values() for i in range(0, len(group), A_GROUP)]


def _try_group(base: Submission, group: Sequence[Variant], bench: Bench) -> list[Trial]:
    """One trial for each; those after one that ended the notebook's process were not tried."""
    wanted = {check.id for check in bench.assignment.checks}
    trials = [Trial(variant=variant, checks=(), fault="not tried") for variant in group]
    with suppress(SubmissionError), ran(base, bench) as student:
        for number, variant in enumerate(group):
            student.run(variant.definitions)
            checks = run_checks(bench.assignment, wanted, student, _seed(variant), bench.split.test)
            if len(checks) < len(wanted):
                break
            trials[number] = Trial(variant=variant, checks=checks)
            student.run(variant.originals)
    return trials


def _seed(variant: Variant) -> int:
    return int(hashlib.sha256(variant.name.encode()).hexdigest()[:15], 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarms:
    """What one run of a correct solution came to under some seeds."""

    name: str
    seeds: Sequence[int]
    failures: Sequence[str]  # each with its seed; none if all is well
    seconds: Sequence[float]  # that all checks took, for each seed


def run_seeds(
    variants: Sequence[Variant], bench: Bench, seeds: range, *, jobs: int, report: Callable[[Alarms], None]
) -> None:
    """Run the checks on correct solutions with each of these seeds; `report` is called as results come."""
    parts = [seeds[i : i + SEEDS_A_RUN] for i in range(0, len(seeds), SEEDS_A_RUN)]
    with tempfile.TemporaryDirectory(prefix="selftest-") as scratch:
        submissions = [_submission(variant.name, variant.notebook, Path(scratch)) for variant in variants]
        tasks = [(submission, bench, part) for part in parts for submission in submissions]
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            for alarms in pool.map(_alarms, *zip(*tasks, strict=True)):
                report(alarms)


def _alarms(submission: Submission, bench: Bench, seeds: Sequence[int]) -> Alarms:
    wanted = {check.id for check in bench.assignment.checks}
    failures, seconds = [], []
    try:
        with ran(submission, bench) as student:
            for seed in seeds:
                started = time.monotonic()
                results = run_checks(bench.assignment, wanted, student, seed, bench.split.test)
                seconds.append(time.monotonic() - started)
                failures += [f"seed {seed}: {failure}" for failure in _failures(results, wanted)]
    except SubmissionError as error:
        failures.append(f"seed {seeds[len(seconds)]}: {error}")
    return Alarms(name=submission.student_id, seeds=seeds, failures=failures, seconds=seconds)


def _failures(results: Sequence[CheckResult], wanted: set[str]) -> list[str]:
    failed = [result for result in results if result.outcome is not Outcome.PASSED]
    undecided = sorted(wanted - {result.check_id for result in results})
    words = [f"{result.check_id} {result.outcome.value}: {result.message}" for result in failed]
    return words + [f"{check_id} NOT_RUN" for check_id in undecided]


def _submission(name: str, notebook: NotebookNode, folder: Path) -> Submission:
    """Write a notebook to a folder, as if handed in."""
    data = to_json(notebook).encode()
    sha256 = hashlib.sha256(data).hexdigest()
    path = folder / f"{sha256}.ipynb"
    path.write_bytes(data)
    return Submission(student_id=name, path=str(path), sha256=sha256, submitted_at="")
