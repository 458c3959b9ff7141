"""Continual learning of any task: the clients' data arrive in periods, and one model lives through them.

Each period is a manifest of its own that starts from the model before, so each is signed, budgeted and reported like
any other run, and the privacy ledger of a silo's population runs on through the whole life. Ways to live:

- sequential: train on what arrives, and nothing else
- replay: each site keeps some of its earlier records and trains on them again. They are charged again, like all records
  of the population in every round
- ewc: elastic weight consolidation (Kirkpatrick et al. 2017; one running anchor, Schwarz et al. 2018): what mattered so
  far is held back
- adapter-per-period: every period has an adapter of its own on the same base model. Nothing is forgotten; whoever asks
  has to say of which period the question is, and nothing is carried over

EWC's importance comes from released sums, and the pull after the server step (`ffm.consolidation`). Over the wire the
owner pins start and importance in the next period's manifest (`ffm.succession`), as it is done here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dp.budget import check_next
from dp.ledger import PrivacyLedger
from dp.sampling import Csprng
from ffm.client_run import budget_of, round_charge
from ffm.consolidation import Tally, refuse
from ffm.data import Record
from ffm.errors import DataError, TaskError
from ffm.federation import Federation, Who
from ffm.learner import Learner, Vector
from ffm.memory import Memory
from ffm.periods import Period
from ffm.step import Model, Pull, initial_model, next_model, parameters_of
from ffm.succession import Past, continued
from ffm.tasks.interface import Scores
from protocol.manifest import Manifest

METHODS: Final = ("sequential", "replay", "ewc", "adapter-per-period")


@dataclass(frozen=True, slots=True)
class Way:
    """How to live.

    Attributes:
        method: One of METHODS.
        replay: Expected share of one period's records that a site keeps, over all earlier periods together.
        strength: Of EWC: by how much a parameter of average importance is drawn back in a round.
        private: With the manifest's noise; False: neither clip nor noise, for comparisons.
        who: Who learns: the federation or, for comparisons, all records in one place or one site alone.
    """

    method: str
    replay: Fraction = Fraction(1)
    strength: str = "10"
    private: bool = True
    who: Who = "federated"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise TaskError(
                "no such way of continual learning", found=self.method, expected=", ".join(METHODS), code="E531"
            )


def period_manifest(
    base: Manifest, number: int, name: str, past: Past | None = None, strength: Decimal | None = None
) -> Manifest:
    """The manifest of period `number`, from 1: the same plan under its own name, so the ledger tells them apart, with
    what it takes over (`ffm.succession.continued`)."""
    body: dict[str, Any] = base.model_dump()
    body["task"], body["data"] = f"{base.task}-{number}", f"{base.data}; period {number}: {name}"
    return continued(Manifest.model_validate(body), past, strength)


@dataclass(frozen=True, slots=True)
class Seen:
    """Scores after a period (0: before any) on the test records of a period, from 1; `site` counts from 1, 0: all."""

    after: int
    on: int
    site: int
    scores: Scores


def judged(learner: Learner, vectors: Sequence[Vector], periods: Sequence[Period], after: int) -> list[Seen]:
    """On every period's test records, of all sites and of each that has some. `vectors`: which one answers a period."""
    found = []
    for number, (period, vector) in enumerate(zip(periods, vectors, strict=True), start=1):
        everybody = [record for site in period.test for record in site]
        for site, records in enumerate((everybody, *period.test)):
            if records:
                found.append(Seen(after, number, site, learner.scores(vector, learner.tensors(records))))
    return found


class Life:
    """One model, its sites and their ledgers, from period to period."""

    def __init__(self, learner: Learner, way: Way, rng: Csprng, ledgers: Sequence[PrivacyLedger] = ()) -> None:
        """`learner` stands at its start. `ledgers`: one per site, the authority over what its population may spend;
        none for comparisons on public data. Raises TaskError E533."""
        if learner.manifest.adapter.personal:
            raise TaskError(
                "personal tensors have no life of their own yet",
                found=learner.manifest.adapter.method,
                expected="a method without personal tensors",
                do="choose another method, or personal_head = false",
                code="E533",
            )
        self._learner, self._way, self._rng, self._ledgers = learner, way, rng, tuple(ledgers)
        self._first: Vector = learner.initial()
        self._vectors: list[Vector] = []
        self._memories: dict[int, Memory[Record]] = {}
        self._importance: Vector | None = None
        self._samples = 0
        if way.method == "ewc":
            refuse(learner.manifest)

    @property
    def periods(self) -> int:
        """How many have been lived."""
        return len(self._vectors)

    @property
    def samples(self) -> int:
        """Seen in all periods, in the mean, what is replayed included."""
        return self._samples

    def live(self, period: Period) -> None:
        """Train on the period's records.

        Raises:
            BudgetExceededError: The period does not fit into what a ledger has left. Nothing was drawn or charged.
            DataError: E514, a site without records in this period; before anything is charged, too.
        """
        number = self.periods + 1
        for site, records in enumerate(period.train, start=1):
            if not records:
                raise DataError(
                    f"site {site} has no records in period {number}",
                    found=0,
                    expected="at least one record of each site",
                    do="let the site sit the period out, or choose another seed or a larger alpha",
                    code="E514",
                )
        past, strength = self._past(), Decimal(self._way.strength) if self._way.method == "ewc" else None
        manifest = period_manifest(self._learner.manifest, number, period.name, past, strength)
        self._admit(manifest)
        learner = replace(self._learner, manifest=manifest)
        sites = [(*own, *self._kept(site)) for site, own in enumerate(period.train)]
        start = self._first if past is None else past.start
        held = manifest.training.consolidation
        tally = None if held is None else Tally(manifest, self._way.private)
        pull = Pull(start, self._importance) if held and held.importance and self._importance is not None else None
        tensors = tuple(learner.tensors(site) for site in sites)
        rounds = iter(range(1, manifest.training.rounds + 1))

        def step(model: Model, total: NDArray[np.int64], count: int, plan: Manifest) -> Model:
            round_ = next(rounds)
            self._charge(manifest, round_)  # before anybody sees the sum
            if tally is not None:
                tally.add((round_, 0), total, count)
            return next_model(model, total, count, plan, pull)

        federation = Federation(learner, tensors, initial_model(start, manifest), learner.personal(), step)
        model = federation.learned_by(self._way.who, self._rng, self._way.private)
        self._samples += federation.samples(self._way.who)
        if tally is not None:
            self._importance = tally.importance(self._importance)
        for site, own in enumerate(period.train):
            if self._way.method == "replay":
                memory = self._memories.setdefault(site, Memory(self._way.replay, self._rng))
                memory.end_period(own)
        self._vectors.append(parameters_of(model, manifest).copy())

    def through(self, periods: Sequence[Period]) -> list[Seen]:
        """Live them all; scores before, and after each of them. Raises as `live`."""
        found = self.scores(periods)
        for period in periods:
            self.live(period)
            found += self.scores(periods)
        return found

    def scores(self, periods: Sequence[Period]) -> list[Seen]:
        """The model as it is now on every period's test records: of all sites, and of each that has some."""
        return judged(self._learner, [self._vector_for(k + 1) for k in range(len(periods))], periods, self.periods)

    def _past(self) -> Past | None:
        """What the next period takes over."""
        if not self._vectors or self._way.method == "adapter-per-period":
            return None
        return Past(self._latest, self._importance)

    @property
    def _latest(self) -> Vector:
        return self._vectors[-1] if self._vectors else self._first

    def _vector_for(self, number: int) -> Vector:
        """The adapter that answers questions of a period: its own where each has one and it is there."""
        own = self._way.method == "adapter-per-period" and number <= self.periods
        return self._vectors[number - 1] if own else self._latest

    def _kept(self, site: int) -> tuple[Record, ...]:
        return self._memories[site].records if site in self._memories else ()

    def _admit(self, manifest: Manifest) -> None:
        for ledger in self._ledgers:
            first = round_charge(manifest, 1, 0)
            check_next(ledger.charges(), first, budget_of(manifest), manifest.training.rounds)

    def _charge(self, manifest: Manifest, round_: int) -> None:
        for ledger in self._ledgers:
            ledger.charge(round_charge(manifest, round_, 0))


def table_of(seen: Sequence[Seen], key: str, site: int, lower_is_better: bool = False) -> list[list[float]]:
    """Scores by (after, on) as `ffm.lifelong.lifelong` takes them, larger is better; NaN where there are none."""
    periods = max(one.on for one in seen)
    sign = -1.0 if lower_is_better else 1.0
    known = {(one.after, one.on): sign * one.scores[key] for one in seen if one.site == site}
    return [[known.get((after, on), float("nan")) for on in range(1, periods + 1)] for after in range(periods + 1)]
