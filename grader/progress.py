"""How a batch stands: kept up to date by its events, written to the results folder for whoever asks from elsewhere.

`logs/<student>.log` has what the workers said about each submission, one attempt after the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from grader.batch import Event
from grader.corpus import write_whole
from grader.errors import UsageError
from grader.types import Grade

STATUS, LOGS, LOCK = "status.json", "logs", ".lock"
WRITE_EVERY_S = 1.0
MOST = 1e12  # of what can be a time in seconds, or a count

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Standing:
    """Where a batch is; times are seconds since the epoch."""

    total: int
    started_at: float
    written_at: float = 0.0
    pid: int = 0
    done: int = 0
    known: int = 0  # of those done, graded before
    unknown: int = 0  # of those done, not graded by a fault of ours
    by_status: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)  # by sentence, how often something was tried again
    running: dict[str, tuple[str, float]] = field(default_factory=dict)  # by student, the worker and since when
    held: dict[str, str] = field(default_factory=dict)  # by student, the worker whose answer is to be confirmed
    graded: int = 0  # now
    wall_time_s: float = 0.0  # of those graded now, together
    most_running: int = 0
    is_stopping: bool = False  # what runs is finished, nothing else is begun
    is_over: bool = False

    @property
    def waiting(self) -> int:
        return self.total - self.done - len(self.running) - len(self.held)

    def eta_s(self, now: float) -> float | None:
        """How long the rest takes, if it takes as long as what was graded so far; None before anything was."""
        if not self.graded:
            return None
        each = self.wall_time_s / self.graded
        left = each * self.waiting + sum(max(0.0, each - (now - since)) for _, since in self.running.values())
        return left / max(1, self.most_running)

    def take(self, event: Event, now: float) -> None:
        """Go on by one event."""
        self.held.pop(event.student_id, None)
        if event.kind == "stopping":
            self.is_stopping = True
        elif event.kind == "started":
            self.running[event.student_id] = ("", now)
            self.most_running = max(self.most_running, len(self.running))
        elif event.kind == "running":
            since = self.running.get(event.student_id, ("", now))[1]
            self.running[event.student_id] = (event.worker, since)
        elif event.kind == "held":
            self.running.pop(event.student_id, None)
            self.held[event.student_id] = event.worker
        elif event.kind == "failed":
            self.running.pop(event.student_id, None)
            self.faults[event.message] = self.faults.get(event.message, 0) + 1
        elif event.status:  # withdrawn
            self.done -= 1
            self.by_status[event.status.value] -= 1
            self.faults[event.message] = self.faults.get(event.message, 0) + 1
        elif event.grade:
            self.running.pop(event.student_id, None)
            self.done += 1
            self.known += event.kind == "known"
            self.unknown += event.grade.score is None
            status = event.grade.status.value
            self.by_status[status] = self.by_status.get(status, 0) + 1
            if event.kind == "graded":
                self.graded += 1
                self.wall_time_s += event.grade.wall_time_s


class Progress:
    """Follows a batch: keeps its standing, writes the status file and the logs, and has the terminal show it."""

    def __init__(
        self, out: Path, total: int, show: Callable[[Event, Standing], None], logs_in: Path | None = None
    ) -> None:
        self.standing = Standing(total=total, started_at=time.time(), pid=os.getpid())
        self._out, self._show, self._written_at = out, show, -math.inf
        self._logs_in = logs_in or out

    def __enter__(self) -> Progress:
        self._write()
        return self

    def __exit__(self, *_: object) -> None:
        self.standing.is_over = True
        self._write()

    def __call__(self, event: Event) -> None:
        """Take one event of the batch. A status or a log that cannot be written costs a warning, and no grade."""
        self.standing.take(event, time.time())
        is_recorded_again = event.kind == "known" and event.message
        if event.kind in ("failed", "graded", "withdrawn") or is_recorded_again:
            self._log(event)
        if event.kind == "stopping" or time.monotonic() - self._written_at > WRITE_EVERY_S:
            self._write()
        self._show(event, self.standing)

    def _write(self) -> None:
        self.standing.written_at, self._written_at = time.time(), time.monotonic()
        try:
            write_whole(self._out / STATUS, json.dumps(dataclasses.asdict(self.standing)).encode())
        except OSError as error:
            log.warning("%s is not up to date: %s", self._out / STATUS, error.strerror)

    def _log(self, event: Event) -> None:
        who = event.worker or ("the gradebook" if event.kind == "known" else "a worker")
        said = f"not graded, tried again: {event.message}" if event.kind == "failed" else "graded"
        if event.kind == "withdrawn":
            said = f"withdrawn, to be graded again: {event.message}"
        elif event.grade:
            said = ": ".join(filter(None, (event.message, _verdict(event.grade))))
        lines = [_line(who, said), *event.log.splitlines()]
        _append(log_of(self._logs_in, event.student_id), "\n    ".join(lines) + "\n")


def log_of(out: Path, student_id: str) -> Path:
    """What was said about a student's submissions while they were graded."""
    return out / LOGS / f"{student_id}.log"


def log_published(out: Path, aside: Path, grade: Grade) -> None:
    """Have a student's log say that a grade counts now, after what was said in `aside` when it was graded."""
    meanwhile = log_of(aside, grade.student_id)
    text = ""
    with contextlib.suppress(OSError):
        text = meanwhile.read_text(encoding="utf-8")
        meanwhile.unlink()
    _append(log_of(out, grade.student_id), text + _line("grader regrade", f"published: {_verdict(grade)}") + "\n")


def _verdict(grade: Grade) -> str:
    return f"{grade.status.value}, score {grade.score}, key {grade.key[:12]}"


def _line(who: str, said: str) -> str:
    return f"{datetime.now(timezone.utc).isoformat(timespec='seconds')} by {who}: {said}"


def _append(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
    except OSError as error:
        log.warning("%s lacks what was just said: %s", path, error.strerror)


def as_json(event: Event, standing: Standing) -> str:
    """One line for a machine."""
    line: dict[str, Any] = {"at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "event": event.kind}
    line |= {"student_id": event.student_id or None, "worker": event.worker or None}
    if event.grade:
        grade = event.grade
        line |= {"status": grade.status.value, "score": grade.score, "max_score": grade.max_score}
        line |= {"wall_time_s": round(grade.wall_time_s, 3), "message": grade.message or None}
    elif event.message:
        line |= {"message": event.message}
    return json.dumps(line | {"done": standing.done, "total": standing.total})


def standing_of(out: Path) -> tuple[Standing, bool]:
    """How the last batch of a results folder stands, and whether it is still going on. Raises UsageError."""
    path = out / STATUS
    try:
        standing = Standing(**json.loads(path.read_text(encoding="utf-8")))
        _require_sound(standing)
    except (OSError, ValueError, TypeError, RecursionError):
        raise UsageError(f"{out} holds no batch: name the folder that `grader grade -o` writes to.") from None
    return standing, _is_held(out / LOCK)


def _require_sound(standing: Standing) -> None:
    """Raises TypeError for a file that somebody else wrote."""
    plain: dict[str, type] = {"by_status": dict, "faults": dict, "running": dict, "held": dict}
    plain |= {"is_stopping": bool, "is_over": bool}
    values = {one.name: getattr(standing, one.name) for one in dataclasses.fields(standing)}
    times = {"started_at", "written_at", "wall_time_s"}
    mistyped = [name for name, kind in plain.items() if type(values[name]) is not kind]
    if mistyped:
        raise TypeError(mistyped[0])
    workers = [*standing.held.values(), *(worker for worker, _ in standing.running.values())]
    counts = [*standing.by_status.values(), *standing.faults.values()]
    counts += [values[name] for name in values if name not in {*plain, *times}]
    moments = [*(values[name] for name in times), *(since for _, since in standing.running.values())]
    if not all(isinstance(worker, str) for worker in workers):
        raise TypeError("a worker")
    if not all(type(count) is int and abs(count) < MOST for count in counts):
        raise TypeError("a count")
    if not all(type(moment) in (int, float) and abs(moment) < MOST for moment in moments):  # NaN is not, either
        raise TypeError("a time")


def _is_held(lock: Path) -> bool:
    try:
        with lock.open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
