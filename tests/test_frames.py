"""The shell's own frames: round trips, bounds, one kind of error."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.rpc import frames
from protocol.rpc.frames import (
    BlobChunk,
    BlobRequest,
    Cursor,
    Delivery,
    Receipt,
    Status,
    Submission,
    UploadChunk,
    Waiting,
)
from secagg.types import ClientId, Phase

TOKEN = st.binary(min_size=16, max_size=16)
COUNTER = st.integers(0, 2**31 - 1)
TEXT = st.text(st.characters(categories=("L", "N", "P", "S")), max_size=60)
IDS = st.sets(st.integers(1, 65535).map(ClientId), max_size=9).map(lambda s: tuple(sorted(s)))
WAITING = st.builds(Waiting, COUNTER, COUNTER, st.sampled_from(Phase), IDS)
SUBMISSION = st.builds(Submission, TOKEN, COUNTER, COUNTER, st.binary(max_size=90))
PART = st.one_of(SUBMISSION, st.builds(UploadChunk, COUNTER, st.binary(min_size=1, max_size=90)))
BLOB = st.builds(lambda before, data, after: BlobChunk(before + len(data) + after, before, data),
                 st.integers(0, 2**20), st.binary(max_size=90), st.integers(0, 2**20))  # fmt: skip

Way = tuple[st.SearchStrategy[Any], Callable[[Any], bytes], Callable[[bytes], Any]]
WAYS: dict[str, Way] = {
    "cursor": (
        st.builds(Cursor, TOKEN, st.one_of(TOKEN, st.just(b"")), st.integers(0, 2**53)),
        frames.encode_cursor,
        frames.decode_cursor,
    ),
    "delivery": (
        st.builds(Delivery, TOKEN, st.integers(0, 2**53), st.binary(max_size=90), WAITING),
        frames.encode_delivery,
        frames.decode_delivery,
    ),
    "submission": (SUBMISSION, frames.encode_submission, frames.decode_submission),
    "part": (PART, frames.encode_part, frames.decode_part),
    "receipt": (st.builds(Receipt, st.sampled_from(Status), TEXT), frames.encode_receipt, frames.decode_receipt),
    "request": (
        st.builds(BlobRequest, st.binary(min_size=32, max_size=32)),
        frames.encode_request,
        frames.decode_request,
    ),
    "blob": (BLOB, frames.encode_blob, frames.decode_blob),
}


@pytest.mark.parametrize("name", WAYS)
@given(draw=st.data())
@settings(max_examples=60)
def test_round_trip_and_mutations(name: str, draw: st.DataObject) -> None:
    values, encode, decode = WAYS[name]
    value = draw.draw(values)
    data = encode(value)
    assert decode(data) == value
    place = draw.draw(st.integers(0, max(0, len(data) - 1)))
    mutated = data[:place] + draw.draw(st.binary(max_size=3)) + data[place + draw.draw(st.integers(0, 2)) :]
    try:
        other = decode(mutated)
    except RemoteProtocolError as error:
        assert error.code == "E410"
    else:
        assert encode(other) == mutated


def test_bounds() -> None:
    limit = frames.encode_part(UploadChunk(0, bytes(frames.MAX_CHUNK)))
    assert frames.decode_part(limit) == UploadChunk(0, bytes(frames.MAX_CHUNK))
    with pytest.raises(LocalProtocolError):
        frames.encode_part(UploadChunk(0, bytes(frames.MAX_CHUNK + 1)))
    with pytest.raises(RemoteProtocolError):
        frames.decode_part(limit + bytes(frames.MAX_SMALL))
    with pytest.raises(LocalProtocolError):
        frames.encode_blob(BlobChunk(10, 8, bytes(3)))
    with pytest.raises(LocalProtocolError):
        frames.encode_cursor(Cursor(bytes(15), b"", 0))
    with pytest.raises(RemoteProtocolError, match="neither"):
        frames.decode_part(b"")


def test_bodies_are_not_in_the_repr() -> None:
    for value in (Submission(bytes(16), 1, 0, b"body"), UploadChunk(0, b"body"), BlobChunk(4, 0, b"body")):
        assert "body" not in repr(value)
