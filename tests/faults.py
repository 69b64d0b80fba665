"""Kills random processes of a batch at random moments, and looks whether it ends in the same grades.csv.

`python -m tests.faults --kills 100` prints what was killed, and whether the grades are those of an undisturbed run.
Coordinator, workers, templates, sandboxes and kernels are all among the victims.
"""

from __future__ import annotations

import argparse
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


def class_of(students: int) -> dict[str, str]:
    """Notebooks that take a moment each, a third of them wrong."""
    cell = "import time; time.sleep({seconds})\ndef f(x): return {factor} * x"
    return {f"s{i:03}": cell.format(seconds=0.5 + i % 3 * 0.5, factor=1 if i % 3 == 0 else 2) for i in range(students)}


def table(course: Path, out: str) -> list[dict[str, str]]:
    """grades.csv without its times."""
    with (course / out / "grades.csv").open(newline="") as stream:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(stream)]


def disturb(course: Path, out: str, kills: int, dice: random.Random) -> Counter[str]:
    """Run the command again and again, with so many kills; what was killed, by kind."""
    killed: Counter[str] = Counter()
    process = start(course, out)
    while killed.total() < kills:
        time.sleep(dice.uniform(0.1, 7.0))  # a batch takes some seconds to start its workers
        if process.poll() is not None:
            process = start(course, out)
            continue
        try:
            family = psutil.Process(process.pid).children(recursive=True)
            kinds: dict[str, list[psutil.Process]] = {}
            for member in [psutil.Process(process.pid), *family]:
                kinds.setdefault(kind_of(member), []).append(member)
            kind = dice.choice(sorted(kinds))  # first, as there are many processes of some kinds
            dice.choice(kinds[kind]).kill()
        except psutil.NoSuchProcess:
            continue
        killed[kind] += 1
    process.wait()
    for _ in range(MOST_RUNS):
        if start(course, out).wait() == 0:
            return killed
    raise AssertionError("the batch did not come to an end")


def start(course: Path, out: str) -> subprocess.Popen[bytes]:
    with (course / f"{out}.log").open("ab") as log:
        return subprocess.Popen(grade_command(course, out, "--jobs", "2"), cwd=ROOT, stdout=log, stderr=log)


def kind_of(process: psutil.Process) -> str:
    """What a process is, by its command."""
    words = " ".join(process.cmdline())
    kinds = {
        "grader.cli": "coordinator",
        "spawn_main": "worker",
        "resource_tracker": "resource tracker",
        "zygote.py": "template, sandbox or kernel",
        "runner.py": "sandbox",
        "ipykernel": "kernel",
    }
    return next((kind for part, kind in kinds.items() if part in words), process.name())


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
        killed = disturb(course, "disturbed", options.kills, random.Random(options.seed))
        same = table(course, "calm") == table(course, "disturbed")
        print(", ".join(f"{count} x {kind}" for kind, count in killed.most_common()))
        print(
            f"{killed.total()} kills, {options.students} submissions: grades.csv is {'the same' if same else 'ANOTHER'}"
        )
        for one, other in zip(table(course, "calm"), table(course, "disturbed"), strict=False):
            if one != other:
                print(f"{one}\n{other}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
