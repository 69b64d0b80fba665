"""Kills random processes of a batch at random moments, and looks whether it ends in the same grades.csv.

`python -m tests.faults --kills 100` prints what was killed, and whether the grades are those of an undisturbed run.
Coordinator, workers, templates, sandboxes and kernels are all among the victims.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from tests.loopback import ROOT
from tests.small import course_in, grade_command

TIMES = ("timestamp",)  # columns of grades.csv that say when
MOST_RUNS = 40  # of the command, after the last kill
KINDS = {  # by what is in a command
    "grader.cli": "coordinator",
    "spawn_main": "worker",
    "resource_tracker": "resource tracker",
    "zygote.py": "template, sandbox or kernel",
    "runner.py": "sandbox",
    "ipykernel": "kernel",
}
VICTIMS = ("coordinator", "worker", "resource tracker", "template, sandbox or kernel")  # where sandboxes start warm


def class_of(students: int) -> dict[str, str]:
    """Notebooks that take a moment each, a third of them wrong."""
    cell = "import time; time.sleep({seconds})\ndef f(x): return {factor} * x"
    return {f"s{i:03}": cell.format(seconds=0.5 + i % 3 * 0.5, factor=1 if i % 3 == 0 else 2) for i in range(students)}


def table(course: Path, out: str) -> list[dict[str, str]]:
    """grades.csv without its times."""
    with (course / out / "grades.csv").open(newline="") as stream:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(stream)]


def disturb(course: Path, kills: int, dice: random.Random) -> tuple[Counter[str], list[str]]:
    """Run the command again and again, with so many kills; what was killed, by kind, and the results folders.

    A class that is done before all kills are used up is graded once more, into another folder.
    """
    killed, outs = Counter[str](), ["disturbed1"]
    process = start(course, outs[-1])
    while killed.total() < kills:
        wanted = dice.choice(VICTIMS)
        while process.poll() is None and not members_of(process, wanted):
            time.sleep(0.05)
        time.sleep(dice.uniform(0.0, 2.0))
        if victims := members_of(process, wanted):
            with contextlib.suppress(psutil.NoSuchProcess):
                dice.choice(victims).kill()
                killed[wanted] += 1
        if process.poll() is not None:
            if process.returncode == 0:
                outs.append(f"disturbed{len(outs) + 1}")
            process = start(course, outs[-1])
    process.wait()
    for _ in range(MOST_RUNS):
        if start(course, outs[-1]).wait() == 0:
            return killed, outs
    raise AssertionError("the batch did not come to an end")


def members_of(batch: subprocess.Popen[bytes], kind: str) -> list[psutil.Process]:
    """The processes of a batch that are of this kind."""
    try:
        root = psutil.Process(batch.pid)
        return [member for member in [root, *root.children(recursive=True)] if kind_of(member) == kind]
    except psutil.Error:  # some of them have just ended
        return []


def start(course: Path, out: str) -> subprocess.Popen[bytes]:
    with (course / f"{out}.log").open("ab") as log:
        return subprocess.Popen(grade_command(course, out, "--jobs", "2"), cwd=ROOT, stdout=log, stderr=log)


def kind_of(process: psutil.Process) -> str:
    """What a process is, by its command."""
    words = " ".join(process.cmdline())
    return next((kind for part, kind in KINDS.items() if part in words), process.name())


def main() -> int:
    """Exit 1 if the grades differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--students", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        course = course_in(Path(folder), class_of(options.students))
        assert start(course, "calm").wait() == 0, (course / "calm.log").read_text()
        killed, outs = disturb(course, options.kills, random.Random(options.seed))
        calm = table(course, "calm")
        same = [table(course, out) == calm for out in outs]
        print(", ".join(f"{count} x {kind}" for kind, count in killed.most_common()))
        print(
            f"{killed.total()} kills, {len(outs)} x {options.students} submissions: "
            f"grades.csv is {'the same' if all(same) else 'ANOTHER'}"
        )
        for out in outs:
            for one, other in zip(calm, table(course, out), strict=False):
                if one != other:
                    print(f"{one}\n{other}")
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
