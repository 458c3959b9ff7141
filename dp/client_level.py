"""Protocol C: one client's whole update, clipped, rounded without bias, and noised with a share. SPEC 10.11.

The unit is the client, the adjacency zero-out: in a neighbouring run one client sends zeros and its noise instead. So
what has to be bounded is one integer vector, and `bounded_update` bounds it exactly, whatever the floats before it did:
it rounds stochastically and draws again until the integer norm is within `norm_bound`. How the update was trained is no
part of the argument.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dp.mechanism import MAX_CLIP_STEPS, GaussianMechanism
from dp.rotation import Rotation
from dp.rounding import norm_bound
from dp.sampling import Csprng, stochastic_round

LEAST_CLIENTS: Final = 500  # behind every sum: with fewer the noise drowns the mean of their updates
_DRAWS: Final = 200  # all of them miss the bound with probability below 2^-144; then the update is zero
_CLIP_ROOM: Final = 2.0**-40  # relative; more than the float64 error of a norm


@dataclass(frozen=True, slots=True)
class ClientMechanism:
    """All quantities in grid steps, of which a unit of the update has `scale`."""

    scale: int
    clip_steps: int  # norm of the real update
    noise_steps: int  # standard deviation of all the noise that is counted on
    shares: int
    size: int  # coordinates of the update
    rotation: Rotation | None = None  # before clip and grid
    limit: int = MAX_CLIP_STEPS  # largest magnitude before the noise: what a narrow slot has room for

    @property
    def length(self) -> int:
        """Coordinates that are noised."""
        return self.size if self.rotation is None else self.rotation.length

    @property
    def sensitivity(self) -> int:
        """L2 norm that the integer update never exceeds."""
        return norm_bound(self.clip_steps, self.length)

    def privatize(self, update: NDArray[np.floating] | NDArray[np.int64], rng: Csprng) -> NDArray[np.int64]:
        """The bounded integer update and this client's share of the noise. One share is not enough: the result must not
        leave but under the masks of a sum that holds at least `shares` of them."""
        noise = GaussianMechanism(self.scale, self.sensitivity, self.noise_steps, self.shares)
        row = bounded_update(update, self, rng)
        return noise.privatize(row[np.newaxis], rng)  # which checks the norm once more


def bounded_update(
    update: NDArray[np.floating] | NDArray[np.int64], mechanism: ClientMechanism, rng: Csprng
) -> NDArray[np.int64]:
    """Clipped to `clip_steps`, rounded without bias, of integer norm `mechanism.sensitivity` at most, compared exactly.
    Zeros for an update that is not finite."""
    values = np.asarray(update, dtype=np.float64) * float(mechanism.scale)
    if not np.isfinite(np.linalg.norm(values)):
        return np.zeros(len(values) if mechanism.rotation is None else mechanism.length, dtype=np.int64)
    if mechanism.rotation is not None:
        values = mechanism.rotation.of_reals(values)
    norm, clip = float(np.linalg.norm(values)), mechanism.clip_steps * (1 - _CLIP_ROOM)
    if norm > clip:
        values *= clip / norm
    rounded = conditional_round(rng, values, mechanism.sensitivity)
    return np.clip(rounded, -mechanism.limit, mechanism.limit)  # which only shortens it


def conditional_round(rng: Csprng, values: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Stochastic rounding, drawn again until the integer norm is at most `most` <= 2^26; zeros if 200 draws miss it."""
    for _ in range(_DRAWS):
        steps = stochastic_round(rng, values)
        # Integer-valued and non-negative terms: a float64 sum below 2^53 is exact in any order, and a larger one cannot
        # round below 2^53 > most^2. So this is the integer comparison.
        wide = steps.astype(np.float64)
        if float(np.dot(wide, wide)) <= float(most**2):
            return steps
    return np.zeros(len(values), dtype=np.int64)
