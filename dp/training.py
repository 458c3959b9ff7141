"""Local DP-SGD around a PEFT adapter: Opacus' per-sample gradients, our sampler, our integer noise.

One step of protocol R1 (`train`): a Poisson sample by `rng`; per record the gradient of its own loss (Opacus,
`loss_reduction="sum"`); clip, round toward zero onto the grid, drop rows above the bound; the integer sum; integer
noise by `rng`, once per logical batch and also where the sample is empty; dequantise; divide by the public
`expected_batch`; the optimizer, which is post-processing. torch's generator decides nothing. Protocol R2 (`noised_sum`)
ends with the integers, of which other clients' are added before anybody sees them, and with a share of the noise.

The guarantee takes the gradient of a record as a function of that record and of the released parameters, to the last
bit: a server that chooses the parameters can make any difference large. Float kernels add up in an order that depends
on shapes, and may depend on the row. So every pass has a shape that no other record has a say in (`Records.passes`),
and several records share one only where this machine has shown that a row comes out alike in every place
(`_places_alike`). Modules that couple records are refused.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleHooks
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from dp.client_level import ClientMechanism
from dp.errors import PrivacyError, UnsupportedMechanismError
from dp.mechanism import GaussianMechanism
from dp.objective import CLASSIFICATION, IDS, MASK, Batch, Dataset, Objective, Records
from dp.rotation import RotatedSum
from dp.sampling import Csprng, poisson_sample

# FFA-LoRA freezes A, so nothing before the first B needs a gradient: true, no reason to warn. Once for the process:
# `warnings.catch_warnings` around the training would not be safe in threads.
warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)

OPTIMIZERS: Final[Mapping[str, type[torch.optim.SGD] | type[torch.optim.Adam]]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}
NOT_FINITE: Final = "E227"  # code of a gradient that is not finite, where nothing clips it
_CPU_BLOCK: Final = 2**18  # gradient entries per pass of `bounded_rows`: in cache, three times as fast as all at once
_GPU_BLOCK: Final = 2**26
_PLACES: Final[WeakKeyDictionary[nn.Module, dict[tuple[object, ...], bool]]] = WeakKeyDictionary()  # by shape of a pass
_CLIP_ROOM = 2.0**-19  # relative; more than the float32 error of a norm, so that rows at the clip norm are not dropped


@dataclass(frozen=True, slots=True)
class DpSgdPlan:
    """What a round trains by, all of it public. Raises PrivacyError for values that make no sense."""

    steps: int
    sampling_numerator: int
    sampling_denominator: int
    mechanism: GaussianMechanism | None  # None: protocol "none", the same loop without clip and noise
    expected_batch: int  # public divisor of the summed gradient, never a count of real records
    optimizer: str  # a key of OPTIMIZERS; its state lives for one call of `train`
    learning_rate: float
    max_physical_batch: int = 128  # records per forward pass: speed and memory only, no part of the result's law
    rotated: RotatedSum | None = None  # R2 in narrow slots: what the bounded sum goes through in place of plain noise
    client: ClientMechanism | None = None  # protocol C: what the caller puts the whole update through, trained plainly
    proximal: float = 0.0  # FedProx (Li et al. 2020): pull towards the round's start, added after the noise

    def __post_init__(self) -> None:
        for name in ("steps", "expected_batch", "max_physical_batch"):
            if getattr(self, name) < 1:
                raise PrivacyError(
                    f"{name} of the training plan", found=getattr(self, name), expected=">= 1", code="E220"
                )
        if not 0 < self.sampling_numerator <= self.sampling_denominator:
            found = f"{self.sampling_numerator}/{self.sampling_denominator}"
            raise PrivacyError("sampling probability outside (0, 1]", found=found, expected="0 < p <= 1", code="E220")
        if self.optimizer not in OPTIMIZERS:
            expected = " or ".join(OPTIMIZERS)
            raise PrivacyError("unknown optimizer", found=self.optimizer, expected=expected, code="E220")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise PrivacyError("learning rate", found=self.learning_rate, expected="finite, above 0", code="E220")
        if not (math.isfinite(self.proximal) and self.proximal >= 0):
            raise PrivacyError("proximal strength", found=self.proximal, expected="finite, 0 or more", code="E220")


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What happened. `records_seen` is a count of real records: it stays on the client's own machine."""

    steps: int
    noise_calls: int
    records_seen: int


def check(model: nn.Module, dataset: Dataset, objective: Objective = CLASSIFICATION) -> None:
    """Raise whatever `train` and `noised_sum` would refuse before anything is drawn: before a site joins anything."""
    with _train_mode(model):
        _refuse_unsupported(model, [p for p in model.parameters() if p.requires_grad])
        Records(model, dataset, objective)


def noised_sum(
    model: nn.Module, dataset: Dataset, plan: DpSgdPlan, rng: Csprng, objective: Objective = CLASSIFICATION
) -> NDArray[np.int64]:
    """Protocol R2: the integer sum (d,) of one sample's clipped gradients, plus this client's share of the noise.

    In grid steps, of the parameters that require a gradient, in their order; nothing is trained and the model is left
    as it was; with `plan.rotated` in its coordinates and steps. One share is not enough noise: the result must not
    leave but under the masks of a sum that holds at least `plan.mechanism.shares` of them. Arguments and errors as
    `train`.
    """
    if plan.mechanism is None or plan.steps != 1:
        found = "no noise" if plan.mechanism is None else f"{plan.steps} steps"
        raise UnsupportedMechanismError(
            "a sum with a share of the noise is of one sample", found=found, expected="one step with noise", code="E236"
        )
    parameters = [p for p in model.parameters() if p.requires_grad]
    with _train_mode(model):
        _refuse_unsupported(model, parameters)
        records = Records(model, dataset, objective)
        with _per_sample_gradients(model, parameters, wanted=True):
            sample = poisson_sample(rng, len(records), plan.sampling_numerator, plan.sampling_denominator)
            passes = records.passes(sample, plan.max_physical_batch, rng)
            total = _bounded_sum(_Losses(model, objective), parameters, passes, plan.mechanism)
            return (plan.mechanism if plan.rotated is None else plan.rotated).privatize(total, rng)


def train(
    model: nn.Module, dataset: Dataset, plan: DpSgdPlan, rng: Csprng, objective: Objective = CLASSIFICATION
) -> TrainingOutcome:
    """Train the parameters of `model` that require a gradient, in place and on its device, for `plan.steps` steps.

    `dataset`: as `dp.objective.Records`; `objective`: what the loss of one record is. Runs in train mode, as Opacus'
    hooks need it, so a model with dropout is refused; every module's mode is restored, and no hook stays behind.

    Raises PrivacyError for an unusable data set or a gradient that is not finite (protocol "none" only: with DP such a
    record counts as zero), UnsupportedMechanismError for a model that the proof does not cover; both before anything is
    drawn from `rng`, but for a trainable parameter that never receives a gradient, which the first batch shows.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters] if plan.proximal else []
    losses = _Losses(model, objective)
    with _train_mode(model):
        _refuse_unsupported(model, parameters)
        records = Records(model, dataset, objective)
        optimizer = OPTIMIZERS[plan.optimizer](parameters, lr=plan.learning_rate)
        seen = noise_calls = 0
        with _per_sample_gradients(model, parameters, plan.mechanism is not None):
            for _ in range(plan.steps):
                sample = poisson_sample(rng, len(records), plan.sampling_numerator, plan.sampling_denominator)
                if plan.mechanism is None:
                    gradient = _plain_sum(losses, parameters, records.batches(sample, plan.max_physical_batch, rng))
                else:
                    passes = records.passes(sample, plan.max_physical_batch, rng)
                    total = _bounded_sum(losses, parameters, passes, plan.mechanism)
                    # The integers are noised before anything else looks at them.
                    noised = plan.mechanism.privatize(total, rng)
                    noise_calls += 1
                    gradient = torch.from_numpy(noised.astype(np.float64) / plan.mechanism.scale)
                _assign(parameters, gradient / plan.expected_batch)
                for p, origin in zip(parameters, start, strict=False):  # both are released: post-processing
                    p.grad = torch.add(p.grad, p.detach() - origin, alpha=plan.proximal)  # type: ignore[arg-type]
                optimizer.step()
                seen += sample.size
        optimizer.zero_grad(set_to_none=True)
    if noise_calls != (plan.steps if plan.mechanism else 0):
        raise PrivacyError("noise was not added once per step", found=noise_calls, expected=plan.steps, code="E221")
    return TrainingOutcome(plan.steps, noise_calls, seen)


@dataclass(frozen=True, slots=True)
class _Losses:
    """The loss of each record of a batch alone: a mean over the batch would couple the records."""

    model: nn.Module
    objective: Objective

    def backward(self, batch: Batch) -> int:
        """Back-propagate the sum of the losses; how many records it was."""
        records = len(batch["input_ids"])
        losses = self.objective.losses(self.model, batch)
        if losses.shape != (records,):
            expected = "one loss for each record: (records,)"
            raise UnsupportedMechanismError("losses", found=tuple(losses.shape), expected=expected, code="E224")
        losses.sum().backward()  # type: ignore[no-untyped-call]
        return records


def _plain_sum(losses: _Losses, parameters: Sequence[Tensor], batches: Iterator[Batch]) -> Tensor:
    """Sum of the gradients, float64 (d,): protocol "none". Raises PrivacyError if it is not finite."""
    for p in parameters:
        p.grad = None
    for batch in batches:
        losses.backward(batch)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    total = torch.cat([part.reshape(-1).double() for part in parts])
    if not bool(torch.isfinite(total).all()):
        do = "lower the learning rate, or look for broken records"
        raise PrivacyError("the gradient is not finite", expected="finite numbers", do=do, code=NOT_FINITE)
    return total


def _bounded_sum(
    losses: _Losses, parameters: Sequence[Tensor], passes: Iterator[tuple[Batch, int]], mechanism: GaussianMechanism
) -> NDArray[np.int64]:
    """Integer sum (d,) of the clipped, rounded, bounded rows of all passes; zeros for an empty sample."""
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64, device=parameters[0].device)
    for batch, count in passes:
        alike = _places_alike(losses, parameters, batch, mechanism)
        step = len(batch[IDS]) if alike else 1
        for place in range(0, count, step):
            part = {name: field[place : place + step] for name, field in batch.items()}
            first = place
            for rows in _rows(losses, parameters, part, mechanism):
                total += rows[: max(0, count - first)].sum(dim=0)
                first += len(rows)
    return np.asarray(total.to(torch.int64).cpu().numpy(), dtype=np.int64)


def _rows(
    losses: _Losses, parameters: Sequence[Tensor], batch: Batch, mechanism: GaussianMechanism
) -> Iterator[Tensor]:
    """The bounded rows of one pass, in blocks whose shapes follow from that of the pass."""
    samples = _collect(parameters, losses.backward(batch))
    size = sum(sample.shape[1] for sample in samples)
    block = max(1, (_CPU_BLOCK if samples[0].device.type == "cpu" else _GPU_BLOCK) // size)
    for start in range(0, len(samples[0]), block):
        yield bounded_rows(torch.cat([sample[start : start + block] for sample in samples], dim=1), mechanism)


def _places_alike(losses: _Losses, parameters: Sequence[Tensor], batch: Batch, mechanism: GaussianMechanism) -> bool:
    """Whether a record's row is the same to the last bit wherever in a pass of this shape it stands, on this machine.

    Kernels do not look at values when they choose an order, so copies of one record show it. Neither the record nor the
    parameters are anybody's: the answer decides how other records are computed, so none must have a say in it. Once for
    each shape: what else could make a difference is the same for the whole process.
    """
    if len(batch[IDS]) == 1:
        return True
    known = _PLACES.setdefault(losses.model, {})
    full = bool((batch[MASK] != 0).all())  # then models leave the mask away
    shape = (tuple(tuple(field.shape) for field in batch.values()), full, torch.get_num_threads())
    if shape not in known:
        copies = _copies_of_nobody(batch, full)
        with _elsewhere(parameters):
            gradients = torch.cat(_collect(parameters, losses.backward(copies)), dim=1)
            alike = bool((gradients == gradients[0]).all()) and bool(gradients.any())
            rows = torch.cat(list(_rows(losses, parameters, copies, mechanism)))
        known[shape] = alike and bool((rows == rows[0]).all())
    return known[shape]


def _copies_of_nobody(batch: Batch, full: bool) -> Batch:
    """A pass of the same shape in which one made-up record stands everywhere; with padding unless `full`."""
    columns = torch.arange(batch[IDS].shape[1], device=batch[IDS].device)
    rows = {IDS: columns % 2, MASK: columns < len(columns) - (not full)}
    return {
        name: rows[name].to(field.dtype).expand_as(field).contiguous() if name in rows else torch.zeros_like(field)
        for name, field in batch.items()
    }


@contextmanager
def _elsewhere(parameters: Sequence[Tensor]) -> Iterator[None]:
    """With other values in the parameters, none of them zero; the old ones come back."""
    kept = [p.detach().clone() for p in parameters]
    draw = Csprng(bytes(32))  # decides nothing but where the machine is looked at
    with torch.no_grad():
        for p in parameters:
            p.copy_(torch.from_numpy(draw.words(p.numel()) * 2.0**-65 - 0.25).reshape(p.shape))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)


def _collect(parameters: Sequence[Tensor], records: int) -> list[Tensor]:
    """Per-sample gradients (records, size of p) of one backward pass, taken away from the parameters."""
    samples = []
    for p in parameters:
        sample = getattr(p, "grad_sample", None)
        if not isinstance(sample, Tensor) or sample.shape[0] != records:
            raise UnsupportedMechanismError(
                "a trainable parameter has no gradient per record",
                found=f"parameter of shape {tuple(p.shape)}",
                do="freeze it, or use a layer that Opacus supports",
                code="E228",
            )
        samples.append(sample.reshape(records, -1))
        p.grad_sample = None  # type: ignore[attr-defined]
        p.grad = None  # backward's own sum, un-noised and perhaps NaN: nobody may use it
    return samples


def bounded_rows(gradients: Tensor, mechanism: GaussianMechanism) -> Tensor:
    """`mechanism.clip` and `mechanism.round_toward_zero_and_bound` on a torch device.

    (n, d) gradients -> (n, d) integer-valued float64, of which sums of up to 2^26 rows are exact. The bound is exact,
    as there; the clip before it is float32, or float64 for a float64 model. May overwrite `gradients`.
    """
    if gradients.dtype in (torch.float16, torch.bfloat16):
        gradients = gradients.float()  # a clip in half precision would miss the bound for every second row
    norms = torch.linalg.vector_norm(gradients, dim=1)
    broken = ~torch.isfinite(norms)
    if bool(broken.any()):
        gradients[broken] = 0.0  # 0 * NaN would stay NaN
    factor = (mechanism.clip_steps * (1 - _CLIP_ROOM) / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(
        mechanism.scale
    )
    factor[broken] = 0.0
    rows = gradients.mul_(factor.unsqueeze(1)).trunc_().double()
    outside = torch.linalg.vecdot(rows, rows) > float(mechanism.clip_steps**2)
    if bool(outside.any()):
        rows[outside] = 0.0
    return rows


def _assign(parameters: Sequence[Tensor], gradient: Tensor) -> None:
    offset = 0
    for p in parameters:
        part = gradient[offset : offset + p.numel()]
        p.grad = part.reshape(p.shape).to(device=p.device, dtype=p.dtype)
        offset += p.numel()


def _refuse_unsupported(model: nn.Module, parameters: Sequence[Tensor]) -> None:
    if not parameters:
        raise UnsupportedMechanismError(
            "the adapter trains nothing: no parameter requires a gradient",
            do="check the adapter's target modules",
            code="E229",
        )
    for name, module in model.named_modules():
        # Opacus' validator looks at trainable modules only; a frozen BatchNorm in train mode couples records as well.
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UnsupportedMechanismError("BatchNorm couples the records of a batch", found=name, code="E225")
        rates = [value for key, value in vars(module).items() if "dropout" in key and isinstance(value, float)]
        if isinstance(module, nn.modules.dropout._DropoutNd):
            rates.append(module.p)
        if any(rate > 0 for rate in rates):
            do = "load the model with every dropout rate at 0"
            raise UnsupportedMechanismError("dropout is drawn by torch's generator", found=name, do=do, code="E230")
    if hasattr(model, "autograd_grad_sample_hooks"):
        do = "pass the bare model: hooks are set and removed here"
        raise UnsupportedMechanismError("the model carries Opacus hooks already", do=do, code="E225")
    errors = ModuleValidator.validate(model, strict=False)
    if errors:
        raise UnsupportedMechanismError("Opacus refuses the model", found=str(errors[0])[:200], code="E225")


@contextmanager
def _train_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _per_sample_gradients(model: nn.Module, parameters: Sequence[Tensor], wanted: bool) -> Iterator[None]:
    """Opacus' hooks for the length of the block. A second pair of hooks on one model would count everything twice, so
    nothing of them stays, also after an error."""
    if not wanted:
        yield
        return
    aliases = _take_aliases(model)
    hooks = GradSampleHooks(model, batch_first=True, loss_reduction="sum", strict=True)
    try:
        yield
    finally:
        hooks.cleanup()
        for module, before in aliases:
            module._parameters.clear()
            module._parameters.update(before)  # in their order, which is that of the flat vector
        for module in model.modules():
            for leftover in ("activations", "max_batch_len"):
                if leftover in vars(module):
                    delattr(module, leftover)
        for p in parameters:
            p.grad = None


def _take_aliases(model: nn.Module) -> list[tuple[nn.Module, dict[str, nn.Parameter | None]]]:
    """Take away parameters that a module registers beside one of its own children, which uses them: the bias of BERT's
    prediction head is its decoder's. Opacus would run the head a second time for it. Gives what was there, in order."""
    taken = []
    for module in model.modules():
        below = {id(p) for child in module.children() for p in child.parameters()}
        aliases = [name for name, p in module.named_parameters(recurse=False) if id(p) in below]
        if aliases:
            taken.append((module, dict(module._parameters)))
        for name in aliases:
            delattr(module, name)
    return taken
