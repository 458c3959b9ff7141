"""Ways to train on the same records by one noised gradient step a round, side by side: what R2 is compared with.

All share split, start, sampling probability, steps and server step, so all have the same ε and see as many samples:

- R2: every hospital adds a share of the noise, and the sum is released
- R1: every hospital adds the whole noise, and the sum is released
- centralised: the union of the records in one place, the whole noise once
- alone: one hospital's records, the whole noise
- no DP: the union, neither clip nor noise

The masks are left out: they cancel. Everything runs in one process on records that the example owns.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dp.mechanism import GaussianMechanism
from dp.sampling import Csprng
from dp.training import DpSgdPlan, noised_sum, train
from ffm.adapters import build_from_spec, flatten, load_flat
from ffm.data import Record, tokenize
from ffm.models import load_classifier, load_tokenizer
from ffm.step import Model, initial_model, next_model, parameters_of
from ffm.worker import plan_of
from protocol.manifest import Manifest

Dataset = Mapping[str, torch.Tensor]
Integers = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]
_EVALUATION_BATCH = 256


@dataclass(slots=True)
class Comparison:
    """A manifest, its model and the records of every site, tokenised once."""

    manifest: Manifest
    model: nn.Module = field(repr=False)
    start: Model = field(repr=False)
    sites: tuple[Dataset, ...] = field(repr=False)
    tokens: Callable[[Sequence[Record]], Dataset] = field(repr=False)

    @classmethod
    def load(cls, manifest: Manifest, base_model: Path, sites: Sequence[Sequence[Record]]) -> "Comparison":
        """Build model and tensors. Raises the errors of `ffm.models`, `ffm.adapters` and `ffm.data`."""
        training = manifest.training
        tokenizer = load_tokenizer(base_model)
        base = load_classifier(base_model, training.labels, manifest.adapter.seed)
        model = build_from_spec(base, manifest.adapter)

        def tokens(records: Sequence[Record]) -> Dataset:
            return tokenize(tokenizer, records, training.labels, training.max_length)

        start = initial_model(flatten(model, manifest.adapter), manifest)
        return cls(manifest, model, start, tuple(map(tokens, sites)), tokens)

    def distributed(self, rng: Csprng) -> Model:
        """R2."""
        return self._learn(self.sites, self._mechanism(self.manifest.noise_shares), rng)

    def local(self, rng: Csprng) -> Model:
        """R1 with one step a round."""
        return self._learn(self.sites, self._mechanism(1), rng)

    def centralised(self, rng: Csprng) -> Model:
        """DP-SGD on the union."""
        return self._learn((self._union(),), self._mechanism(1), rng)

    def alone(self, site: int, rng: Csprng) -> Model:
        """DP-SGD at one hospital, from 0."""
        return self._learn((self.sites[site],), self._mechanism(1), rng)

    def without_dp(self, rng: Csprng) -> Model:
        """The union, neither clip nor noise."""
        return self._learn((self._union(),), None, rng)

    def scores(self, model: Model, records: Sequence[Record]) -> Reals:
        """Log odds of the second label, one per record."""
        load_flat(self.model, self.manifest.adapter, parameters_of(model, self.manifest))
        data, mode = self.tokens(records), self.model.training
        self.model.eval()
        with torch.inference_mode():
            parts = [
                self.model(input_ids=data["input_ids"][rows], attention_mask=data["attention_mask"][rows]).logits
                for rows in torch.arange(len(records)).split(_EVALUATION_BATCH)  # type: ignore[no-untyped-call]
            ]
        self.model.train(mode)
        logits = torch.cat(parts).double().numpy()
        return np.asarray(logits[:, 1] - logits[:, 0])

    def _mechanism(self, shares: int) -> GaussianMechanism:
        p = self.manifest.privacy
        return GaussianMechanism(p.scale, p.clip_steps, p.noise_steps, shares)

    def _union(self) -> Dataset:
        width = max(site["input_ids"].shape[1] for site in self.sites)

        def padded(name: str, site: Dataset) -> torch.Tensor:
            tensor = site[name]
            return tensor if name == "labels" else nn.functional.pad(tensor, (0, width - tensor.shape[1]))

        return {name: torch.cat([padded(name, site) for site in self.sites]) for name in self.sites[0]}

    def _learn(self, sites: Sequence[Dataset], mechanism: GaussianMechanism | None, rng: Csprng) -> Model:
        plan, model = replace(plan_of(self.manifest), mechanism=mechanism), self.start
        for _ in range(self.manifest.training.rounds):
            parameters = parameters_of(model, self.manifest)
            total = np.zeros(len(parameters), dtype=np.int64)
            for site in sites:
                load_flat(self.model, self.manifest.adapter, parameters)
                total += self._sum(site, plan, parameters, rng)
            model = next_model(model, total, len(sites), self.manifest)
        return model

    def _sum(self, site: Dataset, plan: DpSgdPlan, parameters: Model, rng: Csprng) -> Integers:
        """The noised sum of one sample; without a mechanism the plain sum, on the same grid."""
        if plan.mechanism is not None:
            return noised_sum(self.model, site, plan, rng)
        train(self.model, site, replace(plan, learning_rate=1.0), rng)
        change = parameters - flatten(self.model, self.manifest.adapter).astype(np.float64)
        return np.rint(change * plan.expected_batch * self.manifest.privacy.scale).astype(np.int64)
