"""What all checks share: tolerances that fit the device on which the notebook ran."""

import expect
import pytest


@pytest.fixture(autouse=True)
def _tolerances(student):
    """Looser on a GPU."""
    expect.use_device(student.device)
