"""What a check sees of a notebook that has run: its functions and values, as if they were here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grader.sandbox.bridge import Session, StudentError
from grader.sandbox.references import Device, Handle, Ref
from grader.types import Outcome


class Student:
    """What a check sees of the notebook: `student.f(x)` calls its global `f` over there, results come back as data."""

    def __init__(self, session: Session, stubs_source: str) -> None:
        self._session = session
        self.ctx = Device()
        self.device = session.device  # "cpu" or "gpu"
        self.stubs = Stubs(self)
        session.request({"op": "load", "source": stubs_source})

    def give_time(self, used_s: float | None) -> None:
        """A check begins, or goes on after `used_s` of its time; None: what comes now is no check."""
        limit = self._session.limits.check_wall_s
        self._session.give_time(None if used_s is None else max(0.0, limit - used_s))

    def call(self, target: str | Ref | Handle, *args: Any, **kwargs: Any) -> Any:
        """Call a global (by name), a stub or a handle. Raises StudentError."""
        return self._call(target, args, kwargs, keep=False)

    def keep(self, target: str | Ref | Handle, *args: Any, **kwargs: Any) -> Handle:
        """The same, but the result stays there. Raises StudentError."""
        result = self._call(target, args, kwargs, keep=True)
        if not isinstance(result, Handle):
            raise StudentError(Outcome.PROTOCOL_VIOLATION, "A result that was to stay was sent.")
        return result

    def begin(self, target: Ref | Handle, *args: Any) -> Callable[[], Any]:
        """Begin to call, after what was begun before; what is returned waits for the result. Results come in order.

        Nothing that is begun may be handed a function. A call that ends the process takes the results of some before
        it with it. Both raise StudentError.
        """
        self._session.ask({"op": "call", "keep": False}, {"target": target, "args": list(args), "kwargs": {}})
        return self._session.answer

    def get(self, name: str) -> Any:
        """The value of a global. Raises StudentError (MISSING) if there is none."""
        return self._session.request({"op": "get", "name": name})

    def has(self, name: str) -> bool:
        """Whether the notebook defines a global."""
        return self._session.request({"op": "has", "name": name}) is True

    def run(self, source: str) -> None:
        """Run the source of one more cell. Raises StudentError."""
        self._session.request({"op": "run", "source": source})

    def ref(self, name: str) -> Ref:
        """A global, to be passed as an argument."""
        return Ref("g", name)

    def _call(self, target: str | Ref | Handle, args: tuple[Any, ...], kwargs: dict[str, Any], *, keep: bool) -> Any:
        callee = self.ref(target) if isinstance(target, str) else target
        values = {"target": callee, "args": list(args), "kwargs": kwargs}
        return self._session.request({"op": "call", "keep": keep}, values)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.call(name, *args, **kwargs)


class Stubs:
    """The functions of the assignment's `stubs.py`, which run in the student's process and decide nothing."""

    def __init__(self, student: Student) -> None:
        self._student = student

    def ref(self, name: str) -> Ref:
        """A stub, to be passed as an argument or a target."""
        return Ref("s", name)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self._student.call(Ref("s", name), *args, **kwargs)
