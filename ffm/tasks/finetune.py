"""Fine-tuning for classification: one label for each text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from dp.objective import Classification, Dataset
from ffm.data import Record, read_records, refuse_special, tokenize
from ffm.models import load_classifier
from ffm.ranking import log_odds, twice_wins
from ffm.tasks.interface import Scores
from protocol.manifest import TrainingSpec

_EVALUATION_BATCH = 128


class SequenceClassification(Classification):
    """Text -> one of `training.labels`. Judged by accuracy, macro F1, log loss, and AUC where there are two labels."""

    name = "sequence-classification"
    peft_type = "SEQ_CLS"
    headline = "accuracy"
    lower_is_better = False

    def load(self, folder: Path, training: TrainingSpec, seed: int) -> PreTrainedModel:
        """Encoder or decoder with a classification head."""
        return load_classifier(folder, training.labels, seed)

    def read(self, path: Path, training: TrainingSpec) -> tuple[Record, ...]:
        """CSV with the columns text,label."""
        return read_records(path, training.labels)

    def tensors(self, tokenizer: Any, records: Sequence[Record], training: TrainingSpec) -> Dataset:
        """As `ffm.data.tokenize`; texts with a special token are refused, as in every built-in task."""
        refuse_special(tokenizer, [record.text for record in records])
        return tokenize(tokenizer, records, training.labels, training.max_length)

    def scores(self, model: nn.Module, test: Dataset) -> Scores:
        """Shares of test records, and the mean log loss in nats."""
        logits, truth = predict(model, test), test["labels"].numpy()
        confusion = confusion_of(logits, truth)
        top = logits.max(axis=1)
        log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        found = {
            "accuracy": accuracy(confusion),
            "macro_f1": macro_f1(confusion),
            "loss": float((log_sum - logits[np.arange(len(truth)), truth]).mean()),
        }
        if logits.shape[1] == 2 and len(set(truth.tolist())) == 2:
            positive = int((truth == 1).sum())
            found["auc"] = twice_wins(log_odds(logits), truth)[1] / (2 * positive * (len(truth) - positive))
        return found


Vector = np.ndarray[Any, np.dtype[np.float32]]
Matrix = np.ndarray[Any, np.dtype[np.int64]]


def predict(model: nn.Module, test: Dataset) -> Vector:
    """Logits (records, labels) in the order of the records. Leaves the model's mode as it was."""
    parts, places = [], []
    mode = model.training
    model.eval()
    device = next(model.parameters()).device
    lengths = test["attention_mask"].sum(dim=1)
    with torch.inference_mode():
        for rows in torch.argsort(lengths, stable=True).split(_EVALUATION_BATCH):  # type: ignore[no-untyped-call]
            width = int(lengths[rows].max())
            logits = model(
                input_ids=test["input_ids"][rows, :width].to(device),
                attention_mask=test["attention_mask"][rows, :width].to(device),
            ).logits
            parts.append(logits.float().cpu().numpy())
            places.append(rows.numpy())
    model.train(mode)
    out: Vector = np.concatenate(parts)[np.argsort(np.concatenate(places))]
    return out


def confusion_of(logits: Vector, truth: np.ndarray[Any, np.dtype[np.int64]]) -> Matrix:
    """(labels, labels), int64: row = truth, column = prediction."""
    confusion = np.zeros((logits.shape[1], logits.shape[1]), dtype=np.int64)
    np.add.at(confusion, (truth, logits.argmax(axis=1)), 1)
    return confusion


def accuracy(confusion: Matrix) -> float:
    """Share of test records on the diagonal, in [0, 1]."""
    return float(np.trace(confusion) / max(1, confusion.sum()))


def macro_f1(confusion: Matrix) -> float:
    """Mean over the labels that occur in the test file of 2·TP / (2·TP + FP + FN), in [0, 1]."""
    hits = np.diag(confusion)
    truth, called = confusion.sum(axis=1), confusion.sum(axis=0)
    scores = 2 * hits[truth > 0] / (truth + called)[truth > 0]
    return float(scores.mean()) if scores.size else 0.0
