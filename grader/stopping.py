"""How a batch is stopped: signals set a mark, and what is written is tried again until there are two of them."""

from __future__ import annotations

import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from grader.errors import InfrastructureError

ATTEMPTS = 12  # to write: about four minutes
PAUSE_S = 2.0  # before the second; twice as long before each later one
MOST_PAUSE_S = 30.0
LOOK_EVERY_S = 0.5


class Interrupted(Exception):
    """The user stopped the batch; what was finished is recorded."""


def patiently(write: Callable[[int], None], stops: Sequence[int]) -> None:
    """Write, again after a while if the disk or the database refuses: `write` is told which attempt it is.

    Raises:
        InfrastructureError: in the end.
        Interrupted: it did not come to that before a second signal to stop.
    """
    for attempt in itertools.count(1):
        try:
            return write(attempt)
        except InfrastructureError as error:
            if attempt == ATTEMPTS:
                raise
            until = time.monotonic() + min(MOST_PAUSE_S, PAUSE_S * 2 ** (attempt - 1))
            while len(stops) < 2 and time.monotonic() < until:
                time.sleep(LOOK_EVERY_S)
            if len(stops) > 1:
                raise Interrupted from error


@contextmanager
def heeding(stops: list[int], kill: Callable[[], None]) -> Iterator[None]:
    """Note the signals that ask this process to stop; nothing is torn out of the middle of a record by them."""

    def note(number: int, _frame: object) -> None:
        stops.append(number)
        if len(stops) == 1:
            print("Stopping: finishing what runs (press Ctrl-C again to stop at once).", file=sys.stderr)
        else:
            kill()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
