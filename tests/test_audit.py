"""The audit's checks one by one: each passes on what is claimed and fails on what is not; its statistics are held
against exact laws; its result is canonical and its group follows from it."""

import json
import math
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from dp.audit import (
    ALARM,
    AT_THE_SITE,
    COMPARISONS,
    LEVEL,
    AuditResult,
    Canary,
    Finding,
    Measure,
    Trace,
    guarded,
)
from dp.audit_canaries import (
    Game,
    check_gaussian,
    check_guesses,
    curve_wrong,
    gaussian_epsilon,
    gaussian_wrong,
    lower_mu,
    refuted,
)
from dp.audit_ledger import check_persons
from dp.audit_neighbours import BACKGROUND, JOINERS, check_neighbours
from dp.audit_noise import NoiseTally, check_streams
from dp.audit_planted import Claimed, Effort, controls, planted_checks, zero_input
from dp.audit_sampler import check_fresh_sample, check_sampler
from dp.errors import AuditError, PrivacyError
from dp.mechanism import GaussianMechanism
from dp.report import build_report, verify_report
from dp.sampling import Csprng, discrete_gaussian, poisson_sample
from dp.store import canonical
from dp.training import DpSgdPlan
from ffm.audit import Subject, audit
from ffm.audit_model import check_processes
from ffm.audit_pipeline import CanaryTraining, watched
from ffm.task import build_manifest
from tests.report_sample import facts
from tests.small_models import language_settings, save_tiny_bert, save_tiny_masked_bert
from tests.test_personal import manifest_of

torch.set_num_threads(1)
MECHANISM = GaussianMechanism(scale=2**16, clip_steps=2**16, noise_steps=50_000)
PLAN = DpSgdPlan(4, 1, 8, MECHANISM, 100, "adam", 0.01, 64)
PIPELINE = CanaryTraining({"query": 600, "value": 700, "head": 700}, PLAN)
CLAIMED = Claimed(MECHANISM, (1, 8), Decimal("0.00001"))
SMALL = Effort(noise_values=200_000, sampled_steps=32, attempts=8)


def rng(label: int = 0) -> Csprng:
    return Csprng(label.to_bytes(32, "big"))


def noise(label: int, steps: int = 20, size: int = 4000, deviation: int = MECHANISM.noise_steps) -> Trace:
    drawn = discrete_gaussian(rng(label), deviation, steps * size).reshape(steps, size)
    return Trace(np.zeros_like(drawn), drawn, drawn.astype(np.float64), steps)


def failed(findings: list[Finding]) -> list[str]:
    return [finding.name for finding in findings if not finding.passed]


# ---- the pipelines are the real loop ----


def test_a_planted_gradient_is_what_the_canary_says() -> None:
    for canary in (Canary(3, 0.5), Canary(3, 1.0, -1), Canary(499, 10.0), Canary(5, 0.0)):
        trace = PIPELINE.run([canary], 1, False, rng())
        scores = PIPELINE.scores(trace.sums.astype(np.float64))[0]
        assert scores[canary.row] == pytest.approx(canary.sign * min(canary.norm, 1.0), abs=1e-4)
        assert np.count_nonzero(np.delete(scores, canary.row)) == 0
        assert np.count_nonzero(trace.sums) == (4 if canary.norm else 0)
    assert PIPELINE.rows == 500 and PIPELINE.groups["value"] == slice(600, 1300)


def test_what_is_handed_on_is_what_was_released_and_parameters_stay() -> None:
    trace = PIPELINE.run([Canary(row, 1.0) for row in range(50)], 5, True, rng())
    assert trace.whole and trace.handed.shape == (5, 2000)
    assert np.abs(trace.handed - trace.released).max() < 0.5
    assert len({tuple(row) for row in trace.sums}) > 1  # sampled afresh
    again = PIPELINE.run([Canary(row, 1.0) for row in range(50)], 5, True, rng())
    assert again.released.tolist() == trace.released.tolist()


def test_a_pipeline_without_noise_is_not_audited() -> None:
    with pytest.raises(PrivacyError) as caught:
        watched(torch.nn.Linear(1, 1), {}, replace(PLAN, mechanism=None), rng())
    assert caught.value.code == "E702"


def test_all_planted_checks_hold_and_all_controls_are_seen() -> None:
    findings = planted_checks(PIPELINE, CLAIMED, SMALL, rng(1), Csprng.from_os)
    assert failed(findings) == []
    assert len(findings) > 15
    made = controls(PIPELINE, CLAIMED, rng(2))
    assert len(made) == 6 and all(f.control and f.verdict == "seen" for f in made)


def test_a_control_that_is_not_seen_is_a_violation() -> None:
    """Controls that are no faults: a pipeline whose configured() changes nothing."""

    class Stubborn(CanaryTraining):
        def configured(self, mechanism: GaussianMechanism, sampling: tuple[int, int]) -> CanaryTraining:
            return PIPELINE

    made = controls(Stubborn(PIPELINE.sizes, PLAN), CLAIMED, rng(2))
    assert [f.verdict for f in made].count("NOT SEEN") == 5  # all but the seed


# ---- noise ----


def test_the_tally_passes_the_claim_and_no_neighbour_of_it() -> None:
    def verdicts(deviation: int) -> list[str]:
        tally = NoiseTally(MECHANISM.noise_steps, {"a": slice(0, 1000), "b": slice(1000, 4000)})
        for label in range(3):
            tally.add(noise(label, deviation=deviation))
        return failed(tally.findings())

    assert verdicts(50_000) == []
    for deviation in (49_000, 51_000, 41_667, 12_500):
        assert "noise: variance of all coordinates" in verdicts(deviation), deviation


@pytest.mark.parametrize("deviation", [100, 137, 65536])
def test_coarse_grids_raise_no_alarm(deviation: int) -> None:
    tally = NoiseTally(deviation, {"a": slice(0, 4000)})
    tally.add(noise(deviation, 100, deviation=deviation))
    assert failed(tally.findings()) == []


def changed(what: str) -> Trace:
    t = noise(7)
    handed, released, sums = t.handed.copy(), t.released.copy(), t.sums.copy()
    match what:
        case "repeated":
            handed[3] = released[3] = handed[11]
            released[3] = released[11]
        case "un-noised":
            handed[:, :40] = released[:, :40] = 0
        case "clamped":
            handed = np.clip(handed, -100_000, 100_000)
            released = handed.astype(np.int64)
        case "doubled coordinates":
            handed[:, 1::2] = handed[:, ::2]
            released = handed.astype(np.int64)
        case "round the noise":
            handed[:, 5] += 3
        case "NaN":
            handed[2, 2] = np.nan
        case "step without noise":
            released = released[:-1]
        case "biased":
            handed += 3000
            released += 3000
    return Trace(sums, released, handed, t.wanted)


@pytest.mark.parametrize(
    ("what", "check"),
    [
        ("repeated", "between steps"),
        ("un-noised", "variance of a"),
        ("clamped", "variance of all"),
        ("doubled coordinates", "between coordinates"),
        ("round the noise", "nothing else leaves"),
        ("NaN", "nothing else leaves"),
        ("step without noise", "nothing else leaves"),
        ("biased", "between coordinates"),
    ],
)
def test_what_is_wrong_with_the_noise_is_named(what: str, check: str) -> None:
    tally = NoiseTally(MECHANISM.noise_steps, {"a": slice(0, 40), "b": slice(40, 4000)})
    tally.add(changed(what))
    assert any(check in name for name in failed(tally.findings())), failed(tally.findings())


def test_streams_that_are_shared_are_seen() -> None:
    assert check_streams(noise(1), noise(2), MECHANISM.noise_steps, "clients").passed
    assert not check_streams(noise(1), noise(1), MECHANISM.noise_steps, "clients").passed


# ---- sampler ----


def inclusions(label: int, steps: int, records: int, q: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    stream, out = rng(label), np.zeros((steps, records), dtype=np.bool_)
    for step in range(steps):
        out[step, poisson_sample(stream, records, *q)] = True
    return out


@pytest.mark.parametrize("q", [(1, 100), (1, 16), (1, 2), (9, 10), (1, 1)])
def test_the_sampler_holds(q: tuple[int, int]) -> None:
    for label in range(3):
        assert failed(check_sampler(inclusions(label, 64, 500, q), *q)) == []
        one, two = inclusions(label, 8, 500, q), inclusions(label + 50, 8, 500, q)
        assert check_fresh_sample(one, two, *q, "attempts").passed


def test_wrong_samplers_are_named() -> None:
    good = inclusions(1, 64, 800, (1, 16))
    assert "sampler: inclusions" in failed(check_sampler(inclusions(1, 64, 800, (1, 12)), 1, 16))
    fixed = np.zeros_like(good)
    for step in range(64):
        fixed[step, np.argsort(np.frombuffer(rng(step).take(8 * 800), dtype="<u8"))[:50]] = True
    assert any("batch sizes" in name for name in failed(check_sampler(fixed, 1, 16)))
    rounds = np.arange(800)[None, :] % 16 == np.arange(64)[:, None] % 16
    assert any("each record" in name for name in failed(check_sampler(rounds, 1, 16)))
    again = np.repeat(good[::2], 2, axis=0)
    assert "sampler: steps draw afresh" in failed(check_sampler(again, 1, 16))
    assert not check_fresh_sample(good, good, 1, 16, "attempts").passed
    assert failed(check_sampler(good, 1, 1)) == ["sampler: q = 1"]


def test_chernoff_bounds_are_bounds() -> None:
    """Against the exact law where it is known: at large counts a squared deviation is nearly chi-square."""
    from dp.audit_sampler import _chernoff

    values = np.arange(4001)
    law = stats.binom(4000, 0.5)
    squares, mass = (values - 2000) ** 2 / 1000, law.logpmf(values)
    for count in (16, 100, 1000):
        low, high = _chernoff(squares, mass, count, -1), _chernoff(squares, mass, count, 1)
        exact = stats.chi2(count)
        assert 0.95 < high / (exact.isf(LEVEL / 2) / count) < 1.25 and high > exact.isf(LEVEL / 2) / count * 0.999
        assert low < exact.ppf(LEVEL / 2) / count * 1.001


# ---- canaries ----


def game(mu: float, label: int, canaries: int = 1600) -> Game:
    bits = np.unpackbits(np.frombuffer(rng(label).take(canaries // 8), dtype=np.uint8)).astype(np.bool_)
    drawn = discrete_gaussian(rng(label + 1000), 10**6, canaries) / 1e6 / mu
    return Game(drawn + bits, bits)


def test_a_true_claim_is_never_refuted() -> None:
    for label in range(40):
        played = game(1.3, label)
        for part in (20, 5, 2, 1):
            assert not refuted(gaussian_wrong(1.3), played.guesses(1600 // part), 1600, 1e-3)
        assert check_gaussian("x", played, 1.3).passed


def test_a_false_claim_is_refuted_and_how_small_a_fault_is_seen_is_said() -> None:
    for label in range(5):
        four_times = game(1.3 * 4, label)
        bounds = [lower_mu(four_times.guesses(1600 // part), 1600) for part in (20, 5, 2, 1)]
        assert max(bounds) > 1.3 * 1.1
        assert not check_guesses("x", four_times, gaussian_wrong(1.3), ("1.00", "a claim"), 1e-5).passed
        assert not check_gaussian("x", four_times, 1.3).passed
        assert check_gaussian("x", game(1.3 * 1.02, label), 1.3).passed  # blind, as it says
    naked = Game(np.linspace(0, 1, 1600), np.arange(1600) >= 800)
    assert not check_guesses("x", naked, gaussian_wrong(1.3), ("1.00", "a claim"), 1e-5).passed
    assert not check_guesses("x", game(40.0, 3), gaussian_wrong(1.3), ("1.00", "a claim"), 1e-5).passed


def test_the_curve_is_the_trade_off_of_the_gaussian() -> None:
    """The Gaussian's own (ε, δ) pairs give back its trade-off, from below and closely."""
    mu, epsilons = 1.1, np.linspace(0, 12, 400)
    deltas = np.array(
        [stats.norm.cdf(mu / 2 - e / mu) - math.exp(e) * stats.norm.cdf(-mu / 2 - e / mu) for e in epsilons]
    )
    curve, exact = curve_wrong(epsilons, deltas), gaussian_wrong(mu)
    for right in (1e-4, 1e-3, 0.01, 0.1, 0.4, 0.7, 0.95):
        assert curve(right) <= exact(right) + 1e-9
        assert curve(right) > exact(right) * 0.98 - 1e-9


def test_gaussian_epsilon_against_its_definition() -> None:
    for mu, delta in ((0.5, 1e-5), (1.3138, 4e-7), (3.0, 1e-6)):
        e = gaussian_epsilon(mu, delta)
        reached = stats.norm.cdf(mu / 2 - e / mu) - math.exp(e) * stats.norm.cdf(-mu / 2 - e / mu)
        assert reached == pytest.approx(delta, rel=1e-4)
    assert gaussian_epsilon(0.0, 1e-5) == gaussian_epsilon(1e-6, 1e-2) == 0.0


# ---- neighbours and records ----


def test_neighbours_hold_and_a_smaller_claim_does_not() -> None:
    both = (BACKGROUND, JOINERS)
    assert failed(check_neighbours(PIPELINE, MECHANISM, both, "planted")) == []
    tighter = replace(MECHANISM, clip_steps=2**16 - 4)
    assert failed(check_neighbours(PIPELINE, tighter, both, "planted")) == ["planted: sensitivity"]


def test_persons_are_counted_over_all_files() -> None:
    a, b = ([f"{name} {k}".encode() for k in range(100)] for name in "ab")
    for named in (True, False):
        assert check_persons({"x": a, "y": b}, 1, named).passed
        for silos in ({"x": [*a, a[3]], "y": b}, {"x": a, "y": [*b, a[3]]}):
            found = check_persons(silos, 1, named)
            assert not found.passed and found.private
            assert check_persons(silos, 2, named).passed


def test_equal_records_say_nothing_where_they_are_common() -> None:
    coarse = {"x": [b"old", b"young"] * 50}
    assert check_persons(coarse, 1, named=False).passed and "person" in check_persons(coarse, 1, named=False).found
    assert not check_persons(coarse, 1, named=True).passed


# ---- the result ----


def finding(**changes: Any) -> Finding:
    return replace(Finding("a check", "1", "at most 2", True, "this", "that", 3), **changes)


def result(*findings: Finding) -> AuditResult:
    return AuditResult({"subject": "test"}, findings)


def test_the_verdict_follows_from_the_checks() -> None:
    assert result(finding()).passed and not result().passed
    broken = result(finding(), finding(name="b", passed=False), finding(name="c", control=True, passed=False))
    assert not broken.passed and [f.name for f in broken.violations] == ["b", "c"]
    assert [f.verdict for f in broken.findings] == ["holds", "VIOLATED", "NOT SEEN"]
    with pytest.raises(PrivacyError):
        result(finding(comparisons=COMPARISONS + 1))
    assert pytest.approx(ALARM) == LEVEL * COMPARISONS


def test_the_json_is_canonical_and_holds_nothing_private() -> None:
    measured = finding(name="m", measure=Measure("ε", "1.00", "2.00", "3.00"))
    value = result(finding(), finding(name="r", found="46 records", private=True), measured).to_json()
    canonical(value)
    assert "46" not in json.dumps(value) and value["checks"][1]["found"] == AT_THE_SITE
    keys = {"name", "passed", "found", "bound", "sees", "blind", "comparisons"}
    assert [set(check) - keys for check in value["checks"]] == [set(), set(), {"measure"}]
    assert value["checks"][2]["measure"] == {"quantity": "ε", "value": "1.00", "claim": "2.00", "ceiling": "3.00"}
    assert value["passed"] and value["format"] == "secagg-audit/1"


def test_the_report_takes_an_audit_as_it_is_written() -> None:
    measured = finding(name="m", measure=Measure("ε", "1.00", "2.00", "3.00"))
    for made in (result(finding(), measured), result(finding(passed=False))):
        report = build_report(replace(facts(), audit=made.to_json()), prv=False)
        assert [check for check in verify_report(report, prv=False) if not check.ok] == []
        group = report["groups"][10]
        assert group["violations"] == [f.name for f in made.violations]
        forged = json.loads(json.dumps(report))
        forged["facts"]["audit"]["passed"] = not made.passed
        assert any("verdict" in check.name for check in verify_report(forged, prv=False) if not check.ok)


def test_names_are_given_once() -> None:
    with pytest.raises(PrivacyError, match="one name"):
        result(finding(), finding())


def test_very_many_tensors_take_one_line_with_the_worst() -> None:
    groups = {f"t{k}": slice(k * 50, k * 50 + 50) for k in range(80)}
    for name in ("", "t17"):
        trace = noise(5)
        if name:
            trace.handed[:, groups[name]] = trace.released[:, groups[name]] = 0
        tally = NoiseTally(MECHANISM.noise_steps, groups)
        tally.add(trace)
        [row] = [f for f in tally.findings() if "tensors" in f.name]
        assert row.passed is (not name) and name in row.found and row.comparisons == 1


def test_code_that_stops_is_a_violation() -> None:
    def explode() -> list[Finding]:
        raise ValueError("a record's content")

    [found] = guarded("noise", explode)
    assert not found.passed and "content" not in found.found
    assert zero_input(PIPELINE, MECHANISM.noise_steps, 10_000, rng())


# ---- the command ----


@pytest.mark.slow
def test_the_example_passes_and_a_person_in_two_files_does_not(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from ffm.audit import Subject, persons
    from ffm.cli.app import app
    from ffm.data import Record, write_records
    from tests.planted_faults import hospital

    out = tmp_path / "audit.json"
    passed = CliRunner().invoke(app, ["audit", "hospital", "--noise", "1", "--format", "json", "--out", str(out)])
    assert passed.exit_code == 0, passed.stderr
    value = json.loads(out.read_text())
    assert json.loads(passed.stdout.splitlines()[-1]) == value and value["passed"]
    assert sum(check["name"].startswith("control: ") for check in value["checks"]) == 7
    names = [check["name"] for check in value["checks"]]
    for part in ("planted: ", "noise: ", "sampler: ", "canaries: ", "model", "membership", "ledger", "leakage"):
        assert any(name.startswith(part) for name in names), part

    document, data = tmp_path / "manifest.json", [tmp_path / "a.csv", tmp_path / "b.csv"]
    document.write_bytes(hospital().to_bytes())
    for path in data:
        same = [Record("the same person", "lung")]
        write_records(path, [*(Record(f"text {k} of {path.name}", "heart") for k in range(100)), *same])
    failed = CliRunner().invoke(
        app, ["audit", str(document), "--noise", "1", "--data", str(data[0]), "--data", str(data[1])]
    )
    assert failed.exit_code == 70
    lines = failed.stderr.splitlines()[-3:]
    assert lines[0].startswith("error E701 the audit found 1 violation") and "records: nobody" in lines[0]
    assert lines[2].startswith("  do ")
    assert "VIOLATED" in failed.stdout

    for path in data:  # the same persons under their keys: within K
        rows = path.read_text().splitlines()
        path.write_text(
            "\n".join([f"{rows[0]},person", *(f'{row},"{path.name} {k}"' for k, row in enumerate(rows[1:]))])
        )
    assert persons(Subject("x", hospital(), tmp_path, tuple(data))).passed


def test_a_task_that_it_has_no_records_for_is_refused_and_not_called_a_violation(tmp_path: Path) -> None:
    base = save_tiny_masked_bert(tmp_path / "bert")
    method = {"method": "ffa-lora", "virtual_tokens": 0, "rank": 2, "alpha": 4, "target_modules": ("query",)}
    manifest = build_manifest(language_settings(base, "masked-lm", **method), "small")
    with pytest.raises(AuditError, match="plants texts with labels") as refused:
        audit(Subject("a language model", manifest, base), SMALL, 0, lambda line: None)
    assert refused.value.code == "E702"


@pytest.mark.parametrize("protocol", ["R1", "R2"])
def test_rounds_in_which_one_half_stands_still_are_no_violation(protocol: str, tmp_path: Path) -> None:
    """RoLoRA moves B and A in turn: nothing is noised that stands still, and every step of what moves is watched."""
    base, steps = save_tiny_bert(tmp_path / "bert"), 2 if protocol == "R1" else 1
    found = check_processes(manifest_of(base, "rolora", protocol, local_steps=steps), base, tmp_path)
    assert all(finding.passed for finding in found), [finding.found for finding in found]
