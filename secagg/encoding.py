"""Real vectors to fixed-point integers to packed slots of 64-bit words, and back. SPEC 5.

A value v (units of 1/scale) with |v| <= bound is stored as the unsigned slot v + bound; `slots_per_word` slots of
``64 // slots_per_word`` bits share a word. Sums of at most `max_clients` slots stay below 2^bits: proved at
construction, so no true slot sum carries into its neighbour, and carries caused by masks cancel with the masks (mod
2^64).

Vectors are long and memory is slow, so every pass runs over pieces that stay in the cache: from real values to packed
words there is no temporary as long as the vector.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from secagg.errors import EncodingError

Words = NDArray[np.uint64]
Values = NDArray[np.int64]
Halves = NDArray[np.uint32]
Reals = NDArray[np.floating]

PIECE = 16384  # values per pass over one slot position: float64 and uint64 scratch of 128 KiB each
_FRACTION_BITS = 32
_Number = TypeVar("_Number", bound=np.number)


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

    def quantize(self, x: Reals, random_words: Halves | Words) -> Values:
        """Unbiased stochastic rounding of ``x * scale`` to integers, shape kept.

        Args:
            x: 1-D finite real values with |x| * scale <= bound.
            random_words: ``len(x)`` uniform words from a CSPRNG, uint32, or uint64 of which the upper half counts; each
                decides one rounding. The mean is off by less than 2^-32 of a grid step (SPEC 5.1).

        Raises:
            EncodingError: NaN, infinity, a value out of range, or another number of random words. Nothing is clamped.
        """
        if random_words.shape != np.shape(x):
            raise EncodingError("one random word per value", found=random_words.shape, expected=np.shape(x))
        out = np.empty(len(x), dtype=np.int64)
        packer = SlotPacker(self)
        for start in range(0, len(x), PIECE):
            part = slice(start, start + PIECE)
            words = random_words[part]
            upper = words if words.dtype.itemsize == 4 else words >> np.uint64(32)
            if not packer.round_to_slots(x[part], upper, out[part].view(np.uint64)):
                raise self.refusal(x)
        out -= self.bound
        return out

    def refusal(self, x: Reals) -> EncodingError:
        """What to say about a vector of which at least one value is not finite (E110) or out of range (E111)."""
        wrong = int(x.size - np.isfinite(x).sum())
        if wrong:
            return EncodingError(
                "the update holds NaN or infinite values",
                found=f"{wrong} non-finite of {x.size}",
                expected="finite values",
                do="lower the learning rate; nothing was sent",
                code="E110",
            )
        return EncodingError(
            "a value of the update is out of range",
            found=f"largest magnitude {max(float(x.max()), -float(x.min())):.4g}",
            expected=f"at most {self.bound / self.scale:.4g} (bound / scale of the manifest)",
            do="lower the learning rate or raise the bound in the manifest; nothing was sent",
            code="E111",
        )

    def dequantize(self, total: Values, count: int) -> NDArray[np.float64]:
        """Mean over `count` clients, in units."""
        return total.astype(np.float64) / (float(self.scale) * count)

    def pack(self, values: Values) -> Words:
        """Slots of ``values + bound``; shape (words_for(len(values)),). Unused slots of the last word are zero."""
        if values.ndim != 1:
            raise EncodingError("values to pack are not a vector within the bound", code="E111")
        out = np.empty(self.words_for(len(values)), dtype="<u8")
        SlotPacker(self).integers(values, out)
        return out

    def unpack(self, words: Words, length: int, count: int) -> Values:
        """Sum of `count` clients' values from the sum of their words: the inverse of `pack` under addition.

        Raises:
            EncodingError: A word count that does not fit `length`, a slot sum above ``2 * bound * count``, or a
                non-zero unused slot: the words are not a sum of `count` encodings.
        """
        if len(words) != self.words_for(length) or not 1 <= count <= self.max_clients:
            raise EncodingError("sum of the wrong size", found=(len(words), count))
        out = np.empty(length, dtype=np.int64)
        SlotPacker(self).unpack(words, count, out)
        return out


class SlotPacker:
    """Passes between values and packed words over pieces in the cache; holds the scratch of one piece.

    Slot j of all words of a piece is handled at once: ``values[j::slots_per_word]`` is read with a stride, everything
    after it runs over contiguous scratch.
    """

    __slots__ = ("_encoding", "_scaled", "_slots")

    def __init__(self, encoding: SlotEncoding) -> None:
        self._encoding = encoding
        self._scaled = np.empty(PIECE, dtype=np.float64)
        self._slots = np.empty(PIECE, dtype=np.uint64)

    def integers(self, values: Values, out: Words) -> None:
        """Pack `values` (any signed integer type) into ``words_for(len(values))`` words.

        Raises:
            EncodingError: A value outside [-bound, bound], or no integers. `out` is then useless.
        """
        bound = self._encoding.bound
        if values.dtype.kind != "i":
            raise EncodingError("values to pack are not integers", found=values.dtype, expected="int64", code="E111")
        for first, last in self._pieces(len(out)):
            for j, lane, slots in self._lanes(values, first, last):
                np.add(lane, bound, out=slots.view(np.int64), dtype=np.int64)
                if slots.max() > 2 * bound:  # as unsigned numbers, so what is below -bound is huge
                    raise EncodingError("values to pack are not a vector within the bound", code="E111")
                self._place(j, slots, out[first:last])

    def reals(self, x: Reals, random_words: Halves, out: Words) -> bool:
        """Round `x` as `SlotEncoding.quantize` does, one uint32 of `random_words` per value, and pack.

        False for NaN, infinity or a value out of range; `out` is then useless.
        """
        c = self._encoding.slots_per_word
        for first, last in self._pieces(len(out)):
            for j, lane, slots in self._lanes(x, first, last):
                if not self.round_to_slots(lane, random_words[c * first + j : c * last : c], slots):
                    return False
                self._place(j, slots, out[first:last])
        return True

    def round_to_slots(self, x: Reals, random_words: Halves | Words, slots: Words) -> bool:
        """Slot numbers ``round(x * scale) + bound`` of at most PIECE values; False if one does not fit.

        In fixed point with 32 bits of fraction: x * scale = whole + fraction, and the result is whole + 1 where the
        random number, below 2^32, is below fraction * 2^32. Adding 2^32 - 1 - random and dropping the fraction does it.
        """
        scale, bound = self._encoding.scale, self._encoding.bound
        limit = float(bound) * 2.0**_FRACTION_BITS
        scaled = self._scaled[: len(x)]
        with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN are found by the comparison
            np.multiply(x, float(scale) * 2.0**_FRACTION_BITS, out=scaled, dtype=np.float64)
            if not (scaled.max() <= limit and scaled.min() >= -limit):
                return False
        np.copyto(slots.view(np.int64), scaled, casting="unsafe")  # truncates; in range, as was just checked
        offset = (bound << _FRACTION_BITS) + (1 << _FRACTION_BITS) - 1
        np.add(slots, np.uint64(offset), out=slots)  # modulo 2^64: the sum is never negative
        np.subtract(slots, random_words, out=slots)
        np.right_shift(slots, np.uint64(_FRACTION_BITS), out=slots)
        return True

    def unpack(self, words: Words, count: int, out: Values) -> None:
        """Slot sums of `count` encodings minus ``count * bound``; `out` takes as many as fit its length.

        Raises:
            EncodingError: The words are no sum of `count` encodings.
        """
        c, bits, bound = self._encoding.slots_per_word, self._encoding.slot_bits, self._encoding.bound
        mask = np.uint64((1 << bits) - 1)
        valid = True
        for first, last in self._pieces(len(words)):
            part = words[first:last]
            valid &= bits * c == 64 or int(part.max()) >> (bits * c) == 0
            for j in range(c):
                slots = self._slots[: len(part)]
                np.right_shift(part, np.uint64(bits * j), out=slots)
                np.bitwise_and(slots, mask, out=slots)
                lane = out[c * first + j : c * last : c]
                valid &= int(slots.max()) <= 2 * bound * count and not slots[len(lane) :].any()
                np.subtract(slots[: len(lane)].view(np.int64), bound * count, out=lane)
        if not valid:
            raise EncodingError("the sum is out of range: at least one summand was no valid encoding", code="E112")

    def _pieces(self, words: int) -> Iterator[tuple[int, int]]:
        return ((first, min(first + PIECE, words)) for first in range(0, words, PIECE))

    def _lanes(self, values: NDArray[_Number], first: int, last: int) -> Iterator[tuple[int, NDArray[_Number], Words]]:
        """(j, the values for slot j of the words first..last, scratch for their slots), where there are any."""
        c = self._encoding.slots_per_word
        for j in range(c):
            lane = values[c * first + j : c * last : c]
            if len(lane):
                yield j, lane, self._slots[: len(lane)]

    def _place(self, j: int, slots: Words, words: Words) -> None:
        """Put `slots` into slot j of `words`; slot 0 comes first and overwrites. `slots` is used up."""
        if j == 0:
            words[...] = slots
            return
        np.left_shift(slots, np.uint64(self._encoding.slot_bits * j), out=slots)
        part = words[: len(slots)]  # the last word may have no slot j
        np.bitwise_or(part, slots, out=part)
