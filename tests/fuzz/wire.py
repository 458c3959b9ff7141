"""Protobuf's framing by hand: bytes to a tree of fields and back, with every liberty that a hostile encoder takes.

The parser reads only what a strict encoder wrote (the corpus); the writer also writes what no encoder should.
"""

from dataclasses import dataclass, field
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = range(6)

_VARINTS: Final = {
    FieldDescriptor.TYPE_UINT32,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_INT32,
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_BOOL,
    FieldDescriptor.TYPE_ENUM,
}

_REPEATED: Final = 2**21  # bytes that repetition adds at most: beyond every size limit, and no more
_ONE: Final = tuple(bytes([value]) for value in range(128))


@dataclass(slots=True)
class Node:
    """One field. By wire type and schema, one of `value`, `data`, `children` and `packed` is its content."""

    tag: int
    wire: int
    kind: FieldDescriptor | None = None
    value: int = 0  # varints and fixed-size fields
    data: bytes = b""  # bytes, strings
    children: "list[Node] | None" = None  # sub-message
    packed: list[int] | None = None  # packed repeated integers
    pads: tuple[int, int] = (0, 0)  # needless bytes in the tag and in the length or value
    skew: int = 0  # added to the true length
    length: int | None = None  # written instead of the true length
    times: int = 1  # how often it is written, one copy after the other

    def copy(self) -> "Node":
        """A deep copy."""
        return Node(
            self.tag,
            self.wire,
            self.kind,
            self.value,
            self.data,
            None if self.children is None else [child.copy() for child in self.children],
            None if self.packed is None else list(self.packed),
            self.pads,
            self.skew,
            self.length,
            self.times,
        )


@dataclass(slots=True)
class Reader:
    """A cursor over bytes; ValueError when they end too early."""

    data: bytes
    at: int = 0
    end: int = field(default=-1)

    def __post_init__(self) -> None:
        if self.end < 0:
            self.end = len(self.data)

    def varint(self) -> int:
        """One base-128 varint of at most 10 bytes."""
        value = shift = 0
        while True:
            if self.at >= self.end or shift > 63:
                raise ValueError("varint")
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if size > self.end - self.at:
            raise ValueError("length")
        self.at += size
        return self.data[self.at - size : self.at]


def varint(value: int, pad: int = 0) -> bytes:
    """Base-128 bytes of an unsigned integer, `pad` of them needless."""
    if value < 128 and not pad:
        return _ONE[value]
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value | (128 if pad else 0))
    if pad:
        out += b"\x80" * (pad - 1) + b"\x00"
    return bytes(out)


def parse(data: bytes, kind: Descriptor) -> list[Node]:
    """The fields of one message that a strict encoder wrote. Raises ValueError on other bytes."""
    reader, nodes = Reader(data), []
    while reader.at < reader.end:
        tag, wire = divmod(reader.varint(), 8)
        known = kind.fields_by_number.get(tag)
        node = Node(tag, wire, known)
        if wire == VARINT:
            node.value = reader.varint()
        elif wire == FIXED64:
            node.value = int.from_bytes(reader.take(8), "little")
        elif wire == FIXED32:
            node.value = int.from_bytes(reader.take(4), "little")
        elif wire == BYTES:
            content = reader.take(reader.varint())
            if known is not None and known.message_type is not None:
                node.children = parse(content, known.message_type)
            elif known is not None and known.type in _VARINTS:
                inner = Reader(content)
                node.packed = []
                while inner.at < inner.end:
                    node.packed.append(inner.varint())
            else:
                node.data = content
        else:
            raise ValueError("group")
        nodes.append(node)
    return nodes


def content(node: Node) -> bytes:
    """What stands behind the length of a length-delimited field."""
    if node.children is not None:
        return serialise(node.children)
    if node.packed is not None:
        return b"".join(varint(value) for value in node.packed)
    return node.data


def serialise(nodes: list[Node]) -> bytes:
    """The bytes of these fields, in this order."""
    out = bytearray()
    for node in nodes:
        one = varint(node.tag << 3 | node.wire, node.pads[0])
        if node.wire == VARINT:
            one += varint(node.value, node.pads[1])
        elif node.wire == FIXED64:
            one += (node.value & 2**64 - 1).to_bytes(8, "little")
        elif node.wire == FIXED32:
            one += (node.value & 2**32 - 1).to_bytes(4, "little")
        elif node.wire == BYTES:
            body = content(node)
            length = max(0, len(body) + node.skew) if node.length is None else node.length
            one += varint(length, node.pads[1]) + body
        elif node.wire == GROUP:
            one += content(node)
        out += one * min(node.times, 1 + _REPEATED // len(one) if one else 1)
    return bytes(out)


def annotated(data: bytes, kind: Descriptor | None, indent: str = "") -> list[str]:
    """Hex with names, as far as the bytes can be read; the rest as plain hex."""
    reader, lines = Reader(data), []
    while reader.at < reader.end:
        start = reader.at
        try:
            tag, wire = divmod(reader.varint(), 8)
            known = None if kind is None else kind.fields_by_number.get(tag)
            name = f"{tag} {known.name if known else 'unknown'}"
            if wire == VARINT:
                value = reader.varint()
                lines.append(f"{indent}{data[start : reader.at].hex(' ')}  # {name} = {value}")
                continue
            if wire == BYTES:
                size = reader.varint()
                head = data[start : reader.at].hex(" ")
                body = reader.take(size)
                lines.append(f"{indent}{head}  # {name}, {size} bytes")
                if known is not None and known.message_type is not None:
                    lines += annotated(body, known.message_type, indent + "  ")
                elif body:
                    lines.append(f"{indent}  {shortened(body)}")
                continue
            reader.take({FIXED64: 8, FIXED32: 4}.get(wire, 0))
            lines.append(f"{indent}{data[start : reader.at].hex(' ')}  # {name}, wire type {wire}")
        except ValueError:
            lines.append(f"{indent}{shortened(data[start:])}  # cannot be read")
            break
    return lines


def shortened(data: bytes, limit: int = 96) -> str:
    """Hex; of long data the ends, and how much is left out."""
    if len(data) <= limit:
        return data.hex()
    return f"{data[: limit // 2].hex()} .. {len(data) - limit} bytes .. {data[-limit // 2 :].hex()}"
