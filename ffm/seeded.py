"""Public, reproducible numbers: what every machine must draw alike from the manifest's seed.

Initial weights of adapter and head, the example's split and its partition over hospitals. None of it is
secret and none of it enters a privacy claim: those draws use `dp.sampling.Csprng` and nothing else.

The stream is AES-256-CTR with a zero counter block under the key
SHA-256("secagg-ffm/seeded/v1" || 0x00 || label || 0x00 || seed as 8 big-endian bytes), read as little-endian
64-bit words. Every function below uses integers, or float64 operations that IEEE 754 defines exactly
(multiplication, square root), so the result is the same on every machine, library and device. A torch or numpy
generator promises that for neither.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_T = TypeVar("_T")


class SeededStream:
    """One stream per (seed, label): what is drawn under one label never shifts what is drawn under another."""

    def __init__(self, seed: int, label: str) -> None:
        """`seed` in [0, 2**64); `label` says what is drawn, e.g. a tensor's name."""
        key = hashlib.sha256(b"secagg-ffm/seeded/v1\x00" + label.encode() + b"\x00" + seed.to_bytes(8, "big")).digest()
        # A keystream for public numbers: confidentiality plays no part, so no authentication is missing here.
        self._keystream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """The next `count` 64-bit words."""
        return np.frombuffer(self._keystream.update(bytes(8 * count)), dtype="<u8")

    def uniform(self, shape: Sequence[int], bound: float) -> npt.NDArray[np.float32]:
        """float32 array of `shape`, uniform on the 2**24 midpoints of an even grid over (-bound, bound)."""
        count = int(np.prod(shape, dtype=np.int64))
        steps = (self.words(count) >> np.uint64(40)).astype(np.float64)
        values: npt.NDArray[np.float64] = ((steps + 0.5) * 2.0**-23 - 1.0) * bound
        return values.astype(np.float32).reshape(tuple(shape))

    def below(self, limit: int) -> int:
        """Uniform integer in [0, limit), 1 <= limit < 2**64, by rejection (no modulo bias)."""
        if not 1 <= limit < 1 << 64:
            raise ValueError(f"limit {limit} outside [1, 2**64)")
        cut = (1 << 64) - (1 << 64) % limit
        while True:
            word = int(self.words(1)[0])
            if word < cut:
                return word % limit

    def shuffled(self, items: Sequence[_T]) -> list[_T]:
        """A uniformly random order of `items` (Fisher and Yates); the input is left alone."""
        order = list(items)
        for last in range(len(order) - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order
