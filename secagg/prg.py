"""The mask generator: AES-256-CTR keystream, zero IV, read as little-endian 64-bit words. SPEC 3.6.

Word w of a stream is bytes [8w, 8w+8) of the keystream; block b is AES(key, b as 128-bit big-endian). A chunk that
starts at a multiple of 16 bytes can be expanded on its own.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from secagg.errors import ParameterError
from secagg.types import Secret

BLOCK_BYTES = 16
SEED_BYTES = 32


class Stream:
    """Sequential reader of one seed's keystream from word 0 on. One stream per use; its repr is bare."""

    __slots__ = ("_encryptor",)

    def __init__(self, seed: Secret, first_word: int = 0) -> None:
        if len(seed) != SEED_BYTES:
            raise ParameterError("wrong seed length", found=len(seed), expected=SEED_BYTES)
        block, rest = divmod(8 * first_word, BLOCK_BYTES)
        if rest:
            raise ParameterError("a stream starts on a block boundary", found=first_word, expected="an even word")
        iv = block.to_bytes(BLOCK_BYTES, "big")
        self._encryptor = Cipher(AES256(seed.view), CTR(iv)).encryptor()

    def into(self, out: NDArray[np.uint64], zeros: NDArray[np.uint64]) -> None:
        """Write the next ``len(out)`` words. `zeros` is a zero buffer of at least that length (never written)."""
        self._encryptor.update_into(zeros[: len(out)].view(np.uint8).data, out.view(np.uint8).data)

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` words, uint64, in native order."""
        out = np.empty(count, dtype="<u8")
        self.into(out, np.zeros(count, dtype="<u8"))
        return out
