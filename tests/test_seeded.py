"""Public reproducible numbers: the same everywhere, and really of the distribution that they claim."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffm.seeded import SeededStream

PINNED_WORDS = ["f1be5f4bbda2e691", "8b292c2e79899bec", "c6ef13922fd65e39", "704ccb256a272aa5"]
PINNED_FLOATS = "bcac9c459f9ce7d741a868ad0edd368482f441bbc8a02a7a6746352a0759f2ba"


def test_stream_is_pinned() -> None:
    """Known answer: a partition or a head must not change with a library, a machine or a refactoring."""
    words = SeededStream(2026, "pin").words(4)
    assert [f"{int(w):016x}" for w in words] == PINNED_WORDS
    floats = SeededStream(2026, "pin").uniform((2, 3), 0.25)
    assert hashlib.sha256(floats.astype("<f4").tobytes()).hexdigest() == PINNED_FLOATS


def test_label_and_seed_separate_streams() -> None:
    draws = {SeededStream(seed, label).words(1)[0] for seed in (0, 1) for label in ("a", "b", "")}
    assert len(draws) == 6


@given(st.integers(0, 2**64 - 1), st.floats(1e-6, 1e3), st.lists(st.integers(0, 5), min_size=1, max_size=3))
def test_uniform_stays_within_the_bound(seed: int, bound: float, shape: list[int]) -> None:
    values = SeededStream(seed, "u").uniform(shape, bound)
    assert values.dtype == np.float32
    assert values.shape == tuple(shape)
    assert (np.abs(values.astype(np.float64)) <= bound * (1 + 2**-23)).all()


def test_uniform_has_the_moments_of_a_uniform() -> None:
    values = SeededStream(7, "moments").uniform((200_000,), 1.0).astype(np.float64)
    assert abs(values.mean()) < 5 / np.sqrt(3 * values.size)
    assert abs(values.var() - 1 / 3) < 5 * np.sqrt(4 / 45 / values.size)


@given(st.integers(0, 2**53), st.integers(1, 2**64 - 1))
def test_below_is_below(seed: int, limit: int) -> None:
    assert 0 <= SeededStream(seed, "below").below(limit) < limit


def test_below_has_no_modulo_bias() -> None:
    """At a limit of 3/4 of the range, a plain remainder would give the lower third twice as often."""
    stream, limit = SeededStream(5, "bias"), 3 << 62
    low = sum(stream.below(limit) < 1 << 62 for _ in range(6000))
    assert abs(low - 2000) < 5 * np.sqrt(6000 * 2 / 9)


@pytest.mark.parametrize("limit", [0, -1, 1 << 64])
def test_below_refuses_an_impossible_limit(limit: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        SeededStream(1, "x").below(limit)


@given(st.integers(0, 2**53), st.lists(st.integers(), max_size=40))
def test_shuffled_is_a_permutation(seed: int, items: list[int]) -> None:
    before = list(items)
    assert sorted(SeededStream(seed, "s").shuffled(items)) == sorted(items)
    assert items == before


def test_shuffled_gives_every_order_alike() -> None:
    orders: dict[tuple[int, ...], int] = {}
    for seed in range(6000):
        order = tuple(SeededStream(seed, "order").shuffled((0, 1, 2)))
        orders[order] = orders.get(order, 0) + 1
    assert len(orders) == 6
    assert all(abs(count - 1000) < 5 * np.sqrt(6000 * 5 / 36) for count in orders.values())
