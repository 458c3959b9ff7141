"""What the server sees: given all bytes it got, all public keys and threshold - 1 shares, one masked input is noise.

The attacker here takes off every mask that the server may take off (self masks of U3, pairwise masks of dropped
clients) and then tries to guess the last one from public values. What remains must pass uniformity tests, on bytes, on
bits and between clients. The same tests fail on copies of the protocol whose masks come from public inputs.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from attacker import LyingServer
from simulator import Federation, Simulation, make_manifest, random_values

from protocol.drops import DropReason
from protocol.messages import MaskedInput
from secagg import kdf, key_agreement, shamir
from secagg.encoding import Values, Words
from secagg.labels import KDF_PAIRWISE_MASK, KDF_SELF_MASK
from secagg.masking import Mask, add_masks, frame, pairwise_sign
from secagg.params import SecAggParams
from secagg.transcript import digest
from secagg.types import ClientId, Phase, Secret

LENGTH = 3000  # values: 1001 payload words, about 8,000 bytes per masked input
LATE = ClientId(4)  # uploads, but is declared dropped

# chi-square with 255 degrees of freedom: mean 255, deviation 22.6. 420 is exceeded with probability 3e-10.
CHI_SQUARE_LIMIT = 420.0
BIT_LIMIT = 6.5  # deviations of a binomial count


def chi_square_of_bytes(words: Words) -> float:
    """Pearson's statistic over the 256 byte values."""
    counts = np.bincount(words.astype("<u8").view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum())


def worst_bit(words: Words) -> float:
    """Largest deviation, in standard deviations, of the ones at one of the 64 bit positions."""
    ones = np.array([int(((words >> np.uint64(bit)) & np.uint64(1)).sum()) for bit in range(64)])
    return float(np.abs(ones - len(words) / 2).max() / np.sqrt(len(words) / 4))


def uniform(words: Words) -> bool:
    return chi_square_of_bytes(words) < CHI_SQUARE_LIMIT and worst_bit(words) < BIT_LIMIT


def observed() -> LyingServer:
    """An attempt of five clients, one of them late; the server now has everything that it can ever get."""
    federation = Federation.create(make_manifest(length=LENGTH))
    server = LyingServer(federation, random_values(federation.manifest, range(1, 6))).play()
    u3 = [c for c in server.ids if c != LATE]
    # threshold - 1 shares of every secret, of both kinds: what as many corrupt clients would hold
    server.leaked = {c: server.held(c) for c in server.ids[: server.params.threshold - 1]}
    for client in u3:
        assert server.tell(client, server.notice(u3))
    for client in u3:
        assert server.tell(client, server.certificate(u3))
    assert set(server.words) == set(server.ids)
    return server


# -- the attacker's guesses: 32 bytes from public values ---------------------------------------------------------------


def short_of_one(server: LyingServer, dealer: ClientId, kind: str) -> bytes:
    """What threshold - 1 shares of a secret give when they are taken for enough."""
    few = server.params.threshold - 1
    shares = {
        h: Secret(dict(getattr(a, kind))[dealer]) for h, a in server.leaked.items() if dealer in dict(getattr(a, kind))
    }
    return bytes(shamir.reconstruct(shares, min(few, len(shares))).view)  # a dealer has no key share of its own


def pair_guesses(server: LyingServer, one: ClientId, other: ClientId) -> dict[str, bytes]:
    a, b = sorted((server.adverts[one].masking_pk, server.adverts[other].masking_pk))
    xor = bytes(x ^ y for x, y in zip(a, b, strict=True))
    return {
        "nothing": bytes(32),
        "both keys": hashlib.sha256(a + b).digest(),
        "both keys, reversed": hashlib.sha256(b + a).digest(),
        "xor of keys": xor,
        "lower key": a,
        "higher key": b,
        "ctx": server.ctx,
        "root of U2": server.root_u2(),
        "threshold - 1 shares": bytes(
            key_agreement.agree(Secret(short_of_one(server, one, "key_shares")), server.adverts[other].masking_pk).view
        ),
    }


def self_guesses(server: LyingServer, client: ClientId) -> dict[str, bytes]:
    mine = server.adverts[client]
    return {
        "nothing": bytes(32),
        "commitment": mine.commitment,
        "masking key": mine.masking_pk,
        "encryption key": mine.encryption_pk,
        "ctx": server.ctx,
        "threshold - 1 shares": short_of_one(server, client, "self_shares"),
    }


def residuals(server: LyingServer) -> Iterator[tuple[str, Words]]:
    """Each masked input less every mask that is known or guessed, for every combination of guesses."""
    for client in server.ids:
        peers = [p for p in server.ids if p != client]
        own: dict[str, Secret] = {
            name: kdf.self_mask_key(Secret(value), server.ctx, client)
            for name, value in self_guesses(server, client).items()
        }
        seed = server._rebuilt(client, "self_shares", {})
        if client != LATE:
            assert seed is not None
            own["released seed"] = kdf.self_mask_key(seed, server.ctx, client)
        else:
            assert seed is None
        for rule in pair_guesses(server, ClientId(1), ClientId(2)):
            words = np.array(server.words[client], dtype="<u8")
            masks = []
            for peer in peers:
                agreed = server._agreed(client, peer, {}) or Secret(pair_guesses(server, client, peer)[rule])
                pair = kdf.pairwise_seed(agreed, server.ctx, server.root_u2(), client, peer)
                masks.append(Mask(pair, -pairwise_sign(client, peer)))
            add_masks(words, masks)
            for name, key in own.items():
                left = words.copy()
                add_masks(left, [Mask(key, -1)])
                yield f"client {client}, self mask from {name}, pairwise from {rule}", left
            yield f"client {client}, pairwise from {rule}", words
        yield f"client {client}, as received", np.array(server.words[client], dtype="<u8")


def leaks(server: LyingServer) -> list[str]:
    return [name for name, words in residuals(server) if not uniform(words)]


def test_a21_one_masked_input_is_noise() -> None:
    server = observed()
    names = [name for name, _ in residuals(server)]
    assert len(names) == len(set(names)) > 250
    assert leaks(server) == []


def test_a21_masked_inputs_are_unrelated() -> None:
    """A keystream used twice would show in a difference or a sum of two inputs."""
    server = observed()
    for one in server.ids:
        for other in server.ids:
            if one < other:
                a, b = (np.array(server.words[c], dtype="<u8") for c in (one, other))
                for mixed in (a - b, a + b, a ^ b):
                    assert uniform(mixed)


def public_pairwise(shared: Secret, ctx: bytes, root_u2: bytes, one: ClientId, other: ClientId) -> Secret:
    return Secret(digest(KDF_PAIRWISE_MASK, ctx, root_u2, min(one, other), max(one, other)))


def public_self(seed: Secret, ctx: bytes, client: ClientId) -> Secret:
    return Secret(digest(KDF_SELF_MASK, ctx, client))


class PublicAgreement:
    """Both public keys, hashed: what a client might take for a shared secret."""

    def __init__(self, private: Secret) -> None:
        self._mine = key_agreement.public_key(private)

    def agree(self, peer: bytes) -> Secret:
        return Secret(hashlib.sha256(b"".join(sorted((self._mine, peer)))).digest())


COPIES: dict[str, dict[str, Callable[..., object]]] = {
    "all masks": {"secagg.kdf.pairwise_seed": public_pairwise, "secagg.kdf.self_mask_key": public_self},
    "pairwise masks": {"secagg.kdf.pairwise_seed": public_pairwise},
    "self masks": {"secagg.kdf.self_mask_key": public_self},
    "pairwise masks from the public keys": {
        "protocol.client_phases.Agreement": PublicAgreement,
        "attacker.key_agreement.agree": lambda private, peer: PublicAgreement(private).agree(peer),
    },
}


@pytest.mark.parametrize("copy", COPIES)
def test_a21_a_copy_whose_masks_come_from_public_inputs_is_found(monkeypatch: pytest.MonkeyPatch, copy: str) -> None:
    for where, what in COPIES[copy].items():
        monkeypatch.setattr(where, what)
    server = observed()
    found = leaks(server)
    assert found
    clear = {c: frame(server.values[c], server.params) for c in server.ids}
    exposed = {int(name.split(",")[0].removeprefix("client ")) for name in found}
    # public self masks expose the late client, public pairwise masks those whose seeds are released
    assert (
        exposed
        == {
            "all masks": {1, 2, 3, 4, 5},
            "pairwise masks": {1, 2, 3, 5},
            "self masks": {4},
            "pairwise masks from the public keys": {1, 2, 3, 5},
        }[copy]
    )
    plain = [name for name, words in residuals(server) if any(np.array_equal(words, x) for x in clear.values())]
    assert set(plain) == set(found)  # and what is found is the clients' input, to the last bit


def test_the_uniformity_tests_can_fail() -> None:
    params = make_manifest(length=LENGTH).secagg_params()
    clear = frame(random_values(make_manifest(length=LENGTH), [1])[ClientId(1)], params)
    assert chi_square_of_bytes(clear) > 10 * CHI_SQUARE_LIMIT
    noise = np.frombuffer(np.array(observed().words[ClientId(1)], dtype="<u8").tobytes(), dtype="<u8")
    assert uniform(noise)
    assert not uniform(noise & np.uint64(2**63 - 1))  # one bit of 64 stuck
    assert not uniform(noise | (noise >> np.uint64(1)))


def test_a21_threshold_minus_one_shares_fit_every_secret() -> None:
    """For any other secret there is a last share that agrees with all the others: they determine nothing."""
    server = observed()
    t = server.params.threshold
    shares = {h: Secret(dict(server.answers[h].self_shares)[ClientId(1)]) for h in sorted(server.answers)[: t - 1]}
    last = sorted(server.answers)[t - 1]
    for wish in (bytes(32), b"\xff" * 32, hashlib.sha256(b"any").digest()):
        points = {0: int.from_bytes(wish, "big"), **{x: int.from_bytes(s.view, "big") for x, s in shares.items()}}
        value = interpolate(points, last)
        forged = {**shares, last: Secret(value.to_bytes(33, "big"))}
        assert bytes(shamir.reconstruct(forged, t).view) == wish


def interpolate(points: dict[int, int], at: int) -> int:
    total = 0
    for x, y in points.items():
        top = bottom = 1
        for other in points:
            if other != x:
                top, bottom = top * (at - other) % shamir.PRIME, bottom * (x - other) % shamir.PRIME
        total += y * top * pow(bottom, -1, shamir.PRIME)
    return total % shamir.PRIME


def side_fields(values: str) -> list[object]:
    """All that an attempt shows beside the words of the masked inputs, their digests and the signatures over these."""
    federation = Federation.create(make_manifest())
    inputs = random_values(federation.manifest, range(1, 6), "values")
    if values == "zero":
        inputs = {c: np.zeros_like(x) for c, x in inputs.items()}
    simulation = Simulation(federation, inputs, {ClientId(2): Phase.MASKED_INPUT})
    simulation.run()
    shown: list[object] = [
        (c, replace(m, input_digest=b"", signature=b"") if isinstance(m, MaskedInput) else m)
        for c, m in simulation.view
    ]
    return [*shown, sorted((c, len(w)) for c, w in simulation.uploads.items())]


def test_a16_nothing_but_the_masked_input_depends_on_the_data() -> None:
    """No side fields: other values change H(y_u), y_u and the signature over H(y_u), and no other byte."""
    shown = side_fields("random")
    assert shown == side_fields("zero")
    kinds = [type(m).__name__ for _, m in shown[:-1]]  # type: ignore[misc]
    assert {k: kinds.count(k) for k in kinds} == {
        "AdvertiseKeys": 5, "ShareKeys": 5, "MaskedInput": 4, "ConsistencyCheck": 4, "UnmaskingShares": 4
    }  # fmt: skip


def test_a16_succeeds_where_the_length_follows_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that leaves out words which say nothing, and a server that takes any length: the size tells them apart.
    With the server's check the shorter uploads are refused as BAD_HEADER."""

    def sparse(values: Values, params: SecAggParams) -> Words:
        return frame(values, params)[: params.total_words - (0 if values.any() else 2)]

    monkeypatch.setattr("protocol.client_phases.frame", sparse)
    federation = Federation.create(make_manifest())
    checked = Simulation(federation, {c: np.zeros(40, dtype=np.int64) for c in map(ClientId, range(1, 6))})
    checked.run()
    assert set(checked.drops) == {(c, DropReason.BAD_HEADER) for c in map(ClientId, range(1, 6))}
    monkeypatch.setattr("protocol.server.ServerSession._check_header", lambda self, sender, message: None)
    assert sizes_shown(federation, np.zeros(40, dtype=np.int64)) != sizes_shown(federation, np.ones(40, dtype=np.int64))


def sizes_shown(federation: Federation, values: Values) -> list[int]:
    """Lengths of the uploads; what becomes of the sum is not asked."""
    simulation = Simulation(federation, {c: values for c in map(ClientId, range(1, 6))})
    simulation._apply_server(simulation.server.start())
    for _ in range(2):
        simulation._apply_server(simulation.server.close_phase())
    return [len(w) for w in simulation.uploads.values()]


def test_no_word_of_a_clear_input_is_in_the_view() -> None:
    server = observed()
    received = (
        b"".join(np.array(w).tobytes() for w in server.words.values())
        + repr((server.adverts, server.dealt, server.signatures)).encode()
    )
    for client in server.ids:
        clear = frame(server.values[client], server.params)
        for word in clear[2:200]:
            if word:
                assert int(word).to_bytes(8, "little") not in received
