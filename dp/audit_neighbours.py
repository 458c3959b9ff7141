"""Grey-box checks of one step: neighbouring data, the same randomness, integers compared.

Deterministic: no statistics and no false alarm. What is compared is what the proof of SPEC 10.1 rests on: one record
more moves the sum by its own row alone, that row is at most `clip_steps` long, and the noise does not look at the data.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from dp.audit import Canary, Finding, Pipeline, Reals, Trace
from dp.mechanism import GaussianMechanism
from dp.sampling import SEED_BYTES, Csprng

T = TypeVar("T")
_STREAM = bytes([7] * SEED_BYTES)  # the same randomness for both neighbours: any constant will do

# A background of records and records that join it: small, at the bound, far above, the other way round, not finite.
BACKGROUND = (Canary(0, 0.25), Canary(1, 0.5), Canary(2, 1.0), Canary(3, 10.0), Canary(0, 3.0), Canary(4, 0.25, -1))
JOINERS = (
    *(Canary(5, norm, sign) for norm in (0.25, 1.0, 10.0) for sign in (1, -1)),
    Canary(3, 10.0),
    Canary(3, 1000.0, -1),
    Canary(0, 1e30, -1),
    Canary(6, math.nan),
    Canary(6, math.inf),
)
PATIENT = (Canary(5, 10.0), Canary(5, 10.0))  # one person, two records, the worst case: the same direction


def check_neighbours(
    pipeline: Pipeline[T],
    claim: GaussianMechanism,
    records: tuple[Sequence[T], Iterable[T]],
    what: str,
    slack: float = 0.0,
) -> list[Finding]:
    """Run with and without each joiner.

    Args:
        pipeline: What is audited.
        claim: Whose sensitivity holds.
        records: Those of both neighbours, and those of which each is the one record more.
        what: Name of the pipeline, for the findings.
        slack: Grid steps (L2) that float kernels may move the other records' rows by; 0 where nothing may move.
    """
    background, joiners = records
    farthest = coupled = loosest = 0.0
    own_noise = finite = True
    without = _one_step(pipeline, background)
    for joiner in joiners:
        beside, alone = _one_step(pipeline, [*background, joiner]), _one_step(pipeline, [joiner])
        traces = (without, beside, alone)
        finite = finite and all(t.whole and bool(np.isfinite(t.handed).all()) for t in traces)
        if not finite:
            break
        moved, row = _exact(beside) - _exact(without), _exact(alone)
        farthest, loosest = max(farthest, _norm(moved)), max(loosest, _norm(row))
        coupled = max(coupled, _norm(moved - row))
        noises = [t.released - t.sums for t in traces]
        own_noise = own_noise and all(np.array_equal(noises[0], other) for other in noises[1:])
    slack_text = f" + {slack:.0f} of float kernels" if slack else ""
    broken = "" if finite else "a step that is not finite or not noised once; "
    return [
        Finding(
            f"{what}: sensitivity",
            f"{broken}one record moved the sum by {farthest:.3f} grid steps, and is {loosest:.3f} long by itself",
            f"at most {claim.clip_steps}{slack_text}",
            # Exact where it matters: the squares are integers below 2^53.
            max(farthest - slack, loosest) <= claim.clip_steps and finite,
            "no clip, clip per layer or per batch, rounding up, NaN or infinite records",
            "records whose gradients were not planted",
        ),
        Finding(
            f"{what}: records do not couple",
            f"{broken}beside others a record's row differs by {coupled:.3f} grid steps from its row alone",
            f"at most {slack:.0f}",
            coupled <= slack and finite,
            "losses or clips over the batch, batch statistics, a divisor that counts records",
            "couplings that planted records do not set off",
        ),
        Finding(
            f"{what}: noise does not look at the data",
            f"{broken}the same noise" if own_noise else "other noise on neighbouring data",
            "the same noise for the same stream",
            own_noise and finite,
            "noise scaled by the data, or drawn outside the stream",
            "the law of the noise",
        ),
    ]


def check_patient(pipeline: Pipeline[Canary], claim: GaussianMechanism, most: int) -> Finding:
    """A planted person with two records joins: the sum moves by at most `most` (K of the claim) sensitivities.

    Where training groups a person's records, that is its doing. Where it takes one record per person, two records are
    two rows, and the bound is kept by the data: then `most` is 2 here, and `check_records` looks at the files.
    """
    without, beside = _one_step(pipeline, BACKGROUND), _one_step(pipeline, [*BACKGROUND, *PATIENT])
    whole = without.whole and beside.whole
    moved = _norm(_exact(beside) - _exact(without)) if whole else math.inf
    return Finding(
        "planted: a person with two records",
        f"moved the sum by {moved:.3f} grid steps",
        f"at most {most} times {claim.clip_steps}",
        moved <= most * claim.clip_steps,
        "a clip that several records get round",
        "how many records a person really has",
    )


def _one_step(pipeline: Pipeline[T], records: Sequence[T]) -> Trace:
    return pipeline.run(records, 1, False, Csprng(_STREAM))


def _exact(trace: Trace) -> Reals:
    return trace.sums.astype(np.float64)


def _norm(values: Reals) -> float:
    return float(np.sqrt((values * values).sum()))
