"""The frames that cross the sandbox boundary: bounded, typed, no pickle, no eval.

A frame is `u32 header length, u64 body length` (big-endian), a JSON header and a binary body. Arrays are named in
the header as `{"a": [dtype, shape, offset]}` and lie in the body. This file is the one piece of code that both ends
share: it is bound into the sandbox beside `guest.py`, so it may import the standard library and numpy only.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

HEADER_LIMIT = 8 << 20  # bytes of JSON
BODY_LIMIT = 64 << 20  # bytes of arrays
NODE_LIMIT = 1_000_000  # values in one message
DEPTH_LIMIT = 24
KEY_LIMIT = 1 << 60  # of whole numbers: from 2^61 − 1 on, as many as one likes have the same hash
DIMENSION_LIMIT = 8
DTYPES = {name: np.dtype(name) for name in ("bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64")}
_PREFIX = struct.Struct(">IQ")

Encode = Callable[[Any], Any]


class WireError(Exception):
    """Bytes or values that the protocol does not allow."""


def pack(message: dict[str, Any], body: bytes = b"") -> bytes:
    """Frame one message. Raises WireError if it is over the limits."""
    header = json.dumps(message).encode()
    if len(header) > HEADER_LIMIT or len(body) > BODY_LIMIT:
        raise WireError(f"a message of {len(header)} + {len(body)} bytes is over the limit")
    return _PREFIX.pack(len(header), len(body)) + header + body


def read_frame(read: Callable[[int], bytes], *, body_limit: int = BODY_LIMIT) -> tuple[dict[str, Any], bytes]:
    """Read one frame by `read(n)`, which returns exactly n bytes. Raises WireError; whatever `read` raises passes."""
    header_bytes, body_bytes = _PREFIX.unpack(read(_PREFIX.size))
    if header_bytes > HEADER_LIMIT or body_bytes > body_limit:
        raise WireError(f"a message of {header_bytes} + {body_bytes} bytes is over the limit")
    header, body = read(header_bytes), read(body_bytes)
    try:
        message = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise WireError("the header is not JSON that the protocol allows") from error
    if not isinstance(message, dict):
        raise WireError("the header is not an object")
    return message, body


def gist(kind: str, text: str, limit: int = 300) -> str:
    """`kind: message` of an exception on one line; of a message that holds a traceback, the line that says it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith(f"{kind}: ")), f"{kind}: {lines[0]}" if lines else kind)
    return said[:limit]


def is_gpu_memory(kind: str, text: str) -> bool:
    """Whether an exception says that the GPU's memory ran out: MXNet's own, from cudaMalloc, cuDNN or cuBLAS."""
    ran_out = "out of memory" in text and ("cudaMalloc" in text or "CUDA" in text)
    refused = "CUDNN_STATUS_ALLOC_FAILED" in text or "CUBLAS_STATUS_ALLOC_FAILED" in text
    return kind == "MXNetError" and (ran_out or refused)


def _may_cross(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.name in DTYPES and value.ndim <= DIMENSION_LIMIT


def _is_out_of_range(key: Any) -> bool:
    return isinstance(key, int) and abs(key) >= KEY_LIMIT


class Encoder:
    """Turns values into header nodes, gathering the bytes of arrays in `body`.

    `special(value)` returns an array, or a dict to be sent as the node, or None for what may not cross.
    """

    def __init__(self, special: Encode) -> None:
        self._special = special
        self._chunks: list[bytes] = []
        self._size = self._nodes = 0

    @property
    def body(self) -> bytes:
        return b"".join(self._chunks)

    def node(self, value: Any, depth: int = 0) -> Any:
        """The header node of one value. Raises WireError for what cannot cross."""
        self._nodes += 1
        if depth > DEPTH_LIMIT or self._nodes > NODE_LIMIT:
            raise WireError("a value is nested too deeply, or holds too many others")
        if isinstance(value, np.generic) and value.dtype.name in DTYPES:
            return value.item()
        for plain in (bool, int, float, str):  # their subclasses cross as what they are at heart
            if isinstance(value, plain):
                return plain(value)
        if value is None:
            return None
        if isinstance(value, list):
            return [self.node(item, depth + 1) for item in value]
        if isinstance(value, tuple):
            return {"t": [self.node(item, depth + 1) for item in value]}
        if isinstance(value, dict):
            return {"d": [[self._key(key), self.node(item, depth + 1)] for key, item in value.items()]}
        found = value if _may_cross(value) else self._special(value)
        if _may_cross(found):
            return self._array(found)
        if isinstance(found, dict):
            return found
        raise WireError(f"a value of type {type(value).__name__} cannot cross")

    def _key(self, key: Any) -> Any:
        """Keys that are not plain cross as their text: one of them must not cost the whole dict."""
        is_plain = isinstance(key, (str, int, float, np.generic, type(None)))
        return self.node(key if is_plain and not _is_out_of_range(key) else str(key))

    def _array(self, array: np.ndarray[Any, Any]) -> dict[str, Any]:
        data = np.ascontiguousarray(array).tobytes()
        offset, self._size = self._size, self._size + len(data)
        if self._size > BODY_LIMIT:
            raise WireError("the arrays of one message are over the limit")
        self._chunks.append(data)
        return {"a": [array.dtype.name, list(array.shape), offset]}


class Decoder:
    """Turns header nodes back into values.

    `special(tag, payload)` makes the values of the tags it knows; `array` turns what arrives into another library's.
    """

    def __init__(
        self, body: bytes, special: Callable[[str, Any], Any], array: Callable[[Any], Any] = lambda a: a
    ) -> None:
        self._body = body
        self._special = special
        self._convert = array
        self._array_bytes = self._nodes = 0

    def value(self, node: Any, depth: int = 0) -> Any:
        """The value of one node. Raises WireError for any node that the protocol does not name."""
        self._nodes += 1
        if depth > DEPTH_LIMIT or self._nodes > NODE_LIMIT:
            raise WireError("a value is nested too deeply, or holds too many others")
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        if isinstance(node, list):
            return [self.value(item, depth + 1) for item in node]
        if not isinstance(node, dict) or len(node) != 1:
            raise WireError("a node is neither plain nor tagged")
        ((tag, payload),) = node.items()
        if tag == "t" and isinstance(payload, list):
            return tuple(self.value(item, depth + 1) for item in payload)
        if tag == "d" and isinstance(payload, list):
            return self._dict(payload, depth)
        if tag == "a":
            return self._convert(self._array(payload))
        return self._special(tag, payload)

    def _dict(self, pairs: list[Any], depth: int) -> dict[Any, Any]:
        result = {}
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2:
                raise WireError("an entry of a dict is not a pair")
            key = self.value(pair[0], depth + 1)
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise WireError("a key of a dict is not plain")
            if _is_out_of_range(key):
                raise WireError("a key of a dict is out of range")
            result[key] = self.value(pair[1], depth + 1)
        return result

    def _array(self, payload: Any) -> np.ndarray[Any, Any]:
        if not isinstance(payload, list) or len(payload) != 3:
            raise WireError("an array is not [dtype, shape, offset]")
        name, shape, offset = payload
        if not isinstance(name, str) or name not in DTYPES:
            raise WireError("an array is of a dtype that may not cross")
        if (
            not isinstance(shape, list)
            or len(shape) > DIMENSION_LIMIT
            or not all(type(n) is int and n >= 0 for n in shape)
            or prod(n or 1 for n in shape) > BODY_LIMIT  # an empty array has its limits, too
        ):
            raise WireError("an array has no valid shape")
        dtype, count = DTYPES[name], prod(shape)
        if type(offset) is not int or not 0 <= offset <= len(self._body) - count * dtype.itemsize:
            raise WireError("an array lies outside its message")
        self._array_bytes += count * dtype.itemsize
        if self._array_bytes > len(self._body):
            raise WireError("the arrays of a message overlap")
        return np.frombuffer(self._body, dtype, count, offset).reshape(shape)
