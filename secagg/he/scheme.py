"""The interface of an additive scheme, and BFV parameters with proved headroom. SECAGG.md 6.

A 64-bit word is cut into limbs; a block is one ciphertext and holds `DEGREE` limbs. Limbs add as integers, and the
plaintext modulus t is above **twice** the largest sum: no limb wraps, and a block that decrypts to noise (another key,
a changed byte, too much noise) is noticed, because each of its limbs is out of range with probability one half. The
noise of a sum of fresh ciphertexts stays below q / (2t) but for a probability of 2^-64 over a whole round. All of it
is checked when parameters are constructed. SPEC 3.8.

Everything that another implementation needs (moduli, parameter ids) is computed here, without any HE library.
"""

import functools
import hashlib
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from secagg.encoding import Words
from secagg.errors import ParameterError

DEGREE = 4096
"""Ring dimension N, and limbs in a block. log2 of q times the key-switching prime stays below 109: 128-bit security
(Homomorphic Encryption Standard 2018, ternary secret)."""

LIBRARY = "tenseal 0.3.18"
"""The one version whose formats the guard knows; part of what a manifest fixes."""

LIMBS_PER_WORD = {16: 4, 22: 3, 32: 2}
MAX_CLIENTS = {16: 65_537, 22: 1024, 32: 128}
_COEFFICIENT_BITS = range(36, 55)
MAX_BLOCKS = 1 << 20  # that the bound on the noise covers: more than 10^9 words
_TAIL = 135  # at least 2·ln(2·N·MAX_BLOCKS·2^64) = 134.47
_BFV = 1  # scheme number inside the parameter id


@dataclass(frozen=True, slots=True)
class BfvParams:
    """Everything that follows from the number of clients and the width of a limb.

    Args:
        clients: Largest number of summands, 2 to 65,537 (16-bit limbs), 1024 (22) or 128 (32).
        limb_bits: 16, 22 or 32: 4, 3 or 2 limbs per 64-bit word.

    Attributes:
        plain_modulus: t, the smallest prime above twice `largest_sum` with t = 1 mod 2N.
        coefficient_bits: Bits of q; the smallest for which `noise_bound` has a spare bit below q / (2t).
        modulus: q, of ciphertexts.
        special_modulus: P; public keys live modulo q·P, ciphertexts modulo q.

    Raises:
        ParameterError: another width, or too few or too many clients for it.
    """

    clients: int
    limb_bits: int
    plain_modulus: int = field(init=False)
    coefficient_bits: int = field(init=False)
    modulus: int = field(init=False)
    special_modulus: int = field(init=False)

    def __post_init__(self) -> None:
        if self.limb_bits not in LIMBS_PER_WORD:
            raise ParameterError("bits of a limb", found=self.limb_bits, expected="16, 22 or 32")
        most = MAX_CLIENTS[self.limb_bits]
        if not 2 <= self.clients <= most:
            raise ParameterError(
                f"clients with {self.limb_bits}-bit limbs",
                found=self.clients,
                expected=f"2 to {most}",
                do="choose narrower limbs for more clients",
            )
        t = _prime_above(2 * self.largest_sum)
        for bits in _COEFFICIENT_BITS:
            q, special = _primes_below(bits)
            if has_headroom(q, t, self.clients):
                break
        else:
            raise ParameterError("no coefficient modulus leaves room for the noise", found=f"{self.clients} clients")
        for name, value in (("plain_modulus", t), ("coefficient_bits", bits), ("modulus", q)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "special_modulus", special)

    @property
    def limbs_per_word(self) -> int:
        """4, 3 or 2."""
        return LIMBS_PER_WORD[self.limb_bits]

    @property
    def largest_sum(self) -> int:
        """Largest value of one limb in the sum of all clients."""
        return self.clients * ((1 << self.limb_bits) - 1)

    @property
    def words_per_block(self) -> int:
        """Whole words in one block: 1024, 1365 or 2048."""
        return DEGREE // self.limbs_per_word

    def blocks_for(self, words: int) -> int:
        """Blocks that hold `words` words."""
        return -(-words // self.words_per_block)

    @property
    def ciphertext_id(self) -> bytes:
        """Parameter id of ciphertexts, 32 bytes: BLAKE2b over scheme, N, q, t as the library defines it."""
        return _parameter_id((self.modulus,), self.plain_modulus)

    @property
    def key_id(self) -> bytes:
        """Parameter id of public keys, 32 bytes."""
        return _parameter_id((self.modulus, self.special_modulus), self.plain_modulus)


def widest_limbs(clients: int) -> int:
    """Bits of the widest limbs, and so the fewest bytes, that `clients` summands allow. Raises ParameterError."""
    fitting = [bits for bits, most in MAX_CLIENTS.items() if clients <= most]
    if not fitting:
        raise ParameterError("clients of a sum", found=clients, expected=f"at most {max(MAX_CLIENTS.values())}")
    return max(fitting)


def noise_bound(clients: int) -> int:
    """Largest noise of a sum of `clients` fresh ciphertexts, in units of the coefficients; exceeded in one round with
    probability at most 2^-64.

    Encryption works modulo q·P and divides by P: what remains per ciphertext is the rounding r0 + r1·s, with r0 and r1
    uniform in [-1/2, 1/2] and s in {-1, 0, 1}^N, so sub-Gaussian with variance at most (N + 1) / 12. Independent over
    clients: the sum has n times that, and the tail bound 2·exp(-x^2 / 2) holds for N coefficients of 2^20 blocks. The
    encryption errors divided by P (below 1) and the rounding of q·m / t (1/2) count with their largest values.
    """
    return 2 * clients + math.isqrt(_TAIL * clients * (DEGREE + 1) // 12) + 1


def has_headroom(modulus: int, plain_modulus: int, clients: int) -> bool:
    """Whether sums of `clients` ciphertexts decrypt exactly, with one spare bit: 2·noise < q / (2t)."""
    return 4 * plain_modulus * noise_bound(clients) < modulus


class Encryptor(Protocol):
    """Encrypts words under somebody else's public key."""

    def encrypt(self, words: Words) -> Iterator[bytes]:
        """One ciphertext per block of words, in order; the last block is filled up with zeros."""


class Opening(Protocol):
    """A fresh key pair and the running sum of one attempt: opened once, by the decryptor only."""

    @property
    def public_key(self) -> bytes:
        """What clients encrypt with. There is no way to get at the secret key."""

    def expect(self, clients: Sequence[int]) -> None:
        """The sum is over exactly these of the clients that the key was made for; before the first `add`."""

    def add(self, client: int, block: int, ciphertext: bytes) -> None:
        """Add block number `block` of one client."""

    def open_(self) -> Words:
        """The sum modulo 2^64 of all clients' words, once."""


class AdditiveScheme(Protocol):
    """What the protocol needs of homomorphic encryption: exact sums of words modulo 2^64."""

    def encryptor(self, params: BfvParams, public_key: bytes) -> Encryptor:
        """Raises CiphertextError if the peer's `public_key` is not what `params` allow."""

    def opening(self, params: BfvParams, words: int, clients: Sequence[int]) -> Opening:
        """Fresh keys for the sum of these clients' vectors of `words` words, or of fewer of them: see `expect`."""


def _prime_above(value: int) -> int:
    candidate = value // (2 * DEGREE) * 2 * DEGREE + 1
    while candidate <= value or not _is_prime(candidate):
        candidate += 2 * DEGREE
    return candidate


@functools.cache
def _primes_below(bits: int) -> tuple[int, int]:
    """The second largest and the largest prime of `bits` bits that is 1 mod 2N, as the library picks q and P."""
    found: list[int] = []
    candidate = (1 << bits) + 1 - 2 * DEGREE
    while len(found) < 2:
        if _is_prime(candidate):
            found.append(candidate)
        candidate -= 2 * DEGREE
    return found[1], found[0]


def _is_prime(value: int) -> bool:
    """Miller and Rabin with the first twelve primes as bases: no error below 3.3·10^24 (Sorenson, Webster 2015)."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if value < 2 or any(value % p == 0 for p in bases):
        return value in bases
    odd, twos = value - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in bases:
        power = pow(base, odd, value)
        if power in (1, value - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % value
            if power == value - 1:
                break
        else:
            return False
    return True


def _parameter_id(moduli: tuple[int, ...], plain_modulus: int) -> bytes:
    numbers = (_BFV, DEGREE, *moduli, plain_modulus)
    return hashlib.blake2b(struct.pack(f"<{len(numbers)}Q", *numbers), digest_size=32).digest()
