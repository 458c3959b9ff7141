"""A public rotation that spreads a vector over many coordinates, so that its sums fit into narrow slots. SPEC 5.4.

x -> H·D·x / √m: D changes signs by a public stream, H is the Hadamard matrix of each block of m = 4^k coordinates. It
is orthogonal, so it changes no norm. On integers H·D·x is exact, without the division. `RotatedSum` is what protocol R2
does with the integer sum of a sample: rotate, divide with a dither, cut off, add a share of the noise.

How far a coordinate of a rotated vector can lie off is a matter of probability over the signs. Nothing in the privacy
argument stands on it: what would not fit is cut off **before** the noise, which moves no two vectors apart.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dp.errors import UnsupportedMechanismError
from dp.mechanism import GaussianMechanism
from dp.rounding import norm_bound
from dp.sampling import Csprng

LEAST_SIZE: Final = 64
MOST_ROOT: Final = 2**10  # of a block: sums of 2^20 values below 2^31 stay below 2^52, so float64 holds them exactly
DITHER: Final = Fraction(10604, 1000)  # above sqrt(2 ln(1/β)) at β = 2^-81


def block_root(size: int) -> int:
    """√m, a power of two: m is the largest power of four that is at most a sixteenth of `size`, and at most 4^10."""
    if size < LEAST_SIZE:
        raise UnsupportedMechanismError("a vector too short to be rotated", found=size, expected=f">= {LEAST_SIZE}")
    root = 2
    while root < MOST_ROOT and (2 * root) ** 2 * 16 <= size:
        root *= 2
    return root


def rotated_length(size: int) -> int:
    """Coordinates after the rotation: whole blocks, less than a sixteenth more."""
    block = block_root(size) ** 2
    return -(-size // block) * block


@dataclass(frozen=True, slots=True)
class Rotation:
    """The rotation of vectors of `size` coordinates; `seed`, 32 bytes, is public."""

    size: int
    seed: bytes = field(repr=False)

    @property
    def root(self) -> int:
        """√m."""
        return block_root(self.size)

    @property
    def length(self) -> int:
        """Coordinates after it."""
        return rotated_length(self.size)

    def signs(self) -> NDArray[np.float64]:
        """1 or -1 for each rotated coordinate: -1 where bit i of the stream (byte i // 8, weight 2^(i % 8)) is set."""
        bits = np.unpackbits(np.frombuffer(Csprng(self.seed).take(-(-self.length // 8)), np.uint8), bitorder="little")
        return np.where(bits[: self.length] == 0, 1.0, -1.0)

    def sum_of_integers(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """H·D·x, exactly, for integers whose magnitudes in a block add up to less than 2^52: the caller's promise."""
        return self._hadamard(values.astype(np.float64)).astype(np.int64)

    def of_reals(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """H·D·x / √m."""
        return self._hadamard(values) / self.root

    def back(self, total: NDArray[np.signedinteger]) -> NDArray[np.float64]:
        """D·H·y / √m, the first `size` coordinates: the inverse. Exact for sums below 2^31 in magnitude."""
        blocks = total.astype(np.float64).reshape(-1, self.root, self.root)
        flat: NDArray[np.float64] = _both_sides(blocks, self.root).reshape(-1)
        return np.asarray((flat * self.signs())[: self.size] / self.root)

    def _hadamard(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        padded = np.zeros(self.length)
        padded[: self.size] = values
        padded *= self.signs()
        return _both_sides(padded.reshape(-1, self.root, self.root), self.root).reshape(-1)


def _both_sides(blocks: NDArray[np.float64], root: int) -> NDArray[np.float64]:
    """The Hadamard matrix of root² rows is the Kronecker square of that of `root`: H X H for a block as a square."""
    small = _small(root)
    return np.asarray(small @ blocks @ small)


@lru_cache(maxsize=4)
def _small(root: int) -> NDArray[np.float64]:
    made = np.ones((1, 1))
    while len(made) < root:
        made = np.block([[made, made], [made, -made]])
    return made


@dataclass(frozen=True, slots=True)
class RotatedSum:
    """Protocol R2 in narrow slots: an integer sum, of which one record moves at most `clip_steps`, onto a coarser grid.

    y = ⌊(H·D·S + U) / 2^shift⌋, U uniform in {0..2^shift-1} for each coordinate: two sums that are a row apart give
    integers whose difference is the stochastic rounding of a vector of norm √m·clip_steps / 2^shift, so of norm
    `noise.clip_steps` at most but with probability 2^-81, which δ has room for. Proof: docs/proofs/rotation.md.
    """

    rotation: Rotation
    shift: int
    limit: int  # largest magnitude before the noise
    noise: GaussianMechanism  # on the coarser grid

    @classmethod
    def sensitivity(cls, clip_steps: int, size: int, shift: int) -> int:
        """L2, in steps of the coarser grid."""
        return norm_bound(-(-clip_steps * block_root(size) >> shift), rotated_length(size), DITHER)

    def released(self, total: NDArray[np.int64], rng: Csprng) -> NDArray[np.int64]:
        """The rotated, rounded and limited sum: un-noised."""
        rotated = self.rotation.sum_of_integers(total)
        dither = (rng.words(rotated.size) >> np.uint64(63 - self.shift) >> np.uint64(1)).astype(np.int64)
        rounded = np.right_shift(rotated + dither, self.shift)  # rounds down
        return np.asarray(np.clip(rounded, -self.limit, self.limit), dtype=np.int64)

    def privatize(self, total: NDArray[np.int64], rng: Csprng) -> NDArray[np.int64]:
        """With this client's share of the noise."""
        return self.noise.privatize(self.released(total, rng), rng)
