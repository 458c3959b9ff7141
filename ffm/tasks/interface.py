"""The interface of a task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedModel

from dp.objective import Dataset, Objective
from ffm.data import Record
from protocol.manifest import TrainingSpec

Scores = Mapping[str, float]


class Task(Objective, Protocol):
    """A task; `Objective` is the part of it that DP-SGD sees."""

    name: str  # as manifests write it in training.task
    peft_type: str  # of PEFT: "SEQ_CLS", "CAUSAL_LM", "FEATURE_EXTRACTION" for anything else
    headline: str  # the key of `scores` by which methods are compared
    lower_is_better: bool  # of the headline

    def load(self, folder: Path, training: TrainingSpec, seed: int) -> PreTrainedModel:
        """The base model, float32, on the CPU, without dropout; what the checkpoint lacks is drawn from `seed`.

        Raises ModelError E506 for a model of another class.
        """
        ...

    def read(self, path: Path, training: TrainingSpec) -> tuple[Record, ...]:
        """A site's records. Raises DataError E511 to E514; its messages give line numbers, never a cell."""
        ...

    def tensors(self, tokenizer: Any, records: Sequence[Record], training: TrainingSpec) -> Dataset:
        """What `dp.objective.Records` takes: one row of each tensor per record."""
        ...

    def scores(self, model: nn.Module, test: Dataset) -> Scores:
        """How well `model` does on held-out records, by name; finite numbers."""
        ...
