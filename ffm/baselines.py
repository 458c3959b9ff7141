"""What a federation is compared with, over the same training loop, split and number of samples.

- federated without DP: the average of the hospitals' deltas, same sampler, steps and rounds, no clip and no noise
- each hospital alone with DP: the same q, σ and number of steps as inside the federation, hence the same ε
- the majority class

All of it runs inside one process on data that the example owns; a real consortium cannot compute the first one.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dp.sampling import Csprng
from dp.training import train
from ffm.adapters import build_from_spec, flatten, load_flat
from ffm.data import Record, read_records, tokenize
from ffm.models import load_classifier, load_tokenizer
from ffm.ranking import log_odds, twice_wins
from ffm.worker import plan_of
from protocol.manifest import Manifest

Vector = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.int64]
Dataset = Mapping[str, torch.Tensor]
_EVALUATION_BATCH = 128
_LOADING = threading.Lock()  # transformers swaps initialisers of the whole process while it loads


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row of the comparison. `confusion[i, j]`: test records of label i that were called j; see `ffm.ranking`."""

    name: str
    confusion: Matrix = field(repr=False)
    samples_seen: int
    twice_wins: tuple[int, ...] | None = None


class Bench:
    """A manifest, its base model and tokenised data: everything that the comparators share."""

    def __init__(
        self,
        manifest: Manifest,
        base_model: Path,
        site_files: Sequence[Path],
        test_file: Path,
        device: str = "cpu",
    ) -> None:
        """Read and tokenise all files. Raises the errors of `ffm.models`, `ffm.adapters` and `ffm.data`."""
        self.manifest, self.base_model, self._device = manifest, base_model, device
        tokenizer = load_tokenizer(base_model)
        labels, width = manifest.training.labels, manifest.training.max_length

        def tensors(records: Sequence[Record]) -> Dataset:
            return tokenize(tokenizer, records, labels, width)

        self.sites = tuple(tensors(read_records(path, labels)) for path in site_files)
        self.test = tensors(read_records(test_file, labels))

    def start(self) -> tuple[nn.Module, Vector]:
        """A fresh model and the flat vector that round 0 starts from."""
        with _LOADING:
            base = load_classifier(self.base_model, self.manifest.training.labels, self.manifest.adapter.seed)
            model = build_from_spec(base, self.manifest.adapter)
        return model.to(torch.device(self._device)), flatten(model, self.manifest.adapter)

    def evaluate(self, vector: Vector) -> Matrix:
        """Confusion matrix of the model at `vector` on the public test file."""
        return self.compare("", vector, 0).confusion

    def compare(self, name: str, vector: Vector, samples_seen: int) -> Comparison:
        """The model at `vector` on the public test file."""
        model, _ = self.start()
        load_flat(model, self.manifest.adapter, vector)
        return self._comparison(name, model, samples_seen)

    def _comparison(self, name: str, model: nn.Module, samples_seen: int) -> Comparison:
        logits, truth = predict(model, self.test), self.test["labels"].numpy()
        confusion = _confusion(logits, truth)
        return Comparison(name, confusion, samples_seen, twice_wins(log_odds(logits), truth))

    def federated(self, rng: Csprng, *, private: bool) -> Comparison:
        """Federated averaging of all hospitals in every round.

        Without `private`: no clip and no noise, the same plans otherwise. With it: what the federation computes over
        the wire, but for the masks (which cancel) and the rounding of the aggregate; for benchmarks over many seeds.
        """
        return self._run("federated, DP" if private else "federated, no DP", self.sites, rng, private)

    def alone_with_dp(self, site: int, rng: Csprng) -> Comparison:
        """Hospital `site` (from 0) by itself, with what it trains in the federation: the same events, the same ε."""
        return self._run(f"hospital {site + 1} alone, DP", self.sites[site : site + 1], rng, private=True)

    def majority(self) -> Comparison:
        """The label that is most frequent over all training records, given to every test record."""
        labels = len(self.manifest.training.labels)
        counts = sum(torch.bincount(site["labels"], minlength=labels) for site in self.sites)
        confusion = np.zeros((labels, labels), dtype=np.int64)
        truth = torch.bincount(self.test["labels"], minlength=labels).numpy()
        confusion[:, int(torch.as_tensor(counts).argmax())] = truth
        return Comparison("majority class", confusion, 0)

    def all(self, threads: int = 2) -> tuple[Comparison, ...]:
        """Majority class, federated without DP, every hospital alone; up to `threads` at once, one core each."""
        jobs: list[Callable[[], Comparison]] = [partial(self.federated, Csprng.from_os(), private=False)]
        jobs += [partial(self.alone_with_dp, site, Csprng.from_os()) for site in range(len(self.sites))]
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return (self.majority(), *(future.result() for future in [pool.submit(job) for job in jobs]))

    def _run(self, name: str, sites: Sequence[Dataset], rng: Csprng, private: bool) -> Comparison:
        adapter, rounds = self.manifest.adapter, self.manifest.training.rounds
        plan = plan_of(self.manifest)
        if not private:
            plan = replace(plan, mechanism=None)
        model, vector = self.start()
        seen = 0
        for _ in range(rounds):
            change = np.zeros(adapter.size, dtype=np.float64)
            for site in sites:
                load_flat(model, adapter, vector)
                seen += train(model, site, plan, rng, self._device).records_seen
                change += flatten(model, adapter) - vector
            vector = (vector + change / len(sites)).astype(np.float32)
        load_flat(model, adapter, vector)
        return self._comparison(name, model, seen)


def evaluate(model: nn.Module, test: Dataset) -> Matrix:
    """Confusion matrix (labels, labels), int64: row = truth, column = prediction. Leaves the model's mode as it was."""
    return _confusion(predict(model, test), test["labels"].numpy())


def _confusion(logits: Vector, truth: npt.NDArray[np.int64]) -> Matrix:
    confusion = np.zeros((logits.shape[1], logits.shape[1]), dtype=np.int64)
    np.add.at(confusion, (truth, logits.argmax(axis=1)), 1)
    return confusion


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


def accuracy(confusion: Matrix) -> float:
    """Share of test records on the diagonal, in [0, 1]."""
    return float(np.trace(confusion) / max(1, confusion.sum()))


def macro_f1(confusion: Matrix) -> float:
    """Mean over the labels that occur in the test file of 2·TP / (2·TP + FP + FN), in [0, 1]."""
    hits = np.diag(confusion)
    truth, called = confusion.sum(axis=1), confusion.sum(axis=0)
    scores = 2 * hits[truth > 0] / (truth + called)[truth > 0]
    return float(scores.mean()) if scores.size else 0.0
