"""Frames that a decoder must refuse before anything looks at their meaning: SPEC 9.1, one limit or spelling each."""

from collections.abc import Callable
from typing import Any

from vectors.attempts import Vector, played
from vectors.primitives import bad

from protocol._pb import secagg_pb2 as pb
from protocol.codec import decode_client, decode_server, encode_client
from secagg.types import Phase

Edit = Callable[[Any], object]
CLIENT: dict[str, tuple[str, Edit]] = {
    "a key of 31 bytes": ("AdvertiseKeys", lambda m: _set(m.advertise_keys, masking_pk=bytes(31))),
    "a commitment of 33 bytes": ("AdvertiseKeys", lambda m: _set(m.advertise_keys, commitment=bytes(33))),
    "a ledger head of no bytes": ("AdvertiseKeys", lambda m: _set(m.advertise_keys, ledger_head=b"")),
    "a ledger sequence number of 2^53": ("AdvertiseKeys", lambda m: _set(m.advertise_keys, ledger_seq=2**53)),
    "a signature of 63 bytes": ("AdvertiseKeys", lambda m: _set(m.advertise_keys, signature=bytes(63))),
    "a signature of 65 bytes": ("ConsistencyCheck", lambda m: _set(m.consistency_check, signature=bytes(65))),
    "a ciphertext of 81 bytes": ("ShareKeys", lambda m: _set(m.share_keys.shares[0], ciphertext=bytes(81))),
    "a share hash of 31 bytes": ("ShareKeys", lambda m: _set(m.share_keys.shares[0], self_hash=bytes(31))),
    "recipients descending": ("ShareKeys", lambda m: m.share_keys.shares.reverse()),
    "recipient 0": ("ShareKeys", lambda m: _set(m.share_keys.shares[0], recipient=0)),
    "recipient 65536": ("ShareKeys", lambda m: _set(m.share_keys.shares[-1], recipient=65536)),
    "a recipient twice": ("ShareKeys", lambda m: _set(m.share_keys.shares[1], recipient=1)),
    "no words": ("MaskedInput", lambda m: _set(m.masked_input, total_words=0)),
    "2^40 + 1 words": ("MaskedInput", lambda m: _set(m.masked_input, total_words=2**40 + 1)),
    "complaints descending": ("MaskedInput", lambda m: m.masked_input.complaints.extend([5, 3])),
    "a complaint twice": ("MaskedInput", lambda m: m.masked_input.complaints.extend([5, 5])),
    "a share of 32 bytes": ("UnmaskingShares", lambda m: _set(m.unmasking_shares.self_shares[0], share=bytes(32))),
    "a share of 34 bytes": ("UnmaskingShares", lambda m: _set(m.unmasking_shares.key_shares[0], share=bytes(34))),
    "dealers descending": ("UnmaskingShares", lambda m: m.unmasking_shares.self_shares.reverse()),
}
SERVER: dict[str, tuple[str, Edit]] = {
    "round 0": ("Announcement", lambda m: _set(m.announcement, round=0)),
    "round 2^31": ("Announcement", lambda m: _set(m.announcement, round=2**31)),
    "attempt 2^31": ("Announcement", lambda m: _set(m.announcement, attempt=2**31)),
    "a model digest of 16 bytes": ("Announcement", lambda m: _set(m.announcement, model_digest=bytes(16))),
    "cohort descending": ("Announcement", lambda m: m.announcement.cohort.append(1)),
    "an empty bitmap of U1": ("KeyList", lambda m: _set(m.key_list, advertised=b"")),
    "a bitmap of 1251 bytes": ("KeyList", lambda m: _set(m.key_list, advertised=bytes(1251))),
    "a path of 15 hashes": ("KeyList", lambda m: m.key_list.entries[0].path.extend([bytes(32)] * 15)),
    "a path with a hash of 31 bytes": ("KeyList", lambda m: m.key_list.entries[0].path.append(bytes(31))),
    "entries descending": ("KeyList", lambda m: m.key_list.entries.reverse()),
    "a key entry without keys": ("KeyList", lambda m: m.key_list.entries[0].ClearField("keys")),
    "a ledger row of number 0": ("SurvivorNotice", lambda m: _set(m.survivor_notice.row, seq=0)),
    "a ledger row of round 0": ("SurvivorNotice", lambda m: _set(m.survivor_notice.row, round=0)),
    "a ledger row with a ctx of 31 bytes": ("SurvivorNotice", lambda m: _set(m.survivor_notice.row, ctx=bytes(31))),
    "a notice without its row": ("SurvivorNotice", lambda m: m.survivor_notice.ClearField("row")),
    "an empty bitmap of U3": ("SurvivorNotice", lambda m: _set(m.survivor_notice, masked=b"")),
    "dealers out of order": ("PeerShares", lambda m: m.peer_shares.shares.reverse()),
    "signers descending": ("Certificate", lambda m: m.certificate.signatures.reverse()),
    "a signer's signature of 0 bytes": ("Certificate", lambda m: _set(m.certificate.signatures[0], signature=b"")),
}
GOOD = bytes.fromhex("22420a40") + bytes(64)  # ConsistencyCheck with a signature of zeros
SPELLINGS = {
    "nothing": b"",
    "an empty message": bytes.fromhex("2200"),
    "an unknown field of the frame": GOOD + bytes.fromhex("7800"),
    "an unknown field inside": bytes.fromhex("2244") + GOOD[2:] + bytes.fromhex("1001"),
    "the field twice": GOOD + GOOD,
    "two messages": bytes.fromhex("3200") + GOOD,
    "a padded length": bytes.fromhex("22c200") + GOOD[2:],
    "a length that ends early": GOOD[:-1],
    "one byte too many": GOOD + b"\x00",
    "a group": bytes.fromhex("0b0c"),
    "a default written out": bytes.fromhex("1a0a100022060a0431323334"),
}


def bad_frames() -> list[Vector]:
    """Every vector names the direction of its frame; the error is the same for all."""
    simulation, _, received = played(Phase.MASKED_INPUT)
    sent = {type(m).__name__: encode_client(m) for c, m in simulation.view if c == 1}
    out = []
    for why, (kind, edit) in CLIENT.items():
        out.append(_refused("client", why, _edited(pb.ClientFrame(), sent[kind], edit)))
    for why, (kind, edit) in SERVER.items():
        out.append(_refused("server", why, _edited(pb.ServerFrame(), bytes.fromhex(received[kind]), edit)))
    decode_client(GOOD)
    out += [_refused("client", why, data) for why, data in SPELLINGS.items()]
    return out


def _refused(who: str, why: str, data: bytes) -> Vector:
    decode = decode_client if who == "client" else decode_server
    return bad("decode", {"from": who, "frame": data.hex()}, why, lambda: decode(data))


def _edited(frame: Any, data: bytes, edit: Edit) -> bytes:
    frame.ParseFromString(data)
    edit(frame)
    changed: bytes = frame.SerializeToString(deterministic=True)
    assert changed != data
    return changed


def _set(message: Any, **fields: object) -> None:
    for name, value in fields.items():
        setattr(message, name, value)
