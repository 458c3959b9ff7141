"""The framed, masked vector: layout, applying masks, removing them. SPEC 5.3 and 6.

Layout of one client's input, in words: the payload is the contribution word 1 followed by the packed slots; it is cut
into pieces of ``chunk_words - 1`` and each piece is preceded by a zero word. After unmasking, the zero words of a true
sum are 0 and the contribution word is the number of summands; anything else means that a mask is missing or wrong.

masked_input(u) = frame(u) + PRG(self_u) + sum_{v > u} PRG(s_uv) - sum_{v < u} PRG(s_uv)   (mod 2^64, per word)
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from secagg.encoding import Values, Words
from secagg.errors import EncodingError, ReconstructionError
from secagg.labels import MASKED_INPUT
from secagg.params import SecAggParams
from secagg.prg import Stream
from secagg.transcript import encode
from secagg.types import ClientId, Secret

PIECE_WORDS = 32768  # 256 KiB: mask, scratch and target pieces stay in the cache


@dataclass(frozen=True, slots=True)
class Mask:
    """One PRG seed and the sign with which its stream is added."""

    seed: Secret
    sign: int  # +1 or -1


def pairwise_sign(me: ClientId, other: ClientId) -> int:
    """+ if the other id is larger, - if it is smaller: the two ends cancel."""
    return 1 if me < other else -1


def frame(values: Values, params: SecAggParams) -> Words:
    """Unmasked input of one client: shape (total_words,). Secret: mask it in place before it goes anywhere."""
    if len(values) != params.vector_length:
        raise EncodingError("vector of the wrong length", found=len(values), expected=params.vector_length, code="E113")
    out = np.zeros(params.total_words, dtype="<u8")
    piece = params.chunk_words - 1
    payload = np.concatenate([np.ones(1, dtype=np.uint64), params.encoding.pack(values)])
    for index in range(params.num_chunks):
        part = payload[index * piece : (index + 1) * piece]
        start = index * params.chunk_words
        out[start + 1 : start + 1 + len(part)] = part
    return out


def add_masks(words: Words, masks: Iterable[Mask]) -> None:
    """Add every mask's stream to `words` in place, piece by piece: extra memory is two pieces."""
    streams = [(Stream(mask.seed), mask.sign) for mask in masks]
    zeros = np.zeros(PIECE_WORDS, dtype="<u8")
    scratch = np.empty(PIECE_WORDS, dtype="<u8")
    for start in range(0, len(words), PIECE_WORDS):
        target = words[start : start + PIECE_WORDS]
        buffer = scratch[: len(target)]
        for stream, sign in streams:
            stream.into(buffer, zeros)
            if sign > 0:
                np.add(target, buffer, out=target)
            else:
                np.subtract(target, buffer, out=target)


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
    keep = np.ones(len(total), dtype=bool)
    keep[:: params.chunk_words] = False
    payload = total[keep]
    if int(payload[0]) != count:
        raise ReconstructionError("contribution word", found="another number", expected=f"{count} contributions")
    try:
        return params.encoding.unpack(payload[1:], params.vector_length, count)
    except EncodingError as error:
        raise ReconstructionError(error.what) from None


class InputDigest:
    """Incremental H(y_u) over the chunks of one upload, in order: SHA-256 of the label and the words' bytes."""

    __slots__ = ("_hash",)

    def __init__(self) -> None:
        self._hash = hashlib.sha256(encode(MASKED_INPUT))

    def update(self, chunk: bytes) -> None:
        """Add the next chunk."""
        self._hash.update(chunk)

    def digest(self) -> bytes:
        """32 bytes over everything so far."""
        return self._hash.digest()
