"""The mask generator: AES-256-CTR keystream, zero IV, read as little-endian 64-bit words. SPEC 3.6.

Word w of a stream is bytes [8w, 8w+8) of the keystream; block b is AES(key, b as 128-bit big-endian). A chunk that
starts at a multiple of 16 bytes can be expanded on its own.

From block 2 on, a stream that starts at word 0 can be read off AES-256-GCM: with a nonce of 12 zero bytes GCM enciphers
its first block with AES(key, 2), its second with AES(key, 3), and so on (SP 800-38D, 6.5 and 7.1), so what it makes of
zeros are the bytes of CTR. Where the processor has the wide AES instructions (AVX-512) OpenSSL computes GCM with them
and CTR without, which is more than twice the speed; elsewhere GCM is less than half as fast. Only a clock can tell, and
this module has none: `choose_faster` takes one. The tag is never computed; nothing here is authenticated.
"""

from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import AEADEncryptionContext, Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB, GCM
from numpy.typing import NDArray

from secagg.errors import ParameterError
from secagg.types import Secret

BLOCK_BYTES = 16
SEED_BYTES = 32

_TRIAL_BYTES = 1 << 17
_TRIALS = 5
_GCM_NONCE = bytes(12)
_FIRST_BLOCKS = (0).to_bytes(BLOCK_BYTES, "big") + (1).to_bytes(BLOCK_BYTES, "big")  # the counters that GCM leaves out


def _ctr(key: AES256, block: int) -> AEADEncryptionContext | CipherContext:
    return Cipher(key, CTR(block.to_bytes(BLOCK_BYTES, "big"))).encryptor()


def _gcm(key: AES256) -> AEADEncryptionContext | CipherContext:
    return Cipher(key, GCM(_GCM_NONCE)).encryptor()


class _Way:
    """How streams of this process are made: speed, never bytes."""

    from_gcm = False


def choose_faster(clock: Callable[[], float]) -> None:
    """Time CTR against GCM, about a millisecond, and make the streams of this process by the faster.

    Args:
        clock: Seconds, as `time.perf_counter`.
    """
    zeros, out, key = bytes(_TRIAL_BYTES), bytearray(_TRIAL_BYTES), AES256(bytes(SEED_BYTES))
    best = [float("inf"), float("inf")]
    for _ in range(_TRIALS):
        for i, encryptor in enumerate((_ctr(key, 0), _gcm(key))):
            began = clock()
            encryptor.update_into(zeros, out)
            best[i] = min(best[i], clock() - began)
    _Way.from_gcm = best[1] < best[0]


class Stream:
    """Sequential reader of one seed's keystream. One stream per use; its repr is bare.

    A stream that is read off GCM ends after 64 GiB: there the cipher raises ValueError.
    """

    __slots__ = ("_encryptor", "_head")

    def __init__(self, seed: Secret, first_word: int = 0) -> None:
        if len(seed) != SEED_BYTES:
            raise ParameterError("wrong seed length", found=len(seed), expected=SEED_BYTES)
        block, rest = divmod(8 * first_word, BLOCK_BYTES)
        if rest:
            raise ParameterError("a stream starts on a block boundary", found=first_word, expected="an even word")
        key = AES256(seed.view)
        self._head = b""
        if block or not _Way.from_gcm:
            self._encryptor = _ctr(key, block)
        else:
            self._head = Cipher(key, ECB()).encryptor().update(_FIRST_BLOCKS)  # noqa: S305 - two blocks, once per key
            self._encryptor = _gcm(key)

    def into(self, out: NDArray[np.uint64], zeros: NDArray[np.uint64]) -> None:
        """Write the next ``len(out)`` words. `zeros` is a zero buffer of at least that length (never written)."""
        self.write(zeros[: len(out)].view(np.uint8).data, out.view(np.uint8).data)

    def write(self, zeros: memoryview, out: memoryview) -> None:
        """Write the next ``len(out)`` bytes; `zeros` are as many zero bytes. For loops that keep their buffers."""
        if self._head:
            taken = min(len(self._head), len(out))
            out[:taken] = self._head[:taken]
            self._head = self._head[taken:]
            zeros, out = zeros[taken:], out[taken:]
        self._encryptor.update_into(zeros, out)

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` words, uint64, in native order."""
        out = np.empty(count, dtype="<u8")
        self.into(out, np.zeros(count, dtype="<u8"))
        return out
