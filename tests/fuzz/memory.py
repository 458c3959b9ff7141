"""How much memory one decode takes at most: every way to fill a frame with as many small things as fit.

Peaks are resident memory of a fresh child process per input, so nothing that was freed before can hide them.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuzz.doors import Door
from fuzz.wire import BYTES, VARINT, Node, serialise, varint
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from protocol.errors import RemoteProtocolError

# Times the size limit of the frame: what one decode may add to resident memory, beside one allocator's floor.
HIGHEST: Final = 64
FLOOR: Final = 2**20


@dataclass(frozen=True)
class Filling:
    """A frame that is full of one field."""

    door: Door
    name: str
    data: bytes


def fillings(door: Door) -> Iterator[Filling]:
    """Every field of every message of this door, repeated up to the size limit: empty, short, and of one kind after
    the other; and unknown fields, which protobuf keeps."""
    for path in _paths(door.kind, ()):
        field = path[-1]
        if field.message_type is not None or not field.is_repeated:
            wire = BYTES if _length_delimited(field) else VARINT
            yield _full(door, path, serialise([Node(field.number, wire)]), "empty")
        elif _length_delimited(field):
            for data in (b"", b"\x00", b"\x01" * 30):
                yield _full(door, path, serialise([Node(field.number, BYTES, data=data)]), f"{len(data)} bytes each")
        else:
            yield _full(door, path, varint(field.number << 3 | VARINT) + b"\x01", "unpacked")
            yield _full(door, path, b"", "packed", b"\x01")
    for name, one in (("varint", varint(15 << 3 | VARINT) + b"\x01"), ("bytes", varint(15 << 3 | BYTES) + b"\x00")):
        yield Filling(door, f"unknown {name}", one * (door.limit // len(one)))
        for path in _paths(door.kind, ()):
            if path[-1].message_type is not None:
                yield _full(door, path, b"", f"unknown {name}", one)


def _paths(kind: Descriptor, above: tuple[FieldDescriptor, ...]) -> Iterator[tuple[FieldDescriptor, ...]]:
    for field in kind.fields:
        yield (*above, field)
        if field.message_type is not None:
            yield from _paths(field.message_type, (*above, field))


def _length_delimited(field: FieldDescriptor) -> bool:
    return field.message_type is not None or field.type in (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING)


def _full(door: Door, path: tuple[FieldDescriptor, ...], one: bytes, name: str, inner: bytes = b"") -> Filling:
    """Copies of `one` inside the messages of `path`; or copies of `inner` inside the whole path."""
    outer = path if inner else path[:-1]
    body = (inner or one) * ((door.limit - 6 * len(outer)) // len(inner or one))
    for field in reversed(outer):
        body = varint(field.number << 3 | BYTES) + varint(len(body)) + body
    return Filling(door, f"{'.'.join(field.name for field in path)}, {name}", body)


@dataclass(frozen=True)
class Peak:
    """What one decode added to resident memory, in bytes, and whether the bytes were a message."""

    filling: Filling
    bytes: int
    accepted: bool


def peak(filling: Filling) -> Peak:
    """Decode in a child that measures itself. Raises ChildProcessError if it did not end well."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            before = _status("VmRSS")
            try:
                filling.door.decode(filling.data)
                accepted = 1
            except RemoteProtocolError:
                accepted = 0
            os.write(writer, f"{_status('VmHWM') - before} {accepted}".encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        told = answer.read().split()
    _, code = os.waitpid(child, 0)
    if code != 0 or len(told) != 2:
        raise ChildProcessError(f"{filling.door.name}, {filling.name}: the decoder ended with status {code}")
    return Peak(filling, 1024 * int(told[0]), told[1] == b"1")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise KeyError(name)
