"""Thresholds, from who may be corrupt and who may be lost. SPEC 4.

Pure functions on integers. Every tail of a hypergeometric law is computed exactly, with integers of any length: no
float takes part in a figure that secrecy or correctness stands on.

`ring_parameters` is the finder that SecAggParams uses for the malicious server. Its rule is derived here and has not
been peer reviewed (docs/proofs/ring.md, docs/proofs/hypergeometric.md). `bell_parameters` is a comparison: it
assumes a weaker server, and nothing in this project runs with what it returns.
"""

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import Literal

from secagg.errors import ParameterError


def both_shares_threshold(num_clients: int, max_corrupt: int) -> int:
    """Smallest t with 2t > n + C: nobody collects t shares of both secrets of one client. SPEC 4.3.

    Args:
        num_clients: n, clients that hold shares.
        max_corrupt: C, how many of them may answer twice.
    """
    return (num_clients + max_corrupt) // 2 + 1


def quorum(num_clients: int, max_corrupt: int) -> int:
    """Smallest q with 2q > n + C: q signatures stand under at most one set. SPEC 4.4.

    The same number as `both_shares_threshold`, for another reason: here n are the *invited* clients, on both graphs.
    """
    return (num_clients + max_corrupt) // 2 + 1


@dataclass(frozen=True, slots=True)
class RingParameters:
    """What the ring needs, proved at construction: ``degree / 2 + max_corrupt_neighbors + 1 <= threshold <= degree``.

    Attributes:
        degree: k, neighbours of each member of U1; even, 2 or more.
        threshold: t, shares that reconstruct a secret, and neighbours in U3 that every member of U2 needs.
        max_corrupt_neighbors: a, corrupt neighbours of any honest member; more have probability below the bound.

    Raises:
        ParameterError: The inequality does not hold.
    """

    degree: int
    threshold: int
    max_corrupt_neighbors: int

    def __post_init__(self) -> None:
        least = self.degree // 2 + self.max_corrupt_neighbors + 1
        if self.degree < 2 or self.degree % 2 or self.max_corrupt_neighbors < 0:
            raise ParameterError(
                "infeasible parameters: ring",
                found=f"degree {self.degree}, {self.max_corrupt_neighbors} corrupt neighbours",
                expected="an even degree of 2 or more, 0 or more corrupt neighbours",
            )
        if not least <= self.threshold <= self.degree:
            raise ParameterError(
                "infeasible parameters: threshold on the ring",
                found=self.threshold,
                expected=f"{least}..{self.degree} (degree {self.degree}, "
                f"{self.max_corrupt_neighbors} corrupt neighbours)",
            )


@lru_cache(maxsize=256)
def ring_parameters(
    num_clients: int, max_corrupt: int, max_dropouts: int, security_bits: int = 80, correctness_bits: int = 20
) -> RingParameters:
    """Smallest ring for a malicious server.

    The result holds for **every** size m of U1 in n - D..n, whoever was left out of it:

    * some honest member has more than a corrupt neighbours with probability at most ``2^-(security_bits + 1)``, per
      order that the server tries. The order is a hash of root_u1, which a malicious server may grind: 2^b trials leave
      a margin of ``security_bits + 1 - b`` bits, hence the default of 80.
    * ``threshold = k / 2 + a + 1``: the honest members of U3 form one connected component.
    * if D random clients are lost after U1 was fixed, some member keeps fewer than `threshold` neighbours with
      probability at most ``2^-correctness_bits``. Then the attempt fails; nothing leaks.

    Args:
        num_clients: n, the invited clients, 3 or more.
        max_corrupt: C, clients that the server controls, chosen before the order is known; 0 or more.
        max_dropouts: D, clients that may be lost in any phase, 0 or more; at least two honest clients remain.
        security_bits: Of the bound on corrupt neighbours, 1 or more.
        correctness_bits: Of the bound on attempts that fail by chance, 1 or more.

    Returns:
        The ring with the smallest even degree k, ``k < n - D``, and the smallest threshold for it.

    Raises:
        ParameterError: A value out of range, or no degree will do.
    """
    n, smallest = num_clients, num_clients - max_dropouts
    bits = min(security_bits, correctness_bits)
    if n < 3 or max_corrupt < 0 or max_dropouts < 0 or smallest - max_corrupt < 2 or bits < 1:
        raise ParameterError(
            "infeasible parameters: ring",
            found=f"{n} clients, {max_corrupt} corrupt, {max_dropouts} lost, {bits} bits",
            expected="3 or more clients, two of them honest and never lost, 1 bit or more",
        )
    degree = 2
    while degree < smallest:
        # Both quantiles grow with the degree, so this iteration climbs to the smallest degree that is enough and
        # never past it. The corrupt tail falls and the union over members grows with |U1|: the smallest U1 in the one
        # and n in the other cover every size between. The dropout tail is worst where nobody was lost before U1.
        corrupt = _quantile(smallest - 1, max_corrupt, degree, n << (security_bits + 1))
        lost = _quantile(n - 1, max_dropouts, degree, n << correctness_bits)
        needed = 2 * (corrupt + lost + 1)
        if needed <= degree:
            return RingParameters(degree, degree // 2 + corrupt + 1, corrupt)
        degree = needed
    raise ParameterError(
        "infeasible parameters: no degree is enough on the ring",
        found=f"{n} clients, {max_corrupt} corrupt, {max_dropouts} lost: degree {degree} or more",
        expected=f"a degree below {smallest}",
        do="invite more clients, lower max_corrupt or max_dropouts, or take the complete graph",
    )


@dataclass(frozen=True, slots=True)
class BellParameters:
    """A random k-regular graph for a server weaker than ours. A type of its own: it never passes for RingParameters.

    Attributes:
        degree: k, neighbours of each client; even.
        threshold: t, shares that reconstruct a secret.
    """

    degree: int
    threshold: int


BELL_CORRECTNESS_BITS = 20


@lru_cache(maxsize=256)
def bell_parameters(
    num_clients: int,
    max_corrupt: int,
    max_dropouts: int,
    server: Literal["semi-honest", "semi-malicious"],
    security_bits: int = 40,
) -> BellParameters:
    """Smallest graph in the manner of Bell et al. 2020, to compare the price of our threat model with.

    **Not protection against the malicious server.** `semi-honest`: the server follows the protocol and only looks.
    `semi-malicious`: it draws the graph honestly and may then ask for both shares of one client; that alone is
    covered. Nobody grinds the graph, hence 40 bits.

    Args:
        num_clients: n, 3 or more.
        max_corrupt: A, corrupt clients, 0 or more.
        max_dropouts: D, clients that may be lost, 0 or more; A + D < n.
        server: What the server may do.
        security_bits: Of the bounds on connectivity and on corrupt neighbours, 1 or more.

    Returns:
        The smallest even degree k such that, with probability 1 - 2^-security_bits, the graph without corrupt and
        lost clients is connected and no client has `threshold` corrupt neighbours (semi-malicious: enough neighbours
        for both shares), and with probability ``1 - 2^-20`` every client keeps `threshold` neighbours.

    Raises:
        ParameterError: A value out of range, or no degree will do.
    """
    n, gone = num_clients, max_corrupt + max_dropouts
    if n < 3 or max_corrupt < 0 or max_dropouts < 0 or gone >= n or security_bits < 1:
        raise ParameterError(
            "infeasible parameters: comparison graph",
            found=f"{n} clients, {max_corrupt} corrupt, {max_dropouts} lost, {security_bits} bits",
            expected="3 or more clients, one of them neither corrupt nor lost, 1 bit or more",
        )

    def connected(k: int) -> bool:  # no two clients that are not adjacent have all k neighbours of one of them gone
        return (n * (n - k - 1) * comb(gone, k)) << security_bits < comb(n, k)

    degree = 2 + 2 * bisect_left(range(2, n, 2), True, key=connected)
    while degree < n:
        corrupt = _quantile(n, max_corrupt, degree, n << (security_bits + 1))
        lost = _quantile(n, max_dropouts, degree, n << BELL_CORRECTNESS_BITS)
        # semi-malicious: ceil((a + k - 1.25) / 2) + 1
        threshold = corrupt + 1 if server == "semi-honest" else -(-(4 * (corrupt + degree) - 5) // 8) + 1
        if threshold + lost <= degree:
            return BellParameters(degree, threshold)
        degree = max(degree + 2, (threshold + lost + 1) // 2 * 2)
    raise ParameterError(
        "infeasible parameters: no degree is enough on the comparison graph",
        found=f"{n} clients, {max_corrupt} corrupt, {max_dropouts} lost: degree {degree} or more",
        expected=f"a degree below {n}",
    )


def _quantile(population: int, marked: int, draws: int, odds: int) -> int:
    """Smallest x with ``odds * Pr[X > x] <= 1``, X marked items among `draws` of `population` without replacement."""
    x = min(marked, draws)
    ways = comb(population, draws)
    term = tail = comb(marked, x) * comb(population - marked, draws - x)  # Pr[X = x] and Pr[X >= x], times ways
    while odds * tail <= ways:
        term = term * x * (population - marked - draws + x) // ((marked - x + 1) * (draws - x + 1))
        x -= 1
        tail += term
    return x
