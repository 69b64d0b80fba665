"""What a check may send to student code, or get from it, besides values: what stays on its own side of the bridge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grader.sandbox import wire


@dataclass(frozen=True, slots=True)
class Handle:
    """Something that stays in the student's process, under a number."""

    number: int
    type_name: str


@dataclass(frozen=True, slots=True)
class Ref:
    """A name over there: of the notebook (tag `g`) or of the stubs (tag `s`)."""

    tag: str
    name: str


class Device:
    """Stands for the device context that the runner leased."""


def leave(value: Any, callbacks: list[Callable[..., Any]]) -> Any:
    """The node for what is not a value; functions are kept in `callbacks`. Raises TypeError for anything else."""
    if isinstance(value, Handle):
        return {"h": value.number}
    if isinstance(value, Ref):
        return {value.tag: value.name}
    if isinstance(value, Device):
        return {"ctx": None}
    if callable(value):
        callbacks.append(value)
        return {"c": len(callbacks) - 1}
    raise TypeError(f"a check may not send a value of type {type(value).__name__}")


def arrive(tag: str, payload: Any) -> Handle:
    """The one thing that student code may send besides values. Raises WireError for any other tag."""
    if tag != "h" or not isinstance(payload, list) or len(payload) != 2:
        raise wire.WireError("a node of an unknown kind")
    number, type_name = payload
    if type(number) is not int or not isinstance(type_name, str):
        raise wire.WireError("a handle without number and type")
    return Handle(number, type_name[:80])
