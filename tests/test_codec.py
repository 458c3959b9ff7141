"""The codec: round trips, one serialisation per message, and one kind of error on any other bytes."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import codec
from protocol._pb import secagg_pb2 as pb
from protocol.codec import clean_text, decode_client, decode_server, encode_client, encode_server
from protocol.encrypted import DecryptorKey, EncryptedInput, InputHash, InputHashes, OpenedSum, OpeningRequest
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import (
    AdvertiseKeys,
    Announcement,
    AttemptAborted,
    Certificate,
    ClientMessage,
    ConsistencyCheck,
    DealtShare,
    Finished,
    KeyEntry,
    KeyList,
    LedgerRow,
    LedgerRows,
    MaskedInput,
    PeerShares,
    RoundResult,
    SealedShare,
    ServerMessage,
    ShareKeys,
    Statement,
    SurvivorNotice,
    UnmaskingShares,
    Withdraw,
)
from protocol.release import MAX_SEGMENT
from secagg.types import ClientId, Phase


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


HASH, SIGNATURE = exactly(32), exactly(64)
IDS = st.integers(1, 65535).map(ClientId)
ID_LIST = st.sets(IDS, max_size=12).map(lambda s: tuple(sorted(s)))
COUNTER = st.integers(1, 2**31 - 1)
ATTEMPT = st.integers(0, 2**31 - 1)
SEQ = st.integers(0, 2**53 - 1)
TEXT = st.text(st.characters(categories=("L", "N", "P", "S")), max_size=60)
CIPHERTEXT = st.one_of(exactly(82), st.just(b""))
BITS = st.binary(min_size=1, max_size=1250)
KEYS = st.builds(AdvertiseKeys, HASH, HASH, HASH, SEQ, HASH, SIGNATURE)
ROW = st.builds(LedgerRow, st.integers(1, 2**53 - 1), COUNTER, ATTEMPT, HASH, HASH, HASH, SIGNATURE)
ROWS = st.lists(ROW, max_size=4).map(tuple)


def by_client(value: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    """Ascending (client, value) pairs."""
    return st.dictionaries(IDS, value, max_size=6).map(lambda d: tuple(sorted(d.items())))


SEALED = st.dictionaries(IDS, st.tuples(CIPHERTEXT, HASH, HASH), max_size=6).map(
    lambda d: tuple(SealedShare(c, *parts) for c, parts in sorted(d.items()))
)
DEALT = st.dictionaries(
    IDS, st.tuples(CIPHERTEXT, HASH, HASH, st.lists(HASH, max_size=14).map(tuple), SIGNATURE), max_size=6
).map(lambda d: tuple(DealtShare(c, *parts) for c, parts in sorted(d.items())))

ENTRIES = st.dictionaries(IDS, st.tuples(KEYS, st.lists(HASH, max_size=14).map(tuple)), max_size=6).map(
    lambda d: tuple(KeyEntry(c, *parts) for c, parts in sorted(d.items()))
)

CLIENT: st.SearchStrategy[ClientMessage] = st.one_of(
    KEYS,
    st.builds(ShareKeys, SEALED, SIGNATURE),
    st.builds(MaskedInput, HASH, st.integers(1, 2**40), ID_LIST, SIGNATURE),
    st.builds(ConsistencyCheck, SIGNATURE),
    st.builds(UnmaskingShares, by_client(exactly(33)), by_client(exactly(33))),
    st.builds(Withdraw, TEXT, TEXT),
    st.builds(Statement, st.binary(min_size=1, max_size=300), SIGNATURE),
    st.builds(LedgerRows, ROWS),
    st.builds(InputHash, HASH, st.integers(1, 2**53 - 1), ID_LIST, SIGNATURE),
    st.builds(EncryptedInput, HASH, st.integers(1, 2**53 - 1), SIGNATURE),
    st.builds(DecryptorKey, st.binary(min_size=1, max_size=300), SIGNATURE),
    st.builds(OpenedSum, HASH, st.integers(1, 2**40), SIGNATURE),
)
SERVER: st.SearchStrategy[ServerMessage] = st.one_of(
    st.builds(Announcement, COUNTER, st.integers(0, 2**31 - 1), HASH, HASH, HASH, ID_LIST, SEQ),
    st.builds(KeyList, BITS, ENTRIES, ROWS, st.binary(max_size=300), st.one_of(SIGNATURE, st.just(b""))),
    st.builds(PeerShares, BITS, DEALT),
    st.builds(SurvivorNotice, BITS, ROW),
    st.builds(Certificate, by_client(SIGNATURE)),
    st.builds(RoundResult, COUNTER, st.integers(0, 2**31 - 1), ID_LIST, HASH, HASH),
    st.builds(AttemptAborted, COUNTER, st.integers(0, 2**31 - 1), st.sampled_from(Phase), TEXT),
    st.builds(Finished, COUNTER),
    st.builds(InputHashes, BITS, st.binary(min_size=1, max_size=300)),
    st.builds(
        OpeningRequest,
        *(BITS, HASH, BITS, BITS, st.binary(min_size=1, max_size=300), BITS),
        *(st.integers(1, 2**53 - 1), HASH, by_client(SIGNATURE)),
    ),
)


@given(CLIENT)
def test_client_messages_survive_the_wire(message: ClientMessage) -> None:
    assert decode_client(encode_client(message)) == message


@given(SERVER)
def test_server_messages_survive_the_wire(message: ServerMessage) -> None:
    assert decode_server(encode_server(message)) == message


@given(st.binary(max_size=400))
@settings(max_examples=400)
def test_random_bytes_give_a_message_or_the_one_error(data: bytes) -> None:
    for decode, encode in ((decode_client, encode_client), (decode_server, encode_server)):
        try:
            message = decode(data)
        except RemoteProtocolError as error:
            assert error.code == "E410"
        else:
            assert encode(message) == data  # type: ignore[arg-type]


@given(st.one_of(CLIENT.map(encode_client), SERVER.map(encode_server)), st.data())
@settings(max_examples=400)
def test_mutated_messages_give_a_message_or_the_one_error(data: bytes, draw: st.DataObject) -> None:
    mutated = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        place = draw.draw(st.integers(0, len(mutated)))
        kind = draw.draw(st.sampled_from(("flip", "insert", "cut", "double")))
        if kind == "flip" and place < len(mutated):
            mutated[place] ^= draw.draw(st.integers(1, 255))
        elif kind == "insert":
            mutated[place:place] = draw.draw(st.binary(min_size=1, max_size=4))
        elif kind == "cut":
            del mutated[place : place + draw.draw(st.integers(1, 40))]
        else:
            mutated += mutated[place:]
    for decode, encode in ((decode_client, encode_client), (decode_server, encode_server)):
        try:
            message = decode(bytes(mutated))
        except RemoteProtocolError as error:
            assert error.code == "E410"
        else:  # another message is fine (its signature will not be); another spelling of it is not
            assert encode(message) == bytes(mutated)  # type: ignore[arg-type]


def test_consistency_check_on_the_wire() -> None:
    signature = bytes(range(64))
    wire = bytes.fromhex(
        "22 42"  # ClientFrame.consistency_check (field 4), 66 bytes
        "0a 40" + signature.hex()  # ConsistencyCheck.signature (field 1), 64 bytes
    )
    assert encode_client(ConsistencyCheck(signature)) == wire
    assert decode_client(wire) == ConsistencyCheck(signature)


def test_announcement_on_the_wire() -> None:
    cohort = (ClientId(1), ClientId(2), ClientId(300))
    message = Announcement(3, 1, b"\xaa" * 32, b"\xbb" * 32, b"\xcc" * 32, cohort, 5)
    wire = bytes.fromhex(
        "0a 72"  # ServerFrame.announcement (field 1), 114 bytes
        "08 03"  # round = 3
        "10 01"  # attempt = 1
        "1a 20" + "aa" * 32 +  # manifest_digest
        "22 20" + "bb" * 32 +  # roster_root
        "2a 20" + "cc" * 32 +  # model_digest
        "32 04 01 02 ac02"  # cohort, packed: 1, 2, 300
        "38 05"  # ledger_seq = 5
    )  # fmt: skip
    assert encode_server(message) == wire
    assert decode_server(wire) == message


GOOD = encode_client(ConsistencyCheck(bytes(64)))
REFUSED = {
    "nothing": b"",
    "an empty message": bytes.fromhex("2200"),
    "an unknown field of the frame": GOOD + bytes.fromhex("7800"),
    "an unknown field inside": bytes.fromhex("2244") + GOOD[2:] + bytes.fromhex("1001"),
    "the field twice": GOOD + GOOD,
    "two messages of the oneof": bytes.fromhex("3200") + GOOD,
    "a padded length": bytes.fromhex("22c200") + GOOD[2:],
    "a signature one byte short": bytes.fromhex("22410a3f") + bytes(63),
    "a length that ends early": GOOD[:-1],
    "a group": bytes.fromhex("0b0c"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_spellings_are_refused(what: str) -> None:
    assert decode_client(GOOD) == ConsistencyCheck(bytes(64))
    with pytest.raises(RemoteProtocolError) as caught:
        decode_client(REFUSED[what])
    assert caught.value.code == "E410"


def test_size_comes_first() -> None:
    """No legal message is so large: the limit bounds what a hostile one costs before anything looks inside."""
    for decode, limit in ((decode_client, codec.MAX_CLIENT_FRAME), (decode_server, codec.MAX_SERVER_FRAME)):
        with pytest.raises(RemoteProtocolError, match="size of the frame"):
            decode(bytes(limit + 1))
        with pytest.raises(RemoteProtocolError, match="syntax"):
            decode(bytes(limit))


def test_the_largest_legal_messages_fit() -> None:
    neighbors = [ClientId(i) for i in range(65536 - codec.MAX_NEIGHBORS, 65536)]
    everybody = [ClientId(i) for i in range(65536 - codec.MAX_CLIENTS, 65536)]
    hash_, signature, top = bytes(32), bytes(64), 2**53 - 1
    keys = AdvertiseKeys(hash_, hash_, hash_, top, hash_, signature)
    path = (hash_,) * codec.MAX_PATH
    rows = (LedgerRow(top, 2**31 - 1, 2**31 - 1, hash_, hash_, hash_, signature),) * MAX_SEGMENT
    dealt = tuple(DealtShare(c, bytes(82), hash_, hash_, path, signature) for c in neighbors)
    for server_message in (
        KeyList(bytes(1250), tuple(KeyEntry(c, keys, path) for c in neighbors), rows),
        PeerShares(bytes(1250), dealt),
        Certificate(tuple((c, signature) for c in everybody)),
        Announcement(1, 0, hash_, hash_, hash_, tuple(everybody), top),
    ):
        assert decode_server(encode_server(server_message)) == server_message
    sealed = tuple(SealedShare(c, bytes(82), hash_, hash_) for c in neighbors)
    shares = tuple((c, bytes(33)) for c in neighbors)
    for client_message in (
        ShareKeys(sealed, signature),
        Statement(bytes(codec.MAX_STATEMENT), signature),
        UnmaskingShares(shares, shares),
        MaskedInput(hash_, codec.MAX_WORDS, tuple(neighbors), signature),
        LedgerRows(rows),
    ):
        assert decode_client(encode_client(client_message)) == client_message


def entries(ids: list[int]) -> bytes:
    """A Certificate of these signers, written without our checks."""
    signatures = [pb.SignatureEntry(client=i, signature=bytes(64)) for i in ids]
    return pb.ServerFrame(certificate=pb.Certificate(signatures=signatures)).SerializeToString()


@pytest.mark.parametrize("ids", [[2, 1], [1, 1], [0, 1], [65536], list(range(1, 10_002))])
def test_lists_of_clients_ascend_and_end(ids: list[int]) -> None:
    assert decode_server(entries([1, 2, 65535]))
    assert decode_server(entries(list(range(1, 10_001))))
    with pytest.raises(RemoteProtocolError):
        decode_server(entries(ids))


def test_our_own_mistakes_are_local() -> None:
    with pytest.raises(LocalProtocolError, match="signature"):
        encode_client(ConsistencyCheck(bytes(63)))
    with pytest.raises(LocalProtocolError, match="reason"):
        encode_server(AttemptAborted(1, 0, Phase.UNMASKING, "two\nlines"))


@given(st.text(max_size=150).map(lambda text: 40 * text))
def test_cleaned_text_can_always_be_sent(text: str) -> None:
    message = AttemptAborted(1, 0, Phase.MASKED_INPUT, clean_text(text))
    assert decode_server(encode_server(message)) == message


def test_errors_do_not_quote_the_peer() -> None:
    marker = "private-detail"
    wire = pb.ClientFrame(withdraw=pb.Withdraw(code="E1\n", what=marker)).SerializeToString()
    with pytest.raises(RemoteProtocolError) as caught:
        decode_client(wire)
    assert marker not in f"{caught.value} {caught.value.found} {caught.value.expected}"


HOSTILE = """
import resource
from protocol.codec import MAX_SERVER_FRAME, decode_server, encode_server
from protocol.errors import RemoteProtocolError
from protocol.messages import Finished

def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))

def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])

decode_server(encode_server(Finished(1)))
before = peak()
for field in (2, 3):  # as many empty entries (then rows) as fit: protobuf makes an object of each
    body = bytes([field << 3 | 2, 0]) * ((MAX_SERVER_FRAME - 8) // 2)
    frame = bytes([0x12]) + varint(len(body)) + body
    assert len(frame) <= MAX_SERVER_FRAME
    try:
        decode_server(frame)
        raise SystemExit("accepted")
    except RemoteProtocolError as error:
        assert "length of" in str(error), error
print(peak() - before)
"""


def test_a_frame_of_empty_entries_costs_little_memory() -> None:
    done = subprocess.run([sys.executable, "-c", HOSTILE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 * 1024  # KiB
