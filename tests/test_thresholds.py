"""The finders against exact brute force: every size of U1, every smaller degree, and the published points."""

from fractions import Fraction
from functools import cache
from itertools import product
from math import comb

import pytest

from secagg.errors import ParameterError
from secagg.thresholds import (
    BellParameters,
    RingParameters,
    bell_parameters,
    both_shares_threshold,
    quorum,
    ring_parameters,
)


@cache
def more_than(x: int, population: int, marked: int, draws: int) -> Fraction:
    """Pr[X > x], X hypergeometric, summed term by term from the definition."""
    ways = sum(comb(marked, j) * comb(population - marked, draws - j) for j in range(x + 1, min(marked, draws) + 1))
    return Fraction(ways, comb(population, draws))


def smallest(weight: int, bits: int, law: tuple[int, int, int]) -> int:
    """Smallest x with ``weight * Pr[X > x] <= 2^-bits``, by trying 0, 1, 2, ..."""
    return next(x for x in range(law[2] + 1) if weight * more_than(x, *law) <= Fraction(1, 2**bits))


def test_both_bounds_are_exact() -> None:
    for n in range(3, 60):
        for c in range(n - 1):
            for bound in (both_shares_threshold(n, c), quorum(n, c)):
                assert 2 * bound > n + c >= 2 * (bound - 1)


# security bits, correctness bits: small, so that small rings exist and every case of the search is met
@pytest.mark.parametrize(("security", "correctness"), [(1, 1), (4, 3), (10, 5), (20, 8)])
def test_the_ring_is_the_smallest_one_and_holds_for_every_size(security: int, correctness: int) -> None:
    """Over small n, C and D: each size of U1 meets both bounds; no smaller degree meets the finder's rule."""
    found = refused = 0
    for n, c, dropouts in product(range(3, 41), range(0, 14, 2), range(0, 10, 3)):
        if n - dropouts - c < 2:
            continue

        def enough(k: int, n: int = n, c: int = c, dropouts: int = dropouts) -> int | None:
            """a, if degree k is enough."""
            a = smallest(n, security + 1, (n - dropouts - 1, c, k))
            lost = smallest(n, correctness, (n - 1, dropouts, k))
            return a if k // 2 + a + 1 <= k - lost else None

        good = [k for k in range(2, n - dropouts, 2) if enough(k) is not None]
        if not good:
            with pytest.raises(ParameterError):
                ring_parameters(n, c, dropouts, security, correctness)
            refused += 1
            continue
        ring = ring_parameters(n, c, dropouts, security, correctness)
        found += 1
        k, t, a = ring.degree, ring.threshold, ring.max_corrupt_neighbors
        assert (k, a) == (good[0], enough(good[0]))
        assert t == k // 2 + a + 1
        assert 2 * t > k + a and t > a
        for m in range(n - dropouts, n + 1):
            assert m > k
            assert m * more_than(a, m - 1, c, k) <= Fraction(1, 2 ** (security + 1))
            assert m * more_than(k - t, m - 1, dropouts - (n - m), k) <= Fraction(1, 2**correctness)
    assert found > 50 and refused > 20  # both outcomes were met


# C and D are floor(n / 20). The design assumed |U1| = n (1000: 122, 100 and 10,000: 170, 139); a malicious server may
# leave out D honest clients before the order is drawn, which makes the corrupt ones denser.
TABLE = [(100, 22, 17), (200, 42, 32), (500, 86, 69), (1000, 126, 103), (10_000, 172, 141)]


@pytest.mark.parametrize(("n", "degree", "threshold"), TABLE)
def test_the_table_of_the_specification(n: int, degree: int, threshold: int) -> None:
    c = dropouts = n // 20
    ring = ring_parameters(n, c, dropouts)
    assert (ring.degree, ring.threshold) == (degree, threshold)
    a = ring.max_corrupt_neighbors
    for m in {n - dropouts, n - dropouts // 2, n}:
        assert m * more_than(a, m - 1, c, degree) <= Fraction(1, 2**81)
    assert a == 0 or n * more_than(a - 1, n - dropouts - 1, c, degree) > Fraction(1, 2**81)  # one lower is too low
    assert n * more_than(degree - threshold, n - 1, dropouts, degree) <= Fraction(1, 2**20)


@pytest.mark.parametrize(("n", "degree", "threshold", "corrupt"), [(1000, 122, 100, 38), (10_000, 170, 139, 53)])
def test_why_the_table_differs_from_the_design(n: int, degree: int, threshold: int, corrupt: int) -> None:
    """The design's points hold where nobody is left out of U1, and fail the bound where D clients are."""
    assert threshold == degree // 2 + corrupt + 1
    assert n * more_than(corrupt, n - 1, n // 20, degree) <= Fraction(1, 2**81)
    m = n - n // 20
    assert m * more_than(corrupt, m - 1, n // 20, degree) > Fraction(1, 2**81)


@pytest.mark.parametrize(
    "arguments",
    [
        (2, 0, 0),
        (200, -1, 0),
        (200, 0, -1),
        (200, 190, 9),  # one honest client would be left
        (200, 0, 200),
        (200, 100, 0),  # half corrupt: no degree keeps the bound
        (200, 80, 20),
        (200, 10, 100),
        (10_000, 1500, 3000),
        (200, 10, 10, 0),
        (200, 10, 10, 80, 0),
    ],
)
def test_what_cannot_hold_is_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError) as refusal:
        ring_parameters(*arguments)
    assert refusal.value.found is not None and refusal.value.expected is not None


@pytest.mark.parametrize(
    ("degree", "threshold", "corrupt"),
    [(10, 8, 3), (10, 11, 4), (11, 10, 2), (0, 1, 0), (-2, 1, 0), (10, 6, -1), (2, 3, 1)],
)
def test_nobody_builds_a_ring_that_breaks_the_rule(degree: int, threshold: int, corrupt: int) -> None:
    with pytest.raises(ParameterError):
        RingParameters(degree, threshold, corrupt)


def test_more_corrupt_or_fewer_present_never_makes_a_ring_smaller() -> None:
    sizes = [ring_parameters(1000, c, 50).degree for c in range(0, 160, 10)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    sizes = [ring_parameters(1000, 50, d).degree for d in range(0, 160, 10)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    sizes = [ring_parameters(1000, 50, 50, bits).degree for bits in range(10, 130, 10)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


@pytest.mark.parametrize(
    ("n", "corrupt", "server", "degree", "threshold"),
    [
        (100, 45, "semi-honest", 92, 46),
        (1000, 330, "semi-honest", 286, 150),
        (10_000, 3300, "semi-honest", 422, 221),
        (1000, 300, "semi-malicious", 872, 584),
    ],
)
def test_published_points_of_bell_et_al(n: int, corrupt: int, server: str, degree: int, threshold: int) -> None:
    found = bell_parameters(n, corrupt, corrupt, server)  # type: ignore[arg-type]
    assert found == BellParameters(degree, threshold)


def test_what_the_malicious_server_costs() -> None:
    """Same clients, three servers: the weaker the server, the smaller the graph, and none passes for another."""
    for n in (200, 1000, 10_000):
        c = dropouts = n // 20
        weak = bell_parameters(n, c, dropouts, "semi-honest")
        middle = bell_parameters(n, c, dropouts, "semi-malicious")
        full = ring_parameters(n, c, dropouts)
        assert weak.degree < middle.degree < full.degree
        assert not isinstance(weak, RingParameters)
        with pytest.raises(ParameterError):  # the semi-honest graph breaks the rule of the ring
            RingParameters(weak.degree, weak.threshold, full.max_corrupt_neighbors)


@pytest.mark.parametrize("arguments", [(2, 0, 0), (100, -1, 0), (100, 0, -1), (100, 50, 50), (100, 10, 10, 0)])
def test_the_comparison_refuses_what_cannot_hold(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ParameterError):
        bell_parameters(*arguments[:3], "semi-honest", *arguments[3:])
    with pytest.raises(ParameterError):
        bell_parameters(20, 6, 6, "semi-malicious")  # every value in range, but no degree will do
