"""`python -m tests.attacks 1000`: so many hostile submissions in a row, and what is left of them."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path

import psutil

from grader.bench import set_up
from grader.config import load_assignment
from grader.pipeline import grade_submission
from grader.sandbox.launch import SHARED_FOLDERS
from grader.sandbox.tiers import pick_tier
from tests.conftest import notebook_of
from tests.small import LIMITS, folder_with
from tests.test_attacks import BRIDGE, CHECK, attacks, foreign, handed_in

CLASSES = ("files", "network", "processes", "kernel", "limits", "output", "guest", "bridge")
OUTSIDE = "SECRET = CLOSED = OUTSIDE = DOOR = '/root/nowhere'\nPORT = 9\n"


def left(temporary: Path) -> dict[str, object]:
    """What a submission could leave behind: in this user's folder for temporary files, or in those that all share."""
    return {
        "processes": len(psutil.Process().children(recursive=True)),
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
        "temporary files": len(list(temporary.iterdir())),
        "files of others": sum(len(foreign(Path(place))) for place in SHARED_FOLDERS),
        "descriptors": psutil.Process().num_fds(),
    }


def main(count: int) -> int:
    """Grade them; 1 if anything is left, or if the grader's memory has grown by more than 32 MB since the first 50."""
    hostile = [parameter.values[0] for parameter in attacks(*CLASSES)]
    with tempfile.TemporaryDirectory() as scratch:
        folder, temporary = Path(scratch) / "assignment", Path(scratch) / "tmp"
        folder.mkdir()
        temporary.mkdir()
        tempfile.tempdir = str(temporary)
        limits = {**LIMITS, "notebook_wall_s": 8, "total_wall_s": 20}
        folder_with(folder, curves=False, limits=limits)
        (folder / "checks" / "test_f.py").write_text(CHECK.replace('"char_to_idx"', '"f"'))
        assignment = load_assignment(folder)
        bench = set_up(assignment, assignment.profile("smoke"), pick_tier())
        started, before, memory = time.monotonic(), left(temporary), 0
        for number, attack in enumerate(itertools.islice(itertools.cycle(hostile), count), 1):
            head = OUTSIDE + (BRIDGE if attack["class"] == "bridge" else "")
            grade_submission(handed_in(Path(scratch), notebook_of(head, *attack["cells"])), bench)
            if number == min(50, count):
                memory = psutil.Process().memory_info().rss
            if number % 50 == 0:
                print(f"{number}/{count}  {time.monotonic() - started:.0f} s", flush=True)
        after, growth = left(temporary), psutil.Process().memory_info().rss - memory
    print(f"before {before}\nafter  {after}\nmemory grew by {growth / 2**20:.1f} MB")
    return int(after != before or growth > 32 << 20)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
