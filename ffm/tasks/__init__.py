"""What a federation can learn: one file per family of tasks behind one small interface, chosen by `training.task`.

A task says how a record is read and turned into tensors, which model it needs, what the loss of one record is, and how
a model is judged. Adapters, privacy and aggregation are the same for all of them. A consortium adds one of its own as a
Python file with an object `TASK`; every site names that file in its own settings (`task_file`), never the manifest: no
signature of somebody else makes a site run code.
"""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from torch import nn
from transformers import PreTrainedModel

from dp.objective import Dataset, Objective
from ffm.data import Record
from ffm.errors import TaskError
from protocol.manifest import TrainingSpec

Scores = Mapping[str, float]


class Task(Objective, Protocol):
    """A task; `Objective` is the part of it that DP-SGD sees."""

    name: str  # as manifests write it in training.task
    peft_type: str  # of PEFT: "SEQ_CLS", "CAUSAL_LM", "FEATURE_EXTRACTION" for anything else
    headline: str  # the key of `scores` by which methods are compared; larger is better unless it is a perplexity

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


BUILT_IN: Final[Mapping[str, str]] = {
    "sequence-classification": "ffm.tasks.finetune:SequenceClassification",
    "masked-lm": "ffm.tasks.language:MaskedLanguageModel",
    "causal-lm": "ffm.tasks.language:CausalLanguageModel",
    "instruction-tuning": "ffm.tasks.language:InstructionTuning",
}


def find(name: str, file: Path | None = None) -> Task:
    """The task that a manifest names: of `file`, if the site gives one, else a built-in one.

    Raises:
        TaskError: E531, no such task; E532, the file cannot be loaded or holds another task.
    """
    if file is not None:
        return _from_file(name, file)
    if name not in BUILT_IN:
        raise TaskError(
            f"no task {name!r}",
            found=name,
            expected=" or ".join(BUILT_IN),
            do="give the file of the consortium's own task: task_file in the site's settings, or --task-file",
            code="E531",
        )
    module, _, attribute = BUILT_IN[name].partition(":")
    task: Task = getattr(importlib.import_module(module), attribute)()
    return task


def _from_file(name: str, file: Path) -> Task:
    do = "give the Python file with the object TASK that the consortium agreed on"
    spec = importlib.util.spec_from_file_location(f"secagg_task_{file.stem}", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise TaskError("the task's file cannot be loaded", found=str(file), expected="a Python file", do=do)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        task: Task = module.TASK
    except (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, OSError) as error:
        raise TaskError("the task's file cannot be loaded", found=type(error).__name__, do=do) from error
    if task.name != name:
        raise TaskError("the file holds another task than the manifest names", found=task.name, expected=name, do=do)
    return task
