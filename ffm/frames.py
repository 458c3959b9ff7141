"""Frames between a client and its training process: no pickle, no guessing where a message ends.

4 bytes   length of the header, big-endian, at most MAX_HEADER
header    one JSON object; its member "body" is the number of raw bytes that follow, at most MAX_BODY
body      raw bytes (a manifest, or float32 little-endian numbers)
"""

import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

from ffm.errors import TrainingProcessError

MAX_HEADER = 1 << 16
MAX_BODY = 1 << 32
_LENGTH = struct.Struct(">I")
PREFIX = _LENGTH.size


def _malformed(found: str, expected: str) -> TrainingProcessError:
    return TrainingProcessError(
        "a malformed frame on the training process's pipe",
        found=found,
        expected=expected,
        do="start the client again; something else wrote to the pipe",
        code="E522",
    )


def pack(header: Mapping[str, Any], body: bytes = b"") -> bytes:
    """One frame. `header` holds JSON values and no member "body"."""
    text = json.dumps({**header, "body": len(body)}, ensure_ascii=True, allow_nan=False).encode()
    if len(text) > MAX_HEADER or len(body) > MAX_BODY:
        raise _malformed(f"{len(text)} and {len(body)} bytes", f"at most {MAX_HEADER} and {MAX_BODY}")
    return _LENGTH.pack(len(text)) + text + body


def header_length(prefix: bytes) -> int:
    """Length of the header that follows the first PREFIX bytes of a frame; E522 beyond MAX_HEADER."""
    length = int(_LENGTH.unpack(prefix)[0])
    if not 2 <= length <= MAX_HEADER:
        raise _malformed(f"a header of {length} bytes", f"2 to {MAX_HEADER} bytes")
    return length


def parse_header(text: bytes) -> tuple[dict[str, Any], int]:
    """(header without "body", length of the body). Raises TrainingProcessError E522 for anything else."""
    try:
        header = json.loads(text)
    except ValueError:
        raise _malformed("a header that is not JSON", "a JSON object") from None
    if not isinstance(header, dict):
        raise _malformed(f"a header of type {type(header).__name__}", "a JSON object")
    body = header.pop("body", None)
    if type(body) is not int or not 0 <= body <= MAX_BODY:
        raise _malformed("a header without the length of its body", f'"body": 0 to {MAX_BODY}')
    return header, body


def read(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next frame of a blocking stream; None where the stream ends between two frames, E522 inside of one."""
    prefix = stream.read(PREFIX)
    if not prefix:
        return None
    if len(prefix) < PREFIX:
        raise _malformed("the end of the stream inside a frame", "a whole frame")
    length = header_length(prefix)
    text = stream.read(length)
    if len(text) < length:
        raise _malformed("the end of the stream inside a frame", "a whole frame")
    header, size = parse_header(text)
    body = stream.read(size)
    if len(body) < size:
        raise _malformed("the end of the stream inside a frame", "a whole frame")
    return header, body
