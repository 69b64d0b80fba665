"""Every attack is carried out for real; what it would have changed outside is looked at afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from grader.bench import Bench, set_up
from grader.checks import run_checks
from grader.config import load_assignment
from grader.pipeline import grade_submission, ran
from grader.sandbox import tiers
from grader.sandbox.bridge import Session, StudentError
from grader.sandbox.launch import SHARED_FOLDERS, _is_alive
from grader.sandbox.selftest import ENVIRONMENT
from grader.sandbox.student import Student
from grader.types import Outcome, Submission
from tests.conftest import LIMITS, notebook_of
from tests.small import folder_with

HERE = Path(__file__).parent
GROWTH_BYTES = 64 << 20  # of this process, by one attack: a frame may be as large
BRIDGE = """
import gc, guest, json, struct
def bridge():
    gc.unfreeze()
    return next(one for one in gc.get_objects() if isinstance(one, guest.Guest))._socket
def frame(header, body=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack(">IQ", len(header), len(body)) + header + body
def send(*frames):
    for one in frames:
        bridge().sendall(one)
"""
FAIR = """
import numpy as np
from mxnet import nd
alphabet = " abcdefghijklmnopqrstuvwxyz"
char_to_idx = {char: i for i, char in enumerate(alphabet)}
vocab_size = 27
class Fair:
    def begin_state(self, batch_size=0, ctx=None):
        return [nd.zeros((1, batch_size, 1))]
    def scores(self, X):
        return nd.zeros((X.shape[0], 27))
    def __call__(self, X, state):
        return self.scores(X), state
"""


def attacks(*classes: str) -> list[Any]:
    """The attacks of some classes, as parameters of a test."""
    found = []
    for name in classes:
        for entry in yaml.safe_load((HERE / "attacks" / f"{name}.yaml").read_text(encoding="utf-8")):
            found.append(pytest.param({"class": name, **entry}, id=f"{name}.{entry['name']}"))
    return found


class Outside:
    """What an attack could reach outside: servers, files, an environment variable, a folder."""

    def __init__(self, folder: Path) -> None:
        self.mark = f"bait-{secrets.token_hex(8)}"
        self.reached = 0
        self.folder = folder
        for name, mode in (("secret", 0o644), ("closed", 0o600)):
            (folder / name).write_text(self.mark)
            (folder / name).chmod(mode)
        (folder / "outside").mkdir(mode=0o777)
        folder.chmod(0o755)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(self.server.getsockname())
        self.datagrams.setblocking(False)
        self.door = socket.socket(socket.AF_UNIX)
        self.door.bind(str(folder / "door"))
        (folder / "door").chmod(0o777)
        self.door.listen()
        for one in (self.server, self.door):
            threading.Thread(target=self._listen, args=(one,), daemon=True).start()

    def _listen(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                server.accept()[0].close()
                self.reached += 1

    def close(self) -> None:
        for one in (self.server, self.door, self.datagrams):
            one.close()

    def names(self) -> str:
        """The cell that tells the attack where everything is."""
        places = {"SECRET": "secret", "CLOSED": "closed", "OUTSIDE": "outside", "DOOR": "door"}
        lines = [f"{name} = {str(self.folder / place)!r}" for name, place in places.items()]
        return "\n".join([*lines, f"PORT = {self.server.getsockname()[1]}"])

    def look(self) -> dict[str, Any]:
        """All that should be the same afterwards."""
        files = {
            path.name: (path.stat().st_mode, path.read_bytes()) for path in self.folder.glob("**/*") if path.is_file()
        }
        return {
            "files": files,
            "shared": {place: foreign(Path(place)) for place in (*SHARED_FOLDERS, "/run")},
            "mounts": Path("/proc/self/mounts").read_text(),
            "core_pattern": Path("/proc/sys/kernel/core_pattern").read_text(),
            "python": _names(Path(os.__file__).parent),
        }


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def foreign(folder: Path) -> list[str]:
    """What lies in a shared folder and is not of this user, or was left by an attack: others are at work there.

    Sandboxes of other tests among them, which are of users of their own.
    """
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            is_foreign = path.lstat().st_uid != os.geteuid() and not path.name.startswith("sandbox-")
            if is_foreign or path.name.startswith("bait"):
                found.append(path.name)
    return sorted(found)


@pytest.fixture
def outside() -> Iterator[Outside]:
    with tempfile.TemporaryDirectory() as folder:
        found = Outside(Path(folder))
        yield found
        found.close()


@contextlib.contextmanager
def watched(outside: Outside) -> Iterator[list[str]]:
    """Do something hostile; afterwards nothing outside has changed. What came back is put into the list."""
    os.environ["BAIT"] = outside.mark
    came_back: list[str] = []
    before, memory = outside.look(), psutil.Process().memory_info().rss
    try:
        yield came_back
    finally:
        del os.environ["BAIT"]
    assert outside.look() == before
    assert outside.reached == 0
    with pytest.raises(BlockingIOError):
        outside.datagrams.recv(1)
    assert not [text for text in came_back if outside.mark in text]
    assert psutil.Process().memory_info().rss - memory < GROWTH_BYTES


SESSIONS = attacks("files", "network", "processes", "kernel", "limits", "output", "guest", "bridge")


@pytest.mark.parametrize("attack", SESSIONS)
def test_a_notebook_reaches_nothing(attack: dict[str, Any], outside: Outside, tier: str) -> None:
    """The run and the call end as expected, and nothing of the attack is left, or seen, outside."""
    wall_s = attack.get("wall_s", LIMITS.notebook_wall_s)
    limits = dataclasses.replace(LIMITS, notebook_wall_s=wall_s, notebook_cpu_s=min(wall_s, LIMITS.notebook_cpu_s))
    head = outside.names() + (BRIDGE if attack["class"] == "bridge" else "")
    with watched(outside) as came_back:
        session = Session(
            notebook=notebook_of(head, *attack["cells"]), files={}, environment=ENVIRONMENT, limits=limits, tier=tier
        )
        with session:
            family = psutil.Process(session._sealed.process.pid)
            execution = session.execute()
            family_members = [family, *_children(family)]
            came_back += [execution.message, execution.notebook_json]
            assert execution.outcome.value in attack.get("run", ["PASSED"]), execution.message
            if "call" in attack:
                assert _call(session, came_back) in attack["call"], came_back[-1]
            family_members += _children(family)
        assert not _left_alive(family_members)


def _left_alive(members: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run after a while; what has been killed may take a moment to go."""
    deadline = time.monotonic() + 5
    while (alive := [member for member in members if _is_alive(member)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return alive


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _call(session: Session, came_back: list[str]) -> str:
    """The outcome of calling the notebook's `f`, which comes in time, whatever the answer is made of."""
    started = time.monotonic()
    try:
        came_back.append(str(Student(session, "").f()))
    except StudentError as error:
        came_back.append(str(error))
        return error.outcome.value
    finally:
        assert time.monotonic() - started < 10 * LIMITS.check_wall_s
    return Outcome.PASSED.value


# -- scores ---------------------------------------------------------------------------------------------------

CHECK = """
import pytest

@pytest.mark.check("f")
def test_f(student):
    assert student.has("char_to_idx")
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tier: str) -> Bench:
    """A small assignment whose one model is scored by the real harness."""
    folder = tmp_path_factory.mktemp("assignment")
    profile = {
        "name": "smoke",
        "train_chars": 20_000,
        "test_chars": 2_000,
        "held_out_chars": 2_000,
        "time_budget_s": 60,
        "lanes": 20,
        "curves": [{"model": "rnn", "credit": [[3.2, 0], [2.0, 4]]}],
    }
    folder_with(folder, profiles=[profile], guest="checks/stubs.py")
    (folder / "checks" / "test_f.py").write_text(CHECK)
    shutil.copy(HERE.parent / "reference" / "checks" / "stubs.py", folder / "checks")
    assignment = load_assignment(folder)
    return set_up(assignment, assignment.profile("smoke"), tier)


def handed_in(folder: Path, data: bytes) -> Submission:
    path = folder / "homework.ipynb"
    path.write_bytes(data)
    return Submission(student_id="mallory", path=str(path), sha256=hashlib.sha256(data).hexdigest(), submitted_at="")


@pytest.mark.parametrize("attack", attacks("scores"))
def test_no_model_scores_better_than_it_knows(
    attack: dict[str, Any], bench: Bench, outside: Outside, tmp_path: Path
) -> None:
    """The outcome is as expected, and no loss is below that of guessing."""
    notebook = notebook_of(outside.names(), FAIR, *attack["cells"], "models = {'rnn': Model()}")
    with watched(outside) as came_back:
        grade = grade_submission(handed_in(tmp_path, notebook), bench)
        came_back.append(json.dumps(dataclasses.asdict(grade), default=str))
    (score,) = grade.perplexities
    assert score.outcome.value in attack["outcome"], score.message
    if score.outcome is Outcome.PASSED:
        assert score.nats_per_char is not None
        assert score.nats_per_char >= attack.get("at_least", math.log(27) - 1e-6)
    else:
        assert (score.points, score.nats_per_char) == (0.0, None)


# -- answers that are meant for the checks --------------------------------------------------------------------


@pytest.fixture(scope="module")
def homework(tier: str) -> Bench:
    """The real assignment, of which no model is scored."""
    assignment = load_assignment(HERE.parent / "reference")
    return set_up(assignment, dataclasses.replace(assignment.profile("smoke"), curves=()), tier)


@pytest.mark.parametrize("attack", attacks("checks"))
def test_no_answer_breaks_a_check(attack: dict[str, Any], homework: Bench, tmp_path: Path) -> None:
    """Whatever comes back, the check comes to a verdict, and in time."""
    with ran(handed_in(tmp_path, notebook_of(*attack["cells"])), homework) as student:
        started = time.monotonic()
        (result,) = run_checks(homework.assignment, {attack["check"]}, student, seed=5)
        assert time.monotonic() - started < 3 * homework.profile.limits.check_wall_s
    assert result.outcome.value in attack["outcome"], result.message


def test_there_are_enough_of_them() -> None:
    """The suite is the promise: it only ever grows."""
    classes = sorted(path.stem for path in (HERE / "attacks").glob("*.yaml"))
    assert len(attacks(*classes)) >= 120
    assert set(tiers.WHAT) >= {tiers.USER, tiers.ROOT, tiers.NO_USERNS, tiers.UID}
