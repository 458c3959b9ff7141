"""The vectors, read as another implementation would read them: with code of its own, written from the specification.

Ours is called too, so that the vectors, this second reading and the code agree on every byte.
"""

import ast
import hashlib
import hmac
import json
import math
import re
import struct
from ast import literal_eval
from dataclasses import replace
from functools import cache
from itertools import pairwise as pairwise_of
from math import comb, isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from simulator import insecure_rng
from sympy import isprime

from protocol._pb import secagg_pb2 as pb
from protocol.client import ClientSession
from protocol.client_states import ClientMemory, ClientSetup
from protocol.codec import decode_client, decode_server
from protocol.decryptor import DecryptorMemory, DecryptorSession, DecryptorSetup
from protocol.drops import DropReason
from protocol.effects import Abort, AcceptUpload, Fetch
from protocol.errors import RemoteProtocolError
from protocol.manifest import Manifest, verify_manifest
from protocol.messages import Announcement
from protocol.release import ReleaseLedger
from protocol.roster import Roster, verify_roster
from protocol.server import ServerSession
from secagg import aead, kdf, key_agreement, shamir
from secagg.encoding import SlotEncoding
from secagg.errors import SecAggError
from secagg.graph import CompleteGraph, RingGraph
from secagg.he import guard
from secagg.he.limbs import recombine, split
from secagg.he.scheme import BfvParams
from secagg.masking import unframe
from secagg.params import SecAggParams
from secagg.prg import Stream
from secagg.signing import SigningKey, VerifyKey
from secagg.transcript import from_bitmap, merkle_climb
from secagg.types import ClientId, Phase, Secret

FOLDER = Path(__file__).parent / "vectors"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
P = 2**256 + 297


@cache
def load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_bytes())


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


# -- a second implementation, from the specification -------------------------------------------------------------------


def enc(label: str, *fields: bytes | int) -> bytes:
    parts = [("secagg/v1/" + label).encode(), *(f.to_bytes(8, "big") if isinstance(f, int) else f for f in fields)]
    return len(parts).to_bytes(4, "big") + b"".join(len(p).to_bytes(4, "big") + p for p in parts)


def h(label: str, *fields: bytes | int) -> bytes:
    return hashlib.sha256(enc(label, *fields)).digest()


def hkdf(secret: bytes, info: bytes) -> bytes:
    prk = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    return hmac.new(prk, info + b"\x01", hashlib.sha256).digest()


def x25519(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def stream(seed: bytes, count: int, first: int = 0) -> list[int]:
    aes = Cipher(AES256(seed), ECB()).encryptor()  # noqa: S305  # noqa: S305
    blocks = b"".join(aes.update(b.to_bytes(16, "big")) for b in range(first // 2, (first + count) // 2 + 1))
    return [int.from_bytes(blocks[8 * i : 8 * i + 8], "little") for i in range(count)]


def at(points: dict[int, int], x: int) -> int:
    total = 0
    for i, y in points.items():
        top = bottom = 1
        for j in points:
            if j != i:
                top, bottom = top * (x - j) % P, bottom * (i - j) % P
        total += y * top * pow(bottom, -1, P)
    return total % P


def bits(members: list[int], within: list[int]) -> bytes:
    text = "".join("1" if m in members else "0" for m in within)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")


def tree(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << (len(leaves) - 1).bit_length() - 1  # the largest power of two below the count
    return h("merkle-node", tree(leaves[:half]), tree(leaves[half:]))


def climbed(leaf: bytes, index: int, count: int, path: list[bytes]) -> bytes:
    """Root above one leaf; the tree of `count` leaves splits at the largest power of two below `count`."""
    if count == 1:
        assert path == []
        return leaf
    half = 1 << (count - 1).bit_length() - 1
    if index < half:
        return h("merkle-node", climbed(leaf, index, half, path[:-1]), path[-1])
    return h("merkle-node", path[-1], climbed(leaf, index - half, count - half, path[:-1]))


def ring_order(members: list[int], root_u1: bytes) -> list[int]:
    return sorted(members, key=lambda m: (h("ring-order", root_u1, m), m))


def ring_places(order: list[int], me: int, degree: int) -> dict[int, int]:
    """Neighbour -> its point: clockwise 1..k/2, then on from the farthest counter-clockwise one to the nearest."""
    at, n, half = order.index(me), len(order), degree // 2
    after = {order[(at + d) % n]: d for d in range(1, half + 1)}
    return after | {order[(at - d) % n]: degree + 1 - d for d in range(1, half + 1)}


def signed_by(public: bytes, signature: bytes, body: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(public).verify(signature, body)  # raises if it is not


# -- one operation each -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", load("transcript"), ids=lambda v: v["operation"])
def test_transcript(vector: dict[str, Any]) -> None:
    given, gives = vector["given"], vector["gives"]
    if vector["operation"] in ("encode", "digest"):
        parts = [unhex(given["label"])]
        parts += [int(f).to_bytes(8, "big") if isinstance(f, str) else unhex(f["hex"]) for f in given["fields"]]
        raw = len(parts).to_bytes(4, "big") + b"".join(len(p).to_bytes(4, "big") + p for p in parts)
        assert gives == (raw if vector["operation"] == "encode" else hashlib.sha256(raw).digest()).hex()
    elif vector["operation"] == "bitmap":
        assert bits(given["members"], given["within"]).hex() == gives
        assert from_bitmap(unhex(gives), tuple(given["within"])) == tuple(given["members"])
    elif vector["operation"] == "id_list":
        assert gives == b"".join(i.to_bytes(8, "big") for i in sorted(given["ids"])).hex()
    else:
        assert vector["operation"] == "merkle"
        raw_leaves = [
            hashlib.sha256(
                bytes.fromhex("0000000200000004") + b"leaf" + bytes.fromhex("00000008") + i.to_bytes(8, "big")
            )
            for i in range(given["count"])
        ]
        leaves = [leaf.digest() for leaf in raw_leaves]
        assert tree(leaves).hex() == gives["root"]
        for i, path in enumerate(gives["paths"]):
            assert climbed(leaves[i], i, len(leaves), [unhex(p) for p in path]) == tree(leaves)


@pytest.mark.parametrize("vector", load("keys"), ids=lambda v: v["operation"])
def test_keys(vector: dict[str, Any]) -> None:
    given = {k: unhex(v) if isinstance(v, str) else v for k, v in vector["given"].items()}
    operation, gives = vector["operation"], vector["gives"]
    if operation == "public_key":
        made = X25519PrivateKey.from_private_bytes(given["private"]).public_key().public_bytes_raw()
    elif operation == "agree":
        made = x25519(given["private"], given["peer"])
        assert key_agreement.agree(Secret(given["private"]), given["peer"]) == Secret(made)
    elif operation == "self_mask_key":
        made = hkdf(given["secret"], enc("kdf-self-mask", given["ctx"], given["client"]))
    else:
        one, other = given["one"], given["other"]
        way = (one, other) if operation == "share_key" else (min(one, other), max(one, other))
        label = {"share_key": "kdf-share", "pairwise_seed": "kdf-pairwise-mask"}[operation]
        made = hkdf(given["secret"], enc(label, given["ctx"], given["root"], *way))
    assert made.hex() == gives


@pytest.mark.parametrize("vector", load("aead"), ids=lambda v: v["operation"])
def test_aead(vector: dict[str, Any]) -> None:
    given = {k: unhex(v) for k, v in vector["given"].items()}
    assert (
        AESGCM(given["key"]).encrypt(bytes(12), given["plaintext"], given["associated_data"]).hex() == vector["gives"]
    )
    opened = aead.open_(Secret(given["key"]), unhex(vector["gives"]), given["associated_data"])
    assert opened == Secret(given["plaintext"])


@pytest.mark.parametrize("vector", load("prg"), ids=lambda v: str(v["given"]["first_word"]))
def test_prg(vector: dict[str, Any]) -> None:
    given = vector["given"]
    words = stream(unhex(given["seed"]), given["count"], given["first_word"])
    assert [f"{w:016x}" for w in words] == vector["gives"]
    ours = Stream(Secret(unhex(given["seed"])), given["first_word"]).words(given["count"])
    assert ours.tolist() == words


@pytest.mark.parametrize("vector", load("shamir"), ids=lambda v: str(v["given"]["threshold"]))
def test_shamir(vector: dict[str, Any]) -> None:
    given = vector["given"]
    threshold, points = given["threshold"], {int(x): int(y, 16) for x, y in vector["gives"].items()}
    assert list(points) == given["xs"] or sorted(points) == given["xs"]
    for start in range(len(points) - threshold + 1):
        some = dict(sorted(points.items())[start : start + threshold])
        assert at(some, 0) == int(given["secret"], 16)
        assert all(at(some, x) == y for x, y in points.items())
    # coefficients: 257 bits of each 33 bytes of the stream, drawn again from p on
    rng, coefficients = insecure_rng(given["rng"]), [int(given["secret"], 16)]
    while len(coefficients) < threshold:
        candidate = int.from_bytes(rng(33), "big") & (2**257 - 1)
        if candidate < P:
            coefficients.append(candidate)
    for x, y in points.items():
        assert sum(c * x**i for i, c in enumerate(coefficients)) % P == y


@pytest.mark.parametrize("vector", load("slots"), ids=lambda v: v["operation"])
def test_slots(vector: dict[str, Any]) -> None:
    g = vector["given"]
    encoding = SlotEncoding(g["slots_per_word"], g["scale"], g["bound"], g["max_clients"])
    if vector["operation"] == "quantize":
        draws = [int(w, 16) for w in g["random"]]
        out = []
        for text, draw in zip(g["x"], draws, strict=True):  # fixed point, 32 bits of fraction
            fine = int(float(text) * (g["scale"] * 2.0**32))
            out.append(fine // 2**32 + (draw < fine % 2**32))
        assert out == vector["gives"]
        ours = encoding.quantize(np.array([float(x) for x in g["x"]]), np.array(draws, dtype=np.uint32))
        assert ours.tolist() == out
        return
    width, c = 64 // g["slots_per_word"], g["slots_per_word"]
    padded = [v + g["bound"] for v in g["values"]] + [0] * (-len(g["values"]) % c)
    made = [sum(padded[i + j] << (j * width) for j in range(c)) for i in range(0, len(padded), c)]
    assert [f"{w:016x}" for w in made] == vector["gives"]
    assert encoding.unpack(np.array(made, dtype=np.uint64), len(g["values"]), 1).tolist() == g["values"]


def float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def floats(text: str) -> list[float]:
    return [value for (value,) in struct.iter_unpack("<f", unhex(text))]


@pytest.mark.parametrize("vector", load("server_step"))
def test_server_step(vector: dict[str, Any]) -> None:
    """One value at a time, in the order of operations of SPEC 7.7."""
    given = vector["given"]
    server = {key: value if key == "optimizer" else float(value) for key, value in given["server"].items()}
    start, importance, strength = floats(given["start"]), floats(given["importance"]), float(given["strength"])
    x, m, v = list(start), [0.0] * len(start), [0.0] * len(start)
    for total, gives in zip(given["totals"], vector["gives"], strict=True):
        for i, value in enumerate(total):
            update = value / float(given["scale"] * given["clients"])
            if given["protocol"] == "R2":
                update = value / float(given["scale"] * given["expected_batch"]) * -float(given["learning_rate"])
            if server["optimizer"] == "fedavg":
                x[i] = float32(update * server["learning_rate"] + x[i])
            else:
                m1 = server["beta1"] * m[i] + (1 - server["beta1"]) * update
                v1 = server["beta2"] * v[i] + (1 - server["beta2"]) * update**2
                if server["optimizer"] == "fedyogi":
                    sign = (v[i] > update**2) - (v[i] < update**2)
                    v1 = v[i] - (1 - server["beta2"]) * update**2 * sign
                x[i] = float32(x[i] + server["learning_rate"] * m1 / (math.sqrt(v1) + server["tau"]))
                m[i], v[i] = float32(m1), float32(v1)
            if strength:
                c = strength * importance[i]
                x[i] = float32((x[i] + c * start[i]) / (1 + c))
        assert floats(gives) == [*x, *m, *v][: len(floats(gives))]


@pytest.mark.parametrize("vector", load("noise_shares"), ids=lambda v: v["operation"])
def test_noise_shares(vector: dict[str, Any]) -> None:
    """SPEC 5.4 and 10.11, in Python integers."""
    g, gives, operation = vector["given"], vector["gives"], vector["operation"]
    if operation in ("norm_bound", "rotated_sensitivity"):
        tail, clip, size = 1000, g["clip"], g["size"]
        if operation == "rotated_sensitivity":
            root, size = padded(size)
            tail, clip = 10604, -(-clip * root // 2 ** g["shift"])
        up = isqrt(size - 1) + 1
        square = 4000 * clip**2 + 1000 * size + 2 * tail * (2 * clip + up)  # 4000 times what D2 squared has to reach
        assert gives == clip + up or 4000 * gives**2 >= square > 4000 * (gives - 1) ** 2
        return
    size = g["size"] if operation == "rotate_back" else len(g["values"])
    root, length = padded(size)
    parts = (b"secagg/v1/rotation", g["adapter_seed"].to_bytes(8, "big"), size.to_bytes(8, "big"))
    seed = hashlib.sha256(bytes([0, 0, 0, 3]) + b"".join(len(p).to_bytes(4, "big") + p for p in parts)).digest()
    aes = Cipher(AES256(seed), ECB()).encryptor()  # noqa: S305
    bits = b"".join(aes.update(b.to_bytes(16, "big")) for b in range(length // 128 + 1))
    signs = [-1 if bits[i // 8] >> i % 8 & 1 else 1 for i in range(length)]

    def hadamard(x: list[int]) -> list[int]:
        m = root**2
        return [sum((-1) ** ((i % m) & j).bit_count() * x[i // m * m + j] for j in range(m)) for i in range(length)]

    if operation == "rotate":
        values = g["values"] + [0] * (length - size)
        assert gives == hadamard([s * v for s, v in zip(signs, values, strict=True)])
    else:
        assert gives == [s * v for s, v in zip(signs, hadamard(g["total"]), strict=True)][:size]


def padded(size: int) -> tuple[int, int]:
    """Root of the rotation's block, and the rotated length."""
    root = max(2**k for k in range(11) if 16 * 4**k <= size)
    return root, -(-size // root**2) * root**2


@pytest.mark.parametrize(
    "vector", load("params"), ids=lambda v: "{graph} {num_clients} {max_corrupt}".format(**v["given"])
)
def test_params(vector: dict[str, Any]) -> None:
    g, gives = vector["given"], vector["gives"]
    n, c, dropouts, cohort = (g[k] for k in ("num_clients", "max_corrupt", "max_dropouts", "min_cohort"))
    q = (n + c) // 2 + 1
    if g["graph"] == "complete":
        k, t, a, least_u1 = n - 1, q, c, max(q, cohort)
    else:
        k, t, a = ring_rule(n, c, dropouts, gives["degree"])
        least_u1 = max(q, cohort, n - dropouts)
    assert [gives[x] for x in ("degree", "threshold", "quorum", "max_corrupt_neighbors")] == [k, t, q, a]
    assert [gives["required"], gives["required_advertised"]] == [max(q, cohort), least_u1]
    names = [g["graph"].encode(), b"aes-256-ctr", b"masking"]
    assert h("params", *names, n, c, dropouts, cohort, k, t, q, a, 10, 2, 16, 100, 16).hex() == gives["digest"]


def ring_rule(n: int, c: int, dropouts: int, degree: int) -> tuple[int, int, int]:
    """(k, t, a) for the given degree, by SPEC 4.7; and that the next smaller degree is not safe and live."""
    found = [rule(n, c, dropouts, k) for k in (degree - 2, degree) if k]
    assert found[-1] is not None and (len(found) == 1 or found[0] is None)
    return found[-1]


def rule(n: int, c: int, dropouts: int, k: int) -> tuple[int, int, int] | None:
    a = quantile(n - dropouts - 1, c, k, n << 81)
    lost = quantile(n - 1, dropouts, k, n << 20)
    return (k, k // 2 + a + 1, a) if 2 * (a + lost + 1) <= k < n - dropouts else None


def quantile(others: int, marked: int, drawn: int, odds: int) -> int:
    """Smallest x with Pr[more than x marked among `drawn` of `others`] <= 1 / odds."""
    total = left = comb(others, drawn)
    for x in range(drawn + 1):
        left -= comb(marked, x) * comb(others - marked, drawn - x)
        if odds * left <= total:
            return x
    raise AssertionError("the tail ends at `drawn`")


@pytest.mark.parametrize("vector", load("graph"), ids=lambda v: f"{v['given']['graph']} {len(v['given']['members'])}")
def test_graph(vector: dict[str, Any]) -> None:
    g, gives = vector["given"], vector["gives"]
    members = g["members"]
    ours: CompleteGraph | RingGraph
    if g["graph"] == "complete":
        ours = CompleteGraph(members)
        near = {m: {v: v for v in members if v != m} for m in members}
        points = {m: {v: v for v in members} for m in members}
    else:
        ours = RingGraph(members, unhex(g["root_u1"]), g["degree"])
        order = ring_order(members, unhex(g["root_u1"]))
        assert order == gives["order"]
        near = points = {m: ring_places(order, m, g["degree"]) for m in members}
    for m in map(int, gives["neighbors"]):
        assert sorted(near[m]) == gives["neighbors"][str(m)] == list(ours.neighbors(ClientId(m)))
        assert {str(v): p for v, p in points[m].items()} == gives["points"][str(m)]
        assert sorted(points[m]) == list(ours.dealt_to(ClientId(m)))
        assert all(ours.point(ClientId(m), ClientId(v)) == p for v, p in points[m].items())
    assert gives["fewest_holders"] == min(len(set(points[m]) & set(g["among"])) for m in members)


@pytest.mark.parametrize("vector", load("roots"), ids=lambda v: v["operation"])
def test_roots(vector: dict[str, Any]) -> None:
    g, gives = vector["given"], vector["gives"]
    match vector["operation"]:
        case "root_u1":
            ctx, leaves = unhex(g["ctx"]), []
            for client, e in sorted(g["entries"].items(), key=lambda item: int(item[0])):
                keys = [unhex(e[k]) for k in ("encryption_pk", "masking_pk", "commitment")]
                body = enc("sign-advertise-keys", ctx, int(client), *keys, e["ledger_seq"], unhex(e["ledger_head"]))
                leaves.append(h("advertise-leaf", body, unhex(e["signature"])))
            members = sorted(map(int, g["entries"]))
            assert [leaf.hex() for leaf in leaves] == [gives["leaves"][str(m)] for m in members]
            for i, m in enumerate(members):
                path = [unhex(p) for p in gives["paths"][str(m)]]
                assert climbed(leaves[i], i, len(leaves), path) == tree(leaves)
            assert h("root-u1", ctx, bits(members, g["cohort"]), tree(leaves)).hex() == gives["root_u1"]
        case "root_u2":
            assert h("root-u2", unhex(g["root_u1"]), bits(g["u2"], g["u1"])).hex() == gives
        case "hash_u3":
            assert h("root-u3", unhex(g["root_u2"]), bits(g["u3"], g["u2"])).hex() == gives
        case _:
            sealed = h("ciphertext-hash", unhex(g["ciphertext"]))
            hashes = (unhex(g["self_hash"]), unhex(g["key_hash"]))
            assert h("envelope-leaf", g["dealer"], g["recipient"], sealed, *hashes).hex() == gives


@pytest.mark.parametrize("vector", load("commitments"), ids=lambda v: v["operation"])
def test_commitments(vector: dict[str, Any]) -> None:
    g = {k: unhex(v) if isinstance(v, str) else v for k, v in vector["given"].items()}
    made = {
        "seed_commitment": lambda: h("seed-commitment", g["ctx"], g["client"], g["seed"]),
        "share_hash": lambda: h("share-hash", g["ctx"], g["dealer"], g["holder"], g["kind"], g["share"]),
        "input_digest": lambda: hashlib.sha256(enc("masked-input") + g["bytes"]).digest(),
        "ledger_genesis": lambda: h("release-ledger-genesis", g["manifest_digest"]),
        "ledger_head": lambda: h(
            "release-ledger-row",
            *(g[k] for k in ("previous", "seq", "round", "attempt", "ctx", "root_u2", "hash_u3")),
        ),
    }[vector["operation"]]()
    assert made.hex() == vector["gives"]


@pytest.mark.parametrize("vector", load("second_lock"), ids=lambda v: v["operation"])
def test_second_lock(vector: dict[str, Any]) -> None:
    raw = vector["given"]
    g = {k: unhex(v) if isinstance(v, str) and k != "manifest" else v for k, v in raw.items()}
    if vector["operation"] == "packed_input":
        packed = b"".join(len(unhex(b)).to_bytes(4, "big") + unhex(b) for b in raw["blocks"])
        digest = hashlib.sha256(enc("encrypted-input") + packed).digest()
        assert vector["gives"] == {"packed": packed.hex(), "digest": digest.hex()}
        return
    if vector["operation"] == "params_with_encryption":
        params_with_encryption(raw["manifest"], vector["gives"])
        return
    key = h("decryptor-key", g.get("public_key", b""))
    made = {
        "key_digest": lambda: key,
        "key_body": lambda: enc("sign-decryptor-key", g["ctx"], key),
        "root_u1_with_key": lambda: h("root-u1", g["ctx"], g["advertised"], g["tree_root"], key),
        "input_hash_body": lambda: enc(
            "sign-input-hash",
            *(g[k] for k in ("ctx", "root_u2", "client", "digest", "total_bytes")),
            b"".join(c.to_bytes(8, "big") for c in g["complaints"]),
        ),
        "hash_list": lambda: h("hash-list", g["root_u2"], g["listed"], g["digests"]),
        "encrypted_input_body": lambda: enc(
            "sign-encrypted-input", *(g[k] for k in ("ctx", "hash_list", "client", "digest", "total_bytes"))
        ),
        "hash_u3_with_list": lambda: h("root-u3", g["root_u2"], g["masked"], g["hash_list"]),
        "opened_body": lambda: enc("sign-opened-sum", *(g[k] for k in ("ctx", "hash_u3", "digest", "total_words"))),
    }[vector["operation"]]()
    assert made.hex() == vector["gives"]


def params_with_encryption(manifest: str, gives: dict[str, Any]) -> None:
    """4.1 with four fields more."""
    a = json.loads(manifest)["aggregation"]
    length = json.loads(manifest)["adapter"]["tensors"][0]["shape"][0]
    n, c, bits = a["num_clients"], a["max_corrupt"], a["encryption"]["limb_bits"]
    t = (n + c) // 2 + 1
    most = 2 * n * (2**bits - 1)
    plain = next(x for x in range(most // 8192 * 8192 + 1, 2**62, 8192) if x > most and isprime(x))
    special, modulus = top_primes(next(b for b in range(36, 55) if 4 * plain * he_noise(n) < top_primes(b)[1]))
    fields = (n, c, a["max_dropouts"], a["min_cohort"], n - 1, t, t, c, length, a["slots_per_word"], a["scale"])
    tail = (a["bound"], a["chunk_words"], bits, plain, modulus, special)
    made = h("params", b"complete", b"aes-256-ctr", a["assurance"].encode(), *fields, *tail)
    payload = 1 + -(-length // a["slots_per_word"])
    words = payload + -(-payload // (a["chunk_words"] - 1))
    assert gives == {"params_digest": made.hex(), "blocks": -(-words // (4096 // -(-64 // bits)))}


def asked_decryptor() -> DecryptorSession:
    """The decryptor of opening_request.json, with its key announced."""
    (vector,) = load("opening_request")
    g = vector["given"]
    manifest = Manifest.model_validate_json(g["manifest"])
    roster = Roster.model_validate_json(g["roster"])
    cohort = tuple(ClientId(c) for c in g["cohort"])
    digests = (unhex(g["manifest_digest"]), unhex(g["roster_root"]), unhex(g["model_digest"]))
    announcement = Announcement(g["round"], g["attempt"], *digests, cohort, 0)
    key = SigningKey.generate(insecure_rng("decryptor"))
    session = DecryptorSession(
        DecryptorSetup(key, roster, manifest, manifest.secagg_params()), announcement, DecryptorMemory()
    )
    session.start(unhex(g["public_key"]))
    return session


def test_the_honest_request_is_answered() -> None:
    (vector,) = load("opening_request")
    (fetch,) = asked_decryptor().receive(decode_server(unhex(vector["given"]["frame"])))
    assert isinstance(fetch, Fetch) and list(fetch.clients) == vector["gives"]["masked"]


@pytest.mark.parametrize("vector", load("bad_opening_request"), ids=lambda v: v["why"])
def test_a_decryptor_refuses(vector: dict[str, Any]) -> None:
    session = asked_decryptor()
    with pytest.raises(RemoteProtocolError) as caught:
        session.receive(decode_server(unhex(vector["given"]["frame"])))
    assert (caught.value.code, caught.value.what) == (vector["code"], vector["what"]) and session.ended


@pytest.mark.parametrize("vector", load("he"), ids=lambda v: f"{v['operation']} {v['given']['limb_bits']}")
def test_he(vector: dict[str, Any]) -> None:
    g, gives = vector["given"], vector["gives"]
    bits, degree = g["limb_bits"], 4096
    per_word = -(-64 // bits)
    match vector["operation"]:
        case "he_params":
            n = g["clients"]
            t, q, p = (int(gives[name]) for name in "tqp")
            most = 2 * n * (2**bits - 1)
            assert t == next(x for x in range(most // 8192 * 8192 + 1, 2**62, 8192) if x > most and isprime(x))
            width = next(b for b in range(36, 55) if 4 * t * he_noise(n) < top_primes(b)[1])
            assert top_primes(width) == (p, q) and gives["bits"] == width
            assert gives["words_per_block"] == degree // per_word
            for name, moduli in (("ciphertext_id", [q]), ("key_id", [q, p])):
                fields = b"".join(x.to_bytes(8, "little") for x in [1, degree, *moduli, t])
                assert hashlib.blake2b(fields, digest_size=32).hexdigest() == gives[name]
            widest = max(b for b, most in ((16, 65_537), (22, 1024), (32, 128)) if n <= most)
            assert gives["widest_limbs"] == widest
            ours = BfvParams(n, bits)
            assert (ours.plain_modulus, ours.modulus, ours.special_modulus) == (t, q, p)
        case "he_split":
            words = [int(w, 16) for w in g["words"]]
            assert gives == [w >> (i * bits) & (2**bits - 1) for w in words for i in range(per_word)]
            assert split(np.array(words, np.uint64), bits).tolist() == gives
        case "he_recombine":
            sums = [g["sums"][k : k + per_word] for k in range(0, len(g["sums"]), per_word)]
            made = [sum(s << (i * bits) for i, s in enumerate(part)) % 2**64 for part in sums]
            assert [f"{w:016x}" for w in made] == gives
            assert recombine(np.array(g["sums"]), BfvParams(g["clients"], bits)).tolist() == made
        case "he_ciphertext":
            coefficients = he_content(stored(g)[stored(g).index(b"\x5e\xa1") + 16 :])[97:]
            assert hashlib.sha256(coefficients).hexdigest() == gives["coefficients_sha256"]
            numbers = guard.check_ciphertext(stored(g), BfvParams(g["clients"], bits))
            assert numbers.astype("<u8").tobytes() == coefficients
        case _:
            content = he_content(stored(g)[16:])
            loaded = bytes.fromhex("5ea1100403000000") + (16 + len(content)).to_bytes(8, "little") + content
            assert hashlib.sha256(loaded).hexdigest() == gives["loaded_sha256"]
            assert guard.check_public_key(stored(g), BfvParams(g["clients"], bits)) == loaded


def stored(g: dict[str, Any]) -> bytes:
    """Bytes of a vector, with the zeros that it only counts."""
    return unhex(g["bytes"]) + bytes(g.get("zeros", 0))


def he_content(frame: bytes) -> bytes:
    """What a Zstandard frame of raw and run-length blocks holds, with its size declared in eight bytes."""
    assert frame[:5] == b"\x28\xb5\x2f\xfd\xe0"
    out, at, last = b"", 13, False
    while not last:
        head = int.from_bytes(frame[at : at + 3], "little")
        last, kind, size, at = bool(head & 1), head >> 1 & 3, head >> 3, at + 3
        out += frame[at : at + size] if kind == 0 else frame[at : at + 1] * size
        at += size if kind == 0 else 1
    assert at == len(frame) and len(out) == int.from_bytes(frame[5:13], "little")
    return out


@cache
def top_primes(width: int) -> tuple[int, int]:
    """The largest and the second largest prime of that many bits that is 1 modulo 8192."""
    found = (x for x in range(2**width - 8191, 2 ** (width - 1), -8192) if isprime(x))
    return next(found), next(found)


def he_noise(n: int) -> int:
    return 2 * n + isqrt(135 * n * 4097 // 12) + 1


# -- what must be refused ---------------------------------------------------------------------------------------------

BAD = [(name, i) for name in NAMES if name.startswith("bad_") for i in range(len(load(name)))]


@pytest.mark.parametrize(("name", "number"), BAD, ids=[f"{n}-{load(n)[i]['why']}" for n, i in BAD])
def test_bad(name: str, number: int) -> None:
    """Refused, for the one reason that the vector names."""
    vector = load(name)[number]
    assert vector["success"] is False and "gives" not in vector and vector["why"]
    g, operation = vector["given"], vector["operation"]
    if "drop" in vector:
        assert dropped(operation, g) is DropReason[vector["drop"]]
    elif operation == "server.run":
        outcome = server_run(g)
        assert (outcome.phase.name, outcome.reason) == (vector["aborted_in"], vector["what"])
        assert list(outcome.convicted) == vector["convicted"]
    elif vector["error"] is None:
        assert not refuse(operation, g)
    else:
        with pytest.raises(SecAggError) as caught:
            refuse(operation, g)
        assert (type(caught.value).__name__, caught.value.code) == (vector["error"], vector["code"])
        assert vector.get("what", caught.value.what) == caught.value.what


def refuse(operation: str, g: dict[str, Any]) -> object:
    match operation:
        case "agree":
            return key_agreement.agree(Secret(unhex(g["private"])), unhex(g["peer"]))
        case "canonical_key":
            return key_agreement.is_canonical(unhex(g["peer"]))
        case "from_bitmap":
            return from_bitmap(unhex(g["bits"]), tuple(g["within"]))
        case "climb":
            return merkle_climb(unhex(g["leaf"]), g["index"], g["count"], [unhex(p) for p in g["path"]])
        case "he_params":
            return BfvParams(g["clients"], g["limb_bits"])
        case "he_recombine":
            return recombine(np.array(g["sums"]), BfvParams(g["clients"], g["limb_bits"]))
        case "he_ciphertext":
            return guard.check_ciphertext(stored(g), BfvParams(g["clients"], g["limb_bits"]))
        case "he_public_key":
            return guard.check_public_key(stored(g), BfvParams(g["clients"], g["limb_bits"]))
        case "open":
            return aead.open_(Secret(unhex(g["key"])), unhex(g["ciphertext"]), unhex(g["associated_data"]))
        case "reconstruct":
            return shamir.reconstruct({int(x): Secret(unhex(s)) for x, s in g["shares"].items()}, g["threshold"])
        case "params":
            numbers = (g["num_clients"], g["max_corrupt"], g["max_dropouts"], g["min_cohort"])
            return SecAggParams(*numbers, 10, SlotEncoding(2, 16, 100, 10_000), 16, g["graph"])
        case "unframe":
            encoding = SlotEncoding(g["slots_per_word"], 16, g["bound"], g["num_clients"])
            params = SecAggParams(g["num_clients"], 0, 0, 3, g["length"], encoding, g["chunk_words"])
            return unframe(np.array([int(w, 16) for w in g["words"]], dtype=np.uint64), g["count"], params)
        case "decode":
            return (decode_client if g["from"] == "client" else decode_server)(unhex(g["frame"]))
        case "verify":
            reader = {"manifest": verify_manifest, "roster": verify_roster}[g["document"]]
            return reader(g["body"].encode(), unhex(g["signature"]), VerifyKey(unhex(g["owner"])))
        case "client.join":
            memory = replace(ClientMemory.fresh(manifest_of(load(g["attempt"]))), joined=tuple(g["joined"]),
                             spent_round=g["spent_round"])  # fmt: skip
            return join(g["attempt"], decode_server(unhex(g["frame"])), memory)
        case "client.receive":
            return after(g["attempt"], g["after"]).receive(decode_server(unhex(g["frame"])))
        case "decryptor.receive":
            return asked_decryptor().receive(decode_server(unhex(g["frame"])))
        case "pack" | "unpack" | "quantize" | "encoding":
            return encode_slots(operation, g)
    raise AssertionError(operation)


def encode_slots(operation: str, g: dict[str, Any]) -> object:
    encoding = SlotEncoding(g["slots_per_word"], g["scale"], g["bound"], g["max_clients"])
    match operation:
        case "pack":
            return encoding.pack(np.array([int(v) for v in g["values"]], dtype=np.int64))
        case "unpack":
            words = np.array([int(w, 16) for w in g["words"]], dtype=np.uint64)
            return encoding.unpack(words, g["length"], g["count"])
        case "quantize":
            draws = np.array([int(w, 16) for w in g["random"]], dtype=np.uint32)
            return encoding.quantize(np.array([float(x) for x in g["x"]]), draws)
    return encoding


# -- sessions, brought to the place where a bad message comes ----------------------------------------------------------

RECEIVED = ["Announcement", "KeyList", "PeerShares", "SurvivorNotice", "Certificate"]
SENT = ["AdvertiseKeys", "ShareKeys", "MaskedInput", "ConsistencyCheck", "UnmaskingShares"]


def manifest_of(a: dict[str, Any]) -> Manifest:
    return Manifest.model_validate_json(a["manifest"])


def join(attempt: str, message: Any, memory: ClientMemory | None = None) -> ClientSession:
    """Client 1 of an attempt, as it answers an announcement."""
    a = load(attempt)
    manifest, own = manifest_of(a), a.get("clients", {}).get("1", a)
    setup = ClientSetup(
        ClientId(1),
        SigningKey.from_bytes(unhex(own["identity_seed"])),
        Roster.model_validate_json(a["roster"]),
        manifest,
        manifest.secagg_params(),
    )
    rng = insecure_rng(literal_eval(own["rng"]))
    return ClientSession(setup, message, memory or ClientMemory.fresh(manifest), rng)


def after(attempt: str, last: str) -> ClientSession:
    """Client 1 once it has taken the honest messages up to `last`."""
    a = load(attempt)
    frames = [decode_server(unhex(a["received_by_client_1"][kind])) for kind in RECEIVED[: RECEIVED.index(last) + 1]]
    session = join(attempt, frames[0])
    session.start()
    length = session._attempt.setup.params.vector_length
    session.provide_input(np.array(a["clients"]["1"]["values"] if "clients" in a else [0] * length, dtype=np.int64))
    for message in frames[1:]:
        session.receive(message)
    return session


def server_of(a: dict[str, Any], excluded: list[int]) -> ServerSession:
    manifest, roster = manifest_of(a), Roster.model_validate_json(a["roster"])
    announcement = decode_server(unhex(a["received_by_client_1"]["Announcement"]))
    assert isinstance(announcement, Announcement)
    return ServerSession(
        manifest.secagg_params(),
        announcement,
        roster,
        SigningKey.from_bytes(unhex(a["server_identity_seed"])),
        ReleaseLedger(manifest.digest()),
        frozenset(map(ClientId, excluded)),
    )


def say(server: ServerSession, sender: int, frame: str) -> object:
    """Hand over one frame; an accepted upload is complete at once."""
    answer = server.receive(ClientId(sender), decode_client(unhex(frame)))
    if not isinstance(answer, DropReason):
        for effect in answer:
            if isinstance(effect, AcceptUpload):
                assert server.upload_complete(effect.sender) == ()
    return answer


def dropped(operation: str, g: dict[str, Any]) -> object:
    """What the server says to the last frame, after the honest ones before it."""
    a = load(g["attempt"])
    server = server_of(a, g.get("excluded", []))
    due = g.get("instead_of") or g["after_own"]
    for kind in SENT[: SENT.index(due) + 1]:
        for client, c in sorted(a["clients"].items(), key=lambda item: int(item[0])):
            mine = int(client) == g["sender"]
            if kind == due and (int(client) > g["sender"] or (mine and "after_own" not in g)):
                continue
            if kind in c["sent"]:
                assert not isinstance(say(server, int(client), c["sent"][kind]), DropReason)
        if kind != due:
            server.close_phase()
    if operation == "server.upload_complete":
        return server.upload_complete(ClientId(g["sender"]))
    return say(server, g["sender"], g["frame"])


def server_run(g: dict[str, Any]) -> Abort:
    """All frames in order; a phase is closed where the next one begins."""
    server = server_of(load(g["attempt"]), [])
    effects: tuple[object, ...] = ()
    phase = 0
    for entry in g["frames"]:
        kind = SENT.index(type(decode_client(unhex(entry["frame"]))).__name__)
        while phase < kind:
            effects, phase = server.close_phase(), phase + 1
        say(server, entry["sender"], entry["frame"])
    effects = server.close_phase()
    (outcome,) = [e for e in effects if isinstance(e, Abort)]
    return outcome


def test_the_honest_message_at_each_place_is_accepted() -> None:
    """What the vectors of the sessions refuse, they refuse for their one fault."""
    for attempt in ("attempt", "attempt_ring"):
        received = load(attempt)["received_by_client_1"]
        for last, following in pairwise_of([k for k in RECEIVED if k in received]):
            after(attempt, last).receive(decode_server(unhex(received[following])))
    for name in ("attempt", "attempt_masked_input"):
        for kind in SENT:
            own = load(name)["clients"]["2"]["sent"][kind]
            answer = dropped("server.receive", {"attempt": name, "sender": 2, "instead_of": kind, "frame": own})
            assert not isinstance(answer, DropReason)


def test_every_check_has_its_vectors() -> None:
    """Each reason that a client's code or a server's enum can give is in some file: none is left to the reader."""
    vectors = [v for name in NAMES if name.startswith("bad_") for v in load(name)]
    said = {v["what"] for v in vectors if v["operation"].startswith("client.")}
    for module in ("client", "client_phases", "key_list", "context"):
        source = (FOLDER.parent.parent / "protocol" / f"{module}.py").read_text(encoding="utf-8")
        for reason in reasons(source):
            assert any(re.fullmatch(reason, what) for what in said) or reason in BEYOND_VECTORS, (module, reason)
    drops = {v["drop"] for v in vectors if "drop" in v}
    assert {r.name for r in DropReason} - drops == {"NOT_ADMITTED", "LEDGER_BEHIND"}


BEYOND_VECTORS = {
    re.escape("this client is not invited"),  # the roster's ids are the cohort: it needs a second roster
    re.escape("a member of U3 is not in the list of hashes"),  # of encrypted inputs: test_decryptor.py
}


def reasons(source: str) -> list[str]:
    """Patterns of what `reject(...)` is called with, of `problem = ...`, and of the texts that a check returns."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id="reject"), args=[value, *_]):
                pass
            case ast.Assign(targets=[ast.Name(id="problem")], value=value):
                pass
            case ast.Return(value=ast.Constant(value=str()) as value):
                pass
            case _:
                continue
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            found.append(re.escape(value.value))
        elif isinstance(value, ast.JoinedStr):
            found.append("".join(re.escape(v.value) if isinstance(v, ast.Constant) else ".*" for v in value.values))
    assert found
    return found


# -- whole attempts ---------------------------------------------------------------------------------------------------

ATTEMPTS = ["attempt", *(f"attempt_{p.name.lower()}" for p in Phase if p < Phase.COMPLETED)]


def sent_by(client: dict[str, Any]) -> dict[str, Any]:
    """The client's messages, by kind, read with the schema alone."""
    messages = {}
    for kind, frame in client["sent"].items():
        parsed = pb.ClientFrame.FromString(unhex(frame))
        messages[kind] = getattr(parsed, parsed.WhichOneof("message"))
    return messages


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_whole_attempt(name: str) -> None:
    """From the private values of five clients to the released sum, every byte recomputed."""
    a = load(name)
    manifest, roster = json.loads(a["manifest"]), json.loads(a["roster"])
    m, ids, t = manifest["aggregation"], a["cohort"], a["threshold"]
    n, c = m["num_clients"], m["max_corrupt"]
    width, per_word = 64 // m["slots_per_word"], m["slots_per_word"]
    length = manifest["adapter"]["tensors"][0]["shape"][0]
    clients = {int(k): v for k, v in a["clients"].items()}
    sent = {i: sent_by(v) for i, v in clients.items()}
    identity = {
        i: Ed25519PrivateKey.from_private_bytes(unhex(v["identity_seed"])).public_key().public_bytes_raw()
        for i, v in clients.items()
    }
    assert {k["client_id"]: k["identity_key"] for k in roster["clients"]} == {i: k.hex() for i, k in identity.items()}
    u1, u2, u3 = a["advertised"], a["shared"], a["masked"]
    gone = {p: set(map(int, a["lost"])) if a["lost"].get("4") == p.name else set() for p in Phase}
    assert u1 == [i for i in ids if i not in gone[Phase.ADVERTISE_KEYS]]
    assert u2 == [i for i in u1 if i not in gone[Phase.SHARE_KEYS]]
    assert u3 == [i for i in u2 if i not in gone[Phase.MASKED_INPUT]]
    assert a["checked"] == [i for i in u3 if i not in gone[Phase.CONSISTENCY_CHECK]]
    assert a["unmasked"] == [i for i in a["checked"] if i not in gone[Phase.UNMASKING]]

    # ctx
    manifest_digest, roster_root = h("manifest", a["manifest"].encode()), h("roster", a["roster"].encode())
    sizes = [n, c, m["max_dropouts"], m["min_cohort"], n - 1, t, t, c, length]
    params = h(
        "params", b"complete", b"aes-256-ctr", b"masking", *sizes, per_word, m["scale"], m["bound"], m["chunk_words"]
    )
    cohort = h("cohort", b"".join(i.to_bytes(8, "big") for i in ids))
    parts: list[bytes | int] = [1, manifest_digest, a["round"], a["attempt"], unhex(a["model_digest"]), roster_root]
    ctx = h("ctx", *parts, cohort, n, c, params)
    assert [manifest_digest.hex(), roster_root.hex(), ctx.hex()] == [a["manifest_digest"], a["roster_root"], a["ctx"]]

    # phase 0
    genesis = h("release-ledger-genesis", manifest_digest)
    leaves = []
    public: dict[int, tuple[bytes, bytes]] = {}
    for i in u1:
        v, advert = clients[i], sent[i]["AdvertiseKeys"]
        own = [X25519PrivateKey.from_private_bytes(unhex(v[k])).public_key() for k in ("encryption_sk", "masking_sk")]
        public[i] = (own[0].public_bytes_raw(), own[1].public_bytes_raw())
        assert public[i] == (advert.encryption_pk, advert.masking_pk)
        assert advert.commitment == h("seed-commitment", ctx, i, unhex(v["self_seed"]))
        body = enc("sign-advertise-keys", ctx, i, *public[i], advert.commitment, 0, genesis)
        signed_by(identity[i], advert.signature, body)
        leaves.append(h("advertise-leaf", body, advert.signature))
    root_u1 = h("root-u1", ctx, bits(u1, ids), tree(leaves))
    assert root_u1.hex() == a["root_u1"]

    # phase 1: every share opens, is what its hash says, and lies on the polynomial that the dealer's stream gives
    root_u2 = h("root-u2", root_u1, bits(u2, u1))
    assert root_u2.hex() == a["root_u2"]
    shares: dict[tuple[int, int], tuple[bytes, bytes]] = {}
    for dealer in u2:
        v, message = clients[dealer], sent[dealer]["ShareKeys"]
        polynomials = coefficients(v, t)
        envelopes = []
        for s in message.shares:
            holder, box = s.recipient, s.ciphertext
            sealed = h("ciphertext-hash", box)
            envelopes.append(h("envelope-leaf", dealer, holder, sealed, s.self_hash, s.key_hash))
            values = [sum(k * holder**e for e, k in enumerate(line)) % P for line in polynomials]
            share = (values[0].to_bytes(33, "big"), values[1].to_bytes(33, "big"))
            assert h("share-hash", ctx, dealer, holder, 0, share[0]) == s.self_hash
            shares[dealer, holder] = share
            if holder == dealer:
                assert box == b"" and s.key_hash == bytes(32)
                continue
            assert h("share-hash", ctx, dealer, holder, 1, share[1]) == s.key_hash
            agreed = x25519(unhex(clients[holder]["encryption_sk"]), public[dealer][0])
            key = hkdf(agreed, enc("kdf-share", ctx, root_u1, dealer, holder))
            opened = AESGCM(key).decrypt(bytes(12), box, enc("ad-share", ctx, root_u1, dealer, holder))
            assert opened == share[0] + share[1]
        assert [s.recipient for s in message.shares] == u1
        signed_by(identity[dealer], message.signature, enc("sign-share-keys", ctx, root_u1, dealer, tree(envelopes)))

    # phase 2: frame, masks
    for i in u2:
        v = clients[i]
        padded = [x + m["bound"] for x in v["values"]] + [0] * (-length % per_word)
        payload = [1] + [
            sum(padded[k + j] << (j * width) for j in range(per_word)) for k in range(0, len(padded), per_word)
        ]
        piece, words = m["chunk_words"] - 1, []
        for start in range(0, len(payload), piece):
            words += [0, *payload[start : start + piece]]
        assert b"".join(w.to_bytes(8, "little") for w in words).hex() == v["framed"]
        if i not in u3:
            assert "MaskedInput" not in sent[i] and "words" not in v
            continue
        total = [x + y for x, y in zip(words, stream(self_mask(v, ctx, i), len(words)), strict=True)]
        for j in u2:
            if j != i:
                pair = stream(pairwise(clients, (ctx, root_u2), i, public[j][1], j), len(words))
                total = [x + (y if i < j else -y) for x, y in zip(total, pair, strict=True)]
        raw = b"".join((w % 2**64).to_bytes(8, "little") for w in total)
        assert raw.hex() == v["words"]
        header = sent[i]["MaskedInput"]
        assert header.input_digest == hashlib.sha256(enc("masked-input") + raw).digest()
        body = enc("sign-masked-input", ctx, root_u2, i, header.input_digest, len(words), b"")
        signed_by(identity[i], header.signature, body)

    # phase 3
    hash_u3 = h("root-u3", root_u2, bits(u3, u2))
    head = h("release-ledger-row", genesis, 1, a["round"], a["attempt"], ctx, root_u2, hash_u3)
    assert [hash_u3.hex(), head.hex()] == [a["hash_u3"], a["ledger_head"]]
    server = Ed25519PrivateKey.from_private_bytes(unhex(a["server_identity_seed"])).public_key().public_bytes_raw()
    row = h("sign-release-ledger-head", manifest_digest, 1, head)
    signed_by(server, unhex(a["ledger_row_signature"]), row)
    for i in a["checked"]:
        body = enc("sign-consistency-check", ctx, root_u2, hash_u3, 1, head)
        signed_by(identity[i], sent[i]["ConsistencyCheck"].signature, body)
    assert len(a["checked"]) >= t

    # phase 4: one share of one kind for each member of U2; the sum is exact
    for i in a["unmasked"]:
        answer = sent[i]["UnmaskingShares"]
        assert [e.client for e in answer.self_shares] == u3
        assert [e.client for e in answer.key_shares] == [d for d in u2 if d not in u3]
        for kind, entries in ((0, answer.self_shares), (1, answer.key_shares)):
            assert all(shares[e.client, i][kind] == e.share for e in entries)
    assert len(a["unmasked"]) >= t
    assert a["total"] == [sum(clients[i]["values"][k] for i in u3) for k in range(length)]


def coefficients(client: dict[str, Any], threshold: int) -> list[list[int]]:
    """The dealer's two polynomials: its stream gives both keys, the seed, then the coefficients, rejected from p on."""
    rng = insecure_rng(literal_eval(client["rng"]))
    drawn = [rng(32) for _ in range(3)]
    assert [d.hex() for d in drawn] == [client[k] for k in ("encryption_sk", "masking_sk", "self_seed")]
    lines = []
    for secret in (drawn[2], drawn[1]):
        line = [int.from_bytes(secret, "big")]
        while len(line) < threshold:
            candidate = int.from_bytes(rng(33), "big") & (2**257 - 1)
            if candidate < P:
                line.append(candidate)
        lines.append(line)
    return lines


def test_the_ring_as_one_client_sees_it() -> None:
    """Own neighbours from the root alone: a list of seven keys, out of 200 members, is enough."""
    a = load("attempt_ring")
    members, ctx = a["cohort"], unhex(a["ctx"])
    m = json.loads(a["manifest"])["aggregation"]
    degree, t, most = ring_rule(m["num_clients"], m["max_corrupt"], m["max_dropouts"], len(a["neighbors"]))
    frames = {kind: pb.ServerFrame.FromString(unhex(f)) for kind, f in a["received_by_client_1"].items()}
    listed = frames["KeyList"].key_list
    assert listed.advertised == bits(members, members)
    roots = set()
    for e in listed.entries:
        k = e.keys
        body = enc(
            "sign-advertise-keys",
            ctx,
            e.client,
            k.encryption_pk,
            k.masking_pk,
            k.commitment,
            k.ledger_seq,
            k.ledger_head,
        )
        member = next(c for c in json.loads(a["roster"])["clients"] if c["client_id"] == e.client)
        signed_by(unhex(member["identity_key"]), k.signature, body)
        leaf = h("advertise-leaf", body, k.signature)
        roots.add(climbed(leaf, members.index(e.client), len(members), list(e.path)))
    (root,) = roots
    root_u1 = h("root-u1", ctx, listed.advertised, root)
    assert root_u1.hex() == a["root_u1"]
    places = ring_places(ring_order(members, root_u1), 1, degree)
    assert sorted(places) == a["neighbors"] == [e.client for e in listed.entries if e.client != 1]
    assert {str(v): p for v, p in places.items()} == a["points"]
    # what each neighbour dealt to client 1 lies at client 1's place as that neighbour sees it
    peers = frames["PeerShares"].peer_shares
    assert h("root-u2", root_u1, peers.shared).hex() == a["root_u2"]
    assert [s.dealer for s in peers.shares] == a["neighbors"]
    own = unhex(a["encryption_sk"])
    for s in peers.shares:
        dealer = next(e.keys for e in listed.entries if e.client == s.dealer)
        key = hkdf(x25519(own, dealer.encryption_pk), enc("kdf-share", ctx, root_u1, s.dealer, 1))
        opened = AESGCM(key).decrypt(bytes(12), s.ciphertext, enc("ad-share", ctx, root_u1, s.dealer, 1))
        assert h("share-hash", ctx, s.dealer, 1, 0, opened[:33]) == s.self_hash
        assert h("share-hash", ctx, s.dealer, 1, 1, opened[33:]) == s.key_hash
        holders = sorted(ring_places(ring_order(members, root_u1), s.dealer, degree))
        sealed = h("ciphertext-hash", s.ciphertext)
        envelope = h("envelope-leaf", s.dealer, 1, sealed, s.self_hash, s.key_hash)
        signed_root = climbed(envelope, holders.index(1), len(holders), list(s.path))
        member = next(c for c in json.loads(a["roster"])["clients"] if c["client_id"] == s.dealer)
        signed_by(
            unhex(member["identity_key"]), s.signature, enc("sign-share-keys", ctx, root_u1, s.dealer, signed_root)
        )
    assert (degree, t, most) == (6, 4, 0)


def self_mask(client: dict[str, Any], ctx: bytes, i: int) -> bytes:
    return hkdf(unhex(client["self_seed"]), enc("kdf-self-mask", ctx, i))


def pairwise(clients: dict[int, Any], roots: tuple[bytes, bytes], i: int, theirs: bytes, j: int) -> bytes:
    agreed = x25519(unhex(clients[i]["masking_sk"]), theirs)
    return hkdf(agreed, enc("kdf-pairwise-mask", *roots, min(i, j), max(i, j)))


def test_our_own_functions_agree_on_the_attempt() -> None:
    """The same seeds through the code under test: the second reading above and ours are of one mind."""
    a = load("attempt")
    ctx, root_u2 = unhex(a["ctx"]), unhex(a["root_u2"])
    one, two = a["clients"]["1"], a["clients"]["2"]
    agreed = key_agreement.agree(Secret(unhex(one["masking_sk"])), sent_by(two)["AdvertiseKeys"].masking_pk)
    ours = kdf.pairwise_seed(agreed, ctx, root_u2, ClientId(2), ClientId(1))
    clients = {int(k): v for k, v in a["clients"].items()}
    assert ours == Secret(pairwise(clients, (ctx, root_u2), 1, sent_by(two)["AdvertiseKeys"].masking_pk, 2))
    assert kdf.self_mask_key(Secret(unhex(one["self_seed"])), ctx, ClientId(1)) == Secret(self_mask(one, ctx, 1))
