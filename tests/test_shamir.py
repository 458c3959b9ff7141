"""Shamir over GF(2^256 + 297): any threshold shares rebuild, an independent package agrees, fewer say nothing."""

import contextlib
import itertools
from fractions import Fraction

import pytest
import shamirs
from hypothesis import given
from hypothesis import strategies as st
from simulator import insecure_rng

from secagg.errors import ParameterError, ReconstructionError
from secagg.shamir import PRIME, SHARE_BYTES, lagrange_at_zero, reconstruct, split
from secagg.types import Secret

SECRET = Secret(bytes(range(32)))
SECRETS = st.one_of(
    st.binary(min_size=32, max_size=32), st.sampled_from([bytes(32), b"\xff" * 32, bytes(31) + b"\x01"])
)


def test_the_modulus_is_the_first_prime_above_2_256() -> None:
    def prime(n: int) -> bool:  # Miller-Rabin; for 40 fixed bases an error has probability below 2^-80
        d, s = n - 1, 0
        while d % 2 == 0:
            d, s = d // 2, s + 1
        for base in range(2, 42):
            x = pow(base, d, n)
            if x not in (1, n - 1) and not any((x := x * x % n) == n - 1 for _ in range(s - 1)):
                return False
        return True

    assert PRIME == 2**256 + 297 and prime(PRIME)
    assert not any(prime(n) for n in range(2**256 + 1, PRIME, 2))


@given(SECRETS, st.integers(1, 9), st.data())
def test_any_threshold_shares_rebuild(secret: bytes, count: int, data: st.DataObject) -> None:
    xs = sorted(data.draw(st.sets(st.integers(1, 65535), min_size=count, max_size=count)))
    threshold = data.draw(st.integers(1, count))
    shares = split(Secret(secret), threshold, xs, insecure_rng(("split", secret)))
    assert list(shares) == xs and all(len(s) == SHARE_BYTES for s in shares.values())
    chosen = data.draw(st.permutations(xs))[:threshold]
    assert reconstruct({x: shares[x] for x in chosen}, threshold) == Secret(secret)


def test_every_subset() -> None:
    shares = split(SECRET, 3, range(1, 7), insecure_rng("subsets"))
    for size in range(7):
        for subset in itertools.combinations(shares, size):
            picked = {x: shares[x] for x in subset}
            if size >= 3:
                assert reconstruct(picked, 3) == SECRET
            else:
                with pytest.raises(ReconstructionError, match="too few shares"):
                    reconstruct(picked, 3)


def test_ours_against_the_shamirs_package() -> None:
    ours = split(SECRET, 4, range(1, 8), insecure_rng("oracle"))
    points = [shamirs.share(x, int.from_bytes(s.view, "big"), PRIME) for x, s in ours.items()]
    assert shamirs.interpolate(points[2:6]) == int.from_bytes(SECRET.view, "big")
    theirs = shamirs.shares(int.from_bytes(SECRET.view, "big"), quantity=7, modulus=PRIME, threshold=4)
    mine = {s.index: Secret(s.value.to_bytes(33, "big")) for s in theirs}
    assert reconstruct({x: mine[x] for x in (7, 2, 5, 3)}, 4) == SECRET


@given(st.lists(st.integers(1, 65535), min_size=1, max_size=12, unique=True))
def test_weights_are_those_of_lagrange(points: list[int]) -> None:
    """Against exact fractions, in any order of the points."""
    for x, weight in zip(points, lagrange_at_zero(tuple(points)), strict=True):
        exact = Fraction(1)
        for other in points:
            exact *= Fraction(other, other - x) if other != x else 1
        assert weight * exact.denominator % PRIME == exact.numerator % PRIME


def test_sharing_at_the_size_of_the_largest_ring() -> None:
    shares = split(SECRET, 139, range(1, 171), insecure_rng("ring"))
    for missing in (range(1, 32), range(140, 171), range(1, 171, 6)):
        left = {x: s for x, s in shares.items() if x not in missing}
        assert reconstruct(left, 139) == SECRET
        with pytest.raises(ReconstructionError, match="too few"):
            reconstruct(dict(list(left.items())[:138]), 139)
    far = split(SECRET, 140, range(65535 - 169, 65536), insecure_rng("far"))  # the longest points
    assert reconstruct(far, 140) == SECRET


def test_nothing_secret_is_kept_between_calls() -> None:
    """The cache is keyed by points alone: another secret at the same points comes out right."""
    lagrange_at_zero.cache_clear()
    for text in (b"\x01" * 32, b"\x02" * 32):
        shares = split(Secret(text), 3, [4, 9, 2, 7], insecure_rng(text))
        assert reconstruct(shares, 3) == Secret(text)
    assert lagrange_at_zero.cache_info().misses == 1


def test_one_changed_share_changes_the_secret() -> None:
    shares = split(SECRET, 3, range(1, 6), insecure_rng("change"))
    value = int.from_bytes(shares[2].view, "big")
    bent = {**shares, 2: Secret(((value + 1) % PRIME).to_bytes(33, "big"))}
    with contextlib.suppress(ReconstructionError):  # the result may also be no 32-byte number
        assert reconstruct(bent, 3) != SECRET
    swapped = {**shares, 1: shares[2], 2: shares[1]}
    assert reconstruct(swapped, 3) != SECRET


def test_threshold_minus_one_shares_are_independent_of_the_secret() -> None:
    """The same coefficients with another constant term shift every share by the same amount: the shares alone, uniform
    as they are, fit every secret. Shown on their top bit over many sharings of one secret."""
    ones = 0
    for i in range(400):
        shares = split(SECRET, 2, [1, 2], insecure_rng(("uniform", i)))
        ones += int.from_bytes(shares[1].view, "big") >= PRIME // 2
    assert 140 < ones < 260  # 200 expected, 6 deviations


def test_coefficients_use_the_whole_field() -> None:
    """Values from p on are drawn again, not folded: a candidate of all ones is skipped."""
    answers = iter([b"\xff" * 33, PRIME.to_bytes(33, "big"), (5).to_bytes(33, "big")])
    shares = split(Secret(bytes(32)), 2, [1, 2], lambda size: next(answers))
    assert int.from_bytes(shares[1].view, "big") == 5 and int.from_bytes(shares[2].view, "big") == 10


@pytest.mark.parametrize(
    ("threshold", "xs"), [(0, [1, 2]), (3, [1, 2]), (1, [0, 1]), (1, [1, 1]), (1, [65536]), (1, [-1]), (1, [])]
)
def test_bad_requests(threshold: int, xs: list[int]) -> None:
    with pytest.raises(ParameterError):
        split(SECRET, threshold, xs, insecure_rng(0))


def test_bad_lengths_and_ranges() -> None:
    with pytest.raises(ParameterError):
        split(Secret(bytes(31)), 1, [1], insecure_rng(0))
    shares = split(SECRET, 2, [1, 2], insecure_rng(0))
    for wrong in (Secret(PRIME.to_bytes(33, "big")), Secret(b"\xff" * 33), Secret(bytes(32)), Secret(bytes(34))):
        with pytest.raises(ReconstructionError, match="not a field element"):
            reconstruct({**shares, 1: wrong}, 2)
    high = {1: Secret((2**256 + 1).to_bytes(33, "big"))}
    with pytest.raises(ReconstructionError, match="32-byte secret"):
        reconstruct(high, 1)
