"""Vectors of single operations: hashes, keys, masks, shares, slots, parameters, graphs. See README.md here."""

from collections.abc import Callable
from typing import Any

import numpy as np
from simulator import insecure_rng

from protocol import messages
from secagg import aead, kdf, key_agreement, shamir
from secagg.encoding import SlotEncoding
from secagg.errors import SecAggError
from secagg.graph import CompleteGraph, RingGraph
from secagg.masking import InputDigest, frame, unframe
from secagg.params import Graph, SecAggParams
from secagg.prg import Stream
from secagg.transcript import MerkleTree, bitmap, digest, encode, from_bitmap, id_list, merkle_climb
from secagg.types import ClientId, Secret

Vector = dict[str, Any]
CTX, ROOT = bytes(range(32)), bytes(range(32, 64))
A, B = ClientId(2), ClientId(300)


def hexed(secret: Secret | bytes) -> str:
    return (bytes(secret.view) if isinstance(secret, Secret) else secret).hex()


def good(operation: str, given: Vector, gives: Any) -> Vector:
    return {"operation": operation, "given": given, "gives": gives, "success": True}


def bad(operation: str, given: Vector, why: str, act: Callable[[], object]) -> Vector:
    """One fault, checked here to be one: the operation must refuse it with an error, or give nothing."""
    try:
        given_back = act()
    except SecAggError as error:
        how = {"error": type(error).__name__, "code": error.code}
    else:
        if given_back is not None:
            raise AssertionError(f"not refused: {operation}: {why}")
        how = {"error": None}
    return {"operation": operation, "given": given, "why": why, "success": False, **how}


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
        tree = MerkleTree(leaves)
        paths = [[p.hex() for p in tree.path(i)] for i in range(count)]
        out.append(good("merkle", {"count": count}, {"root": tree.root.hex(), "paths": paths}))
    return out


def bad_bitmap() -> list[Vector]:
    within = (1, 2, 3, 5, 8, 13, 21, 34, 55)
    faults = {"too short": "ff", "too long": "ff8000", "stray bit": "ff81", "empty": ""}
    return [
        bad(
            "from_bitmap",
            {"bits": bits, "within": within},
            why,
            lambda b=bits: from_bitmap(bytes.fromhex(b), tuple(within)),
        )
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
    random = Stream(Secret(bytes(32))).words(len(reals) // 2).view(np.uint32)
    given = {
        "slots_per_word": 3,
        "scale": 16,
        "bound": 100,
        "max_clients": 5,
        "x": [repr(x) for x in reals],
        "random": [f"{w:08x}" for w in random.tolist()],
    }
    out.append(good("quantize", given, encoding.quantize(np.array(reals), random).tolist()))
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
                {**base, "x": [text], "random": ["0" * 8]},
                f"{text} is not representable",
                lambda t=text: encoding.quantize(np.array([float(t)]), np.zeros(1, dtype=np.uint32)),
            )
        )
    none = {**base, "bound": 209716}
    out.append(bad("encoding", none, "no headroom: 5 * 2 * 209716 > 2^21 - 1", lambda: SlotEncoding(**none)))
    return out


def parameters(graph: Graph, n: int, c: int, dropouts: int, cohort: int) -> SecAggParams:
    return SecAggParams(n, c, dropouts, cohort, 10, SlotEncoding(2, 16, 100, 10_000), 16, graph)


def thresholds() -> list[Vector]:
    out = []
    for graph, n, c, dropouts in (
        ("complete", 3, 0, 0),
        ("complete", 3, 1, 0),
        ("complete", 4, 1, 1),
        ("complete", 5, 0, 2),
        ("complete", 5, 1, 1),
        ("complete", 10, 3, 3),
        ("complete", 100, 33, 33),
        ("complete", 256, 85, 85),
        ("ring", 200, 0, 2),
        ("ring", 200, 2, 2),
        ("ring", 200, 10, 10),
        ("ring", 500, 25, 25),
        ("ring", 1000, 50, 50),
        ("ring", 1000, 100, 0),
        ("ring", 10_000, 500, 500),
    ):
        cohort = max(c, 1) + 2
        p = parameters(graph, n, c, dropouts, cohort)
        given = {
            "graph": graph,
            "num_clients": n,
            "max_corrupt": c,
            "max_dropouts": dropouts,
            "min_cohort": cohort,
        }
        gives = {
            name: getattr(p, name)
            for name in (
                "degree",
                "threshold",
                "quorum",
                "max_corrupt_neighbors",
                "required",
                "required_advertised",
            )
        }
        out.append(good("params", given, {**gives, "digest": p.digest().hex()}))
    return out


def bad_params() -> list[Vector]:
    out = []
    for why, (graph, n, c, dropouts, cohort) in {
        "two clients": ("complete", 2, 0, 0, 2),
        "257 clients": ("complete", 257, 0, 0, 3),
        "all but one corrupt": ("complete", 5, 4, 0, 5),
        "one dropout too many": ("complete", 5, 1, 2, 3),
        "a cohort with one honest client": ("complete", 5, 2, 0, 3),
        "min_cohort above n": ("complete", 5, 1, 0, 6),
        "negative C": ("complete", 5, -1, 0, 3),
        "negative D": ("complete", 5, 1, -1, 3),
        "a ring of 199": ("ring", 199, 0, 2, 3),
        "a ring of 10001": ("ring", 10_001, 500, 500, 502),
        "more than half of the ring corrupt": ("ring", 200, 110, 10, 112),
        "half of the ring lost": ("ring", 200, 10, 100, 12),
        "another graph": ("star", 200, 10, 10, 12),
    }.items():
        given = {
            "graph": graph,
            "num_clients": n,
            "max_corrupt": c,
            "max_dropouts": dropouts,
            "min_cohort": cohort,
        }
        arguments = (graph, n, c, dropouts, cohort)
        out.append(bad("params", given, why, lambda a=arguments: parameters(*a)))  # type: ignore[misc]
    return out


def graphs() -> list[Vector]:
    """Who stands where: the order, and for each member its neighbours and the point of each of its holders."""
    out = []
    for name, members, degree in (
        ("complete", [1, 2, 5, 9], None),
        ("ring", [1, 2, 3, 5, 8, 13, 21], 4),
        ("ring", list(range(1, 13)), 6),
        ("ring", [3 * i + 1 for i in range(200)], 10),
    ):
        u1 = tuple(map(ClientId, members))
        if degree is None:
            graph: CompleteGraph | RingGraph = CompleteGraph(u1)
            given: Vector = {"graph": name, "members": members}
            gives: Vector = {}
        else:
            graph = RingGraph(u1, ROOT, degree)
            given = {"graph": name, "members": members, "root_u1": ROOT.hex(), "degree": degree}
            gives = {"order": [int(c) for c in sorted(u1, key=lambda c: graph._position[c])]}  # type: ignore[union-attr]
        shown = u1 if len(u1) < 20 else (*u1[:2], u1[-1])
        gives["neighbors"] = {str(c): list(graph.neighbors(c)) for c in shown}
        gives["points"] = {str(c): {str(h): graph.point(c, h) for h in graph.dealt_to(c)} for c in shown}
        among = u1[::2] if degree is None else tuple(c for c in u1 if c not in u1[1:3])
        gives["fewest_holders"] = graph.fewest_holders(u1, among)
        out.append(good("graph", {**given, "among": list(among)}, gives))
    return out


def roots() -> list[Vector]:
    """root(U1) over leaves of signed advertisements, root(U2), H(U3), and the leaves of dealt shares."""
    cohort = [1, 2, 3, 5, 8, 300]
    adverts = {
        c: messages.AdvertiseKeys(
            *(digest(name, c) for name in (b"a", b"b", b"c")), c, digest(b"d", c), bytes([c % 256]) * 64
        )
        for c in map(ClientId, cohort)
    }
    out = []
    for members in ([1, 2, 3, 5, 8, 300], [2, 5, 300], [8]):
        leaves = {c: messages.advertise_leaf(CTX, ClientId(c), adverts[ClientId(c)]) for c in members}
        tree, bits = MerkleTree(list(leaves.values())), bitmap(members, cohort)
        entries = {
            str(c): {
                name: value if isinstance(value := getattr(adverts[ClientId(c)], name), int) else value.hex()
                for name in ("encryption_pk", "masking_pk", "commitment", "ledger_seq", "ledger_head", "signature")
            }
            for c in members
        }
        gives = {
            "leaves": {str(c): leaf.hex() for c, leaf in leaves.items()},
            "paths": {str(c): [p.hex() for p in tree.path(i)] for i, c in enumerate(members)},
            "root_u1": messages.root_advertised(CTX, bits, tree.root).hex(),
        }
        out.append(good("root_u1", {"ctx": CTX.hex(), "cohort": cohort, "entries": entries}, gives))
    given = {"root_u1": ROOT.hex(), "u1": [1, 2, 3, 5, 8], "u2": [1, 3, 8]}
    out.append(good("root_u2", given, messages.root_shared(ROOT, bitmap([1, 3, 8], [1, 2, 3, 5, 8])).hex()))
    given = {"root_u2": ROOT.hex(), "u2": [1, 3, 8], "u3": [1, 8]}
    out.append(good("hash_u3", given, messages.hash_masked(ROOT, bitmap([1, 8], [1, 3, 8])).hex()))
    sealed_share = messages.SealedShare(B, bytes(range(82)), bytes(32), b"\x01" * 32)
    given = {
        "dealer": A,
        "recipient": B,
        "ciphertext": sealed_share.ciphertext.hex(),
        "self_hash": sealed_share.self_hash.hex(),
        "key_hash": sealed_share.key_hash.hex(),
    }
    out.append(good("envelope_leaf", given, sealed_share.leaf(A).hex()))
    return out


def bad_merkle() -> list[Vector]:
    """Paths of another length than the index and the number of leaves call for."""
    leaves = [digest(b"leaf", i) for i in range(5)]
    tree = MerkleTree(leaves)
    out = []
    for why, index, path in (
        ("too short", 1, tree.path(1)[:-1]),
        ("too long", 1, (*tree.path(1), bytes(32))),
        ("none", 2, ()),
        ("of the leaf that has no sibling at first, given to another", 0, tree.path(4)),
        ("of another, given to the leaf that has no sibling at first", 4, tree.path(0)),
    ):
        given = {"leaf": leaves[index].hex(), "index": index, "count": 5, "path": [p.hex() for p in path]}
        out.append(bad("climb", given, why, lambda i=index, p=path: merkle_climb(leaves[i], i, 5, p)))
    return out


def bad_sum() -> list[Vector]:
    """Unmasked sums that are not to be released."""
    p = SecAggParams(3, 0, 0, 3, 40, SlotEncoding(3, 16, 100, 3), 16)
    clear = sum(frame(np.full(40, v, dtype=np.int64), p) for v in (-1, 0, 7))
    assert unframe(clear, 3, p).tolist() == [6] * 40
    base = {"num_clients": 3, "length": 40, "slots_per_word": 3, "bound": 100, "chunk_words": 16, "count": 3}
    out = []
    for why, index, value in (
        ("first zero word", 0, 1),
        ("last zero word", p.total_words - 1 - (p.total_words - 1) % 16, 1),
        ("a zero word of -1", 0, 2**64 - 1),
        ("one contribution too few", 1, 2),
        ("one contribution too many", 1, 4),
        ("slot above 2 * bound * count", 2, 601),
        ("last slot above 2 * bound * count", 2, 601 << 42),
        ("stray bit 63", 2, 1 << 63),
        ("unused slot", p.total_words - 1, 1 << 42),
    ):
        words = clear.copy()
        words[index] = np.uint64(value)
        given = {**base, "words": [f"{w:016x}" for w in words.tolist()]}
        out.append(bad("unframe", given, why, lambda w=words: unframe(w, 3, p)))
    short = {**base, "words": [f"{w:016x}" for w in clear[:-1].tolist()]}
    out.append(bad("unframe", short, "a word too few", lambda: unframe(clear[:-1], 3, p)))
    return out


def commitments() -> list[Vector]:
    seed, share = Secret(bytes(range(32))), Secret(bytes(range(33)))
    base = {"ctx": CTX.hex()}
    hasher = InputDigest()
    hasher.update(bytes(range(128)))
    row = messages.LedgerRow(1, 3, 2, CTX, ROOT, bytes(32), b"")
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
            {
                "previous": genesis.hex(),
                "seq": 1,
                "round": 3,
                "attempt": 2,
                "ctx": CTX.hex(),
                "root_u2": ROOT.hex(),
                "hash_u3": "00" * 32,
            },
            row.head(genesis).hex(),
        ),
    ]
