"""Notebooks in and out: the percent-format master, byte-stable JSON, and bounded reading of submissions."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import warnings
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

import nbformat
from nbformat import NotebookNode

from grader.errors import AssignmentError, SubmissionError

MAX_CELLS = 2000
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
CELL_TYPES = ("code", "markdown", "raw")
# What editors and clients write on their own and change from run to run.
VOLATILE = {"ExecuteTime", "collapsed", "execution", "id", "lines_to_next_cell", "scrolled", "trusted"}
_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def read_percent(path: Path) -> NotebookNode:
    """The master notebook: percent format, each cell's id from `id="…"` in its header.

    A cell without one gets an id made from its content, the same at every reading.

    Raises AssignmentError if the file cannot be read, or if an id is malformed or used twice.
    """
    import jupytext  # 0.2 s of CPU time, which no process that grades needs to spend

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise AssignmentError(f"The master notebook {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise AssignmentError(f"The master notebook {path} is not UTF-8 (byte {error.start}).") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = jupytext.reads(text, fmt="py:percent")
    except nbformat.ValidationError as error:
        reason = str(error.message).splitlines()[0]
        raise AssignmentError(f"{path}: the header of a cell is not valid ({reason}).") from error
    nb = _notebook()
    seen: set[str] = set()
    for number, cell in enumerate(parsed.cells, 1):
        if "incorrectly_encoded_metadata" in cell.metadata:  # jupytext's word for a header it cannot read
            raise AssignmentError(f'{path}: the header of cell {number} is malformed; write key="value" pairs.')
        wanted = cell.metadata.get("id", "")
        if wanted and not (isinstance(wanted, str) and _ID.fullmatch(wanted)):
            raise AssignmentError(
                f"{path}: cell {number} has the id {wanted!r}; an id is at most 64 letters, digits, - and _."
            )
        if wanted in seen:
            raise AssignmentError(f"{path}: cell {number} has the id '{wanted}' of an earlier cell; rename one.")
        if wanted:
            seen.add(wanted)
        nb.cells.append(_cell(cell.cell_type, cell.source, wanted, _without_volatile(cell.metadata)))
    _fill_ids(nb)
    return nb


def to_json(nb: NotebookNode) -> str:
    """The notebook as text that depends on its content alone: format 4.5, sorted keys, a newline at the end.

    Metadata keep what an author writes (tags and the like); the kernel is always python3.

    Raises nbformat.ValidationError if it is not a valid notebook.
    """
    clean = deepcopy(nb)
    clean.metadata = _notebook().metadata
    clean.nbformat, clean.nbformat_minor = 4, 5
    for cell in clean.cells:
        cell.metadata = _without_volatile(cell.metadata)
    _fill_ids(clean)
    nbformat.validate(clean)
    text: str = nbformat.v4.writes(clean)
    return text.encode(errors="replace").decode().rstrip("\n") + "\n"  # an output may hold lone surrogates


def parse_submission(data: bytes) -> NotebookNode:
    """A notebook handed in, reduced to what is graded: its cells' text, ids, tags and attachments.

    Outputs are dropped, since every cell runs again and a broken old output is nobody's mistake. Missing or
    repeated ids are filled in; format 3 is upgraded.

    Raises SubmissionError, in one sentence for the student, for whatever is not a notebook with code in it.
    """
    try:
        content = _loads(data)
        if _version(content) == 3:
            content = _upgrade(content)
        nb = _rebuild(content.get("cells"))
        nbformat.validate(nb)
    except RecursionError:
        raise SubmissionError(
            "The file is nested too deeply to be a notebook: save it again from Jupyter, and hand that in."
        ) from None
    except nbformat.ValidationError as error:
        reason = str(error.message).splitlines()[0][:200]
        raise SubmissionError(
            f"The notebook is not valid ({reason}): open it in Jupyter, save it, and hand that in."
        ) from error
    return nb


# ---------------------------------------------------------------- reading a submission


def _loads(data: bytes) -> dict[str, Any]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SubmissionError(
            f"The file is not a notebook: it is not UTF-8 text (byte {error.start}); hand in the .ipynb file."
        ) from error
    if not text.strip():
        raise SubmissionError("The file is empty: hand in the .ipynb file with your work in it.")
    try:
        content = json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise SubmissionError(
            f"The file is not a notebook: it is not JSON ({error}); hand in the whole .ipynb file."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("nbformat"), int):
        raise SubmissionError("The file is JSON but not a notebook: hand in the .ipynb file that Jupyter saved.")
    return content


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")


def _version(content: dict[str, Any]) -> int:
    version: int = content["nbformat"]
    if version not in (3, 4):
        raise SubmissionError(
            f"The notebook is in format {version}, and only 3 and 4 can be read: open it in a current "
            "Jupyter, save it, and hand that in."
        )
    return version


def _upgrade(content: dict[str, Any]) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nbformat.validate(content, version=3)
            old = nbformat.v3.nbjson.to_notebook(content)
            upgraded: dict[str, Any] = nbformat.convert(old, 4)
        for cell in upgraded["cells"]:
            cell.pop("id", None)  # a random one
    except (nbformat.ValidationError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise SubmissionError(
            "The notebook is in the old format 3 and damaged: open it in a current Jupyter, save it, and hand that in."
        ) from error
    return upgraded


def _rebuild(cells: object) -> NotebookNode:
    """A new notebook from what is well-formed in the cells; nothing else of the file is carried over."""
    if not isinstance(cells, list):
        raise SubmissionError("The notebook has no list of cells: save it again from Jupyter, and hand that in.")
    if len(cells) > MAX_CELLS:
        raise SubmissionError(f"The notebook has {len(cells):,} cells; at most {MAX_CELLS:,} are graded.")
    nb = _notebook()
    for number, raw in enumerate(cells, 1):
        source = raw.get("source") if isinstance(raw, dict) else None
        if isinstance(source, list) and all(isinstance(line, str) for line in source):
            source = "".join(source)
        if not isinstance(source, str) or raw.get("cell_type") not in CELL_TYPES:
            raise SubmissionError(
                f"Cell {number} of the notebook is damaged: save it again from Jupyter, and hand that in."
            )
        if re.search("[\ud800-\udfff]", source):
            raise SubmissionError(f"Cell {number} of the notebook holds a character that is not valid Unicode.")
        cell = _cell(raw["cell_type"], source, raw.get("id"), _kept_metadata(raw))
        if cell.cell_type != "code" and (attachments := _kept_attachments(raw)):
            cell.attachments = _node(attachments)
        nb.cells.append(cell)
    if not any(cell.cell_type == "code" and cell.source.strip() for cell in nb.cells):
        raise SubmissionError("The notebook has no code in it: hand in the one with your work.")
    _fill_ids(nb)
    return nb


def _kept_metadata(raw: dict[str, Any]) -> dict[str, Any]:
    metadata = raw.get("metadata")
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    return {"tags": tags} if isinstance(tags, list) and all(map(_is_plain, tags)) else {}


def _kept_attachments(raw: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Pictures pasted into a written answer, {file name: {media type: base64}}, without malformed ones."""
    attachments = raw.get("attachments")
    if not isinstance(attachments, dict):
        return {}
    bundles = {name: data for name, data in attachments.items() if isinstance(data, dict) and _is_plain(name)}
    return {
        name: {media: text for media, text in data.items() if isinstance(text, str) and text.isascii()}
        for name, data in bundles.items()
    }


def _is_plain(text: object) -> bool:
    return isinstance(text, str) and text.isprintable()  # lone surrogates are not


# ---------------------------------------------------------------- building one


def _node(content: dict[str, Any]) -> NotebookNode:
    node: NotebookNode = nbformat.from_dict(content)
    return node


def _notebook() -> NotebookNode:
    metadata = {"kernelspec": dict(KERNELSPEC), "language_info": {"name": "python"}}
    return _node({"cells": [], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def _cell(cell_type: str, source: str, cell_id: object, metadata: dict[str, Any]) -> NotebookNode:
    code: dict[str, Any] = {"outputs": [], "execution_count": None} if cell_type == "code" else {}
    cell = {"cell_type": cell_type, "source": source, "id": cell_id, "metadata": metadata, **code}
    return _node(cell)


def _without_volatile(metadata: dict[str, Any]) -> NotebookNode:
    return _node({key: value for key, value in metadata.items() if key not in VOLATILE})


def _fill_ids(nb: NotebookNode) -> None:
    """Keeps the first of each well-formed id; the other cells get one made from their content.

    It does not depend on the cell's place, so that inserting a cell renames no other.
    """
    taken: set[str] = set()
    without = []
    for cell in nb.cells:
        cell_id = cell.get("id")
        if isinstance(cell_id, str) and _ID.fullmatch(cell_id) and cell_id not in taken:
            taken.add(cell_id)
        else:
            without.append(cell)
    for cell in without:
        content = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode(errors="replace")).hexdigest()[:12]
        cell.id = next(name for name in _numbered(content) if name not in taken)
        taken.add(cell.id)


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}-{n}" for n in itertools.count(2))
