"""A batch on a real cluster on this machine: runners die, freeze and lie, the scheduler goes and comes back."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from distributed import Client

from grader import runners
from grader.bench import set_up
from grader.benchmark.simulated import simulate
from grader.config import load_assignment
from grader.errors import InfrastructureError, UsageError
from tests.conftest import notebook_of
from tests.loopback import ROOT, Loopback, kill_tree
from tests.small import CHECK, course_in, grade_command, scores

SLEEPY = "import time; time.sleep({seconds})\ndef f(x): return {factor} * x"
NOTEBOOKS = {f"s{i}": SLEEPY.format(seconds=2, factor=1 + i % 2) for i in range(6)}
EXPECTED = {f"s{i}": f"{2.0 * (i % 2)}" for i in range(6)}


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A class of six, half of them right."""
    return course_in(tmp_path, NOTEBOOKS)


@pytest.fixture
def loopback(course: Path) -> Iterator[Loopback]:
    """A scheduler; each test adds its runners."""
    with Loopback(course) as cluster:
        yield cluster


def begin(course: Path, loopback: Loopback, *options: str) -> subprocess.Popen[str]:
    command = grade_command(course, "out", "--scheduler", loopback.address, "--json", *options)
    with (course / "grade.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=loopback.environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    loopback.started.append(process)
    return process


def next_event(process: subprocess.Popen[str], kind: str) -> dict[str, Any]:
    """Read events until one of that kind."""
    assert process.stdout is not None
    for line in process.stdout:
        event: dict[str, Any] = json.loads(line)
        if event["event"] == kind:
            return event
    raise AssertionError(f"the batch ended before anything was {kind}")


def rest(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """The events until the end of the batch."""
    output, _ = process.communicate(timeout=180)
    return [json.loads(line) for line in output.splitlines()]


def test_runners_that_die_or_freeze_cost_nobody_anything(course: Path, loopback: Loopback) -> None:
    """One is killed and one stops answering, each with a submission in hand: the third grades them."""
    killed, frozen, _ = (loopback.runner() for _ in range(3))
    loopback.wait_for(3)
    process = begin(course, loopback)
    next_event(process, "graded")
    kill_tree(killed.pid)
    for member in [psutil.Process(frozen.pid), *psutil.Process(frozen.pid).children(recursive=True)]:
        member.send_signal(signal.SIGSTOP)
    rest(process)
    assert process.returncode == 0, (course / "grade.log").read_text()
    assert scores(course, "out") == EXPECTED


def test_the_batch_goes_on_when_the_scheduler_is_back(course: Path, loopback: Loopback) -> None:
    """It goes away with two submissions in hand; the runners find the new one by themselves, and so does the batch."""
    loopback.runner(slots=2)
    loopback.wait_for(2)
    process = begin(course, loopback)
    next_event(process, "graded")
    kill_tree(loopback.scheduler.pid)
    loopback.scheduler.wait()
    time.sleep(2)
    loopback.start_scheduler()
    events = rest(process)
    assert process.returncode == 0, (course / "grade.log").read_text()
    assert scores(course, "out") == EXPECTED
    assert not [event for event in events if event.get("status") == "needs_regrade"]


@pytest.mark.parametrize(
    ("does", "said"), [("lies", "its score is not the sum of its parts"), ("fails", "its disk is full")]
)
def test_a_runner_that_lies_or_fails_is_dismissed(course: Path, tmp_path: Path, does: str, said: str) -> None:
    """Over TLS, too: the others grade its share, and nobody has lost an attempt for good."""
    with Loopback(course, "tls", tls_settings(tmp_path)) as cluster:
        honest = dict(cluster.environment)
        cluster.environment |= {
            "DASK_DISTRIBUTED__WORKER__PRELOAD": str([str(ROOT / "tests" / "liar.py")]),
            "RUNNER": does,
        }
        wrong = cluster.runner()
        cluster.environment = honest
        cluster.runner()
        cluster.wait_for(2)
        process = begin(course, cluster)
        events = rest(process)
        assert wrong.wait(60) == 3
    assert process.returncode == 0, (course / "grade.log").read_text()
    assert scores(course, "out") == EXPECTED
    assert said in next(event["message"] for event in events if event["event"] == "failed")


@pytest.mark.parametrize(("does", "audit"), [("forges", "0"), ("turns", "1")])
def test_a_runner_that_forges_verdicts_is_found_out(course: Path, loopback: Loopback, does: str, audit: str) -> None:
    """By another runner, and this machine between them: whatever it sends, everybody has the right grade in the end."""
    honest = dict(loopback.environment)
    loopback.environment |= {
        "DASK_DISTRIBUTED__WORKER__PRELOAD": str([str(ROOT / "tests" / "liar.py")]),
        "RUNNER": does,
    }
    loopback.runner()
    loopback.environment = honest
    loopback.runner(slots=2)
    loopback.wait_for(3)
    process = begin(course, loopback, "--audit", audit)
    rest(process)
    assert process.returncode == 0, (course / "grade.log").read_text()
    assert scores(course, "out") == EXPECTED


def test_runners_grade_again_all_that_may_count(course: Path, loopback: Loopback) -> None:
    """Two attempts of one student: both come back, one after the other, and the best counts."""
    for folder in (course / "submitted").iterdir():
        if folder.name != "s0":
            shutil.rmtree(folder)
    settings = course / "assignment" / "assignment.yaml"
    settings.write_text(f"{settings.read_text()}attempts: {{counts: best}}\n")
    loopback.runner()
    loopback.wait_for(1)
    for factor in (2, 1):
        (course / "submitted" / "s0" / "homework.ipynb").write_bytes(notebook_of(f"def f(x): return {factor} * x"))
        graded = begin(course, loopback)
        rest(graded)
        assert graded.returncode == 0, (course / "grade.log").read_text()
    (course / "assignment" / "checks" / "test_f.py").write_text(CHECK.replace("== 4", "== 2"))
    command = grade_command(course, "out", "--scheduler", loopback.address)
    options = [*command[command.index("--assignment") : command.index("--profile")], *command[-4:]]
    again = [*command[:3], "regrade", str(course / "out"), "--publish", *options]
    done = subprocess.run(again, cwd=ROOT, env=loopback.environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "published 2 new grades" in done.stdout
    assert "0 gain, 0 lose, 1 keep" in done.stdout
    assert (course / "out" / "logs" / "s0.log").read_text().count("by tcp://") == 4
    assert scores(course, "out") == {"s0": "2.0"}


def test_nobody_is_believed_in_the_name_of_another(course: Path, loopback: Loopback) -> None:
    """A runner that has passed vouches for its own answers only, whoever signs others with its address."""
    loopback.runner()
    loopback.wait_for(1)
    honest = dict(loopback.environment)
    with Client(loopback.address) as client:
        (address,) = client.scheduler_info()["workers"]
    loopback.environment |= {
        "DASK_DISTRIBUTED__WORKER__PRELOAD": str([str(ROOT / "tests" / "liar.py")]),
        "RUNNER": "signs",
        "SIGNED": address,
    }
    loopback.runner()
    loopback.environment = honest
    loopback.wait_for(2)
    rest(begin(course, loopback))
    assert scores(course, "out") == EXPECTED, (course / "grade.log").read_text()


def test_what_fails_on_one_runner_waits_for_another(tmp_path: Path) -> None:
    """However long that has something else in hand: a broken one that is idle uses up one attempt of each at most."""
    course = course_in(tmp_path, {f"s{i}": SLEEPY.format(seconds=6, factor=2) for i in range(3)})
    with Loopback(course) as cluster:
        cluster.runner()
        cluster.wait_for(1)
        cluster.environment |= {
            "DASK_DISTRIBUTED__WORKER__PRELOAD": str([str(ROOT / "tests" / "liar.py")]),
            "RUNNER": "fails",
        }
        cluster.runner()
        cluster.wait_for(2)
        events = rest(begin(course, cluster))
    assert scores(course, "out") == {f"s{i}": "2.0" for i in range(3)}, (course / "grade.log").read_text()
    failed = [event["student_id"] for event in events if event["event"] == "failed"]
    assert len(failed) == len(set(failed))


@pytest.mark.parametrize("command", ["grade", "worker"])
def test_what_can_be_no_address_is_refused_before_anything_starts(command: str, course: Path) -> None:
    """In one sentence that repeats it, and exit code 2: Dask would say it in tracebacks, and the worker for ever."""
    worker = [sys.executable, "-m", "grader.cli", "worker", "--scheduler", "foo"]
    asked = worker if command == "worker" else grade_command(course, "out", "--scheduler", "foo")
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--scheduler is 'foo'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("role", ["client", "worker"])
@pytest.mark.parametrize("address", ["", "foo", "http://x:1", "tcp://:1", "tcp://x:y", "tcp://x:99999", "inproc://x:1"])
def test_an_address_has_a_scheme_of_dask_a_host_and_a_port(address: str, role: str) -> None:
    """The scheme may be left out; TLS needs certificates."""
    for wrong in (address, "tls://x:1"):
        with pytest.raises(UsageError, match=re.escape(repr(wrong))):
            runners.require_address(wrong, role)
    for right in ("tcp://x:1", "x.y:8786", "tcp://[::1]:8786"):
        runners.require_address(right, role)


def test_a_worker_whose_runners_cannot_start_gives_up(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """After some times in a row: started again for ever, they would fill a disk with their messages."""
    monkeypatch.setattr(runners, "RESTART_S", 0.1)
    monkeypatch.setattr(runners, "LOOK_EVERY_S", 0.1)
    slot = runners.Slot(resource="CPU", environment={"DASK_DISTRIBUTED__WORKER__PRELOAD": "no.such.module"})
    with pytest.raises(InfrastructureError, match="as soon as they start, 5 times"):
        runners.run(loopback.address, [slot, slot])
    assert capfd.readouterr().err.count("No module named 'no") >= 2 * runners.FALSE_STARTS


def test_a_worker_waits_for_a_scheduler_that_is_away(loopback: Loopback, course: Path) -> None:
    """It is no false start of its runners."""
    kill_tree(loopback.scheduler.pid)
    loopback.scheduler.wait()
    waiting = loopback.runner()
    time.sleep(15)
    assert waiting.poll() is None
    loopback.start_scheduler()
    loopback.wait_for(1)


def test_an_address_without_a_scheduler_is_refused_with_a_sentence(course: Path) -> None:
    """Exit code 2, before anything is graded."""
    done = subprocess.run(
        grade_command(course, "out", "--scheduler", "tcp://127.0.0.1:1"), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no scheduler answers at tcp://127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def tls_settings(folder: Path) -> dict[str, str]:
    """Dask's own settings for TLS, with a certificate that is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "course")])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=1)
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    (folder / "cert.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*pem))
    settings = {"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True"}
    settings["DASK_DISTRIBUTED__COMM__TLS__CA_FILE"] = str(folder / "cert.pem")
    for role in ("CLIENT", "SCHEDULER", "WORKER"):
        settings[f"DASK_DISTRIBUTED__COMM__TLS__{role}__CERT"] = str(folder / "cert.pem")
        settings[f"DASK_DISTRIBUTED__COMM__TLS__{role}__KEY"] = str(folder / "key.pem")
    return settings


def test_a_simulated_cluster_grades_everything_once(course: Path) -> None:
    """What `grader bench --slots` measures: no submission is left out, and no slot waits for long."""
    assignment = load_assignment(course / "assignment")
    bench = set_up(assignment, assignment.profile("smoke"), "none", str(course / "text.txt"))
    found = simulate(20, 8, 1.0, bench)
    assert found.ideal_s == 3.0
    assert 3.0 <= found.makespan_s < 30
    assert found.idle == pytest.approx(1 - 20 / (8 * found.makespan_s))


def snippet(name: str) -> dict[str, Any]:
    """Run an example of docs/cluster.md; what it defines."""
    text = (ROOT / "docs" / "cluster.md").read_text()
    defined: dict[str, Any] = {}
    exec(text.split(f"```python {name}\n")[1].split("```")[0], defined)
    return defined


def test_the_job_script_for_slurm_offers_one_gpu_to_one_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """As documented: a job asks for a GPU, and its runner has one thread, no nanny and the GPU as its resource."""
    from dask_jobqueue import SLURMCluster

    monkeypatch.setattr(SLURMCluster, "scale", lambda self, jobs: None)  # there is no sbatch here
    with dask.config.set({"jobqueue.slurm.scheduler-options": {"dashboard_address": ":0"}}):  # others may have 8787
        cluster = snippet("slurm")["cluster"]
    script = cluster.job_script()
    cluster.close()
    assert "#SBATCH --gres=gpu:1\n" in script
    command = next(line for line in script.splitlines() if "dask_worker" in line)
    for option in ("--nthreads 1", "--no-nanny", "--resources GPU=1"):
        assert option in command


def test_the_pods_for_kubernetes_offer_one_gpu_to_one_task() -> None:
    """As documented: each pod has a GPU, and its runner has one thread, no nanny and the GPU as its resource."""
    worker = snippet("kubernetes")["spec"]["spec"]["worker"]
    (container,) = worker["spec"]["containers"]
    assert worker["replicas"] == 16
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    expected = ["dask", "worker", "--no-nanny", "--nthreads", "1", "--resources", "GPU=1"]
    assert container["args"][: len(expected)] == expected
