"""The vectors, read as another implementation would read them: with code of its own, written from the specification.

Ours is called too, so that the vectors, this second reading and the code agree on every byte.
"""

import hashlib
import hmac
import importlib.util
import json
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

from secagg import aead, kdf, key_agreement, shamir
from secagg.encoding import SlotEncoding
from secagg.errors import SecAggError
from secagg.params import SecAggParams
from secagg.prg import Stream
from secagg.transcript import from_bitmap
from secagg.types import ClientId, Secret

FOLDER = Path(__file__).parent / "vectors"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
P = 2**256 + 297


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
    aes = Cipher(AES256(seed), ECB()).encryptor()  # noqa: S305
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


def signed_by(public: bytes, signature: bytes, body: bytes) -> None:
    Ed25519PublicKey.from_public_bytes(public).verify(signature, body)  # raises if it is not


# -- generated files are what the generator writes ---------------------------------------------------------------------


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("vector_generator", FOLDER / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_those_of_the_generator() -> None:
    made = generator()
    assert sorted(made.FILES) == NAMES
    for name in NAMES:
        assert made.render(name) == (FOLDER / f"{name}.json").read_bytes(), name


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
        assert from_bitmap(unhex(gives), given["within"]) == tuple(given["members"])
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
        assert tree([leaf.digest() for leaf in raw_leaves]).hex() == gives["root"]


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
        words = [int(w, 16) for w in g["random_words"]]
        out = []
        for text, word in zip(g["x"], words, strict=True):
            scaled = float(text) * g["scale"]
            floor = int(scaled // 1)
            out.append(floor + ((word >> 11) / 2**53 < scaled - floor))
        assert out == vector["gives"]
        return
    width, c = 64 // g["slots_per_word"], g["slots_per_word"]
    padded = [v + g["bound"] for v in g["values"]] + [0] * (-len(g["values"]) % c)
    made = [sum(padded[i + j] << (j * width) for j in range(c)) for i in range(0, len(padded), c)]
    assert [f"{w:016x}" for w in made] == vector["gives"]
    assert encoding.unpack(np.array(made, dtype=np.uint64), len(g["values"]), 1).tolist() == g["values"]


@pytest.mark.parametrize("vector", load("params"), ids=lambda v: str(v["given"]["num_clients"]))
def test_params(vector: dict[str, Any]) -> None:
    g, gives = vector["given"], vector["gives"]
    t = (g["num_clients"] + g["max_corrupt"]) // 2 + 1
    assert gives["threshold"] == gives["quorum"] == t and gives["required"] == max(t, g["min_cohort"])
    head = [b"complete", b"aes-256-ctr", b"masking"]
    numbers = [g["num_clients"], g["max_corrupt"], g["max_dropouts"], g["min_cohort"], t, t, 10, 3, 16, 100, 16]
    assert h("params", *head, *numbers).hex() == gives["digest"]


@pytest.mark.parametrize("vector", load("commitments"), ids=lambda v: v["operation"])
def test_commitments(vector: dict[str, Any]) -> None:
    g = {k: unhex(v) if isinstance(v, str) else v for k, v in vector["given"].items()}
    made = {
        "seed_commitment": lambda: h("seed-commitment", g["ctx"], g["client"], g["seed"]),
        "share_hash": lambda: h("share-hash", g["ctx"], g["dealer"], g["holder"], g["kind"], g["share"]),
        "input_digest": lambda: hashlib.sha256(enc("masked-input") + g["bytes"]).digest(),
        "ledger_genesis": lambda: h("release-ledger-genesis", g["manifest_digest"]),
        "ledger_head": lambda: h("release-ledger-row", g["previous"], g["seq"], g["ctx"], g["root_u2"], g["hash_u3"]),
    }[vector["operation"]]()
    assert made.hex() == vector["gives"]


# -- what must be refused ---------------------------------------------------------------------------------------------

BAD = [(name, i) for name in NAMES if name.startswith("bad_") for i in range(len(load(name)))]


@pytest.mark.parametrize(("name", "number"), BAD, ids=[f"{n}-{load(n)[i]['why']}" for n, i in BAD])
def test_bad(name: str, number: int) -> None:
    vector = load(name)[number]
    assert vector["success"] is False and "gives" not in vector
    g, operation = vector["given"], vector["operation"]
    if operation == "from_bitmap":
        assert from_bitmap(unhex(g["bits"]), g["within"]) is None
        return
    if operation == "canonical_key":
        assert not key_agreement.is_canonical(unhex(g["peer"]))
        return
    with pytest.raises(SecAggError):
        refuse(operation, g)


def refuse(operation: str, g: dict[str, Any]) -> None:
    match operation:
        case "agree":
            key_agreement.agree(Secret(unhex(g["private"])), unhex(g["peer"]))
        case "open":
            aead.open_(Secret(unhex(g["key"])), unhex(g["ciphertext"]), unhex(g["associated_data"]))
        case "reconstruct":
            shamir.reconstruct({int(x): Secret(unhex(s)) for x, s in g["shares"].items()}, g["threshold"])
        case "params":
            numbers = (g["num_clients"], g["max_corrupt"], g["max_dropouts"], g["min_cohort"])
            SecAggParams(*numbers, 10, SlotEncoding(3, 16, 100, 256), 16)
        case _:
            encoding = SlotEncoding(g["slots_per_word"], g["scale"], g["bound"], g["max_clients"])
            match operation:
                case "pack":
                    encoding.pack(np.array([int(v) for v in g["values"]], dtype=np.int64))
                case "unpack":
                    words = np.array([int(w, 16) for w in g["words"]], dtype=np.uint64)
                    encoding.unpack(words, g["length"], g["count"])
                case "quantize":
                    words = np.array([int(w, 16) for w in g["random_words"]], dtype=np.uint64)
                    encoding.quantize(np.array([float(x) for x in g["x"]]), words)
                case "encoding":
                    pass
                case _:
                    raise AssertionError(operation)


# -- a whole attempt --------------------------------------------------------------------------------------------------


def test_a_whole_attempt() -> None:
    """From the private values of five clients to the released sum, every byte recomputed."""
    a = load("attempt")
    manifest, roster = json.loads(a["manifest"]), json.loads(a["roster"])
    m, ids, t = manifest["aggregation"], a["cohort"], a["threshold"]
    n, c = m["num_clients"], m["max_corrupt"]
    width, per_word = 64 // m["slots_per_word"], m["slots_per_word"]
    length = manifest["adapter"]["tensors"][0]["shape"][0]
    clients = {int(k): v for k, v in a["clients"].items()}
    identity = {
        i: Ed25519PrivateKey.from_private_bytes(unhex(v["identity_seed"])).public_key().public_bytes_raw()
        for i, v in clients.items()
    }
    assert {k["client_id"]: k["identity_key"] for k in roster["clients"]} == {i: k.hex() for i, k in identity.items()}

    # ctx
    manifest_digest, roster_root = h("manifest", a["manifest"].encode()), h("roster", a["roster"].encode())
    numbers = [
        n,
        c,
        m["max_dropouts"],
        m["min_cohort"],
        t,
        t,
        length,
        per_word,
        m["scale"],
        m["bound"],
        m["chunk_words"],
    ]
    params = h("params", b"complete", b"aes-256-ctr", b"masking", *numbers)
    cohort = h("cohort", b"".join(i.to_bytes(8, "big") for i in ids))
    parts: list[bytes | int] = [1, manifest_digest, a["round"], a["attempt"], unhex(a["model_digest"]), roster_root]
    ctx = h("ctx", *parts, cohort, n, c, params)
    assert [manifest_digest.hex(), roster_root.hex(), ctx.hex()] == [a["manifest_digest"], a["roster_root"], a["ctx"]]

    # phase 0
    genesis = h("release-ledger-genesis", manifest_digest)
    listed: list[bytes | int] = [ctx]
    public: dict[int, tuple[bytes, bytes]] = {}
    for i, v in clients.items():
        advert = {k: unhex(x) for k, x in v["AdvertiseKeys"].items()}
        own = [X25519PrivateKey.from_private_bytes(unhex(v[k])).public_key() for k in ("encryption_sk", "masking_sk")]
        public[i] = (own[0].public_bytes_raw(), own[1].public_bytes_raw())
        assert public[i] == (advert["encryption_pk"], advert["masking_pk"])
        assert advert["commitment"] == h("seed-commitment", ctx, i, unhex(v["self_seed"]))
        body = enc("sign-advertise-keys", ctx, i, *public[i], advert["commitment"], 0, genesis)
        signed_by(identity[i], advert["signature"], body)
        listed += [body, advert["signature"]]
    root_u1 = h("root-u1", *listed)
    assert root_u1.hex() == a["root_u1"]

    # phase 1: every share opens, is what its hash says, and lies on the dealer's polynomial
    root_u2 = h("root-u2", root_u1, bits(ids, ids))
    assert root_u2.hex() == a["root_u2"]
    shares: dict[tuple[int, int], tuple[bytes, bytes]] = {}
    for dealer, v in clients.items():
        leaves = []
        for s in v["ShareKeys"]["shares"]:
            holder, box = s["recipient"], unhex(s["ciphertext"])
            leaf = h("ciphertext-hash", box)
            leaves.append(h("envelope-leaf", dealer, holder, leaf, unhex(s["self_hash"]), unhex(s["key_hash"])))
            if holder == dealer:
                assert box == b"" and s["key_hash"] == "00" * 32
                continue
            agreed = x25519(unhex(clients[holder]["encryption_sk"]), public[dealer][0])
            key = hkdf(agreed, enc("kdf-share", ctx, root_u1, dealer, holder))
            opened = AESGCM(key).decrypt(bytes(12), box, enc("ad-share", ctx, root_u1, dealer, holder))
            shares[dealer, holder] = (opened[:33], opened[33:])
            assert h("share-hash", ctx, dealer, holder, 0, opened[:33]).hex() == s["self_hash"]
            assert h("share-hash", ctx, dealer, holder, 1, opened[33:]).hex() == s["key_hash"]
        body = enc("sign-share-keys", ctx, root_u1, dealer, tree(leaves))
        signed_by(identity[dealer], unhex(v["ShareKeys"]["signature"]), body)
        for kind, name in ((0, "self_seed"), (1, "masking_sk")):
            points = {i: int.from_bytes(shares[dealer, i][kind], "big") for i in ids if i != dealer}
            assert len(points) == t and at(points, 0) == int(v[name], 16)

    # phase 2: frame, masks
    masked = a["masked"]
    for i, v in clients.items():
        padded = [x + m["bound"] for x in v["values"]] + [0] * (-length % per_word)
        payload = [1] + [
            sum(padded[k + j] << (j * width) for j in range(per_word)) for k in range(0, len(padded), per_word)
        ]
        piece, words = m["chunk_words"] - 1, []
        for start in range(0, len(payload), piece):
            words += [0, *payload[start : start + piece]]
        assert b"".join(w.to_bytes(8, "little") for w in words).hex() == v["framed"]
        if i not in masked:
            assert "MaskedInput" not in v
            continue
        total = [x + y for x, y in zip(words, stream(self_mask(v, ctx, i), len(words)), strict=True)]
        for j in ids:
            if j != i:
                pair = stream(pairwise(clients, (ctx, root_u2), i, public[j][1], j), len(words))
                total = [x + (y if i < j else -y) for x, y in zip(total, pair, strict=True)]
        raw = b"".join((w % 2**64).to_bytes(8, "little") for w in total)
        assert raw.hex() == v["MaskedInput"]["words"]
        input_digest = hashlib.sha256(enc("masked-input") + raw).digest()
        assert input_digest.hex() == v["MaskedInput"]["input_digest"]
        body = enc("sign-masked-input", ctx, root_u2, i, input_digest, len(words), b"")
        signed_by(identity[i], unhex(v["MaskedInput"]["signature"]), body)

    # phase 3
    hash_u3 = h("root-u3", root_u2, bits(masked, ids))
    head = h("release-ledger-row", genesis, 1, ctx, root_u2, hash_u3)
    assert [hash_u3.hex(), head.hex()] == [a["hash_u3"], a["ledger_head"]]
    server = Ed25519PrivateKey.from_private_bytes(unhex(a["server_identity_seed"])).public_key().public_bytes_raw()
    row = h("sign-release-ledger-head", manifest_digest, 1, head)
    signed_by(server, unhex(a["ledger_row_signature"]), row)
    for i in masked:
        body = enc("sign-consistency-check", ctx, root_u2, hash_u3, 1, head)
        signed_by(identity[i], unhex(clients[i]["ConsistencyCheck"]["signature"]), body)

    # phase 4: one share of one kind for each member of U2; the sum is exact
    for i in masked:
        answer = clients[i]["UnmaskingShares"]
        assert sorted(map(int, answer["self_shares"])) == masked
        assert sorted(map(int, answer["key_shares"])) == [d for d in ids if d not in masked]
        for kind, name in ((0, "self_shares"), (1, "key_shares")):
            for d, share in answer[name].items():
                assert int(d) == i or shares[int(d), i][kind].hex() == share
    assert a["total"] == [sum(clients[i]["values"][k] for i in masked) for k in range(length)]


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
    agreed = key_agreement.agree(Secret(unhex(one["masking_sk"])), unhex(two["AdvertiseKeys"]["masking_pk"]))
    ours = kdf.pairwise_seed(agreed, ctx, root_u2, ClientId(2), ClientId(1))
    clients = {int(k): v for k, v in a["clients"].items()}
    assert ours == Secret(pairwise(clients, (ctx, root_u2), 1, unhex(two["AdvertiseKeys"]["masking_pk"]), 2))
    assert kdf.self_mask_key(Secret(unhex(one["self_seed"])), ctx, ClientId(1)) == Secret(self_mask(one, ctx, 1))
