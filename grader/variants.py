"""Reads variants of a notebook: the same notebook with pieces of some cells replaced, and the checks that must notice.

A variant is written as changes to cells, by their id: a text replaces the whole source, a mapping replaces pieces of
it, each of which must occur exactly once. The id `*` stands for all code cells together.

A mutant whose changed cells only define something keeps them as they were, and defines it again in its last cell: what
the cells in between have trained and written is then sound, and only the checks of the changed function have to notice.
With `in_place: true` it does not: a function that only matters by what it has trained.
"""

from __future__ import annotations

import ast
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from nbformat import NotebookNode

from grader.errors import AssignmentError
from grader.notebook import read_percent

Change = dict[str, str | dict[str, str]]
ANYWHERE = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A notebook and the checks that must fail on it: at least one for a mutant, none for a correct solution."""

    name: str
    about: str  # the mistake, or the style
    fails: frozenset[str]
    mistake: str  # the name that a check must give to it; empty if none is asked for
    notebook: NotebookNode
    base: NotebookNode  # the notebook without the change
    definitions: str = ""  # all that is changed, if that only defines something,
    originals: str = ""  # and what the base has in its place


def read_variants(path: Path, master: Path, lite: Change | None = None) -> list[Variant]:
    """The variants in a YAML file: a list of mappings with name, about, change, and fails or notebook.

    `master` is the notebook that is changed where a variant names no other; `lite` changes every one of them, where it
    has such cells.

    Raises:
        AssignmentError: names the file and the variant, and says what was expected.
    """
    entries = read_yaml(path)
    if not isinstance(entries, list):
        raise AssignmentError(f"{path} should be a list of variants.")
    return [_variant(path, entry, master, lite or {}) for entry in entries]


def read_yaml(path: Path) -> Any:
    """What a YAML file holds. Raises AssignmentError if it cannot be read."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AssignmentError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None


def _variant(path: Path, entry: Any, master: Path, lite: Change) -> Variant:
    where = f"{path}: variant {entry.get('name')!r}" if isinstance(entry, dict) else f"{path}: {entry!r}"
    known = {"name", "about", "change", "fails", "mistake", "notebook", "in_place"}
    if not isinstance(entry, dict) or not {"name", "about"} <= set(entry) <= known:
        raise AssignmentError(
            f"{where} should have name, about and some of change, fails, mistake, notebook, in_place."
        )
    notebook = read_percent(path.parent / entry["notebook"] if "notebook" in entry else master)
    present = {cell.id for cell in notebook.cells}
    notebook = changed(notebook, {cell: change for cell, change in lite.items() if cell in present}, where)
    base, notebook = notebook, changed(notebook, entry.get("change", {}), where)
    again = _definitions(base, notebook) if entry.get("fails") and not entry.get("in_place") else None
    if again:
        notebook = deepcopy(base)
        notebook.cells.append(deepcopy(next(cell for cell in base.cells if cell.cell_type == "code")))
        notebook.cells[-1].update(id="again", source=again[0])
    return Variant(
        name=f"{path.stem}.{entry['name']}",
        about=entry["about"],
        fails=frozenset(entry.get("fails", [])),
        mistake=entry.get("mistake", ""),
        notebook=notebook,
        base=base,
        definitions=again[0] if again else "",
        originals=again[1] if again else "",
    )


def changed(notebook: NotebookNode, change: Change, where: str) -> NotebookNode:
    """A copy with some cells changed.

    Raises:
        AssignmentError: there is no such cell, or a piece that should occur once does not.
    """
    result = deepcopy(notebook)
    for cell_id, new in change.items():
        cells = [cell for cell in result.cells if cell.id == cell_id or cell_id == ANYWHERE]
        cells = [cell for cell in cells if cell.cell_type == "code"]
        if not cells:
            raise AssignmentError(f"{where}: the notebook has no code cell {cell_id!r}.")
        if isinstance(new, str):
            cells[0].source = new.strip("\n")
            continue
        for find, replacement in new.items():
            holders = [cell for cell in cells if find in cell.source]
            count = sum(cell.source.count(find) for cell in holders)
            if count != 1:
                raise AssignmentError(f"{where}: {find!r} occurs {count} times in {cell_id!r}; expected once.")
            holders[0].source = holders[0].source.replace(find, replacement)
    return result


def _definitions(base: NotebookNode, mutant: NotebookNode) -> tuple[str, str] | None:
    """The changed cells and what they were before, if they only define; None otherwise."""
    pairs = [(after.source, before.source) for before, after in zip(base.cells, mutant.cells, strict=True)]
    pairs = [(after, before) for after, before in pairs if after != before]
    if not pairs or not all(_only_defines(source) for pair in pairs for source in pair):
        return None
    definitions, originals = ("\n\n".join(sources) for sources in zip(*pairs, strict=True))
    return definitions, originals


def _only_defines(source: str) -> bool:
    """Whether a cell holds nothing but definitions of functions and classes, and imports."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    return all(isinstance(statement, kinds) for statement in body)
