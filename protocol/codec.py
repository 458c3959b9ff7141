"""Messages to protobuf bytes and back: strict, size-limited, one serialisation per message. SPEC 7.1.

Order of the checks on peer bytes: size limit, protobuf syntax, list caps (before anything is copied), lengths and
ranges, and last that encoding the result again gives the very bytes that came. The last check alone refuses unknown
fields, a field given twice, over-long varints, explicit defaults and another field order: protobuf readers let all of
these pass.

Nothing is ever signed or hashed over these bytes (`protocol.messages` has the signed bodies), so a second protobuf
library that serialises differently would break interoperability, never a signature.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, TypeVar, assert_never

from google.protobuf.message import DecodeError, Message

from protocol._pb import secagg_pb2 as pb
from protocol.encrypted import (
    HASH_BYTES,
    MAX_KEY,
    DecryptorKey,
    EncryptedInput,
    InputHash,
    InputHashes,
    OpenedSum,
    OpeningRequest,
)
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

MAX_CLIENT_FRAME: Final = 512 * 1024
MAX_SERVER_FRAME: Final = 1024 * 1024
MAX_CLIENTS: Final = 10_000
MAX_NEIGHBORS: Final = 641  # one client and its neighbours (secagg.params.MAX_DEGREE)
MAX_PATH: Final = 14  # Merkle path over at most 10,000 leaves
MAX_STATEMENT: Final = 256 * 1024
MAX_TEXT: Final = 4096
MAX_COUNTER: Final = 2**31 - 1  # rounds and attempts
MAX_SEQ: Final = 2**53 - 1
MAX_WORDS: Final = 2**40
MAX_BYTES: Final = 2**53 - 1  # of an encrypted input

_CIPHERTEXT_BYTES = (0, 82)

P = TypeVar("P", bound=Message)
T = TypeVar("T")


class Malformed(ValueError):
    """A value outside its lengths or ranges; becomes a local error when encoding and a remote one when decoding."""

    def __init__(self, what: str, found: object, expected: object) -> None:
        super().__init__(what)
        self.what, self.found, self.expected = what, found, expected


def encode_client(message: ClientMessage) -> bytes:
    """ClientFrame bytes. Raises LocalProtocolError if the message breaks a length, a range or an order."""
    return emit(_client_frame, message, MAX_CLIENT_FRAME)


def decode_client(data: bytes) -> ClientMessage:
    """The one message of a ClientFrame. Raises RemoteProtocolError (E410), and nothing else, on any other bytes."""
    return accept(pb.ClientFrame, data, MAX_CLIENT_FRAME, (_client_message, _client_frame))


def encode_server(message: ServerMessage) -> bytes:
    """ServerFrame bytes. Raises LocalProtocolError if the message breaks a length, a range or an order."""
    return emit(_server_frame, message, MAX_SERVER_FRAME)


def decode_server(data: bytes) -> ServerMessage:
    """The one message of a ServerFrame. Raises RemoteProtocolError (E410), and nothing else, on any other bytes."""
    return accept(pb.ServerFrame, data, MAX_SERVER_FRAME, (_server_message, _server_frame))


def clean_text(text: str) -> str:
    """`text` as it may stand in a message: printable, on one line, at most MAX_TEXT bytes."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line.encode("utf-8", "replace")[:MAX_TEXT].decode("utf-8", "ignore")


# ---- the two directions, shared with the shell's own frames (`protocol.rpc.frames`)


def emit(to_pb: Callable[[T], Message], value: T, limit: int) -> bytes:
    """Serialise one of our own values; what does not fit is our bug."""
    try:
        data = to_pb(value).SerializeToString(deterministic=True)
        if len(data) > limit:
            raise Malformed("size of the frame", len(data), f"at most {limit} bytes")
    except Malformed as error:
        raise LocalProtocolError(
            f"a {type(value).__name__} cannot be sent: {error.what}", found=error.found, expected=error.expected
        ) from None
    return data


def accept(frame_type: type[P], data: bytes, limit: int, ways: tuple[Callable[[P], T], Callable[[T], Message]]) -> T:
    """Parse peer bytes; `ways` are protobuf -> value and value -> protobuf, both of which check."""
    from_pb, to_pb = ways
    try:
        if len(data) > limit:
            raise Malformed("size of the frame", f"{len(data)} bytes", f"at most {limit}")
        frame = frame_type()
        try:
            frame.ParseFromString(data)
        except DecodeError:
            raise Malformed("syntax", "bytes that protobuf cannot read", f"a {frame_type.DESCRIPTOR.name}") from None
        value = from_pb(frame)
        if to_pb(value).SerializeToString(deterministic=True) != data:
            raise Malformed("form", "unknown, repeated, unordered or padded fields", "the one canonical serialisation")
    except Malformed as error:
        raise RemoteProtocolError(
            f"malformed {frame_type.DESCRIPTOR.name} from the peer: {error.what}",
            found=error.found,
            expected=error.expected,
            do="check that both sides run the same version of secagg",
            code="E410",
        ) from None
    return value


def sized(data: bytes, allowed: int | tuple[int, ...], name: str) -> bytes:
    """`data` if it has (one of) the allowed lengths."""
    if len(data) not in (allowed if isinstance(allowed, tuple) else (allowed,)):
        raise Malformed(f"length of {name}", len(data), allowed)
    return data


def ranged(value: int, low: int, high: int, name: str) -> int:
    """`value` if low <= value <= high."""
    if not low <= value <= high:
        raise Malformed(name, value, f"{low}..{high}")
    return value


def short_text(text: str, name: str) -> str:
    """Printable text of at most MAX_TEXT bytes: it may be shown on a terminal."""
    if not text.isprintable() or len(text.encode("utf-8", "replace")) > MAX_TEXT:
        raise Malformed(f"text of {name}", f"{len(text)} characters", f"printable, at most {MAX_TEXT} bytes")
    return text


def id_tuple(ids: Sequence[int], name: str) -> tuple[ClientId, ...]:
    """Distinct ascending client ids, at most MAX_CLIENTS."""
    if len(ids) > MAX_CLIENTS:
        raise Malformed(f"length of {name}", len(ids), f"at most {MAX_CLIENTS}")
    before = 0
    for i in ids:
        ranged(i, before + 1, 65535, f"ascending ids in {name}")
        before = i
    return tuple(ClientId(i) for i in ids)


def _capped(items: Sequence[Any], limit: int, name: str) -> Sequence[Any]:
    if len(items) > limit:
        raise Malformed(f"length of {name}", len(items), f"at most {limit}")
    return items


def _nothing(frame: str) -> NoReturn:
    raise Malformed("content", "no message", f"exactly one message in a {frame}")


# ---- client -> server


def _client_frame(message: ClientMessage) -> pb.ClientFrame:
    match message:
        case AdvertiseKeys():
            return pb.ClientFrame(advertise_keys=_keys_pb(message))
        case ShareKeys():
            _ascending(message.shares, lambda s: s.recipient, "shares", MAX_NEIGHBORS)
            shares = [_sealed_pb(share) for share in message.shares]
            return pb.ClientFrame(share_keys=pb.ShareKeys(shares=shares, signature=_signature(message.signature)))
        case MaskedInput():
            return pb.ClientFrame(
                masked_input=pb.MaskedInput(
                    input_digest=_hash(message.input_digest, "input_digest"),
                    total_words=ranged(message.total_words, 1, MAX_WORDS, "total_words"),
                    complaints=id_tuple(message.complaints, "complaints"),
                    signature=_signature(message.signature),
                )
            )
        case ConsistencyCheck():
            return pb.ClientFrame(consistency_check=pb.ConsistencyCheck(signature=_signature(message.signature)))
        case UnmaskingShares():
            return pb.ClientFrame(
                unmasking_shares=pb.UnmaskingShares(
                    self_shares=_share_entries(message.self_shares, "self_shares"),
                    key_shares=_share_entries(message.key_shares, "key_shares"),
                )
            )
        case Withdraw():
            code, what = short_text(message.code, "code"), short_text(message.what, "what")
            return pb.ClientFrame(withdraw=pb.Withdraw(code=code, what=what))
        case Statement():
            ranged(len(message.body), 1, MAX_STATEMENT, "length of a statement")
            statement = pb.Statement(body=message.body, signature=_signature(message.signature))
            return pb.ClientFrame(statement=statement)
        case LedgerRows():
            return pb.ClientFrame(ledger_rows=pb.LedgerRows(rows=_rows_pb(message.rows, "rows")))
        case InputHash():
            return pb.ClientFrame(
                input_hash=pb.InputHash(
                    input_digest=_hash(message.input_digest, "input_digest"),
                    total_bytes=ranged(message.total_bytes, 1, MAX_BYTES, "total_bytes"),
                    complaints=id_tuple(message.complaints, "complaints"),
                    signature=_signature(message.signature),
                )
            )
        case EncryptedInput():
            return pb.ClientFrame(
                encrypted_input=pb.EncryptedInput(
                    input_digest=_hash(message.input_digest, "input_digest"),
                    total_bytes=ranged(message.total_bytes, 1, MAX_BYTES, "total_bytes"),
                    signature=_signature(message.signature),
                )
            )
        case DecryptorKey():
            ranged(len(message.public_key), 1, MAX_KEY, "length of a public key")
            key = pb.DecryptorKey(public_key=message.public_key, signature=_signature(message.signature))
            return pb.ClientFrame(decryptor_key=key)
        case OpenedSum():
            return pb.ClientFrame(
                opened_sum=pb.OpenedSum(
                    input_digest=_hash(message.input_digest, "input_digest"),
                    total_words=ranged(message.total_words, 1, MAX_WORDS, "total_words"),
                    signature=_signature(message.signature),
                )
            )
    assert_never(message)


def _client_message(frame: pb.ClientFrame) -> ClientMessage:
    match frame.WhichOneof("message"):
        case "advertise_keys":
            return _keys(frame.advertise_keys)
        case "share_keys":
            shares = _capped(frame.share_keys.shares, MAX_NEIGHBORS, "shares")
            return ShareKeys(
                tuple(SealedShare(ClientId(s.recipient), s.ciphertext, s.self_hash, s.key_hash) for s in shares),
                frame.share_keys.signature,
            )
        case "masked_input":
            m = frame.masked_input
            return MaskedInput(m.input_digest, m.total_words, id_tuple(m.complaints, "complaints"), m.signature)
        case "consistency_check":
            return ConsistencyCheck(frame.consistency_check.signature)
        case "unmasking_shares":
            answer = frame.unmasking_shares
            return UnmaskingShares(
                tuple((ClientId(s.client), s.share) for s in _capped(answer.self_shares, MAX_NEIGHBORS, "self_shares")),
                tuple((ClientId(s.client), s.share) for s in _capped(answer.key_shares, MAX_NEIGHBORS, "key_shares")),
            )
        case "withdraw":
            return Withdraw(frame.withdraw.code, frame.withdraw.what)
        case "statement":
            return Statement(frame.statement.body, frame.statement.signature)
        case "ledger_rows":
            return LedgerRows(_rows(frame.ledger_rows.rows, "rows"))
        case "input_hash":
            h = frame.input_hash
            return InputHash(h.input_digest, h.total_bytes, id_tuple(h.complaints, "complaints"), h.signature)
        case "encrypted_input":
            e = frame.encrypted_input
            return EncryptedInput(e.input_digest, e.total_bytes, e.signature)
        case "decryptor_key":
            return DecryptorKey(frame.decryptor_key.public_key, frame.decryptor_key.signature)
        case "opened_sum":
            o = frame.opened_sum
            return OpenedSum(o.input_digest, o.total_words, o.signature)
    _nothing("ClientFrame")


# ---- server -> client


def _server_frame(message: ServerMessage) -> pb.ServerFrame:
    match message:
        case Announcement():
            return pb.ServerFrame(
                announcement=pb.Announcement(
                    round=_counter(message.round, "round"),
                    attempt=ranged(message.attempt, 0, MAX_COUNTER, "attempt"),
                    manifest_digest=_hash(message.manifest_digest, "manifest_digest"),
                    roster_root=_hash(message.roster_root, "roster_root"),
                    model_digest=_hash(message.model_digest, "model_digest"),
                    cohort=id_tuple(message.cohort, "cohort"),
                    ledger_seq=ranged(message.ledger_seq, 0, MAX_SEQ, "ledger_seq"),
                )
            )
        case KeyList():
            _ascending(message.entries, lambda e: e.client, "entries", MAX_NEIGHBORS)
            return pb.ServerFrame(
                key_list=pb.KeyList(
                    advertised=_bits(message.advertised),
                    entries=[
                        pb.KeyEntry(client=e.client, keys=_keys_pb(e.keys), path=_path(e.path)) for e in message.entries
                    ],
                    segment=_rows_pb(message.segment, "segment"),
                    decryptor_key=_key(message.decryptor_key),
                    decryptor_signature=sized(message.decryptor_signature, (0, 64), "decryptor_signature"),
                )
            )
        case PeerShares():
            _ascending(message.shares, lambda s: s.dealer, "shares", MAX_NEIGHBORS)
            shares = [_dealt_pb(share) for share in message.shares]
            return pb.ServerFrame(peer_shares=pb.PeerShares(shared=_bits(message.shared), shares=shares))
        case SurvivorNotice():
            notice = pb.SurvivorNotice(masked=_bits(message.masked), row=_row_pb(message.row))
            return pb.ServerFrame(survivor_notice=notice)
        case Certificate():
            return pb.ServerFrame(certificate=pb.Certificate(signatures=_signatures_pb(message.signatures)))
        case RoundResult():
            return pb.ServerFrame(
                round_result=pb.RoundResult(
                    round=_counter(message.round, "round"),
                    attempt=ranged(message.attempt, 0, MAX_COUNTER, "attempt"),
                    included=id_tuple(message.included, "included"),
                    aggregate_digest=_hash(message.aggregate_digest, "aggregate_digest"),
                    model_digest=_hash(message.model_digest, "model_digest"),
                )
            )
        case AttemptAborted():
            return pb.ServerFrame(
                attempt_aborted=pb.AttemptAborted(
                    round=_counter(message.round, "round"),
                    attempt=ranged(message.attempt, 0, MAX_COUNTER, "attempt"),
                    phase=_phase(message.phase),
                    reason=short_text(message.reason, "reason"),
                )
            )
        case Finished():
            return pb.ServerFrame(finished=pb.Finished(rounds=_counter(message.rounds, "rounds")))
        case InputHashes():
            listed = pb.InputHashes(listed=_bits(message.listed), digests=_digests(message.digests))
            return pb.ServerFrame(input_hashes=listed)
        case OpeningRequest():
            return pb.ServerFrame(
                opening_request=pb.OpeningRequest(
                    advertised=_bits(message.advertised),
                    tree_root=_hash(message.tree_root, "tree_root"),
                    shared=_bits(message.shared),
                    listed=_bits(message.listed),
                    digests=_digests(message.digests),
                    masked=_bits(message.masked),
                    ledger_seq=ranged(message.ledger_seq, 1, MAX_SEQ, "ledger_seq"),
                    ledger_head=_hash(message.ledger_head, "ledger_head"),
                    signatures=_signatures_pb(message.signatures),
                )
            )
    assert_never(message)


def _server_message(frame: pb.ServerFrame) -> ServerMessage:
    match frame.WhichOneof("message"):
        case "announcement":
            a = frame.announcement
            cohort = id_tuple(a.cohort, "cohort")
            digests = (a.manifest_digest, a.roster_root, a.model_digest)
            return Announcement(a.round, a.attempt, *digests, cohort, a.ledger_seq)
        case "key_list":
            entries = _capped(frame.key_list.entries, MAX_NEIGHBORS, "entries")
            return KeyList(
                frame.key_list.advertised,
                tuple(
                    KeyEntry(ClientId(e.client), _keys(e.keys), tuple(_capped(e.path, MAX_PATH, "path")))
                    for e in entries
                ),
                _rows(frame.key_list.segment, "segment"),
                frame.key_list.decryptor_key,
                frame.key_list.decryptor_signature,
            )
        case "peer_shares":
            shares = _capped(frame.peer_shares.shares, MAX_NEIGHBORS, "shares")
            return PeerShares(frame.peer_shares.shared, tuple(map(_dealt, shares)))
        case "survivor_notice":
            return SurvivorNotice(frame.survivor_notice.masked, _row(frame.survivor_notice.row))
        case "certificate":
            return Certificate(_signatures(frame.certificate.signatures))
        case "round_result":
            r = frame.round_result
            included = id_tuple(r.included, "included")
            return RoundResult(r.round, r.attempt, included, r.aggregate_digest, r.model_digest)
        case "attempt_aborted":
            e = frame.attempt_aborted
            return AttemptAborted(e.round, e.attempt, Phase(_phase(e.phase)), e.reason)
        case "finished":
            return Finished(frame.finished.rounds)
        case "input_hashes":
            return InputHashes(frame.input_hashes.listed, frame.input_hashes.digests)
        case "opening_request":
            o = frame.opening_request
            return OpeningRequest(
                advertised=o.advertised,
                tree_root=o.tree_root,
                shared=o.shared,
                listed=o.listed,
                digests=o.digests,
                masked=o.masked,
                ledger_seq=o.ledger_seq,
                ledger_head=o.ledger_head,
                signatures=_signatures(o.signatures),
            )
    _nothing("ServerFrame")


# ---- parts


def _hash(data: bytes, name: str) -> bytes:
    return sized(data, 32, name)


def _signature(data: bytes) -> bytes:
    return sized(data, 64, "signature")


def _counter(value: int, name: str) -> int:
    return ranged(value, 1, MAX_COUNTER, name)


def _phase(value: int) -> int:
    return ranged(value, 0, max(Phase), "phase")


def _key(data: bytes) -> bytes:
    ranged(len(data), 0, MAX_KEY, "length of a public key")
    return data


def _digests(data: bytes) -> bytes:
    ranged(len(data), 1, HASH_BYTES * MAX_CLIENTS, "bytes of the digests")
    return data


def _signatures_pb(entries: Sequence[tuple[ClientId, bytes]]) -> list[pb.SignatureEntry]:
    _ascending(entries, lambda s: s[0], "signatures")
    return [pb.SignatureEntry(client=c, signature=_signature(s)) for c, s in entries]


def _signatures(entries: Sequence[pb.SignatureEntry]) -> tuple[tuple[ClientId, bytes], ...]:
    return tuple((ClientId(s.client), s.signature) for s in _capped(entries, MAX_CLIENTS, "signatures"))


def _bits(data: bytes) -> bytes:
    ranged(len(data), 1, MAX_CLIENTS // 8, "bytes of a bitmap")
    return data


def _ascending(items: Sequence[T], client: Callable[[T], int], name: str, limit: int = MAX_CLIENTS) -> None:
    id_tuple([client(item) for item in _capped(items, limit, name)], name)


def _keys_pb(message: AdvertiseKeys) -> pb.AdvertiseKeys:
    return pb.AdvertiseKeys(
        encryption_pk=sized(message.encryption_pk, 32, "encryption_pk"),
        masking_pk=sized(message.masking_pk, 32, "masking_pk"),
        commitment=_hash(message.commitment, "commitment"),
        ledger_seq=ranged(message.ledger_seq, 0, MAX_SEQ, "ledger_seq"),
        ledger_head=_hash(message.ledger_head, "ledger_head"),
        signature=_signature(message.signature),
    )


def _keys(m: pb.AdvertiseKeys) -> AdvertiseKeys:
    return AdvertiseKeys(m.encryption_pk, m.masking_pk, m.commitment, m.ledger_seq, m.ledger_head, m.signature)


def _row_pb(row: LedgerRow) -> pb.LedgerRow:
    return pb.LedgerRow(
        seq=ranged(row.seq, 1, MAX_SEQ, "seq"),
        round=_counter(row.round, "round"),
        attempt=ranged(row.attempt, 0, MAX_COUNTER, "attempt"),
        ctx=_hash(row.ctx, "ctx"),
        root_u2=_hash(row.root_u2, "root_u2"),
        hash_u3=_hash(row.hash_u3, "hash_u3"),
        signature=_signature(row.signature),
    )


def _row(m: pb.LedgerRow) -> LedgerRow:
    return LedgerRow(m.seq, m.round, m.attempt, m.ctx, m.root_u2, m.hash_u3, m.signature)


def _rows_pb(rows: Sequence[LedgerRow], name: str) -> list[pb.LedgerRow]:
    return [_row_pb(row) for row in _capped(rows, MAX_SEGMENT, name)]


def _rows(rows: Sequence[pb.LedgerRow], name: str) -> tuple[LedgerRow, ...]:
    return tuple(_row(row) for row in _capped(rows, MAX_SEGMENT, name))


def _path(path: Sequence[bytes]) -> list[bytes]:
    return [_hash(node, "path") for node in _capped(path, MAX_PATH, "path")]


def _sealed_pb(share: SealedShare) -> pb.SealedShare:
    return pb.SealedShare(
        recipient=share.recipient,
        ciphertext=sized(share.ciphertext, _CIPHERTEXT_BYTES, "ciphertext"),
        self_hash=_hash(share.self_hash, "self_hash"),
        key_hash=_hash(share.key_hash, "key_hash"),
    )


def _dealt_pb(share: DealtShare) -> pb.DealtShare:
    return pb.DealtShare(
        dealer=share.dealer,
        ciphertext=sized(share.ciphertext, _CIPHERTEXT_BYTES, "ciphertext"),
        self_hash=_hash(share.self_hash, "self_hash"),
        key_hash=_hash(share.key_hash, "key_hash"),
        path=_path(share.path),
        signature=_signature(share.signature),
    )


def _dealt(m: pb.DealtShare) -> DealtShare:
    path = tuple(_capped(m.path, MAX_PATH, "path"))
    return DealtShare(ClientId(m.dealer), m.ciphertext, m.self_hash, m.key_hash, path, m.signature)


def _share_entries(entries: tuple[tuple[ClientId, bytes], ...], name: str) -> list[pb.ShareEntry]:
    _ascending(entries, lambda e: e[0], name, MAX_NEIGHBORS)
    return [pb.ShareEntry(client=client, share=sized(share, 33, "share")) for client, share in entries]
