"""Making a course: its folder, what students receive, its texts and its credit curves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grader.bench import set_up
from grader.cli.common import (
    AssignmentOption,
    CorpusOption,
    ProfileOption,
    RememberedOption,
    app,
    load,
    make_folder,
    profile_of,
)
from grader.config import load_assignment
from grader.course import ROSTER, make_course
from grader.curves import curves_table
from grader.errors import UsageError
from grader.gradebook import Gradebook
from grader.origin import assignment_of
from grader.outputs import CURVES, write_curves, write_text
from grader.place import place_of
from grader.release import release as write_release
from grader.terminal import console, say


@app.command()
def curve(
    out: Annotated[Path, typer.Option("-o", "--output", help="Where curves.html goes; the results folder, if any.")],
    assignment: RememberedOption = None,
    profile: ProfileOption = "cpu",
    corpus_file: CorpusOption = None,
) -> None:
    """Draw the credit curves, with the class's scores on them if OUT holds a gradebook."""
    loaded = assignment_of(out, assignment)
    scale = profile_of(loaded, profile)
    if not scale.curves:
        raise UsageError(f"profile {profile!r} of {loaded.folder}/assignment.yaml has no curves to draw.")
    bench = set_up(loaded, scale, "none", str(corpus_file) if corpus_file else None)
    grades = []
    place = place_of(out)
    if not isinstance(place, Path) or place.exists():
        with Gradebook.open(place, create=False) as book:
            grades = book.counting(loaded.rules)
    make_folder(out)
    console.print(curves_table(write_curves(out, bench, grades)))
    say(f"wrote {out / CURVES}")


@app.command("init")
def new_course(
    course: Annotated[Path, typer.Argument(help="The folder to make; it must not be there yet.")],
    assignment: AssignmentOption = Path("reference"),
) -> None:
    """Make a course folder: the assignment, a roster to fill in, and the secret seed of the draw of the texts."""
    load_assignment(assignment)
    make_course(course, assignment)
    say(f"wrote {course}: enter the students in {course / ROSTER}; grade with --assignment {course}")


@app.command()
def release(
    assignment: AssignmentOption = Path("reference"),
    out: Annotated[Path, typer.Option("-o", "--output", help="The folder that students receive.")] = Path("assignment"),
    verify: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if something would change.")] = False,
) -> None:
    """Write the student's version of the homework from the master notebook."""
    changed = write_release(assignment, out, check=verify)
    for path in changed:
        say(f"{'would change' if verify else 'wrote'} {path}")
    if not changed:
        say(f"{out} is up to date")
    raise typer.Exit(1 if verify and changed else 0)


@app.command()
def data(
    out: Annotated[Path, typer.Option("-o", "--output", help="Where train.txt and test.txt go.")] = Path("data"),
    assignment: AssignmentOption = Path("assignment"),
    profile: ProfileOption = "smoke",
    corpus_file: CorpusOption = None,
) -> None:
    """Write the texts that a notebook trains and tests on; grading uses another draw of the same corpus."""
    loaded, scale = load(assignment, profile)
    split = set_up(loaded, scale, "none", str(corpus_file) if corpus_file else None).split
    for name, text in (("train.txt", split.train), ("test.txt", split.test)):
        write_text(out / name, text)
        say(f"wrote {out / name} ({len(text):,} characters)")
