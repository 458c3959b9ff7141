"""The shell's own frames: what carries the protocol's messages, and what may be lost and asked for again. SPEC 9.

Same strictness as `protocol.codec`, same single error. Identity is in none of them: it comes from the connection.
"""

import enum
from dataclasses import dataclass, field
from typing import Final

from protocol._pb import secagg_pb2 as pb
from protocol.codec import (
    MAX_CLIENT_FRAME,
    MAX_COUNTER,
    MAX_SERVER_FRAME,
    Malformed,
    accept,
    emit,
    id_tuple,
    ranged,
    short_text,
    sized,
)
from secagg.types import ClientId, Phase

TOKEN_BYTES: Final = 16
MAX_CHUNK: Final = 65536 * 8  # bytes; the manifest allows at most 65536 words
MAX_SMALL: Final = 8 * 1024
MAX_DELIVERY: Final = MAX_SERVER_FRAME + MAX_SMALL
MAX_SUBMISSION: Final = MAX_CLIENT_FRAME + MAX_SMALL
MAX_PART: Final = MAX_CHUNK + MAX_SMALL
MAX_BLOB: Final = 2**40
MAX_NAMED: Final = 32  # clients that a heartbeat names
NO_ATTEMPT: Final = (0, 0)


class Status(enum.IntEnum):
    """What became of a submission."""

    ACCEPTED = 1
    STALE = 2  # of another attempt or another process of this client: nothing was done with it
    REFUSED = 3  # the client is out of this attempt, or this message came at the wrong time
    PARTIAL = 4  # the header of an upload is accepted, and the first `received` chunks of it are there


@dataclass(frozen=True, slots=True)
class Cursor:
    """Everything up to `index` of server process `server` was processed by client process `token`."""

    token: bytes
    server: bytes  # 16 bytes, or none at first
    index: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the server waits for; (0, 0) is no attempt. For people: nothing is decided by it."""

    round: int
    attempt: int
    phase: Phase
    clients: tuple[ClientId, ...]  # at most MAX_NAMED
    more: int = 0  # clients that are not named


@dataclass(frozen=True, slots=True)
class Delivery:
    """The next ServerFrame, or an empty one: a heartbeat."""

    server: bytes
    index: int
    frame: bytes = field(repr=False)
    waiting: Waiting


@dataclass(frozen=True, slots=True)
class Submission:
    """One ClientFrame of one process for one attempt; (0, 0) outside attempts."""

    token: bytes
    round: int
    attempt: int
    frame: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class UploadChunk:
    """Chunk `index`, counted from 0: little-endian words."""

    index: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Receipt:
    """Answer to a submission; the same bytes again get the same receipt, but for the progress of an upload."""

    status: Status
    reason: str = ""
    received: int = 0  # PARTIAL only: chunks that are there


@dataclass(frozen=True, slots=True)
class BlobRequest:
    """Ask for a published blob by its digest."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class BlobChunk:
    """Part of a published blob; `total` is the size of the whole."""

    total: int
    offset: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class InputRequest:
    """The decryptor's process asks for the encrypted input of one client, from chunk `first` on."""

    token: bytes
    round: int
    attempt: int
    client: ClientId
    first: int


@dataclass(frozen=True, slots=True)
class InputHeader:
    """A ClientFrame with the EncryptedInput that its client signed: before the chunks."""

    frame: bytes = field(repr=False)


UploadPart = Submission | UploadChunk
InputPart = InputHeader | UploadChunk


def encode_cursor(value: Cursor) -> bytes:
    """Cursor bytes."""
    return emit(_cursor_pb, value, MAX_SMALL)


def decode_cursor(data: bytes) -> Cursor:
    """Raises RemoteProtocolError (E410)."""
    return accept(pb.Cursor, data, MAX_SMALL, (lambda m: Cursor(m.token, m.server, m.index), _cursor_pb))


def encode_delivery(value: Delivery) -> bytes:
    """Delivery bytes."""
    return emit(_delivery_pb, value, MAX_DELIVERY)


def decode_delivery(data: bytes) -> Delivery:
    """Raises RemoteProtocolError (E410)."""
    return accept(pb.Delivery, data, MAX_DELIVERY, (_delivery, _delivery_pb))


def encode_submission(value: Submission) -> bytes:
    """Submission bytes."""
    return emit(_submission_pb, value, MAX_SUBMISSION)


def decode_submission(data: bytes) -> Submission:
    """Raises RemoteProtocolError (E410)."""
    return accept(pb.Submission, data, MAX_SUBMISSION, (_submission, _submission_pb))


def encode_part(value: UploadPart) -> bytes:
    """UploadPart bytes."""
    return emit(_part_pb, value, MAX_PART)


def decode_part(data: bytes) -> UploadPart:
    """Raises RemoteProtocolError (E410)."""
    return accept(pb.UploadPart, data, MAX_PART, (_part, _part_pb))


def encode_receipt(value: Receipt) -> bytes:
    """Receipt bytes."""
    return emit(_receipt_pb, value, MAX_SMALL)


def decode_receipt(data: bytes) -> Receipt:
    """Raises RemoteProtocolError (E410)."""
    return accept(pb.Receipt, data, MAX_SMALL, (_receipt, _receipt_pb))


def encode_request(value: BlobRequest) -> bytes:
    """BlobRequest bytes."""
    return emit(_request_pb, value, MAX_SMALL)


def decode_request(data: bytes) -> BlobRequest:
    """Raises RemoteProtocolError (E410)."""
    return accept(pb.BlobRequest, data, MAX_SMALL, (lambda m: BlobRequest(m.digest), _request_pb))


def encode_blob(value: BlobChunk) -> bytes:
    """BlobChunk bytes."""
    return emit(_blob_pb, value, MAX_PART)


def decode_blob(data: bytes) -> BlobChunk:
    """Raises RemoteProtocolError (E410)."""
    return accept(pb.BlobChunk, data, MAX_PART, (lambda m: BlobChunk(m.total, m.offset, m.data), _blob_pb))


def encode_input_request(value: InputRequest) -> bytes:
    """InputRequest bytes."""
    return emit(_input_request_pb, value, MAX_SMALL)


def decode_input_request(data: bytes) -> InputRequest:
    """Raises RemoteProtocolError (E410)."""
    return accept(pb.InputRequest, data, MAX_SMALL, (_input_request, _input_request_pb))


def encode_input_part(value: InputPart) -> bytes:
    """InputPart bytes."""
    return emit(_input_part_pb, value, MAX_PART)


def decode_input_part(data: bytes) -> InputPart:
    """Raises RemoteProtocolError (E410)."""
    return accept(pb.InputPart, data, MAX_PART, (_input_part, _input_part_pb))


def _cursor_pb(value: Cursor) -> pb.Cursor:
    return pb.Cursor(
        token=sized(value.token, TOKEN_BYTES, "token"),
        server=sized(value.server, (0, TOKEN_BYTES), "server"),
        index=ranged(value.index, 0, 2**53, "index"),
    )


def _waiting_pb(value: Waiting) -> pb.Waiting:
    ranged(len(value.clients), 0, MAX_NAMED, "clients waited for")
    return pb.Waiting(
        round=ranged(value.round, 0, MAX_COUNTER, "round"),
        attempt=ranged(value.attempt, 0, MAX_COUNTER, "attempt"),
        phase=ranged(value.phase, 0, max(Phase), "phase"),
        clients=id_tuple(value.clients, "clients"),
        more=ranged(value.more, 0, MAX_COUNTER, "further clients"),
    )


def _delivery_pb(value: Delivery) -> pb.Delivery:
    return pb.Delivery(
        server=sized(value.server, TOKEN_BYTES, "server"),
        index=ranged(value.index, 0, 2**53, "index"),
        frame=value.frame,
        waiting=_waiting_pb(value.waiting),
    )


def _delivery(m: pb.Delivery) -> Delivery:
    w = m.waiting
    phase, clients = Phase(ranged(w.phase, 0, max(Phase), "phase")), id_tuple(w.clients, "clients")
    return Delivery(m.server, m.index, m.frame, Waiting(w.round, w.attempt, phase, clients, w.more))


def _submission_pb(value: Submission) -> pb.Submission:
    return pb.Submission(
        token=sized(value.token, TOKEN_BYTES, "token"),
        round=ranged(value.round, 0, MAX_COUNTER, "round"),
        attempt=ranged(value.attempt, 0, MAX_COUNTER, "attempt"),
        frame=value.frame,
    )


def _submission(m: pb.Submission) -> Submission:
    return Submission(m.token, m.round, m.attempt, m.frame)


def _part_pb(value: UploadPart) -> pb.UploadPart:
    if isinstance(value, Submission):
        return pb.UploadPart(header=_submission_pb(value))
    return pb.UploadPart(chunk=_chunk_pb(value))


def _chunk_pb(value: UploadChunk) -> pb.UploadChunk:
    ranged(len(value.data), 1, MAX_CHUNK, "bytes of a chunk")
    return pb.UploadChunk(index=ranged(value.index, 0, MAX_COUNTER, "chunk index"), data=value.data)


def _part(m: pb.UploadPart) -> UploadPart:
    match m.WhichOneof("part"):
        case "header":
            return _submission(m.header)
        case "chunk":
            return UploadChunk(m.chunk.index, m.chunk.data)
    raise Malformed("content", "neither header nor chunk", "one part of an upload")


def _input_request_pb(value: InputRequest) -> pb.InputRequest:
    return pb.InputRequest(
        token=sized(value.token, TOKEN_BYTES, "token"),
        round=ranged(value.round, 0, MAX_COUNTER, "round"),
        attempt=ranged(value.attempt, 0, MAX_COUNTER, "attempt"),
        client=ranged(value.client, 1, 65535, "client"),
        first=ranged(value.first, 0, MAX_COUNTER, "first chunk"),
    )


def _input_request(m: pb.InputRequest) -> InputRequest:
    return InputRequest(m.token, m.round, m.attempt, ClientId(m.client), m.first)


def _input_part_pb(value: InputPart) -> pb.InputPart:
    if isinstance(value, UploadChunk):
        return pb.InputPart(chunk=_chunk_pb(value))
    return pb.InputPart(header=pb.InputHeader(frame=value.frame))


def _input_part(m: pb.InputPart) -> InputPart:
    match m.WhichOneof("part"):
        case "header":
            return InputHeader(m.header.frame)
        case "chunk":
            return UploadChunk(m.chunk.index, m.chunk.data)
    raise Malformed("content", "neither header nor chunk", "one part of an encrypted input")


def _receipt_pb(value: Receipt) -> pb.Receipt:
    received = ranged(value.received, 0, MAX_COUNTER if value.status == Status.PARTIAL else 0, "chunks received")
    status = ranged(value.status, 1, 4, "status")
    return pb.Receipt(status=status, reason=short_text(value.reason, "reason"), received=received)


def _receipt(m: pb.Receipt) -> Receipt:
    return Receipt(Status(ranged(m.status, 1, 4, "status")), m.reason, m.received)


def _request_pb(value: BlobRequest) -> pb.BlobRequest:
    return pb.BlobRequest(digest=sized(value.digest, 32, "digest"))


def _blob_pb(value: BlobChunk) -> pb.BlobChunk:
    total = ranged(value.total, 0, MAX_BLOB, "size of the blob")
    ranged(len(value.data), 0, MAX_CHUNK, "bytes of a chunk")
    ranged(value.offset + len(value.data), 0, total, "end of a chunk")
    return pb.BlobChunk(total=total, offset=value.offset, data=value.data)
