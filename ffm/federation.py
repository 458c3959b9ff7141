"""A federation in one process, and what it is compared with: on the same records, start, plan and server step.

- federated: what the wire computes, but for the masks, which cancel, and the clip of outliers at the encoding's bound
- local noise: under R2's plan, every site adds the whole noise (protocol R1 with one step a round)
- centralised: the union of the records in one place, the same q, noise and number of steps, so the same ε
- alone: one site's records, the same again
- each of them without DP: neither clip nor noise

All see as many samples in the mean. For benchmarks and tables; a real consortium can compute only the first one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dp.errors import UnsupportedMechanismError
from dp.mechanism import GaussianMechanism
from dp.objective import Dataset
from dp.sampling import Csprng
from dp.training import DpSgdPlan
from ffm.adapters import load_flat
from ffm.data import Record
from ffm.learner import Learner, plan_of
from ffm.scores import Reals
from ffm.step import Model, initial_model, next_model, parameters_of
from ffm.tasks import Scores
from ffm.tasks.finetune import predict
from protocol.manifest import Manifest

OnRound = Callable[[int, Model], None]
Step = Callable[[Model, NDArray[np.int64], int, Manifest], Model]  # as `ffm.step.next_model`, which clients recompute


def _ignore(round_: int, model: Model) -> None:
    """Nobody looks."""


@dataclass(frozen=True, slots=True)
class Federation:
    """A manifest's model and the records of every site, tokenised once. One thread at a time: all share the model."""

    learner: Learner
    sites: tuple[Dataset, ...] = field(repr=False)
    start: Model = field(repr=False)
    step: Step = next_model

    @classmethod
    def load(
        cls, manifest: Manifest, base_model: Path, sites: Sequence[Sequence[Record]], task_file: Path | None = None
    ) -> "Federation":
        """Build model and tensors. Raises the errors of `ffm.learner` and of the task."""
        return cls.of(Learner.load(manifest, base_model, task_file=task_file), sites)

    @classmethod
    def of(cls, learner: Learner, sites: Sequence[Sequence[Record]]) -> "Federation":
        """The records of every site for a learner that stands at its start."""
        start = initial_model(learner.initial(), learner.manifest)
        return cls(learner, tuple(learner.tensors(site) for site in sites), start)

    @property
    def manifest(self) -> Manifest:
        """What all train by."""
        return self.learner.manifest

    def federated(self, rng: Csprng, private: bool = True, on_round: OnRound = _ignore) -> Model:
        """All sites, every round."""
        return self._learn(self.sites, self._plan(private), rng, on_round)

    def local_noise(self, rng: Csprng) -> Model:
        """As federated, but every site adds the whole noise."""
        return self._learn(self.sites, replace(self._plan(True), mechanism=self._mechanism()), rng, _ignore)

    def centralised(self, rng: Csprng, private: bool = True, on_round: OnRound = _ignore) -> Model:
        """The union of the records at one place. Under R1 and none a client divides by what one site expects."""
        plan = self._plan(private)
        if plan.mechanism is not None or plan.client is not None:
            plan = replace(plan, mechanism=self._mechanism())
        if self.manifest.privacy.protocol != "R2":
            plan = replace(plan, expected_batch=plan.expected_batch * len(self.sites))
        return self._learn((union(self.sites),), plan, rng, on_round)

    def alone(self, site: int, rng: Csprng, private: bool = True) -> Model:
        """One site, from 0, by itself."""
        plan = self._plan(private)
        if plan.mechanism is not None or plan.client is not None:
            plan = replace(plan, mechanism=self._mechanism())
        return self._learn((self.sites[site],), plan, rng, _ignore)

    def scores(self, model: Model, test: Dataset) -> Scores:
        """How the task judges `model`."""
        return self.learner.scores(parameters_of(model, self.manifest), test)

    def odds(self, model: Model, records: Sequence[Record]) -> Reals:
        """Log odds of the second of two labels, one per record."""
        load_flat(self.learner.model, self.manifest.adapter, parameters_of(model, self.manifest))
        logits = predict(self.learner.model, self.learner.tensors(records)).astype(np.float64)
        return np.asarray(logits[:, 1] - logits[:, 0])

    def samples(self, records: int | None = None) -> int:
        """Samples that all rounds see in the mean, of `records` (default: those of all sites)."""
        training, q = self.manifest.training, self.manifest.privacy.sampling_probability
        count = sum(len(site["input_ids"]) for site in self.sites) if records is None else records
        return round(training.rounds * training.local_steps * q * count)

    def _plan(self, private: bool) -> DpSgdPlan:
        plan = plan_of(self.manifest)
        return plan if private else replace(plan, mechanism=None, client=None)

    def _mechanism(self) -> GaussianMechanism:
        """The whole noise in one place. Raises UnsupportedMechanismError under C: one party has no whole clients."""
        p = self.manifest.privacy
        if p.protocol == "C":
            found = "one place"
            raise UnsupportedMechanismError("client-level noise is for many clients", found=found, expected="R1 or R2")
        return GaussianMechanism(p.scale, p.clip_steps, p.noise_steps, 1)

    def _learn(self, sites: Sequence[Dataset], plan: DpSgdPlan, rng: Csprng, on_round: OnRound) -> Model:
        model = self.start
        scale = float(self.manifest.aggregation.scale)
        for round_ in range(1, self.manifest.training.rounds + 1):
            parameters = parameters_of(model, self.manifest)
            total = np.zeros(len(parameters), dtype=np.int64)
            for site in sites:
                update = self.learner.update(parameters, site, plan, rng, round_)
                total += np.rint(update if update.dtype == np.int64 else update * scale).astype(np.int64)
            model = self.step(model, total, len(sites), self.manifest)
            on_round(round_, model)
        return model


def union(sites: Sequence[Dataset]) -> Dataset:
    """The records of all sites, padded to one width."""
    width = max(site["input_ids"].shape[1] for site in sites)

    def padded(field_: torch.Tensor, own: int) -> torch.Tensor:
        tokens = field_.ndim == 2 and field_.shape[1] == own
        return nn.functional.pad(field_, (0, width - own)) if tokens else field_

    return {name: torch.cat([padded(site[name], site["input_ids"].shape[1]) for site in sites]) for name in sites[0]}
