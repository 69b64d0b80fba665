"""Standard output and error whose reader may go away, whose disk may fill, or that were never there.

What a batch says is worth less than what it does: it goes on without a reader.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any, TextIO


def make_safe() -> None:
    """Replace the standard streams by ones that never fail; first of all, as what is opened would get their numbers."""
    _open_closed()
    sys.stdout, sys.stderr = _safe(sys.stdout, sys.__stdout__), _safe(sys.stderr, sys.__stderr__)


def _open_closed() -> None:
    """Have those that were closed when we began lead nowhere."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            nowhere = open(number, "w", closefd=False)  # noqa: SIM115  it stays open until the process ends
            setattr(sys, name, nowhere)
            setattr(sys, f"__{name}__", nowhere)


def _safe(stream: TextIO, original: TextIO | None) -> TextIO:
    """The same stream, without failures; one that somebody has put in its place (a test) stays as it is."""
    if stream is not original or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    raw = _Sink(stream.fileno(), "w", closefd=False)
    lines = stream.line_buffering or stream is sys.__stderr__
    return io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, "replace", line_buffering=lines)


class _Sink(io.FileIO):
    """A file that leads nowhere from the first failure on; a full disk is told, a reader who went away knows."""

    def write(self, data: Any, /) -> int:
        try:
            while (written := super().write(data)) is None:  # of a stream that others have made non-blocking
                select.select([], [self], [])
            return written
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if self.fileno() == 1 and error.errno != errno.EPIPE:
                said = "what is said is lost from here on, and the work goes on."
                print(f"grader: standard output could not be written ({error.strerror}): {said}", file=sys.stderr)
            return len(memoryview(data).cast("B"))
