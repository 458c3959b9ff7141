"""A table's federation beside everything that one would try instead, on one split, and how each is judged.

AUC over all test rows and over those of each site; accuracy where the table's public share of the scores is called
positive. The plain baseline is ridge logistic regression on the table, without DP: it is printed where it wins, too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dp.report import MethodResult
from dp.report_facts import Method
from dp.sampling import Csprng
from ffm.data import Record
from ffm.federation import Federation
from ffm.ranking import twice_wins
from ffm.scores import Reals, accuracy_at_share, auc, called_at_share, logistic_regression
from ffm.step import Model
from ffm.tables import Row, Sites, SiteTable, pooled
from protocol.manifest import Manifest

ALL: Final = "all"
ACCURACY: Final = "accuracy"
NAMES: Final[Mapping[Method, str]] = {
    "federated-dp": "R2, this federation",
    "federated-dp-other-protocol": "R1, every site noises alone",
    "centralised-dp": "centralised, DP",
    "centralised-no-dp": "centralised, no DP",
    "alone-dp": "alone, DP",
    "logistic-regression": "logistic regression, no DP",
}

Figures = dict[tuple[str, str], list[float]]  # by (method, ALL, a site or ACCURACY): one value per repetition


@dataclass(frozen=True, slots=True)
class Arm:
    """One trained method: log odds of the pooled test rows. `site` counts from 1; None: not of one site."""

    method: Method
    scores: Reals = field(repr=False)
    site: int | None = None


@dataclass(frozen=True, slots=True)
class Arms:
    """A table's split, its manifest's model and its records, tokenised once."""

    table: SiteTable
    federation: Federation
    train: Sites = field(repr=False)
    test: Sites = field(repr=False)

    @classmethod
    def load(cls, table: SiteTable, manifest: Manifest, base_model: Path, seed: int) -> "Arms":
        """`seed`: of the split. Raises the errors of `ffm.federation` and of the table."""
        train, test = table.split(seed)
        sites = [table.records(rows) for rows in train.values()]
        return cls(table, Federation.load(manifest, base_model, sites), train, test)

    @property
    def records(self) -> tuple[Record, ...]:
        """The test rows of all sites."""
        return self.table.records(pooled(self.test))

    def arm(self, method: Method, model: Model, site: int | None = None) -> Arm:
        """A model that is there already."""
        return Arm(method, self.federation.odds(model, self.records), site)

    def federated(self) -> Arm:
        """Trained anew, with the plan that was signed."""
        return self.arm("federated-dp", self.federation.federated(Csprng.from_os()))

    def others(self) -> Iterator[Arm]:
        """The same plan and ε in other hands, and without DP; each trained when it is asked for."""
        learn = self.federation
        yield self.arm("federated-dp-other-protocol", learn.local_noise(Csprng.from_os()))
        yield self.arm("centralised-dp", learn.centralised(Csprng.from_os()))
        yield self.arm("centralised-no-dp", learn.centralised(Csprng.from_os(), private=False))
        for site in range(len(self.train)):
            yield self.arm("alone-dp", learn.alone(site, Csprng.from_os()), site + 1)

    def baseline(self) -> Arm:
        """Logistic regression on the pooled table: nothing is drawn, so once per split is enough."""
        rows = pooled(self.train)
        fitted = logistic_regression(self.table.features(rows), self.table.positive(rows))
        return Arm("logistic-regression", fitted.scores(self.table.features(pooled(self.test))))

    def name(self, arm: Arm) -> str:
        """For people."""
        return NAMES[arm.method] if arm.site is None else f"{list(self.train)[arm.site - 1]} {NAMES[arm.method]}"

    def judge(self, arm: Arm, figures: Figures) -> None:
        """Append the arm's figures."""
        name = self.name(arm)
        for where, part, labels in self._parts():
            figures.setdefault((name, where), []).append(auc(arm.scores[part], labels))
        labels = self.table.positive(pooled(self.test))
        flagged = accuracy_at_share(arm.scores, labels, self.table.flagged)
        figures.setdefault((name, ACCURACY), []).append(flagged)

    def results(self, arm: Arm, repetition: int) -> list[MethodResult]:
        """For the report: over all test rows, then over those of each site."""
        training = self.federation.manifest.training
        called = called_at_share(arm.scores, self.table.flagged)  # one threshold for all sites
        steps = 0 if arm.method == "logistic-regression" else training.rounds * training.local_steps
        found = []
        for number, (_, part, labels) in enumerate(self._parts()):
            scores = arm.scores[part]
            wins = twice_wins(np.stack([-scores, scores], 1), labels)
            counts = _counts(called[part], labels)
            found.append(MethodResult(arm.method, counts, steps, arm.site, number or None, repetition, wins))
        return found

    def _parts(self) -> Iterator[tuple[str, slice, NDArray[np.int64]]]:
        """(ALL or a site, its place among the pooled test rows, labels)."""
        rows: tuple[Row, ...] = pooled(self.test)
        yield ALL, slice(0, len(rows)), self.table.positive(rows)
        start = 0
        for site, own in self.test.items():
            yield site, slice(start, start + len(own)), self.table.positive(own)
            start += len(own)


def _counts(called: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(((labels == i) & (called == j)).sum()) for j in (0, 1)) for i in (0, 1))
