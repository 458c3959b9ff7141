"""`secagg evaluate --task continual`: five hospitals whose diagnoses arrive in periods of new chapters.

Every way to live (`ffm.tasks.continual`) on the same stream and rounds, with DP and without; replay, which trains on
old records as well, with a memory of one period's worth and of a quarter of it. "everything at once" has all periods'
records from the beginning, and as many rounds and samples as a life that replays nothing: at the same noise and a third
of q it spends less than the ε of its row. Beside the federation that replays: a life with all hospitals' records in one
place, and every hospital's own. Average accuracy, forgetting and transfer over all hospitals' test records;
"worst" is the average accuracy of the hospital where it is worst.
"""

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Final

from dp.accountant import epsilon
from dp.ledger import PrivacyLedger
from dp.sampling import Csprng
from ffm.data import Record, icd10_records, split_by_code
from ffm.errors import DataError
from ffm.evaluate.arms import ALONE, Wanted, best_alone, download_bytes, pinned, seeded, upload_bytes, without_dp
from ffm.evaluate.study import NO_DP, Claim, Row, Study
from ffm.federation import Who
from ffm.learner import Learner
from ffm.lifelong import lifelong
from ffm.local_setup import CPU, Compute
from ffm.models import locate
from ffm.periods import Cut, Period, by_drift, by_labels
from ffm.sources import Icd10Source
from ffm.task import TaskSettings, build_manifest, load_settings
from ffm.tasks.continual import METHODS, Life, Seen, Way, table_of
from protocol.manifest import Manifest

PERIODS: Final = 3
AT_ONCE: Final = "everything at once"
DRIFT: Final = ", proportions drift"
COMPARED: Final = "replay"  # the way that is lived in other hands too
SMALL: Final = "replay, a quarter kept"
WAYS: Final = {method: Way(method) for method in METHODS} | {SMALL: Way("replay", replay=Fraction(1, 4))}
_KEY: Final = "accuracy"

BySite = dict[str, list[dict[str, float]]]  # by row: of each hospital average, forgetting, backward, forward


@dataclass(frozen=True, slots=True)
class _Bench:
    """One seed's stream and a loader of fresh learners."""

    settings: TaskSettings
    name: str
    periods: tuple[Period, ...]
    seed: int
    note: str = ""  # of the stream, behind a method's name
    compute: Compute = CPU

    def learner(self, private: bool, periods: int = 1) -> Learner:
        """At its start; for the rounds and samples of so many periods, whose records are all there."""
        settings = self.settings if private else without_dp(self.settings)
        model = settings.models[self.name]
        rate = Fraction(model.sampling) / periods
        sampling = f"{rate.numerator}/{rate.denominator}"
        longer = model.model_copy(update={"rounds": model.rounds * periods, "sampling": sampling})
        manifest = build_manifest(settings.model_copy(update={"models": {self.name: longer}}), self.name)
        return Learner.load(manifest, locate(model.base_model), self.compute)

    def mark(self, method: str) -> str:
        """As rows name it."""
        return method + self.note

    def rng(self, *parts: object) -> Csprng:
        """Pinned, so that a table can be made again."""
        return pinned(self.seed, self.settings.task, *parts)


def run(folder: Path, wanted: Wanted) -> Study:
    """All ways for every seed. `folder`: of the example, with `continual.toml`."""
    settings = load_settings(folder / "continual.toml")
    if wanted.quick:
        settings = _smaller(settings)
    name = next(iter(settings.models))
    rows: list[Row] = []
    spent: list[str] = []
    by_site: BySite = {}
    for seed in wanted.seeds:
        own = seeded(settings, seed)
        bench = _Bench(own, name, stream(own), seed, compute=wanted.compute)
        drifting = replace(bench, periods=stream(own, by_drift), note=DRIFT)
        for method in ("sequential", "replay"):
            wanted.say(f"seed {seed}: {method}{DRIFT}")
            rows.append(_life(drifting, method, False, by_site, spent))
        for private in (False, True):
            for method in WAYS:
                wanted.say(f"seed {seed}: {method}{' with DP' if private else ''}")
                rows.append(_life(bench, method, private, by_site, spent))
            rows.append(_at_once(bench, private))
            rows += _beside(bench, private, wanted, by_site)
    rows += best_alone(rows, "average", lower=False, method=f"{COMPARED}, {ALONE}")
    model, p = settings.models[name], settings.privacy
    ways = f"{p.protocol}, ε = {p.epsilon}"
    study = Study(
        task="continual",
        title="Continual learning: diagnoses in periods of new chapters",
        what=f"{settings.data.sentence()}; {PERIODS} periods of {18 // PERIODS} chapters each. BERT-tiny, FFA-LoRA, "
        f"{model.rounds} rounds a period, each on a hospital's records with probability {model.sampling}; "
        f"ε = {p.epsilon} at δ = {p.delta} for the whole life, record, add/remove. Replay keeps as many records as "
        f"a period brings, in the mean, or a quarter of that. With '{DRIFT[2:]}' all chapters come in every period, in "
        f"shares that turn. '{COMPARED}, centralised' and '{COMPARED}, {ALONE}': the same life in one place, and of "
        "one hospital by itself. adapter-per-period is told of which period a test record is, the others are not.",
        headline="average",
        rows=tuple(rows),
        quick=wanted.quick,
        notes=tuple(dict.fromkeys(spent)),
        extra={"by hospital": by_site},
    )
    return study.with_claims(
        [
            Claim(
                f"replay forgets less than sequential, {privacy}",
                _mean(study, "sequential", privacy) - _mean(study, "replay", privacy),
                0.0,
                True,
            )
            for privacy in (NO_DP, ways)
        ]
    )


def stream(settings: TaskSettings, cut: Cut = by_labels) -> tuple[Period, ...]:
    """The hospital example's records in periods. Raises DataError E515 for another source."""
    source = settings.data
    if not isinstance(source, Icd10Source):
        raise DataError("continual learning is shown on diagnoses", expected='data.source = "icd10"', code="E515")
    plan = source.partition()
    return cut(split_by_code(icd10_records(), plan.cap_per_class, plan.seed), PERIODS, plan)


def _beside(bench: _Bench, private: bool, wanted: Wanted, by_site: BySite) -> Iterator[Row]:
    """The life in other hands."""
    everybody: tuple[Who, ...] = ("centralised", *wanted.alone(len(bench.periods[0].train)))
    for who in everybody:
        method = f"{COMPARED}, {who if who == 'centralised' else ALONE}"
        wanted.say(f"seed {bench.seed}: {method}{' with DP' if private else ''}")
        learner, began = bench.learner(private), time.perf_counter()
        way = replace(WAYS[COMPARED], private=private, who=who)
        life = Life(learner, way, bench.rng(method, who, private))
        seen = life.through(bench.periods)
        figures = _by_site(seen, bench)
        by_site[f"{method}, {'DP' if private else NO_DP}, seed {bench.seed}, {who}"] = figures
        others = [own["average"] for place, own in enumerate(figures) if isinstance(who, int) and place != who]
        yield replace(
            _row(bench, learner.manifest, method, seen, time.perf_counter() - began),
            samples=life.samples,
            outside=fmean(others) if others else math.nan,
            site=str(who + 1) if isinstance(who, int) else "",
            bytes_up=0,
            bytes_down=0,
        )


def _by_site(seen: Sequence[Seen], bench: _Bench) -> list[dict[str, float]]:
    """The figures of a life on each hospital's test records."""
    lives = (lifelong(table_of(seen, _KEY, site)) for site in range(1, len(bench.periods[0].train) + 1))
    return [{name: round(value, 4) for name, value in asdict(life).items()} for life in lives]


def _life(bench: _Bench, method: str, private: bool, by_site: BySite, spent: list[str]) -> Row:
    learner, began = bench.learner(private), time.perf_counter()
    way = replace(WAYS[method], private=private)
    with tempfile.TemporaryDirectory() as folder:
        book = Path(folder) / "book.sqlite"
        books = [PrivacyLedger.open(book, silo="one of them", population="records")] if private else []
        life = Life(learner, way, bench.rng(method, private), books)
        seen = life.through(bench.periods)
        for ledger in books:
            spent.append(_said(ledger, learner.manifest))
            ledger.close()
    by_site[f"{bench.mark(method)}, {'DP' if private else NO_DP}, seed {bench.seed}"] = _by_site(seen, bench)
    row = _row(bench, learner.manifest, bench.mark(method), seen, time.perf_counter() - began)
    return replace(row, samples=life.samples)


def _at_once(bench: _Bench, private: bool) -> Row:
    """One period that holds them all."""
    learner, began = bench.learner(private, len(bench.periods)), time.perf_counter()
    whole = Period("all", *(_united(bench.periods, side) for side in ("train", "test")))
    life = Life(learner, Way("sequential", private=private), bench.rng(AT_ONCE, private))
    life.live(whole)
    seen = [replace(one, after=len(bench.periods)) for one in life.scores(bench.periods)]
    average = fmean(one.scores[_KEY] for one in seen if one.site == 0)
    row = _row(bench, learner.manifest, AT_ONCE, [], time.perf_counter() - began)
    return replace(row, scores={"average": average}, samples=life.samples)


def _united(periods: Sequence[Period], side: str) -> tuple[tuple[Record, ...], ...]:
    parts = [getattr(period, side) for period in periods]
    return tuple(tuple(record for part in parts for record in part[site]) for site in range(len(parts[0])))


def _row(bench: _Bench, manifest: Manifest, method: str, seen: Sequence[Seen], seconds: float) -> Row:
    """Figures of a whole life; `seen`: empty where there is but one period to see."""
    p = manifest.privacy
    figures, worst = {}, math.nan
    if seen:
        figures = asdict(lifelong(table_of(seen, _KEY, 0)))
        worst = min(own["average"] for own in _by_site(seen, bench))
    return Row(
        method=method,
        privacy=NO_DP if p.protocol == "none" else f"{p.protocol}, ε = {p.epsilon}",
        seed=bench.seed,
        scores=figures,
        worst=worst,
        bytes_up=upload_bytes(manifest),
        bytes_down=download_bytes(manifest),
        seconds=seconds,
    )


def _said(book: PrivacyLedger, manifest: Manifest) -> str:
    """What a hospital's ledger says after the life."""
    p, last = manifest.privacy, book.last_charged
    after = epsilon(book.charges(), Decimal(p.delta))
    when = "never" if last is None else f"in round {last.round} of {last.task}"
    return f"A hospital's ledger after the life: ε = {after.epsilon} at δ = {p.delta}; last charged {when}."


def _mean(study: Study, method: str, privacy: str) -> float:
    return fmean(r.scores["forgetting"] for r in study.rows if (r.method, r.privacy) == (method, privacy))


def _smaller(settings: TaskSettings) -> TaskSettings:
    data = settings.data.model_copy(update={"cap_per_class": 70})
    models = {name: model.model_copy(update={"rounds": 4}) for name, model in settings.models.items()}
    return settings.model_copy(update={"data": data, "models": models})
