"""What the evaluations share: a split that depends on the seed, a federation on it, and a trained model judged."""

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Final

from dp.objective import Dataset
from dp.sampling import Csprng
from ffm.data import Record
from ffm.evaluate.study import NO_DP, Row
from ffm.federation import Federation
from ffm.learner import Learner
from ffm.local_setup import CPU, Compute
from ffm.models import locate
from ffm.step import Model
from ffm.task import TaskSettings, build_manifest
from protocol.manifest import Manifest, TrainingSpec

_TRAIN_SAMPLE = 600  # records of all sites together for the training score, at most: else as many as are held out
ALONE: Final = "alone"
AS_MANY: Final = ", as many samples"
MORE: Final = (
    f"'best {ALONE}{AS_MANY}': that site again, in more rounds, until it has seen as many samples as all sites "
    "together; with DP for the same ε, with more noise."
)
_LEAST = 10  # held-out records of a site for a score of its own

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of an evaluation. `quick`: small and few; everything runs, and no figure is evidence."""

    seeds: Sequence[int]
    quick: bool
    say: Say
    compute: Compute = CPU

    def alone(self, sites: int) -> range:
        """Who trains alone, by place from 0: every site, in a quick run the first."""
        return range(1 if self.quick else sites)


@dataclass(frozen=True, slots=True)
class Split:
    """Records by site, held-out records of all, and held-out records by site where the source has them."""

    sites: Mapping[str, tuple[Record, ...]]
    test: tuple[Record, ...]
    tests: Mapping[str, tuple[Record, ...]]


def seeded(settings: TaskSettings, seed: int) -> TaskSettings:
    """Another draw of split, partition and start values."""
    data = settings.data.model_copy(update={"seed": seed})
    return settings.model_copy(update={"data": data, "adapter_seed": settings.adapter_seed + seed})


def split_of(settings: TaskSettings, training: TrainingSpec) -> Split:
    """The records that the settings' source writes."""
    task = settings.find_task()
    with tempfile.TemporaryDirectory() as folder:
        written = settings.data.write(Path(folder))

        def read(path: Path) -> tuple[Record, ...]:
            return task.read(path, training)

        sites = {name: read(path) for name, path in written.sites.items()}
        return Split(sites, read(written.test), {name: read(path) for name, path in written.tests.items()})


def without_dp(settings: TaskSettings) -> TaskSettings:
    """The same plan under protocol "none": neither clip nor noise."""
    privacy = settings.privacy.model_copy(update={"protocol": "none"})
    models = {name: model.model_copy(update={"noise_steps": 0}) for name, model in settings.models.items()}
    return settings.model_copy(update={"privacy": privacy, "models": models})


@dataclass(slots=True)
class Arms:
    """One manifest on one split: trains and judges."""

    federation: Federation
    split: Split = field(repr=False)
    names: tuple[str, ...]
    test: Dataset = field(repr=False)
    tests: Mapping[str, Dataset] = field(repr=False)
    trained: tuple[Dataset, ...] = field(repr=False)  # a sample of each site's own records
    seed: int

    @classmethod
    def load(
        cls, settings: TaskSettings, model: str, seed: int, split: Split | None = None, compute: Compute = CPU
    ) -> "Arms":
        """Build manifest, model and tensors; `split`: as another arm drew it. Raises as `ffm.learner`."""
        manifest = build_manifest(settings, model)
        split = split or split_of(settings, manifest.training)
        learner = Learner.load(manifest, locate(settings.model(model).base_model), compute)
        federation = Federation.of(learner, list(split.sites.values()))
        tests = {name: learner.tensors(records) for name, records in split.tests.items() if len(records) >= _LEAST}
        each = max(1, min(_TRAIN_SAMPLE, len(split.test)) // len(split.sites))
        trained = tuple(learner.tensors(records[:each]) for records in split.sites.values())
        return cls(federation, split, tuple(split.sites), learner.tensors(split.test), tests, trained, seed)

    @property
    def manifest(self) -> Manifest:
        """What all train by."""
        return self.federation.manifest

    def rng(self, *parts: object) -> Csprng:
        """Pinned by seed and name, so that a table can be made again; a real client seeds from the system."""
        return pinned(self.seed, self.manifest.task, self.manifest.adapter.method, *parts)

    def privacy(self, private: bool) -> str:
        """As rows name it."""
        p = self.manifest.privacy
        return f"{p.protocol}, ε = {p.epsilon}" if private else NO_DP

    def row(
        self,
        method: str,
        privacy: str,
        learn: Callable[[], Model],
        site: int | None = None,
        wire: bool = True,
        rounds: int | None = None,
    ) -> Row:
        """Train by `learn` and judge. `site`: who trained alone; `wire`: whether something travels; `rounds`: of
        `learn`, where they are not the manifest's."""
        began = time.perf_counter()
        model = learn()
        seconds = time.perf_counter() - began
        federation, key = self.federation, self.federation.learner.task.headline
        own = self.trained if site is None else (self.trained[site],)
        by_site = {name: federation.scores(model, test)[key] for name, test in self.tests.items()}
        others = [score for name, score in by_site.items() if site is not None and name != self.names[site]]
        better = max if federation.learner.task.lower_is_better else min
        return Row(
            method=method,
            privacy=privacy,
            seed=self.seed,
            scores=federation.scores(model, self.test),
            train=mean(federation.scores(model, part)[key] for part in own),
            outside=mean(others) if others else float("nan"),
            worst=better(by_site.values()) if by_site else float("nan"),
            samples=federation.samples("federated" if site is None else site, rounds),
            bytes_up=upload_bytes(self.manifest) if wire else 0,
            bytes_down=download_bytes(self.manifest) if wire else 0,
            seconds=seconds,
            site="" if site is None else self.names[site],
        )

    def federated(self, method: str, private: bool) -> Row:
        """All sites together."""
        return self.row(
            method, self.privacy(private), lambda: self.federation.federated(self.rng("federated", private), private)
        )

    def centralised(self, private: bool, method: str = "centralised") -> Row:
        """All records in one place."""
        return self.row(
            method,
            self.privacy(private),
            lambda: self.federation.centralised(self.rng("centralised", private), private),
            wire=False,
        )

    def alone(self, sites: Sequence[int], private: bool, method: str = ALONE) -> list[Row]:
        """Each of these sites by itself; and the one that does best again, for as many samples as all sites see."""
        rows = [self._alone(site, private, method) for site in sites]
        task = self.federation.learner.task
        best = best_alone(rows, task.headline, task.lower_is_better, method)[0]
        site = self.names.index(best.site)
        return [*rows, self._alone(site, private, best.method + AS_MANY, self.federation.rounds_alone(site))]

    def _alone(self, site: int, private: bool, method: str, rounds: int | None = None) -> Row:
        rng = self.rng("alone", site, private, *([] if rounds is None else [rounds]))
        return self.row(
            method,
            self.privacy(private),
            lambda: self.federation.alone(site, rng, private, rounds=rounds),
            site,
            wire=False,
            rounds=rounds,
        )


def pinned(*parts: object) -> Csprng:
    """A generator that only `parts` decide."""
    return Csprng(hashlib.sha256(repr(parts).encode()).digest())


def upload_bytes(manifest: Manifest) -> int:
    """Words of one client's masked input, without header and frames."""
    params = manifest.secagg_params()
    return 8 * params.encoding.words_for(params.vector_length)


def download_bytes(manifest: Manifest) -> int:
    """The published sum; the next model is computed from it."""
    return 4 * manifest.adapter.size


def best_alone(rows: Sequence[Row], key: str, lower: bool, method: str = ALONE) -> list[Row]:
    """Of each seed the single site that does best on everybody's held-out records: the strongest opponent. `method`: of
    the single sites' rows; "alone" in it becomes "best alone"."""
    alone = [row for row in rows if row.method == method]
    best, name = min if lower else max, method.replace(ALONE, f"best {ALONE}")
    return [
        replace(best((r for r in alone if (r.seed, r.privacy) == pair), key=lambda r: r.headline(key)), method=name)
        for pair in dict.fromkeys((row.seed, row.privacy) for row in alone)
    ]
