"""Continual learning: figures by hand, streams, memory, EWC from released sums, and the ledger that runs on."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from math import isnan, nan
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dp.accountant import epsilon
from dp.errors import BudgetExceededError
from dp.ledger import PrivacyLedger
from dp.sampling import Csprng
from ffm.client_run import round_charge
from ffm.consolidation import Tally, blockwise, strength_of
from ffm.data import Partition, Record
from ffm.errors import DataError, TaskError
from ffm.learner import Learner
from ffm.lifelong import Lifelong, lifelong
from ffm.memory import Memory
from ffm.models import locate
from ffm.periods import Period, by_drift, by_labels
from ffm.step import Pull, initial_model, next_model
from ffm.succession import Past
from ffm.task import build_manifest, example_settings, load_settings
from ffm.tasks.continual import (
    METHODS,
    Life,
    Seen,
    Way,
    period_manifest,
    table_of,
)
from protocol.manifest import Manifest

LABELS = ("heart", "lung", "skin", "bone")
WORDS = {
    "heart": "acute myocardial infarction of the left ventricle",
    "lung": "pneumonia in the lower lobe",
    "skin": "burn of the right hand with blisters",
    "bone": "fracture of the neck of the femur",
}
SITES = 4


def some(label: str, count: int, mark: str = "") -> tuple[Record, ...]:
    return tuple(Record(f"{WORDS[label]}, {mark} episode {n}", label) for n in range(count))


def period(*labels: str, count: int = 12) -> Period:
    sites = tuple(tuple(r for label in labels for r in some(label, count, f"site {s}")) for s in range(SITES))
    return Period(" and ".join(labels), sites, tuple(site[::6] for site in sites))


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    settings = load_settings(example_settings("heart")).model_copy(update={"labels": LABELS})
    made = build_manifest(settings, "bert-tiny")
    body = made.model_dump()
    body["training"] |= {"rounds": 2, "expected_batch": 24}
    return Manifest.model_validate(body)


@pytest.fixture(scope="module")
def learner(manifest: Manifest) -> Learner:
    return Learner.load(manifest, locate("bert-tiny"))


@pytest.fixture
def at_start(learner: Learner, manifest: Manifest) -> Iterator[Learner]:
    """The shared learner, put back to its start afterwards: a `Life` begins where it stands."""
    from ffm.adapters import load_flat

    first = learner.initial()
    yield learner
    load_flat(learner.model, manifest.adapter, first)


# -- figures ----------------------------------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_papers() -> None:
    table = [[0.1, 0.2, 0.1], [0.9, 0.3, 0.2], [0.7, 0.8, 0.4], [0.6, 0.9, 0.8]]
    found = lifelong(table)
    assert found.average == pytest.approx((0.6 + 0.9 + 0.8) / 3)
    assert found.forgetting == pytest.approx(((0.9 - 0.6) + (0.8 - 0.9)) / 2)  # the last row is no "earlier" one
    assert found.backward == pytest.approx(((0.6 - 0.9) + (0.9 - 0.8)) / 2)
    assert found.forward == pytest.approx(((0.3 - 0.2) + (0.4 - 0.1)) / 2)


def test_what_cannot_be_told_is_no_number_and_spoils_no_mean() -> None:
    one = lifelong([[0.5], [0.7]])
    assert one.average == 0.7 and all(map(isnan, (one.forgetting, one.backward, one.forward)))
    gap = lifelong([[0.1, nan, 0.1], [0.9, nan, 0.2], [0.7, nan, 0.4], [0.6, nan, 0.8]])
    assert gap == Lifelong(0.7, pytest.approx(0.3), pytest.approx(-0.3), pytest.approx(0.3))
    with pytest.raises(ValueError, match="rows"):
        lifelong([[0.1, 0.2], [0.1, 0.2]])


def test_a_perplexity_is_turned_round() -> None:
    seen = [
        Seen(0, 1, 0, {"perplexity": 90.0}),
        Seen(1, 1, 0, {"perplexity": 20.0}),
        Seen(1, 1, 2, {"perplexity": 1.0}),
    ]
    assert table_of(seen, "perplexity", 0, lower_is_better=True) == [[-90.0], [-20.0]]


# -- streams ----------------------------------------------------------------------------------------------------------

PLAN = Partition(3, 1, 1, 1000, 5)
RECORDS = (
    [r for label in LABELS for r in some(label, 60)],
    [r for label in LABELS for r in some(label, 15, "test")],
)


def test_new_labels_arrive_in_groups() -> None:
    stream = by_labels(RECORDS, 2, PLAN)
    for side in ("train", "test"):
        labels = [{r.label for site in getattr(p, side) for r in site} for p in stream]
        assert labels == [{"bone", "heart"}, {"lung", "skin"}]
    assert Counter(r for p in stream for site in p.train for r in site) == Counter(RECORDS[0])
    assert Counter(r for p in stream for site in p.test for r in site) == Counter(RECORDS[1])


def test_proportions_drift_and_every_record_arrives_once() -> None:
    stream = by_drift(RECORDS, 2, PLAN)
    assert Counter(r for p in stream for site in p.train for r in site) == Counter(RECORDS[0])
    counts = [Counter(r.label for site in p.train for r in site) for p in stream]
    for number, label in enumerate(sorted(LABELS)):
        assert 1.5 < counts[number % 2][label] / counts[1 - number % 2][label] < 2.6  # two to one, sites round it


@pytest.mark.parametrize(("make", "most"), [(by_labels, 4), (by_drift, 60)])
def test_more_periods_than_there_is_data_for_are_refused(make, most: int) -> None:
    for periods in (0, most + 1):
        with pytest.raises(DataError, match=f"1 to {most} periods") as refused:
            make(RECORDS, periods, PLAN)
        assert refused.value.code == "E514"


# -- memory -----------------------------------------------------------------------------------------------------------


def test_a_memory_is_bounded_in_the_mean_and_keeps_all_periods_alike() -> None:
    memory = Memory(Fraction(1, 4), Csprng(bytes(32)))
    sizes = []
    for number in range(1, 6):
        memory.end_period(some("heart", 4000, f"p{number}"))
        sizes.append(len(memory.records))
    assert all(abs(size - 1000) < 150 for size in sizes)  # 5 deviations
    kept = Counter(r.text.split(",")[1].split()[0] for r in memory.records)
    assert all(abs(kept[f"p{number}"] - 200) < 75 for number in range(1, 6))


@given(st.integers(0, 30), st.binary(min_size=32, max_size=32))
def test_one_record_more_changes_nothing_for_the_others(others: int, seed: bytes) -> None:
    """What is trained on differs by that record alone, which is what add-or-remove-one means."""
    rows = some("heart", others)
    kept = []
    for records in (rows, (*rows, Record("one more", "lung"))):
        memory = Memory(Fraction(1, 3), Csprng(seed))
        memory.end_period(records)
        kept.append(memory.records)
    assert kept[1][: len(kept[0])] == kept[0] and len(kept[1]) <= len(kept[0]) + 1


# -- EWC --------------------------------------------------------------------------------------------------------------


def test_importance_is_the_mean_square_without_the_noise(manifest: Manifest) -> None:
    """Sums of pure noise leave nothing worth the name; a planted gradient of the noise's size is found where it is."""
    rng = np.random.default_rng(3)  # noqa: TID251 - stands for noise in a test
    size, clients = manifest.adapter.size, 4
    deviation = manifest.privacy.noise_steps * (clients / manifest.noise_shares) ** 0.5
    signal = np.zeros(size)
    signal[-4 * 128 - 4 : -3 * 128 - 4] = deviation  # the head's weights, label 0; biases come last
    assert [t.shape for t in manifest.adapter.tensors[-2:]] in ([(4, 128), (4,)], [(4,), (4, 128)])
    if manifest.adapter.tensors[-2].shape == (4,):
        signal = np.roll(signal, 4)
    tally, blind = Tally(manifest), Tally(manifest, private=False)  # the second takes the noise for signal
    for number in range(20):
        total = np.rint(rng.normal(0, deviation, size) + signal).astype(np.int64)
        for one in (tally, blind):
            one.add((number + 1, 0), total, clients)
            one.add((number + 1, 0), total * 5, clients)  # what is there already is not added again
    square = (deviation / manifest.aggregation.scale) ** 2
    found, noisy = tally.importance(), blind.importance()
    assert np.allclose(found[signal > 0] / square, 1.0, atol=0.15)
    assert found[signal == 0].mean() / square < 0.05 < 0.9 < noisy[signal == 0].mean() / square
    assert np.allclose(tally.importance(found), 2 * found)  # what mattered before goes on to matter
    again = Tally.restored(manifest, tally.save())
    assert np.array_equal(again.importance(), found) and (again.sums, again.last) == (20, (20, 0))


def test_the_pull_is_the_proximal_step_and_only_where_it_matters(manifest: Manifest) -> None:
    size = manifest.adapter.size
    importance = np.r_[np.full(size // 2, 2.0), np.zeros(size - size // 2)].astype(np.float32)
    past = Past(np.zeros(size, dtype=np.float32), importance)
    held = period_manifest(manifest, 2, "x", past, Decimal(2))
    model = initial_model(np.full(size, 0.5, dtype=np.float32), manifest)
    total = np.full(size, 10**7, dtype=np.int64)
    plain = next_model(model, total, 4, manifest)
    drawn = next_model(model, total, 4, held, Pull(past.start, importance))
    pull = 2.0 * 2.0 / importance.mean()
    assert np.allclose(drawn[: size // 2], plain[: size // 2] / (1 + pull)) and abs(plain[0]) > 0.4
    assert np.array_equal(drawn[size // 2 :], plain[size // 2 :])  # unimportant values, and the optimizer's moments
    for made, pulled in ((held, None), (manifest, Pull(past.start, importance))):
        with pytest.raises(AssertionError, match="whether parameters are held"):
            next_model(model, total, 4, made, pulled)


def test_a_strength_is_written_in_six_digits_and_relative_to_the_mean() -> None:
    def ones(value: float) -> np.ndarray:
        return np.full(8, value, dtype=np.float32)

    assert strength_of(Decimal(10), ones(4.0)) == "2.5" and strength_of(Decimal("0.1"), ones(3.0)) == "0.0333333"
    assert strength_of(Decimal(10), ones(2.0**-20)) == "10485800"
    assert strength_of(Decimal(10), ones(0.0)) == strength_of(Decimal(1), ones(1e30)) == "0"
    assert strength_of(Decimal(4), ones(2.0**-44)) == "70368700000000"
    for importance in (2.0**-47, 2.0**-140):  # sums of a plan with a small rate: no manifest can write it
        with pytest.raises(TaskError, match="too little to hold") as refused:
            strength_of(Decimal(10), ones(importance))
        assert refused.value.code == "E533"


def test_blocks_are_rows_of_wide_tensors_and_whole_narrow_ones(manifest: Manifest) -> None:
    values = np.arange(manifest.adapter.size, dtype=np.float64) - 4.0
    out = blockwise(values, manifest.adapter)
    wide = sum(t.shape[0] for t in manifest.adapter.tensors if np.prod(t.shape) // t.shape[0] >= 64)
    narrow = sum(np.prod(t.shape) // t.shape[0] < 64 for t in manifest.adapter.tensors)
    assert len(set(out)) == wide + narrow and out.min() >= 0
    assert not blockwise(np.full(manifest.adapter.size, -1.0), manifest.adapter).any()


def test_sums_that_are_not_of_gradients_carry_no_fisher_information() -> None:
    adam = build_manifest(load_settings(example_settings("hospital")), "bert-tiny")
    with pytest.raises(TaskError, match="R1 with adam") as refused:
        Tally(adam)
    assert refused.value.code == "E533"
    body = adam.model_dump()
    body["training"]["consolidation"] = {"strength": "0"}
    with pytest.raises(ValidationError, match="sums of gradients"):
        Manifest.model_validate(body)
    with pytest.raises(TaskError, match="no such way"):
        Way("dream")


# -- lives ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_life_in_every_way(method: str, at_start: Learner) -> None:
    periods = (period("heart", "lung"), period("skin", "bone"))
    seen = Life(at_start, Way(method, private=False), Csprng(bytes(32))).through(periods)
    assert {(one.after, one.on, one.site) for one in seen} == {
        (after, on, site) for after in (0, 1, 2) for on in (1, 2) for site in range(SITES + 1)
    }
    table = table_of(seen, "accuracy", 0)
    by_site = [lifelong(table_of(seen, "accuracy", site)).average for site in range(1, SITES + 1)]
    assert lifelong(table).average == pytest.approx(np.mean(by_site))  # sites of one size
    if method == "adapter-per-period":
        assert table[1][0] == table[2][0] and lifelong(table).forgetting == 0.0


def test_one_place_sees_all_records_and_a_site_alone_its_own(at_start: Learner) -> None:
    """Each site has a label of its own, which is what it learns alone."""
    sites = tuple(some(label, 24) for label in LABELS)
    apart = Period("apart", sites, tuple(site[::6] for site in sites))
    samples, learned = {}, {}
    for who in ("federated", "centralised", 1, 2):
        life = Life(at_start, Way("sequential", private=False, who=who), Csprng(bytes(32)))  # type: ignore[arg-type]
        seen = life.through([apart])
        samples[who] = life.samples
        learned[who] = [one.scores["accuracy"] for one in seen if one.after == 1 and one.site]
    assert samples["federated"] == samples["centralised"] == SITES * samples[2]
    assert samples[1] == samples[2] and learned[1][1] == learned[2][2] == 1.0 > learned[1][2]


def test_periods_start_where_the_last_one_ended_or_afresh(at_start: Learner) -> None:
    """A life goes on from where it is: it is further away after two periods; an adapter per period begins anew."""
    lives = {
        method: Life(at_start, Way(method, private=False), Csprng(bytes(32))) for method in METHODS[:1] + METHODS[3:]
    }
    for life in lives.values():
        for labels in (("heart",), ("lung",)):
            life.live(period(*labels))
    moved = {name: [np.abs(v - life._first).max() for v in life._vectors] for name, life in lives.items()}
    assert moved["sequential"][1] > 1.5 * moved["sequential"][0]
    assert moved["adapter-per-period"][1] < 1.2 * moved["adapter-per-period"][0]


def test_the_ledger_runs_on_and_refuses_the_period_that_it_cannot_pay(
    at_start: Learner, manifest: Manifest, tmp_path: Path
) -> None:
    """Two periods of two rounds fit, a third does not, nor half of it: refused before anything is drawn or charged."""
    delta = Decimal(manifest.privacy.delta)
    costs = [
        Decimal(epsilon([round_charge(manifest, r, 0) for r in range(rounds)], delta, prv=False).epsilon)
        for rounds in (5, 6)
    ]
    assert costs[0] < costs[1]
    body = manifest.model_dump()
    body["privacy"] |= {"epsilon": f"{costs[0]:f}"}  # pays for five rounds
    learner = replace(at_start, manifest=Manifest.model_validate(body))
    books = [PrivacyLedger.open(tmp_path / f"{s}.sqlite", silo=f"site-{s}", population="records") for s in range(SITES)]
    rng = Csprng(bytes(32))
    life = Life(learner, Way("replay"), rng, books)
    assert books[0].last_charged is None
    life.live(period("heart", count=3))
    life.live(period("lung", count=3))
    for book in books:
        assert [(c.task, c.round) for c in book.charges()] == [
            (f"coronary-disease-{number}", round_) for number in (1, 2) for round_ in (1, 2)
        ]
        spent = epsilon(book.charges(), delta, prv=False)
        assert spent.epsilon == epsilon([round_charge(manifest, r, 0) for r in range(4)], delta, prv=False).epsilon
    heads, before = [book.head for book in books], life._vectors[-1].copy()
    with pytest.raises(BudgetExceededError, match="the 2 rounds of coronary-disease-3") as refused:
        life.live(period("skin", count=3))
    assert refused.value.code == "E201" and [book.head for book in books] == heads and life.periods == 2
    assert np.array_equal(life._latest, before)
    last = books[0].last_charged
    assert last is not None and (last.task, last.round, last.attempt) == ("coronary-disease-2", 2, 0)
    second = period_manifest(learner.manifest, 2, "lung", Past(life._vectors[0]))
    assert last.manifest_digest == second.digest().hex()
    for book in books:
        book.close()
    with PrivacyLedger.open(tmp_path / "0.sqlite", silo="site-0", population="records") as again:
        assert again.last_charged == last  # also after a restart


def test_a_site_without_records_is_told_before_anything_is_charged(at_start: Learner, tmp_path: Path) -> None:
    one = period("heart", count=3)
    gap = replace(one, train=(*one.train[:2], (), *one.train[3:]))
    with PrivacyLedger.open(tmp_path / "book.sqlite", silo="site", population="records") as book:
        life = Life(at_start, Way("sequential"), Csprng(bytes(32)), [book])
        with pytest.raises(DataError, match="site 3 has no records in period 1") as refused:
            life.live(gap)
        assert refused.value.code == "E514" and book.charges() == ()


def test_a_period_is_a_manifest_of_its_own(manifest: Manifest) -> None:
    first, second = (period_manifest(manifest, number, "x") for number in (1, 2))
    assert len({manifest.digest(), first.digest(), second.digest()}) == 3
    assert (first.task, first.data) == (f"{manifest.task}-1", f"{manifest.data}; period 1: x")
    assert first.model_copy(update={"task": manifest.task, "data": manifest.data}) == manifest
