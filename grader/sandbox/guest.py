"""The student's end of the bridge: serves calls on the notebook's globals, from inside its kernel.

Runs in the student's process, which may change anything here: nothing in this file decides a grade. It imports only
the standard library, MXNet and `wire.py`, which is bound beside it.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

import wire  # type: ignore[import-not-found, unused-ignore]  # lies beside this file in the sandbox

TEXT_LIMIT = 4000  # characters of an exception's message or traceback
BEGUN = 3  # calls that MXNet may be at work on at once
QUICK_S = 0.1  # none is begun after one that took longer to begin: its time would be paid for by others


class Refused(Exception):
    """The grader declined a callback: the call that led to it is over."""


class MissingName(KeyError):
    """The notebook defines no such name."""


class Notebook(MutableMapping[str, Any]):
    """The notebook's globals as the stubs see them: what is not there is said to be missing, not an error."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise MissingName(name)
        return self._names[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._names[name] = value

    def __delitem__(self, name: str) -> None:
        del self._names[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class OutputCap:
    """Holds back a cell that has written more than it may, until it is interrupted.

    Without it, what is written faster than the kernel can send fills the kernel's own memory. The limit itself is the
    runner's, who counts what arrives.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._begin()

    def install(self, shell: Any) -> None:
        """Cap the standard streams of this kernel; each cell begins with the whole limit."""
        shell.events.register("pre_run_cell", self._begin)
        shell.kernel.io_loop.add_callback(self._replace)  # after this cell, whose end brings back what it began with

    def _begin(self, *_: Any) -> None:
        self._written, self._is_held = 0, False

    def _replace(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.write = self._capped(stream.write)  # type: ignore[method-assign]

    def _capped(self, write: Callable[[str], int]) -> Callable[[str], int]:
        def capped(text: str) -> int:
            self._written += len(text)
            if self._written <= self._limit:
                return write(text)
            if not self._is_held:
                self._is_held = True
                write(text[: self._limit + 1])  # enough for the runner to see that it is too much
                while self._written > self._limit:
                    time.sleep(0.05)
            return len(text)  # what a cell writes after it was interrupted is lost

        return capped


class _Begun(NamedTuple):
    """A request that was performed, as far as Python goes: its result may hold arrays that MXNet still works on."""

    wall_s: float  # that it may take
    result: Any
    error: bytes | None  # the reply, if it failed


class Guest:
    """Answers requests in their order until the other end says bye or hangs up.

    When the next one is here already, it is begun before the last one is answered: MXNet then has work while this
    process writes and reads.
    """

    def __init__(self, fd: int, names: dict[str, Any]) -> None:
        self._socket = socket.socket(fileno=fd)
        self._names = names
        self._notebook = Notebook(names)
        self._stubs: dict[str, Any] = {}
        self._kept: dict[int, Any] = {}
        self._last_handle = 0
        self._in_student_code = False
        self._due = 0.0  # when the call in hand may be out of time

    def serve(self) -> None:
        """Answer requests until the grader is done; what is printed meanwhile goes nowhere."""
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  for good
        signal.signal(signal.SIGINT, self._interrupt)
        gc.freeze()  # what the notebook holds is not looked through again and again
        self._send(wire.pack({"hello": sys.version}))
        begun: deque[_Begun] = deque()
        was_quick = True
        while True:
            if begun and (len(begun) == BEGUN or not was_quick or not self._is_asked()):
                self._send(self._finished(begun.popleft()))
                if begun:  # its time begins now, at the other end, too
                    self._due = time.monotonic() + begun[0].wall_s / 2
                continue
            try:
                message, body = wire.read_frame(self._read)
            except EOFError:
                return
            if message["op"] == "bye":
                return
            started = time.monotonic()
            if not begun:
                self._due = started + message["wall_s"] / 2
            begun.append(self._begun(message, body))
            was_quick = time.monotonic() - started < QUICK_S

    def _is_asked(self) -> bool:
        return bool(select.select([self._socket], [], [], 0)[0])

    def _interrupt(self, _signal: int, _frame: Any) -> None:
        """A call that takes too long is interrupted; the frames in between never are, nor is the next call."""
        if self._in_student_code and time.monotonic() >= self._due:
            self._in_student_code = False
            raise KeyboardInterrupt

    def _begun(self, message: dict[str, Any], body: bytes) -> _Begun:
        try:
            self._in_student_code = True
            return _Begun(message["wall_s"], self._perform(message, self._decoder(body)), None)
        except BaseException as error:  # noqa: BLE001  whatever student code raises, SystemExit too, is an answer
            self._in_student_code = False
            return _Begun(message["wall_s"], None, _failed(error))
        finally:
            self._in_student_code = False

    def _finished(self, begun: _Begun) -> bytes:
        """The reply, when all arrays are there."""
        if begun.error:
            return begun.error
        try:
            self._in_student_code = True
            encoder = wire.Encoder(self._leave)
            reply: bytes = wire.pack({"ok": encoder.node(begun.result)}, encoder.body)
        except BaseException as error:  # noqa: BLE001  an error of MXNet comes when its arrays are asked for
            self._in_student_code = False
            reply = _failed(error)
        finally:
            self._in_student_code = False
        return reply

    def _perform(self, message: dict[str, Any], decoder: Any) -> Any:
        operation = message["op"]
        if operation == "call":
            target = decoder.value(message["target"])
            result = target(*decoder.value(message["args"]), **decoder.value(message["kwargs"]))
            return _Kept(result) if message["keep"] else result
        if operation == "get":
            return self._notebook[message["name"]]
        if operation == "has":
            return message["name"] in self._notebook
        if operation == "run":
            exec(compile(message["source"], "cell", "exec"), self._names)
            return None
        if operation == "load":
            self._stubs = {"__name__": "stubs", "notebook": self._notebook, "Missing": MissingName}
            exec(compile(message["source"], "stubs.py", "exec"), self._stubs)
            return None
        raise ValueError(f"unknown operation {operation!r}")

    def _leave(self, value: Any) -> Any:
        """MXNet arrays leave as arrays; what is no data stays here, under a number."""
        if hasattr(value, "asnumpy") and hasattr(value, "wait_to_read"):
            return value.asnumpy()
        if isinstance(value, _Kept):
            value = value.value
        self._last_handle += 1
        self._kept[self._last_handle] = value
        return {"h": [self._last_handle, type(value).__name__]}

    def _decoder(self, body: bytes) -> Any:
        return wire.Decoder(body, self._arrive, _to_mxnet)

    def _arrive(self, tag: str, payload: Any) -> Any:
        """The values of this end's tags: handles, globals, stubs, the device, callbacks."""
        if tag == "h":
            return self._kept[payload]
        if tag == "g":
            return self._notebook[payload]
        if tag == "s":
            return self._stubs[payload]
        if tag == "ctx":
            return device()
        if tag == "c":
            return lambda *args, **kwargs: self._call_back(payload, args, kwargs)
        raise ValueError(f"unknown tag {tag!r}")

    def _call_back(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        encoder = wire.Encoder(self._leave)
        nodes = [encoder.node(list(args)), encoder.node(kwargs)]
        self._in_student_code = False
        self._send(wire.pack({"callback": number, "args": nodes[0], "kwargs": nodes[1]}, encoder.body))
        message, body = wire.read_frame(self._read)
        self._in_student_code = True
        if message["op"] != "return":
            raise Refused("the grader stopped this call")
        return self._decoder(body).value(message["value"])

    def _send(self, frame: bytes) -> None:
        self._socket.sendall(frame)

    def _read(self, count: int) -> bytes:
        parts, missing = [], count
        while missing:
            part = self._socket.recv(min(missing, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


class _Kept:
    """A result that the grader wants to stay here, whatever it is."""

    def __init__(self, value: Any) -> None:
        self.value = value


def device() -> Any:
    """The context that the runner leased: `GRADER_DEVICE` names it."""
    import mxnet

    return mxnet.gpu() if os.environ.get("GRADER_DEVICE") == "gpu" else mxnet.cpu()


def _to_mxnet(array: Any) -> Any:
    import mxnet

    if not array.ndim or not array.size:
        return mxnet.nd.array(array, ctx=device(), dtype=array.dtype)
    made = mxnet.nd.empty(array.shape, ctx=device(), dtype=array.dtype)
    made._sync_copyfrom(array)  # what nd.array comes to; checks hand over thousands of small arrays
    return made


def _failed(error: BaseException) -> bytes:
    """The reply to a request that raised."""
    reply: bytes
    if isinstance(error, MissingName):
        reply = wire.pack({"missing": str(error.args[0])})
    else:
        reply = wire.pack({"error": _describe(error)})
    return reply


def _describe(error: BaseException) -> dict[str, str]:
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  a text that raises is none
        message = ""
    return {
        "type": type(error).__name__[:200],
        "message": message[:TEXT_LIMIT],
        "traceback": "".join(traceback.format_exception(error))[-TEXT_LIMIT:],
    }
