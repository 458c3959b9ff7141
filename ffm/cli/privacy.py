"""`secagg privacy calibrate` and `secagg privacy plan`: what a plan costs, before anything is trained."""

import json
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from math import sqrt
from pathlib import Path
from typing import Any

from rich.table import Table

from dp.accountant import ABOVE_CEILING, calibrate, epsilon
from dp.errors import PrivacyError
from dp.events import SampledGaussian
from dp.report_trust import adversaries
from ffm.cli.output import Format, Output
from ffm.plan import attempt_mechanism
from ffm.task import build_manifest, load_settings
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


def show_noise(target: Decimal, delta: Decimal, numbers: tuple[int, Fraction, int, int, int, int], out: Output) -> None:
    """The smallest noise for an ε. `numbers`: the fields of `SampledGaussian`, whose noise is ignored."""
    planned = SampledGaussian(*numbers)
    noise = calibrate(target, delta, planned)
    cost = epsilon([replace(planned, noise_steps=noise)], delta)
    value = {
        "noise_steps": noise,
        "noise_multiplier": f"{noise / planned.clip_steps:.6f}",
        "epsilon": cost.epsilon,
        "delta": cost.delta,
        "steps": planned.count,
    }
    out.result(
        value,
        f"noise_steps = {noise}: noise multiplier {noise / planned.clip_steps:.4f}\n"
        f"ε = {cost.epsilon} at δ = {cost.delta}, record, add/remove, {planned.count} steps "
        f"(RDP {cost.rdp}, PRV {cost.prv}, second grid {cost.second_grid})",
    )


def show_plan(settings_path: Path, model: str | None, out: Output) -> None:
    """Cost, noise and the most that the signal can be, for each adversary of the trust table."""
    settings = load_settings(settings_path)
    manifest = build_manifest(settings, model or next(iter(settings.models)))
    planned = _planned(manifest, settings.privacy.spare_rounds)
    if manifest.privacy.protocol == "none":
        out.result({"protocol": "none"}, "protocol none: no noise, no ε; masking is the only protection")
        return
    delta = Decimal(manifest.privacy.delta)
    rows = []
    for adversary in adversaries(json.loads(manifest.to_bytes())):
        guarantee = adversary.shares is not None
        seen = adversary.sees(planned, of_this_task=True)
        cost = epsilon([seen], delta, prv=False).epsilon if guarantee else "none"
        noise = f"{seen.noise_steps / seen.clip_steps:.4f}" if guarantee else "none"
        rows.append({"adversary": adversary.who, "noise_multiplier": noise, "epsilon": cost})
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
    if out.format is Format.json:
        out.result(value, "")
        return
    title = f"{manifest.task}, {manifest.privacy.protocol}: {planned.count} steps, spare rounds included"
    table = Table("who", "noise multiplier", f"ε at δ = {delta:f}, record, add/remove", title=title)
    for row in rows:
        table.add_row(row["adversary"], row["noise_multiplier"], _cost(row["epsilon"]))
    out.result(value, table)
    out.result(
        value,
        f"budget ε = {manifest.privacy.epsilon} at δ = {delta:f}, record, add/remove\n"
        f"{value['coordinates']} coordinates; of one step the noise has norm {value['noise_norm']} and the sum of "
        f"{value['expected_batch']} gradients, if all point the same way, at most {value['largest_signal']}: "
        f"signal over noise at most {value['signal_to_noise']}",
    )


def _planned(manifest: Manifest, spare_rounds: int) -> SampledGaussian:
    steps = (manifest.training.rounds + spare_rounds) * manifest.training.local_steps
    return replace(attempt_mechanism(manifest), count=steps)


def _signal(manifest: Manifest) -> dict[str, Any]:
    """Norms of one step in units of the gradient: of the noise that all clients together add (R1: one client, alone),
    and of the largest sum that clipping allows."""
    p, size = manifest.privacy, manifest.adapter.size
    several = Fraction(manifest.aggregation.num_clients, manifest.noise_shares) if p.protocol == "R2" else Fraction(1)
    noise = p.noise_steps / p.scale * sqrt(several * size)
    batch = manifest.training.expected_batch
    signal = batch * p.clip_steps / p.scale
    return {
        "coordinates": size,
        "expected_batch": batch,
        "noise_norm": f"{noise:.4g}",
        "largest_signal": f"{signal:.4g}",
        "signal_to_noise": f"{signal / noise:.3g}" if noise else "no noise",
    }


def _cost(value: str) -> str:
    return {"none": "no guarantee", ABOVE_CEILING: "above 50: no useful guarantee"}.get(value, value)
