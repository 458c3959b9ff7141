"""What a record's loss is, and the records as tensors: all that DP-SGD has to know of a task.

The guarantee takes the gradient of a record as a function of that record and of the released parameters alone, so an
objective gives one loss for each record, and a model whose output for one record depends on its neighbours in the batch
is refused. What an objective draws at random (the masked tokens of a masked language model) comes from the client's
CSPRNG like everything else.
"""

from collections.abc import Iterator, Mapping
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dp.errors import PrivacyError, UnsupportedMechanismError
from dp.sampling import Csprng

Batch = Mapping[str, Tensor]
Dataset = Mapping[str, Tensor]

IDS, MASK, LABELS = "input_ids", "attention_mask", "labels"
FIELDS: Final = (IDS, MASK, LABELS)
MAX_RECORDS: Final = 2**26  # sums of bounded rows stay exact in float64
_WIDTHS: Final = (
    8  # tokens: with DP several records share a pass only where their lengths round up to the same multiple
)
IGNORED: Final = -100  # a label that stands for no prediction, as in transformers
_COUPLING_TOLERANCE: Final = 1e-3  # of the largest loss or 1; float32 kernels differ by about 1e-6


class Objective(Protocol):
    """What is learned from a record."""

    fields: tuple[str, ...]  # of the data set: these and no others

    def prepare(self, batch: Batch, rng: Csprng) -> Batch:
        """The batch as it is learned from, drawn anew at each step: tokens are masked here. Record by record."""
        ...

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """(records,): the loss of each record, a function of that record and of the parameters alone.

        What it computes on the way has shapes that follow from those of the batch: kernels add up by shape, so one that
        followed from the values of several records would couple them."""
        ...

    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """Raise PrivacyError or UnsupportedMechanismError for labels or logits that do not fit. No count in it."""
        ...


class Classification:
    """Cross-entropy of one label per record. `model(input_ids=, attention_mask=).logits` is (records, classes)."""

    fields: tuple[str, ...] = FIELDS

    def prepare(self, batch: Batch, rng: Csprng) -> Batch:
        """Nothing is drawn."""
        return batch

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """(records,)."""
        logits = model(input_ids=batch[IDS], attention_mask=batch[MASK]).logits
        return nn.functional.cross_entropy(logits.float(), batch[LABELS], reduction="none")

    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """Labels are 0 to classes - 1."""
        if dataset[LABELS].ndim != 1:
            expected = "labels (n,)"
            raise PrivacyError("the tensors of the data set do not fit together", expected=expected, code="E222")
        device = next(model.parameters()).device
        with torch.no_grad():
            logits = model(input_ids=dataset[IDS][:1].to(device), attention_mask=dataset[MASK][:1].to(device)).logits
        if logits.ndim != 2:
            expected = "(records, classes)"
            raise UnsupportedMechanismError("logits", found=tuple(logits.shape), expected=expected, code="E224")
        check_range("labels", dataset[LABELS], int(logits.shape[1]))


CLASSIFICATION: Final = Classification()


def check_range(what: str, values: Tensor, limit: int) -> None:
    """Raise PrivacyError E226 unless all values are in [0, limit)."""
    for found, outside in (("a negative one", values < 0), ("a larger one", values >= limit)):
        if bool(outside.any()):
            raise PrivacyError(f"{what} out of range", found=found, expected=f"0 to {limit - 1}", code="E226")


class Records:
    """A checked data set, cut into passes whose padding is trimmed.

    Integer tensors by name, those of `objective.fields`: "input_ids" and "attention_mask" (records, tokens), "labels"
    (records,) or (records, tokens); others are (records, ...) and left whole. With DP the number of tokens has to be
    public, so not that of the longest text: pad to what the manifest allows.
    """

    def __init__(self, model: nn.Module, dataset: Dataset, objective: Objective) -> None:
        # No message names a count or a value of real records: messages travel to the server.
        if sorted(dataset) != sorted(objective.fields):
            wanted = sorted(objective.fields)
            raise PrivacyError("fields of the data set", found=sorted(dataset), expected=wanted, code="E222")
        shape = tuple(dataset[IDS].shape)
        mask_fits = tuple(dataset[MASK].shape) == shape
        if len(shape) != 2 or not mask_fits or any(field.shape[:1] != shape[:1] for field in dataset.values()):
            expected = "input_ids (n, t), attention_mask (n, t), labels (n,) or (n, t)"
            raise PrivacyError("the tensors of the data set do not fit together", expected=expected, code="E222")
        if not 0 < shape[0] <= MAX_RECORDS or shape[1] == 0:
            found = "too many records" if shape[0] > MAX_RECORDS else "nothing"
            do = "check the site's file of records"
            raise PrivacyError("size of the data set", found=found, expected="1 to 2^26 records", do=do, code="E223")
        if any(field.is_floating_point() for field in dataset.values()):
            raise PrivacyError("type of the data set", found="floats", expected="integer tensors", code="E222")
        self._dataset, self._objective = dataset, objective
        self._device = next(model.parameters()).device
        embeddings = getattr(model, "get_input_embeddings", None)
        if embeddings is not None:
            check_range("token ids", dataset[IDS], int(embeddings().num_embeddings))
        objective.check(model, dataset)
        self._refuse_coupling(model)
        # Position of the last token that counts, from 1: columns behind it are padding.
        columns = torch.arange(1, shape[1] + 1)
        counts = dataset[MASK].cpu() != 0
        self._lengths, self._tokens = (counts * columns).amax(dim=1).clamp_min(1), counts.sum(dim=1)
        self._width = shape[1]

    def _refuse_coupling(self, model: nn.Module) -> None:
        """One record beside another of the same shape, with and without it, must have the same loss."""
        one = {name: field[:1].to(self._device) for name, field in self._dataset.items()}
        other = {**one, IDS: one[IDS].flip(1)}
        with torch.no_grad():
            alone = self._objective.losses(model, one)
            pair = {name: torch.cat([field, other[name]]) for name, field in one.items()}
            beside = self._objective.losses(model, pair)[:1]
        if bool(((alone - beside).abs() > _COUPLING_TOLERANCE * alone.abs().amax().clamp_min(1)).any()):
            raise UnsupportedMechanismError(
                "the model's output for one record depends on the other records of the batch",
                do="use a model without batch statistics or in-batch comparison",
                code="E225",
            )

    def __len__(self) -> int:
        return int(self._dataset[IDS].shape[0])

    def batches(self, sample: NDArray[np.int64], size: int, rng: Csprng) -> Iterator[Batch]:
        """The sampled records on the model's device, at most `size` at a time. By length: the sum has no order, and
        short records are not padded to the longest of the sample."""
        chosen = torch.from_numpy(sample)
        chosen = chosen[torch.argsort(self._lengths[chosen], stable=True)]
        for part in chosen.split(size):  # type: ignore[no-untyped-call]
            if len(part):  # a split of nothing is one of nothing
                yield self._batch(part, int(self._lengths[part].amax()), rng)

    def passes(self, sample: NDArray[np.int64], size: int, rng: Csprng) -> Iterator[tuple[Batch, int]]:
        """The same, each with the number of its records, in shapes that no other record has a say in: `size` rows, the
        rest copies that count for nothing, and as many tokens as a record of that length takes in any company. Texts
        without padding are among themselves: models leave the mask away where it masks nothing."""
        chosen = torch.from_numpy(sample)
        lengths = self._lengths[chosen]
        widths = lengths if size == 1 else ((lengths + _WIDTHS - 1) // _WIDTHS * _WIDTHS).clamp_max(self._width)
        kinds = 2 * widths + (self._tokens[chosen] == widths)
        for kind in torch.unique(kinds):
            for part in chosen[kinds == kind].split(size):  # type: ignore[no-untyped-call]
                batch = self._batch(part, int(kind) // 2, rng)
                rows = torch.tensor([*range(len(part)), *[0] * (size - len(part))], device=self._device)
                yield {name: field[rows] for name, field in batch.items()}, len(part)

    def _batch(self, part: Tensor, width: int, rng: Csprng) -> Batch:
        batch = {}
        for name, field in self._dataset.items():
            rows = field[part]
            trimmed = rows[:, :width] if rows.ndim == 2 and rows.shape[1] == self._width else rows
            batch[name] = trimmed.to(self._device)
        batch[LABELS] = batch[LABELS].to(torch.int64)
        return self._objective.prepare(batch, rng)
