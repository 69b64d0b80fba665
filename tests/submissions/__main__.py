"""Lay out the example submissions as a class handed in: `python -m tests.submissions FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.submissions.build import build_class

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.submissions FOLDER")
    build_class(Path(sys.argv[1]), demo=True)
