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

from dp.client_level import ClientMechanism
from dp.errors import PrivacyError
from dp.mechanism import GaussianMechanism
from dp.objective import IDS, IGNORED, LABELS, Dataset, Objective
from dp.sampling import Csprng
from dp.training import NOT_FINITE, DpSgdPlan, check, noised_sum, train
from ffm.adapters import (
    build_from_spec,
    check_vector,
    flatten,
    flatten_personal,
    load_flat,
    load_personal,
    only_moving,
    refuse,
)
from ffm.compute import HalfPrecision, check_device, prepared
from ffm.data import Record
from ffm.errors import NO_NUMBERS, AdapterError, DataError
from ffm.local_setup import CPU, Compute
from ffm.models import check_context, load_tokenizer, vocabulary
from ffm.plan import client_mechanism, rotated_sum, rotation_of
from ffm.tasks import Scores, Task, find
from protocol.manifest import Manifest

Vector = np.ndarray[Any, np.dtype[np.float32]]
Update = Vector | np.ndarray[Any, np.dtype[np.int64]]

PHYSICAL_BATCH = 64  # records per forward pass at most; fastest on one core, and no part of what is computed
_DP_BATCH = 16  # the same with DP, where texts of other lengths are in other passes, and each is filled up
_PASSES = 4  # that an expected sample fills then, at least
_VALUES = 2**25  # gradients, or logits of a language model, of one forward pass: large ones take smaller batches


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
        max_physical_batch=_records_a_pass(manifest),
        rotated=rotated_sum(manifest),
        client=client_mechanism(manifest) if privacy.protocol == "C" else None,
        proximal=float(training.proximal),
    )


def _records_a_pass(manifest: Manifest) -> int:
    """By what is public alone: with DP a real count must not choose the shape that records are computed in."""
    fitting = min(PHYSICAL_BATCH, max(1, _VALUES // manifest.adapter.size))
    if manifest.privacy.protocol not in ("R1", "R2"):
        return fitting
    sites = manifest.aggregation.num_clients if manifest.privacy.protocol == "R2" else 1
    return max(1, min(fitting, _DP_BATCH, manifest.training.expected_batch // (_PASSES * sites)))


@dataclass(frozen=True, slots=True)
class Learner:
    """A loaded model with its adapter. Every call starts at the vector that it is given, and at the personal tensors as
    they stand: `put_personal` before it, `personal` after it."""

    manifest: Manifest
    task: Task
    model: nn.Module = field(repr=False)
    tokenizer: Any = field(repr=False)
    compute: Compute = CPU

    @classmethod
    def load(
        cls, manifest: Manifest, base_model: Path, compute: Compute = CPU, task_file: Path | None = None
    ) -> "Learner":
        """Build the model of `manifest` from the folder `base_model`, whose digests the caller has checked.

        Raises the errors of `ffm.tasks`, `ffm.models`, `ffm.adapters` and `ffm.compute`.
        """
        check_device(compute.device)
        task = find(manifest.training.task, task_file)
        refuse(manifest)
        base = task.load(base_model, manifest.training, manifest.adapter.seed)
        check_context(base, manifest.training.max_length + manifest.adapter.virtual_tokens)
        # The adapter is built on the CPU and moved as a whole; hooks are attached later, by `train`.
        model = build_from_spec(base, manifest.adapter, task.peft_type).to(torch.device(compute.device))
        prepared(model, base, manifest, compute)
        return cls(manifest, task, model, load_tokenizer(base_model), compute)

    def initial(self) -> Vector:
        """The flat vector as it stands; right after `load`, what the manifest's seed gives."""
        return flatten(self.model, self.manifest.adapter)

    def put(self, vector: Vector) -> None:
        """Set the shared tensors. Raises on NaN or wrong shapes."""
        load_flat(self.model, self.manifest.adapter, vector)

    def personal(self) -> Vector:
        """The personal tensors as they stand; right after `load`, what the manifest's seed gives. Often empty."""
        return flatten_personal(self.model, self.manifest.adapter)

    def put_personal(self, vector: Vector) -> None:
        """What the next `update` or `scores` starts from. Raises on NaN or wrong shapes."""
        load_personal(self.model, self.manifest.adapter, vector)

    def tensors(self, records: Sequence[Record]) -> Dataset:
        """The records as the task wants them, padded to what the manifest allows, so that no record's length shows in
        another's tensors. Raises DataError E514 where there are none."""
        if not records:
            raise DataError(
                "a site without records",
                found=0,
                expected="at least one record",
                do="leave the site out, or give it data",
                code="E514",
            )
        return self._padded(self.task.tensors(self.tokenizer, records, self.manifest.training))

    def _padded(self, dataset: Dataset) -> Dataset:
        width = dataset[IDS].shape[1]
        fill = {IDS: self.tokenizer.pad_token_id or 0, LABELS: IGNORED}
        more = (0, max(0, self.manifest.training.max_length - width))
        return {
            name: nn.functional.pad(field, more, value=fill.get(name, 0))
            if field.ndim == 2 and field.shape[1] == width
            else field
            for name, field in dataset.items()
        }

    def check(self, dataset: Dataset) -> None:
        """Raise what training on these tensors would refuse: a label out of range (PrivacyError E226), an adapter that
        trains nothing (E229), a task that couples records (E225); now, while nothing is drawn or charged."""
        check(self.model, dataset, self.task)

    def update(self, vector: Vector, dataset: Dataset, plan: DpSgdPlan, rng: Csprng, round_: int) -> Update:
        """One round: start at `vector`, train by `plan`, give trained minus global (float32); in grid steps (int64)
        under protocol R2 the noised sum of gradients at `vector`, under C the bounded and noised difference. Raises on
        wrong shapes, and on NaN but under C, where such an update counts as zero."""
        load_flat(self.model, self.manifest.adapter, vector)
        fitting = min(plan.max_physical_batch, self._fitting(dataset))
        plan = replace(plan, max_physical_batch=self.compute.physical_batch or fitting)
        objective = self._objective()
        with only_moving(self.model, self.manifest.adapter, round_) as moving:
            if self.manifest.privacy.protocol == "R2":
                if plan.mechanism is not None:
                    return _spread(noised_sum(self.model, dataset, plan, rng, objective), moving)
                plan = replace(plan, learning_rate=1.0)
            if plan.client is not None:
                return as_share(self.plain_change(vector, dataset, plan, rng), plan.client, moving, rng)
            train(self.model, dataset, plan, rng, objective)
        change = flatten(self.model, self.manifest.adapter) - vector
        check_vector(change, self.manifest.adapter)
        if self.manifest.privacy.protocol == "R2":  # a comparison without DP: the plain sum, on the same grid
            steps = np.rint(-change.astype(np.float64) * plan.expected_batch * self.manifest.privacy.scale)
            total = steps.astype(np.int64)
            return total if plan.rotated is None else plan.rotated.released(total, rng)
        if (rotation := rotation_of(self.manifest)) is not None:  # likewise under C
            return np.rint(rotation.of_reals(change * float(self.manifest.privacy.scale))).astype(np.int64)
        return change

    def plain_change(self, vector: Vector, dataset: Dataset, plan: DpSgdPlan, rng: Csprng) -> Vector:
        """Trained minus global, un-noised, from a model that stands at `vector`; NaN where training broke down, which
        nobody outside may see."""
        try:
            train(self.model, dataset, plan, rng, self._objective())
            return flatten(self.model, self.manifest.adapter) - vector
        except (PrivacyError, AdapterError) as error:
            if error.code not in (NOT_FINITE, NO_NUMBERS):
                raise
            return np.full_like(vector, np.nan)

    def scores(self, vector: Vector, test: Dataset) -> Scores:
        """How the task judges the model at `vector`."""
        load_flat(self.model, self.manifest.adapter, vector)
        return self.task.scores(self.model, test)

    def _fitting(self, dataset: Dataset) -> int:
        """Records of which the logits of one forward pass fit into memory. The width is public: see `tensors`."""
        logits = int(dataset[IDS].shape[1]) * vocabulary(self.model)
        return _VALUES // max(1, logits) or 1

    def _objective(self) -> Objective:
        if self.compute.precision == "float32":
            return self.task
        return HalfPrecision(self.task, torch.device(self.compute.device).type)


def as_share(
    change: Vector, mechanism: ClientMechanism, moving: np.ndarray[Any, np.dtype[np.bool_]], rng: Csprng
) -> Update:
    """Protocol C: a client's whole change, bounded and noised; NaN counts as zero."""
    return _spread(mechanism.privatize(change[moving], rng), moving)


def _spread(values: np.ndarray[Any, np.dtype[np.int64]], moving: np.ndarray[Any, np.dtype[np.bool_]]) -> Update:
    """Into the whole flat vector: what stands still in this round has no update and no noise. A rotated vector is whole
    as it is: nothing stands still in it."""
    if moving.all():
        return values
    total = np.zeros(len(moving), dtype=np.int64)
    total[moving] = values
    return total
