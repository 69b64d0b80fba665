"""The interpreter that runs notebooks: what it is and what it lacks, asked in child processes that may not hang."""

from __future__ import annotations

import functools
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from grader.errors import RuntimeUnavailable
from grader.sandbox.child import Answer, ask

ASK_WALL_S = 30.0
MOST_SAID = 60  # characters of what a program said that is no Python
IMPORT_WALL_S = 120.0  # a CUDA build reads 2 GB of libraries
NEEDS = ("mxnet", "nbclient", "ipykernel")
_ABOUT = """
import json, sys
from importlib.metadata import Distribution
from pathlib import Path
there = [Distribution.at(path) for folder in sys.path for path in Path(folder).glob("[Mm][Xx][Nn][Ee][Tt]*-info")]
names = [(d.metadata["Name"] or "", d.version) for d in there]
mxnet = sorted(f"{name}=={version}" for name, version in names if name.lower().split("-")[0] == "mxnet")
print(json.dumps([sys.version, [sys.prefix, sys.base_prefix], sys.path, mxnet]))
"""
_IMPORT = """
import importlib, json, sys
wrong = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        wrong[name] = f"{type(error).__name__}: {error}".splitlines()[0]
print()
print(json.dumps(wrong))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """What an interpreter says of itself."""

    version: str  # sys.version
    prefixes: tuple[str, ...]
    packages: tuple[str, ...]  # its folders of installed packages, those of a .pth file included
    mxnet: str  # `mxnet-cu117==1.9.1`; empty: there is none


@functools.cache
def interpreter(python: str) -> Interpreter:
    """Ask an interpreter once. Raises RuntimeUnavailable if it does not answer."""
    answer = _ask(python, _ABOUT)
    try:
        version, prefixes, path, mxnet = json.loads(answer.out)
    except ValueError:
        raise RuntimeUnavailable(
            f"{python} is no Python that works here ({_said(answer)}): `runtime` in assignment.yaml should name "
            "the interpreter of an environment with MXNet, nbclient and ipykernel."
        ) from None
    packages = [folder for folder in path if Path(folder).name in ("site-packages", "dist-packages")]
    return Interpreter(version=version, prefixes=tuple(prefixes), packages=tuple(packages), mxnet=" ".join(mxnet))


def _said(answer: Answer) -> str:
    """How its first line begins: what is no Python may repeat all that it was asked."""
    first = ((answer.err.strip() or answer.out.strip()).splitlines() or ["it said nothing"])[0]
    return first if len(first) <= MOST_SAID else f"{first[:MOST_SAID]}…"


def version_of(python: str) -> str:
    """`sys.version` of an interpreter. Raises RuntimeUnavailable."""
    return sys.version if python == sys.executable else interpreter(python).version


def runtime_identity(python: str) -> str:
    """What of an interpreter decides a grade: `Python 3.11.2, mxnet==1.9.1`. Raises RuntimeUnavailable."""
    about = interpreter(python)
    return f"Python {about.version.split()[0]}, {about.mxnet or 'no mxnet'}"


def cuda_folders(python: str) -> tuple[str, ...]:
    """The folders of CUDA libraries that pip has installed for an interpreter, for LD_LIBRARY_PATH."""
    return tuple(
        str(folder)
        for packages in interpreter(python).packages
        for folder in sorted(Path(packages).glob("nvidia/*/lib"))
        if folder.is_dir()
    )


def missing(python: str) -> str:
    """What keeps an interpreter from running notebooks, in a sentence; empty if nothing does."""
    try:
        answer = _ask(python, _IMPORT, *NEEDS, wall_s=IMPORT_WALL_S, libraries=cuda_folders(python))
    except RuntimeUnavailable as error:
        return str(error)
    if answer.code is None:
        return f"{python} was still importing {', '.join(NEEDS)} after {IMPORT_WALL_S:.0f} s: try it by hand."
    try:
        wrong = json.loads(answer.out.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return f"{python} ended while it imported {', '.join(NEEDS)} ({answer.last_words})."
    if not wrong:
        return ""
    said = "; ".join(f"{name} ({error})" for name, error in wrong.items())
    return f"{python} cannot import {said}: install what is missing into its environment."


def require(python: str) -> None:
    """Raises RuntimeUnavailable, with what is missing, if an interpreter cannot run notebooks."""
    if reason := missing(python):
        raise RuntimeUnavailable(reason)


def _ask(
    python: str, script: str, *arguments: str, wall_s: float = ASK_WALL_S, libraries: tuple[str, ...] = ()
) -> Answer:
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": "/nonexistent"}
    if libraries:
        environment["LD_LIBRARY_PATH"] = ":".join(libraries)
    try:
        return ask([python, "-I", "-B", "-c", script, *arguments], wall_s=wall_s, environment=environment)
    except OSError as error:
        raise RuntimeUnavailable(
            f"the interpreter {python} cannot be started ({error.strerror}): `runtime` in assignment.yaml names it."
        ) from None
