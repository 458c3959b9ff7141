"""A federation in one process, and what it is compared with: on the same records, start, plan and server step.

- federated: what the wire computes, but for the masks, which cancel, and the clip of outliers at the encoding's bound
- local noise: under R2's plan, every site adds the whole noise (protocol R1 with one step a round)
- centralised: the union of the records in one place, the same q, noise and number of steps, so the same ε
- alone: one site's records, the same again; a part of the samples, or in more rounds as many, with noise for the same ε
- each of them without DP: neither clip nor noise

Only a site alone in no more rounds sees fewer samples in the mean. For benchmarks and tables; a real consortium can
compute only the first one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dp.accountant import calibrate
from dp.errors import UnsupportedMechanismError
from dp.mechanism import GaussianMechanism
from dp.objective import IDS, Dataset
from dp.sampling import Csprng
from dp.training import DpSgdPlan
from ffm.adapters import AggregationError, Vector, aggregation_error, load_flat
from ffm.data import Record
from ffm.errors import AdapterError
from ffm.learner import Learner, Update, plan_of
from ffm.plan import attempt_mechanism
from ffm.scores import Reals
from ffm.step import Model, initial_model, next_model, parameters_of
from ffm.tasks import Scores
from ffm.tasks.finetune import predict
from protocol.manifest import Manifest

Who = Literal["federated", "centralised"] | int  # all sites, the union of their records, or one site (from 0) alone
OnRound = Callable[[int, Model], None]
OnUpdates = Callable[[Model, Sequence[Update], Sequence[Vector]], None]  # parameters before; personal tensors after
Step = Callable[[Model, NDArray[np.int64], int, Manifest], Model]  # as `ffm.step.next_model`, which clients recompute


def _ignore(*_: object) -> None:
    """Nobody looks."""


@dataclass(frozen=True, slots=True)
class Personalised:
    """The shared model, and the personal tensors of every site beside it."""

    model: Model = field(repr=False)
    personal: tuple[Vector, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Federation:
    """A manifest's model and the records of every site, tokenised once. One thread at a time: all share the model."""

    learner: Learner
    sites: tuple[Dataset, ...] = field(repr=False)
    start: Model = field(repr=False)
    personal_start: Vector = field(repr=False)  # of the tensors that stay at a site; mostly empty
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
        return cls(learner, tuple(learner.tensors(site) for site in sites), start, learner.personal())

    @property
    def manifest(self) -> Manifest:
        """What all train by."""
        return self.learner.manifest

    def federated(self, rng: Csprng, private: bool = True, on_round: OnRound = _ignore) -> Model:
        """All sites, every round. What is personal stays at the sites: see `personalised`."""
        return self._learn(self.sites, self._plan(private), rng, on_round).model

    def personalised(self, rng: Csprng, private: bool = True) -> Personalised:
        """As federated, with what each site keeps."""
        return self._learn(self.sites, self._plan(private), rng)

    def with_errors(self, rng: Csprng, private: bool = True) -> tuple[Personalised, tuple[AggregationError, ...]]:
        """As personalised, and of every round what averaging did to the products of the sites' matrices.

        Raises AdapterError E507 under R2, whose sites have no adapters of their own: their gradients are summed; and
        under C with a rotation, whose sites send no single adapter.
        """
        rotated = self.manifest.aggregation.rotation is not None
        if self.manifest.privacy.protocol == "R2" or rotated:
            what = "sites that sum gradients or rotate have no adapters of their own to average"
            found = self.manifest.privacy.protocol + (", rotated" if rotated else "")
            raise AdapterError(what, found=found, expected="R1, C or none, not rotated", code="E507")
        errors: list[AggregationError] = []
        adapter, scale = self.manifest.adapter, float(self.manifest.aggregation.scale)

        def measure(parameters: Model, updates: Sequence[Update], personal: Sequence[Vector]) -> None:
            differences = [u / scale if u.dtype == np.int64 else u for u in updates]
            shared = [(parameters + d).astype(np.float32) for d in differences]
            errors.append(aggregation_error(self.learner.model, adapter, list(zip(shared, personal, strict=True))))

        return self._learn(self.sites, self._plan(private), rng, on_updates=measure), tuple(errors)

    def local_noise(self, rng: Csprng) -> Model:
        """As federated, but every site adds the whole noise."""
        return self._learn(self.sites, self._whole(self._plan(True)), rng).model

    def centralised(self, rng: Csprng, private: bool = True, on_round: OnRound = _ignore) -> Model:
        """The union of the records at one place. Under R1 and none a client divides by what one site expects."""
        plan = self._plan_of_one(private)
        if self.manifest.privacy.protocol != "R2":
            plan = replace(plan, expected_batch=plan.expected_batch * len(self.sites))
        return self._learn((union(self.sites),), plan, rng, on_round).model

    def alone(
        self, site: int, rng: Csprng, private: bool = True, on_round: OnRound = _ignore, rounds: int | None = None
    ) -> Model:
        """One site, from 0, by itself. Under R2 the step divides by what all sites expect: without noise, against which
        nothing else counts, its sum is taken as many times as there are sites.

        `rounds`: in place of the manifest's, such as `rounds_alone`; with the noise that then spends the whole budget.
        """
        times = len(self.sites) if self.manifest.privacy.protocol == "R2" and not private else 1
        plan = self._plan_of_one(private)
        if rounds is not None and plan.mechanism is not None:
            plan = self._renoised(plan, plan.mechanism, rounds)
        return self._learn((self.sites[site],), plan, rng, on_round, times=times, rounds=rounds).model

    def learned_by(self, who: Who, rng: Csprng, private: bool = True, on_round: OnRound = _ignore) -> Model:
        """`federated`, `centralised` or `alone`."""
        if isinstance(who, int):
            return self.alone(who, rng, private, on_round)
        learn = self.federated if who == "federated" else self.centralised
        return learn(rng, private, on_round)

    def scores(self, model: Model, test: Dataset, personal: Vector | None = None) -> Scores:
        """How the task judges `model`, with a site's personal tensors or, without them, with those of the start."""
        self.learner.put_personal(self.personal_start if personal is None else personal)
        return self.learner.scores(parameters_of(model, self.manifest), test)

    def site_scores(self, trained: Personalised, tests: Sequence[Dataset]) -> tuple[tuple[Scores, Scores], ...]:
        """For each site the global model and the site's own, side by side, on the site's test set."""
        return tuple(
            (self.scores(trained.model, test), self.scores(trained.model, test, personal))
            for personal, test in zip(trained.personal, tests, strict=True)
        )

    def odds(self, model: Model, records: Sequence[Record]) -> Reals:
        """Log odds of the second of two labels, one per record."""
        self.learner.put_personal(self.personal_start)
        load_flat(self.learner.model, self.manifest.adapter, parameters_of(model, self.manifest))
        logits = predict(self.learner.model, self.learner.tensors(records)).astype(np.float64)
        return np.asarray(logits[:, 1] - logits[:, 0])

    def samples(self, who: Who = "federated", rounds: int | None = None) -> int:
        """Samples that all rounds, or so many, see in the mean."""
        return mean_samples(self.manifest, rounds or self.manifest.training.rounds, self._records(who))

    def rounds_alone(self, site: int) -> int:
        """Rounds in which a site by itself sees as many samples as all of them together in the manifest's."""
        return math.ceil(self.manifest.training.rounds * self._records("federated") / self._records(site))

    def _records(self, who: Who) -> int:
        seen = self.sites[who : who + 1] if isinstance(who, int) else self.sites
        return sum(len(site[IDS]) for site in seen)

    def _plan(self, private: bool) -> DpSgdPlan:
        plan = plan_of(self.manifest)
        return plan if private else replace(plan, mechanism=None, client=None)

    def _plan_of_one(self, private: bool) -> DpSgdPlan:
        """Raises AdapterError E507 where something is personal: alone, a party shares all of it with itself."""
        if self.manifest.adapter.personal:
            raise AdapterError(
                "one party alone has no personal tensors",
                found=f"{self.manifest.adapter.method} with {len(self.manifest.adapter.personal)} of them",
                expected="a method that shares all",
                do="compare with lora, without personal_head: it trains the same tensors",
                code="E507",
            )
        return self._whole(self._plan(private))

    def _whole(self, plan: DpSgdPlan) -> DpSgdPlan:
        """The plan with all the noise in one place. Raises UnsupportedMechanismError under C: one party has no whole
        clients."""
        if plan.client is not None:
            found = "one place"
            raise UnsupportedMechanismError("client-level noise is for many clients", found=found, expected="R1 or R2")
        if plan.mechanism is None:
            return plan
        rotated = None if plan.rotated is None else replace(plan.rotated, noise=replace(plan.rotated.noise, shares=1))
        return replace(plan, mechanism=replace(plan.mechanism, shares=1), rotated=rotated)

    def _renoised(self, plan: DpSgdPlan, mechanism: GaussianMechanism, rounds: int) -> DpSgdPlan:
        """One place's plan with the least noise whose ε for so many rounds is within the budget. Raises AccountingError
        where there is none, UnsupportedMechanismError under a rotation."""
        if plan.rotated is not None:
            raise UnsupportedMechanismError("other noise under a rotation", found="hadamard", expected="no rotation")
        p, attempt = self.manifest.privacy, attempt_mechanism(self.manifest)
        wanted = replace(attempt, count=attempt.count * rounds, shares=1)
        noise = calibrate(Decimal(p.epsilon), Decimal(p.delta), wanted)
        return replace(plan, mechanism=replace(mechanism, noise_steps=noise))

    def _learn(
        self,
        sites: Sequence[Dataset],
        plan: DpSgdPlan,
        rng: Csprng,
        on_round: OnRound = _ignore,
        on_updates: OnUpdates = _ignore,
        times: int = 1,
        rounds: int | None = None,
    ) -> Personalised:
        model, personal = self.start, [self.personal_start] * len(sites)
        scale = float(self.manifest.aggregation.scale)
        for round_ in range(1, (rounds or self.manifest.training.rounds) + 1):
            parameters = parameters_of(model, self.manifest)
            total = np.zeros(self.manifest.vector_length, dtype=np.int64)
            updates = []
            for place, site in enumerate(sites):
                self.learner.put_personal(personal[place])
                update = self.learner.update(parameters, site, plan, rng, round_)
                personal[place] = self.learner.personal()
                total += np.rint(update if update.dtype == np.int64 else update * scale).astype(np.int64)
                updates.append(update)
            on_updates(parameters, updates, personal)
            model = self.step(model, times * total, len(sites), self.manifest)
            on_round(round_, model)
        return Personalised(model, tuple(personal))


def mean_samples(manifest: Manifest, rounds: int, records: int) -> int:
    """Samples that so many rounds see in the mean, of so many records."""
    return round(rounds * manifest.training.local_steps * manifest.privacy.sampling_probability * records)


def union(sites: Sequence[Dataset]) -> Dataset:
    """The records of all sites: of one width, as `Learner.tensors` pads them."""
    return {name: torch.cat([site[name] for site in sites]) for name in sites[0]}
