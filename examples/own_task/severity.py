"""A task of one's own in one file: ordinal regression, how far a disease has come on the scale of `training.labels`.

A model with one output less than there are labels answers "worse than label k?" for every k (proportional odds, as
binary losses). It is judged by quadratic weighted kappa (Cohen 1968), the mean error in levels, and accuracy. Nothing
of `protocol/` or `secagg/` knows of it: the manifest names it, every site names this file in its own settings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dp.objective import FIELDS, IDS, LABELS, MASK, Batch, Dataset, check_range
from dp.sampling import Csprng
from ffm.data import Record, read_records, tokenize
from ffm.models import check_context, load_classifier
from ffm.tasks.finetune import Matrix, accuracy, predict
from protocol.manifest import TrainingSpec


class Severity:
    """Text -> a level."""

    name = "severity"
    peft_type = "SEQ_CLS"
    headline = "kappa"
    lower_is_better = False
    fields = FIELDS

    def load(self, folder: Path, training: TrainingSpec, seed: int) -> PreTrainedModel:
        """A classifier with one output per step of the scale."""
        steps = tuple(f"worse than {label}" for label in training.labels[:-1])
        return check_context(load_classifier(folder, steps, seed), training.max_length)

    def read(self, path: Path, training: TrainingSpec) -> tuple[Record, ...]:
        """CSV with the columns text,label."""
        return read_records(path, training.labels)

    def tensors(self, tokenizer: Any, records: Sequence[Record], training: TrainingSpec) -> Dataset:
        """The label is the level's place on the scale."""
        return tokenize(tokenizer, records, training.labels, training.max_length)

    def prepare(self, batch: Batch, rng: Csprng) -> Batch:
        """Nothing is drawn."""
        return batch

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """(records,): the sum over the steps of the scale."""
        logits = model(input_ids=batch[IDS], attention_mask=batch[MASK]).logits.float()
        worse = batch[LABELS][:, None] > torch.arange(logits.shape[1], device=logits.device)
        return nn.functional.binary_cross_entropy_with_logits(logits, worse.float(), reduction="none").sum(dim=1)

    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """Levels are 0 to the number of steps."""
        device = next(model.parameters()).device
        with torch.no_grad():
            logits = model(input_ids=dataset[IDS][:1].to(device), attention_mask=dataset[MASK][:1].to(device)).logits
        check_range("labels", dataset[LABELS], int(logits.shape[1]) + 1)

    def scores(self, model: nn.Module, test: Dataset) -> Mapping[str, float]:
        """On held-out records: the level is the number of steps that are more likely passed than not."""
        logits, truth = predict(model, test), test[LABELS].numpy()
        levels = (logits > 0).sum(axis=1)
        counts = np.zeros((logits.shape[1] + 1, logits.shape[1] + 1), dtype=np.int64)
        np.add.at(counts, (truth, levels), 1)
        error = float(np.abs(levels - truth).mean())
        return {"kappa": weighted_kappa(counts), "mean_error": error, "accuracy": accuracy(counts)}


def weighted_kappa(counts: Matrix) -> float:
    """1 - (squared distances as they are) / (as they would be by chance); 1: always right, 0: chance."""
    places = np.arange(len(counts))
    distance = (places[:, None] - places) ** 2
    chance = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / max(1, counts.sum())
    expected = float((distance * chance).sum())
    return 1.0 - float((distance * counts).sum()) / expected if expected else 0.0


TASK = Severity()
