"""What the gradebook costs is measured on one that answers rightly."""

from __future__ import annotations

from grader.benchmark.costs import counting


def test_the_latest_grades_of_a_large_gradebook_come_at_once() -> None:
    """Students times grades: the query for the latest reads no grade but these, so that many grades cost little."""
    latest, rules = counting(200, 50, 3)
    assert latest.time_s < 0.05
    assert latest.time_s < rules.time_s
