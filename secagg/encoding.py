"""Real vectors to fixed-point integers to packed slots of 64-bit words, and back. SPEC 5.

A value v (units of 1/scale) with |v| <= bound is stored as the unsigned slot v + bound; `slots_per_word` slots of
``64 // slots_per_word`` bits share a word. Sums of at most `max_clients` slots stay below 2^bits: proved at
construction, so no true slot sum carries into its neighbour, and carries caused by masks cancel with the masks (mod
2^64).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secagg.errors import EncodingError

Words = NDArray[np.uint64]
Values = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SlotEncoding:
    """Fixed-point slot encoding with proved headroom.

    Attributes:
        slots_per_word: 2, 3 or 4 slots of 32, 21 or 16 bits.
        scale: Grid steps per unit.
        bound: Largest |value| of one client, in grid steps.
        max_clients: Number of summands for which no slot overflows.
    """

    slots_per_word: int
    scale: int
    bound: int
    max_clients: int

    def __post_init__(self) -> None:
        if self.slots_per_word not in (2, 3, 4):
            raise EncodingError("slots per word", found=self.slots_per_word, expected="2, 3 or 4")
        if self.scale < 1 or self.bound < 1 or self.max_clients < 1:
            raise EncodingError("scale, bound and clients must be positive")
        largest = 2 * self.bound * self.max_clients  # every slot is at most 2 * bound
        if largest >= 1 << self.slot_bits:
            raise EncodingError(
                "no headroom: the sum of all clients' slots can overflow",
                found=f"{largest} for {self.max_clients} clients with bound {self.bound}",
                expected=f"below 2^{self.slot_bits}",
                do="lower the bound, or use fewer slots per word",
            )

    @property
    def slot_bits(self) -> int:
        """Bits of one slot: 32, 21 or 16."""
        return 64 // self.slots_per_word

    def words_for(self, length: int) -> int:
        """Words that hold `length` slots."""
        return -(-length // self.slots_per_word)

    def quantize(self, x: NDArray[np.floating], random_words: Words) -> Values:
        """Unbiased stochastic rounding of ``x * scale`` to integers, shape kept.

        Args:
            x: 1-D finite real values with |x| * scale <= bound.
            random_words: ``len(x)`` uniform 64-bit words from a CSPRNG; the top 53 bits of each decide one rounding.

        Raises:
            EncodingError: NaN, infinity, a value out of range, or too few random words. Nothing is clamped.
        """
        if random_words.shape != np.shape(x):
            raise EncodingError("one random word per value", found=random_words.shape, expected=np.shape(x))
        scaled = np.asarray(x, dtype=np.float64) * self.scale
        if not np.isfinite(scaled).all():
            raise EncodingError(
                "the update holds NaN or infinite values",
                found=f"{int((~np.isfinite(scaled)).sum())} non-finite of {scaled.size}",
                expected="finite values",
                do="lower the learning rate; nothing was sent",
                code="E110",
            )
        floor = np.floor(scaled)
        uniform = (random_words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        values = floor.astype(np.int64) + (uniform < scaled - floor) if _fits(scaled, self.bound) else None
        if values is None or not self._within_bound(values):
            raise EncodingError(
                "a value of the update is out of range",
                found=f"largest magnitude {np.abs(scaled).max() / self.scale:.4g}",
                expected=f"at most {self.bound / self.scale:.4g} (bound / scale of the manifest)",
                do="lower the learning rate or raise the bound in the manifest; nothing was sent",
                code="E111",
            )
        return values

    def dequantize(self, total: Values, count: int) -> NDArray[np.float64]:
        """Mean over `count` clients, in units."""
        return total.astype(np.float64) / (float(self.scale) * count)

    def pack(self, values: Values) -> Words:
        """Slots of ``values + bound``; shape (words_for(len(values)),). Unused slots of the last word are zero."""
        if values.ndim != 1 or not self._within_bound(values):
            raise EncodingError("values to pack are not a vector within the bound", code="E111")
        c, bits = self.slots_per_word, np.uint64(self.slot_bits)
        slots = np.zeros(self.words_for(len(values)) * c, dtype=np.uint64)
        np.add(values, self.bound, out=slots[: len(values)].view(np.int64))
        words = slots[0::c].copy()
        for j in range(1, c):
            words |= slots[j::c] << (bits * np.uint64(j))
        return words

    def unpack(self, words: Words, length: int, count: int) -> Values:
        """Sum of `count` clients' values from the sum of their words: the inverse of `pack` under addition.

        Raises:
            EncodingError: A word count that does not fit `length`, a slot sum above ``2 * bound * count``, or a
                non-zero unused slot: the words are not a sum of `count` encodings.
        """
        if len(words) != self.words_for(length) or not 1 <= count <= self.max_clients:
            raise EncodingError("sum of the wrong size", found=(len(words), count))
        c, bits = self.slots_per_word, self.slot_bits
        slots = np.empty(len(words) * c, dtype=np.int64)
        mask = np.uint64((1 << bits) - 1)
        for j in range(c):
            slots[j::c] = ((words >> np.uint64(bits * j)) & mask).view(np.int64)
        spare_bits = bits * c
        stray = spare_bits < 64 and bool((words >> np.uint64(spare_bits)).any())
        if stray or slots[length:].any() or (slots[:length] > 2 * self.bound * count).any():
            raise EncodingError("the sum is out of range: at least one summand was no valid encoding", code="E112")
        return slots[:length] - self.bound * count

    def _within_bound(self, values: Values) -> bool:
        # not by abs(): NaN cast to int64 is -2^63, and abs(-2^63) is negative
        return not ((values < -self.bound).any() or (values > self.bound).any())


def _fits(scaled: NDArray[np.float64], bound: int) -> bool:
    return bool(np.abs(scaled).max(initial=0.0) <= bound)
