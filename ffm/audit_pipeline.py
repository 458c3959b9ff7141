"""The real training loop with planted, public records in it, and a look at every step: what `dp.audit` calls Pipeline.

Nothing of the loop is copied or replaced. The mechanism of the plan is one that notes what it is given and what it
returns, and torch's own hooks show what the optimizer is handed and put the parameters back afterwards.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import prod
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from dp.audit import Canary, Integers, Reals, Trace
from dp.errors import PrivacyError
from dp.mechanism import GaussianMechanism
from dp.sampling import Csprng
from dp.training import DpSgdPlan, noised_sum, train
from protocol.manifest import AdapterSpec

MOST_ROWS: Final = 2048  # canary directions
SPREAD: Final = 4  # coordinates of one direction, far apart: in different tensors

Dataset = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Noting(GaussianMechanism):
    """The mechanism as configured; it notes the sum that goes in and the integers that come out."""

    sums: list[Integers] = field(default_factory=list, repr=False, compare=False)
    released: list[Integers] = field(default_factory=list, repr=False, compare=False)

    def privatize(self, rows: Integers, rng: Csprng) -> Integers:
        """See `GaussianMechanism.privatize`."""
        total = rows if rows.ndim == 1 else rows.sum(axis=0, dtype=np.int64)
        self.sums.append(total.copy())
        out = GaussianMechanism.privatize(self, rows, rng)
        self.released.append(out.copy())
        return out


@contextmanager
def handed_gradients(model: nn.Module, hold: bool) -> Iterator[list[Reals]]:
    """Collects the flat gradient that any optimizer over `model`'s trainable parameters is handed, step by step; with
    `hold` the parameters are put back after each step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    own = {id(p) for p in parameters}  # of which some may stand still in a round
    seen: list[Reals] = []

    def ours(optimizer: torch.optim.Optimizer) -> bool:
        return any(id(p) in own for group in optimizer.param_groups for p in group["params"])

    def before(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if ours(optimizer):
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            flat = torch.cat([part.detach().double().reshape(-1).cpu() for part in parts])
            seen.append(np.array(flat.numpy(), dtype=np.float64))

    def after(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if hold and ours(optimizer):
            with torch.no_grad():
                for p, value in zip(parameters, start, strict=True):
                    p.copy_(value)

    handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def watched(model: nn.Module, dataset: Dataset, plan: DpSgdPlan, rng: Csprng, hold: bool = True) -> Trace:
    """`dp.training.train`, or where noise comes in shares `noised_sum` step after step, watched.

    Raises PrivacyError for a plan without noise: there is nothing to audit.
    """
    if plan.mechanism is None:
        raise PrivacyError("a pipeline without noise has no privacy claim", expected="protocol R1", code="E702")
    m = plan.mechanism
    noting = _Noting(m.scale, m.clip_steps, m.noise_steps, m.shares)
    size, unit = sum(p.numel() for p in model.parameters() if p.requires_grad), 1.0
    if m.shares > 1:
        # A rotated sum is a stage of its own, behind what is watched here: `ffm.audit_shares`.
        once = replace(plan, mechanism=noting, steps=1, rotated=None)
        handed = [noised_sum(model, dataset, once, rng).astype(np.float64) for _ in range(plan.steps)]
    else:
        with handed_gradients(model, hold) as handed:
            train(model, dataset, replace(plan, mechanism=noting), rng)
        unit = float(plan.expected_batch * m.scale)
    return Trace(
        np.array(noting.sums, dtype=np.int64).reshape(-1, size),
        np.array(noting.released, dtype=np.int64).reshape(-1, size),
        np.array(handed, dtype=np.float64).reshape(-1, size) * unit,
        plan.steps,
    )


@dataclass(frozen=True, slots=True)
class ModelPipeline:
    """The manifest's own model over planted records; a record is its index in `dataset`."""

    model: nn.Module = field(repr=False)
    dataset: Dataset = field(repr=False)
    plan: DpSgdPlan
    groups: Mapping[str, slice] = field(repr=False)

    @property
    def mechanism(self) -> GaussianMechanism:
        """As configured."""
        return _mechanism(self.plan)

    @property
    def sampling(self) -> tuple[int, int]:
        """As configured."""
        return self.plan.sampling_numerator, self.plan.sampling_denominator

    def run(self, records: Sequence[int], steps: int, sampled: bool, rng: Csprng) -> Trace:
        """See `dp.audit.Pipeline`."""
        chosen = {name: tensor[list(records)] for name, tensor in self.dataset.items()}
        return watched(self.model, chosen, _plan(self.plan, steps, sampled), rng)


class _CanaryModel(nn.Module):
    """A classifier whose gradient for a record is what the record says.

    One linear layer without bias for each tensor of the adapter, all zero; the logits are (s, -s) with s the sum of
    their outputs. At s = 0 the gradient of the cross-entropy with respect to s is +1 for label 1 and -1 for label 0, so
    that with respect to the weights it is plus or minus the layers' input, exactly.
    """

    def __init__(self, sizes: Sequence[int], rows: int, lengths: Sequence[float]) -> None:
        super().__init__()
        self._sizes, self._rows, self._lengths = list(sizes), rows, torch.tensor(lengths, dtype=torch.float32)
        self.layers = nn.ModuleList(nn.Linear(size, 1, bias=False) for size in sizes)
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.zero_()  # type: ignore[operator]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """input_ids (n, 2): row and index of the length, both taken modulo their range. logits (n, 2)."""
        rows = input_ids[:, 0] % self._rows
        values = 0.5 * self._lengths[input_ids[:, 1] % len(self._lengths)]
        x = torch.zeros(len(rows), sum(self._sizes))
        where = rows[:, None] + self._rows * torch.arange(SPREAD)
        x.scatter_(1, where, values[:, None].expand(-1, SPREAD))
        parts = zip(self.layers, torch.split(x, self._sizes, dim=1), strict=True)
        score = torch.stack([layer(part) for layer, part in parts]).sum(dim=0)
        return SimpleNamespace(logits=torch.cat([score, -score], dim=1))


@dataclass(frozen=True, slots=True)
class CanaryTraining:
    """The training loop over a model with the adapter's tensors, in which a record's gradient is planted."""

    sizes: Mapping[str, int] = field(repr=False)  # values of each tensor, in the order of the flat vector
    plan: DpSgdPlan

    @classmethod
    def of(cls, adapter: AdapterSpec, plan: DpSgdPlan) -> "CanaryTraining":
        """For the tensors of a manifest."""
        return cls({tensor.name: prod(tensor.shape) for tensor in adapter.tensors}, plan)

    @property
    def mechanism(self) -> GaussianMechanism:
        """As configured."""
        return _mechanism(self.plan)

    @property
    def sampling(self) -> tuple[int, int]:
        """As configured."""
        return self.plan.sampling_numerator, self.plan.sampling_denominator

    @property
    def groups(self) -> Mapping[str, slice]:
        """Coordinates of each tensor."""
        return slices(self.sizes)

    @property
    def rows(self) -> int:
        """Directions; at most a quarter of the coordinates."""
        return min(sum(self.sizes.values()) // SPREAD, MOST_ROWS)

    def run(self, records: Sequence[Canary], steps: int, sampled: bool, rng: Csprng) -> Trace:
        """See `dp.audit.Pipeline`."""
        unit = self.mechanism.clip_steps / self.mechanism.scale  # the clip norm
        index: dict[str, int] = {}  # by text: NaN is not equal to itself
        ids = [[canary.row, index.setdefault(repr(canary.norm), len(index))] for canary in records]
        model = _CanaryModel(list(self.sizes.values()), self.rows, [float(length) * unit for length in index])
        dataset = {
            "input_ids": torch.tensor(ids, dtype=torch.int64),
            "attention_mask": torch.ones(len(ids), 2, dtype=torch.int64),
            "labels": torch.tensor([int(canary.sign > 0) for canary in records], dtype=torch.int64),
        }
        return watched(model, dataset, _plan(self.plan, steps, sampled), rng)

    def configured(self, mechanism: GaussianMechanism, sampling: tuple[int, int]) -> "CanaryTraining":
        """See `dp.audit.CanaryPipeline`."""
        numerator, denominator = sampling
        plan = replace(self.plan, sampling_numerator=numerator, sampling_denominator=denominator, mechanism=mechanism)
        return replace(self, plan=plan)

    def scores(self, vectors: Reals) -> Reals:
        """See `dp.audit.CanaryPipeline`."""
        used = vectors[:, : SPREAD * self.rows].reshape(len(vectors), SPREAD, self.rows)
        return np.asarray(0.5 * used.sum(axis=1) / self.mechanism.clip_steps, dtype=np.float64)


def slices(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Sizes in order -> coordinates."""
    ends = list(accumulate(sizes.values()))
    return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}


def _mechanism(plan: DpSgdPlan) -> GaussianMechanism:
    if plan.mechanism is None:
        raise PrivacyError("a pipeline without noise has no privacy claim", expected="protocol R1", code="E702")
    return plan.mechanism


def _plan(plan: DpSgdPlan, steps: int, sampled: bool) -> DpSgdPlan:
    if sampled:
        return replace(plan, steps=steps)
    return replace(plan, steps=steps, sampling_numerator=1, sampling_denominator=1)
