"""What every sandbox must do: keep its promises, tell outcomes apart, leave nothing behind."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from grader.errors import InfrastructureError, SandboxUnavailable
from grader.sandbox import tiers
from grader.sandbox.bridge import Session, SessionOver, StudentError
from grader.sandbox.limits import family
from grader.sandbox.references import Handle
from grader.sandbox.selftest import ENVIRONMENT, PROMISES, can_be_warm, promised, prove, require
from grader.sandbox.student import Student
from grader.sandbox.template import why_cold
from grader.types import Limits, Outcome
from tests.conftest import LIMITS, notebook_of

ROOT = Path(__file__).parents[2]
Start = Callable[..., Session]


STARTING = [tier for tier in tiers.candidates() if not tiers.why_not(tier)]


@pytest.fixture(scope="module", params=STARTING or tiers.candidates()[:1])  # without any, the suite fails
def tier(request: pytest.FixtureRequest) -> str:
    """Every sandbox that this user can have on this machine."""
    return str(request.param)


@pytest.fixture(scope="module", params=["cold", "warm"])
def is_warm(request: pytest.FixtureRequest, tier: str) -> bool:
    """Both ways in which a sandbox comes to be: from nothing, and as a copy of a template."""
    if request.param == "warm":
        if tier not in tiers.WARM:
            pytest.skip(f"{tier} is always started cold")
        assert can_be_warm(tier), why_cold()
    return bool(request.param == "warm")


@pytest.fixture
def start(tier: str, is_warm: bool, request: pytest.FixtureRequest) -> Start:
    """Start a session on some cells, cold or warm; it ends with the test."""

    def start(*cells: str, limits: Limits = LIMITS, files: dict[str, bytes] | None = None) -> Session:
        session = Session(
            notebook=notebook_of(*cells),
            files=files or {},
            environment=ENVIRONMENT,
            limits=limits,
            tier=tier,
            warm=is_warm,
        )
        request.addfinalizer(session.close)
        assert session.is_warm == is_warm
        return session

    return start


def test_the_canary_fails_at_everything_forbidden(tier: str, is_warm: bool) -> None:
    """The self-test, run for real, finds that each sandbox keeps exactly the promises that it makes."""
    assert [name for name, holds in prove(tier, warm=is_warm).items() if holds] == promised(tier)


ELSEWHERE = "CONFORMANCE_RUN_ELSEWHERE"  # set in the runs that the next test starts
# what root may do in a container that was given no further rights
CONTAINER = "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod"
USERS = {
    "an ordinary user": ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups"],
    "root in a container": ["setpriv", "--inh-caps=-all", f"--bounding-set=-all,+{CONTAINER.replace(' ', ',+')}"],
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(ELSEWHERE in os.environ, reason="this is the run as another user")
@pytest.mark.parametrize(("user", "expected"), list(zip(USERS, (tiers.USER, tiers.UID), strict=True)))
def test_the_sandbox_of_another_user_passes_this_suite(user: str, expected: str) -> None:
    """An ordinary user, and root in an ordinary container, each have a sandbox, and it passes all these tests."""
    pytest_again = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))]
    check = f"from grader.sandbox.tiers import pick_tier; import sys; sys.exit(pick_tier() != {expected!r})"
    for command in ([sys.executable, "-B", "-c", check], pytest_again):
        done = subprocess.run(
            with_open_folders([*USERS[user], *command]),
            cwd="/",
            env={"PATH": tiers.PATH, ELSEWHERE: user},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def with_open_folders(command: list[str]) -> list[str]:
    """The command, run where every user has a view of the interpreter and of this repository.

    Both may lie in a closed home: in a private mount namespace they are bound again above an open, empty folder.
    """
    script = ["set -e", "mount -t tmpfs -o mode=0755 tmpfs /mnt"]
    paths = [sys.base_prefix, str(ROOT)]
    script += [f"mkdir /mnt/{i}; mount --bind {path} /mnt/{i}" for i, path in enumerate(paths)]
    closed = {parent for path in paths for parent in Path(path).parents if not parent.stat().st_mode & 0o001}
    tops = [folder for folder in closed if not closed & set(folder.parents)]
    script += [f"mount -t tmpfs -o mode=0755 tmpfs {folder}" for folder in tops]
    for i, path in enumerate(paths):
        if any(folder in Path(path).parents for folder in tops):
            script.append(f"mkdir -p {path}; mount --bind /mnt/{i} {path}")
    script.append('exec "$@"')
    return ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", "\n".join(script), "sh", *command]


def test_a_sandbox_that_breaks_a_promise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one promise broken there is no grading, and the sentence names the promise."""
    monkeypatch.setattr(
        "grader.sandbox.selftest.prove", lambda *_, **__: {name: name != "no_network" for name in PROMISES}
    )
    with pytest.raises(SandboxUnavailable, match="no host socket can be reached"):
        require("bubblewrap")


def test_without_bubblewrap_there_is_no_grading(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sandbox, no grading, and the sentence says what to install."""
    monkeypatch.setattr(tiers.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(tiers, "candidates", lambda: (tiers.USER,))
    with pytest.raises(SandboxUnavailable, match="install the package bubblewrap"):
        tiers.pick_tier()


def test_a_sandbox_that_does_not_come_up_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the command fails, the error is an infrastructure error that quotes what the command said."""
    monkeypatch.setattr(tiers, "command", lambda *_: ["sh", "-c", "echo no namespaces here >&2; exit 1"])
    with Session(notebook=notebook_of(), files={}, environment={}, limits=LIMITS, tier="bubblewrap") as session:  # noqa: SIM117
        with pytest.raises(SandboxUnavailable, match="no namespaces here"):
            session.execute()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give each grading process a uid of its own")
def test_process_limits_of_two_workers_do_not_add_up(start: Start) -> None:
    """RLIMIT_NPROC counts by uid over all sandboxes: each grading process runs notebooks under another one."""
    session = start("import time")
    session.execute()
    inside = {process.uids().real for process in psutil.Process(session._sealed.process.pid).children(recursive=True)}
    print_uid = "from grader.sandbox.tiers import slot_uid; print(slot_uid())"
    other = subprocess.run([sys.executable, "-c", print_uid], cwd=ROOT, capture_output=True, text=True, check=True)
    assert tiers.slot_uid() in inside
    assert int(other.stdout) not in inside


def test_a_sandbox_outlives_the_thread_that_asked_for_it(start: Start) -> None:
    """bubblewrap dies with the thread that started it, and the thread of a pool may end at any time."""
    with ThreadPoolExecutor(1) as pool:
        session = pool.submit(start, "def f(): return 1").result()
        assert pool.submit(session.execute).result().outcome is Outcome.PASSED
    time.sleep(0.2)
    assert Student(session, "").f() == 1


def test_another_python_inside_is_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its own libpython is not bound, an interpreter silently loads the system's: such a sandbox is none."""
    session = start("x = 1")
    monkeypatch.setattr(sys, "version", "3.11.99 (another)")
    with pytest.raises(SandboxUnavailable, match="is not the one outside"):
        session.execute()


def test_values_cross_both_ways(start: Start) -> None:
    """Arrays arrive as NDArrays and come back as numpy, tuples and keys keep their kind, objects stay as handles."""
    session = start(
        "from mxnet import nd",
        "def double(x): return [2 * x, (1, 'a'), {0: x.shape}] if isinstance(x, nd.NDArray) else None\n"
        "class Model:\n    def area(self, x): return x * 3\nmodel = Model()",
    )
    assert session.execute().outcome is Outcome.PASSED
    student = Student(session, "def area(model, x): return model.area(x)")
    doubled, pair, shapes = student.double(np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(doubled, np.full((2, 3), 2, np.float32))
    assert (pair, shapes) == ((1, "a"), {0: (2, 3)})
    model = student.get("model")
    assert isinstance(model, Handle)
    assert model.type_name == "Model"
    assert student.stubs.area(model, 5) == 15
    assert student.stubs.area(student.ref("model"), 5) == 15


def test_a_callback_runs_in_the_graders_process(start: Start) -> None:
    """A function passed to student code is called over here, and its refusal ends the call there."""
    session = start("def apply(f, x): return [f(x + i) for i in range(3)]")
    session.execute()
    student, seen = Student(session, ""), []
    assert student.apply(lambda x: seen.append(x) or x * 10, 1) == [10, 20, 30]
    assert seen == [1, 2, 3]

    def refuse(x: int) -> None:
        raise AssertionError("not like this")

    with pytest.raises(AssertionError, match="not like this"):
        student.apply(refuse, 1)
    assert student.apply(lambda x: x, 1) == [1, 2, 3]


@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        ("def f(): return undefined", Outcome.RAISED),
        ("def f(): raise NotImplementedError", Outcome.MISSING),
        ("g = 1", Outcome.MISSING),
        ("def f():\n    while True: pass", Outcome.TIMED_OUT),
        ("def f(): raise SystemExit", Outcome.RAISED),
        ("def f(): raise KeyboardInterrupt", Outcome.RAISED),
        ("def f(): return [bytearray(10**7 * i) for i in (1, 400)]", Outcome.MEMORY_EXCEEDED),
    ],
    ids=["raises", "stub", "missing", "endless", "exits", "interrupts", "memory"],
)
def test_what_a_call_does_wrong_is_its_outcome_and_the_next_call_works(
    start: Start, source: str, outcome: Outcome
) -> None:
    """Each fault of a function has an outcome of its own, and costs only the call it happened in."""
    session = start(f"{source}\ndef ok(): return 1")
    session.execute()
    student = Student(session, "")
    with pytest.raises(StudentError) as caught:
        student.f()
    assert caught.value.outcome is outcome
    assert student.ok() == 1


def test_calls_that_are_begun_together_are_answered_in_order(start: Start) -> None:
    """Those that take too long cost neither those before them nor the next; one that ends the process ends them all."""
    session = start(
        "import os, time\ndef f(x):\n    time.sleep(99 * (x == 2))\n    if x == 4: os._exit(0)\n    return x"
    )
    session.execute()
    student = Student(session, "def f(x): return notebook['f'](x)")
    f = student.stubs.ref("f")
    first, second, third, fourth = (student.begin(f, x) for x in (1, 2, 2, 3))
    assert first() == 1
    for late in (second, third):
        with pytest.raises(StudentError) as caught:
            late()
        assert not isinstance(caught.value, SessionOver)
    assert fourth() == 3
    waiting = student.begin(f, 3)
    with pytest.raises(TypeError, match="no function"):
        student.begin(f, len)
    assert waiting() == 3
    for answer in [student.begin(f, x) for x in (4, 5)]:
        with pytest.raises(SessionOver):
            answer()


def test_a_call_does_not_pay_for_those_that_are_begun_with_it(start: Start) -> None:
    """Three that each take most of the time that one may take are all in time."""
    session = start("import time\ndef f(x):\n    time.sleep(1.4)\n    return x")
    session.execute()
    student = Student(session, "def f(x): return notebook['f'](x)")
    answers = [student.begin(student.stubs.ref("f"), x) for x in range(4)]
    assert [answer() for answer in answers] == [0, 1, 2, 3]


def test_an_exception_whose_text_cannot_be_had_is_an_answer(start: Start) -> None:
    """The next call is answered as ever."""
    session = start(
        "class E(Exception):\n    def __str__(self): raise ValueError\ndef f(x):\n    if x: raise E\n    return x"
    )
    session.execute()
    student = Student(session, "")
    with pytest.raises(StudentError) as caught:
        student.f(1)
    assert (caught.value.outcome, student.f(0)) == (Outcome.RAISED, 0)


def test_a_function_that_ends_the_process_ends_the_session(start: Start) -> None:
    """os._exit in a function under test is KERNEL_DIED, now and for every later call."""
    session = start("import os\ndef f(): os._exit(0)")
    session.execute()
    student = Student(session, "")
    for _ in range(2):
        with pytest.raises(SessionOver) as caught:
            student.f()
        assert caught.value.outcome is Outcome.KERNEL_DIED


def test_memory_that_the_machine_lacks_is_our_fault(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that dies while the machine kills processes for want of memory costs nobody anything."""
    session = start("import os\nos.kill(os.getpid(), 9)")
    monkeypatch.setattr("grader.sandbox.bridge.oom_kills", lambda: session._oom_kills + 1)
    with pytest.raises(InfrastructureError, match="out of memory"):
        session.execute()


def test_what_an_exception_says_can_be_written_to_a_file(start: Start) -> None:
    """A lone surrogate, which UTF-8 cannot hold, is told as an escape."""
    session = start("def f(): raise ValueError('bad \\udcff byte')")
    session.execute()
    with pytest.raises(StudentError, match=r"bad \\udcff byte"):
        Student(session, "").f()


def test_a_call_stuck_in_native_code_ends_the_session_in_time(start: Start) -> None:
    """What cannot be interrupted is given up after the limit and the grace, as TIMED_OUT."""
    session = start(
        "import signal, time\ndef f():\n    signal.signal(signal.SIGINT, signal.SIG_IGN)\n    time.sleep(99)"
    )
    session.execute()
    with pytest.raises(SessionOver) as caught:
        Student(session, "").f()
    assert caught.value.outcome is Outcome.TIMED_OUT


@pytest.mark.parametrize(
    ("cell", "outcome"),
    [
        ("1 / 0", Outcome.RAISED),
        ("def f(:", Outcome.RAISED),
        ("import os; os.kill(os.getpid(), 9)", Outcome.KERNEL_DIED),
        ("import os; os.kill(-1, 9)", Outcome.KERNEL_DIED),
        ("while True: pass", Outcome.TIMED_OUT),
        ("while True: print('x' * 10_000)", Outcome.OUTPUT_EXCEEDED),
        ("while True: print(1)", Outcome.OUTPUT_EXCEEDED),
        ("print('x' * 300_000_000)", Outcome.OUTPUT_EXCEEDED),
        ("import sys\nwhile True: sys.stderr.write('é' * 1000)", Outcome.OUTPUT_EXCEEDED),
        ("import os\nwhile True: os.write(1, b'\\xff' * 10_000)", Outcome.OUTPUT_EXCEEDED),
        ("!yes", Outcome.OUTPUT_EXCEEDED),
        ("x = [bytearray(10**8) for _ in range(99)]", Outcome.MEMORY_EXCEEDED),
    ],
    ids=[
        *("raises", "syntax", "killed kernel", "killed everything", "endless"),
        *("flood", "lines", "string", "stderr", "descriptor", "shell", "memory"),
    ],
)
def test_what_a_cell_does_wrong_is_the_outcome_of_the_run(start: Start, cell: str, outcome: Outcome) -> None:
    """Each way a notebook can go wrong is told apart; a kernel that lives can be asked for more."""
    memory = 600 << 20 if outcome is Outcome.MEMORY_EXCEEDED else LIMITS.memory_bytes
    wall_s = 6 if outcome is Outcome.TIMED_OUT else LIMITS.notebook_wall_s
    limits = dataclasses.replace(LIMITS, notebook_wall_s=wall_s, memory_bytes=memory)
    session = start("def ok(): return 1", cell, limits=limits)
    execution = session.execute()
    assert execution.outcome is outcome
    assert execution.message
    if outcome is Outcome.KERNEL_DIED:
        assert session.over
    else:
        assert Student(session, "").ok() == 1


def test_processes_that_share_out_their_memory_are_counted_together(start: Start) -> None:
    """Memory is limited for the sandbox as a whole, not for each process."""
    hog = "import os, time\nfor _ in range(4):\n    if os.fork() == 0: x = bytearray(4 * 10**8)\ntime.sleep(60)"
    session = start(hog)
    assert session.execute().outcome is Outcome.MEMORY_EXCEEDED


def test_what_something_stops_goes_on(start: Start) -> None:
    """SIGSTOP to all of a sandbox, sent by anybody, while cells run and while a call does: nobody is late by it."""
    limits = dataclasses.replace(LIMITS, notebook_wall_s=20, check_wall_s=15)
    session = start("import time\ndef f():\n    time.sleep(3)\n    return 1\nf()", limits=limits)
    with ThreadPoolExecutor(1) as threads:
        for work in (session.execute, lambda: Student(session, "").f()):
            running = threads.submit(work)
            time.sleep(2)
            members = family(session.pid)
            assert members
            assert not running.done()
            for member in members:
                member.suspend()
            result = running.result(60)
            assert result == 1 or result.outcome is Outcome.PASSED


def test_nothing_is_left_alive(start: Start) -> None:
    """Daemons that ignore every signal die with the sandbox."""
    daemon = (
        "import os, signal, time\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        for s in (1, 2, 13, 15): signal.signal(s, signal.SIG_IGN)\n"
        "        time.sleep(600); os._exit(0)"
    )
    session = start(daemon)
    session.execute()
    family = psutil.Process(session._sealed.process.pid).children(recursive=True)
    assert len(family) >= 4
    session.close()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive


def test_files_arrive_and_the_notebook_comes_back_with_its_outputs(start: Start) -> None:
    """The data lie where HW_DATA_DIR says, and what cells printed is in the executed notebook."""
    session = start("print(open('data/train.txt').read())", files={"data/train.txt": b"to be or not"})
    assert "to be or not" in session.execute().notebook_json


def test_forged_bytes_on_the_bridge_are_a_protocol_violation(start: Start) -> None:
    """A notebook that writes its own bytes into the bridge loses the session and nothing else happens."""
    forge = (
        "import os, stat\n"
        "def f():\n"
        "    for fd in range(3, 64):\n"
        "        try:\n"
        "            if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, b'\\xff' * 64)\n"
        "        except OSError: pass\n"
    )
    session = start(forge)
    session.execute()
    with pytest.raises(SessionOver) as caught:
        Student(session, "").f()
    assert caught.value.outcome in (Outcome.PROTOCOL_VIOLATION, Outcome.KERNEL_DIED)


def test_a_run_without_a_sandbox_works_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """Where an instructor allows it, the same notebook runs unsandboxed, and its folder is gone afterwards."""
    cell = "import os\nhere = os.getcwd()\nprint(open(os.environ['HW_DATA_DIR'] + '/train.txt').read())"
    with Session(
        notebook=notebook_of(cell),
        files={"data/train.txt": b"to be or not"},
        environment={"HW_DATA_DIR": "$HOME/data"},
        limits=LIMITS,
        tier="none",
    ) as session:
        assert "to be or not" in session.execute().notebook_json
        here = Student(session, "").get("here")
    assert not Path(here).exists()


def test_magics_and_plots_work(start: Start) -> None:
    """%matplotlib inline draws into the executed notebook, as students are used to."""
    session = start("%matplotlib inline\nfrom matplotlib import pyplot as plt\nplt.plot([1, 2]); plt.show()")
    execution = session.execute()
    assert execution.outcome is Outcome.PASSED, execution.message
    assert "image/png" in execution.notebook_json


def test_private_folders_cannot_be_read_wherever_they_lie(tier: str, is_warm: bool) -> None:
    """Hidden checks below a folder which the interpreter needs are not there; where they would be, nothing starts."""
    if not os.access(sys.prefix, os.W_OK):
        pytest.skip("this user cannot put a folder where the interpreter lies")
    with tempfile.TemporaryDirectory(dir=sys.prefix) as folder:
        (Path(folder) / "oracle.py").write_text("secret")
        Path(folder).chmod(0o755)
        cell = f"import os\nfound = os.listdir({folder!r})"

        def session(*private: str) -> Session:
            return Session(
                notebook=notebook_of(cell),
                files={},
                environment=ENVIRONMENT,
                limits=LIMITS,
                tier=tier,
                private=private,
                warm=is_warm,
            )

        if tier == tiers.UID:
            with pytest.raises(SandboxUnavailable, match="chmod o-rwx"):
                session(folder)
            return
        for private, found in (((), ["oracle.py"]), ((folder,), [])):
            with session(*private) as started:
                started.execute()
                assert started.is_warm == is_warm
                assert Student(started, "").get("found") == found


@pytest.mark.parametrize(
    "call",
    ["f(**{1: 2})", "f(f)", "f(1, 2, 3)", "f([[1], [2, 3]])"],
    ids=["key that is no string", "function", "too many", "ragged"],
)
def test_a_callback_called_in_a_wrong_way_is_the_callers_mistake(start: Start, call: str) -> None:
    """Whatever student code hands to a function of a check, the fault is not the check's; the next call works."""
    session = start(f"def use(f):\n    return {call}\ndef ok(): return 1")
    session.execute()
    student = Student(session, "")
    with pytest.raises(StudentError):
        student.use(lambda x: float(x) + 1)
    if session.over is None:
        assert student.ok() == 1
