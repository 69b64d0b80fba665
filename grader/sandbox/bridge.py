"""The grader's end: one session with one sandboxed notebook, and the `student` proxy that checks talk to.

Every byte that arrives is hostile: frames are bounded, every read has a deadline, only data is decoded. What student
code does wrong arrives as a StudentError with the outcome it stands for.
"""

from __future__ import annotations

import contextlib
import math
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from grader.errors import InfrastructureError, SandboxUnavailable, SubmissionError
from grader.sandbox import wire
from grader.sandbox.launch import Sealed
from grader.sandbox.lease import Lease
from grader.sandbox.limits import oom_kills, rlimits
from grader.sandbox.references import arrive, leave
from grader.sandbox.runtime import version_of
from grader.sandbox.watcher import Watcher
from grader.types import Execution, Limits, Outcome, storable

START_WALL_S = 60.0  # for the interpreter and the kernel to come up; a fault of ours beyond that
INTERRUPT_GRACE_S = 3.0
STOP_GRACE_S = 40.0  # for the runner to stop a notebook that is out of time, and to say so
STATUS_S = 5.0  # for the runner to say how the kernel ended
GUEST_START_S = 20.0  # for the kernel to answer after its last cell
_FROM_OUTSIDE = tuple(-number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT))
ALWAYS = {"PYTHONBREAKPOINT": "0"}  # of every notebook's environment: a breakpoint that was left behind stops nobody


class StudentError(SubmissionError):
    """Something student code did; `outcome` names it, the text says it in the student's terms."""

    def __init__(self, outcome: Outcome, message: str, error_type: str = "") -> None:
        super().__init__(message)
        self.outcome = outcome
        self.error_type = error_type  # of the exception that the code raised


class SessionOver(StudentError):
    """The student's process is gone or stuck: nothing more can be asked of it."""


def warm_start(environment: Mapping[str, str]) -> dict[str, str]:
    """What a template begins with, for notebooks with this environment and no GPU."""
    return {**environment, "GRADER_DEVICE": "cpu"}


class Session:
    """One notebook in one sandbox, from its start until `close`."""

    _failed = False  # the run, or a call with MXNet's own error

    def __init__(
        self,
        *,
        notebook: bytes,
        files: Mapping[str, bytes],
        environment: Mapping[str, str],
        limits: Limits,
        tier: str,
        python: str = sys.executable,
        private: Sequence[str] = (),
        lease: Lease | None = None,
        warm: bool = True,
    ) -> None:
        """Start the sandbox on a notebook (bytes of valid nbformat 4 JSON), as a copy of a warm template if it may be.

        With a lease it has a GPU, and starts cold. Raises SandboxUnavailable, RuntimeUnavailable.
        """
        self.limits = limits
        self.device = "gpu" if lease else "cpu"
        self._python = python
        self._check_deadline, self._timed_from = math.inf, -math.inf
        self._over: SessionOver | None = None
        self._exit_status: object = None  # of the kernel, by the word of the sandbox
        self.was_killed = False  # by something unknown: see _cause
        self._asked: deque[list[Callable[..., Any]]] = deque()  # of each request without an answer, its callbacks
        self._oom_kills = oom_kills()
        job = {
            "files": [[name, len(data)] for name, data in files.items()],
            "environment": {
                **ALWAYS,
                **environment,
                **(lease.environment if lease else {}),
                "GRADER_DEVICE": self.device,
            },
            "rlimits": rlimits(limits, gpu=lease is not None),
            "notebook_cpu_s": limits.notebook_cpu_s,
            "notebook_wall_s": limits.notebook_wall_s,
            "output_bytes": limits.output_bytes,
        }
        frame = wire.pack(job, b"".join(files.values()) + notebook)
        start = warm_start(environment) if warm and lease is None else None
        self._sealed = Sealed(tier, frame, python=python, private=private, lease=lease, environment=start)
        self._watcher = Watcher(self._sealed, limits)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the sandbox; nothing of it is left. Closing twice is no error."""
        if self._watcher.close():
            self._sealed.close()

    @property
    def pid(self) -> int:
        """The process that all others of the sandbox descend from."""
        return self._sealed.process.pid

    @property
    def is_warm(self) -> bool:
        """Whether it is a copy of a warm template."""
        return self._sealed.copy is not None

    @property
    def over(self) -> SessionOver | None:
        """Why nothing more can be asked, or None."""
        return self._over

    @property
    def asks_for_trial(self) -> bool:
        """Whether something happened that a broken GPU could explain; a trial of ours then says whether it does."""
        return self._failed or self._over is not None

    # -- the run of the notebook ------------------------------------------------------------------------------

    def execute(self) -> Execution:
        """Run all cells and load nothing yet. Raises SandboxUnavailable if the sandbox never came up."""
        started = time.monotonic()
        try:
            event = self._event(START_WALL_S)
        except (EOFError, TimeoutError, wire.WireError) as error:
            raise SandboxUnavailable(
                f"the sandbox did not come up: {self._sealed.complaint()}. `grader doctor` says what is missing."
            ) from error
        if event[0].get("python") != version_of(self._python):
            raise SandboxUnavailable("the Python inside the sandbox is not the one outside: check its shared library")
        try:
            execution = self._follow_cells(started)
            self._failed = execution.outcome is not Outcome.PASSED
            return execution
        except (EOFError, TimeoutError, wire.WireError) as error:
            outcome = self._cause(error)
            self._over = SessionOver(outcome, _SENTENCES[outcome])
            return _execution(outcome, _SENTENCES[outcome], started)

    def _follow_cells(self, started: float) -> Execution:
        allowance = self.limits.notebook_wall_s + STOP_GRACE_S
        message, body = self._event(max(0.1, started + allowance - time.monotonic()))
        if message.get("event") != "executed":
            raise wire.WireError("an unknown event")
        outcome, text = _outcome(message.get("outcome")), storable(str(message.get("message"))[:500])
        if outcome is Outcome.TIMED_OUT and time.monotonic() - started >= self.limits.notebook_wall_s:  # and not of CPU
            self._watcher.clock.require_it_went_on(started)
        self._exit_status = message.get("status")
        try:
            hello, _ = self._receive(time.monotonic() + GUEST_START_S)
        except (EOFError, TimeoutError, wire.WireError) as error:
            stopped = outcome in (Outcome.TIMED_OUT, Outcome.OUTPUT_EXCEEDED)
            cause = outcome if stopped else self._cause(error)
            self._over = SessionOver(cause, text if stopped else _SENTENCES[cause])
            return _execution(cause, str(self._over), started, body)
        if "hello" not in hello:
            raise wire.WireError("the guest did not say hello")
        return _execution(outcome, text, started, body)

    def _event(self, wait_s: float) -> tuple[dict[str, Any], bytes]:
        deadline = time.monotonic() + wait_s
        return wire.read_frame(
            lambda n: _read(self._sealed.control, n, deadline),
            body_limit=self.limits.output_bytes + (1 << 16),
        )

    def _cause(self, error: Exception) -> Outcome:
        """Which outcome an ended or broken conversation stands for.

        A kernel that ended by SIGKILL, SIGTERM and the like, or with all of its sandbox, was hardly ended by what is in
        its notebook; then `was_killed` says so. It is no proof: code in the sandbox can do the same.

        Raises InfrastructureError if the kernel has killed processes meanwhile, or the template is gone, or all of us
        stood still: within its limits, no notebook can be blamed for that.
        """
        if isinstance(error, wire.WireError):
            return Outcome.PROTOCOL_VIOLATION
        outcome = self._watcher.killed_for or (Outcome.TIMED_OUT if isinstance(error, TimeoutError) else None)
        if outcome is Outcome.TIMED_OUT:
            self._watcher.clock.require_it_went_on(self._watcher.started_at)
        if outcome:
            return outcome
        if oom_kills() > self._oom_kills:
            raise InfrastructureError("the machine ran out of memory: grade fewer notebooks at once (--jobs).")
        if self._sealed.is_orphaned:
            raise InfrastructureError("the template that sandboxes are copied from has ended: something killed it.")
        self.was_killed = self._asked_exit_status() in (None, *_FROM_OUTSIDE)
        return Outcome.KERNEL_DIED

    def _asked_exit_status(self) -> object:
        if self._exit_status is None:
            with contextlib.suppress(OSError, EOFError, wire.WireError):
                self._sealed.control.settimeout(1)
                self._sealed.control.sendall(b"s")
                self._exit_status = self._event(STATUS_S)[0].get("status")
        return self._exit_status

    # -- calls ------------------------------------------------------------------------------------------------

    def give_time(self, seconds: float | None) -> None:
        """All requests from now on share so much time; None: each has the limit of one call."""
        self._timed_from = time.monotonic()
        self._check_deadline = math.inf if seconds is None else self._timed_from + seconds

    def request(self, message: dict[str, Any], values: Mapping[str, Any] | None = None) -> Any:
        """One request and its answer. Raises StudentError; SessionOver if nothing more can be asked."""
        self.ask(message, values)
        return self.answer()

    def ask(self, message: dict[str, Any], values: Mapping[str, Any] | None = None) -> None:
        """Send a request; several may be sent, without functions, before the first is answered. Raises as `request`."""
        if self._over:
            raise self._over
        deadline, callbacks = self._deadline(), list[Callable[..., Any]]()
        frame = _frame({**message, "wall_s": deadline - time.monotonic()}, values or {}, callbacks)
        if self._asked and (callbacks or self._asked[-1]):
            raise TypeError("what is asked together may hold no function: its calls would cross with what is asked")
        try:
            with self._hearing():
                self._send(frame, deadline)
        except StudentError as error:  # half a request leaves nothing that could be asked
            self._over = self._over or SessionOver(error.outcome, str(error))
            raise self._over from error
        self._asked.append(callbacks)

    def answer(self) -> Any:
        """The answer to the first request that has none; its time begins now. Raises as `request` does."""
        callbacks, deadline = self._asked.popleft(), self._deadline()
        if self._over:
            raise self._over
        with self._hearing():
            while True:
                try:
                    answer, body = self._receive(deadline)
                except TimeoutError:
                    return self._interrupted(*self._interrupt())
                if "callback" not in answer:
                    break
                self._call_back(answer, body, callbacks, deadline)
            return self._answered(answer, body)

    def _deadline(self) -> float:
        if self._check_deadline == math.inf:
            self._timed_from = time.monotonic()
        return min(self._check_deadline, time.monotonic() + self.limits.check_wall_s)

    @contextlib.contextmanager
    def _hearing(self) -> Iterator[None]:
        """What goes wrong with the conversation becomes a StudentError, or SessionOver."""
        try:
            yield
        except TimeoutError:
            self._interrupt()
            raise self._late() from None
        except (EOFError, OSError, wire.WireError) as error:
            cause = self._cause(error)
            self._over = SessionOver(cause, _SENTENCES[cause])
            raise self._over from error

    def _answered(self, answer: dict[str, Any], body: bytes) -> Any:
        if "ok" in answer:
            return wire.Decoder(body, arrive).value(answer["ok"])
        if "missing" in answer:
            raise StudentError(Outcome.MISSING, f"`{str(answer['missing'])[:80]}` is not defined in the notebook.")
        error = answer.get("error")
        if not isinstance(error, dict):
            raise wire.WireError("an answer of no known kind")
        kind, text = storable(str(error.get("type"))[:80]), storable(str(error.get("message")))
        if kind == "NotImplementedError":
            raise StudentError(Outcome.MISSING, "This part is still the stub: it raises NotImplementedError.")
        if kind == "MemoryError":
            raise StudentError(Outcome.MEMORY_EXCEEDED, "The code ran out of memory.")
        if wire.is_gpu_memory(kind, text):
            raise StudentError(Outcome.GPU_MEMORY_EXCEEDED, "The code ran out of GPU memory.")
        self._failed = self._failed or kind == "MXNetError"
        raise StudentError(Outcome.RAISED, f"The code raised {wire.gist(kind, text)}", kind)

    def _call_back(
        self, answer: dict[str, Any], body: bytes, callbacks: Sequence[Callable[..., Any]], deadline: float
    ) -> None:
        number, decoder = answer["callback"], wire.Decoder(body, arrive)
        if type(number) is not int or not 0 <= number < len(callbacks):
            raise wire.WireError("a callback that was never given")
        args, kwargs = decoder.value(answer.get("args")), decoder.value(answer.get("kwargs"))
        if not isinstance(args, list) or not isinstance(kwargs, dict) or not all(type(k) is str for k in kwargs):
            raise wire.WireError("a callback without arguments")
        try:
            result = callbacks[number](*args, **kwargs)
        except (AssertionError, StudentError, InfrastructureError):
            self._refuse(deadline)
            raise
        except Exception as error:
            # what a check handed out was called with arguments that it cannot take: the caller chose them
            self._refuse(deadline)
            kind = type(error).__name__
            raise StudentError(
                Outcome.FAILED, f"A function given to the code was called in a wrong way ({kind})."
            ) from error
        self._send(_frame({"op": "return"}, {"value": result}, []), deadline)

    def _refuse(self, deadline: float) -> None:
        """Stop the call that led to a callback, and wait until it is over."""
        self._send(_frame({"op": "refuse"}, {}, []), deadline)
        while "callback" in self._receive(deadline)[0]:
            self._send(_frame({"op": "refuse"}, {}, []), deadline)

    def _interrupt(self) -> tuple[dict[str, Any], bytes]:
        """A call is out of time: interrupt it, and keep the session only if something is answered to that."""
        try:
            self._sealed.control.settimeout(1)
            self._sealed.control.sendall(b"i")
            deadline = time.monotonic() + INTERRUPT_GRACE_S
            while "callback" in (found := self._receive(deadline))[0]:
                self._send(_frame({"op": "refuse"}, {}, []), deadline)
            return found
        except (EOFError, OSError, wire.WireError):
            late = self._late()
            self._over = SessionOver(late.outcome, str(late))
            raise self._over from None

    def _interrupted(self, answer: dict[str, Any], body: bytes) -> Any:
        """What was answered to an interrupt: a result, if it is another call of those asked together that was late."""
        if "ok" not in answer or not self._asked:
            raise self._late()
        return self._answered(answer, body)

    def _late(self) -> StudentError:
        self._watcher.clock.require_it_went_on(self._timed_from)
        return StudentError(Outcome.TIMED_OUT, f"The code was still running after {self.limits.check_wall_s:.0f} s.")

    def _send(self, frame: bytes, deadline: float) -> None:
        self._sealed.bridge.settimeout(max(0.01, deadline - time.monotonic()))
        self._sealed.bridge.sendall(frame)

    def _receive(self, deadline: float) -> tuple[dict[str, Any], bytes]:
        return wire.read_frame(lambda n: _read(self._sealed.bridge, n, deadline))


_SENTENCES = {
    Outcome.TIMED_OUT: "The notebook ran out of time and could not be interrupted.",
    Outcome.MEMORY_EXCEEDED: "The notebook used more memory than it may.",
    Outcome.KERNEL_DIED: "The kernel died.",
    Outcome.PROTOCOL_VIOLATION: "What came back from the notebook's process broke the protocol.",
}


_RUN_OUTCOMES = ["PASSED", "RAISED", "TIMED_OUT", "MEMORY_EXCEEDED", "OUTPUT_EXCEEDED", "KERNEL_DIED"]
_RUN_OUTCOMES += ["GPU_MEMORY_EXCEEDED"]


def _frame(message: dict[str, Any], values: Mapping[str, Any], callbacks: list[Callable[..., Any]]) -> bytes:
    """A request; the functions among its values, which stay here, are added to `callbacks`."""
    encoder = wire.Encoder(lambda value: leave(value, callbacks))
    nodes = {name: encoder.node(value) for name, value in values.items()}
    return wire.pack({**message, **nodes}, encoder.body)


def _execution(outcome: Outcome, message: str, started: float, notebook: bytes = b"") -> Execution:
    return Execution(
        outcome=outcome,
        message=message,
        wall_time_s=time.monotonic() - started,
        notebook_json=notebook.decode(errors="replace"),
    )


def _outcome(name: Any) -> Outcome:
    """The outcome of a run, of those that a run can have."""
    if name not in _RUN_OUTCOMES:
        raise wire.WireError("an unknown outcome")
    return Outcome(name)


def _read(source: socket.socket, count: int, deadline: float) -> bytes:
    """Exactly `count` bytes. Raises TimeoutError at the deadline, EOFError at the end."""
    parts = []
    while count:
        source.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            part = source.recv(min(count, 1 << 20))
        except ConnectionError:
            part = b""
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
