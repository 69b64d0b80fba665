"""Variants: pieces of cells are replaced, and a piece that is not there exactly once is an error, never a no-op."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from grader.errors import AssignmentError
from grader.variants import read_variants, read_yaml

MASTER = '# %% id="one"\na = 1\nb = 1\n\n# %% id="two"\nc = 1\n'


def sources(tmp_path: Path, change: object, lite: object = None, **entry: object) -> list[str]:
    """The code of the one variant that has this change."""
    (tmp_path / "homework.py").write_text(MASTER)
    entry = {"name": "x", "about": "y", "change": change, **entry}
    (tmp_path / "v.yaml").write_text(yaml.safe_dump([entry]))
    (variant,) = read_variants(tmp_path / "v.yaml", tmp_path / "homework.py", lite)  # type: ignore[arg-type]
    return [cell.source for cell in variant.notebook.cells]


def test_a_mapping_replaces_pieces_of_a_cell(tmp_path: Path) -> None:
    """Only the named cell changes, and in it only the piece."""
    assert sources(tmp_path, {"one": {"a = 1": "a = 2"}}) == ["a = 2\nb = 1", "c = 1"]


def test_a_text_replaces_the_whole_cell(tmp_path: Path) -> None:
    """Newlines around the text do not matter."""
    assert sources(tmp_path, {"two": "d = 3\n"}) == ["a = 1\nb = 1", "d = 3"]


def test_a_star_stands_for_all_cells(tmp_path: Path) -> None:
    """The piece is looked for everywhere, and must still be the only one."""
    assert sources(tmp_path, {"*": {"c = 1": "c = 4"}}) == ["a = 1\nb = 1", "c = 4"]


def test_another_notebook_can_be_the_base(tmp_path: Path) -> None:
    """Its path is relative to the file that names it."""
    (tmp_path / "other.py").write_text('# %% id="three"\nz = 0\n')
    assert sources(tmp_path, {"three": {"0": "9"}}, notebook="other.py") == ["z = 9"]


def test_lite_changes_only_cells_that_are_there(tmp_path: Path) -> None:
    """What makes a notebook small applies where it can, after the variant's own change."""
    lite = {"two": {"c = 1": "c = 0"}, "elsewhere": {"q": "r"}}
    assert sources(tmp_path, {"one": "a = 5"}, lite) == ["a = 5", "c = 0"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"one": {"1": "2"}}, "occurs 2 times"),
        ({"one": {"c = 1": "2"}}, "occurs 0 times"),
        ({"*": {"= 1": "2"}}, "occurs 3 times"),
        ({"three": {"a": "b"}}, "no code cell 'three'"),
    ],
)
def test_a_change_that_does_not_fit_is_refused(tmp_path: Path, change: object, words: str) -> None:
    """The sentence names the file, the variant and the piece."""
    with pytest.raises(AssignmentError, match=words) as caught:
        sources(tmp_path, change)
    assert "v.yaml" in str(caught.value)
    assert "'x'" in str(caught.value)


def test_a_variant_without_its_parts_is_refused(tmp_path: Path) -> None:
    """An unknown entry would be a typo that tests nothing."""
    with pytest.raises(AssignmentError, match="should have name, about"):
        sources(tmp_path, {}, failing=["one"])


def test_yaml_that_is_none_is_refused(tmp_path: Path) -> None:
    """One sentence, with the file in it."""
    (tmp_path / "v.yaml").write_text("a: [")
    with pytest.raises(AssignmentError, match=r"v\.yaml cannot be read as YAML"):
        read_yaml(tmp_path / "v.yaml")


@pytest.mark.parametrize(
    ("source", "entry", "expected"),
    [
        ("def f():\n    return 1", {}, ["def f():\n    return 1", "a = f()", "def f():\n    return 2"]),
        ("def f():\n    return 1", {"in_place": True}, ["def f():\n    return 2", "a = f()"]),
        ("b = 1", {}, ["b = 2", "a = f()"]),
    ],
)
def test_a_mutant_that_only_defines_does_so_in_the_end(
    tmp_path: Path, source: str, entry: dict[str, object], expected: list[str]
) -> None:
    """The cells in between run on what is sound; a cell that does something is changed where it stands."""
    (tmp_path / "homework.py").write_text(f'# %% id="one"\n{source}\n\n# %% id="two"\na = f()\n')
    mutant = {"name": "x", "about": "y", "change": {"one": {"1": "2"}}, "fails": ["f"], **entry}
    (tmp_path / "v.yaml").write_text(yaml.safe_dump([mutant]))
    (variant,) = read_variants(tmp_path / "v.yaml", tmp_path / "homework.py")
    assert [cell.source for cell in variant.notebook.cells] == expected
    assert (variant.definitions, variant.originals) == ((expected[-1], source) if len(expected) == 3 else ("", ""))
