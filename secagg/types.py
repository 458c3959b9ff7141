"""Small shared types: ids, phases, secrets, injected randomness."""

import enum
import hmac
from collections.abc import Callable
from typing import NewType, NoReturn

ClientId = NewType("ClientId", int)
"""Identity of a client, 1 <= id <= 65535; on the complete graph also its Shamir x-coordinate."""

DECRYPTOR = ClientId(0)
"""The place of the decryptor in tables by client: no client has this id."""

Rng = Callable[[int], bytes]
"""A cryptographically secure source: ``rng(n)`` gives n fresh bytes. Always an argument, never ambient."""


class Phase(enum.IntEnum):
    """The five phases of an attempt (rounds 0 to 4 of Bonawitz et al. 2017) and its two ends.

    INPUT_HASHES lies between SHARE_KEYS and MASKED_INPUT, where inputs are encrypted; numbers say nothing of its place.
    """

    ADVERTISE_KEYS = 0
    SHARE_KEYS = 1
    MASKED_INPUT = 2
    CONSISTENCY_CHECK = 3
    UNMASKING = 4
    COMPLETED = 5
    ABORTED = 6
    INPUT_HASHES = 7


class Secret:
    """Secret bytes: redacted repr, constant-time equality, no pickle, no copy, wiped on demand.

    Python cannot promise that no other copy exists (THREAT_MODEL 5); this class keeps the count low.
    """

    __slots__ = ("_data",)

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = bytearray(data)

    @property
    def view(self) -> memoryview:
        """Read-only view of the bytes, for a cryptographic call; do not keep it."""
        return memoryview(self._data).toreadonly()

    def wipe(self) -> None:
        """Overwrite with zeros and forget. Afterwards the secret is empty."""
        self._data[:] = bytes(len(self._data))
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._data, other._data)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Secret {len(self._data)} bytes>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never serialised")

    def __copy__(self) -> NoReturn:
        raise TypeError("a Secret is never copied")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("a Secret is never copied")
