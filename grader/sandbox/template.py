"""Warm sandboxes, seen from the grader: one template process for each kind of start, and the copies it makes.

A template belongs to the process that started it and ends with it. To others of the grader's processes it gives lines,
each to a template forked from it; these end with whom the line was given to, and take its copies along. Whatever goes
wrong with one is no fault of a submission: the sandbox is then started cold.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from grader.errors import SandboxUnavailable
from grader.sandbox import tiers
from grader.sandbox.limits import anonymous_file, seccomp_filter

# bubblewrap dies with the thread that started it: this one lives as long as the grader
LAUNCHER = ThreadPoolExecutor(1, "launcher")
START_WALL_S = 60.0  # for everything to be imported
FORK_WALL_S = 30.0
MOST = 2  # templates of one grader: what differs between submissions is at most whether weights are handed in
ATTEMPTS = 3  # to start a template of one kind
OFF = "GRADER_WARM"  # an environment variable; 0: every sandbox is started cold
KILL_GRACE_S = 5.0
END_WALL_S = 0.2
_MESSAGE = 4096


class TemplateRefused(SandboxUnavailable):
    """The template made no copy."""


class Copy:
    """A sealed copy of the template: its first process, which takes every other along when it ends."""

    def __init__(self, template: Template, pidfd: int) -> None:
        self.template, self._pidfd = template, pidfd
        os.set_inheritable(pidfd, False)
        fields = Path(f"/proc/self/fdinfo/{pidfd}").read_text().split()
        self.pid = int(fields[fields.index("Pid:") + 1])

    def end(self, grace_s: float) -> None:
        """Kill it, and wait until nothing of it is left: its first process ends last."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        _wait_for(self._pidfd, select.POLLIN, grace_s)

    def close(self) -> None:
        """Give its descriptor back, once it has ended."""
        os.close(self._pidfd)
        self.template.release(self)


class Template:
    """One that is there already, at the other end of a line that nobody else has."""

    def __init__(self, line: socket.socket) -> None:
        self._owner, self._lock, self._requests = os.getpid(), threading.Lock(), line
        self._copies: set[Copy] = set()
        self._is_retired = False

    def fork(self, *fds: int) -> Copy:
        """A copy that owns these descriptors: control, bridge, job and standard error.

        Raises:
            TemplateRefused: there is none, and none of the descriptors is held.
            SandboxUnavailable: no answer; a copy may hold them.
        """
        with self._lock:
            try:
                socket.send_fds(self._requests, [b"fork"], list(fds))
            except OSError as error:
                raise TemplateRefused(f"the template is gone: {error}") from error
            copy = Copy(self, self._receive(FORK_WALL_S)[0])
            self._copies.add(copy)
        if copy.pid <= 0:
            copy.close()
            raise SandboxUnavailable("the copy of the template has ended before it began.")
        return copy

    @property
    def is_ours(self) -> bool:
        """Whether this process started it; one that was forked from it may not use it."""
        return self._owner == os.getpid()

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, or does so at this moment: it takes its copies along, and one of them may be first."""
        return self._requests.fileno() < 0 or _wait_for(self._requests.fileno(), 0, END_WALL_S)

    @property
    def is_idle(self) -> bool:
        return not self._copies

    def release(self, copy: Copy) -> None:
        """A copy has ended."""
        self._copies.discard(copy)
        self._end_if_unused()

    def retire(self) -> None:
        """Make no more copies; end as soon as there is none."""
        self._is_retired = True
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        if self._is_retired and self.is_idle:
            self.close()

    def close(self) -> None:
        """Hang up: it ends, and every copy with it."""
        self._requests.close()

    def _receive(self, wait_s: float) -> list[int]:
        """The descriptors of an answer."""
        self._requests.settimeout(wait_s)
        try:
            message, fds, _, _ = socket.recv_fds(self._requests, _MESSAGE, 1)
        except OSError as error:
            raise SandboxUnavailable(f"the template does not answer: {error}") from error
        if not message:
            raise TemplateRefused(f"the template has ended: {self._last_words() or 'it said nothing'}")
        answer = json.loads(message)
        if "error" in answer:
            raise TemplateRefused(f"the template cannot be copied: {answer['error']} {self._last_words()}".strip())
        return fds

    def _last_words(self) -> str:
        """The last line that it wrote, if that is to be known."""
        return ""


class Started(Template):
    """One that this process has started."""

    def __init__(self, tier: str, python: str, private: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it and wait until it is warm. Raises SandboxUnavailable."""
        ours, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(ours)
        self._stderr, filter_fd = anonymous_file(b""), anonymous_file(seccomp_filter())
        try:
            self.process = LAUNCHER.submit(
                subprocess.Popen,
                tiers.template_command(tier, python, inside.fileno(), filter_fd, private, environment),
                env={"PATH": tiers.PATH},
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=(inside.fileno(), filter_fd),
                start_new_session=True,
                cwd="/",
            ).result()
        except OSError as error:
            self._requests.close()
            os.close(self._stderr)
            raise SandboxUnavailable(f"the template could not be started: {error}") from error
        finally:
            os.close(filter_fd)
            inside.close()
        try:
            for fd in self._receive(START_WALL_S):  # of a copy without a job, which proves that there can be copies
                os.close(fd)
        except BaseException:  # Ctrl-C, too
            self.close()
            raise

    def share(self, end: socket.socket) -> None:
        """Have a line answered by a template of its own, forked from this one. Raises OSError if this one is gone."""
        with self._lock:
            socket.send_fds(self._requests, [b"share"], [end.fileno()])

    def cpu_s(self) -> float:
        """CPU seconds of the template itself, and of what started it; none of its copies'."""
        outer = psutil.Process(self.process.pid)
        first = outer.children()[0]  # of the outer sandbox, which has the template below it
        return float(sum(sum(member.cpu_times()[:2]) for member in (outer, first, *first.children())))

    def close(self) -> None:
        """End it, and every copy with it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        _wait_for(self._requests.fileno(), 0, KILL_GRACE_S)
        self._requests.close()
        os.close(self._stderr)

    def _last_words(self) -> str:
        return (os.pread(self._stderr, _MESSAGE, 0).decode(errors="replace").strip().splitlines() or [""])[-1]


def _wait_for(fd: int, events: int, wait_s: float) -> bool:
    """Whether a descriptor has one of these events, or was hung up at its other end, within so many seconds."""
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(wait_s * 1000))


_Kind = tuple[object, ...]
_templates: dict[_Kind, Template] = {}
_failures: dict[_Kind, list[str]] = {}
_lock = threading.Lock()


def warm_copy(
    tier: str, python: str, private: Sequence[str], environment: Mapping[str, str], fds: Sequence[int]
) -> Copy | None:
    """A sealed copy of a template that began with such an environment; None where the sandbox is to be started cold.

    Raises SandboxUnavailable if the template does not answer in time.
    """
    template = template_for(tier, python, private, environment)
    if template is None:
        return None
    try:
        return template.fork(*fds)
    except SandboxUnavailable as error:
        _give_up(_kind(tier, python, private, environment), template, str(error))
        if isinstance(error, TemplateRefused):
            return None
        raise


def _give_up(kind: _Kind, template: Template, why: str) -> None:
    """Make no more copies of it; the next start may have another."""
    with _lock:
        _failures.setdefault(kind, []).append(why)
        if _templates.get(kind) is template:
            _templates.pop(kind).retire()


def template_for(tier: str, python: str, private: Sequence[str], environment: Mapping[str, str]) -> Template | None:
    """The template for such a start, started now if there is none yet; None if there is to be none."""
    # with more threads than one a process cannot be copied; NumPy's start when it is imported
    if tier not in tiers.WARM or environment.get("OMP_NUM_THREADS") != "1" or os.environ.get(OFF) == "0":
        return None
    kind = _kind(tier, python, private, environment)
    with _lock:
        known = _templates.get(kind)
        if known and known.is_ours:
            return known
        idle = [other for other, template in _templates.items() if template.is_idle or not template.is_ours]
        if len(_failures.get(kind, ())) >= ATTEMPTS or (len(_templates) >= MOST and not idle):
            return None
        if len(_templates) >= MOST:
            _drop(idle[0])
        try:
            _templates[kind] = Started(tier, python, private, _at_start(environment))
        except SandboxUnavailable as error:
            _failures.setdefault(kind, []).append(str(error))
            return None
        return _templates[kind]


def share(tier: str, python: str, private: Sequence[str], environment: Mapping[str, str], end: socket.socket) -> None:
    """Have the line that ends here, and is joined by another process of ours, answered by the template of such a start.

    If there is none to be had, whoever joined it is refused once the caller has closed this end.
    """
    template = template_for(tier, python, private, environment)
    if not isinstance(template, Started):
        return
    try:
        template.share(end)
    except OSError as error:
        _give_up(_kind(tier, python, private, environment), template, f"the template is gone: {error}")


def join(tier: str, python: str, private: Sequence[str], environment: Mapping[str, str], line: socket.socket) -> None:
    """From now on have such starts made at the other end of a line: there is no need to start a template here."""
    with _lock:
        _templates[_kind(tier, python, private, environment)] = Template(line)


def why_cold() -> list[str]:
    """What kept this process from starting warm sandboxes, each time that something did."""
    return [reason for reasons in _failures.values() for reason in reasons]


@atexit.register
def end_templates() -> None:
    """End every template of this process; the next sandbox starts a new one."""
    with _lock:
        for kind in list(_templates):
            _drop(kind)
        _failures.clear()


def _at_start(environment: Mapping[str, str]) -> dict[str, str]:
    """What libraries may read when they are loaded; the rest is the notebook's, and each copy takes its own."""
    return {name: value for name, value in environment.items() if not name.startswith("HW_")}


def _kind(tier: str, python: str, private: Sequence[str], environment: Mapping[str, str]) -> _Kind:
    return (tier, python, tuple(private), tuple(sorted(_at_start(environment).items())))


def _drop(kind: _Kind) -> None:
    template = _templates.pop(kind)
    if template.is_ours:
        template.close()
