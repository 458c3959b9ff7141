"""What a federation is compared with, over the same training loop, split and number of samples.

- federated without DP: the average of the hospitals' deltas, same sampler, steps and rounds, no clip and no noise
- each hospital alone with DP: the same q, σ and number of steps as inside the federation, hence the same ε
- the majority class

All of it runs inside one process on data that the example owns; a real consortium cannot compute the first one.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dp.objective import Dataset
from dp.sampling import Csprng
from ffm.adapters import load_flat
from ffm.data import Record, read_records, tokenize
from ffm.federation import Federation
from ffm.learner import Learner
from ffm.local_setup import Compute
from ffm.models import load_tokenizer
from ffm.ranking import log_odds, twice_wins
from ffm.step import initial_model, parameters_of
from ffm.tasks.finetune import Matrix, confusion_of, predict
from protocol.manifest import Manifest

Vector = npt.NDArray[np.float32]
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
        labels, width = manifest.training.labels, manifest.training.max_length
        tokenizer = load_tokenizer(base_model)

        def tensors(records: Sequence[Record]) -> Dataset:
            return tokenize(tokenizer, records, labels, width)

        self.sites = tuple(tensors(read_records(path, labels)) for path in site_files)
        self.test = tensors(read_records(test_file, labels))

    def start(self) -> tuple[Learner, Vector]:
        """A fresh learner and the flat vector that round 1 starts from."""
        with _LOADING:
            learner = Learner.load(self.manifest, self.base_model, Compute(self._device))
        return learner, learner.initial()

    def evaluate(self, vector: Vector) -> Matrix:
        """Confusion matrix of the model at `vector` on the public test file."""
        return self.compare("", vector, 0).confusion

    def compare(self, name: str, vector: Vector, samples_seen: int) -> Comparison:
        """The model at `vector` on the public test file."""
        learner, _ = self.start()
        load_flat(learner.model, self.manifest.adapter, vector)
        return self._comparison(name, learner.model, samples_seen)

    def _comparison(self, name: str, model: nn.Module, samples_seen: int) -> Comparison:
        logits, truth = predict(model, self.test), self.test["labels"].numpy()
        confusion = confusion_of(logits, truth)
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
        learner, vector = self.start()
        federation = Federation(learner, tuple(sites), initial_model(vector, self.manifest), learner.personal())
        model = federation.federated(rng, private)
        load_flat(learner.model, self.manifest.adapter, parameters_of(model, self.manifest))
        return self._comparison(name, learner.model, federation.samples())
