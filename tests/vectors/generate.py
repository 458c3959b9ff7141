"""Write the test vectors: `python tests/vectors/generate.py [FOLDER]`. The same bytes on every machine and every run.

tests/test_vectors.py reads the files and recomputes them with code of its own. See README.md here for the schema.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from simulator import Federation, Simulation, insecure_rng, make_manifest, random_values  # noqa: E402

from protocol import messages  # noqa: E402
from protocol.effects import Released  # noqa: E402
from secagg import aead, kdf, key_agreement, shamir  # noqa: E402
from secagg.encoding import SlotEncoding  # noqa: E402
from secagg.errors import SecAggError  # noqa: E402
from secagg.masking import InputDigest, frame  # noqa: E402
from secagg.params import SecAggParams  # noqa: E402
from secagg.prg import Stream  # noqa: E402
from secagg.transcript import bitmap, digest, encode, from_bitmap, id_list, merkle_path, merkle_root  # noqa: E402
from secagg.types import ClientId, Phase, Secret  # noqa: E402

Vector = dict[str, Any]
CTX, ROOT = bytes(range(32)), bytes(range(32, 64))
A, B = ClientId(2), ClientId(300)


def hexed(secret: Secret | bytes) -> str:
    return (bytes(secret.view) if isinstance(secret, Secret) else secret).hex()


def good(operation: str, given: Vector, gives: Any) -> Vector:
    return {"operation": operation, "given": given, "gives": gives, "success": True}


def bad(operation: str, given: Vector, why: str, act: Callable[[], object]) -> Vector:
    """One fault, checked here to be one: the operation must refuse it."""
    try:
        refused = act() is None
    except SecAggError:
        refused = True
    if not refused:
        raise AssertionError(f"not refused: {operation}: {why}")
    return {"operation": operation, "given": given, "why": why, "success": False}


def transcript() -> list[Vector]:
    cases: list[tuple[bytes, list[bytes | int]]] = [
        (b"label", []),
        (b"label", [b""]),
        (b"label", [b"ab", b"c"]),
        (b"label", [b"a", b"bc"]),
        (b"label", [0, 2**64 - 1]),
        (b"", [b"\x00" * 40, 1]),
    ]
    out = []
    for label, fields in cases:
        given = {"label": label.hex(), "fields": [f if isinstance(f, int) else f.hex() for f in fields]}
        given["fields"] = [str(f) if isinstance(f, int) else {"hex": f} for f in given["fields"]]
        out.append(good("encode", given, encode(label, *fields).hex()))
        out.append(good("digest", given, digest(label, *fields).hex()))
    within = [1, 2, 3, 5, 8, 13, 21, 34, 55]
    for members in ([], [1], [55], [2, 3, 34], within):
        out.append(good("bitmap", {"members": members, "within": within}, bitmap(members, within).hex()))
    out.append(good("id_list", {"ids": [3, 1, 65535]}, id_list([3, 1, 65535]).hex()))
    for count in (1, 2, 3, 5, 8):
        leaves = [digest(b"leaf", i) for i in range(count)]
        paths = [[p.hex() for p in merkle_path(leaves, i)] for i in range(count)]
        out.append(good("merkle", {"count": count}, {"root": merkle_root(leaves).hex(), "paths": paths}))
    return out


def bad_bitmap() -> list[Vector]:
    within = [1, 2, 3, 5, 8, 13, 21, 34, 55]
    faults = {"too short": "ff", "too long": "ff8000", "stray bit": "ff81", "empty": ""}
    return [
        bad("from_bitmap", {"bits": bits, "within": within}, why, lambda b=bits: from_bitmap(bytes.fromhex(b), within))
        for why, bits in faults.items()
    ]


def keys() -> list[Vector]:
    secret = Secret(bytes(range(64, 96)))
    base = {"secret": hexed(secret), "ctx": CTX.hex()}
    pair = {**base, "root": ROOT.hex(), "one": A, "other": B}
    out = [
        good("share_key", pair, hexed(kdf.share_key(secret, CTX, ROOT, A, B))),
        good("share_key", {**pair, "one": B, "other": A}, hexed(kdf.share_key(secret, CTX, ROOT, B, A))),
        good("pairwise_seed", pair, hexed(kdf.pairwise_seed(secret, CTX, ROOT, A, B))),
        good("pairwise_seed", {**pair, "one": B, "other": A}, hexed(kdf.pairwise_seed(secret, CTX, ROOT, B, A))),
        good("self_mask_key", {**base, "client": A}, hexed(kdf.self_mask_key(secret, CTX, A))),
    ]
    for i in range(3):
        one, other = (key_agreement.generate(insecure_rng((name, i))) for name in "ab")
        peer = key_agreement.public_key(other)
        out.append(good("public_key", {"private": hexed(other)}, peer.hex()))
        given = {"private": hexed(one), "peer": peer.hex()}
        out.append(good("agree", given, hexed(key_agreement.agree(one, peer))))
    return out


SMALL_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def bad_keys() -> list[Vector]:
    private = key_agreement.generate(insecure_rng("mine"))
    peer = key_agreement.public_key(key_agreement.generate(insecure_rng("peer")))
    faults = [("small order", p) for p in SMALL_ORDER]
    faults += [("31 bytes", peer.hex()[:-2]), ("33 bytes", peer.hex() + "00"), ("empty", "")]
    out = [
        bad(
            "agree",
            {"private": hexed(private), "peer": p},
            why,
            lambda p=p: key_agreement.agree(private, bytes.fromhex(p)),
        )
        for why, p in faults
    ]
    for why, key in (
        ("top bit set", peer[:31] + bytes([peer[31] | 0x80])),
        ("2^255 - 19 + 9", (2**255 - 19 + 9).to_bytes(32, "little")),
    ):
        out.append(bad("canonical_key", {"peer": key.hex()}, why, lambda k=key: key_agreement.is_canonical(k) or None))
    return out


def sealed() -> list[Vector]:
    key, text, associated = Secret(bytes(range(32))), bytes(range(66)), b"associated data"
    given = {"key": hexed(key), "associated_data": associated.hex()}
    return [
        good("seal", {**given, "plaintext": text.hex()}, aead.seal(key, text, associated).hex()),
        good("seal", {**given, "plaintext": ""}, aead.seal(key, b"", associated).hex()),
    ]


def bad_sealed() -> list[Vector]:
    key, associated = Secret(bytes(range(32))), b"associated data"
    box = aead.seal(key, bytes(range(66)), associated)
    faults = {
        "first bit": (bytes([box[0] ^ 1]) + box[1:], associated),
        "tag": (box[:-1] + bytes([box[-1] ^ 1]), associated),
        "cut": (box[:-1], associated),
        "longer": (box + b"\x00", associated),
        "empty": (b"", associated),
        "other associated data": (box, b"Associated data"),
    }
    return [
        bad(
            "open",
            {"key": hexed(key), "ciphertext": c.hex(), "associated_data": a.hex()},
            why,
            lambda c=c, a=a: aead.open_(key, c, a),
        )
        for why, (c, a) in faults.items()
    ]


def keystream() -> list[Vector]:
    out = []
    for first, count in ((0, 8), (2, 3), (65536, 5)):
        seed = Secret(bytes(range(100, 132)))
        given = {"seed": hexed(seed), "first_word": first, "count": count}
        out.append(good("words", given, [f"{w:016x}" for w in Stream(seed, first).words(count).tolist()]))
    return out


def sharing() -> list[Vector]:
    out = []
    for threshold, xs in ((1, [1]), (2, [1, 2, 3]), (4, [1, 2, 3, 4, 5]), (3, [7, 300, 65535])):
        secret = Secret(bytes(range(threshold, threshold + 32)))
        given = {"secret": hexed(secret), "threshold": threshold, "xs": xs, "rng": f"shamir {threshold}"}
        shares = shamir.split(secret, threshold, xs, insecure_rng(given["rng"]))
        out.append(good("split", given, {str(x): hexed(s) for x, s in shares.items()}))
    return out


def bad_sharing() -> list[Vector]:
    fine = {str(x): s for x, s in shamir.split(Secret(bytes(32)), 3, [1, 2, 3], insecure_rng("bad")).items()}
    texts = {x: hexed(s) for x, s in fine.items()}
    faults = {
        "too few": {"1": texts["1"], "2": texts["2"]},
        "share is p": {**texts, "2": shamir.PRIME.to_bytes(33, "big").hex()},
        "share of 32 bytes": {**texts, "2": texts["2"][2:]},
        "share of 34 bytes": {**texts, "2": "00" + texts["2"]},
        "secret of 257 bits": {x: (2**256).to_bytes(33, "big").hex() for x in texts},
    }
    return [
        bad(
            "reconstruct",
            {"shares": shares, "threshold": 3},
            why,
            lambda shares=shares: shamir.reconstruct({int(x): Secret(bytes.fromhex(s)) for x, s in shares.items()}, 3),
        )
        for why, shares in faults.items()
    ]


def slots() -> list[Vector]:
    out = []
    for per_word, bound in ((2, 1000), (3, 100), (4, 10)):
        encoding = SlotEncoding(per_word, 16, bound, 5)
        values = [-bound, bound, 0, 1, -1, bound // 2, -(bound // 3)]
        given = {"slots_per_word": per_word, "scale": 16, "bound": bound, "max_clients": 5, "values": values}
        packed = encoding.pack(np.array(values, dtype=np.int64))
        out.append(good("pack", given, [f"{w:016x}" for w in packed.tolist()]))
    encoding = SlotEncoding(3, 16, 100, 5)
    reals = [0.0, 0.03125, -0.03125, 6.25, -6.25, 3.14159]
    random_words = Stream(Secret(bytes(32))).words(len(reals))
    given = {
        "slots_per_word": 3,
        "scale": 16,
        "bound": 100,
        "max_clients": 5,
        "x": [repr(x) for x in reals],
        "random_words": [f"{w:016x}" for w in random_words.tolist()],
    }
    out.append(good("quantize", given, encoding.quantize(np.array(reals), random_words).tolist()))
    return out


def bad_slots() -> list[Vector]:
    base = {"slots_per_word": 3, "scale": 16, "bound": 100, "max_clients": 5}
    encoding = SlotEncoding(**base)
    out = []
    for why, words, length, count in (
        ("slot above 2 * bound * count", [201], 3, 1),
        ("stray bit 63", [1 << 63], 3, 1),
        ("unused slot", [1 << 21], 1, 1),
        ("too many clients", [0], 3, 6),
        ("no client", [0], 3, 0),
        ("a word too many", [0, 0], 3, 1),
    ):
        given = {**base, "words": [f"{w:016x}" for w in words], "length": length, "count": count}
        array = np.array(words, dtype=np.uint64)
        out.append(bad("unpack", given, why, lambda a=array, n=length, c=count: encoding.unpack(a, n, c)))
    for why, value in (("above the bound", 101), ("NaN as an integer", -(2**63))):
        given = {**base, "values": [str(value)]}
        out.append(bad("pack", given, why, lambda v=value: encoding.pack(np.array([v], dtype=np.int64))))
    for text in ("nan", "inf", "6.3", "-1e300"):
        out.append(
            bad(
                "quantize",
                {**base, "x": [text], "random_words": ["0" * 16]},
                "not representable",
                lambda t=text: encoding.quantize(np.array([float(t)]), np.zeros(1, dtype=np.uint64)),
            )
        )
    none = {**base, "bound": 209716}
    out.append(bad("encoding", none, "no headroom: 5 * 2 * 209716 > 2^21 - 1", lambda: SlotEncoding(**none)))
    return out


def parameters(n: int, c: int, dropouts: int, cohort: int) -> SecAggParams:
    return SecAggParams(n, c, dropouts, cohort, 10, SlotEncoding(3, 16, 100, 256), 16)


def thresholds() -> list[Vector]:
    out = []
    for n, c, dropouts in (
        (3, 0, 0),
        (3, 1, 0),
        (4, 1, 1),
        (5, 0, 2),
        (5, 1, 1),
        (10, 3, 3),
        (100, 33, 33),
        (256, 85, 85),
    ):
        cohort = max(c, 1) + 2
        p = parameters(n, c, dropouts, cohort)
        given = {"num_clients": n, "max_corrupt": c, "max_dropouts": dropouts, "min_cohort": cohort}
        gives = {"threshold": p.threshold, "quorum": p.quorum, "required": p.required, "digest": p.digest().hex()}
        out.append(good("params", given, gives))
    return out


def bad_params() -> list[Vector]:
    out = []
    for why, (n, c, dropouts, cohort) in {
        "two clients": (2, 0, 0, 2),
        "257 clients": (257, 0, 0, 3),
        "all but one corrupt": (5, 4, 0, 5),
        "one dropout too many": (5, 1, 2, 3),
        "a cohort with one honest client": (5, 2, 0, 3),
        "min_cohort above n": (5, 1, 0, 6),
        "negative C": (5, -1, 0, 3),
    }.items():
        given = {"num_clients": n, "max_corrupt": c, "max_dropouts": dropouts, "min_cohort": cohort}
        out.append(bad("params", given, why, lambda a=(n, c, dropouts, cohort): parameters(*a)))
    return out


def commitments() -> list[Vector]:
    seed, share = Secret(bytes(range(32))), Secret(bytes(range(33)))
    base = {"ctx": CTX.hex()}
    hasher = InputDigest()
    hasher.update(bytes(range(128)))
    row = messages.LedgerRow(1, CTX, ROOT, bytes(32), b"")
    genesis = messages.ledger_genesis(ROOT)
    return [
        good(
            "seed_commitment", {**base, "client": A, "seed": hexed(seed)}, messages.seed_commitment(CTX, A, seed).hex()
        ),
        *(
            good(
                "share_hash",
                {**base, "dealer": A, "holder": B, "kind": kind, "share": hexed(share)},
                messages.share_hash(CTX, A, B, kind, share).hex(),
            )
            for kind in (messages.SELF_SHARE, messages.KEY_SHARE)
        ),
        good("input_digest", {"bytes": bytes(range(128)).hex()}, hasher.digest().hex()),
        good("ledger_genesis", {"manifest_digest": ROOT.hex()}, genesis.hex()),
        good(
            "ledger_head",
            {"previous": genesis.hex(), "seq": 1, "ctx": CTX.hex(), "root_u2": ROOT.hex(), "hash_u3": "00" * 32},
            row.head(genesis).hex(),
        ),
    ]


def attempt() -> Vector:
    """A whole attempt of five clients; client 4 uploads nothing. Private values stand beside what they lead to."""
    federation = Federation.create(make_manifest())
    values = random_values(federation.manifest, range(1, 6), "vectors")
    simulation = Simulation(federation, values, {ClientId(4): Phase.MASKED_INPUT}, seed="vectors")
    private: dict[ClientId, Vector] = {}
    deliver = simulation._deliver

    def record(client: ClientId, message: object) -> None:
        deliver(client, message)  # type: ignore[arg-type]
        if isinstance(message, messages.Announcement):
            state = simulation.clients[client]._state
            private[client] = {
                name: hexed(getattr(state, name)) for name in ("encryption_sk", "masking_sk", "self_seed")
            }

    simulation._deliver = record  # type: ignore[method-assign]
    outcome = simulation.run()
    assert isinstance(outcome, Released)
    server = simulation.server
    row = server.ledger.rows[-1]
    clients = {}
    for client in sorted(simulation.clients):
        said = {type(m).__name__: m for c, m in simulation.view if c == client}
        advert = said["AdvertiseKeys"]
        entry: Vector = {
            "identity_seed": federation.client_keys[client].to_bytes().hex(),
            **private[client],
            "values": values[client].tolist(),
            "framed": frame(values[client], server.params).astype("<u8").tobytes().hex(),
            "AdvertiseKeys": {
                name: getattr(advert, name).hex()
                for name in ("encryption_pk", "masking_pk", "commitment", "ledger_head", "signature")
            },
            "ShareKeys": {
                "shares": [
                    {
                        "recipient": s.recipient,
                        "ciphertext": s.ciphertext.hex(),
                        "self_hash": s.self_hash.hex(),
                        "key_hash": s.key_hash.hex(),
                    }
                    for s in said["ShareKeys"].shares
                ],
                "signature": said["ShareKeys"].signature.hex(),
            },
        }
        if client in simulation.uploads:
            entry["MaskedInput"] = {
                "input_digest": said["MaskedInput"].input_digest.hex(),
                "signature": said["MaskedInput"].signature.hex(),
                "words": simulation.uploads[client].astype("<u8").tobytes().hex(),
            }
            entry["ConsistencyCheck"] = {"signature": said["ConsistencyCheck"].signature.hex()}
            entry["UnmaskingShares"] = {
                kind: {str(d): share.hex() for d, share in getattr(said["UnmaskingShares"], kind)}
                for kind in ("self_shares", "key_shares")
            }
        clients[str(client)] = entry
    return {
        "operation": "attempt",
        "success": True,
        "manifest": federation.manifest.to_bytes().decode(),
        "manifest_digest": federation.manifest.digest().hex(),
        "roster": federation.roster.to_bytes().decode(),
        "roster_root": federation.roster.root().hex(),
        "server_identity_seed": federation.server_key.to_bytes().hex(),
        "round": 1,
        "attempt": 0,
        "model_digest": "00" * 32,
        "cohort": [1, 2, 3, 4, 5],
        "threshold": server.params.threshold,
        "ctx": server.ctx.hex(),
        "root_u1": server._root_u1.hex(),
        "root_u2": server._root_u2.hex(),
        "hash_u3": server._hash_u3.hex(),
        "masked": list(outcome.masked),
        "ledger_head": server.ledger.head.hex(),
        "ledger_row_signature": row.signature.hex(),
        "clients": clients,
        "total": outcome.total.tolist(),
    }


FILES: dict[str, Callable[[], Any]] = {
    "transcript": transcript,
    "bad_bitmap": bad_bitmap,
    "keys": keys,
    "bad_keys": bad_keys,
    "aead": sealed,
    "bad_aead": bad_sealed,
    "prg": keystream,
    "shamir": sharing,
    "bad_shamir": bad_sharing,
    "slots": slots,
    "bad_slots": bad_slots,
    "params": thresholds,
    "bad_params": bad_params,
    "commitments": commitments,
    "attempt": attempt,
}


def render(name: str) -> bytes:
    """The exact bytes of one file."""
    return (json.dumps(FILES[name](), indent=1, sort_keys=True) + "\n").encode()


def main(folder: Path) -> None:
    for name in FILES:
        (folder / f"{name}.json").write_bytes(render(name))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
