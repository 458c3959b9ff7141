"""How a site computes: half precision, layers computed twice. What of it would change a guarantee is refused.

With DP the gradient of a record has to be a function of that record alone. Measured here, and held by tests:

- Layers that are computed twice (gradient checkpointing) leave it exactly as it is in torch's reentrant form. The other
  form runs Opacus' forward hook twice for one backward pass and gives no gradient of records at all; it is never used.
- In bfloat16 a result has 8 bits, and which way the last one falls can depend on the shape of the batch. With one
  record a pass there is nothing to depend on; with neighbours one record could move the others' clipped gradients by
  far more than the last bits of float32, so that is refused.
"""

import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dp.objective import Batch, Dataset, Objective
from dp.sampling import Csprng
from ffm.errors import TrainingProcessError
from ffm.local_setup import Compute
from protocol.manifest import Manifest

_DEVICE = re.compile(r"cpu|cuda(:[0-9]{1,2})?")  # as in a site's settings


class HalfPrecision:
    """An objective whose forward pass runs under bfloat16 autocast; parameters and losses stay float32."""

    def __init__(self, objective: Objective, device_type: str) -> None:
        self.fields = objective.fields
        self._objective, self._device_type = objective, device_type

    def prepare(self, batch: Batch, rng: Csprng) -> Batch:
        """As the objective does."""
        return self._objective.prepare(batch, rng)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """(records,), float32. Checks, which take no gradient, compare records in full precision."""
        if not torch.is_grad_enabled():
            return self._objective.losses(model, batch)
        with torch.autocast(self._device_type, torch.bfloat16):
            return self._objective.losses(model, batch).float()

    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """As the objective does."""
        self._objective.check(model, dataset)


def check_device(device: str) -> None:
    """Raise TrainingProcessError E524 for a device that this machine does not have."""
    try:
        usable = _DEVICE.fullmatch(device) is not None and torch.empty(0, device=device) is not None
    except (RuntimeError, AssertionError):
        usable = False
    if not usable:
        cuda = f"cpu, cuda (of which there are {torch.cuda.device_count()})"
        raise TrainingProcessError(
            f"no usable device {device!r}",
            found="torch cannot use it",
            expected=cuda,
            do="use --device cpu",
            code="E524",
        )


def prepared(model: nn.Module, base: PreTrainedModel, manifest: Manifest, compute: Compute) -> None:
    """Make `model` compute as the site wants. Raises TrainingProcessError E525 for what would not be the same."""
    of_records = manifest.privacy.protocol in ("R1", "R2")
    if of_records and compute.precision != "float32" and compute.physical_batch != 1:
        raise TrainingProcessError(
            "in half precision a record's gradient depends on its neighbours in the pass, which DP does not allow",
            found=f"{compute.physical_batch or 'a chosen number of'} records a pass",
            expected="1",
            do='set physical_batch = 1, or precision = "float32"',
            code="E525",
        )
    if not compute.checkpointing:
        return
    if manifest.adapter.virtual_tokens and manifest.adapter.method == "prefix":
        raise TrainingProcessError(
            "a prefix is a cache of keys and values, which layers that are computed twice would fill twice",
            found="checkpointing with prefix",
            expected="checkpointing = false",
            do="leave checkpointing away, or choose another method",
            code="E525",
        )
    parts: Any = base
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
            parts.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    except (ValueError, AttributeError, NotImplementedError):
        raise TrainingProcessError(
            "this base model cannot compute its layers twice",
            found=type(base).__name__,
            expected="a model with gradient checkpointing",
            do="leave checkpointing away",
            code="E525",
        ) from None
    parts.enable_input_require_grads()  # the reentrant form drops layers whose input needs no gradient
