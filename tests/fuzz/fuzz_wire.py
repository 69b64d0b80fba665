"""Fuzzes the decoder of the bridge with atheris, which is no dependency of the project: it is installed for this alone.

    python -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris 'numpy<1.24'
    PYTHONPATH=. /tmp/fuzz/bin/python tests/fuzz/fuzz_wire.py -runs=1000000 -max_len=4096

No input may end in another exception than WireError or EOFError, hang, or make memory grow; libFuzzer watches all
three.
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-not-found, unused-ignore]

with atheris.instrument_imports(include=["grader.sandbox.wire"]):
    from grader.sandbox import wire


def special(tag: str, payload: object) -> object:
    """Handles are all that the grader's end knows."""
    if tag != "h":
        raise wire.WireError("a node of an unknown kind")
    return payload


def decode(data: bytes) -> None:
    """Read frames until the bytes end, and decode every value in them."""
    place = 0

    def read(count: int) -> bytes:
        nonlocal place
        if place + count > len(data):
            raise EOFError
        place += count
        return data[place - count : place]

    try:
        while True:
            message, body = wire.read_frame(read)
            for node in message.values():
                wire.Decoder(body, special).value(node)
    except (wire.WireError, EOFError):
        return


def frames(data: bytes) -> None:
    """The bytes as they are, and as the header and the body of one frame."""
    decode(data)
    header, _, body = data.partition(b"\0")
    decode(wire._PREFIX.pack(len(header), len(body)) + header + body)


if __name__ == "__main__":
    atheris.Setup(sys.argv, frames)
    atheris.Fuzz()
