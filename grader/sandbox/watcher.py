"""Ends a sandbox that is out of time or of memory, lets it go on when something stops it from outside, and notices when
nobody could have been in time."""

from __future__ import annotations

import math
import threading
import time

from grader.errors import InfrastructureError
from grader.sandbox.launch import Sealed
from grader.sandbox.limits import family, let_go_on, uses_more_than
from grader.types import Limits, Outcome

INTERVAL_S = 0.5
STOOD_STILL_S = 5.0  # from one look at the clock to the next


class Clock:
    """Notices that this process, or the whole machine, stood still: who is late then may have had no time."""

    def __init__(self) -> None:
        self._looked_at = math.inf  # nobody looks
        self._went_on_at, self._stood_still_s = -math.inf, 0.0

    def start(self) -> None:
        """From now on somebody looks at much shorter intervals than STOOD_STILL_S, until a look that is the last."""
        self._looked_at = time.monotonic()

    def look(self, *, is_last: bool = False) -> None:
        """Take note if the time since the last look was long."""
        now = time.monotonic()
        if now - self._looked_at > STOOD_STILL_S:
            self._went_on_at, self._stood_still_s = now, now - self._looked_at
        self._looked_at = math.inf if is_last or self._looked_at == math.inf else now

    def require_it_went_on(self, since: float) -> None:
        """Raises InfrastructureError if there was time since then in which nobody could do anything."""
        self.look()
        if self._went_on_at > since:
            raise InfrastructureError(
                f"the grader, or the whole machine, stood still for {self._stood_still_s:.0f} s while a notebook ran."
            )


class Watcher:
    """Watches one sandbox from its start until `close`, in a thread."""

    def __init__(self, sealed: Sealed, limits: Limits) -> None:
        self.clock, self.started_at = Clock(), time.monotonic()
        self.killed_for: Outcome | None = None  # why it has ended the sandbox
        self._sealed, self._limits, self._closed = sealed, limits, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> bool:
        """Watch no longer; whether that is new."""
        is_new = not self._closed.is_set()
        self._closed.set()
        self._thread.join()
        return is_new

    def _watch(self) -> None:
        """Kill the sandbox when it is out of time or of memory; closing the sockets wakes every reader."""
        while not self._waited():
            if self.killed_for:
                continue
            members = family(self._sealed.process.pid)
            let_go_on(members)
            if time.monotonic() > self.started_at + self._limits.total_wall_s:
                self.killed_for = Outcome.TIMED_OUT
            elif uses_more_than(self._limits.memory_bytes, members):
                self.killed_for = Outcome.MEMORY_EXCEEDED
            else:
                continue
            self._sealed.kill()

    def _waited(self) -> bool:
        """Whether that is to be all."""
        self.clock.start()
        is_closed = self._closed.wait(INTERVAL_S)
        self.clock.look(is_last=True)
        return is_closed
