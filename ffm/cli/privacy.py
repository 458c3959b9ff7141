"""`secagg privacy calibrate` and `secagg privacy plan`: what a plan costs, before anything is trained."""

import json
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from math import sqrt
from pathlib import Path
from typing import Any

from rich.table import Table

from dp.accountant import ABOVE_CEILING, calibrate, epsilon, in_unit
from dp.budget import UNITS
from dp.errors import PrivacyError, UnsupportedMechanismError
from dp.events import SampledGaussian
from dp.report_figures import NO_CERTIFICATE
from dp.report_trust import adversaries
from dp.rounding import norm_bound
from ffm.cli.output import Format, Output
from ffm.task import build_manifest, load_settings, planned_releases
from protocol.manifest import Manifest


def number(name: str, text: str) -> Decimal:
    """A decimal of the command line; PrivacyError E220 for anything else."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or value <= 0:
        raise PrivacyError(f"{name} is no positive number", found=text, expected="for example 0.00001", code="E220")
    return value


def probability(text: str) -> Fraction:
    """A fraction a/b in (0, 1]; PrivacyError E220 for anything else."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not 0 < value <= 1:
        raise PrivacyError("--sampling is no probability", found=text, expected="a/b in (0, 1]", code="E220")
    return value


def record_level_release(step: tuple[int, Fraction, int], shares: int, records: int) -> SampledGaussian:
    """R1, R2. `step`: how many, sampling probability, clip norm in grid steps."""
    return SampledGaussian(step[0], step[1], 1, step[2], shares, records)


def client_level_release(step: tuple[int, Fraction, int], shares: int, size: int) -> SampledGaussian:
    """C. Arguments as above; `size`: coordinates. PrivacyError E220 for a sample: q is 1 against every adversary."""
    count, q, clip_steps = step
    if q != 1 or shares < 2:
        raise PrivacyError(
            "client-level releases are not sampled, and their noise comes in shares",
            found=f"--sampling {q} --shares {shares}",
            expected="--sampling 1 --shares (min_cohort - max_corrupt)",
            code="E220",
        )
    return SampledGaussian(count, q, 1, norm_bound(clip_steps, size), shares, unit="client")


def show_noise(target: Decimal, delta: Decimal, planned: SampledGaussian, out: Output) -> None:
    """The smallest noise for an ε; the noise in `planned` is ignored."""
    noise = calibrate(target, delta, planned)
    planned = replace(planned, noise_steps=noise)
    cost = epsilon([planned], delta)
    value = {
        "noise_steps": noise,
        "noise_multiplier": f"{noise / planned.clip_steps:.6f}",
        "epsilon": cost.epsilon,
        "delta": cost.delta,
        "steps": planned.count,
    }
    of_a_record = ""
    if planned.unit == "client":
        per_record = epsilon(in_unit([planned], "record"), delta, prv=False).epsilon
        value |= {"sensitivity_steps": planned.clip_steps, "epsilon_per_record": per_record}
        of_a_record = f"\nof one record of a client: ε = {per_record} at δ = {cost.delta}, {UNITS['record']}"
    out.result(
        value,
        f"noise_steps = {noise}: noise multiplier {noise / planned.clip_steps:.4f}\n"
        f"ε = {cost.epsilon} at δ = {cost.delta}, {UNITS[planned.unit]}, {planned.count} steps "
        f"(RDP {cost.rdp}, PRV {cost.prv}, second grid {cost.second_grid}){of_a_record}",
    )


def show_plan(settings_path: Path, model: str | None, out: Output) -> None:
    """Cost, noise and the most that the signal can be, for each adversary of the trust table."""
    settings = load_settings(settings_path)
    manifest = build_manifest(settings, model or next(iter(settings.models)))
    planned = planned_releases(manifest, settings.privacy.spare_rounds)
    if manifest.privacy.protocol == "none":
        out.result({"protocol": "none"}, "protocol none: no noise, no ε; masking is the only protection")
        return
    delta = Decimal(manifest.privacy.delta)
    rows = []
    for adversary in adversaries(json.loads(manifest.to_bytes())):
        guarantee = adversary.shares is not None
        seen = adversary.sees(planned, of_this_task=True)
        cost = _epsilon_against(seen, delta) if guarantee else "none"
        noise = f"{seen.noise_steps / seen.clip_steps:.4f}" if guarantee else "none"
        rows.append({"adversary": adversary.who, "noise_multiplier": noise, "epsilon": cost})
    unit = UNITS[manifest.privacy.unit]
    value = _signal(manifest) | {
        "task": manifest.task,
        "protocol": manifest.privacy.protocol,
        "delta": manifest.privacy.delta,
        "budget": manifest.privacy.epsilon,
        "rounds": manifest.training.rounds,
        "spare_rounds": settings.privacy.spare_rounds,
        "steps": planned.count,
        "trust": rows,
    }
    if planned.unit == "client":
        value["epsilon_per_record"] = epsilon(in_unit([planned], "record"), delta, prv=False).epsilon
    if out.format is Format.json:
        out.result(value, "")
        return
    title = f"{manifest.task}, {manifest.privacy.protocol}: {planned.count} steps, spare rounds included"
    table = Table("who", "noise multiplier", f"ε at δ = {delta:f}, {unit}", title=title)
    for row in rows:
        table.add_row(row["adversary"], row["noise_multiplier"], _cost(row["epsilon"]))
    out.result(value, table)
    out.result(
        value,
        f"budget ε = {manifest.privacy.epsilon} at δ = {delta:f}, {unit}\n"
        + (f"of one record: ε = {value['epsilon_per_record']}\n" if "epsilon_per_record" in value else "")
        + f"{value['coordinates']} coordinates; of one release the noise has norm {value['noise_norm']} and the sum of "
        f"{value['summands']} {'updates' if manifest.privacy.protocol == 'C' else 'gradients'}, if all point the same "
        f"way, at most {value['largest_signal']}: signal over noise at most {value['signal_to_noise']}",
    )


def _epsilon_against(seen: SampledGaussian, delta: Decimal) -> str:
    """ε, or why there is none: one share alone may be too coarse for a certificate."""
    try:
        return epsilon([seen], delta, prv=False).epsilon
    except UnsupportedMechanismError:
        return NO_CERTIFICATE


def _signal(manifest: Manifest) -> dict[str, Any]:
    """Norms of one release in units of what is clipped: of the noise that all clients together add (R1: one client,
    alone), and of the largest sum that clipping allows."""
    p, size = manifest.privacy, manifest.adapter.size
    clients = manifest.aggregation.num_clients
    several = Fraction(clients, manifest.noise_shares) if manifest.noise_in_shares else Fraction(1)
    noise = p.noise_steps / p.scale * sqrt(several * size)
    summands = clients if p.protocol == "C" else manifest.training.expected_batch
    signal = summands * p.clip_steps / p.scale
    return {
        "coordinates": size,
        "summands": summands,
        "noise_norm": f"{noise:.4g}",
        "largest_signal": f"{signal:.4g}",
        "signal_to_noise": f"{signal / noise:.3g}" if noise else "no noise",
    }


def _cost(value: str) -> str:
    return {"none": "no guarantee", ABOVE_CEILING: "above 50: no useful guarantee"}.get(value, value)
