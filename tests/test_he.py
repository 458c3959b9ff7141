"""BFV behind `AdditiveScheme`: exact sums, one opening, and a reason for each refusal."""

import copy
import math
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tenseal  # noqa: TID251 - to see what the library itself would serialise
from ciphertexts import Sealed, framed, unframed

from dp.sampling import Csprng
from secagg.encoding import Words
from secagg.errors import EncodingError, ParameterError
from secagg.he import bfv, guard
from secagg.he.bfv import Bfv, BfvOpening
from secagg.he.context_frame import public_key_of, with_public_key
from secagg.he.errors import CiphertextError, DisagreementError, OpeningError
from secagg.he.limbs import recombine, split
from secagg.he.scheme import DEGREE, MAX_BLOCKS, MAX_CLIENTS, BfvParams, has_headroom, noise_bound, widest_limbs

ROOT = Path(__file__).parent.parent
SMALL = {16: BfvParams(3, 16), 22: BfvParams(3, 22), 32: BfvParams(3, 32)}
P = SMALL[32]


def words(count: int) -> Words:
    """Uniform."""
    return np.frombuffer(Csprng.from_os().take(8 * count), dtype="<u8").astype(np.uint64)


def opened(params: BfvParams, vectors: list[Words]) -> Words:
    """What one opening gives for these clients' vectors."""
    opening = Bfv().opening(params, len(vectors[0]), range(1, len(vectors) + 1))
    encryptor = Bfv().encryptor(params, opening.public_key)
    for client, vector in enumerate(vectors, 1):
        for block, ciphertext in enumerate(encryptor.encrypt(vector)):
            opening.add(client, block, ciphertext)
    return opening.open_()


@pytest.fixture(scope="module")
def pair() -> tuple[BfvOpening, list[bytes]]:
    """An opening for clients 1 and 2, and three ciphertexts of one block under its key."""
    opening = Bfv().opening(P, 10, [1, 2])
    encryptor = Bfv().encryptor(P, opening.public_key)
    return opening, [next(encryptor.encrypt(words(10))) for _ in range(3)]


# -- sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limb_bits", [16, 22, 32])
@pytest.mark.parametrize("extra", [1, 0, -1])
def test_sums_are_exact_modulo_2_to_the_64(limb_bits: int, extra: int) -> None:
    params = SMALL[limb_bits]
    count = 2 * params.words_per_block + extra
    vectors = [words(count) for _ in range(3)]
    assert np.array_equal(opened(params, vectors), vectors[0] + vectors[1] + vectors[2])


@pytest.mark.parametrize("limb_bits", [16, 22, 32])
def test_extreme_words(limb_bits: int) -> None:
    highest = np.full(5, 2**64 - 1, np.uint64)
    assert opened(SMALL[limb_bits], [highest] * 3).tolist() == [2**64 - 3] * 5
    assert opened(SMALL[limb_bits], [np.zeros(5, np.uint64)] * 3).tolist() == [0] * 5


def test_fewer_clients_than_the_parameters_allow() -> None:
    params = BfvParams(100, 32)
    vectors = [words(7) for _ in range(2)]
    assert np.array_equal(opened(params, vectors), vectors[0] + vectors[1])


def test_two_encryptions_of_one_vector_differ(pair: tuple[BfvOpening, list[bytes]]) -> None:
    encryptor = Bfv().encryptor(P, pair[0].public_key)
    vector = words(3)
    first, second = (guard.check_ciphertext(next(encryptor.encrypt(vector)), P) for _ in range(2))
    assert (first != second).mean() > 0.99


def test_encryption_is_lazy_and_checks_first() -> None:
    opening = Bfv().opening(P, 10_000, [1, 2])
    encryptor = Bfv().encryptor(P, opening.public_key)
    blocks = encryptor.encrypt(words(10_000))
    assert iter(blocks) is blocks and len(list(blocks)) == P.blocks_for(10_000) == 5
    for wrong in (np.zeros(3, np.int64), np.zeros((2, 2), np.uint64)):
        with pytest.raises(EncodingError, match="words"):
            encryptor.encrypt(wrong)  # type: ignore[arg-type]


def test_each_block_is_within_the_announced_size(pair: tuple[BfvOpening, list[bytes]]) -> None:
    assert all(len(c) <= guard.max_ciphertext_bytes(P) for c in pair[1])


# -- limbs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limb_bits", [16, 22, 32])
def test_limb_sums_forget_their_carries(limb_bits: int) -> None:
    """Two sets of summands with one sum modulo 2^64 and other carries come out alike."""
    params = BfvParams(4, limb_bits)
    one = [words(50) for _ in range(4)]
    other = [words(50) for _ in range(3)]
    other.append(sum(one) - sum(other))  # type: ignore[operator]
    sums = [np.sum([split(v, limb_bits) for v in vectors], axis=0) for vectors in (one, other)]
    assert not np.array_equal(sums[0], sums[1])
    assert np.array_equal(recombine(sums[0], params), recombine(sums[1], params))


def test_a_limb_out_of_range_is_no_sum() -> None:
    good = np.array([P.largest_sum, 0], np.int64)
    assert recombine(good - P.plain_modulus, P).tolist() == recombine(good, P).tolist()  # the library centres values
    for bad in (P.largest_sum + 1, P.plain_modulus - 1, -1):
        with pytest.raises(DisagreementError) as caught:
            recombine(np.array([0, bad], np.int64), P)
        assert str(abs(bad)) not in str(caught.value)


# -- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limb_bits", [16, 22, 32])
@pytest.mark.parametrize("clients", [2, 3, 100, None])
def test_parameters_keep_their_promises(limb_bits: int, clients: int | None) -> None:
    params = BfvParams(clients or MAX_CLIENTS[limb_bits], limb_bits)
    t, q = params.plain_modulus, params.modulus
    assert t > 2 * params.largest_sum and t % (2 * DEGREE) == 1
    assert q % (2 * DEGREE) == params.special_modulus % (2 * DEGREE) == 1
    assert q.bit_length() == params.special_modulus.bit_length() == params.coefficient_bits
    assert (q * params.special_modulus).bit_length() <= 109  # Homomorphic Encryption Standard, N = 4096, 128 bits
    assert has_headroom(q, t, params.clients)
    assert 4 * t * noise_bound(params.clients) < q
    fewer = params.coefficient_bits - 1
    assert fewer < 36 or not has_headroom((1 << fewer) - 1, t, params.clients)


def test_the_tail_of_the_noise_is_that_of_the_proof() -> None:
    """2·exp(-x^2 / (2·variance)) for N coefficients of 2^20 blocks is at most 2^-64."""
    for clients in (2, 100, 65_537):
        x, variance = noise_bound(clients) - 2 * clients, clients * (DEGREE + 1) / 12
        assert math.log2(2 * DEGREE * MAX_BLOCKS) - x**2 / (2 * variance) / math.log(2) <= -64


@pytest.mark.parametrize(("clients", "bits"), [(2, 32), (128, 32), (129, 22), (1024, 22), (1025, 16), (65_537, 16)])
def test_the_widest_limbs_that_fit(clients: int, bits: int) -> None:
    assert widest_limbs(clients) == bits
    BfvParams(clients, bits)


def test_parameters_that_do_not_exist() -> None:
    for clients, bits in ((1, 32), (129, 32), (1025, 22), (65_538, 16), (3, 21), (0, 16), (-1, 16)):
        with pytest.raises(ParameterError):
            BfvParams(clients, bits)
    with pytest.raises(ParameterError):
        widest_limbs(65_538)


# -- the order of calls -----------------------------------------------------------------------------------------------


def test_one_opening_and_no_more() -> None:
    opening = Bfv().opening(P, 4, [1, 2])
    encryptor = Bfv().encryptor(P, opening.public_key)
    for client in (1, 2):
        opening.add(client, 0, next(encryptor.encrypt(words(4))))
    opening.open_()
    with pytest.raises(OpeningError, match="opened already"):
        opening.open_()
    with pytest.raises(OpeningError, match="opened already"):
        opening.add(1, 1, b"")


def test_a_refused_opening_is_the_only_one_too() -> None:
    opening, other = (Bfv().opening(P, 4, [1, 2]) for _ in range(2))
    for client, key in ((1, opening.public_key), (2, other.public_key)):
        opening.add(client, 0, next(Bfv().encryptor(P, key).encrypt(words(4))))
    with pytest.raises(DisagreementError):
        opening.open_()
    with pytest.raises(OpeningError, match="opened already"):
        opening.open_()


def test_summands_are_counted(pair: tuple[BfvOpening, list[bytes]]) -> None:
    _, ciphertexts = pair
    opening = Bfv().opening(P, P.words_per_block + 1, [1, 2])
    with pytest.raises(OpeningError, match="outside the set"):
        opening.add(3, 0, ciphertexts[0])
    with pytest.raises(OpeningError, match="out of order"):
        opening.add(1, 1, ciphertexts[0])
    opening.add(1, 0, ciphertexts[0])
    with pytest.raises(OpeningError, match="twice"):
        opening.add(1, 0, ciphertexts[1])
    opening.add(1, 1, ciphertexts[0])
    with pytest.raises(OpeningError, match="no further block"):
        opening.add(1, 2, ciphertexts[0])
    with pytest.raises(OpeningError, match="missing"):
        opening.open_()
    opening.add(2, 0, ciphertexts[0])
    with pytest.raises(OpeningError, match="1 clients incomplete"):
        opening.open_()


def test_a_sum_of_one_or_of_nothing_cannot_be_begun() -> None:
    for clients in ([], [1], [1, 1], [1, 2, 3, 4]):
        with pytest.raises(ParameterError, match="clients"):
            Bfv().opening(P, 4, clients)
    for count in (0, -1, MAX_BLOCKS * P.words_per_block + 1):
        with pytest.raises(ParameterError, match="blocks"):
            Bfv().opening(P, count, [1, 2])


def test_a_refused_ciphertext_leaves_the_sum_alone(pair: tuple[BfvOpening, list[bytes]]) -> None:
    opening = Bfv().opening(P, 10, [1, 2])
    encryptor = Bfv().encryptor(P, opening.public_key)
    vectors = [words(10) for _ in range(2)]
    for client, vector in enumerate(vectors, 1):
        good = next(encryptor.encrypt(vector))
        for bad in (good[:-1], good + b"\0", b""):
            with pytest.raises(CiphertextError):
                opening.add(client, 0, bad)
        opening.add(client, 0, good)
    assert np.array_equal(opening.open_(), vectors[0] + vectors[1])


def test_a_sum_over_fewer_of_the_clients_of_a_key() -> None:
    opening = Bfv().opening(P, 10, [1, 2, 3])
    for clients in ([], [1], [1, 1], [1, 4], [1, 2, 2]):
        with pytest.raises(OpeningError):
            opening.expect(clients)
    opening.expect([1, 3])
    encryptor = Bfv().encryptor(P, opening.public_key)
    vectors = {client: words(10) for client in (1, 3)}
    opening.add(1, 0, next(encryptor.encrypt(vectors[1])))
    with pytest.raises(OpeningError, match="before any block"):
        opening.expect([1, 3])
    with pytest.raises(OpeningError, match="outside the set"):
        opening.add(2, 0, next(encryptor.encrypt(words(10))))
    opening.add(3, 0, next(encryptor.encrypt(vectors[3])))
    assert np.array_equal(opening.open_(), vectors[1] + vectors[3])
    with pytest.raises(OpeningError):
        opening.expect([1, 3])


# -- what comes from another key or was altered -----------------------------------------------------------------------


def altered(ciphertext: bytes, place: int) -> bytes:
    """The same ciphertext with another number at one place."""
    sealed = Sealed.read(unframed(ciphertext))
    at = len(guard.ciphertext_shape(P).leading) + 8 * place
    number = int.from_bytes(sealed.content[at : at + 8], "little")
    return framed(sealed.patched(at, ((number + P.modulus // 3) % P.modulus).to_bytes(8, "little")).write())


@pytest.mark.parametrize("place", [0, 4095, 4096, 8191])
def test_a_changed_coefficient_is_noticed_when_the_sum_is_opened(place: int) -> None:
    opening = Bfv().opening(P, 10, [1, 2])
    encryptor = Bfv().encryptor(P, opening.public_key)
    opening.add(1, 0, next(encryptor.encrypt(words(10))))
    opening.add(2, 0, altered(next(encryptor.encrypt(words(10))), place))
    with pytest.raises(DisagreementError, match="no sum of limbs") as caught:
        opening.open_()
    assert caught.value.code == "E107"


@pytest.mark.parametrize("limb_bits", [16, 22, 32])
def test_the_wrong_key_is_noticed(limb_bits: int) -> None:
    params = SMALL[limb_bits]
    opening, other = (Bfv().opening(params, 10, [1, 2]) for _ in range(2))
    opening.add(1, 0, next(Bfv().encryptor(params, opening.public_key).encrypt(words(10))))
    opening.add(2, 0, next(Bfv().encryptor(params, other.public_key).encrypt(words(10))))
    with pytest.raises(DisagreementError, match="no sum of limbs"):
        opening.open_()


def test_a_key_of_other_parameters_is_refused() -> None:
    key = Bfv().opening(BfvParams(4, 32), 10, [1, 2]).public_key
    with pytest.raises(CiphertextError, match="leading fields"):
        Bfv().encryptor(P, key)


def test_a_ciphertext_of_other_parameters_is_refused(pair: tuple[BfvOpening, list[bytes]]) -> None:
    for clients, bits in ((4, 32), (3, 22)):
        opening = Bfv().opening(BfvParams(clients, bits), 10, [1, 2])
        with pytest.raises(CiphertextError, match="leading fields"):
            opening.add(1, 0, pair[1][0])


# -- secrets ----------------------------------------------------------------------------------------------------------


def secret_key(opening: BfvOpening) -> bytes:
    """The secret key's coefficients in the library's form, as the library itself would write them."""
    context = opening._context
    assert context is not None
    whole = context.serialize(
        save_public_key=False, save_secret_key=True, save_galois_keys=False, save_relin_keys=False
    )
    return Sealed.read(whole[whole.rindex(b"\x5e\xa1\x10\x04\x03") :]).content[-2 * 8 * DEGREE :]


def test_no_serialisation_carries_the_secret_key() -> None:
    opening = Bfv().opening(P, 10, [1, 2])
    secret = secret_key(opening)
    assert len(set(secret)) > 200
    encryptor = Bfv().encryptor(P, opening.public_key)
    ciphertext = next(encryptor.encrypt(words(10)))
    public, inner = Sealed.read(opening.public_key).content, Sealed.read(unframed(ciphertext)).content
    pieces = [secret[i : i + 16] for i in range(0, len(secret), 4096)]
    for data in (opening.public_key, ciphertext, public, inner):
        assert not any(piece in data for piece in pieces)
    assert encryptor._context.is_public()
    with pytest.raises(ValueError, match="context is public"):
        encryptor._context.secret_key()


def test_a_context_with_a_private_part_is_not_read() -> None:
    context = Bfv().opening(P, 10, [1, 2])._context
    assert context is not None
    parts = {"save_galois_keys": False, "save_relin_keys": False}
    public = context.serialize(save_public_key=True, save_secret_key=False, **parts)
    assert guard.check_public_key(public_key_of(public), P)
    with pytest.raises(CiphertextError, match="more than a public part"):
        public_key_of(context.serialize(save_public_key=True, save_secret_key=True, **parts))
    for other in (public[1:], public[:-1], with_public_key(public, b"")[:80]):
        with pytest.raises(CiphertextError):
            public_key_of(other)


def test_no_code_of_ours_asks_the_library_for_a_secret_key() -> None:
    for top in ("secagg", "protocol", "ffm"):
        for file in (ROOT / top).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"save_secret_key\s*=\s*(?!False)", text), file
            assert "context_from" not in text or file.name == "bfv.py", file


def test_an_opening_shows_and_gives_nothing() -> None:
    opening = Bfv().opening(P, 10, [1, 2])
    assert repr(opening) == "<BfvOpening open, 2 clients, 10 words>"
    for act in (BfvOpening.__reduce__, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="never"):
            act(opening)
    assert "Context" not in repr(Bfv().encryptor(P, opening.public_key))


def test_keys_are_fresh() -> None:
    assert len({Bfv().opening(P, 10, [1, 2]).public_key for _ in range(5)}) == 5


def test_the_key_is_forgotten_after_the_opening() -> None:
    opening = Bfv().opening(P, 4, [1, 2])
    encryptor = Bfv().encryptor(P, opening.public_key)
    for client in (1, 2):
        opening.add(client, 0, next(encryptor.encrypt(words(4))))
    opening.open_()
    assert opening._context is None and repr(opening).startswith("<BfvOpening closed")


def test_another_version_of_the_library_is_refused() -> None:
    bfv.check_version(tenseal.__version__)
    for other in ("0.3.16", "0.4.0", "0.3.18.dev0"):
        with pytest.raises(ParameterError, match="version of the HE library"):
            bfv.check_version(other)


def test_peak_memory_is_one_sum_and_a_few_blocks() -> None:
    """Adding many clients' blocks does not grow the process."""
    opening = Bfv().opening(P, 20 * P.words_per_block, [1, 2, 3])
    encryptor = Bfv().encryptor(P, opening.public_key)
    ciphertext = next(encryptor.encrypt(words(P.words_per_block)))
    opening.add(1, 0, ciphertext)
    tracemalloc.start()
    for client in (1, 2, 3):
        for block in range(1 if client == 1 else 0, 20):
            opening.add(client, block, ciphertext)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * len(ciphertext)
