"""Who is out of time is to be blamed, unless everybody stood still meanwhile."""

from __future__ import annotations

import pytest

from grader.errors import InfrastructureError
from grader.sandbox import watcher


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    time = [100.0]
    monkeypatch.setattr(watcher.time, "monotonic", lambda: time[0])
    return time


def test_nobody_is_blamed_for_a_time_in_which_all_stood_still(now: list[float]) -> None:
    """Neither by whoever looked nor by whoever comes first afterwards; before and later it is another matter."""
    clock = watcher.Clock()
    clock.start()
    now[0] += 0.5
    clock.require_it_went_on(100.0)
    now[0] += 30.0
    with pytest.raises(InfrastructureError, match="stood still for 30 s"):
        clock.require_it_went_on(100.0)
    clock.look()
    clock.require_it_went_on(now[0])
    with pytest.raises(InfrastructureError, match="stood still for 30 s"):
        clock.require_it_went_on(110.0)


def test_who_does_something_else_meanwhile_does_not_stand_still(now: list[float]) -> None:
    """Only between a start and the last look is time that is long one that nobody had."""
    clock = watcher.Clock()
    clock.start()
    clock.look(is_last=True)
    now[0] += 30.0
    clock.require_it_went_on(100.0)
    now[0] += 30.0
    clock.require_it_went_on(100.0)
    clock.start()
    now[0] += 0.5
    clock.require_it_went_on(100.0)
