"""The audit under protocol C: planted updates instead of planted records, and rounds of nothing but noise.

What is run is what the training process runs on a trained update (`client_mechanism` of the manifest). The proof stands
on one thing, that no client's integers are longer than the sensitivity; training itself is no part of the claim, so
there are no canaries in it. One upload is looked at at the size of its share, the sum at that of the whole noise.
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from math import isqrt, prod, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dp.accountant import in_unit
from dp.audit import Finding, Trace
from dp.audit_noise import NoiseTally, check_streams
from dp.client_level import ClientMechanism, bounded_update
from dp.errors import UnsupportedMechanismError
from dp.sampling import Csprng
from ffm.audit_rounds import honest_shares
from ffm.plan import attempt_mechanism, client_mechanism
from protocol.manifest import AdapterSpec, Manifest
from secagg.masking import frame, unframe

_NORMS: Final = (0.0, 0.25, 1.0, 10.0, 1e30, float("nan"), float("inf"))  # in clip norms
_TOGETHER: Final = 16  # releases of which every pair is compared
_VALUES: Final = 2**20  # of one trace, about
_CONTROL_VALUES: Final = 300_000


def check_client_level(manifest: Manifest, values: tuple[int, int], rng: Csprng) -> list[Finding]:
    """Sensitivity, noise of one upload and of whole sums, negative controls. `values`: draws of uploads, of sums."""
    mechanism, groups = client_mechanism(manifest), slices(manifest.adapter)
    share = manifest.privacy.noise_steps / sqrt(honest_shares(manifest))
    first, second = (_nothing(mechanism, _TOGETHER, Csprng.from_os()) for _ in range(2))
    return [
        check_sensitivity(mechanism, mechanism, rng),
        check_units(manifest),
        *_noise(mechanism, groups, share, values[0]),
        check_streams(first, second, share, "clients"),
        *_sums(manifest, groups, values[1]),
        *_controls(mechanism, groups, share, rng),
    ]


def slices(adapter: AdapterSpec) -> dict[str, slice]:
    """Coordinates of each tensor."""
    ends = list(accumulate(prod(tensor.shape) for tensor in adapter.tensors))
    return {t.name: slice(*at) for t, at in zip(adapter.tensors, zip([0, *ends], ends, strict=False), strict=True)}


def check_sensitivity(running: ClientMechanism, claimed: ClientMechanism, rng: Csprng) -> Finding:
    """Updates of every length, flat and in one coordinate, through the clip, the grid and the redraws of `running`."""
    bound = claimed.clip_steps**2 + Fraction(claimed.size, 4) + claimed.clip_steps + Fraction(_root(claimed.size), 2)
    most, longest, wrong = _root(bound) ** 2, 0, 0
    shapes = [np.ones(running.size) / sqrt(running.size), np.eye(1, running.size)[0], np.sin(np.arange(running.size))]
    for shape in shapes:
        for norm in _NORMS:
            with np.errstate(invalid="ignore"):
                update = shape / np.linalg.norm(shape) * norm * running.clip_steps / running.scale
            steps = bounded_update(update.astype(np.float32), running, rng)
            square = sum(int(s) ** 2 for s in steps[np.flatnonzero(steps)])
            longest, wrong = max(longest, square), wrong + (square > most)
    return Finding(
        "client: no update moves the sum too far",
        f"{wrong} of {len(shapes) * len(_NORMS)} planted updates too long, the longest of norm {sqrt(longest):.3f}",
        f"at most {isqrt(most)} grid steps",
        wrong == 0 and longest > 0,
        "clip off or too wide, rounding without redraws, NaN or infinity that gets through",
        "updates that were not planted: the code compares every one of them",
    )


def check_units(manifest: Manifest) -> Finding:
    """What the accountant makes of a client-level charge beside a record-level one."""
    release = attempt_mechanism(manifest)
    other = replace(release, unit="record", shares=1)
    try:
        mixed = len(in_unit([release, other], "client")) > 0
    except UnsupportedMechanismError:
        mixed = False
    moved = Fraction(in_unit([release], "record")[0].clip_steps, release.clip_steps)
    return Finding(
        "accountant: clients and records in accounts of their own",
        f"both in one client-level account: {'taken' if mixed else 'refused'}; a record moves {moved} of the bound",
        "refused; 2",
        not mixed and moved == 2,
        "two adjacencies added up, client-level rounds that cost a record too little",
        "charges that are in no ledger",
    )


def _nothing(mechanism: ClientMechanism, releases: int, rng: Csprng) -> Trace:
    """Releases of an update of zeros: the noise and nothing else."""
    zero = np.zeros(mechanism.size, dtype=np.float32)
    return _trace(np.stack([mechanism.privatize(zero, rng) for _ in range(releases)]))


def _trace(released: NDArray[np.int64]) -> Trace:
    return Trace(np.zeros_like(released), released, released.astype(np.float64), len(released))


def _noise(mechanism: ClientMechanism, groups: dict[str, slice], deviation: float, values: int) -> Sequence[Finding]:
    tally, missing = NoiseTally(deviation, groups), -(-values // mechanism.size)
    while missing > 0:
        releases = max(2, min(missing, _VALUES // mechanism.size))
        tally.add(_nothing(mechanism, releases, Csprng.from_os()))
        missing -= releases
    return tally.findings()


def _sums(manifest: Manifest, groups: dict[str, slice], values: int) -> list[Finding]:
    """Sums of `min_cohort` clients over nothing, through frames: every tensor has the variance of so many shares. Masks
    add and cancel in the words of the frames; `ffm.audit_encoding` looks at them."""
    params, mechanism = manifest.secagg_params(), client_mechanism(manifest)
    survivors, shares, size = params.min_cohort, honest_shares(manifest), mechanism.size
    variance = Fraction(survivors * manifest.privacy.noise_steps**2, shares)
    tally, zero, rng = NoiseTally(sqrt(variance), groups), np.zeros(size, dtype=np.float32), Csprng.from_os()
    sums = []
    for _ in range(max(2, -(-values // (size * survivors)))):
        total = np.zeros(params.total_words, dtype=np.uint64)
        for _ in range(survivors):
            total += frame(mechanism.privatize(zero, rng), params)
        sums.append(unframe(total, survivors, params))
    tally.add(_trace(np.stack(sums)))
    counted = float(variance / manifest.privacy.noise_steps**2)
    return [
        *(replace(f, name=f.name.replace("noise: ", "rounds: ")) for f in tally.findings()),
        Finding(
            "rounds: the smallest sum holds the noise that is counted on",
            f"{survivors} clients add {counted:.4f} times the variance of the claim",
            f"at least 1 without {manifest.aggregation.max_corrupt} of them; shares as configured: {shares}",
            manifest.noise_shares == shares == mechanism.shares,
            "a share that is too small for the smallest sum, corrupt clients that are counted on",
            "more corrupt clients than the manifest says",
        ),
    ]


def _controls(mechanism: ClientMechanism, groups: dict[str, slice], deviation: float, rng: Csprng) -> list[Finding]:
    """The same checks on mechanisms that are broken on purpose: each must be seen."""
    quarter = replace(mechanism, noise_steps=max(mechanism.noise_steps // 4, isqrt(100 * mechanism.shares) + 1))
    weaker = replace(mechanism, noise_steps=max(5 * mechanism.noise_steps // 6, isqrt(100 * mechanism.shares) + 1))
    loose = replace(mechanism, clip_steps=2 * mechanism.sensitivity)  # wide enough to be seen on any grid
    seed = rng.take(32)
    twice = [_nothing(mechanism, 2, Csprng(seed)) for _ in range(2)]
    broken = {
        "noise 4 times too small": _noise(quarter, groups, deviation, _CONTROL_VALUES),
        "noise 1.2 times too small": _noise(weaker, groups, deviation, _CONTROL_VALUES),
        "clip too wide": [check_sensitivity(loose, mechanism, rng)],
        "one seed for two clients": [check_streams(twice[0], twice[1], deviation, "clients")],
    }
    return [
        Finding(
            f"control: {name}",
            "seen by: " + (", ".join(f.name for f in found if not f.passed)[:200] or "nothing"),
            "at least one check",
            any(not f.passed for f in found),
            "checks that cannot fail",
            "other faults",
            control=True,
        )
        for name, found in broken.items()
    ]


def _root(value: Fraction | int) -> int:
    """The square root, rounded up, by search: worked out here and not by the code under audit."""
    root = int(sqrt(value))
    while root > 0 and (root - 1) ** 2 >= value:
        root -= 1
    while root**2 < value:
        root += 1
    return root
