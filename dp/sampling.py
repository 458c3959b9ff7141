"""Everything random in a privacy claim: keystream, Poisson sample, discrete Gaussian, stochastic rounding.

Every function here draws from the exact distribution that it names. No decision is left to the rounding of
a float: a comparison of a uniform real U with a probability p is made on the first 53 or 64 bits of U, with
a float for p whose error is bounded by IEEE 754 arithmetic alone (no libm is trusted), and where those bits
cannot decide, integers do (`_LazyUniform`), with as many further bits of U as it takes.

Not constant time: how long a draw takes depends on the draw. See design page DP, section 2.
"""

import os
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final, NoReturn, SupportsIndex

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from dp.errors import PrivacyError, UnsupportedMechanismError

SEED_BYTES: Final = 32
MAX_SIGMA: Final = 2**40  # keeps |y| far below 2^53: int64 holds it and float64 holds it exactly

_WORD_BITS: Final = 64
_CHUNK: Final = 1 << 14  # candidates per pass; the temporaries stay in the second-level cache


class Csprng:
    """AES-256 in counter mode over zeros: a keystream as secure as AES-256 (NIST SP 800-38A, section 6.5).

    One object is one stream. A copy would draw the same noise twice, and the difference of two releases
    would then be noiseless; so copying and pickling raise TypeError, and a forked child is refused.
    """

    __slots__ = ("_keystream", "_pid")

    def __init__(self, seed: bytes) -> None:
        """Start the stream of `seed` (32 bytes, uniformly random, used once, never logged)."""
        if len(seed) != SEED_BYTES:
            raise PrivacyError(
                "seed of the CSPRNG has the wrong length", found=len(seed), expected=SEED_BYTES, code="E231"
            )
        self._keystream = Cipher(algorithms.AES(bytes(seed)), modes.CTR(bytes(16))).encryptor()
        self._pid = os.getpid()

    @classmethod
    def from_os(cls) -> "Csprng":
        """A stream seeded by the operating system's generator."""
        return cls(os.urandom(SEED_BYTES))

    def take(self, n: int) -> bytes:
        """The next `n` bytes of the stream; raises PrivacyError in a forked child."""
        if os.getpid() != self._pid:
            raise PrivacyError(
                "a CSPRNG was carried over a fork, so parent and child would draw the same noise",
                do="create the Csprng in the process that uses it",
                code="E232",
            )
        return self._keystream.update(bytes(n))

    def words(self, n: int) -> NDArray[np.uint64]:
        """The next `n` 64-bit words, uniform, little-endian; read-only."""
        return np.frombuffer(self.take(8 * n), dtype="<u8")

    def __repr__(self) -> str:
        return "Csprng(<redacted>)"

    def __copy__(self) -> NoReturn:
        raise TypeError("a Csprng cannot be copied: a copied stream repeats its noise")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a Csprng cannot be pickled: a copied stream repeats its noise")


def poisson_sample(rng: Csprng, population: int, numerator: int, denominator: int) -> NDArray[np.int64]:
    """Indices of a Poisson sample: each of `population` records independently, with probability exactly
    numerator / denominator. Sorted, possibly empty.

    Raises UnsupportedMechanismError unless 0 < numerator <= denominator and population >= 0.
    """
    if population < 0 or not 0 < numerator <= denominator:
        raise UnsupportedMechanismError(
            "sampling probability outside (0, 1]",
            found=f"{numerator}/{denominator} of {population} records",
            expected="0 < numerator <= denominator",
            code="E233",
        )
    if numerator == denominator:
        return np.arange(population, dtype=np.int64)
    threshold, remainder = divmod(numerator << _WORD_BITS, denominator)
    words = rng.words(population)
    included = words < np.uint64(threshold)
    for i in np.flatnonzero(words == np.uint64(threshold)):  # probability 2^-64 each
        included[i] = _bernoulli(rng, remainder, denominator)
    return np.flatnonzero(included).astype(np.int64, copy=False)


def stochastic_round(rng: Csprng, values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Round each value to one of its two neighbouring integers so that the mean is exactly the value.

    Any shape; finite, |value| <= 2^62. Raises PrivacyError otherwise.
    """
    magnitude = np.abs(np.asarray(values, dtype=np.float64))
    if magnitude.size and not bool((magnitude <= 2.0**62).all()):
        raise PrivacyError("value outside the integer range", expected="finite, at most 2^62 in magnitude", code="E234")
    whole = np.floor(magnitude)
    # Exact: the fraction of a float is a float, and scaling by a power of two does not round.
    scaled = ((magnitude - whole) * 2.0**_WORD_BITS).ravel()
    threshold = np.floor(scaled)
    words = rng.words(scaled.size)
    cut = threshold.astype(np.uint64)
    up = words < cut
    for i in np.flatnonzero(words == cut):
        rest = Fraction(float(scaled[i])) - int(cut[i])
        up[i] = _bernoulli(rng, rest.numerator, rest.denominator)
    rounded = whole.astype(np.int64) + up.reshape(whole.shape)
    return np.where(np.signbit(values), -rounded, rounded)


def discrete_gaussian(rng: Csprng, sigma: int | tuple[int, int], size: int) -> NDArray[np.int64]:
    """`size` exact draws of the discrete Gaussian N_Z(0, sigma^2): P(y) proportional to exp(-y^2 / (2 sigma^2)).

    `sigma` is an integer, or (numerator, denominator) of sigma^2; 1 <= sigma <= 2^40. sigma^2 is the
    variance parameter; for sigma >= 1 the real variance is below it by less than 10^-6 relative.
    Raises UnsupportedMechanismError out of range.

    Method: rejection from the discrete Laplace of Canonne, Kamath and Steinke 2020 (arXiv 2004.00010,
    algorithms 2 and 3) with the two rejections of the paper merged into one, and t a power of two. The
    magnitude is y = u + t v with u uniform in {0..t-1} and P(v) = (1 - 1/e) e^-v; it is kept with probability
    exp(-gamma), gamma = y^2/(2 sigma^2) - v + c. Where c = max_v (v - t^2 v^2/(2 sigma^2)), gamma >= 0, and
    P(v) exp(-gamma) is proportional to exp(-y^2/(2 sigma^2)). The sign is a fair bit; minus zero is rejected.
    Two candidates make about one draw: 7 to 12 million draws a second on one core of an EPYC, for any sigma.
    """
    law = _law(_variance(sigma))
    parts: list[NDArray[np.int64]] = []
    missing = size
    while missing > 0:
        kept = _candidates(rng, law, min(_CHUNK, int(missing / law.acceptance * 1.03) + 32))[:missing]
        parts.append(kept)
        missing -= kept.size
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def discrete_gaussian_exact(rng: Csprng, sigma: int | tuple[int, int], size: int) -> NDArray[np.int64]:
    """The same law as `discrete_gaussian` by algorithms 1 to 3 of Canonne, Kamath and Steinke 2020 as printed,
    one draw at a time in Python integers, sharing no code with the fast path but the keystream: its oracle."""
    variance = _variance(sigma)
    t = _floor_sqrt(variance) + 1
    out = np.empty(size, dtype=np.int64)
    for i in range(size):
        while True:
            y = _discrete_laplace(rng, t)
            gap = abs(y) - variance / t
            if _bernoulli_exp(rng, gap * gap / (2 * variance)):
                break
        out[i] = y
    return out


# ---- the fast path ---------------------------------------------------------------------------------------------

_TABLE_STEPS: Final = 64  # table of exp(-i/64); the rest of the exponent is below 1/64
_TABLE_TOP: Final = 64  # exponents are cut to 64: exp(-64) < 2^-92 is below the margin
_MARGIN: Final = 2.0**-39  # where |u - p| is smaller, the floats do not decide; bound of the error derived below
_CELL_BITS: Final = 16  # bits of the uniform that usually suffice for v
_BOUNDARY: Final = 255  # cell that holds some e^-k: its bits do not suffice


@dataclass(frozen=True, slots=True)
class _Law:
    """Constants of one discrete Gaussian."""

    variance: Fraction
    shift: int  # t = 2^shift, with sigma/sqrt(2) < t <= sqrt(2) sigma
    offset: Fraction  # c of `discrete_gaussian`
    acceptance: float  # expected share of kept candidates; speed only


@lru_cache(maxsize=64)
def _law(variance: Fraction) -> _Law:
    shift = 0
    while 4 ** (shift + 1) <= 2 * variance:
        shift += 1
    ratio = Fraction(4**shift) / variance
    offset, v = Fraction(0), 1
    while (better := v - ratio * v * v / 2) > offset:  # concave in v: the first fall is the end
        offset, v = better, v + 1
    acceptance = 0.792 / float(ratio) ** 0.5 * float(np.exp(-float(offset)))
    return _Law(variance, shift, offset, acceptance)


def _candidates(rng: Csprng, law: _Law, count: int) -> NDArray[np.int64]:
    """Draw `count` candidates and return the kept ones, in order."""
    words = rng.words(2 * count)
    first, second = words[:count], words[count:]
    # Bits 48..63 decide v, bit 47 the sign, the low `shift` <= 41 bits are u: disjoint, so independent.
    v = _V_OF_CELL[first >> np.uint64(64 - _CELL_BITS)].astype(np.int64)
    for i in np.flatnonzero(v == _BOUNDARY):  # 12 cells of 65536
        v[i] = _LazyUniform(rng, int(first[i]) >> (64 - _CELL_BITS), _CELL_BITS).geometric()
    y = (first & np.uint64((1 << law.shift) - 1)).astype(np.int64)
    y += v << law.shift

    # Error of p, with w = 2^-53 and all figures relative unless said: y < 2^53 exact; y^2/(2 sigma^2) 4w of at
    # most 82 (a gamma below 64 implies v <= 18), the two additions 150w absolute, so gamma is off by
    # less than 500w < 2^-44 absolute; the series is off by (1/64)^6/720 < 2^-45; table, Horner's rule and
    # product together by less than 20w. The sum stays below 2^-42, and p <= 1.
    # u is below the uniform by at most w. So |u - p| >= 2^-39 decides, with room.
    magnitude = y.astype(np.float64)
    gamma = magnitude * magnitude
    gamma *= float(1 / (2 * law.variance))
    gamma -= v
    gamma += float(law.offset)
    p = _exp_of_minus(gamma)
    uniform = (second >> np.uint64(11)).astype(np.float64)
    uniform *= 2.0**-53
    p -= uniform
    keep = p > 0.0
    for i in np.flatnonzero(np.abs(p) < _MARGIN):
        exact = Fraction(int(y[i]) ** 2) / (2 * law.variance) - int(v[i]) + law.offset
        keep[i] = _LazyUniform(rng, int(second[i]), _WORD_BITS).below_exp(exact)

    negative = (first >> np.uint64(63 - _CELL_BITS)) & np.uint64(1) != 0
    keep &= ~(negative & (y == 0))
    return np.where(negative, -y, y)[keep]


def _exp_of_minus(gamma: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(-gamma) for gamma >= 0 (below 0 by rounding: taken as 0; above 64: as 64), by IEEE additions and
    multiplications only, so that its error bound holds on every machine. Overwrites `gamma`."""
    np.maximum(gamma, 0.0, out=gamma)
    np.minimum(gamma, float(_TABLE_TOP), out=gamma)
    cell = (gamma * _TABLE_STEPS).astype(np.int64)
    gamma -= cell * (1.0 / _TABLE_STEPS)  # exact: the difference of two near multiples of one ulp
    series = gamma * (-1 / 5)
    for k in (4, 3, 2, 1):  # 1 - r(1 - r/2(1 - r/3(1 - r/4(1 - r/5))))
        series += 1.0
        series *= gamma
        series *= -1.0 / k
    series += 1.0
    series *= _EXP_TABLE[cell]
    return series


# ---- integers: the decisions that floats do not make ---------------------------------------------------------------


@lru_cache(maxsize=1024)
def _exp_interval(gamma: Fraction, bits: int) -> tuple[int, int]:
    """Integers (low, high) with low <= 2^bits exp(-gamma) <= high and high - low <= 3; gamma >= 0.

    exp(-gamma) = exp(-1)^i exp(-f). With 64 guard bits, a Taylor series of n terms is off by at most 2n + 4 units (one
    floor a term, halved at least by the next; then the tail), and each of at most 2^16 products adds one unit and the
    errors of its factors: less than 2^40 units in all, below one unit after the guard bits are cut.
    """
    whole = gamma.numerator // gamma.denominator
    if whole > bits:  # exp(-whole) < 2^-bits
        return 0, 1
    precision = bits + 64
    value = _exp_series(gamma - whole, precision)
    inverse_e = _exp_series(Fraction(1), precision)
    for _ in range(whole):
        value = value * inverse_e >> precision
    return max((value >> 64) - 1, 0), (value >> 64) + 2


def _exp_series(f: Fraction, precision: int) -> int:
    """2^precision exp(-f) up to 2n + 4 units, n the number of terms; 0 <= f <= 1."""
    total = term = 1 << precision
    k = 0
    while term:
        k += 1
        term = term * f.numerator // (f.denominator * k)
        total += -term if k & 1 else term
    return total


class _LazyUniform:
    """A uniform real in [0, 1) of which the first bits are known; further bits are drawn when they matter."""

    __slots__ = ("_bits", "_rng", "_value")

    def __init__(self, rng: Csprng, value: int, bits: int) -> None:
        self._rng, self._value, self._bits = rng, value, bits

    def below_exp(self, gamma: Fraction) -> bool:
        """Whether U < exp(-gamma), gamma >= 0 rational. Ends, as exp(-gamma) is irrational for gamma > 0."""
        if gamma == 0:
            return True
        while True:
            low, high = _exp_interval(gamma, self._bits)
            if self._value + 1 <= low:
                return True
            if self._value >= high:
                return False
            self._value = (self._value << _WORD_BITS) | int.from_bytes(self._rng.take(8), "big")
            self._bits += _WORD_BITS

    def geometric(self) -> int:
        """The number of k >= 1 with U < e^-k: geometric, P(v) = (1 - 1/e) e^-v."""
        v = 0
        while self.below_exp(Fraction(v + 1)):
            v += 1
        return v


def _tables() -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """v of each 16-bit cell (or _BOUNDARY), and exp(-i/64), each correctly rounded up to one ulp."""
    cells = np.zeros(1 << _CELL_BITS, dtype=np.uint8)
    for k in range(1, 13):  # e^-12 < 2^-16: later bounds lie in cell 0 as well
        bound = _exp_interval(Fraction(k), _WORD_BITS)[0] >> (_WORD_BITS - _CELL_BITS)
        cells[:bound] = k
        cells[bound] = _BOUNDARY
    powers = [1 << 256]  # the last is about 2^164: its accumulated error of 2^13 units is far below an ulp
    step = _exp_series(Fraction(1, _TABLE_STEPS), 256)
    while len(powers) <= _TABLE_TOP * _TABLE_STEPS:
        powers.append(powers[-1] * step >> 256)
    return cells, np.array([float(Fraction(power, 1 << 256)) for power in powers])


_V_OF_CELL, _EXP_TABLE = _tables()


# ---- the oracle and shared integer draws ---------------------------------------------------------------------------


def _variance(sigma: int | tuple[int, int]) -> Fraction:
    """sigma^2 as a fraction; raises UnsupportedMechanismError outside [1, 2^80]."""
    numerator, denominator = (max(sigma, 0) ** 2, 1) if isinstance(sigma, int) else sigma
    if denominator < 1 or not denominator <= numerator <= denominator * MAX_SIGMA**2:
        raise UnsupportedMechanismError(
            "standard deviation of the discrete Gaussian out of range", found=sigma, expected="1 to 2^40", code="E235"
        )
    return Fraction(numerator, denominator)


def _floor_sqrt(x: Fraction) -> int:
    root = 0
    for bit in range(41, -1, -1):
        if (root | 1 << bit) ** 2 <= x:
            root |= 1 << bit
    return root


def _uniform_below(rng: Csprng, n: int) -> int:
    """Uniform in {0..n-1}, by rejection."""
    size = (n.bit_length() + 7) // 8
    mask = (1 << n.bit_length()) - 1
    while (value := int.from_bytes(rng.take(size), "big") & mask) >= n:
        pass
    return value


def _bernoulli(rng: Csprng, numerator: int, denominator: int) -> bool:
    """True with probability numerator / denominator."""
    return _uniform_below(rng, denominator) < numerator


def _bernoulli_exp(rng: Csprng, gamma: Fraction) -> bool:
    """True with probability exp(-gamma), gamma >= 0: algorithm 1 of the paper."""
    while gamma > 1:
        if not _bernoulli_exp(rng, Fraction(1)):
            return False
        gamma -= 1
    k = 1
    while _bernoulli(rng, gamma.numerator, gamma.denominator * k):
        k += 1
    return k % 2 == 1


def _discrete_laplace(rng: Csprng, t: int) -> int:
    """P(y) proportional to exp(-|y| / t): algorithm 2 of the paper with s = 1."""
    while True:
        u = _uniform_below(rng, t)
        if not _bernoulli_exp(rng, Fraction(u, t)):
            continue
        v = 0
        while _bernoulli_exp(rng, Fraction(1)):
            v += 1
        magnitude = u + t * v
        negative = _bernoulli(rng, 1, 2)
        if not (negative and magnitude == 0):
            return -magnitude if negative else magnitude
