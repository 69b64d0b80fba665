"""Frames carry plain data exactly, and refuse everything else."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grader.sandbox import wire


def nothing_special(*_: Any) -> Any:
    return None


def refuse(tag: str, payload: Any) -> Any:
    raise wire.WireError("unknown tag")


def cross(value: Any) -> Any:
    encoder = wire.Encoder(nothing_special)
    node = encoder.node(value)
    message, body = wire.read_frame(io.BytesIO(wire.pack({"ok": node}, encoder.body)).read)
    return wire.Decoder(body, refuse).value(message["ok"])


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(-(2**59), 2**59), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_values_cross_unchanged(value: Any) -> None:
    """Lists stay lists, tuples tuples, and dicts keep keys that are no strings."""
    assert cross(value) == value
    assert type(cross(value)) is type(value)


@pytest.mark.parametrize("dtype", list(wire.DTYPES))
def test_arrays_cross_with_dtype_and_shape(dtype: str) -> None:
    """Several arrays of one message come back each with its own values, empty and 0-d ones too."""
    arrays = [np.arange(6).reshape(2, 3).astype(dtype), np.zeros((0, 4), dtype), np.array(1, dtype)]
    for sent, received in zip(arrays, cross(arrays), strict=True):
        assert received.dtype == sent.dtype
        np.testing.assert_array_equal(received, sent)


@pytest.mark.parametrize(
    "value", [{1, 2}, object(), np.array(["a"]), np.array([None]), b"x", 1j], ids=lambda v: type(v).__name__
)
def test_what_is_no_data_cannot_cross(value: Any) -> None:
    """Objects, sets, bytes and arrays of objects are refused by the sender already."""
    with pytest.raises(wire.WireError):
        cross(value)


def test_a_key_with_the_hash_of_others_crosses_as_its_text() -> None:
    """Whole numbers that all hash alike would cost the receiver the square of their number."""
    assert cross({2**61 - 1: 1, 2**59: 2}) == {str(2**61 - 1): 1, 2**59: 2}


def test_a_cycle_is_refused() -> None:
    """A list that holds itself ends in an error, not in an endless loop."""
    value: list[Any] = []
    value.append(value)
    with pytest.raises(wire.WireError, match="deeply"):
        cross(value)


@pytest.mark.parametrize(
    "node",
    [
        {"a": ["float32", [2], 0]},
        {"a": ["float32", [1], 1]},
        {"a": ["float32", [1], -1]},
        {"a": ["float32", [-1], 0]},
        {"a": ["float32", [1 << 62, 1 << 62], 0]},
        {"a": ["object", [1], 0]},
        {"a": ["float32", [True], 0]},
        {"a": ["float32", [1] * 9, 0]},
        {"a": ["float32", 4, 0]},
        {"a": ["float32", [0, 10**30], 0]},
        {"a": ["float32", [0] + [1 << 20] * 4, 0]},
        {"a": "float32"},
        {"t": 1},
        {"d": [[1]]},
        {"d": [[[1], 2]]},
        {"d": {"a": 1}},
        {"d": [[2**61 - 1, 0]]},
        {"d": [[-(2**60), 0]]},
        {"t": [0] * (wire.NODE_LIMIT + 1)},
        {"x": 1},
        {"t": [], "d": []},
        {},
    ],
    ids=lambda node: str(node)[:60],
)
def test_malformed_nodes_are_refused(node: Any) -> None:
    """An array outside its message, a foreign dtype, a shape that is none, an unknown tag: each is a WireError."""
    with pytest.raises(wire.WireError):
        wire.Decoder(b"1234", refuse).value(node)


@pytest.mark.parametrize("header", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000])
def test_malformed_headers_are_refused(header: bytes) -> None:
    """Whatever is no JSON object, nested without end included, is a WireError."""
    with pytest.raises(wire.WireError):
        wire.read_frame(io.BytesIO(struct.pack(">IQ", len(header), 0) + header).read)


def test_a_frame_over_the_limit_is_refused_before_it_is_read() -> None:
    """The lengths are checked first: nothing is allocated for a frame that claims to be huge."""
    for lengths in ((wire.HEADER_LIMIT + 1, 0), (2, wire.BODY_LIMIT + 1), (2, 2**64 - 1)):
        stream = io.BytesIO(struct.pack(">IQ", *lengths))
        with pytest.raises(wire.WireError, match="limit"):
            wire.read_frame(stream.read)


@settings(max_examples=500)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["a", "t", "d", "h", "x"]), x, max_size=2),
        max_leaves=12,
    ),
    st.binary(max_size=64),
)
def test_any_json_decodes_or_is_refused(node: Any, body: bytes) -> None:
    """No header, however odd, ends in another exception than WireError."""
    message = json.loads(json.dumps(node))
    try:
        wire.Decoder(body, refuse).value(message)
    except wire.WireError:
        return


def test_odd_keys_and_kinds_of_numbers_cross_as_what_they_are_at_heart() -> None:
    """A tuple as a key, numpy scalars, a str subclass: none of them costs the value it stands in."""
    value = {("best", "model"): np.float32(0.5), np.int64(3): np.str_("x"), "flag": np.bool_(True)}
    assert cross(value) == {"('best', 'model')": 0.5, 3: "x", "flag": True}


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("ValueError", "bad", "ValueError: bad"),
        ("NotImplementedError", "", "NotImplementedError"),
        (
            "MXNetError",
            "Traceback (most recent call last):\n  File x\nMXNetError: shapes differ",
            "MXNetError: shapes differ",
        ),
    ],
)
def test_the_gist_of_an_exception_is_the_line_that_says_it(kind: str, text: str, said: str) -> None:
    """A traceback inside a message does not hide what went wrong."""
    assert wire.gist(kind, text) == said
