"""Notebooks: the master is read the same each time, text is stable, and any bytes get one clear answer."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grader import notebook
from grader.errors import AssignmentError, SubmissionError
from grader.notebook import parse_submission, read_percent, to_json

MASTER = """# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Mine, language: python, name: conda-env-mine}
# ---

# %% [markdown] id="intro"
# # Title
#
# Text.

# %% id="code" tags=["keep"]
# %matplotlib inline
x = 1


# %%
y = 2

# %%
y = 2
"""


def cell(source: object = "x = 1", cell_type: object = "code", **more: object) -> dict[str, Any]:
    made = {"cell_type": cell_type, "source": source, "metadata": {}, **more}
    return {**made, "outputs": [], "execution_count": None} if cell_type == "code" else made


def as_bytes(*cells: object, **more: object) -> bytes:
    content = {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5, **more}
    return json.dumps(content).encode()


def refused(data: bytes) -> str:
    with pytest.raises(SubmissionError) as caught:
        parse_submission(data)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.fixture
def master(tmp_path: Path) -> Path:
    path = tmp_path / "homework.py"
    path.write_text(MASTER, encoding="utf-8")
    return path


# ---------------------------------------------------------------- the master


def test_master_keeps_ids_tags_and_magics(master: Path) -> None:
    """An id in a cell's header is the cell's id for ever; tags stay; IPython's commands come back to life."""
    nb = read_percent(master)
    assert [c.cell_type for c in nb.cells] == ["markdown", "code", "code", "code"]
    assert [c.id for c in nb.cells[:2]] == ["intro", "code"]
    assert nb.cells[1].metadata == {"tags": ["keep"]}
    assert nb.cells[1].source == "%matplotlib inline\nx = 1"
    assert nb.metadata.kernelspec.name == "python3"


def test_master_reads_the_same_each_time(master: Path) -> None:
    """Nothing random enters a released notebook, not even the ids of cells that have none."""
    nb = read_percent(master)
    assert to_json(nb) == to_json(read_percent(master))
    assert len({c.id for c in nb.cells}) == 4
    master.write_text(MASTER.replace('# %% id="code"', '# %% id="new"\nz = 1\n\n# %% id="code"'))
    assert [c.id for c in read_percent(master).cells[3:]] == [c.id for c in nb.cells[2:]]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('id="code"', 'id="intro"', "cell 2 has the id 'intro' of an earlier cell"),
        ('id="code"', 'id="two words"', "'two words'"),
        ('id="code"', "id=[1]", "at most 64"),
        ('tags=["keep"]', 'tags="keep"', "header of a cell is not valid"),
        ('id="code"', "id=", "header of cell 2 is malformed"),
    ],
)
def test_bad_ids_in_the_master_are_staffs_to_fix(master: Path, old: str, new: str, problem: str) -> None:
    """A repeated or malformed id is refused with the cell's number."""
    master.write_text(MASTER.replace(old, new), encoding="utf-8")
    with pytest.raises(AssignmentError, match=problem):
        read_percent(master)


def test_master_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    """A missing master, or one in another encoding, is named."""
    with pytest.raises(AssignmentError, match=r"none\.py cannot be read"):
        read_percent(tmp_path / "none.py")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9")
    with pytest.raises(AssignmentError, match="not UTF-8"):
        read_percent(tmp_path / "latin.py")


# ---------------------------------------------------------------- to text


def test_text_depends_on_the_content_alone(master: Path) -> None:
    """Timestamps, kernels and editor settings of whoever saved it do not show in the text."""
    nb = read_percent(master)
    saved = deepcopy(nb)
    saved.metadata.widgets = {"state": 1}
    saved.metadata.kernelspec.name = "julia"
    saved.cells[1].metadata.execution = {"iopub.execute_input": "2024-01-01"}
    saved.cells[1].metadata.collapsed = True
    before = deepcopy(saved)
    assert to_json(saved) == to_json(nb)
    assert saved == before
    assert to_json(nb).endswith("}\n")
    assert nbformat.reads(to_json(nb), as_version=4).nbformat_minor == 5


def test_outputs_are_kept_in_the_text(master: Path) -> None:
    """An executed notebook keeps what it printed, even invalid Unicode, and can be stored as UTF-8."""
    nb = read_percent(master)
    nb.cells[1].outputs = [nbformat.v4.new_output("stream", name="stdout", text="shown \ud800")]
    assert "shown ?" in to_json(nb).encode().decode()


def test_invalid_notebook_is_not_written(master: Path) -> None:
    """What would not open in Jupyter is not written."""
    nb = read_percent(master)
    nb.cells[1].outputs = [{"output_type": "nonsense"}]
    with pytest.raises(nbformat.ValidationError):
        to_json(nb)


# ---------------------------------------------------------------- submissions


def test_submission_keeps_what_is_graded() -> None:
    """Source, kind, tags and pasted pictures survive; old outputs and everything else do not."""
    picture = {"a.png": {"image/png": "aGk="}}
    output = {"output_type": "nonsense, from a broken extension"}
    code = {
        **cell(["a = 1\n", "b = 2"], id="mine", metadata={"tags": ["t"], "big": "x" * 999}),
        "outputs": [output],
    }
    nb = parse_submission(as_bytes(cell("# hi", "markdown", attachments=picture), code, metadata={"x": 1}))
    assert nb.cells[0].attachments == picture
    assert nb.cells[1] == {
        **cell("a = 1\nb = 2"),
        "id": "mine",
        "metadata": {"tags": ["t"]},
    }
    assert nb.metadata.kernelspec.name == "python3"
    assert parse_submission(to_json(nb).encode()) == nb


def test_byte_order_mark_is_harmless() -> None:
    """An editor on Windows that adds a byte order mark costs nobody a point."""
    assert parse_submission(b"\xef\xbb\xbf" + as_bytes(cell())).cells[0].source == "x = 1"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\x89PNG\r\n", "not UTF-8 text (byte 0)"),
        (b"print('my homework')", "not JSON"),
        (as_bytes(cell())[:-20], "not JSON"),
        (b"[1, 2]", "not a notebook"),
        (b'{"a": 1}', "not a notebook"),
        (b'{"nbformat": "4"}', "not a notebook"),
        (b'{"nbformat": 4, "x": NaN}', "NaN is not allowed"),
        (b'{"nbformat": ' + b"9" * 5000 + b"}", "not JSON"),
        (as_bytes(cell(), nbformat=2), "format 2"),
        (as_bytes(cell(), nbformat=5), "format 5"),
        (b'{"nbformat": 4}', "no list of cells"),
        (b'{"nbformat": 4, "cells": {}}', "no list of cells"),
        (as_bytes(), "no code"),
        (as_bytes(cell("# text", "markdown")), "no code"),
        (as_bytes(cell("  \n")), "no code"),
        (as_bytes(cell(), "a cell"), "Cell 2"),
        (as_bytes(cell(3)), "Cell 1"),
        (as_bytes(cell(["a", 3])), "Cell 1"),
        (as_bytes(cell("x", "heading")), "Cell 1"),
        (as_bytes(cell("x", ["code"])), "Cell 1"),
        (as_bytes({"source": "x"}), "Cell 1"),
        (as_bytes(cell("x = '\ud800'")), "not valid Unicode"),
        (as_bytes(*[cell()] * 2001), "2,001 cells"),
        (b'{"nbformat": 4, "cells": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"nbformat": 4, "cells": ' + b'{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_a_notebook_is_refused_in_one_sentence(data: bytes, problem: str) -> None:
    """Whatever a student uploads, the answer is one sentence that says what it is and what to do."""
    assert problem in refused(data)


def test_missing_and_repeated_ids_are_repaired_the_same_each_time() -> None:
    """Copying a cell in an editor that repeats its id, or using an old Jupyter, is no fault."""
    data = as_bytes(
        cell("a", id="same"), cell("b", id="same"), cell("c"), cell("c"), cell("d", id="?"), cell("e", id=7)
    )
    nb = parse_submission(data)
    ids = [c.id for c in nb.cells]
    assert ids[0] == "same"
    assert len(set(ids)) == 6
    assert ids == [c.id for c in parse_submission(data).cells]
    assert ids[3] == ids[2] + "-2"


def test_malformed_extras_are_dropped() -> None:
    """Tags or pictures that are not what they should be do not make a notebook invalid."""
    extras = [
        {"metadata": 3},
        {"metadata": {"tags": "t"}},
        {"metadata": {"tags": ["\ud800"]}},
        {"attachments": 3},
        {"attachments": {"a.png": 3}},
        {"attachments": {"a.png": {"image/png": 3, "text/plain": "\ud800"}}},
    ]
    nb = parse_submission(as_bytes(cell(), *[{**cell("t", "markdown"), **extra} for extra in extras]))
    assert to_json(nb).encode()
    assert [c.metadata for c in nb.cells] == [{}] * 7


def test_format_3_is_upgraded() -> None:
    """A notebook from the years of IPython 2 is graded like any other."""
    old = {
        "metadata": {"name": ""},
        "nbformat": 3,
        "nbformat_minor": 0,
        "worksheets": [
            {
                "metadata": {},
                "cells": [
                    {"cell_type": "heading", "level": 2, "metadata": {}, "source": ["Part"]},
                    {
                        "cell_type": "code",
                        "collapsed": False,
                        "input": ["x = 1"],
                        "language": "python",
                        "metadata": {},
                        "outputs": [],
                        "prompt_number": 1,
                    },
                ],
            }
        ],
    }
    data = json.dumps(old).encode()
    nb = parse_submission(data)
    assert [(c.cell_type, c.source) for c in nb.cells] == [("markdown", "## Part"), ("code", "x = 1")]
    assert nb == parse_submission(data)
    del old["worksheets"][0]["cells"][1]["outputs"]
    assert "old format 3 and damaged" in refused(json.dumps(old).encode())
    assert "old format 3 and damaged" in refused(b'{"nbformat": 3}')


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["cells", "nbformat", "cell_type", "source", "metadata", "tags", "id", "worksheets"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(json_values, st.sampled_from([3, 4]))
@settings(max_examples=200, deadline=None)
def test_no_json_crashes_the_reader(value: object, version: int) -> None:
    """Whatever JSON comes, the result is a valid notebook or a SubmissionError."""
    cells = value if isinstance(value, list) else [value]
    content = {"nbformat": version, "cells": [cell(), *cells], "worksheets": value, "metadata": value}
    try:
        nb = parse_submission(json.dumps(content).encode())
    except SubmissionError:
        return
    nbformat.validate(nb)


@given(st.binary(max_size=60))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    """Random bytes are refused, not crashed on."""
    refused(data)


def test_cell_cap_is_generous() -> None:
    """The cap is far above any real homework; it only bounds what a hostile file can cost."""
    assert notebook.MAX_CELLS >= 2000
    assert len(parse_submission(as_bytes(*[cell()] * 2000)).cells) == 2000
