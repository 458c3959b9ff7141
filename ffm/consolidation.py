"""Elastic weight consolidation (Kirkpatrick et al. 2017; one running anchor, Schwarz et al. 2018) from released sums.

What mattered in earlier tasks is held back in the next one. The Fisher information of a parameter is taken from the
sums that the rounds released anyway: their mean square, less the known variance of the noise in them. That is
post-processing, so it costs no privacy, and everybody who has the sums gets the same figures. The mean over a row of a
tensor (a label's row of the head) or over a whole narrow tensor is taken, since single values drown in the noise.

The penalty acts after the server step (`ffm.step.next_model`, SPEC 7.7, docs/adr/0067): inside the loss it would be
clipped together with a record's gradient and crowd it out.
"""

from dataclasses import dataclass, field
from decimal import Decimal
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from ffm.errors import TaskError
from ffm.step import Model
from protocol.manifest import AdapterSpec, Manifest

IMPORTANCE: Final = "importance.f32"  # in a run folder: what its task leaves to the next one
_WIDE: Final = 64  # values in a row that are enough for a figure of its own
_DIGITS: Final = Decimal(10) ** -15  # of a decimal in a manifest
_LARGEST: Final = Decimal(10) ** 15  # above every decimal in a manifest
_WHOLE: Final = Decimal(10) ** 6  # six digits of what is larger have none behind the point

Reals = NDArray[np.float64]
Key = tuple[int, int]  # round and attempt


@dataclass(slots=True)
class Tally:
    """Squares of the sums that one task released.

    Attributes:
        manifest: Of the task.
        private: Whether the sums hold the manifest's noise; False for comparisons without DP.
        squares: Squared values, less the variance of the noise, in steps of the aggregated grid; summed over `sums`.
        last: Of the sum that was added last.
    """

    manifest: Manifest
    private: bool = True
    squares: Reals = field(init=False, repr=False)
    sums: int = 0
    last: Key = (0, -1)

    def __post_init__(self) -> None:
        """Raises TaskError E533 where sums are not of gradients."""
        refuse(self.manifest)
        self.squares = np.zeros(self.manifest.adapter.size)

    def add(self, key: Key, total: NDArray[Any], clients: int) -> None:
        """A released sum over so many clients; one that is there already is not added again."""
        if key <= self.last:
            return
        self.squares += np.square(total, dtype=np.float64) - self._noise_variance(clients)
        self.sums, self.last = self.sums + 1, key

    def importance(self, before: Model | None = None) -> Model:
        """What matters from now on: of this task, and `before` it. Float32, in squares of the sum of gradients (R1,
        none: of differences); all 0 before the first sum."""
        own = np.zeros(len(self.squares))
        if self.sums:
            own = blockwise(self.squares / self.sums, self.manifest.adapter)
        own /= float(self.manifest.aggregation.scale) ** 2
        return (own if before is None else own + before).astype(np.float32)

    def save(self) -> bytes:
        """As a file's content; see `restored`."""
        return save({"squares": self.squares, "counts": np.array([self.sums, *self.last], dtype=np.int64)})

    @classmethod
    def restored(cls, manifest: Manifest, content: bytes) -> "Tally":
        """What `save` wrote."""
        tensors, tally = load(content), cls(manifest)
        tally.squares[:] = tensors["squares"]
        sums, round_, attempt = (int(count) for count in tensors["counts"])
        tally.sums, tally.last = sums, (round_, attempt)
        return tally

    def _noise_variance(self, clients: int) -> float:
        """Of one coordinate of the sum, in its grid steps: public."""
        p, training = self.manifest.privacy, self.manifest.training
        if not self.private or p.protocol == "none":
            return 0.0
        if p.protocol == "R2":
            return clients * p.noise_steps**2 / self.manifest.noise_shares
        each = p.noise_steps / p.scale * float(training.learning_rate) / training.expected_batch
        return clients * training.local_steps * (each * self.manifest.aggregation.scale) ** 2


def refuse(manifest: Manifest) -> None:
    """Raises TaskError E533 where the sums are not of gradients, as the manifest would with `consolidation` in it."""
    training, rotated = manifest.training, manifest.rotated
    if training.optimizer != "sgd" or manifest.privacy.protocol == "C" or rotated:
        raise TaskError(
            "EWC takes the Fisher information from released sums of gradients",
            found="rotated sums" if rotated else f"{manifest.privacy.protocol} with {training.optimizer}",
            expected='protocol R2, or R1 or none with optimizer = "sgd", not rotated',
            do="choose replay, or train by sgd",
            code="E533",
        )


def blockwise(values: Reals, adapter: AdapterSpec) -> Reals:
    """The mean of each row of at least 64 values, else of each tensor; below zero, which is noise alone, it is zero."""
    out = np.empty_like(values)
    start = 0
    for tensor in adapter.tensors:
        size = prod(tensor.shape)
        part = slice(start, start + size)
        rows = tensor.shape[0] if size // tensor.shape[0] >= _WIDE else 1
        means = values[part].reshape(rows, -1).mean(axis=1).clip(min=0.0)
        out[part] = np.repeat(means, size // rows)
        start += size
    return out


def strength_of(relative: Decimal, importance: Model) -> str:
    """The manifest's strength: by `relative` a parameter of average importance is drawn back in a round, as the share
    relative / (1 + relative) of its way. Six digits; "0" where nothing matters yet, or the quotient is too small to be
    written. Raises TaskError E533 where it is too large: the past hardly moved anything."""
    mean = float(importance.mean(dtype=np.float64))
    if mean <= 0:
        return "0"
    absolute = Decimal(f"{float(relative) / mean:.6g}")
    if absolute >= _LARGEST:
        raise TaskError(
            "what mattered so far is too little to hold anything by",
            found=f"an importance of {mean:.1e} in the mean, so a strength of {absolute:.1e}",
            expected=f"a strength below {_LARGEST:.0e}, as a manifest can write it",
            do="lower consolidation, or leave it away in this task",
            code="E533",
        )
    if absolute >= _WHOLE:
        return f"{absolute:f}"
    rounded = absolute.quantize(_DIGITS)
    return f"{rounded:f}".rstrip("0").rstrip(".") or "0"
