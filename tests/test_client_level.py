"""Protocol C: whole updates, clipped, rounded under a norm bound, noised in shares. Mechanism, manifest, accounts."""

import itertools
import json
import math
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from simulator import insecure_rng, make_manifest
from typer.testing import CliRunner

from dp.accountant import epsilon, in_unit, mechanisms
from dp.audit import COMPARISONS
from dp.audit_ledger import check_accountant, check_ledger
from dp.budget import Budget, check_next
from dp.client_level import LEAST_CLIENTS, ClientMechanism, bounded_update, conditional_round
from dp.errors import BudgetExceededError, UnsupportedMechanismError
from dp.events import SampledGaussian, event_tree, parse
from dp.ledger import Charge
from dp.rounding import norm_bound, root_above
from dp.sampling import Csprng
from ffm.audit import claim_of_books
from ffm.audit_shares import check_client_level, check_sensitivity
from ffm.cli.app import app
from ffm.client_run import budget_of, round_charge
from ffm.plan import attempt_mechanism, client_mechanism
from ffm.step import next_model
from protocol.bounds import rounded_norm
from protocol.manifest import Manifest
from secagg.masking import Mask, add_masks, frame, pairwise_sign, unframe
from secagg.types import Secret

COHORT, CORRUPT, CLIENTS = 500, 25, 520
CLIENT = {"protocol": "C", "unit": "client", "adjacency": "zero-out", "records_per_person": 1}


def manifest(length: int = 40, **changes: Any) -> Manifest:
    """520 clients on the ring, sums of at least 500, 25 of them corrupt: 475 shares count."""
    body = make_manifest(5, length=length).model_dump(mode="python", exclude_none=True)
    body["training"] |= {"local_steps": 7, "optimizer": "adam"}
    body["privacy"] |= CLIENT | {"scale": 1024, "clip_steps": 1024, "noise_steps": 8192}
    body["aggregation"] |= {
        **{"graph": "ring", "num_clients": CLIENTS, "max_corrupt": CORRUPT, "min_cohort": COHORT, "max_dropouts": 10},
        **{"scale": 1024, "bound": 2**21, "slots_per_word": 2},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        body[section] |= {key: value}
    return Manifest.model_validate(body)


def stream(*parts: object) -> Csprng:
    return Csprng(insecure_rng(parts)(32))


# -- the norm bound and the rounding ----------------------------------------------------------------------------------


@given(st.integers(1, 2**26), st.integers(1, 2**24))
def test_the_bound_is_the_formula_rounded_up(clip: int, size: int) -> None:
    """SPEC 10.11 in integers: 4·D² >= 4c² + d + 4c + 2·sqrt(d), and one step less would not be."""
    bound = norm_bound(clip, size)
    exact = 4 * clip**2 + size + 4 * clip  # without the root, which is left on the other side
    assert 4 * bound**2 >= exact and (4 * bound**2 - exact) ** 2 >= 4 * size
    assert bound == rounded_norm(clip, size)
    below = 4 * (bound - 1) ** 2 - exact
    assert below < 0 or below**2 < 4 * (math.isqrt(size) + 1) ** 2
    assert bound <= clip + math.isqrt(size) + 1


def test_roots_are_rounded_up() -> None:
    assert [root_above(n) for n in (0, 1, 2, 4, 5, 9, 10)] == [0, 1, 2, 2, 3, 3, 4]
    assert root_above(Fraction(81, 4)) == 5


def test_most_draws_keep_the_bound() -> None:
    """β = e^(-1/2) for the worst vector; here all values lie half-way, where a rounded value is longest."""
    rng, size, clip = stream("draws"), 400, 10
    values = np.full(size, clip / math.sqrt(size))
    kept = sum(
        int((np.floor(values + (rng.words(size) >> np.uint64(11)) * 2.0**-53) ** 2).sum())
        <= norm_bound(clip, size) ** 2
        for _ in range(500)
    )
    assert kept / 500 >= 1 - math.exp(-0.5)


def test_the_rounding_has_the_conditional_law() -> None:
    """Every outcome within the bound at its own probability over that of the bound: exactly enumerated, then drawn."""
    values, most = np.array([0.5, 1.25, -0.75, 0.1]), 2
    law: dict[tuple[int, ...], float] = {}
    for ups in itertools.product((0, 1), repeat=4):
        steps = tuple(int(math.copysign(math.floor(abs(v)) + up, v)) for v, up in zip(values, ups, strict=True))
        chance = math.prod(abs(v) % 1 if up else 1 - abs(v) % 1 for v, up in zip(values, ups, strict=True))
        if sum(s * s for s in steps) <= most**2:
            law[steps] = law.get(steps, 0.0) + chance
    assert 0.2 < sum(law.values()) < 0.8  # the bound does something
    rng, draws = stream("law"), 20_000
    seen = Counter(tuple(conditional_round(rng, values, most).tolist()) for _ in range(draws))
    assert set(seen) <= set(law)
    expected = {steps: draws * chance / sum(law.values()) for steps, chance in law.items()}
    statistic = sum((seen[steps] - e) ** 2 / e for steps, e in expected.items())
    assert statistic < 3 * len(law) + 20  # chi-square, far in the tail


def test_without_redraws_the_rounding_is_unbiased() -> None:
    rng, values = stream("mean"), np.array([0.3, -2.6, 7.5])
    mean = np.mean([conditional_round(rng, values, 1000) for _ in range(20_000)], axis=0)
    assert np.abs(mean - values).max() < 5 * 0.5 / math.sqrt(20_000)


def test_what_cannot_be_rounded_within_the_bound_is_zero() -> None:
    assert not conditional_round(stream("never"), np.array([3.0, 4.0]), 4).any()
    assert conditional_round(stream("exactly"), np.array([3.0, 4.0]), 5).tolist() == [3, 4]


# -- sensitivity: what the proof stands on ----------------------------------------------------------------------------

NUMBERS = st.floats(width=32) | st.sampled_from([0.0, 1.0, -1.0, 2.0**-20, 3e38, float("nan"), float("inf")])


@settings(max_examples=200)
@given(st.lists(NUMBERS, min_size=1, max_size=60), st.integers(1, 2**12), st.integers(1, 2**12), st.integers(0, 99))
def test_no_update_is_longer_than_the_sensitivity(update: list[float], scale: int, clip: int, seed: int) -> None:
    """Zero-out: the neighbour sends zeros, so the length of the integers is all that a client can move."""
    mechanism = ClientMechanism(scale, clip, 10**6, 2, len(update))
    steps = bounded_update(np.array(update, dtype=np.float32), mechanism, stream("property", seed))
    assert sum(int(s) ** 2 for s in steps) <= mechanism.sensitivity**2
    if not np.isfinite(np.array(update, dtype=np.float32)).all():
        assert not steps.any()


@pytest.mark.parametrize("norm", [0.5, 1.0, 10.0, 1e6])
def test_updates_are_clipped_and_keep_their_direction(norm: float) -> None:
    size = 2000
    mechanism = ClientMechanism(2**16, 2**16, 2**20, 2, size)
    direction = np.sin(np.arange(size)) / np.linalg.norm(np.sin(np.arange(size)))
    steps = bounded_update((norm * direction).astype(np.float32), mechanism, stream("clip"))
    assert np.abs(steps - min(norm, 1.0) * 2**16 * direction).max() < 1.5
    assert mechanism.sensitivity == norm_bound(2**16, size) == 2**16 + 1


def test_one_share_of_the_noise_goes_on_the_integers() -> None:
    mechanism = ClientMechanism(1024, 1024, 100_000, 25, 200_000)
    noised = mechanism.privatize(np.full(200_000, np.nan, dtype=np.float32), stream("share"))
    assert noised.dtype == np.int64 and noised.std() == pytest.approx(20_000, rel=0.01)


def test_five_hundred_clients_sum_to_their_updates_and_all_the_noise() -> None:
    """Through frames and masks (each with two neighbours): the mean is right, and the variance that of 500 shares."""
    size = 10_000
    made, rng = manifest(size), insecure_rng("500 clients")
    params, mechanism = made.secagg_params(), client_mechanism(made)
    update = np.cos(np.arange(size)).astype(np.float32) / np.float32(math.sqrt(size))
    seeds = [Secret(rng(32)) for _ in range(COHORT)]
    total, plain = np.zeros(params.total_words, dtype=np.uint64), np.zeros(size)
    for k in range(COHORT):
        mine = update * np.float32((-1) ** k * (k % 7))  # some are clipped, half of the directions are opposite
        plain += np.asarray(mine, dtype=float) * min(1.0, 1 / max(float(np.linalg.norm(mine)), 1e-9))
        words = frame(mechanism.privatize(mine, stream("client", k)), params)
        before, after = (k - 1) % COHORT, (k + 1) % COHORT
        add_masks(words, [Mask(seeds[k], pairwise_sign(k, after)), Mask(seeds[before], pairwise_sign(k, before))])
        total += words
    opened = unframe(total, COHORT, params)
    noise = opened - 1024 * plain
    variance = 8192**2 * COHORT / (COHORT - CORRUPT) + COHORT / 6  # shares; rounding, at most a quarter each
    assert noise.var() == pytest.approx(variance, rel=5 * math.sqrt(2 / size))
    assert abs(noise.mean()) < 5 * math.sqrt(variance / size)
    after_step = next_model(np.zeros(size, dtype=np.float32), opened, COHORT, made)
    assert np.allclose(after_step, opened / (1024 * COHORT), atol=1e-6)  # the mean over a public number


# -- the manifest -----------------------------------------------------------------------------------------------------


def test_one_release_a_round_whatever_the_local_steps() -> None:
    made = manifest()
    assert made.noise_in_shares and made.noise_shares == COHORT - CORRUPT
    assert made.sensitivity_steps == norm_bound(1024, 40) > 1024
    release = attempt_mechanism(made)
    assert release == SampledGaussian(1, Fraction(1), 8192, made.sensitivity_steps, COHORT - CORRUPT, unit="client")
    assert parse(round_charge(made, 1, 0).event) == release
    assert budget_of(made).unit == "client"
    assert made.largest_contribution() > made.sensitivity_steps + 10 * 8192 / math.sqrt(COHORT - CORRUPT)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"aggregation__min_cohort": LEAST_CLIENTS - 1}, "at least 500 clients.*drowns the mean"),
        ({"privacy__unit": "record"}, "the unit of protocol C is the client"),
        ({"privacy__adjacency": "add-or-remove-one"}, "its adjacency zero-out"),
        ({"privacy__protocol": "R1"}, "the unit of protocol R1 is the record"),
        ({"privacy__records_per_person": 2}, "records_per_person must be 1"),
        ({"aggregation__scale": 512}, "both scales must be equal"),
        ({"privacy__noise_steps": 217}, "below 100"),  # 217^2 / 475 < 100
        ({"aggregation__bound": 1100}, "bound too small"),
        ({"privacy__clip_steps": 2**26, "aggregation__bound": 2**21}, "sensitivity must be at most"),
        ({"privacy__people_in_several_silos": "within-bound"}, "under R2 only"),
    ],
)
def test_what_has_no_proof_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        manifest(**change)


def test_uploads_without_masks_are_refused() -> None:
    encryption = {"scheme": "bfv", "limb_bits": 16, "library": "tenseal 0.3.16"}
    with pytest.raises(ValidationError, match="C needs masks"):
        manifest(aggregation__assurance="he", aggregation__encryption=encryption)


# -- accounts: one unit and one adjacency at a time -------------------------------------------------------------------

RELEASE = SampledGaussian(1, Fraction(1), 5 * 65536, 65537, 475, unit="client")
RECORD = SampledGaussian(10, Fraction(1, 100), 65536, 65536)
DELTA = Decimal("1e-5")


def test_events_of_clients_are_read_as_they_are_written() -> None:
    tree = event_tree(RELEASE)
    assert tree["event"] == {"kind": "client_gaussian", "noise_steps": 327680, "clip_steps": 65537, "shares": 475}
    assert parse(tree) == RELEASE
    sampled = {"kind": "poisson_sampled", "numerator": 1, "denominator": 2, "event": tree["event"]}
    for wrong in (sampled, sampled | {"denominator": 1}, tree["event"] | {"shares": 1}):
        with pytest.raises(UnsupportedMechanismError):
            parse(wrong)


@pytest.mark.parametrize("change", [{"sampling_probability": Fraction(1, 2)}, {"records": 2}, {"shares": 1}])
def test_a_client_is_neither_sampled_nor_alone(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedMechanismError):
        event_tree(replace(RELEASE, **change))


def test_a_client_costs_the_gaussian_without_sampling() -> None:
    """Against the reference point of the design: q = 1, σ = 5, T = 20 -> 3.85."""
    spent = epsilon([SampledGaussian(20, Fraction(1), 5 * 65537, 65537, 475, unit="client")], DELTA, prv=False)
    assert Decimal(spent.epsilon).quantize(Decimal("0.01")) == Decimal("3.85")
    assert spent.closed_form != "not applicable"


def test_two_units_never_stand_in_one_account() -> None:
    with pytest.raises(UnsupportedMechanismError, match="two units"):
        mechanisms([RELEASE, RECORD])
    with pytest.raises(UnsupportedMechanismError, match="record-level releases"):
        in_unit([RELEASE, RECORD], "client")
    assert in_unit([RELEASE], "client") == (RELEASE,)


def test_at_the_record_level_an_update_is_exchanged_for_another() -> None:
    """Twice the norm bound, no sampling: the same as the group of two of Gaussian DP."""
    seen = in_unit([RELEASE, RECORD], "record")
    assert [(e.clip_steps, e.unit) for e in seen] == [(2 * 65537, "record"), (65536, "record")]
    client, record = (
        Decimal(epsilon(in_unit([RELEASE], unit), DELTA, prv=False).epsilon) for unit in ("client", "record")
    )
    assert record > 2 * client
    both = Decimal(epsilon(seen, DELTA, prv=False).epsilon)
    assert both > record


def charge(mechanism: SampledGaussian, round_: int) -> Charge:
    return Charge("t", "ab" * 32, round_, 0, event_tree(mechanism))


def test_budgets_of_both_units_over_one_ledger() -> None:
    spent = [charge(RELEASE, 1), charge(RELEASE, 2)]
    client = check_next(spent, charge(RELEASE, 3), Budget(Decimal(3), DELTA, "client"))
    with pytest.raises(BudgetExceededError) as caught:
        check_next(spent, charge(RELEASE, 3), Budget(Decimal(1), DELTA, "client"))
    assert "client, zero-out" in str(caught.value)
    record = check_next(spent, charge(RECORD, 3), Budget(Decimal(8), DELTA))
    assert Decimal(record.epsilon) > Decimal(client.epsilon)  # the client-level rounds were charged to the records too
    with pytest.raises(UnsupportedMechanismError):
        check_next([*spent, charge(RECORD, 3)], charge(RELEASE, 4), Budget(Decimal(8), DELTA, "client"))


# -- the commands -----------------------------------------------------------------------------------------------------


def test_calibrate_tells_both_levels() -> None:
    command = ["privacy", "calibrate", "--epsilon", "8", "--delta", "1e-5", "--steps", "50", "--shares", "475"]
    done = CliRunner().invoke(app, [*command, "--sampling", "1/1", "--client-level", "295000", "--format", "json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout.strip().splitlines()[-1])
    assert value["sensitivity_steps"] == norm_bound(65536, 295_000)
    assert Decimal(value["epsilon"]) <= 8 < Decimal(value["epsilon_per_record"])
    refused = CliRunner().invoke(app, [*command, "--sampling", "1/2", "--client-level", "9", "--format", "json"])
    assert refused.exit_code != 0


# -- the audit --------------------------------------------------------------------------------------------------------


def test_the_audit_passes_and_its_controls_are_seen() -> None:
    findings = check_client_level(manifest(600, privacy__noise_steps=20_000), (400_000, 400_000), stream("audit"))
    assert [f.name for f in findings if not f.passed] == []
    assert {f.verdict for f in findings} == {"holds", "seen"}
    assert sum(f.comparisons for f in findings) <= COMPARISONS


def test_the_audit_names_rounding_without_redraws_and_a_clip_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    mechanism = ClientMechanism(64, 1, 2000, 25, 400)
    assert check_sensitivity(mechanism, mechanism, stream("a")).passed
    loose = replace(mechanism, clip_steps=2 * mechanism.sensitivity)
    assert not check_sensitivity(loose, mechanism, stream("b")).passed
    monkeypatch.setattr("dp.client_level.conditional_round", lambda _rng, values, _most: np.ceil(values).astype(int))
    assert not check_sensitivity(mechanism, mechanism, stream("c")).passed


def test_books_charge_what_a_client_runs(tmp_path: Path) -> None:
    claim = claim_of_books(manifest(privacy__epsilon="3", privacy__noise_steps=10_000))
    findings = [*check_accountant(claim), *check_ledger(claim, tmp_path)]
    assert [f.name for f in findings if not f.passed] == []
