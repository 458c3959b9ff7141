"""One party's training by a manifest: model, adapter and task, put together the same way wherever something is trained.

The training process of a client, the server's initial model, the comparisons and the audit all build on it, so none of
them can train by another plan than the signed one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dp.errors import PrivacyError
from dp.mechanism import GaussianMechanism
from dp.objective import Dataset
from dp.sampling import Csprng
from dp.training import NOT_FINITE, DpSgdPlan, noised_sum, train
from ffm.adapters import build_from_spec, check_vector, flatten, load_flat
from ffm.data import Record
from ffm.models import load_tokenizer
from ffm.plan import client_mechanism
from ffm.tasks import Scores, Task, find
from protocol.manifest import Manifest

Vector = np.ndarray[Any, np.dtype[np.float32]]
Update = Vector | np.ndarray[Any, np.dtype[np.int64]]

PHYSICAL_BATCH = 64  # records per forward pass; fastest on one core, and no part of what is computed


def plan_of(manifest: Manifest) -> DpSgdPlan:
    """The training plan of one round, from the signed manifest alone."""
    training, privacy = manifest.training, manifest.privacy
    mechanism = None
    if privacy.protocol in ("R1", "R2"):
        shares = manifest.noise_shares
        mechanism = GaussianMechanism(privacy.scale, privacy.clip_steps, privacy.noise_steps, shares)
    return DpSgdPlan(
        steps=training.local_steps,
        sampling_numerator=privacy.sampling_numerator,
        sampling_denominator=privacy.sampling_denominator,
        mechanism=mechanism,
        expected_batch=training.expected_batch,
        optimizer=training.optimizer,
        learning_rate=float(training.learning_rate),
        max_physical_batch=PHYSICAL_BATCH,
        client=client_mechanism(manifest) if privacy.protocol == "C" else None,
        proximal=float(training.proximal),
    )


@dataclass(frozen=True, slots=True)
class Learner:
    """A loaded model with its adapter. Every call starts at the vector that it is given."""

    manifest: Manifest
    task: Task
    model: nn.Module = field(repr=False)
    tokenizer: Any = field(repr=False)

    @classmethod
    def load(
        cls, manifest: Manifest, base_model: Path, device: str = "cpu", task_file: Path | None = None
    ) -> "Learner":
        """Build the model of `manifest` from the folder `base_model`, whose digests the caller has checked.

        Raises the errors of `ffm.tasks`, `ffm.models` and `ffm.adapters`.
        """
        task = find(manifest.training.task, task_file)
        base = task.load(base_model, manifest.training, manifest.adapter.seed)
        # The adapter is built on the CPU and moved as a whole; hooks are attached later, by `train`.
        model = build_from_spec(base, manifest.adapter, task.peft_type).to(torch.device(device))
        return cls(manifest, task, model, load_tokenizer(base_model))

    def initial(self) -> Vector:
        """The flat vector as it stands; right after `load`, what the manifest's seed gives."""
        return flatten(self.model, self.manifest.adapter)

    def tensors(self, records: Sequence[Record]) -> Dataset:
        """The records as the task wants them."""
        return self.task.tensors(self.tokenizer, records, self.manifest.training)

    def update(self, vector: Vector, dataset: Dataset, plan: DpSgdPlan, rng: Csprng, round_: int) -> Update:
        """One round: start at `vector`, train by `plan`, give trained minus global (float32); in grid steps (int64)
        under protocol R2 the noised sum of gradients at `vector`, under C the bounded and noised difference. Raises on
        wrong shapes, and on NaN but under C, where such an update counts as zero."""
        load_flat(self.model, self.manifest.adapter, vector)
        if self.manifest.privacy.protocol == "R2":
            if plan.mechanism is not None:
                return noised_sum(self.model, dataset, plan, rng, self.task)
            plan = replace(plan, learning_rate=1.0)
        if plan.client is not None:
            return plan.client.privatize(self.plain_change(vector, dataset, plan, rng), rng)
        train(self.model, dataset, plan, rng, self.task)
        change: Vector = flatten(self.model, self.manifest.adapter) - vector
        check_vector(change, self.manifest.adapter)
        if self.manifest.privacy.protocol == "R2":  # a comparison without DP: the plain sum, on the same grid
            return np.rint(-change.astype(np.float64) * plan.expected_batch * self.manifest.privacy.scale).astype(
                np.int64
            )
        return change

    def plain_change(self, vector: Vector, dataset: Dataset, plan: DpSgdPlan, rng: Csprng) -> Vector:
        """Trained minus global, un-noised, from a model that stands at `vector`; NaN where training broke down, which
        nobody outside may see."""
        try:
            train(self.model, dataset, plan, rng, self.task)
        except PrivacyError as error:
            if error.code != NOT_FINITE:
                raise
            return np.full_like(vector, np.nan)
        return flatten(self.model, self.manifest.adapter) - vector

    def scores(self, vector: Vector, test: Dataset) -> Scores:
        """How the task judges the model at `vector`."""
        load_flat(self.model, self.manifest.adapter, vector)
        return self.task.scores(self.model, test)
