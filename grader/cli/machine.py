"""The grader about itself: what this machine can do, what it costs, and whether the checks hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from grader.benchmark import reading, sandbox_start, submission
from grader.cli.common import AssignmentOption, ProfileOption, app, load, usable_tier
from grader.errors import UsageError
from grader.pipeline import set_up
from grader.sandbox.selftest import can_be_warm, prove
from grader.sandbox.template import why_cold
from grader.sandbox.tiers import candidates, why_not
from grader.selftest import read_matrix, small
from grader.terminal import diagnosis, false_alarms, measured, wrong_verdicts


@app.command()
def selftest(
    mutants: Annotated[Path, typer.Option("--mutants", help="One mistake each.")] = Path("tests/mutants"),
    solutions: Annotated[Path, typer.Option("--solutions", help="Correct notebooks.")] = Path("tests/solutions"),
    only: Annotated[str, typer.Option("--only", help="Only those whose name holds this.")] = "",
    seeds: Annotated[int, typer.Option("--seeds", min=0, help="Instead: correct ones only, with so many seeds.")] = 0,
    first: Annotated[int, typer.Option("--first-seed", min=0, help="The first of the seeds.")] = 0,
    assignment: AssignmentOption = Path("reference"),
    profile: ProfileOption = "smoke",
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Worker processes.")] = os.cpu_count() or 1,
) -> None:
    """Test the checks: a mutant must fail those meant for it and no other, a correct solution none; else exit 1."""
    loaded, scale = load(assignment, profile)
    variants = [variant for variant in read_matrix(mutants, solutions, loaded) if only in variant.name]
    if not variants:
        raise UsageError(f"no mutant or solution has {only!r} in its name.")
    bench = set_up(loaded, small(scale), usable_tier(False))
    if seeds:
        correct = [variant for variant in variants if not variant.fails]
        raise typer.Exit(1 if false_alarms(correct, bench, range(first, first + seeds), jobs) else 0)
    raise typer.Exit(1 if wrong_verdicts(variants, bench, jobs) else 0)


@app.command()
def bench(
    runs: Annotated[int, typer.Option("--runs", min=1, help="Of each figure, and as many of its floor.")] = 5,
    chars: Annotated[int, typer.Option("--chars", min=7_500, help="Of text that is read.")] = 25_600,
    assignment: AssignmentOption = Path("reference"),
    profile: ProfileOption = "smoke",
) -> None:
    """Measure what the grader costs, each figure beside a floor."""
    loaded, scale = load(assignment, profile)
    tier = usable_tier(False)
    measured([sandbox_start(tier, runs)], "The sandbox (medians)")
    measured(submission(tier, runs), "One small submission: 1 s of training, 12 calls (medians)")
    measured(reading(loaded, scale, tier, chars, runs), f"Reading {chars:,} characters (medians)")


@app.command()
def doctor() -> None:
    """Say whether this machine can grade: the sandbox's promises, each one tried; exit 3 if one is not kept."""
    reasons = {tier: why_not(tier) for tier in candidates()}
    usable = [tier for tier, reason in reasons.items() if not reason]
    starts = ("cold", "warm") if usable and can_be_warm(usable[0]) else ("cold",)
    kept = {start: prove(usable[0], warm=start == "warm") for start in starts} if usable else {}
    raise typer.Exit(0 if diagnosis(reasons, kept, why_cold()) else 3)
