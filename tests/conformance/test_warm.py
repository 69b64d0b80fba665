"""Copies of a template are as apart from each other, and from it, as sandboxes that were started from nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from grader.errors import InfrastructureError
from grader.sandbox import template as templates
from grader.sandbox import tiers
from grader.sandbox.bridge import Session, StudentError, warm_start
from grader.sandbox.selftest import ENVIRONMENT, can_be_warm
from grader.sandbox.student import Student
from grader.sandbox.template import Started, end_templates, why_cold
from grader.types import Outcome
from tests.conftest import LIMITS, notebook_of

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not [tier for tier in tiers.candidates() if tier in tiers.WARM and not tiers.why_not(tier)],
    reason="no sandbox of this machine is ever started warm",
)
FACTS = """
import os, resource, signal, socket, sys
hidden = ("PWD", "JPY_PARENT_PID", "JPY_SESSION_NAME", "PYDEVD_USE_FRAME_EVAL")  # the last: a debugger's
facts = {
    "environment": {name: value for name, value in os.environ.items() if name not in hidden},
    "paths": [os.getcwd(), *sys.path],
    "main": [__name__, sys.executable, sys.argv[0], str(sys.flags)],
    "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name[:7] == "RLIMIT_"},
    "users": [os.getuid(), os.getgid(), os.getgroups(), socket.gethostname()],
    "processes": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid(), os.getpriority(0, 0), os.umask(0o22)],
    "sizes": [(f.f_blocks * f.f_frsize, f.f_files) for f in map(os.statvfs, ("/tmp", ".", "/dev/shm"))],
    "modes": [os.stat(path).st_mode for path in ("/tmp", ".", "/dev/shm", "/", "/dev", "/proc")],
    "found": [sorted(os.listdir(path)) for path in (".", "/dev", "/dev/shm", "/dev/pts", "/")],
    "itself": len(open("/proc/self/environ", "rb").read()) > 0,
    "interrupt": str(signal.getsignal(signal.SIGINT)),
    "rights": [line for line in open("/proc/self/status") if line[:3] in ("Cap", "NoN", "Sec", "Gro", "Uid")],
    "spare": open("/proc/self/oom_score_adj").read(),
}
"""
LEAVE = """
import builtins, multiprocessing.shared_memory, os, socket, subprocess, sys
import numpy, mxnet
builtins.MARK = sys.MARK = numpy.MARK = mxnet.nd.MARK = MARK = "left-" + "behind"
os.environ["MARK"] = MARK
for folder in (".", "/tmp", "/dev/shm", os.path.expanduser("~")):
    open(f"{folder}/{MARK}", "w").write(MARK)
os.makedirs(".config/matplotlib"); open(".config/matplotlib/matplotlibrc", "w").write(MARK)
named = socket.socket(socket.AF_UNIX); named.bind("\\0" + MARK); named.listen()
port = socket.create_server(("127.0.0.1", 50123))
memory = multiprocessing.shared_memory.SharedMemory("of-" + MARK, create=True, size=99)
pty = os.openpty()
process = subprocess.Popen(["sleep", "99"])
"""
LOOK = """
import builtins, os, socket, sys
import numpy, mxnet
MARK = "left-" + "behind"
found = [str(where) for where in (builtins, sys, numpy, mxnet.nd) if hasattr(where, "MARK")]
found += [name for name in os.environ if name == "MARK"]
for folder in (".", "/tmp", "/dev/shm", "/dev/mqueue", "/var/tmp", os.path.expanduser("~")):
    if os.path.isdir(folder):
        found += [f"{folder}/{name}" for name in os.listdir(folder) if MARK in name or name == ".config"]
found += [line for line in open("/proc/net/unix") if MARK in line]
for family, address in ((socket.AF_UNIX, "\\0" + MARK), (socket.AF_INET, ("127.0.0.1", 50123))):
    with socket.socket(family) as one:
        found += [address] if one.connect_ex(address) == 0 else []
found += [name for name in os.listdir("/dev/pts") if name != "ptmx"]
found += [pid for pid in os.listdir("/proc") if pid.isdigit() and b"sleep" in open(f"/proc/{pid}/cmdline", "rb").read()]
"""
NAMESPACES = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")


@pytest.fixture(scope="module")
def tier() -> str:
    return next(tier for tier in tiers.candidates() if tier in tiers.WARM)


@pytest.fixture
def template(tier: str) -> Iterator[Started]:
    """The template that the sessions of a test are copied from."""
    end_templates()
    assert can_be_warm(tier), why_cold()
    yield next(iter(templates._templates.values()))
    end_templates()


def run(tier: str, *cells: str, warm: bool = True) -> Session:
    session = Session(
        notebook=notebook_of(*cells), files={}, environment=ENVIRONMENT, limits=LIMITS, tier=tier, warm=warm
    )
    execution = session.execute()
    assert execution.outcome is Outcome.PASSED, execution.message
    return session


def files_between_copies(pid: int) -> list[str]:
    """What a template has open once it has given a copy out of its hands, which is a moment after we have it."""
    deadline = time.monotonic() + 10
    while "anon_inode:[pidfd]" in open_files(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return open_files(pid)


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process lead to."""
    return sorted(str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir())


def until_it_ends(session: Session, name: str) -> None:
    """Call a function again and again: what was killed may take a moment to go."""
    while not session.over:
        with contextlib.suppress(StudentError):
            Student(session, "").call(name)


def told(session: Session, name: str) -> object:
    return Student(session, "").get(name)


def zygote_of(template: Started) -> psutil.Process:
    """The template itself: below bubblewrap, and below the first process of the outer sandbox."""
    return psutil.Process(template.process.pid).children()[0].children()[0]


def test_a_notebook_finds_what_it_finds_in_a_sandbox_started_from_nothing(tier: str, template: Started) -> None:
    """Environment, folders, limits, rights and arguments are the same, so that no grade hangs on how it began."""
    with run(tier, FACTS, warm=False) as cold, run(tier, FACTS) as warm:
        assert not cold.is_warm
        assert warm.is_warm
        assert told(warm, "facts") == told(cold, "facts")


@pytest.mark.parametrize("warm", [True, False])
def test_a_breakpoint_that_was_left_behind_stops_nobody(tier: str, template: Started, warm: bool) -> None:
    """In a cell or in a function that is called later, and however the sandbox began."""
    source = "breakpoint()\ndef f():\n    breakpoint()\n    return 5"
    with run(tier, source, warm=warm) as session:
        assert Student(session, "").f() == 5


def test_a_notebook_imports_what_it_has_written(tier: str, template: Started) -> None:
    """A module in the notebook's own folder is found, as in any notebook."""
    with run(tier, "open('mine.py', 'w').write('x = 5')", "import mine\nx = mine.x") as session:
        assert told(session, "x") == 5


def test_nothing_of_one_submission_is_seen_by_another(tier: str, template: Started) -> None:
    """Memory, files, sockets, ports, shared memory, terminals and processes: neither while it runs nor afterwards."""
    with run(tier, LEAVE) as first:
        with run(tier, LOOK) as meanwhile:
            assert told(meanwhile, "found") == []
        assert told(first, "MARK") == "left-behind"
        with run(tier, LEAVE, LOOK) as itself:  # what is looked for would be seen
            assert len(told(itself, "found")) >= 12  # type: ignore[arg-type]
    with run(tier, LOOK) as afterwards:
        assert told(afterwards, "found") == []


def test_every_namespace_is_its_own(tier: str, template: Started) -> None:
    """Two copies, their template and the grader share no namespace."""
    source = f"import os\nfound = [os.readlink(f'/proc/self/ns/{{name}}') for name in {NAMESPACES}]"
    outside = [str(Path(f"/proc/self/ns/{name}").readlink()) for name in NAMESPACES]
    zygote = zygote_of(template).pid
    of_template = [str(Path(f"/proc/{zygote}/ns/{name}").readlink()) for name in NAMESPACES]
    with run(tier, source) as first, run(tier, source) as second:
        for spaces in zip(told(first, "found"), told(second, "found"), of_template, outside, strict=True):  # type: ignore[call-overload]
            assert len(set(spaces)) == 4, spaces


def test_random_numbers_are_as_in_fresh_processes(tier: str, template: Started) -> None:
    """Python and NumPy draw differently in each submission; MXNet alike, as it does in every process without a seed."""
    source = (
        "import random, uuid, numpy, mxnet\n"
        "free = [random.random(), numpy.random.rand(), uuid.uuid4().hex]\n"
        "fixed = mxnet.nd.random.normal(shape=(3,)).asnumpy().tolist()"
    )
    with run(tier, source) as one, run(tier, source) as two, run(tier, source, warm=False) as cold:
        free = [told(session, "free") for session in (one, two, cold)]
        for draws in zip(*free, strict=True):  # type: ignore[call-overload]
            assert len(set(draws)) == 3
        assert told(one, "fixed") == told(two, "fixed") == told(cold, "fixed")


def test_the_template_is_out_of_reach(tier: str, template: Started) -> None:
    """Its copies see no process but their own, and what kills everything they may kill does not reach it."""
    source = (
        "import ctypes, os\n"
        "seen = {int(pid): open(f'/proc/{pid}/status').read() for pid in os.listdir('/proc') if pid.isdigit()}\n"
        "parents = {int(text.split('PPid:')[1].split()[0]) for text in seen.values()}\n"
        "pids, strangers = sorted(seen), sorted(parents - set(seen) - {0})\n"
        "refused = ctypes.CDLL(None).ptrace(16, 1, 0, 0) == -1\n"
        "def end(): os.kill(-1, 9)"
    )
    with run(tier, source) as session:
        assert told(session, "strangers") == []
        assert len(told(session, "pids")) == 3  # type: ignore[arg-type]  # the first process, the runner, the kernel
        assert told(session, "refused") is True
        until_it_ends(session, "end")
        assert session.over is not None
    assert not template.is_gone
    with run(tier, "x = 1") as again:
        assert told(again, "x") == 1
    assert next(iter(templates._templates.values())) is template


def test_the_template_holds_nothing_of_the_grader_or_of_a_submission(tier: str, template: Started) -> None:
    """It never reads a job; its environment is empty but for what libraries read; no descriptor is left to it."""
    mark = f"secret-{os.urandom(8).hex()}"
    zygote = zygote_of(template)
    open_before = files_between_copies(zygote.pid)
    grader_before = psutil.Process().num_fds()
    for _ in range(3):
        with run(tier, f"print('{mark}')") as session:
            for member in psutil.Process(session.pid).children(recursive=True):
                with contextlib.suppress(PermissionError):  # the runner's are closed to its own user
                    its_own = {name for name in open_files(member.pid) if name.startswith(("socket", "pipe"))}
                    assert not its_own & set(open_before)
    assert files_between_copies(zygote.pid) == open_before
    assert psutil.Process().num_fds() == grader_before
    assert zygote.num_threads() == 1
    assert not set(zygote.environ()) - {"HOME", "TMPDIR", "PATH", "LANG", "PWD", "GRADER_DEVICE", *ENVIRONMENT}
    assert not [line for line in Path(f"/proc/{zygote.pid}/maps").read_text().splitlines() if " rw-s " in line]
    if os.geteuid() == 0:
        assert not _holds(zygote.pid, mark.encode())


def _holds(pid: int, needle: bytes) -> bool:
    """Whether the memory of a process holds some bytes."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            if "rw-p" in line:
                memory.seek(start)
                if needle in (memory.read(end - start) or b""):
                    return True
    return False


def test_a_template_that_is_killed_costs_nobody_a_grade(tier: str, template: Started) -> None:
    """The notebook that ran is graded again, not blamed, and the next one starts from a new template."""
    session = run(tier, "def f(): return 1")
    with session:
        zygote_of(template).kill()
        with pytest.raises(InfrastructureError, match="template"):
            until_it_ends(session, "f")
    with run(tier, "x = 1") as cold, run(tier, "x = 1") as warm:
        assert [one.is_warm for one in (cold, warm)] == [False, True]


def shared(*kind: Any) -> socket.socket:
    """A line that a template answers, if there is to be one."""
    line, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with end:
        templates.share(*kind, end)
    return line


def test_a_line_to_a_template_ends_alone_and_the_template_ends_all(tier: str, template: Started) -> None:
    """Whoever has one needs no template of its own; what becomes of one line's copies is nothing to another's."""
    kind = (tier, sys.executable, (), warm_start(ENVIRONMENT))
    zygote, sessions, lines = zygote_of(template), [], []
    for _ in range(2):
        templates._templates[templates._kind(*kind)] = template  # as in the process that has started it
        line = shared(*kind)
        templates.join(*kind, line)
        lines.append(templates._templates[templates._kind(*kind)])
        sessions.append(run(tier, "def f(): return 1"))
    try:
        assert all(session.is_warm for session in sessions)
        forked = zygote.children()
        assert len(forked) == 2
        assert {psutil.Process(session.pid).ppid() for session in sessions} == {one.pid for one in forked}
        family = psutil.Process(sessions[0].pid).children(recursive=True)
        lines[0].close()
        assert not psutil.wait_procs(family, timeout=10)[1]
        assert Student(sessions[1], "").f() == 1
        zygote.kill()
        with pytest.raises(InfrastructureError, match="template"):
            until_it_ends(sessions[1], "f")
        templates._templates[templates._kind(*kind)] = template
        for is_warm in (False, True):  # it is gone; another was started
            line = shared(*kind)
            owner = templates._templates.get(templates._kind(*kind))
            templates.join(*kind, line)
            with run(tier, "x = 1") as session:
                assert session.is_warm == is_warm == bool(owner)
            line.close()
            if owner:
                owner.close()
    finally:
        for session in sessions:
            session.close()
        for one in lines:
            one.close()
        if not template.is_gone:
            template.close()


def test_where_there_can_be_no_template_sandboxes_start_cold(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that does not start, more threads than one, the switch: each time the notebook runs all the same."""
    end_templates()
    with monkeypatch.context() as patch:
        patch.setattr(tiers, "template_command", lambda *_: ["sh", "-c", "echo no namespaces here >&2"])
        for _ in range(templates.ATTEMPTS + 1):
            with run(tier, "x = 1") as session:
                assert not session.is_warm
    assert len(why_cold()) == templates.ATTEMPTS
    assert "no namespaces here" in why_cold()[0]
    end_templates()
    with monkeypatch.context() as patch:
        patch.setattr(tiers, "_TEMPLATE", tiers._OWN_USER)  # in which nobody may make a user namespace
        with run(tier, "x = 1") as session:
            assert not session.is_warm
    assert "cannot be copied" in why_cold()[0]
    end_templates()
    assert templates.template_for(tier, sys.executable, (), {}) is None
    monkeypatch.setenv(templates.OFF, "0")
    assert not can_be_warm(tier)


def test_a_template_ends_with_the_process_that_started_it(tier: str) -> None:
    """However the grader ends, nothing of its templates or their copies is left."""
    script = (
        "import sys, time\nfrom tests.conformance.test_warm import run\n"
        f"session = run({tier!r}, 'import time')\nprint('ready', flush=True)\ntime.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 6
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 10
    while (alive := [one for one in family if one.is_running()]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive
