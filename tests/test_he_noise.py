"""Noise of the largest allowed sums, measured with the secret key, against the bound and against what decryption bears.

The secret key is read out of a context that is made here; nothing of ours can. Arithmetic modulo q is written again.
"""

import math

import numpy as np
import pytest
import tenseal  # noqa: TID251 - to get at the secret key, which our own code cannot
from ciphertexts import Sealed
from numpy.typing import NDArray

from secagg.he import guard
from secagg.he.bfv import BfvOpening
from secagg.he.scheme import DEGREE, MAX_CLIENTS, BfvParams, noise_bound

N = DEGREE


def context_of(params: BfvParams) -> tenseal.Context:
    sizes = [params.coefficient_bits] * 2
    return tenseal.context(
        tenseal.SCHEME_TYPE.BFV, N, plain_modulus=params.plain_modulus, coeff_mod_bit_sizes=sizes, n_threads=1
    )


def secret_of(context: tenseal.Context, q: int) -> NDArray[np.int64]:
    """The ternary secret: the inverse of SEAL's negacyclic NTT (bit-reversed order, smallest root), modulo q."""
    whole = context.serialize(save_secret_key=True)
    content = Sealed.read(whole[whole.rindex(b"\x5e\xa1\x10\x04\x03") :]).content
    values = [int(v) for v in np.frombuffer(content[-2 * 8 * N : -8 * N], "<u8")]
    root = smallest_root(q)
    inverse = pow(root, -1, q)
    size, step = 1, N  # undo the butterflies from the last to the first
    while step > 1:
        step //= 2
        for block in range(step):
            power = pow(inverse, reversed_bits(step + block), q)
            start = 2 * size * block
            for j in range(start, start + size):
                a, b = values[j], values[j + size]
                values[j], values[j + size] = (a + b) % q, (a - b) * power % q
        size *= 2
    scale = pow(N, -1, q)
    centred = [((v * scale + q // 2) % q) - q // 2 for v in values]
    assert set(centred) <= {-1, 0, 1}, "not the secret key"
    return np.array(centred, np.int64)


def reversed_bits(index: int) -> int:
    """`index` of log2 N bits, reversed."""
    return int(f"{index:0{N.bit_length() - 1}b}"[::-1], 2)


def smallest_root(q: int) -> int:
    """The smallest primitive 2N-th root of unity."""
    generator = next(g for g in range(2, 1000) if pow(g, (q - 1) // 2, q) == q - 1)
    root = pow(generator, (q - 1) // (2 * N), q)
    square = root * root % q
    smallest = root
    for _ in range(N):
        root = root * square % q
        smallest = min(smallest, root)
    return smallest


def times_secret(values: NDArray[np.uint64], secret: NDArray[np.int64], q: int) -> list[int]:
    """Negacyclic product, exact: three pieces of 18 bits, each convolved with room to spare in a double."""
    total = [0] * N
    for piece in range(3):
        part = ((values >> np.uint64(18 * piece)) & np.uint64(2**18 - 1)).astype(np.float64)
        whole = np.fft.irfft(np.fft.rfft(part, 2 * N) * np.fft.rfft(secret.astype(np.float64), 2 * N), 2 * N)
        exact = np.rint(whole).astype(np.int64)
        assert float(np.abs(whole - exact).max()) < 0.1
        for i, v in enumerate((exact[:N] - exact[N:]).tolist()):
            total[i] = (total[i] + (v << 18 * piece)) % q
    return total


def noise_of(coefficients: NDArray[np.uint64], secret: NDArray[np.int64], params: BfvParams) -> int:
    """Largest noise: t·(c0 + c1·s) is t times the noise modulo q, whatever the plaintext."""
    q, t = params.modulus, params.plain_modulus
    product = times_secret(coefficients[1], secret, q)
    scaled = [t * (int(c) + p) % q for c, p in zip(coefficients[0].tolist(), product, strict=True)]
    return max(min(v, q - v) for v in scaled) // t


@pytest.mark.parametrize("limb_bits", sorted(MAX_CLIENTS))
def test_the_largest_allowed_sum_is_exact_with_noise_to_spare(limb_bits: int) -> None:
    """Every limb of every summand at its largest; beyond 1024 summands each fresh ciphertext counts many times over,
    which makes more noise than as many fresh ones."""
    params = BfvParams(MAX_CLIENTS[limb_bits], limb_bits)
    context = context_of(params)
    secret = secret_of(context, params.modulus)
    limbs = tenseal.plain_tensor([(1 << limb_bits) - 1] * N, dtype="int")
    fresh = min(params.clients, 1025)
    each, rest = divmod(params.clients, fresh)
    total, q = np.zeros((2, N), np.uint64), np.uint64(params.modulus)
    single = 0
    for i in range(fresh):
        numbers = guard.check_ciphertext(tenseal.bfv_vector(context, limbs).serialize(), params)
        if i == 0:
            single = noise_of(numbers, secret, params)
        total = (total + numbers * np.uint64(each + (i < rest))) % q  # at most 54 and 7 bits
    opened = np.array(tenseal.bfv_vector_from(context, guard.frame_ciphertext(total, params)).decrypt()) % (
        params.plain_modulus
    )
    assert opened.tolist() == [params.largest_sum] * N
    noise, bears = noise_of(total, secret, params), params.modulus // (2 * params.plain_modulus)
    margin = math.log2(bears / noise)
    print(f"{limb_bits}-bit limbs, {params.clients} summands: noise {single}, then {noise}; margin {margin:.1f} bits")
    assert single <= noise_bound(1) and noise <= noise_bound(params.clients) * max(1, math.isqrt(each))
    assert margin > 1


def test_noise_beyond_the_bound_is_noticed_and_not_returned() -> None:
    """One ciphertext more often than the parameters allow by far: the limbs are no sum any more."""
    params = BfvParams(2, 32)
    opening = BfvOpening(params, 10, [1, 2])
    assert opening._context is not None
    numbers = guard.check_ciphertext(tenseal.bfv_vector(opening._context, [1] * N).serialize(), params)
    times = params.modulus // params.plain_modulus  # so often that noise 1 fills what decryption bears, twice over
    framed = guard.frame_ciphertext((numbers.astype(object) * times % params.modulus).astype(np.uint64), params)
    values = np.array(tenseal.bfv_vector_from(opening._context, framed).decrypt()) % params.plain_modulus
    assert (values > params.largest_sum).mean() == pytest.approx(0.5, abs=0.05)


def test_the_measurement_sees_noise() -> None:
    """A coefficient of c0 that is off by 10^4 is measured as noise of 10^4."""
    params = BfvParams(3, 16)
    context = context_of(params)
    secret = secret_of(context, params.modulus)
    numbers = guard.check_ciphertext(tenseal.bfv_vector(context, [5] * N).serialize(), params).copy()
    before = noise_of(numbers, secret, params)
    numbers[0, 17] = (int(numbers[0, 17]) + 10_000) % params.modulus
    assert before < noise_bound(1) < 9_000 < noise_of(numbers, secret, params) < 11_000
