"""Read an executed notebook into cells that are safe to show: text and PNG pictures, and not too much of it.

The notebook comes out of the student's sandbox, so any part of it may be missing, huge or of the wrong type;
what is not understood is left out. HTML, SVG, widgets and scripts are never shown, only their text/plain.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from grader.render import plain

_MOST_CELLS = 400
_MOST_OUTPUTS = 50  # of one cell
_TEXT_LIMIT = 20_000  # characters of one source or output
_ALL_TEXT_LIMIT = 1_000_000
_IMAGE_LIMIT = 2_000_000  # bytes of one picture
_ALL_IMAGES_LIMIT = 10_000_000
_MOST_PIXELS = 25_000_000  # a small file can unpack into a picture that no browser can hold
_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One output of a cell: text, the text of an error, or a picture as base64."""

    kind: str  # text | error | image
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell and what it put out."""

    kind: str  # code | markdown
    number: str  # execution count; empty if the cell did not run
    source: str
    outputs: tuple[Output, ...]


def cells(notebook_json: str) -> list[Cell]:
    """The cells of an executed notebook, or none if it cannot be read."""
    try:
        notebook = json.loads(notebook_json)
    except (ValueError, RecursionError):
        return []
    budget = _Budget(text=_ALL_TEXT_LIMIT, images=_ALL_IMAGES_LIMIT)
    found = []
    for cell in _dicts(notebook, "cells")[:_MOST_CELLS]:
        kind = cell.get("cell_type")
        if kind not in ("code", "markdown"):
            continue
        count = cell.get("execution_count")
        outputs = tuple(_outputs(cell, budget)) if kind == "code" else ()
        number = str(count) if isinstance(count, int) and 0 <= count < 10**6 else ""
        source = budget.cut(_joined(cell.get("source")))
        found.append(Cell(kind=kind, number=number, source=source, outputs=outputs))
    return found


@dataclass(slots=True)
class _Budget:
    """What the whole page may still take."""

    text: int
    images: int

    def cut(self, text: str) -> str:
        shown = plain(text, min(_TEXT_LIMIT, max(self.text, 0)))
        self.text -= len(shown)
        return shown


def _outputs(cell: dict[str, Any], budget: _Budget) -> Iterator[Output]:
    for output in _dicts(cell, "outputs")[:_MOST_OUTPUTS]:
        kind = output.get("output_type")
        if kind == "stream":
            yield Output(kind="text", content=budget.cut(_joined(output.get("text"))))
        elif kind == "error":
            trace = output.get("traceback")
            lines = [line for line in trace if isinstance(line, str)] if isinstance(trace, list) else []
            said = "\n".join(lines) or f"{_joined(output.get('ename'))}: {_joined(output.get('evalue'))}"
            yield Output(kind="error", content=budget.cut(said))
        elif kind in ("display_data", "execute_result"):
            data = output.get("data")
            data = data if isinstance(data, dict) else {}
            picture = _png(_joined(data.get("image/png")))
            if picture and len(picture) <= budget.images:
                budget.images -= len(picture)
                yield Output(kind="image", content=picture)
            elif text := _joined(data.get("text/plain")):
                yield Output(kind="text", content=budget.cut(text))


def _png(encoded: str) -> str:
    """The picture, encoded afresh, if it really is a PNG of a reasonable size; else nothing."""
    if not encoded or len(encoded) > 2 * _IMAGE_LIMIT:
        return ""
    try:
        image = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        return ""
    if len(image) > _IMAGE_LIMIT or len(image) < 33 or not image.startswith(_PNG):
        return ""
    width, height = struct.unpack(">II", image[16:24])
    return base64.b64encode(image).decode() if 0 < width * height <= _MOST_PIXELS else ""


def _dicts(holder: Any, name: str) -> list[dict[str, Any]]:
    values = holder.get(name) if isinstance(holder, dict) else None
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _joined(value: Any) -> str:
    """nbformat lets text be a string or a list of them."""
    if isinstance(value, list):
        return "".join(part for part in value if isinstance(part, str))
    return value if isinstance(value, str) else ""
