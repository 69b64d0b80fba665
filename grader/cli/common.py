"""What the commands share: the app, the options of several, and the steps before anything is graded."""

from __future__ import annotations

import fcntl
import getpass
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from grader.config import load_assignment
from grader.errors import RuntimeUnavailable, SandboxUnavailable, UsageError
from grader.gradebook import Gradebook
from grader.outputs import write_text
from grader.place import ADDRESS, PASSWORD, Place, address, place_of, shown
from grader.sandbox.devices import usable_gpus
from grader.sandbox.proofs import require_proven
from grader.sandbox.selftest import require_device
from grader.sandbox.tiers import WHAT, pick_tier
from grader.terminal import say
from grader.types import Assignment, Profile

LOCKED_S = 3.0  # to wait for another process that writes, each time: no signal is heard meanwhile
log = logging.getLogger(__name__)

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


AssignmentOption = Annotated[Path, typer.Option("--assignment", help="The assignment folder.")]
RememberedOption = Annotated[
    Path | None,
    typer.Option("--assignment", help="The assignment folder, if not the one that graded the results folder."),
]
ProfileOption = Annotated[str, typer.Option("--profile", help="The scale: a profile of assignment.yaml.")]
CorpusOption = Annotated[
    Path | None, typer.Option("--corpus-file", help="A local copy of the corpus instead of the download.")
]
SchedulerOption = Annotated[str, typer.Option("--scheduler", help="Address of a Dask scheduler: tcp://HOST:8786.")]
SandboxOption = Annotated[str, typer.Option("--sandbox", help="With --scheduler: the sandbox that the runners have.")]
AuditOption = Annotated[
    float,
    typer.Option("--audit", min=0, max=1, help="With --scheduler: the share of notebooks that two runners grade."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Each event as a line of JSON, for machines.")]
UnsandboxedOption = Annotated[
    bool,
    typer.Option("--allow-unsandboxed", help="Run without a sandbox where there is none; every report says so."),
]
GradebookOption = Annotated[
    str,
    typer.Option(
        "--gradebook",
        metavar="URL",
        help="Where the gradebook is, if not in the results folder: a SQLAlchemy URL, postgresql+psycopg://USER@HOST/"
        f"DATABASE. The folder remembers it; a password is taken from {PASSWORD}.",
    ),
]
AllowCpuOption = Annotated[
    bool,
    typer.Option("--allow-cpu", help="Run on the CPU what the profile wants a GPU for; every report says so."),
]


def load(folder: Path, profile: str) -> tuple[Assignment, Profile]:
    loaded = load_assignment(folder)
    return loaded, profile_of(loaded, profile)


def profile_of(assignment: Assignment, name: str) -> Profile:
    try:
        return assignment.profile(name)
    except KeyError:
        names = ", ".join(item.name for item in assignment.profiles)
        raise UsageError(
            f"there is no profile {name!r} in {assignment.folder}/assignment.yaml: choose one of {names}."
        ) from None


def usable_tier(allow_unsandboxed: bool) -> str:
    """The sandbox of this machine, proven. Raises SandboxUnavailable."""
    try:
        tier = pick_tier()
        require_proven(tier)
    except SandboxUnavailable:
        if not allow_unsandboxed:
            raise
        say("WARNING: no sandbox. Student code runs with your rights; every report says so.", style="bold red")
        return "none"
    return tier


def usable_device(profile: Profile, tier: str, allow_cpu: bool) -> str:
    """What notebooks of a profile run on here, tried in the sandbox. Raises RuntimeUnavailable."""
    try:
        require_device(tier, profile)
    except RuntimeUnavailable as error:
        if profile.device == "cpu":
            raise
        wanted = f"profile {profile.name!r} is for a GPU, and there is none to use here: {error}"
        if not allow_cpu:
            raise RuntimeUnavailable(
                f"{wanted.rstrip('.')}. Grade on a machine that has one, or run it on the CPU with --allow-cpu."
            ) from None
        say(f"WARNING: {escape(wanted)} Notebooks run on the CPU; every report says so.", style="bold red")
        return "cpu"
    return profile.device


def usable_jobs(jobs: int, device: str, profile: Profile) -> int:
    """No more workers than there are GPU slots: one that waited for a GPU would use up its submission's time."""
    if device == "cpu":
        return jobs
    slots = len(usable_gpus()) * profile.runtime.slots_per_gpu
    if slots < jobs:
        log.warning("%d at a time instead of %d: so many notebooks fit on the GPUs (docs/gpu.md).", slots, jobs)
    return min(jobs, slots)


def usable_tier_and_device(
    profile: Profile, scheduler: str, sandbox: str, allow_unsandboxed: bool, allow_cpu: bool
) -> tuple[str, str]:
    """Where a batch runs: what its runners are said to have, or this machine, tried.

    Raises UsageError, SandboxUnavailable, RuntimeUnavailable.
    """
    if sandbox and (not scheduler or sandbox not in WHAT):
        raise UsageError(f"--sandbox is {sandbox!r}; expected, with --scheduler, one of {', '.join(WHAT)}.")
    if scheduler and allow_unsandboxed:
        raise UsageError("--scheduler and --allow-unsandboxed exclude each other: no runner grades without a sandbox.")
    tier = sandbox or usable_tier(allow_unsandboxed)
    on_runners = "cpu" if allow_cpu else profile.device
    return tier, on_runners if scheduler else usable_device(profile, tier, allow_cpu)


def make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the results folder {out} cannot be made: {error.strerror}. Choose another with -o."
        ) from None


def open_gradebook(out: Path) -> Gradebook:
    """The gradebook of a results folder, which must be there. Raises UsageError, InfrastructureError."""
    return Gradebook.open(place_of(out), create=False)


def gradebook_to_grade_into(out: Path, place: Place) -> Gradebook:
    """The gradebook of a results folder, made if need be; the folder remembers where it is.

    Raises:
        UsageError: it holds grades, and they are not those of this folder.
        InfrastructureError: it cannot be used.
    """
    book = Gradebook.open(place, wait_s=LOCKED_S)
    if address(place) != address(place_of(out)):
        if book.known():
            raise UsageError(
                f"{shown(place)} holds grades already, and not those of {out}: each results folder has a database, or "
                f"a schema, of its own. If these are its grades, write the URL into {out / ADDRESS}."
            )
        write_text(out / ADDRESS, f"{address(place)}\n")
    return book


def login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user id without an entry in the system's list of users
        return "unknown"


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep a second batch out of the same results folder. Raises UsageError."""
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another batch is writing to {out}: wait for it, or choose another folder.") from None
        yield


def is_busy(out: Path) -> bool:
    """Whether a batch is writing to the results folder just now."""
    try:
        with alone(out) if (out / ".lock").exists() else nullcontext():
            return False
    except UsageError:
        return True


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
