"""Parameters that are proved at construction: thresholds follow from (n, C), never the other way round. SPEC 4.

Complete graph, malicious server with C corrupt clients among the n invited:

* ``threshold = floor((n + C) / 2) + 1``, so ``2 * threshold > n + C``: for one victim the server can collect
  ``threshold`` shares of the seed or of the mask key, never of both. (Honest clients answer one kind only: n - C
  answers; corrupt clients answer both: 2C; two thresholds need 2 * threshold <= n + C.)
* ``quorum = floor((n + C) / 2) + 1`` signatures on one U3: two different U3 would need 2 * quorum <= n + C.
* ``n - dropouts >= max(threshold, quorum, min_cohort)``, in integers: with at most `max_dropouts` lost the attempt ends
  with a sum. `n` is the *invited* number everywhere, never |U1|.
* ``min_cohort >= max(C, 1) + 2``: at least two honest clients stand behind every released sum.

Ring: the quorum and min_cohort as above; degree, threshold and the bound on corrupt neighbours come from
`secagg.thresholds.ring_parameters`, for every |U1| from n - dropouts to n.
"""

import functools
from dataclasses import dataclass
from typing import Literal

from secagg.encoding import SlotEncoding
from secagg.errors import ParameterError
from secagg.he.scheme import BfvParams
from secagg.labels import PARAMS
from secagg.thresholds import RingParameters, both_shares_threshold, quorum, ring_parameters
from secagg.transcript import digest

Graph = Literal["complete", "ring"]
Assurance = Literal["masking", "dual", "he"]

MAX_VECTOR = 2**40
MAX_DEGREE = 640  # neighbours on the ring: what one message may list (SPEC 9.1)
SIZES: dict[str, tuple[int, int]] = {"complete": (3, 256), "ring": (200, 10_000)}


def default_max_corrupt(num_clients: int, graph: Graph = "complete") -> int:
    """floor(n / 3) on the complete graph, floor(n / 20) on the ring."""
    return num_clients // (3 if graph == "complete" else 20)


@dataclass(frozen=True, slots=True)
class SecAggParams:
    """Parameters of one task. Construction proves them or raises ParameterError.

    Attributes:
        num_clients: n, the invited clients: 3..256 on the complete graph, 200..10,000 on the ring.
        max_corrupt: C, clients that the server may control, 0..n-2.
        max_dropouts: Clients that may be lost, in any phase, without losing the attempt.
        min_cohort: Smallest set whose sum is released; at least max(C, 1) + 2.
        vector_length: Number of values in one client's vector.
        encoding: Slot encoding, headroom proved for n clients.
        chunk_words: Words of one upload chunk, its zero word included; even (SPEC 3.6).
        graph: "complete" or "ring".
        assurance: "masking"; "dual": masked inputs are encrypted for the decryptor; "he": encrypted without masks.
        limb_bits: Width of a limb of an encrypted word; 0 with "masking".
    """

    num_clients: int
    max_corrupt: int
    max_dropouts: int
    min_cohort: int
    vector_length: int
    encoding: SlotEncoding
    chunk_words: int
    graph: Graph = "complete"
    assurance: Assurance = "masking"
    limb_bits: int = 0

    def __post_init__(self) -> None:
        n, c = self.num_clients, self.max_corrupt
        _require(self.graph in SIZES, "graph", self.graph, "complete or ring")
        low, high = SIZES[self.graph]
        _require(low <= n <= high, f"number of clients on the {self.graph} graph", n, f"{low}..{high}")
        _require(0 <= c <= n - 2, "corrupt clients", c, f"0..{n - 2}")
        _require(self.max_dropouts >= 0, "dropouts", self.max_dropouts, "0 or more")
        _require(max(c, 1) + 2 <= self.min_cohort <= n, "min_cohort", self.min_cohort, f"{max(c, 1) + 2}..{n}")
        if self.graph == "ring":
            degree = ring_parameters(n, c, self.max_dropouts).degree  # raises where none is both safe and live
            _require(degree <= MAX_DEGREE, "degree of the ring", degree, f"at most {MAX_DEGREE}")
        _require(
            n - self.max_dropouts >= self.required,
            f"clients left after {self.max_dropouts} dropouts",
            n - self.max_dropouts,
            f"at least {self.required} (quorum {self.quorum}, min_cohort {self.min_cohort})",
        )
        _require(1 <= self.vector_length <= MAX_VECTOR, "vector length", self.vector_length, "1..2^40")
        _require(self.encoding.max_clients >= n, "headroom of the encoding", self.encoding.max_clients, f"{n} clients")
        _require(
            16 <= self.chunk_words <= 65536 and self.chunk_words % 2 == 0,
            "chunk_words",
            self.chunk_words,
            "even, 16..65536",
        )
        _require(self.assurance in ("masking", "dual", "he"), "assurance", self.assurance, "masking, dual or he")
        if self.encrypted:
            _ = self.bfv  # raises where n summands do not fit
        else:
            _require(self.limb_bits == 0, "limb_bits without encryption", self.limb_bits, "0")

    @property
    def encrypted(self) -> bool:
        """Whether inputs are encrypted for the decryptor."""
        return self.assurance != "masking"

    @property
    def masks(self) -> bool:
        """Whether inputs carry masks."""
        return self.assurance != "he"

    @property
    def bfv(self) -> BfvParams:
        """Parameters of the encryption, headroom proved for n summands. Only where inputs are encrypted."""
        return _bfv(self.num_clients, self.limb_bits)

    @property
    def num_blocks(self) -> int:
        """Ciphertexts of one encrypted input."""
        return self.bfv.blocks_for(self.total_words)

    @property
    def degree(self) -> int:
        """Neighbours of a client when nobody is missing: n - 1, or k on the ring."""
        return self.num_clients - 1 if self._complete else self._ring.degree

    @property
    def threshold(self) -> int:
        """Shares that reconstruct a secret."""
        return both_shares_threshold(self.num_clients, self.max_corrupt) if self._complete else self._ring.threshold

    @property
    def max_corrupt_neighbors(self) -> int:
        """Corrupt clients among the holders of one client's shares: C, or a on the ring (up to 2^-80)."""
        return self.max_corrupt if self._complete else self._ring.max_corrupt_neighbors

    @property
    def quorum(self) -> int:
        """Signatures on one U3 before anybody unmasks."""
        return quorum(self.num_clients, self.max_corrupt)

    @property
    def required(self) -> int:
        """Members that U2, U3, U4 and U5 need each."""
        least = max(self.quorum, self.min_cohort)
        return max(least, self.threshold) if self._complete else least

    @property
    def required_advertised(self) -> int:
        """Members that U1 needs: on the ring n - dropouts, for which degree and threshold were proved."""
        return self.required if self._complete else max(self.required, self.num_clients - self.max_dropouts)

    @property
    def _complete(self) -> bool:
        return self.graph == "complete"

    @property
    def _ring(self) -> RingParameters:
        return ring_parameters(self.num_clients, self.max_corrupt, self.max_dropouts)

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
        encryption: tuple[int, ...] = ()
        if self.encrypted:
            encryption = (self.limb_bits, self.bfv.plain_modulus, self.bfv.modulus, self.bfv.special_modulus)
        return digest(
            PARAMS,
            self.graph.encode(),
            b"aes-256-ctr",
            self.assurance.encode(),
            self.num_clients,
            self.max_corrupt,
            self.max_dropouts,
            self.min_cohort,
            self.degree,
            self.threshold,
            self.quorum,
            self.max_corrupt_neighbors,
            self.vector_length,
            e.slots_per_word,
            e.scale,
            e.bound,
            self.chunk_words,
            *encryption,
        )


@functools.lru_cache(maxsize=64)
def _bfv(clients: int, limb_bits: int) -> BfvParams:
    return BfvParams(clients, limb_bits)


def _require(holds: bool, what: str, found: object, expected: object) -> None:
    if not holds:
        raise ParameterError(f"infeasible parameters: {what}", found=found, expected=expected)
