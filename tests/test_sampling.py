"""The sampler draws what it says: distributions against theory and against a plain big-integer oracle."""

import copy
import math
import os
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from dp import sampling
from dp.errors import PrivacyError, UnsupportedMechanismError
from dp.sampling import Csprng, discrete_gaussian, discrete_gaussian_exact, poisson_sample, stochastic_round

# Seeds are pinned, so every p-value is a constant: a test that passes once passes always, and 0.001 is a
# fair line between right and wrong because the seeds were not chosen by their p-value.
ALPHA = 1e-3


def rng(label: int) -> Csprng:
    return Csprng(label.to_bytes(32, "big"))


def gaussian_weights(variance: Fraction, reach: int) -> NDArray[np.float64]:
    """P(y) for y = -reach..reach, straight from the definition."""
    y = np.arange(-reach, reach + 1, dtype=np.float64)
    weights = np.exp(-y * y / (2 * float(variance)))
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def p_value_small(draws: NDArray[np.int64], variance: Fraction) -> float:
    """Chi-squared over every integer that is expected at least ten times, the two tails pooled."""
    reach = math.ceil(12 * float(variance) ** 0.5) + 2
    expected = gaussian_weights(variance, reach) * draws.size
    core = np.flatnonzero(expected >= 10)
    low, high = core[0], core[-1]
    observed = np.bincount(np.clip(draws + reach, low - 1, high + 1) - (low - 1), minlength=high - low + 3)
    pooled = np.concatenate([[expected[:low].sum()], expected[low : high + 1], [expected[high + 1 :].sum()]])
    observed, pooled = merge_ends(observed, pooled)
    return float(stats.chisquare(observed, pooled * observed.sum() / pooled.sum()).pvalue)


def merge_ends(
    observed: NDArray[np.int64], expected: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Tails expected fewer than five times join their neighbour."""
    if expected[0] < 5:
        observed = np.concatenate([[observed[0] + observed[1]], observed[2:]])
        expected = np.concatenate([[expected[0] + expected[1]], expected[2:]])
    if expected[-1] < 5:
        observed = np.concatenate([observed[:-2], [observed[-2] + observed[-1]]])
        expected = np.concatenate([expected[:-2], [expected[-2] + expected[-1]]])
    return observed, expected


def p_value_large(draws: NDArray[np.int64], sigma: float) -> float:
    """Chi-squared over 200 equally likely bins of the continuous Gaussian, cut between integers."""
    edges = np.ceil(stats.norm.ppf(np.linspace(0, 1, 201)[1:-1]) * sigma)
    probability = np.diff(np.concatenate([[0.0], stats.norm.cdf((edges - 0.5) / sigma), [1.0]]))
    observed = np.bincount(np.searchsorted(edges, draws, side="right"), minlength=200)
    return float(stats.chisquare(observed, probability * draws.size).pvalue)


# ---- the keystream ----


def test_keystream_is_aes_256_ctr() -> None:
    # NIST SP 800-38A gives the cipher; zero key and zero counter block are the classic AES-256 known answer.
    assert Csprng(bytes(32)).take(16).hex() == "dc95c078a2408989ad48a21492842087"


def test_stream_goes_on_and_does_not_depend_on_the_portions() -> None:
    whole = rng(1).take(4096)
    parts = rng(1)
    assert b"".join(parts.take(n) for n in (1, 15, 16, 64, 4000)) == whole
    assert parts.take(16) not in whole
    assert rng(1).words(512).tobytes() == whole


def test_streams_of_different_seeds_differ() -> None:
    assert rng(1).take(32) != rng(2).take(32)
    assert Csprng.from_os().take(32) != Csprng.from_os().take(32)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_seed_of_wrong_length_is_refused(length: int) -> None:
    with pytest.raises(PrivacyError, match="expected 32"):
        Csprng(bytes(length))


def test_seed_is_in_no_repr_and_no_attribute() -> None:
    generator = Csprng(b"\x5a" * 32)
    assert repr(generator) == str(generator) == "Csprng(<redacted>)"
    assert not hasattr(generator, "__dict__")
    assert all(getattr(generator, name) != b"\x5a" * 32 for name in Csprng.__slots__)


def test_stream_cannot_be_copied_or_pickled() -> None:
    duplicates: list[Callable[[Csprng], object]] = [copy.copy, copy.deepcopy, lambda g: g.__reduce_ex__(4)]
    for duplicate in duplicates:
        with pytest.raises(TypeError, match="repeats its noise"):
            duplicate(rng(1))


def test_forked_child_is_refused() -> None:
    generator = rng(1)
    child = os.fork()
    if child == 0:
        try:
            generator.take(1)
        except PrivacyError as error:
            os._exit(7 if error.code == "E232" else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert len(generator.take(1)) == 1  # the parent goes on


# ---- Poisson sample ----


def test_inclusion_counts_are_binomial() -> None:
    population, rounds, q = 2000, 400, Fraction(3, 17)
    generator = rng(3)
    sizes, included = [], np.zeros(population, dtype=np.int64)
    for _ in range(rounds):
        sample = poisson_sample(generator, population, q.numerator, q.denominator)
        assert sample.dtype == np.int64
        assert bool((np.diff(sample) > 0).all())
        sizes.append(sample.size)
        included[sample] += 1
    # Size of a round, and inclusions of a record, are Binomial; a shuffled sampler has sizes without variance.
    for counts, trials in ((np.array(sizes), population), (included, rounds)):
        variance = trials * float(q) * (1 - float(q))
        z = (counts.mean() - trials * float(q)) / (variance / counts.size) ** 0.5
        assert abs(z) < 3.3
        spread = ((counts - trials * float(q)) ** 2).sum() / variance
        assert ALPHA < stats.chi2.cdf(spread, counts.size) < 1 - ALPHA


def test_neighbouring_records_are_sampled_independently() -> None:
    generator, n = rng(4), 200_000
    chosen = np.zeros(n)
    chosen[poisson_sample(generator, n, 1, 4)] = 1
    centred = chosen - 0.25
    for lag in (1, 2, 64):
        assert abs((centred[:-lag] * centred[lag:]).sum() / (0.1875 * (n - lag) ** 0.5)) < 3.3


def test_probability_one_takes_all_and_population_zero_nothing() -> None:
    assert poisson_sample(rng(5), 9, 7, 7).tolist() == list(range(9))
    assert poisson_sample(rng(5), 0, 1, 2).size == 0


class ScriptedRng(Csprng):
    """The production class over words that a test chooses, to reach branches of probability 2^-64."""

    def __init__(self, *words: int) -> None:
        super().__init__(bytes(32))
        self._left = b"".join(word.to_bytes(8, "little") for word in words)

    def take(self, n: int) -> bytes:
        head, self._left = self._left[:n], self._left[n:]
        assert len(head) == n, "more randomness drawn than the case needs"
        return head


def test_undecided_inclusion_is_settled_by_further_bits() -> None:
    # 1/3 = 0.0101...b: its first 64 bits are 0x5555...; the rest of the fraction is 1/3 again.
    tie = 0x5555555555555555
    assert poisson_sample(ScriptedRng(tie - 1), 1, 1, 3).tolist() == [0]
    assert poisson_sample(ScriptedRng(tie + 1), 1, 1, 3).tolist() == []

    class OneByte(ScriptedRng):
        def __init__(self, word: int, byte: int) -> None:
            super().__init__(word)
            self._left += bytes([byte])

    assert poisson_sample(OneByte(tie, 0), 1, 1, 3).tolist() == [0]  # 0 of {0, 1, 2}: below 1/3
    assert poisson_sample(OneByte(tie, 1), 1, 1, 3).tolist() == []


@pytest.mark.parametrize(
    ("population", "numerator", "denominator"), [(-1, 1, 2), (5, 0, 2), (5, 3, 2), (5, 1, 0), (5, -1, -2)]
)
def test_impossible_probabilities_are_refused(population: int, numerator: int, denominator: int) -> None:
    with pytest.raises(UnsupportedMechanismError):
        poisson_sample(rng(1), population, numerator, denominator)


# ---- stochastic rounding ----


@given(st.lists(st.floats(-1e15, 1e15), min_size=1, max_size=40))
def test_rounding_goes_to_a_neighbour(values: list[float]) -> None:
    rounded = stochastic_round(rng(6), np.array(values))
    for value, result in zip(values, rounded.tolist(), strict=True):
        assert result in (math.floor(value), math.ceil(value))


@pytest.mark.parametrize("value", [0.25, -0.25, 7.9, -1234.001, 0.5, 2.0**-3])
def test_rounding_has_the_mean_of_the_value(value: float) -> None:
    n = 100_000
    rounded = stochastic_round(rng(7), np.full(n, value))
    up = Fraction(value) - math.floor(value)
    assert abs((rounded - math.floor(value)).sum() - n * up) / (n * float(up * (1 - up))) ** 0.5 < 3.3


def test_rounding_never_moves_an_integer_and_keeps_tiny_values_unbiased() -> None:
    assert stochastic_round(rng(8), np.array([[3.0, -4.0], [0.0, 2.0**62]])).tolist() == [[3, -4], [0, 2**62]]
    # 2^-70 is below every 64-bit word: only the further bits can round it up.
    tiny = np.array([-(2.0**-70)])

    class Further(ScriptedRng):
        def __init__(self, byte: int) -> None:
            super().__init__(0)
            self._left += bytes([byte])

    assert stochastic_round(Further(0), tiny).tolist() == [-1]  # 0 of {0..63}
    assert stochastic_round(Further(1), tiny).tolist() == [0]
    assert stochastic_round(ScriptedRng(1), tiny).tolist() == [0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0**63])
def test_rounding_refuses_what_has_no_integer(value: float) -> None:
    with pytest.raises(PrivacyError, match="2\\^62"):
        stochastic_round(rng(1), np.array([value]))


# ---- discrete Gaussian ----

SMALL = [(1, 1), (2, 1), (9, 4), (7, 1), (10**2, 1), (31**2, 1)]


@pytest.mark.parametrize("variance", SMALL)
def test_every_integer_has_its_probability(variance: tuple[int, int]) -> None:
    draws = discrete_gaussian(rng(10), variance, 400_000)
    assert draws.shape == (400_000,)
    assert draws.dtype == np.int64
    assert p_value_small(draws, Fraction(*variance)) > ALPHA


@pytest.mark.parametrize("sigma", [1000, 2**16, 92_681, 92_682, 131_071, 10**9, 2**40])
def test_large_deviations_have_the_gaussian_shape(sigma: int) -> None:
    draws = discrete_gaussian(rng(11), sigma, 400_000)
    assert p_value_large(draws, sigma) > ALPHA
    assert abs(draws.astype(np.float64).var() / sigma**2 - 1) < 3.3 * (2 / draws.size) ** 0.5
    # Fair in its low bits too: sigma beyond 2^20 must not lose them to a float.
    for bit in (0, 1, 5):
        assert abs((draws >> bit & 1).mean() - 0.5) < 3.3 * 0.5 / draws.size**0.5


def test_these_tests_see_small_mistakes() -> None:
    draws = discrete_gaussian(rng(12), 31, 400_000)
    assert p_value_small(draws, Fraction(31**2)) > ALPHA
    assert p_value_small(draws, Fraction(31**2 * 102, 100)) < ALPHA  # 1 % in the deviation
    doubled_zero = np.where(draws == 1, 0, draws)
    assert p_value_small(doubled_zero, Fraction(31**2)) < ALPHA
    assert p_value_large(discrete_gaussian(rng(12), 66_200, 400_000), 2**16) < ALPHA


@pytest.mark.parametrize("variance", [(1, 1), (9, 4), (100, 1)])
def test_the_oracle_agrees(variance: tuple[int, int]) -> None:
    slow = discrete_gaussian_exact(rng(13), variance, 6_000)
    assert p_value_small(slow, Fraction(*variance)) > ALPHA
    fast = discrete_gaussian(rng(14), variance, 60_000)
    assert stats.ks_2samp(slow, fast).pvalue > ALPHA  # conservative on a lattice


def test_the_oracle_agrees_where_the_lattice_is_fine() -> None:
    slow = discrete_gaussian_exact(rng(15), 2**40, 3_000)
    assert stats.kstest(slow / 2**40, "norm").pvalue > ALPHA
    assert stats.ks_2samp(slow, discrete_gaussian(rng(16), 2**40, 30_000)).pvalue > ALPHA


def test_draws_are_independent_of_each_other() -> None:
    draws = discrete_gaussian(rng(17), 2**16, 300_000) / 2**16
    for lag in (1, 2, 16_384):
        assert abs((draws[:-lag] * draws[lag:]).sum()) / (draws.size - lag) ** 0.5 < 3.3
    # Bits of u, v and the sign come from one word: magnitude and sign must still be independent.
    signs = np.sign(draws)
    assert abs((signs * np.abs(draws)).mean()) * draws.size**0.5 < 3.3
    assert abs((signs * (np.abs(draws) > 2)).sum()) / (np.abs(draws) > 2).sum() ** 0.5 < 3.3


def test_floats_and_integers_decide_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The float only saves time: with a margin that sends every candidate to the integers, the draws are the same."""
    for sigma in (1, 13, 2**16, 2**40):
        law = sampling._law(sampling._variance(sigma))
        by_floats = sampling._candidates(rng(18), law, 1500)
        monkeypatch.setattr(sampling, "_MARGIN", 2.0)
        by_integers = sampling._candidates(rng(18), law, 1500)
        monkeypatch.undo()
        assert by_floats.tolist() == by_integers.tolist()


def test_the_float_of_exp_is_within_its_bound() -> None:
    gammas = np.concatenate([np.linspace(0, 63.99, 3000), np.arange(64.0), [0.0, 1 / 64, np.nextafter(1 / 64, 0)]])
    got = sampling._exp_of_minus(gammas.copy())
    for gamma, p in zip(gammas.tolist(), got.tolist(), strict=True):
        low, high = sampling._exp_interval(Fraction(gamma), 160)
        assert (
            Fraction(low, 1 << 160) * (1 - Fraction(1, 2**42))
            <= Fraction(p)
            <= Fraction(high, 1 << 160) * (1 + Fraction(1, 2**42))
        )
    assert sampling._exp_of_minus(np.array([-1e-16, 1e9])).tolist() == [1.0, float(sampling._EXP_TABLE[-1])]


@given(st.fractions(0, 200), st.sampled_from([16, 64, 128, 192]))
def test_the_interval_of_exp_holds_it(gamma: Fraction, bits: int) -> None:
    low, high = sampling._exp_interval(gamma, bits)
    assert 0 <= low <= high <= low + 3
    # A much finer interval lies inside the coarse one, and the finest agrees with the math library.
    fine_low, fine_high = sampling._exp_interval(gamma, bits + 320)
    assert low << 320 <= fine_high
    assert fine_low <= high << 320
    assert math.isclose(fine_low / 2.0 ** (bits + 320), math.exp(-gamma), rel_tol=1e-12) or gamma > bits + 200


def test_cells_of_the_first_bits_hold_their_geometric() -> None:
    cells = sampling._V_OF_CELL
    assert int((cells == sampling._BOUNDARY).sum()) == 12
    for cell in [0, 1, 2, 3, 100, 8875, 8876, 24_108, 24_109, 24_110, 40_000, 65_535]:
        low, high = Fraction(cell, 65_536), Fraction(cell + 1, 65_536)
        v_high = math.inf if cell == 0 else math.floor(-math.log(low))
        v_low = math.floor(-math.log(high)) if high < 1 else 0
        assert cells[cell] == (v_low if v_low == v_high else sampling._BOUNDARY)


def test_lazy_uniform_is_geometric_from_no_bits_at_all() -> None:
    generator, n = rng(19), 20_000
    values = np.array([sampling._LazyUniform(generator, 0, 0).geometric() for _ in range(n)])
    expected = np.array([(1 - math.exp(-1)) * math.exp(-v) for v in range(7)] + [math.exp(-7)]) * n
    assert stats.chisquare(np.bincount(np.minimum(values, 7), minlength=8), expected).pvalue > ALPHA


def test_undecided_exponential_is_settled_by_further_bits() -> None:
    exact = sampling._exp_interval(Fraction(1), 128)[0]
    head = (exact + 1) >> 64
    for tail, below in ((0, True), (2**64 - 1, False)):
        word = ScriptedRng(int.from_bytes(tail.to_bytes(8, "big"), "little"))
        assert sampling._LazyUniform(word, head, 64).below_exp(Fraction(1)) is below
    assert sampling._LazyUniform(ScriptedRng(), 2**64 - 1, 64).below_exp(Fraction(0)) is True


def test_same_seed_same_noise_and_length_is_what_was_asked() -> None:
    assert discrete_gaussian(rng(20), 50, 1000).tolist() == discrete_gaussian(rng(20), (2500, 1), 1000).tolist()
    assert discrete_gaussian(rng(20), 50, 1000).tolist() != discrete_gaussian(rng(21), 50, 1000).tolist()
    for size in (0, 1, 31, 16_384, 40_000):
        assert discrete_gaussian(rng(20), 50, size).size == size


@pytest.mark.parametrize("sigma", [0, -3, 2**40 + 1, (1, 2), (1, 0), (-4, -1), (2**80 + 1, 1)])
def test_deviations_without_proof_are_refused(sigma: int | tuple[int, int]) -> None:
    for draw in (discrete_gaussian, discrete_gaussian_exact):
        with pytest.raises(UnsupportedMechanismError, match="out of range"):
            draw(rng(1), sigma, 1)
