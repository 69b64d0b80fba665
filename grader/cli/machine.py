"""The grader about itself: what this machine can do, and whether the checks hold."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from grader.bench import set_up
from grader.cli.common import AssignmentOption, ProfileOption, app, load, usable_tier
from grader.config import load_assignment
from grader.errors import RuntimeUnavailable, SandboxUnavailable, UsageError
from grader.sandbox.devices import find_gpus, usable_gpus
from grader.sandbox.runtime import missing, runtime_identity
from grader.sandbox.selftest import can_be_warm, prove, require_device
from grader.sandbox.template import why_cold
from grader.sandbox.tiers import candidates, why_not
from grader.selftest import read_matrix, small
from grader.terminal import diagnosis, false_alarms, gpu_table, say, wrong_verdicts
from grader.types import Profile


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
def doctor(
    assignment: Annotated[
        Path | None, typer.Option("--assignment", help="Look at the interpreters that it names, too.")
    ] = None,
) -> None:
    """Say whether this machine can grade: the sandbox's promises, each one tried; exit 3 if one is not kept.

    A GPU is not needed: it is said what there is, and what MXNet can use.
    """
    profiles = load_assignment(assignment).profiles if assignment else ()
    reasons = {tier: why_not(tier) for tier in candidates()}
    usable = [tier for tier, reason in reasons.items() if not reason]
    starts = ("cold", "warm") if usable and can_be_warm(usable[0]) else ("cold",)
    kept = {start: prove(usable[0], warm=start == "warm") for start in starts} if usable else {}
    can_grade = diagnosis(reasons, kept, why_cold())
    try:
        gpu_table(find_gpus())
    except RuntimeUnavailable as error:
        say(f"GPU: {escape(str(error))}", style="yellow")
    for python in dict.fromkeys(profile.runtime.python or sys.executable for profile in profiles):
        reason = missing(python)
        say(escape(reason or f"{python}: {runtime_identity(python)}"), style="yellow" if reason else None)
    for profile in profiles:
        if usable:
            say(escape(f"profile {profile.name!r}: {_verdict(usable[0], profile)}"))
    raise typer.Exit(0 if can_grade else 3)


def _verdict(tier: str, profile: Profile) -> str:
    """Whether notebooks of a profile can compute as it wants here, tried in the sandbox."""
    try:
        require_device(tier, profile)
    except (RuntimeUnavailable, SandboxUnavailable) as error:
        return f"cannot be graded here: {error}"
    return f"can be graded here, on the {profile.device.upper()}"


@app.command()
def worker(
    scheduler: Annotated[str, typer.Option("--scheduler", help="Address of a Dask scheduler: tcp://HOST:8786.")],
    slots: Annotated[int, typer.Option(min=0, help="Submissions at a time, on CPUs.")] = os.cpu_count() or 1,
    gpus: Annotated[str, typer.Option(help="auto: each GPU that MXNet can use; none.")] = "none",
    slots_per_gpu: Annotated[int, typer.Option("--slots-per-gpu", min=1, help="Submissions at a time, on each.")] = 1,
) -> None:
    """Start a runner: it grades what `grader grade --scheduler` hands out, until it is stopped."""
    from grader.runners import Slot, require_address, run  # imports Dask

    if gpus not in ("auto", "none"):
        raise UsageError(f"--gpus is {gpus!r}; expected auto or none (CUDA_VISIBLE_DEVICES chooses among them).")
    require_address(scheduler, "worker")
    tier = usable_tier(False)
    offered = [Slot(resource="CPU", environment={})] * slots
    try:
        usable = usable_gpus() if gpus == "auto" else ()
    except RuntimeUnavailable as error:
        usable = ()
        say(f"no GPU is offered: {escape(str(error))}", style="yellow")
    for gpu in usable:
        offered += [Slot(resource="GPU", environment={"CUDA_VISIBLE_DEVICES": gpu.uuid})] * slots_per_gpu
    if not offered:
        raise UsageError("this runner would have nothing to offer: no slots on CPUs, and no GPU that MXNet can use.")
    say(f"{slots} submissions at a time on CPUs and {len(offered) - slots} on GPUs, in the sandbox {tier}")
    run(scheduler, offered)
