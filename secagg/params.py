"""Parameters that are proved at construction: thresholds follow from (n, C), never the other way round. SPEC 4.

Complete graph, malicious server with C corrupt clients among the n invited:

* ``threshold = floor((n + C) / 2) + 1``, so ``2 * threshold > n + C``: for one victim the server can collect
  ``threshold`` shares of the seed or of the mask key, never of both. (Honest clients answer one kind only: n - C
  answers; corrupt clients answer both: 2C; two thresholds need 2 * threshold <= n + C.)
* ``quorum = floor((n + C) / 2) + 1`` signatures on one U3: two different U3 would need 2 * quorum <= n + C.
* ``n - dropouts >= max(threshold, quorum, min_cohort)``, in integers: with at most `max_dropouts` lost the attempt ends
  with a sum. `n` is the *invited* number everywhere, never |U1|.
* ``min_cohort >= max(C, 1) + 2``: at least two honest clients stand behind every released sum.
"""

from dataclasses import dataclass

from secagg.encoding import SlotEncoding
from secagg.errors import ParameterError
from secagg.labels import PARAMS
from secagg.transcript import digest

MAX_COMPLETE_GRAPH = 256


def default_max_corrupt(num_clients: int) -> int:
    """floor(n / 3), the default on the complete graph."""
    return num_clients // 3


def both_shares_threshold(num_clients: int, max_corrupt: int) -> int:
    """Smallest integer t with 2t > n + C."""
    return (num_clients + max_corrupt) // 2 + 1


@dataclass(frozen=True, slots=True)
class SecAggParams:
    """Parameters of one task on the complete graph. Construction proves them or raises ParameterError.

    Attributes:
        num_clients: n, the invited clients, 3..256.
        max_corrupt: C, clients that the server may control, 0..n-2.
        max_dropouts: Clients that may be lost, in any phase, without losing the attempt.
        min_cohort: Smallest set whose sum is released; at least max(C, 1) + 2.
        vector_length: Number of values in one client's vector.
        encoding: Slot encoding, headroom proved for n clients.
        chunk_words: Words of one upload chunk, its zero word included; even (SPEC 3.6).
    """

    num_clients: int
    max_corrupt: int
    max_dropouts: int
    min_cohort: int
    vector_length: int
    encoding: SlotEncoding
    chunk_words: int

    def __post_init__(self) -> None:
        n, c = self.num_clients, self.max_corrupt
        _require(3 <= n <= MAX_COMPLETE_GRAPH, "number of clients", n, f"3..{MAX_COMPLETE_GRAPH}")
        _require(0 <= c <= n - 2, "corrupt clients", c, f"0..{n - 2}")
        _require(self.max_dropouts >= 0, "dropouts", self.max_dropouts, "0 or more")
        _require(max(c, 1) + 2 <= self.min_cohort <= n, "min_cohort", self.min_cohort, f"{max(c, 1) + 2}..{n}")
        _require(
            n - self.max_dropouts >= self.required,
            f"clients left after {self.max_dropouts} dropouts",
            n - self.max_dropouts,
            f"at least {self.required} (threshold and quorum {self.threshold}, min_cohort {self.min_cohort})",
        )
        _require(self.vector_length >= 1, "vector length", self.vector_length, "1 or more")
        _require(self.encoding.max_clients >= n, "headroom of the encoding", self.encoding.max_clients, f"{n} clients")
        _require(
            16 <= self.chunk_words <= 65536 and self.chunk_words % 2 == 0,
            "chunk_words",
            self.chunk_words,
            "even, 16..65536",
        )

    @property
    def threshold(self) -> int:
        """Shares that reconstruct a secret."""
        return both_shares_threshold(self.num_clients, self.max_corrupt)

    @property
    def quorum(self) -> int:
        """Signatures on one U3 before anybody unmasks."""
        return both_shares_threshold(self.num_clients, self.max_corrupt)

    @property
    def required(self) -> int:
        """Members that U1, U2, U3, U4 and U5 need each."""
        return max(self.threshold, self.quorum, self.min_cohort)

    @property
    def payload_words(self) -> int:
        """The contribution word and the packed slots, without zero words."""
        return 1 + self.encoding.words_for(self.vector_length)

    @property
    def num_chunks(self) -> int:
        """Chunks of one upload; each starts with a zero word."""
        return -(-self.payload_words // (self.chunk_words - 1))

    @property
    def total_words(self) -> int:
        """Words of one masked input, zero words included."""
        return self.payload_words + self.num_chunks

    def digest(self) -> bytes:
        """32 bytes over every parameter; part of ctx."""
        e = self.encoding
        return digest(
            PARAMS,
            b"complete",
            b"aes-256-ctr",
            b"masking",
            self.num_clients,
            self.max_corrupt,
            self.max_dropouts,
            self.min_cohort,
            self.threshold,
            self.quorum,
            self.vector_length,
            e.slots_per_word,
            e.scale,
            e.bound,
            self.chunk_words,
        )


def _require(holds: bool, what: str, found: object, expected: object) -> None:
    if not holds:
        raise ParameterError(f"infeasible parameters: {what}", found=found, expected=expected)
