"""How far the privacy figures can be trusted: accountant, grid, sampler, audit.

`python -m benchmarks.privacy [--json] [--draws 4000000] [--clean 20]`

Our certified ε (privacy-loss distribution) stands beside two independent methods: PRV's interval (Gopi et al. 2021, by
Opacus) and, without sampling, the closed form of Balle and Wang 2018, computed here.
"""

import argparse
import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import torch

from benchmarks.bench import Bar, Report, parser, publish, side_by_side
from dp import accountant
from dp.audit_canaries import gaussian_epsilon
from dp.events import SampledGaussian
from dp.sampling import Csprng, discrete_gaussian
from ffm.audit_rounds import check_rounds
from ffm.models import offline
from ffm.task import build_manifest, example_settings, load_settings
from tests.planted_faults import FAULTS, small_audit

# (q, σ, T, δ): the reference points of the design, then the grid around them.
REFERENCE = (
    (Fraction(1, 100), Fraction(1), 1000, "0.00001", "1.83"),
    (Fraction(1, 20), Fraction(1), 200, "0.00001", "4.77"),
    (Fraction(1, 50), Fraction(4, 5), 500, "0.000001", "5.44"),
    (Fraction(1), Fraction(5), 20, "0.00001", "3.85"),
)
GRID = (
    *((q, Fraction(1), 100, "0.00001", "") for q in (Fraction(1, 200), Fraction(1, 16), Fraction(1, 4))),
    *((Fraction(1, 16), sigma, 60, "0.0000004", "") for sigma in (Fraction(7, 10), Fraction(3, 2), Fraction(4))),
    *((Fraction(1, 50), Fraction(1), steps, "0.000001", "") for steps in (1, 50, 5000)),
    *((Fraction(1, 100), Fraction(1), 1000, delta, "") for delta in ("0.001", "0.00000001")),
    *((Fraction(1), sigma, 50, "0.000001", "") for sigma in (Fraction(10), Fraction(40))),
)
LARGE = 256  # values of a tensor: of smaller ones, and of a bias, no number of rounds that anybody runs shows 1 %
CLIP_STEPS = 2**16  # the grid of 32-bit slots: s = 2^16 at clip norm 1
PRV_ERROR = 0.01
OFF = 0.01  # reference points are given to two places, and ours is rounded up
WHAT = """\
`ours` is the certified ε: the PLD of the sampled continuous Gaussian whose variance is smaller by 100 squared grid
steps, rounded up. `continuous`: the same without that, not certified; `penalty`: the difference. `PRV low` and
`PRV high`: its interval at an error of .01, on the certified deviation. `closed form`: without sampling. `off`: how far
ours lies outside PRV's interval, or from the closed form. Sampler: discrete Gaussian, one core, CPU time. R2:
zero-input rounds of the heart example, tensors of at least 256 values. Audit: the planted faults of
tests/planted_faults.py and clean runs under other seeds, on the small models of the tests."""


def point(q: Fraction, sigma: Fraction, steps: int, delta: str, reference: str) -> dict[str, Any]:
    """One row: our figure, the independent ones, and how far they are apart."""
    event = SampledGaussian(steps, q, round(sigma * CLIP_STEPS), CLIP_STEPS)
    figures = accountant.epsilon([event], Decimal(delta), prv=False)
    ours, continuous = float(figures.epsilon), float(figures.continuous)
    exact = [float(accountant._pld((event,), 1, certified).get_epsilon_for_delta(float(delta))) for certified in (1, 0)]
    deviation = math.sqrt(event.noise_steps**2 - accountant.LATTICE_VARIANCE) / CLIP_STEPS
    low = high = closed = math.nan
    if q == 1:
        closed = gaussian_epsilon(math.sqrt(steps) / deviation, float(delta))
        off = abs(ours - closed)
    else:
        low, high = prv_interval(deviation, float(q), steps, float(delta))
        off = max(0.0, low - ours, ours - high)
    row: dict[str, Any] = {"q": str(q), "σ": float(sigma), "T": steps, "δ": f"{float(delta):g}", "ours": ours}
    row |= {"continuous": continuous, "penalty": exact[0] - exact[1], "RDP": float(figures.rdp)}
    row |= {"PRV low": _cell(low), "PRV high": _cell(high), "closed form": _cell(closed), "off": round(off, 5)}
    return row | {"design": reference}


def prv_interval(deviation: float, q: float, steps: int, delta: float) -> tuple[float, float]:
    """Lower and upper bound of the privacy random variables accountant."""
    from opacus.accountants import PRVAccountant

    prv = PRVAccountant()
    prv.history = [(deviation, q, steps)]
    dprv = prv._get_dprv(eps_error=PRV_ERROR, delta_error=delta / 1000)
    low, _, high = dprv.compute_epsilon(delta, delta / 1000, PRV_ERROR)
    return float(low), float(high)


def sampler(draws: int, repetitions: int) -> tuple[float, float]:
    """Million draws of the discrete Gaussian per second of one core: best and worst deviation."""
    rates = []
    for deviation in (100, 49_883, 2**20, 2**36):
        rng = Csprng.from_os()
        timed = side_by_side({"draw": lambda r=rng, s=deviation: discrete_gaussian(r, s, draws)}, repetitions)
        rates.append(draws / timed["draw"].best_cpu / 1e6)
    return max(rates), min(rates)


def audited(limit: int, clean: int) -> tuple[int, int, list[str], int]:
    """(faults planted, faults seen and named, names of those that were missed, false alarms of the clean runs)."""
    chosen = FAULTS[: limit or len(FAULTS)]
    missed = []
    for fault in chosen:
        with fault.planted():
            violations = small_audit(1, (fault.part,)).violations
        if not any(fault.seen_as in f"{finding.name}: {finding.found}" for finding in violations):
            missed.append(fault.name)
    alarms = sum(not small_audit(100 + seed).passed for seed in range(clean))
    return len(chosen), len(chosen) - len(missed), missed, alarms


def shared_noise(values: int) -> tuple[float, int]:
    """Whole rounds of the heart example (R2) over nothing, at exactly `min_cohort` clients, through encoding and masks.

    (largest |ratio - 1| of a tensor's variance over tensors of at least 256 values, how many those are).
    """
    manifest = build_manifest(load_settings(example_settings("heart")), "bert-tiny")
    sizes = {tensor.name: math.prod(tensor.shape) for tensor in manifest.adapter.tensors}
    ratios = []
    for finding in check_rounds(manifest, values, Csprng.from_os()):
        name = finding.name.removeprefix("rounds: variance of ")
        if sizes.get(name, 0) >= LARGE:
            ratios.append(float(finding.found.split()[0]))
    return max(abs(ratio - 1) for ratio in ratios), len(ratios)


def run(options: argparse.Namespace) -> Report:
    """Everything."""
    rows = [point(*row) for row in (REFERENCE + GRID)[: options.points or None]]
    best, worst = sampler(options.draws, options.repetitions)
    planted, seen, missed, alarms = audited(options.faults, options.clean)
    apart, tensors = shared_noise(options.rounds)
    design = [row for row in rows if row["design"]]
    sampled = [row for row in rows if row["closed form"] == ""]
    exact = [row for row in rows if row["closed form"] != ""]
    bars = [
        Bar("design's reference points, largest difference", max(_apart(row) for row in design), OFF),
        Bar("ours outside PRV's interval, at most", max((row["off"] for row in sampled), default=0.0), 0.0),
        Bar("ours against the closed form, at most", max((row["off"] for row in exact), default=0.0), 0.002),
        Bar("discrete against continuous at 32-bit slots, ε", max(row["penalty"] for row in rows), 1e-3),
        Bar("sampler, slowest deviation", worst, 2.0, at_least=True, unit="M/s"),
        Bar(f"R2 at min_cohort survivors: variance of {tensors} tensors against the claim", apart, 0.01),
        Bar("planted faults caught", seen, planted, at_least=True, reason=", ".join(missed)),
        Bar("false alarms in clean runs", alarms, 0),
    ]
    extra = {"sampler_best": round(best, 2), "clean_runs": options.clean, "planted": planted, "missed": missed}
    packages = ("numpy", "scipy", "dp-accounting", "opacus", "torch")
    return Report("privacy", "Privacy figures", WHAT, options.repetitions, rows, bars, packages, extra)


def _apart(row: dict[str, Any]) -> float:
    """Distance from the printed figure."""
    return abs(row["ours"] - float(row["design"]))


def _cell(value: float) -> float | str:
    return "" if math.isnan(value) else round(value, 4)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser(__doc__, 5)
    options.add_argument("--draws", type=int, default=4_000_000, help="of the sampler, each time (default %(default)s)")
    options.add_argument("--rounds", type=int, default=8_000_000, help="values of R2 sums (default %(default)s)")
    options.add_argument("--points", type=int, default=0, help="of the grid; 0 is all")
    options.add_argument("--faults", type=int, default=0, help="planted; 0 is all")
    options.add_argument("--clean", type=int, default=20, help="runs of an unbroken pipeline")
    chosen = options.parse_args(arguments)
    offline()
    torch.set_num_threads(1)
    publish(run(chosen), chosen)


if __name__ == "__main__":
    main()
