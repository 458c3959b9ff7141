"""An additive scheme that hides nothing: words in the clear behind a tag of their key. For state machines only."""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from secagg.encoding import Words
from secagg.he.errors import CiphertextError, DisagreementError, OpeningError
from secagg.he.scheme import BfvParams
from secagg.types import Rng

TAG = 16
NONCE = 8


class InsecureEncryptor:
    """Blocks of the form tag ‖ nonce ‖ words."""

    def __init__(self, params: BfvParams, public_key: bytes, rng: Rng) -> None:
        self._rng = rng
        if len(public_key) != TAG:
            raise CiphertextError("public key", found=len(public_key), expected=TAG)
        self._params, self._tag = params, public_key

    def encrypt(self, words: Words) -> Iterator[bytes]:
        """One block per `words_per_block` words."""
        for start in range(0, len(words), self._params.words_per_block):
            part = words[start : start + self._params.words_per_block]
            yield self._tag + self._rng(NONCE) + part.astype("<u8").tobytes()


class InsecureSum:
    """A key and a running sum, synchronous."""

    def __init__(self, params: BfvParams, words: int, clients: Sequence[int], rng: Rng) -> None:
        self.public_key = rng(TAG)
        self._params, self._words = params, words
        self._total = np.zeros(words, dtype="<u8")
        self._made_for = set(clients)
        self._next: dict[int, int] | None = None
        self._strange = False
        self.closed = False

    def expect(self, clients: Sequence[int]) -> None:
        """The sum is over exactly these."""
        if self._next is not None or not set(clients) <= self._made_for:
            raise OpeningError("the set was fixed before, or has strangers in it")
        self._next = dict.fromkeys(clients, 0)

    def add(self, client: int, block: int, ciphertext: bytes) -> None:
        """One block."""
        if self._next is None or self.closed or self._next.get(client) != block:
            raise OpeningError("a block out of order")
        part = self._total[block * self._params.words_per_block :][: self._params.words_per_block]
        if len(ciphertext) != TAG + NONCE + 8 * len(part):
            raise CiphertextError("bytes of a ciphertext")
        self._strange |= ciphertext[:TAG] != self.public_key
        part += np.frombuffer(ciphertext, dtype="<u8", offset=TAG + NONCE)
        self._next[client] += 1

    def open_(self) -> Words:
        """The sum, once."""
        blocks = self._params.blocks_for(self._words)
        if self.closed or self._next is None or any(done != blocks for done in self._next.values()):
            raise OpeningError("ciphertexts are missing, or a second opening")
        self.closed = True
        if self._strange:
            raise DisagreementError("the opened value is no sum of limbs")
        return self._total.copy()

    def close(self) -> None:
        """Forget the key."""
        self.closed = True


class InsecureScheme:
    """`AdditiveScheme` for tests."""

    def __init__(self, rng: Rng = os.urandom) -> None:
        self._rng = rng

    def encryptor(self, params: BfvParams, public_key: bytes) -> InsecureEncryptor:
        """Raises CiphertextError."""
        return InsecureEncryptor(params, public_key, self._rng)

    def opening(self, params: BfvParams, words: int, clients: Sequence[int]) -> InsecureSum:
        """A fresh one."""
        return InsecureSum(params, words, clients, self._rng)
