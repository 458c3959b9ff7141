"""Protocol R2: noise in shares inside the masked sum. Manifest, mechanism, accounting, and the sum of a whole round."""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from simulator import insecure_rng, make_manifest
from test_training import adapted_model, records

from dp import accountant
from dp.accountant import ABOVE_CEILING, calibrate, epsilon
from dp.errors import PrivacyError, UnsupportedMechanismError
from dp.events import SampledGaussian, event_tree, parse
from dp.mechanism import GaussianMechanism
from dp.sampling import Csprng
from dp.training import DpSgdPlan, noised_sum
from ffm.plan import attempt_mechanism
from ffm.round_update import integers_only, reals_only
from ffm.step import initial_model, next_model, parameters_of
from protocol.errors import LocalProtocolError
from protocol.manifest import Manifest
from secagg.masking import Mask, add_masks, frame, pairwise_sign, unframe
from secagg.types import ClientId, Secret

ADAM = {"optimizer": "fedadam", "learning_rate": "0.1", "beta1": "0.9", "beta2": "0.99", "tau": "0.001"}


def manifest(**changes: Any) -> Manifest:
    """The test manifest under R2: 5 clients, min_cohort 4, one of them corrupt, so three shares count."""
    body = make_manifest(5, length=40).model_dump(mode="python")
    body["training"] |= {"local_steps": 1, "optimizer": "sgd", "expected_batch": 100}
    body["privacy"] |= {"protocol": "R2", "scale": 1024, "clip_steps": 1024, "noise_steps": 2048, "max_records": 1000}
    body["aggregation"] |= {"scale": 1024, "bound": 2**21, "slots_per_word": 2}
    for name, value in changes.items():
        section, _, key = name.partition("__")
        body[section] |= {key: value}
    return Manifest.model_validate(body)


# -- the manifest -----------------------------------------------------------------------------------------------------


def test_shares_are_counted_for_the_smallest_sum_without_its_corrupt_members() -> None:
    made = manifest()
    a = made.aggregation
    assert made.noise_shares == a.min_cohort - a.max_corrupt == 3
    assert attempt_mechanism(made) == SampledGaussian(1, Fraction(1, 4), 2048, 1024, 3, 1)
    assert make_manifest(5).noise_shares == 1  # R1: each client's own noise counts, whole


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"training__local_steps": 2}, "one local step by sgd"),
        ({"training__optimizer": "adam"}, "one local step by sgd"),
        ({"aggregation__scale": 512}, "both scales must be equal"),
        ({"privacy__noise_steps": 99}, "below 100"),
        ({"aggregation__max_corrupt": 0, "aggregation__bound": 2**24}, "each client knows its own share"),
        ({"aggregation__bound": 2**18}, "bound too small"),
        ({"privacy__people_in_several_silos": "within-bound"}, "bound of at least 2"),
        ({"privacy__records_per_person": 65}, "less than or equal to 64"),
    ],
)
def test_what_has_no_proof_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        manifest(**change)


def test_several_records_in_several_silos_need_r2() -> None:
    many = {"privacy__people_in_several_silos": "within-bound", "privacy__records_per_person": 3}
    assert attempt_mechanism(manifest(**many)).records == 3
    with pytest.raises(ValidationError, match="under R2 only"):
        manifest(**many, privacy__protocol="R1")


def test_the_largest_contribution_covers_sample_and_noise() -> None:
    """Against what can be had: every record sampled is more, ten standard deviations of the sample are less."""
    made = manifest()
    p = made.privacy
    share = p.noise_steps / 3**0.5
    least = made.largest_contribution()
    deviation = (1000 * 0.25 * 0.75) ** 0.5
    assert (250 + 10 * deviation) * p.clip_steps + 10 * share < least < 1000 * p.clip_steps + 20 * share
    assert manifest(privacy__max_records=30).largest_contribution() < 31 * p.clip_steps + 20 * share


# -- the mechanism ----------------------------------------------------------------------------------------------------


def test_a_share_has_its_part_of_the_variance() -> None:
    mechanism = GaussianMechanism(1024, 1024, 3000, shares=3)
    noise = mechanism.privatize(np.zeros(200_000, dtype=np.int64), Csprng(bytes(32)))
    assert noise.var() == pytest.approx(3000**2 / 3, rel=0.02)
    with pytest.raises(UnsupportedMechanismError):
        GaussianMechanism(1, 1, 20, shares=5)


def plan(mechanism: GaussianMechanism | None, **changes: Any) -> DpSgdPlan:
    return replace(DpSgdPlan(1, 1, 1, mechanism, 10, "sgd", 0.1), **changes)


def test_the_noised_sum_is_the_sum_of_bounded_rows_and_a_share() -> None:
    """The same sample with two noises: the difference from the sum of one whole pass is the noise alone."""
    model = adapted_model()
    data = records(30)
    before = [p.detach().clone() for p in model.parameters()]
    quiet = GaussianMechanism(2**20, 2**20, 10)
    loud = GaussianMechanism(2**20, 2**20, 2**24, shares=4)
    base = noised_sum(model, data, plan(quiet), Csprng(bytes(32)))
    noised = noised_sum(model, data, plan(loud), Csprng(bytes([1]) * 32))
    assert base.dtype == noised.dtype == np.int64 and np.abs(base).max() > 1000
    assert (noised - base).std() == pytest.approx(2**23, rel=0.2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("wrong", [plan(None), plan(GaussianMechanism(1024, 1024, 2048), steps=2)])
def test_a_share_is_of_one_noised_sample(wrong: DpSgdPlan) -> None:
    with pytest.raises(UnsupportedMechanismError) as caught:
        noised_sum(adapted_model(), records(4), wrong, Csprng(bytes(32)))
    assert caught.value.code == "E236"


def test_noise_never_goes_on_reals() -> None:
    with pytest.raises(LocalProtocolError):
        integers_only(np.zeros(3, dtype=np.float32))
    with pytest.raises(LocalProtocolError):
        reals_only(np.zeros(3, dtype=np.int64))


def test_the_sum_of_a_round_is_the_sum_of_the_integers_to_the_bit() -> None:
    """Framed, masked pairwise, added and unframed: no rounding and no clamp anywhere behind the noise."""
    made, rng = manifest(), insecure_rng("r2")
    params = made.secagg_params()
    mechanism = GaussianMechanism(1024, 1024, 2048, made.noise_shares)
    clients = [ClientId(i) for i in range(1, 6)]
    values = {c: mechanism.privatize(np.full(40, 17 * c, dtype=np.int64), Csprng(bytes([c]) * 32)) for c in clients}
    seeds = {(u, v): Secret(rng(32)) for u in clients for v in clients if u < v}
    total = np.zeros(params.total_words, dtype=np.uint64)
    for u in clients:
        words = frame(values[u], params)
        others = [v for v in clients if v != u]
        add_masks(words, [Mask(seeds[min(u, v), max(u, v)], pairwise_sign(u, v)) for v in others])
        total += words
    assert np.array_equal(unframe(total, 5, params), sum(values.values()))


# -- the server step --------------------------------------------------------------------------------------------------


def test_the_server_step_descends_along_the_summed_gradient() -> None:
    made = manifest()
    model = np.linspace(-1, 1, 40).astype(np.float32)
    total = np.arange(-20, 20, dtype=np.int64) * 1024
    after = next_model(model, total, 5, made)
    expected = model - float(made.training.learning_rate) * total / (1024 * 100)
    assert np.allclose(after, expected, atol=1e-7)
    assert np.array_equal(after, next_model(model, total, 4, made))  # a public divisor, not the number of clients


@pytest.mark.parametrize("optimizer", ["fedadam", "fedyogi"])
def test_adaptive_steps_against_the_formulas_of_the_paper(optimizer: str) -> None:
    made = manifest(training__server=ADAM | {"optimizer": optimizer})
    model = initial_model(np.linspace(-1, 1, 40).astype(np.float32), made)
    assert len(model) == made.model_size == 120 and not model[40:].any()
    x, m, v = model[:40].astype(float), np.zeros(40), np.zeros(40)
    for step in range(3):
        total = (np.arange(40, dtype=np.int64) - 13 * step) * 1024
        update = -0.1 * total / (1024 * 100)
        m = 0.9 * m + 0.1 * update
        v = 0.99 * v + 0.01 * update**2 if optimizer == "fedadam" else v - 0.01 * update**2 * np.sign(v - update**2)
        x = x + 0.1 * m / (np.sqrt(v) + 0.001)
        model = next_model(model, total, 5, made)
        assert np.allclose(parameters_of(model, made), x, atol=1e-5)


# -- accounting -------------------------------------------------------------------------------------------------------

REFERENCE = SampledGaussian(1000, Fraction(1, 100), 65536, 65536)


def test_events_of_shares_and_persons_are_read_as_they_are_written() -> None:
    for event in (REFERENCE, replace(REFERENCE, shares=5), replace(REFERENCE, records=2, shares=3)):
        assert parse(event_tree(event)) == event
    tree = event_tree(replace(REFERENCE, shares=5, records=2))
    tree["event"]["records"] = 1
    with pytest.raises(UnsupportedMechanismError):  # one is written by leaving it out
        parse(tree)
    with pytest.raises(UnsupportedMechanismError):
        parse({"kind": "distributed_gaussian", "noise_steps": 1, "clip_steps": 1, "shares": 0})


def test_shares_cost_what_one_noise_costs_but_for_what_is_kept_of_delta() -> None:
    whole, parts = (epsilon([e], Decimal("1e-5"), prv=False) for e in (REFERENCE, replace(REFERENCE, shares=5)))
    assert Decimal(0) <= Decimal(parts.epsilon) - Decimal(whole.epsilon) < Decimal("0.0005")


def test_refusals_that_delta_does_not_cover_leave_no_claim() -> None:
    loud = SampledGaussian(1, Fraction(1), 66_667, 300_000, 5)  # ε near 37: (1 + e^37)·2^-80 is not below δ / 1024
    assert epsilon([loud], Decimal("1e-9"), prv=False).epsilon == ABOVE_CEILING
    assert accountant.curve([loud], Decimal("1e-9")) == (ABOVE_CEILING,)
    assert epsilon([replace(loud, shares=1)], Decimal("1e-9"), prv=False).epsilon != ABOVE_CEILING


@pytest.mark.parametrize(
    ("records", "expected"),
    [(1, "1.83"), *(pytest.param(k, e, marks=pytest.mark.slow) for k, e in ((2, "3.98"), (4, "8.90")))],
)
def test_several_records_of_a_person_against_the_design_page(records: int, expected: str) -> None:
    result = epsilon([replace(REFERENCE, records=records)], Decimal("1e-5"), prv=False)
    assert str(Decimal(result.epsilon).quantize(Decimal("0.01"))) == expected
    assert result.rdp == ABOVE_CEILING or Decimal(result.epsilon) <= Decimal(result.rdp)


def test_a_mixture_against_its_definition_by_numerical_integration() -> None:
    """One release, K = 2: δ(ε) of the mixture's density, add and remove, without any PLD."""
    q, sigma, e = 0.3, 1.5, 0.5
    x = np.linspace(-25, 25, 400_001)

    def density(shift: float) -> Any:
        return np.exp(-((x - shift) ** 2) / (2 * sigma**2)) / (sigma * np.sqrt(2 * np.pi))

    mixed = (1 - q) ** 2 * density(0) + 2 * q * (1 - q) * density(1) + q**2 * density(2)
    worst = max(
        np.trapezoid(np.maximum(p - np.exp(e) * o, 0), x) for p, o in ((mixed, density(0)), (density(0), mixed))
    )
    grid = 10**6
    event = SampledGaussian(1, Fraction(3, 10), int(sigma * grid), grid, records=2)
    found = float(accountant.delta_at([event], [Decimal(str(e))])[0])
    assert worst <= found <= worst * 1.01 + 1e-6


def test_calibration_under_shares_keeps_its_promise() -> None:
    planned = SampledGaussian(60, Fraction(1, 5), 1, 65536, 3)
    noise = calibrate(Decimal(3), Decimal("1e-4"), planned)
    assert Decimal(epsilon([replace(planned, noise_steps=noise)], Decimal("1e-4"), prv=False).epsilon) <= 3


def test_the_lattice_needs_a_share_of_ten_steps() -> None:
    with pytest.raises(PrivacyError, match="too coarse"):
        epsilon([SampledGaussian(1, Fraction(1), 200, 100, 500)], Decimal("1e-5"))
