"""The way from a client's update to the published sum: encoding and masks with nothing in the way, at their edges.

Deterministic: `min_cohort` clients at the bound, through the real frames and real masks. What is out of range must be
refused; nothing may be clamped or wrap, for both would happen after the noise.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Final

import numpy as np

from dp.audit import Finding
from secagg.encoding import Values, Words
from secagg.errors import EncodingError, SecAggError
from secagg.masking import Mask, add_masks, frame, frame_real, pairwise_sign, unframe
from secagg.params import SecAggParams
from secagg.types import ClientId, Rng, Secret

_LENGTH: Final = 1001  # values: several chunks, and a last word that is not full
_CLIENTS: Final = 100  # each pair shares a mask


def masked_sum(frames: dict[ClientId, Words], rng: Rng) -> Words:
    """Sum of the frames under the masks of a round, with self masks and pairwise masks, then unmasked. In place."""
    masks: dict[ClientId, list[Mask]] = {client: [] for client in frames}
    self_seeds = {client: rng(32) for client in frames}
    for client, seed in self_seeds.items():
        masks[client].append(Mask(Secret(seed), 1))
    for one, other in combinations(frames, 2):
        seed = rng(32)
        masks[one].append(Mask(Secret(seed), pairwise_sign(one, other)))
        masks[other].append(Mask(Secret(seed), pairwise_sign(other, one)))
    total = np.zeros(len(next(iter(frames.values()))), dtype="<u8")
    for client, words in frames.items():
        add_masks(words, masks[client])
        total += words
    add_masks(total, [Mask(Secret(seed), -1) for seed in self_seeds.values()])
    return total


def check_encoding(params: SecAggParams, rng: Rng) -> list[Finding]:
    """Headroom and refusal at the edges, on a short vector of the task's encoding."""
    params = replace(params, vector_length=min(params.vector_length, _LENGTH))
    bound, count = params.encoding.bound, min(params.min_cohort, _CLIENTS)
    clients = [ClientId(k) for k in range(1, count + 1)]
    edge: Values = np.where(np.arange(params.vector_length) % 2 == 0, bound, -bound).astype(np.int64)
    sums = []
    for values in (edge, -edge):
        try:
            total = masked_sum({client: frame(values, params) for client in clients}, rng)
            sums.append(bool(np.array_equal(unframe(total, count, params), count * values)))
        except SecAggError:
            sums.append(False)
    beyond = edge.copy()
    beyond[-1] = bound + 1
    far = np.zeros(params.vector_length)
    far[0] = (bound + 1) / params.encoding.scale
    attempts: list[Callable[[], object]] = [
        lambda: frame(beyond, params),
        lambda: frame(-beyond, params),
        lambda: frame_real(far, params, rng),
        lambda: frame_real(-far, params, rng),
        lambda: frame_real(np.full(params.vector_length, np.nan), params, rng),
    ]
    refused = sum(_refuses(attempt) for attempt in attempts)
    return [
        Finding(
            "encoding: sums at the bound are exact",
            f"{sum(sums)} of {len(sums)} sums of {count} clients",
            f"{len(sums)}, through frames and masks",
            all(sums),
            "wrap-around, clamp or saturation after the noise, masks that do not cancel",
            "faults between the client's process and this code",
        ),
        Finding(
            "encoding: what is out of range is refused",
            f"{refused} of {len(attempts)} refused",
            f"{len(attempts)}",
            refused == len(attempts),
            "wrap-around, clamp, NaN that is sent",
            "a bound that is too wide for the model",
        ),
    ]


def _refuses(act: Callable[[], object]) -> bool:
    try:
        act()
    except EncodingError:
        return True
    return False
