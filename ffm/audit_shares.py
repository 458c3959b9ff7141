"""The audit of what turns a client's vector into integers with a share of the noise, where that is a stage of its own:
whole updates (protocol C), and rotated sums (R2 in narrow slots).

What is run is what the training process runs on a trained update or on the sum of a sample. The proof stands on one
thing, how far the integers can be moved, so vectors are planted that try. One upload is looked at at the size of its
share, the sum of the smallest cohort at that of the whole noise. Under C training is no part of the claim, so there are
no canaries in it; the sums that are rotated have theirs (`ffm.audit_pipeline`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate, pairwise
from math import isqrt, prod, sqrt
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from dp import accountant
from dp.audit import Finding, Integers, Trace
from dp.audit_noise import NoiseTally, check_streams
from dp.client_level import ClientMechanism, bounded_update
from dp.errors import UnsupportedMechanismError
from dp.rotation import RotatedSum
from dp.sampling import SEED_BYTES, Csprng
from ffm.audit_rounds import honest_shares
from ffm.plan import attempt_mechanism, client_mechanism, rotated_sum, rotation_of
from protocol.manifest import Manifest
from secagg.masking import frame, unframe

_NORMS: Final = (0.0, 0.25, 1.0, 10.0, 1e30, float("nan"), float("inf"))  # in clip norms
_TOGETHER: Final = 16  # releases of which every pair is compared
_VALUES: Final = 2**20  # of one trace, about
_CONTROL_VALUES: Final = 300_000
_DITHERS: Final = 20
_PARTS: Final = 4  # of a rotated vector: each is a comparison, of which an audit has a hundred (`dp.audit`)


class Release(Protocol):
    """A vector of the trained values -> integers with a share of the noise."""

    def privatize(self, vector: NDArray[np.int64], rng: Csprng, /) -> Integers:
        """As a client does it."""


def check_client_level(manifest: Manifest, values: tuple[int, int], rng: Csprng) -> list[Finding]:
    """Sensitivity, noise of one upload and of whole sums, negative controls. `values`: draws of uploads, of sums."""
    mechanism = client_mechanism(manifest)
    loose = replace(mechanism, clip_steps=2 * mechanism.sensitivity, limit=2**40)  # wide enough to be seen on any grid
    return [
        check_sensitivity(mechanism, mechanism, rng),
        check_units(manifest),
        *_shares(manifest, mechanism, values, rng),
        _control("clip too wide", [check_sensitivity(loose, mechanism, rng)]),
    ]


def check_rotated(manifest: Manifest, values: tuple[int, int], rng: Csprng) -> list[Finding]:
    """The same for rotated sums of R2; [] where nothing is rotated."""
    release = rotated_sum(manifest)
    if release is None:
        return []
    clip = manifest.privacy.clip_steps
    stages = {"noise: ": "rotated: ", "control: ": "control: rotated, "}  # the sums before it have such checks as well
    finer = replace(release, shift=max(0, release.shift - 2))
    found = [
        check_moves(release, clip, release.noise.clip_steps, rng),
        *_shares(manifest, release, values, rng),
        _control("a grid finer than is accounted for", [check_moves(finer, clip, release.noise.clip_steps, rng)]),
    ]
    for old, new in stages.items():
        found = [replace(f, name=f.name.replace(old, new)) for f in found]
    return found


def check_sensitivity(running: ClientMechanism, claimed: ClientMechanism, rng: Csprng) -> Finding:
    """Updates of every length, flat and in one coordinate, through the clip, the grid and the redraws of `running`."""
    clip = claimed.clip_steps
    bound = clip**2 + Fraction(claimed.length, 4) + clip + Fraction(_root(claimed.length), 2)
    most, longest, wrong = _root(bound) ** 2, 0, 0
    for shape in _shapes(running.size):
        for norm in _NORMS:
            with np.errstate(invalid="ignore"):
                update = shape * norm * running.clip_steps / running.scale
            square = _square(bounded_update(update.astype(np.float32), running, rng))
            longest, wrong = max(longest, square), wrong + (square > most)
    return Finding(
        "client: no update moves the sum too far",
        f"{wrong} of {3 * len(_NORMS)} planted updates too long, the longest of norm {sqrt(longest):.3f}",
        f"at most {isqrt(most)} grid steps",
        wrong == 0 and longest > 0,
        "clip off or too wide, rounding without redraws, NaN or infinity that gets through",
        "updates that were not planted: the code compares every one of them",
    )


def check_moves(release: RotatedSum, clip_steps: int, claimed: int, rng: Csprng) -> Finding:
    """Rows as long as one may be, flat and in one coordinate, on top of other sums under the same dither."""
    farthest = 0
    backgrounds = (0.0, 1.0, -3.0)
    for shape in _shapes(release.rotation.size):
        row = np.trunc(shape * clip_steps * (1 - 2.0**-40)).astype(np.int64)
        for times in backgrounds:
            other = np.rint(np.sin(np.arange(len(row)) + 1.0) * times * clip_steps).astype(np.int64)
            for _ in range(_DITHERS):
                seed = rng.take(SEED_BYTES)
                moved = release.released(other + row, Csprng(seed)) - release.released(other, Csprng(seed))
                farthest = max(farthest, _square(moved))
    return Finding(
        "rotation: no row moves the sum too far",
        f"at most {sqrt(farthest):.3f} grid steps, over {3 * len(backgrounds) * _DITHERS} neighbours",
        f"at most {claimed}",
        0 < farthest <= claimed**2,
        "a grid or a rotation other than is accounted for, a dither that is not uniform",
        "rows and sums that were not planted",
    )


def check_units(manifest: Manifest) -> Finding:
    """What the accountant makes of a client-level charge beside a record-level one."""
    release = attempt_mechanism(manifest)
    other = replace(release, unit="record", shares=1)
    try:
        mixed = len(accountant.in_unit([release, other], "client")) > 0
    except UnsupportedMechanismError:
        mixed = False
    moved = Fraction(accountant.in_unit([release], "record")[0].clip_steps, release.clip_steps)
    return Finding(
        "accountant: clients and records in accounts of their own",
        f"both in one client-level account: {'taken' if mixed else 'refused'}; a record moves {moved} of the bound",
        "refused; 2",
        not mixed and moved == 2,
        "two adjacencies added up, client-level rounds that cost a record too little",
        "charges that are in no ledger",
    )


def coordinate_groups(manifest: Manifest) -> dict[str, slice]:
    """Coordinates of each tensor; of a rotated vector, in which no coordinate is a tensor's, of each of a few parts."""
    rotation = rotation_of(manifest)
    if rotation is not None:
        cuts = [rotation.length * k // _PARTS for k in range(_PARTS + 1)]
        return {f"part {k + 1} of {_PARTS}": slice(*cut) for k, cut in enumerate(pairwise(cuts))}
    tensors = manifest.adapter.tensors
    ends = list(accumulate(prod(tensor.shape) for tensor in tensors))
    return {t.name: slice(*at) for t, at in zip(tensors, zip([0, *ends], ends, strict=False), strict=True)}


def _shares(manifest: Manifest, release: Release, values: tuple[int, int], rng: Csprng) -> list[Finding]:
    """The noise of one upload and of sums, with controls."""
    groups, size = coordinate_groups(manifest), manifest.adapter.size
    share = manifest.release_noise_steps / sqrt(honest_shares(manifest))
    first, second = (_nothing(release, size, _TOGETHER, Csprng.from_os()) for _ in range(2))
    seed = rng.take(SEED_BYTES)
    twice = [_nothing(release, size, 2, Csprng(seed)) for _ in range(2)]
    broken = {
        "noise 4 times too small": _noise(release, size, groups, (4 * share, _CONTROL_VALUES)),
        "noise 1.2 times too small": _noise(release, size, groups, (1.2 * share, _CONTROL_VALUES)),
        "one seed for two clients": [check_streams(twice[0], twice[1], share, "clients")],
    }
    return [
        *_noise(release, size, groups, (share, values[0])),
        check_streams(first, second, share, "clients"),
        *_sums(manifest, release, groups, values[1]),
        *(_control(name, found) for name, found in broken.items()),
    ]


def _nothing(release: Release, size: int, releases: int, rng: Csprng) -> Trace:
    """Releases of zeros: the noise and nothing else."""
    zero = np.zeros(size, dtype=np.int64)
    return _trace(np.stack([release.privatize(zero, rng) for _ in range(releases)]))


def _trace(released: Integers) -> Trace:
    return Trace(np.zeros_like(released), released, released.astype(np.float64), len(released))


def _noise(release: Release, size: int, groups: Mapping[str, slice], claim: tuple[float, int]) -> Sequence[Finding]:
    """`claim`: standard deviation, and how many draws are held against it."""
    deviation, values = claim
    tally, missing = NoiseTally(deviation, groups), -(-values // size)
    while missing > 0:
        releases = max(2, min(missing, _VALUES // size))
        tally.add(_nothing(release, size, releases, Csprng.from_os()))
        missing -= releases
    return tally.findings()


def _sums(manifest: Manifest, release: Release, groups: Mapping[str, slice], values: int) -> list[Finding]:
    """Sums of `min_cohort` clients over nothing, through frames: every group has the variance of so many shares. Masks
    add and cancel in the words of the frames; `ffm.audit_encoding` looks at them."""
    params, shares = manifest.secagg_params(), honest_shares(manifest)
    survivors, zero = params.min_cohort, np.zeros(manifest.adapter.size, dtype=np.int64)
    variance = Fraction(survivors * manifest.release_noise_steps**2, shares)
    tally, rng, sums = NoiseTally(sqrt(variance), groups), Csprng.from_os(), []
    for _ in range(max(2, -(-values // (len(zero) * survivors)))):
        total = np.zeros(params.total_words, dtype=np.uint64)
        for _ in range(survivors):
            total += frame(release.privatize(zero, rng), params)
        sums.append(unframe(total, survivors, params))
    tally.add(_trace(np.stack(sums)))
    counted = float(variance / manifest.release_noise_steps**2)
    return [
        *(replace(f, name=f.name.replace("noise: ", "rounds: ")) for f in tally.findings()),
        Finding(
            "rounds: the smallest sum holds the noise that is counted on",
            f"{survivors} clients add {counted:.4f} times the variance of the claim",
            f"at least 1 without {manifest.aggregation.max_corrupt} of them; shares as configured: {shares}",
            manifest.noise_shares == shares,
            "a share that is too small for the smallest sum, corrupt clients that are counted on",
            "more corrupt clients than the manifest says",
        ),
    ]


def _control(name: str, found: Sequence[Finding]) -> Finding:
    """The same checks on a claim that is not kept: it must be seen."""
    return Finding(
        f"control: {name}",
        "seen by: " + (", ".join(f.name for f in found if not f.passed)[:200] or "nothing"),
        "at least one check",
        any(not f.passed for f in found),
        "checks that cannot fail",
        "other faults",
        control=True,
    )


def _shapes(size: int) -> list[NDArray[np.float64]]:
    """Directions of norm 1."""
    shapes = [np.ones(size), np.eye(1, size)[0], np.sin(np.arange(size))]
    return [shape / np.linalg.norm(shape) for shape in shapes]


def _square(steps: Integers) -> int:
    return sum(int(s) ** 2 for s in steps[np.flatnonzero(steps)])


def _root(value: Fraction | int) -> int:
    """The square root, rounded up, by search: worked out here and not by the code under audit."""
    root = int(sqrt(value))
    while root > 0 and (root - 1) ** 2 >= value:
        root -= 1
    while root**2 < value:
        root += 1
    return root
