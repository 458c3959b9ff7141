"""The framed, masked vector: layout, applying masks, removing them. SPEC 5.3 and 6.

Layout of one client's input, in words: the payload is the contribution word 1 followed by the packed slots; it is cut
into pieces of ``chunk_words - 1`` and each piece is preceded by a zero word. After unmasking, the zero words of a true
sum are 0 and the contribution word is the number of summands; anything else means that a mask is missing or wrong.

masked_input(u) = frame(u) + PRG(self_u) + sum_{v > u} PRG(s_uv) - sum_{v < u} PRG(s_uv)   (mod 2^64, per word)
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np

from secagg.encoding import Reals, SlotPacker, Values, Words
from secagg.errors import EncodingError, ReconstructionError
from secagg.labels import MASKED_INPUT
from secagg.params import SecAggParams
from secagg.prg import Stream
from secagg.transcript import encode
from secagg.types import ClientId, Rng, Secret

PIECE_WORDS = 32768  # 256 KiB: mask, scratch and target pieces stay in the cache
MASKS_AT_ONCE = 256  # cipher contexts kept open; more masks take further passes over the vector

_OPERATION: dict[int, Callable[[Words, Words, Words], Words]] = {1: np.add, -1: np.subtract}


@dataclass(frozen=True, slots=True)
class Mask:
    """One PRG seed and the sign with which its stream is added."""

    seed: Secret
    sign: int  # +1 or -1


@dataclass(frozen=True, slots=True, eq=False)
class Framed:
    """One client's input, rounded, range-checked and framed, but not masked. Secret; 8 bytes for 2 to 4 values.

    What a client keeps while an attempt may still be repeated: each attempt masks a copy.
    """

    words: Words = field(repr=False)  # shape (total_words,)
    params: SecAggParams

    def copy(self, params: SecAggParams) -> Words:
        """The words for one attempt with these parameters, to be masked in place."""
        if params != self.params:
            raise EncodingError("an input that was framed for other parameters", code="E113")
        return self.words.copy()

    def wipe(self) -> None:
        """Overwrite with zeros."""
        self.words.fill(0)


def pairwise_sign(me: ClientId, other: ClientId) -> int:
    """+ if the other id is larger, - if it is smaller: the two ends cancel."""
    return 1 if me < other else -1


def frame(values: Values, params: SecAggParams) -> Words:
    """Unmasked input of one client: shape (total_words,). Secret: mask it in place before it goes anywhere.

    Raises:
        EncodingError: `values` has another length (E113) or a value beyond the bound (E111).
    """
    _check_shape(values.shape, params)
    packer, c = SlotPacker(params.encoding), params.encoding.slots_per_word

    def write(first: int, target: Words) -> None:
        packer.integers(values[c * first : c * (first + len(target))], target)

    return _frame(params, write)


def frame_real(x: Reals, params: SecAggParams, rng: Rng) -> Framed:
    """Round, check, pack and frame in one pass: ``frame(params.encoding.quantize(x, ...))`` without its temporaries.

    Args:
        x: Real values, shape (vector_length,), |x| * scale <= bound.
        params: Of the task.
        rng: CSPRNG, asked for 4 bytes per value, in order: a little-endian number for each rounding.

    Raises:
        EncodingError: `x` has another shape (E113), NaN or infinite values (E110), or a value out of range (E111).
            Nothing is clamped, and no frame is left.
    """
    _check_shape(x.shape, params)
    packer, c = SlotPacker(params.encoding), params.encoding.slots_per_word

    def write(first: int, target: Words) -> None:
        part = x[c * first : c * (first + len(target))]
        if not packer.reals(part, np.frombuffer(rng(4 * len(part)), dtype="<u4"), target):
            raise params.encoding.refusal(x)

    return Framed(_frame(params, write), params)


class MaskStreams:
    """The sum of several masks, block after block."""

    __slots__ = ("_scratch", "_streams", "_zeros")

    def __init__(self, masks: Iterable[Mask]) -> None:
        self._streams = [(Stream(mask.seed), _OPERATION[mask.sign]) for mask in masks]
        self._zeros = np.zeros(PIECE_WORDS, dtype="<u8")
        self._scratch = np.empty(PIECE_WORDS, dtype="<u8")

    def add_to(self, target: Words) -> None:
        """Add the next ``len(target)`` words of every stream to `target`, in place."""
        for start in range(0, len(target), PIECE_WORDS):
            piece = target[start : start + PIECE_WORDS]
            buffer = self._scratch[: len(piece)]
            zeros, out = self._zeros[: len(piece)].view(np.uint8).data, buffer.view(np.uint8).data
            for stream, operation in self._streams:
                stream.write(zeros, out)
                operation(piece, buffer, piece)
        self._scratch.fill(0)  # keystream


def add_masks(words: Words, masks: Iterable[Mask]) -> None:
    """Add every mask's stream to `words` in place, piece by piece: extra memory is two pieces."""
    rest = iter(masks)
    while group := list(islice(rest, MASKS_AT_ONCE)):
        MaskStreams(group).add_to(words)


def chunks(words: Words, params: SecAggParams) -> Iterator[bytes]:
    """The upload, chunk by chunk, as little-endian bytes. Replayable: it only reads `words`."""
    for start in range(0, len(words), params.chunk_words):
        yield words[start : start + params.chunk_words].astype("<u8", copy=False).tobytes()


def unframe(total: Words, count: int, params: SecAggParams) -> Values:
    """Sum of `count` clients' values from the unmasked sum of their frames; int64, shape (vector_length,).

    Raises:
        ReconstructionError: A zero word is not 0 or the contribution word is not `count`: the sum is wrong, and it is
            not returned.
    """
    if len(total) != params.total_words:
        raise ReconstructionError("sum of the wrong length", found=len(total), expected=params.total_words)
    zero_words = total[:: params.chunk_words]
    if zero_words.any():
        raise ReconstructionError(
            "a zero word of the unmasked sum is not zero: some mask or masked input was wrong",
            found=f"{int((zero_words != 0).sum())} of {len(zero_words)} wrong",
            expected="all zero",
        )
    if int(total[1]) != count:
        raise ReconstructionError("contribution word", found="another number", expected=f"{count} contributions")
    if not 1 <= count <= params.encoding.max_clients:
        raise ReconstructionError("sum of the wrong size", found=count, expected=f"1..{params.encoding.max_clients}")
    out = np.empty(params.vector_length, dtype=np.int64)
    packer, c = SlotPacker(params.encoding), params.encoding.slots_per_word
    try:
        for span in _spans(params):
            payload = total[span.start : span.stop].reshape(span.rows, -1)[:, 1:].reshape(-1)  # a copy if rows > 1
            slots = payload[1:] if span.first == 0 else payload
            first = max(0, span.first - 1)
            packer.unpack(slots, count, out[c * first : c * (first + len(slots))])
    except EncodingError as error:
        raise ReconstructionError(error.what) from None
    return out


class _Span(NamedTuple):
    """Whole chunks that are handled at once: ``frame[start:stop]`` is `rows` chunks, from payload word `first` on."""

    start: int
    stop: int
    rows: int
    first: int


def _spans(params: SecAggParams) -> Iterator[_Span]:
    """The chunks in order, small ones in groups of about PIECE_WORDS words."""
    chunk, piece = params.chunk_words, params.chunk_words - 1
    whole, rest = divmod(params.payload_words, piece)
    at_once = max(1, PIECE_WORDS // chunk)
    for index in range(0, whole, at_once):
        rows = min(at_once, whole - index)
        yield _Span(index * chunk, (index + rows) * chunk, rows, index * piece)
    if rest:
        yield _Span(whole * chunk, whole * chunk + 1 + rest, 1, whole * piece)


def _frame(params: SecAggParams, write: Callable[[int, Words], None]) -> Words:
    """The frame whose slot words ``first..first + len(target)`` are put by ``write(first, target)``, in order."""
    out = np.empty(params.total_words, dtype="<u8")
    for span in _spans(params):
        block = out[span.start : span.stop].reshape(span.rows, -1)
        block[:, 0] = 0
        payload = block[0, 1:] if span.rows == 1 else np.empty(block[:, 1:].size, dtype="<u8")
        if span.first == 0:
            payload[0] = 1  # the contribution word
            write(0, payload[1:])
        else:
            write(span.first - 1, payload)
        if span.rows > 1:
            block[:, 1:] = payload.reshape(span.rows, -1)
    return out


def _check_shape(shape: tuple[int, ...], params: SecAggParams) -> None:
    if shape != (params.vector_length,):
        raise EncodingError("vector of the wrong length", found=shape, expected=(params.vector_length,), code="E113")


class InputDigest:
    """Incremental H(y_u) over the chunks of one upload, in order: SHA-256 of the label and the words' bytes."""

    __slots__ = ("_hash",)

    def __init__(self, label: bytes = MASKED_INPUT) -> None:
        """Another `label` for uploads of another kind."""
        self._hash = hashlib.sha256(encode(label))

    def update(self, chunk: bytes | memoryview) -> None:
        """Add the next chunk, or several at once."""
        self._hash.update(chunk)

    def digest(self) -> bytes:
        """32 bytes over everything so far."""
        return self._hash.digest()
