"""What the tests share: a sandboxed notebook made of a few lines, and the tier this machine has."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest
from hypothesis import settings

from grader.sandbox.bridge import Session
from grader.sandbox.tiers import pick_tier
from grader.types import Limits
from tests.gpus import gpu_machine  # noqa: F401  a fixture
from tests.mariadb import mariadb  # noqa: F401  a fixture
from tests.postgres import postgres  # noqa: F401  a fixture

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")
# Whoever starts the tests in the background of a script has Ctrl-C ignored, by us and by all that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)
LIMITS = Limits(
    notebook_cpu_s=20,
    notebook_wall_s=40,
    check_wall_s=2,
    total_wall_s=90,
    memory_bytes=1 << 30,
    output_bytes=1 << 20,
    file_bytes=16 << 20,
    processes=64,
    open_files=256,
)


@pytest.fixture(scope="session")
def tier() -> str:
    """The sandbox of this machine; a suite without one has not passed, so nothing is skipped."""
    return pick_tier()


def notebook_of(*cells: str) -> bytes:
    """A notebook with these code cells."""
    rows = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "outputs": [], "execution_count": None, "source": source}
        for i, source in enumerate(cells)
    ]
    return json.dumps({"cells": rows, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()


@pytest.fixture
def start(tier: str, request: pytest.FixtureRequest) -> Callable[..., Session]:
    """Start a session on some cells; it ends with the test."""

    def start(*cells: str, limits: Limits = LIMITS, files: dict[str, bytes] | None = None) -> Session:
        session = Session(notebook=notebook_of(*cells), files=files or {}, environment={}, limits=limits, tier=tier)
        request.addfinalizer(session.close)
        return session

    return start
