"""How a batch stands: what its events add up to, and what another terminal reads of it."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
from rich.console import Console

from grader import terminal
from grader.batch import Event
from grader.errors import UsageError
from grader.progress import LOCK, STATUS, Progress, Standing, as_json, log_of, standing_of
from grader.types import Status
from tests.unit.records import a_grade


def event(kind: str, student_id: str, **more: object) -> Event:
    return Event(kind=kind, student_id=student_id, **more)  # type: ignore[arg-type]


def test_what_is_done_runs_and_waits_adds_up_to_the_class() -> None:
    """After any event: those done, in hand and waiting are everybody."""
    standing = Standing(total=4, started_at=0.0)
    steps = [
        event("known", "ada", grade=a_grade("ada")),
        event("started", "bob"),
        event("running", "bob", worker="worker 1"),
        event("started", "cy"),
        event("failed", "cy", message="its disk is full"),
        event("graded", "bob", grade=a_grade("bob", wall_time_s=10.0)),
    ]
    for now, step in enumerate(steps):
        standing.take(step, float(now))
        assert standing.done + len(standing.running) + standing.waiting == 4
    assert (standing.done, standing.known, standing.waiting, standing.faults) == (2, 1, 2, {"its disk is full": 1})
    assert standing.eta_s(6.0) == pytest.approx(10.0)  # two were in hand at once at most, and two wait: 10 s each


def test_what_is_to_be_confirmed_neither_runs_nor_waits_for_a_worker() -> None:
    """Until somebody else has it, or until it counts."""
    standing = Standing(total=2, started_at=0.0)
    for step in (event("started", "ada"), event("held", "ada", worker="tcp://there"), event("started", "bob")):
        standing.take(step, 0.0)
    assert (standing.held, set(standing.running), standing.waiting) == ({"ada": "tcp://there"}, {"bob"}, 0)
    standing.take(event("started", "ada"), 1.0)
    assert (standing.held, set(standing.running)) == ({}, {"ada", "bob"})
    for step in (event("held", "ada"), event("graded", "ada", grade=a_grade("ada"))):
        standing.take(step, 2.0)
    assert (standing.held, standing.done, standing.waiting) == ({}, 1, 0)


def test_a_grade_that_is_withdrawn_is_not_done() -> None:
    """Until it is graded again; then it counts once."""
    standing = Standing(total=1, started_at=0.0)
    grade = a_grade("ada")
    for step in (event("graded", "ada", grade=grade), event("withdrawn", "ada", status=grade.status, message="why")):
        standing.take(step, 0.0)
    assert (standing.done, standing.waiting, standing.by_status) == (0, 1, {"graded": 0})
    standing.take(event("graded", "ada", grade=grade), 1.0)
    assert (standing.done, standing.by_status) == (1, {"graded": 1})


def test_a_batch_that_stops_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From another terminal, with how many are left: nobody waits for what is not begun any more."""
    monkeypatch.setattr(terminal, "console", Console(highlight=False, width=120))
    with Progress(tmp_path, 3, lambda event, standing: None) as progress, (tmp_path / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        progress(event("graded", "ada", grade=a_grade("ada", wall_time_s=10.0)))
        progress(event("started", "bob"))
        progress(event("stopping", ""))
        terminal.print_standing(tmp_path)
        said = " ".join(capsys.readouterr().out.split())
        assert "1/3 done 1 running 1 left for another time" in said
        assert "about" not in said
        assert "It is stopping" in said
    assert json.loads(as_json(event("stopping", ""), progress.standing))["student_id"] is None


def test_a_log_takes_what_no_file_can_hold(tmp_path: Path) -> None:
    """A lone surrogate, of a student's exception, does not end the batch."""
    with Progress(tmp_path, 1, lambda event, standing: None) as progress:
        progress(event("graded", "ada", grade=a_grade("ada"), log="model rnn: RAISED (bad \udcff byte)"))
    assert "(bad \\udcff byte)" in log_of(tmp_path, "ada").read_text()


def test_another_terminal_reads_how_it_stands(tmp_path: Path) -> None:
    """During the batch and after its end; the log of each student says what became of every attempt."""
    with Progress(tmp_path, 2, lambda event, standing: None) as progress:
        progress(event("started", "ada"))
        progress(event("failed", "ada", message="its disk is full", worker="worker 1"))
        progress(event("graded", "ada", grade=a_grade("ada"), log="notebook: PASSED"))
        assert not standing_of(tmp_path)[0].is_over
    standing, is_held = standing_of(tmp_path)
    assert (standing.done, standing.is_over, is_held) == (1, True, False)
    log = log_of(tmp_path, "ada").read_text()
    assert "by worker 1: not graded, tried again: its disk is full" in log
    assert "    notebook: PASSED" in log


@pytest.mark.parametrize(
    "found",
    [
        "",
        "[]",
        "{}",
        '{"total": 3, "started_at": 1, "running": 5}',
        '{"total": 3, "started_at": 1, "running": {"ada": 5}}',
        '{"total": 3, "started_at": 1, "running": {"ada": ["worker 1", "soon"]}}',
        '{"total": "3", "started_at": 1}',
        '{"total": 3, "started_at": 1, "by_status": {"graded": "many"}}',
        '{"total": 3, "started_at": 1, "running": {"ada": [5, 1]}}',
        '{"total": 3, "started_at": 1, "running": {"ada": ["worker 1", NaN]}}',
        '{"total": 3, "started_at": 1, "held": {"ada": 5}}',
        '{"total": 3, "started_at": NaN}',
        '{"total": 1e400, "started_at": 1}',
        '{"total": 3, "started_at": 1, "graded": 1, "wall_time_s": 1e400}',
        '{"total": 3, "started_at": 1, "is_over": 1}',
        '{"total": true, "started_at": 1}',
        f'{{"total": {"9" * 400}, "started_at": 1}}',
        "[" * 100_000,
    ],
)
def test_a_status_that_is_none_is_refused_with_a_sentence(tmp_path: Path, found: str) -> None:
    """Whatever the file holds."""
    (tmp_path / STATUS).write_text(found)
    with pytest.raises(UsageError, match="holds no batch"):
        standing_of(tmp_path)


def test_an_event_is_one_line_for_a_machine() -> None:
    """With the grade, without its notebook."""
    grade = a_grade("ada", status=Status.GRADED, score=3.0, notebook_json="secret")
    line = json.loads(as_json(event("graded", "ada", grade=grade), Standing(total=1, started_at=0.0)))
    assert (line["event"], line["student_id"], line["score"], line["status"]) == ("graded", "ada", 3.0, "graded")
    assert "secret" not in json.dumps(line)
