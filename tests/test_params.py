"""The finder returns or refuses. Its inequalities are checked against brute force over what an attacker can collect."""

import dataclasses
from itertools import product

import pytest

from secagg.encoding import SlotEncoding
from secagg.errors import ParameterError
from secagg.graph import CompleteGraph
from secagg.params import SIZES, SecAggParams, default_max_corrupt
from secagg.thresholds import both_shares_threshold, ring_parameters
from secagg.types import ClientId


def params(n: int = 5, c: int = 1, dropouts: int = 0, min_cohort: int | None = None, **changes: object) -> SecAggParams:
    fields: dict[str, object] = {
        "num_clients": n,
        "max_corrupt": c,
        "max_dropouts": dropouts,
        "min_cohort": max(c, 1) + 2 if min_cohort is None else min_cohort,
        "vector_length": 10,
        "encoding": SlotEncoding(3, 16, 100, 300),
        "chunk_words": 16,
    }
    return SecAggParams(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n", "c", "threshold", "survived"),
    [(3, 0, 2, 1), (3, 1, 3, 0), (4, 1, 3, 1), (5, 0, 3, 2), (5, 1, 4, 1)],
)
def test_the_table_of_the_specification(n: int, c: int, threshold: int, survived: int) -> None:
    assert both_shares_threshold(n, c) == threshold
    assert n - threshold == survived
    p = params(n, c)
    assert p.threshold == p.quorum == threshold


def most_shares_of_both_kinds(n: int, c: int) -> int:
    """Brute force: the largest t for which some assignment gives t shares of each kind of one victim's secrets.

    Every honest holder answers with one kind only, every corrupt holder with both.
    """
    best = 0
    for honest_self in range(n - c + 1):
        best = max(best, min(honest_self + c, (n - c - honest_self) + c))
    return best


@pytest.mark.parametrize("n", range(3, 30))
def test_the_threshold_is_exact(n: int) -> None:
    for c in range(n - 1):
        t = both_shares_threshold(n, c)
        assert most_shares_of_both_kinds(n, c) < t  # no attack
        assert most_shares_of_both_kinds(n, c) >= t - 1  # attack at equality: one less is not enough


def test_feasibility_is_exactly_the_inequality() -> None:
    for n, c, dropouts, cohort in product(range(3, 10), range(9), range(9), range(2, 11)):
        t = (n + c) // 2 + 1
        fine = c <= n - 2 and max(c, 1) + 2 <= cohort <= n and n - dropouts >= max(t, cohort)
        try:
            made = params(n, c, dropouts, cohort)
        except ParameterError:
            assert not fine, (n, c, dropouts, cohort)
        else:
            assert fine, (n, c, dropouts, cohort)
            assert made.required == max(t, cohort) and made.required - c >= 2  # two honest clients behind every sum


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"n": 2}, "number of clients"),
        ({"n": SIZES["complete"][1] + 1, "c": 0}, "number of clients"),
        ({"n": 199, "c": 5, "dropouts": 5, "graph": "ring"}, "number of clients"),
        ({"n": 10_001, "c": 5, "dropouts": 5, "graph": "ring"}, "number of clients"),
        ({"graph": "star"}, "graph"),
        ({"c": -1}, "corrupt clients"),
        ({"c": 4}, "corrupt clients"),
        ({"dropouts": -1}, "dropouts"),
        ({"dropouts": 2}, "clients left after 2 dropouts"),
        ({"min_cohort": 2}, "min_cohort"),
        ({"min_cohort": 6}, "min_cohort"),
        ({"vector_length": 0}, "vector length"),
        ({"encoding": SlotEncoding(3, 16, 100, 4)}, "headroom"),
        ({"chunk_words": 15}, "chunk_words"),
        ({"chunk_words": 17}, "chunk_words"),
        ({"chunk_words": 14}, "chunk_words"),
        ({"chunk_words": 65538}, "chunk_words"),
    ],
)
def test_refusals_say_what_and_what_would_be_right(changes: dict[str, object], what: str) -> None:
    with pytest.raises(ParameterError, match=f"infeasible parameters: {what}") as caught:
        params(**changes)  # type: ignore[arg-type]
    assert caught.value.found is not None and caught.value.expected is not None
    assert isinstance(caught.value, ValueError)


def test_parameters_are_frozen_and_take_no_threshold() -> None:
    p = params()
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.num_clients = 9  # type: ignore[misc]
    assert not {"threshold", "quorum", "required"} & {f.name for f in dataclasses.fields(SecAggParams)}
    assert [default_max_corrupt(n) for n in (3, 4, 5, 6, 9, 10)] == [1, 1, 1, 2, 3, 3]


def test_the_digest_covers_every_parameter() -> None:
    base = params(9, 1, 0)
    e = base.encoding
    others = [
        params(10, 1, 0),
        params(9, 2, 0),
        params(9, 1, 1),
        params(9, 1, 0, 4),
        params(9, 1, 0, vector_length=11),
        params(9, 1, 0, chunk_words=18),
        *(
            params(9, 1, 0, encoding=dataclasses.replace(e, **{name: value}))  # type: ignore[arg-type]
            for name, value in (("slots_per_word", 2), ("scale", 17), ("bound", 101))
        ),
    ]
    assert len({p.digest() for p in (base, *others)}) == 1 + len(others)


def test_layout() -> None:
    p = params(vector_length=10)  # 4 words of 3 slots, 1 contribution word, 1 zero word
    assert (p.payload_words, p.num_chunks, p.total_words) == (5, 1, 6)
    p = params(vector_length=3 * 15)  # 15 words of slots and the contribution word need a second chunk
    assert (p.payload_words, p.num_chunks, p.total_words) == (16, 2, 18)


def test_the_ring_takes_degree_and_threshold_from_the_finder() -> None:
    p = params(200, 10, 10, graph="ring", encoding=SlotEncoding(3, 16, 100, 200))
    found = ring_parameters(200, 10, 10)
    assert (p.degree, p.threshold, p.max_corrupt_neighbors) == (
        found.degree,
        found.threshold,
        found.max_corrupt_neighbors,
    )
    assert p.required_advertised == 190 and p.required == p.quorum == 106
    assert p.degree // 2 + p.max_corrupt_neighbors + 1 <= p.threshold <= p.degree < p.required_advertised
    assert p.digest() != params(200, 10, 10, encoding=SlotEncoding(3, 16, 100, 200)).digest()
    assert default_max_corrupt(200, "ring") == 10


@pytest.mark.parametrize(("n", "c", "dropouts"), [(200, 10, 90), (1000, 450, 50), (10_000, 4000, 500)])
def test_a_ring_that_cannot_be_both_safe_and_live_is_refused(n: int, c: int, dropouts: int) -> None:
    with pytest.raises(ParameterError):
        params(n, c, dropouts, graph="ring", encoding=SlotEncoding(2, 16, 100, n))


def test_complete_graph() -> None:
    graph = CompleteGraph((ClientId(5), ClientId(2), ClientId(9)))
    assert graph.neighbors(ClientId(5)) == (2, 9) and graph.dealt_to(ClientId(5)) == (2, 5, 9)
    for one in (2, 5, 9):
        for other in (2, 5, 9):
            assert (
                (other in graph.neighbors(ClientId(one))) == (one in graph.neighbors(ClientId(other))) == (one != other)
            )
