"""SPEC.md against the code: a second implementation, written from the document, reads what an attempt says.

It uses hashlib and `cryptography` only. Labels, formulas and worked values are those of SPEC.md; where the code moved
away from the document, or the document from the code, something here turns red.
"""

import ast
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from attacker import lying
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from simulator import Federation, Simulation, insecure_rng, make_manifest, random_values

from protocol.drops import DropReason
from protocol.effects import ReleaseRecord
from protocol.messages import (
    AdvertiseKeys,
    Certificate,
    ConsistencyCheck,
    KeyList,
    MaskedInput,
    PeerShares,
    ShareKeys,
    SurvivorNotice,
    UnmaskingShares,
)
from secagg import labels
from secagg.types import ClientId, Phase

ROOT = Path(__file__).resolve().parent.parent
SPEC = (ROOT / "SPEC.md").read_text(encoding="utf-8")
P = 2**256 + 297


# -- the second implementation ----------------------------------------------------------------------------------------


def u32(x: int) -> bytes:
    return x.to_bytes(4, "big")


def u64(x: int) -> bytes:
    return x.to_bytes(8, "big")


def encode(label: str, *fields: bytes | int) -> bytes:
    parts = [b"secagg/v1/" + label.encode(), *(u64(f) if isinstance(f, int) else f for f in fields)]
    return u32(len(parts)) + b"".join(u32(len(p)) + p for p in parts)


def digest(label: str, *fields: bytes | int) -> bytes:
    return hashlib.sha256(encode(label, *fields)).digest()


def id_list(ids: object) -> bytes:
    return b"".join(u64(i) for i in sorted(ids))  # type: ignore[call-overload]


def bitmap(members: set[int], within: list[int]) -> bytes:
    text = "".join("1" if w in members else "0" for w in within)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def merkle(leaves: list[bytes]) -> bytes:
    while len(leaves) > 1:
        pairs = [digest("merkle-node", *leaves[i : i + 2]) for i in range(0, len(leaves) - 1, 2)]
        leaves = pairs + leaves[len(leaves) // 2 * 2 :]
    return leaves[0]


def hkdf(secret: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), 32, None, info).derive(secret)


def stream(seed: bytes, words: int) -> list[int]:
    data = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor().update(bytes(8 * words))
    return [int.from_bytes(data[i : i + 8], "little") for i in range(0, 8 * words, 8)]


def interpolate(points: dict[int, int]) -> int:
    total = 0
    for x, y in points.items():
        top = bottom = 1
        for other in points:
            if other != x:
                top, bottom = top * other % P, bottom * (other - x) % P
        total += y * top * pow(bottom, -1, P)
    return total % P


def agree(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def signed(federation: Federation, client: int, signature: bytes, body: bytes) -> None:
    member = federation.roster.member(ClientId(client))
    assert member is not None
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(member.identity_key)).verify(signature, body)


def climb(leaf: bytes, index: int, count: int, path: list[bytes]) -> bytes:
    """Root that a path leads to; every sibling is used, and none is missing."""
    path = list(path)
    while count > 1:
        if index ^ 1 < count:
            pair = (path.pop(0), leaf) if index % 2 else (leaf, path.pop(0))
            leaf = digest("merkle-node", *pair)
        index, count = index // 2, (count + 1) // 2
    assert path == []
    return leaf


def ring(members: list[int], root_u1: bytes, degree: int) -> dict[int, dict[int, int]]:
    """4.7: member -> (neighbour -> point of the share that this neighbour holds)."""
    order = sorted(members, key=lambda m: (digest("ring-order", root_u1, m), m))
    half, n = degree // 2, len(order)
    return {
        m: {order[(at + d) % n]: d if d > 0 else degree + 1 + d for d in range(-half, half + 1) if d}
        for at, m in enumerate(order)
    }


# -- one attempt, read by it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [{}, {2: Phase.MASKED_INPUT}, {5: Phase.CONSISTENCY_CHECK}, {3: Phase.SHARE_KEYS}])
def test_an_attempt_follows_the_document(lost: dict[int, Phase]) -> None:
    federation = Federation.create(make_manifest(5, 1))
    manifest, a = federation.manifest, federation.manifest.aggregation
    values = random_values(manifest, range(1, 6))
    told: list[tuple[int, object]] = []

    def record(client: ClientId, message: object) -> object:
        told.append((client, message))
        return message

    run = Simulation(federation, values, {ClientId(k): v for k, v in lost.items()}, tamper_server=record)
    run.run()
    said = {kind: {c: m for c, m in run.view if type(m) is kind} for kind in (AdvertiseKeys, ShareKeys, MaskedInput)}
    cohort = list(range(1, 6))

    # 4.1, 6.1
    n, c, length = a.num_clients, a.max_corrupt, manifest.adapter.size
    t = (n + c) // 2 + 1
    payload = 1 + -(-length // a.slots_per_word)
    chunks = -(-payload // (a.chunk_words - 1))
    params = digest(
        *("params", b"complete", b"aes-256-ctr", b"masking", n, c, a.max_dropouts, a.min_cohort, n - 1, t, t, c),
        *(length, a.slots_per_word, a.scale, a.bound, a.chunk_words),
    )
    announcement = run.server.announcement
    manifest_digest = digest("manifest", manifest.to_bytes())
    ctx = digest(
        *("ctx", 1, manifest_digest, announcement.round, announcement.attempt, announcement.model_digest),
        *(digest("roster", federation.roster.to_bytes()), digest("cohort", id_list(cohort)), n, c, params),
    )
    assert ctx == run.server.ctx

    # 6.2, 6.3
    key_list = next(m for _, m in told if isinstance(m, KeyList))
    genesis = digest("release-ledger-genesis", manifest_digest)
    leaves: list[bytes] = []
    for entry in key_list.entries:
        client, m = entry.client, entry.keys
        keys = (m.encryption_pk, m.masking_pk, m.commitment)
        body = encode("sign-advertise-keys", ctx, client, *keys, m.ledger_seq, m.ledger_head)
        signed(federation, client, m.signature, body)
        assert (m.ledger_seq, m.ledger_head, entry.path) == (0, genesis, ())
        leaves.append(digest("advertise-leaf", body, m.signature))
    u1 = [entry.client for entry in key_list.entries]
    assert key_list.advertised == bitmap(set(u1), cohort)
    root_u1 = digest("root-u1", ctx, key_list.advertised, merkle(leaves))
    for dealer, m in said[ShareKeys].items():
        assert isinstance(m, ShareKeys)
        leaves = [
            digest(
                "envelope-leaf", dealer, s.recipient, digest("ciphertext-hash", s.ciphertext), s.self_hash, s.key_hash
            )
            for s in m.shares
        ]
        assert [s.recipient for s in m.shares] == u1
        own = next(s for s in m.shares if s.recipient == dealer)
        assert (own.ciphertext, own.key_hash) == (b"", bytes(32))
        assert {len(s.ciphertext) for s in m.shares if s is not own} == {82}
        signed(federation, dealer, m.signature, encode("sign-share-keys", ctx, root_u1, dealer, merkle(leaves)))

    # 6.4
    peers = next(m for _, m in told if isinstance(m, PeerShares))
    u2 = sorted(run.server.shared)
    assert peers.shared == bitmap(set(u2), u1)
    root_u2 = digest("root-u2", root_u1, peers.shared)
    for client, m in said[MaskedInput].items():
        assert isinstance(m, MaskedInput)
        assert m.total_words == payload + chunks
        body = encode("sign-masked-input", ctx, root_u2, client, m.input_digest, m.total_words, id_list(m.complaints))
        signed(federation, client, m.signature, body)
        if client in run.uploads:
            data = encode("masked-input") + run.uploads[client].astype("<u8").tobytes()
            assert hashlib.sha256(data).digest() == m.input_digest

    # 6.5, 8.1
    notice = next(m for _, m in told if isinstance(m, SurvivorNotice))
    u3 = sorted(run.server.masked)
    assert notice.masked == bitmap(set(u3), u2)
    hash_u3 = digest("root-u3", root_u2, notice.masked)
    head = digest("release-ledger-row", genesis, 1, announcement.round, announcement.attempt, ctx, root_u2, hash_u3)
    row = notice.row
    named = (row.seq, row.round, row.attempt, row.ctx, row.root_u2, row.hash_u3)
    assert named == (1, announcement.round, announcement.attempt, ctx, root_u2, hash_u3)
    server = Ed25519PublicKey.from_public_bytes(bytes.fromhex(federation.roster.server.identity_key))
    server.verify(row.signature, digest("sign-release-ledger-head", manifest_digest, 1, head))
    assert any(isinstance(r, ReleaseRecord) and r.head == head for _, r in run.records)
    certificate = next(m for _, m in told if isinstance(m, Certificate))
    assert len(certificate.signatures) >= t
    for client, signature in certificate.signatures:
        signed(federation, client, signature, encode("sign-consistency-check", ctx, root_u2, hash_u3, 1, head))
    assert sum(isinstance(m, ConsistencyCheck) for _, m in run.view) == len(run.server.checked)

    # 6.6, 7.6: secrets from shares, masks from secrets, the sum from masks
    answers = {c: m for c, m in run.view if isinstance(m, UnmaskingShares)}
    adverts = {entry.client: entry.keys for entry in key_list.entries}
    total = [sum(int(w) for w in words) for words in zip(*(run.uploads[ClientId(c)] for c in u3), strict=True)]

    def remove(seed: bytes, sign: int) -> None:
        for i, word in enumerate(stream(seed, len(total))):
            total[i] -= sign * word

    def rebuilt(dealer: int, field: str) -> bytes:
        points = {
            c: int.from_bytes(share, "big") for c, m in answers.items() for d, share in getattr(m, field) if d == dealer
        }
        lowest = {x: points[x] for x in sorted(points)[:t]}
        assert len(lowest) == t
        return interpolate(lowest).to_bytes(32, "big")

    for client in u3:
        seed = rebuilt(client, "self_shares")
        assert digest("seed-commitment", ctx, client, seed) == adverts[ClientId(client)].commitment
        remove(hkdf(seed, encode("kdf-self-mask", ctx, client)), +1)
    for gone in set(u2) - set(u3):
        private = rebuilt(gone, "key_shares")
        for client in u3:
            shared = agree(private, adverts[ClientId(client)].masking_pk)
            info = encode("kdf-pairwise-mask", ctx, root_u2, min(gone, client), max(gone, client))
            remove(hkdf(shared, info), +1 if gone > client else -1)
    words = [w % 2**64 for w in total]
    assert all(w == 0 for w in words[:: a.chunk_words])
    rest = [w for i, w in enumerate(words) if i % a.chunk_words]
    assert rest[0] == len(u3)
    bits = 64 // a.slots_per_word
    slots = [w >> (bits * j) & (2**bits - 1) for w in rest[1:] for j in range(a.slots_per_word)][:length]
    expected = sum(values[ClientId(c)] for c in u3)
    assert np.array_equal(np.array(slots) - a.bound * len(u3), expected)


def test_the_ring_follows_the_document() -> None:
    """4.7 and 6.3 to 6.4 on a real ring of 200: order, neighbours, places, and both trees."""
    server = lying(200, 2, 2, length=4, aggregation__graph="ring")
    server.announce()
    ctx, cohort = server.ctx, list(server.ids)
    key_list = server.key_list(to=ClientId(1))
    roots = set()
    for entry in key_list.entries:
        m = entry.keys
        keys = (m.encryption_pk, m.masking_pk, m.commitment)
        body = encode("sign-advertise-keys", ctx, entry.client, *keys, m.ledger_seq, m.ledger_head)
        leaf = digest("advertise-leaf", body, m.signature)
        roots.add(climb(leaf, cohort.index(entry.client), len(cohort), list(entry.path)))
    (tree,) = roots
    root_u1 = digest("root-u1", ctx, bitmap(set(cohort), cohort), tree)
    places = ring(cohort, root_u1, 10)
    assert sorted([1, *places[1]]) == [entry.client for entry in key_list.entries]
    assert all(places[u].keys() == {v for v in cohort if u in places[v]} for u in cohort)  # symmetric
    for dealer in places[1]:
        assert server.tell(ClientId(dealer), server.key_list(to=ClientId(dealer)))
    assert server.tell(ClientId(1), key_list)
    share = server.peer_shares(ClientId(1), cohort).shares[0]
    holders = sorted(places[share.dealer])
    leaf = digest(
        "envelope-leaf", share.dealer, 1, digest("ciphertext-hash", share.ciphertext), share.self_hash, share.key_hash
    )
    root = climb(leaf, holders.index(1), len(holders), list(share.path))
    signed(
        server.federation, share.dealer, share.signature, encode("sign-share-keys", ctx, root_u1, share.dealer, root)
    )
    # the shares that all holders of client 1's seed were dealt meet in it, at their places
    points = {}
    for holder, point in places[1].items():
        sealed = next(s for s in server.dealt[ClientId(1)].shares if s.recipient == holder)
        private = bytes(server.sessions[ClientId(holder)]._state.encryption_sk.view)  # type: ignore[union-attr]
        key = hkdf(
            agree(private, server.adverts[ClientId(1)].encryption_pk), encode("kdf-share", ctx, root_u1, 1, holder)
        )
        opened = AESGCM(key).decrypt(bytes(12), sealed.ciphertext, encode("ad-share", ctx, root_u1, 1, holder))
        points[point] = int.from_bytes(opened[:33], "big")
    assert sorted(points) == list(range(1, 11))
    seed = interpolate({x: points[x] for x in sorted(points)[:8]}).to_bytes(32, "big")
    assert digest("seed-commitment", ctx, 1, seed) == server.adverts[ClientId(1)].commitment


# -- worked values, labels, drop reasons, citations ------------------------------------------------------------------


def test_worked_values() -> None:
    a, b = bytes(range(32)), bytes(range(32, 64))
    key = AESGCM(a).encrypt(bytes(12), bytes(66), encode("ad-share", a, b, 1, 2))
    head = ("params", b"complete", b"aes-256-ctr", b"masking")
    params = digest(*head, 5, 1, 1, 4, 4, 4, 4, 1, 4, 3, 1024, 4096, 16)
    leaf = digest("advertise-leaf", encode("sign-advertise-keys", a, 1, a, b, a, 0, b), bytes(64))
    place = ring([1, 2, 3, 5, 8, 13, 21], b, 4)
    order = sorted(place, key=lambda m: digest("ring-order", b, m))
    genesis = digest("release-ledger-genesis", bytes(32))
    values = [
        digest("ctx", 1, b"ab"),
        bitmap({1, 3, 9}, list(range(1, 10))),
        merkle([bytes([i]) * 32 for i in (1, 2, 3)]),
        hkdf(a, encode("kdf-share", a, b, 1, 2)),
        hkdf(a, encode("kdf-pairwise-mask", a, b, 1, 2)),
        hkdf(a, encode("kdf-self-mask", a, 1)),
        *(u64(w) for w in stream(a, 3)),
        digest("seed-commitment", a, 1, a),
        digest("share-hash", a, 1, 2, 0, bytes(33)),
        key,
        params,
        hashlib.sha256(encode("masked-input") + bytes(8)).digest(),
        digest("ctx", 1, bytes(32), 1, 1, bytes(32), bytes(32), digest("cohort", id_list(range(1, 6))), 5, 1, params),
        genesis,
        digest("release-ledger-row", genesis, 1, 3, 2, a, b, bytes(32)),
        leaf,
        digest("root-u1", a, bitmap({1, 3}, [1, 2, 3]), merkle([leaf, bytes(32)])),
        digest("ring-order", b, 1),
    ]
    section = SPEC[SPEC.index("## 12 Vectors") :]
    missing = [v.hex() for v in values if f"`{v.hex()}`" not in section]
    assert not missing
    assert f"`{', '.join(map(str, order))}`" in section
    assert "`" + ", ".join(f"{v}: {p}" for v, p in sorted(place[1].items())) + "`" in section


def test_every_label_stands_in_the_table() -> None:
    section = SPEC[SPEC.index("### 3.2") : SPEC.index("### 3.3")]
    written = set(re.findall(r"`([a-z0-9-]+)`", section)) - {"v1"}
    defined = {v.decode().removeprefix("secagg/v1/") for k, v in vars(labels).items() if k.isupper()}
    assert {label for label in defined if label} == written


def test_every_drop_reason_is_named() -> None:
    assert [r.name for r in DropReason if f"`{r.name}`" not in SPEC] == []


def test_every_citation_leads_to_a_heading() -> None:
    headings = set(re.findall(r"^#{2,3} (\d+(?:\.\d+)?) ", SPEC, re.MULTILINE))
    assert {"1", "6.3", "9.7", "13"} <= headings
    wrong = []
    for folder in ("secagg", "protocol", "dp", "ffm", "protos"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".proto"):
                for cited in re.findall(r"SPEC((?:[ ,]+(?:and )?\d+(?:\.\d+)?)+)", path.read_text(encoding="utf-8")):
                    wrong += [f"{path.name}: {n}" for n in re.findall(r"\d+(?:\.\d+)?", cited) if n not in headings]
    assert wrong == []


def test_the_threat_model_names_tests_and_code_that_exist() -> None:
    text = (ROOT / "THREAT_MODEL.md").read_text(encoding="utf-8")
    tests = set(re.findall(r"\btest_[a-z_]+\.py", text))
    assert tests
    assert sorted(name for name in tests if not (ROOT / "tests" / name).exists()) == []
    names = set()
    for folder in ("secagg", "protocol", "dp", "ffm"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    names.add(node.name)
    rows = [line.split("|")[3] for line in text.splitlines() if line.startswith("| ") and line.count("|") == 5]
    cited = {name.split(".")[-1] for row in rows for name in re.findall(r"`([A-Za-z_.]+)`", row)}
    known = names | {"required", "min_cohort", "max_corrupt", "effects", "frames", "limits"}
    assert sorted(name for name in cited if name not in known) == []


def test_the_reader_can_fail() -> None:
    assert digest("ctx", 1) != digest("ctx", 2)
    assert insecure_rng(1)(8) != insecure_rng(2)(8)
    assert merkle([b"a" * 32, b"b" * 32]) != merkle([b"b" * 32, b"a" * 32])
