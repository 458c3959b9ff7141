"""Every place where bytes of a peer become a message: type on the wire, decoder, encoder, limit, and a corpus.

`encoded` is a second encoder that knows only the schema and the names of the dataclasses' fields. It checks nothing.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, cast

from fuzz import rules
from fuzz.dice import Dice
from fuzz.wire import BYTES, VARINT, Node, serialise
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from protocol import codec
from protocol._pb import secagg_pb2 as pb
from protocol.messages import ClientMessage, ServerMessage
from protocol.rpc import frames


@dataclass(frozen=True)
class Door:
    """One decoder of peer bytes."""

    frame: type[Message]
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    limit: int
    types: tuple[type, ...]

    @property
    def kind(self) -> Descriptor:
        """Its descriptor."""
        return cast(Descriptor, self.frame.DESCRIPTOR)

    @property
    def name(self) -> str:
        """The type on the wire."""
        return self.kind.name


DOORS: Final = (
    Door(
        pb.ClientFrame,
        codec.decode_client,
        codec.encode_client,
        codec.MAX_CLIENT_FRAME,
        rules.messages_of(ClientMessage),
    ),
    Door(
        pb.ServerFrame,
        codec.decode_server,
        codec.encode_server,
        codec.MAX_SERVER_FRAME,
        rules.messages_of(ServerMessage),
    ),
    Door(pb.Cursor, frames.decode_cursor, frames.encode_cursor, frames.MAX_SMALL, (frames.Cursor,)),
    Door(pb.Delivery, frames.decode_delivery, frames.encode_delivery, frames.MAX_DELIVERY, (frames.Delivery,)),
    Door(
        pb.Submission,
        frames.decode_submission,
        frames.encode_submission,
        frames.MAX_SUBMISSION,
        (frames.Submission,),
    ),
    Door(
        pb.UploadPart,
        frames.decode_part,
        frames.encode_part,
        frames.MAX_PART,
        rules.messages_of(frames.UploadPart),
    ),
    Door(pb.Receipt, frames.decode_receipt, frames.encode_receipt, frames.MAX_SMALL, (frames.Receipt,)),
    Door(pb.BlobRequest, frames.decode_request, frames.encode_request, frames.MAX_SMALL, (frames.BlobRequest,)),
    Door(
        pb.InputRequest,
        frames.decode_input_request,
        frames.encode_input_request,
        frames.MAX_SMALL,
        (frames.InputRequest,),
    ),
    Door(
        pb.InputPart,
        frames.decode_input_part,
        frames.encode_input_part,
        frames.MAX_PART,
        rules.messages_of(frames.InputPart),
    ),
    Door(pb.BlobChunk, frames.decode_blob, frames.encode_blob, frames.MAX_PART, (frames.BlobChunk,)),
)


def reachable(kinds: Iterable[Descriptor]) -> set[str]:
    """Names of these message types and of all types inside them."""
    found: set[str] = set()
    todo = list(kinds)
    while todo:
        kind = todo.pop()
        if kind.name not in found:
            found.add(kind.name)
            todo += [field.message_type for field in kind.fields if field.message_type is not None]
    return found


def encoded(value: Any, kind: Descriptor) -> bytes:
    """The canonical protobuf bytes of a message dataclass, whatever it holds."""
    if kind.name != type(value).__name__:  # a frame: the one field whose type has the name of the dataclass
        for way in kind.fields:
            if way.message_type is not None and way.message_type.name == type(value).__name__:
                return serialise([Node(way.number, BYTES, way, children=_nodes(value, way.message_type))])
        raise ValueError(f"no {type(value).__name__} in a {kind.name}")
    return serialise(_nodes(value, kind))


def _nodes(value: Any, kind: Descriptor) -> list[Node]:
    names = [field.name for field in kind.fields]
    if dataclasses.is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        parts = dict(zip(names, value, strict=True))  # a pair stands for a message of two fields
    if sorted(names) != sorted(parts):
        raise ValueError(f"{kind.name} has the fields {names}, the message {sorted(parts)}")
    nodes: list[Node] = []
    for field in sorted(kind.fields, key=lambda f: f.number):
        nodes += _field(parts[field.name], field)
    return nodes


def _field(value: Any, field: FieldDescriptor) -> list[Node]:
    if field.message_type is not None:
        items = value if field.is_repeated else [value]
        return [Node(field.number, BYTES, field, children=_nodes(item, field.message_type)) for item in items]
    if isinstance(value, tuple) and all(isinstance(item, bytes) for item in value) and not _numeric(field):
        return [Node(field.number, BYTES, field, data=item) for item in value]
    if field.is_repeated:
        return [Node(field.number, BYTES, field, packed=list(value))] if value else []
    if not value:
        return []  # proto3 leaves defaults out
    if isinstance(value, str | bytes):
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        return [Node(field.number, BYTES, field, data=data)]
    return [Node(field.number, VARINT, field, value=int(value))]


def _numeric(field: FieldDescriptor) -> bool:
    return field.type not in (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING)


@cache
def corpus(door: Door, samples: int = 6) -> tuple[bytes, ...]:
    """Valid encodings: of every message type of this door, and of the frames of real attempts where they fit in."""
    from fuzz.attempts import recorded

    found = [
        door.encode(rules.sample(kind, Dice("corpus", kind.__name__, i))) for kind in door.types for i in range(samples)
    ]
    real = recorded()
    if door.decode is codec.decode_client:
        found += [codec.encode_client(m) for m in real.from_clients]
    elif door.decode is codec.decode_server:
        found += [codec.encode_server(m) for m in real.from_server]
    elif door.frame in (pb.Submission, pb.UploadPart):
        found += [
            door.encode(frames.Submission(bytes(range(16)), 1, 0, codec.encode_client(m))) for m in real.from_clients
        ]
    return tuple(dict.fromkeys(found))
