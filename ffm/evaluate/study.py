"""The result of an evaluation as values: one row per method, seed and place, and what the rows say together."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from ffm.scores import interval

NO_DP: Final = "no DP"
TINY: Final = 1e-6  # below it a figure is told by its magnitude
BETTER: Final[Mapping[str, str]] = {"perplexity": "lower", "loss": "lower", "forgetting": "lower"}


@dataclass(frozen=True, slots=True)
class Row:
    """One trained model, judged. Figures that a method does not have are NaN or 0."""

    method: str
    privacy: str  # NO_DP, or protocol and ε
    seed: int
    scores: Mapping[str, float]  # on the held-out records of all sites
    train: float = math.nan  # the headline on training records, mean over sites: the gap to `scores` is overfitting
    outside: float = math.nan  # the headline on held-out records of sites that were not trained on, in the mean
    worst: float = math.nan  # the headline at the site where it is worst
    samples: int = 0  # seen in training, in the mean
    bytes_up: int = 0  # one client, one round: the masked input
    bytes_down: int = 0
    seconds: float = math.nan  # of this machine, in one process, without masks
    site: str = ""  # whose records it was trained on; "": everybody's
    facts: Mapping[str, str | int] = field(default_factory=dict)  # of the method, the same for every seed

    def headline(self, key: str) -> float:
        """One score."""
        return self.scores.get(key, math.nan)


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that an issue or the paper says, against the figure."""

    text: str
    value: float
    limit: float
    at_least: bool

    @property
    def holds(self) -> bool:
        """NaN never holds."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def shown(self) -> str:
        """For people."""
        return f"{self.value:.0e}" if 0 < abs(self.value) < TINY else f"{self.value:.4f}"


@dataclass(frozen=True, slots=True)
class Study:
    """All of one task."""

    task: str
    title: str
    what: str  # data, model, plan and how it was judged, in a few sentences
    headline: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()
    quick: bool = False  # small and few: everything runs, and no figure is evidence
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def lower_is_better(self) -> bool:
        """Of the headline."""
        return BETTER.get(self.headline) == "lower"

    @property
    def seeds(self) -> tuple[int, ...]:
        """Which there are."""
        return tuple(sorted({row.seed for row in self.rows}))

    def groups(self) -> Iterator[tuple[tuple[str, str], tuple[Row, ...]]]:
        """Rows of one (method, privacy) over seeds and sites, in the order of arrival."""
        for key in dict.fromkeys((row.method, row.privacy) for row in self.rows):
            yield key, tuple(row for row in self.rows if (row.method, row.privacy) == key)

    def mean(self, method: str, privacy: str, score: str = "") -> float:
        """Of a score, or of the headline, over seeds; NaN without a row."""
        found = [r.headline(score or self.headline) for r in self.rows if (r.method, r.privacy) == (method, privacy)]
        return sum(found) / len(found) if found else math.nan

    def with_claims(self, claims: Sequence[Claim]) -> "Study":
        """The same with claims."""
        return replace(self, claims=tuple(claims))

    def as_json(self) -> dict[str, Any]:
        """Plain values; a number that is not there is null."""
        return {
            "study": self.task,
            "title": self.title,
            "what": self.what,
            "quick": self.quick,
            "evidence": not self.quick,
            "headline": self.headline,
            "better": "lower" if self.lower_is_better else "higher",
            "seeds": list(self.seeds),
            "summary": [self._summary(key, rows) for key, rows in self.groups()],
            "claims": [
                {**asdict(claim), "value": _rounded(claim.value), "holds": claim.holds} for claim in self.claims
            ],
            "notes": list(self.notes),
            "rows": [{name: _rounded(value) for name, value in asdict(row).items()} for row in self.rows],
            **self.extra,
        }

    def _summary(self, key: tuple[str, str], rows: Sequence[Row]) -> dict[str, Any]:
        def spread(value: Callable[[Row], float]) -> list[float | None]:
            """Over seeds: sites of one seed share its split, so they are one draw, and their mean counts."""
            by_seed = [[value(row) for row in rows if row.seed == seed] for seed in dict.fromkeys(r.seed for r in rows)]
            return _spread([_mean(values) for values in by_seed])

        return {
            "method": key[0],
            "privacy": key[1],
            "runs": len(rows),
            **rows[0].facts,
            **{name: spread(lambda row, name=name: row.headline(name)) for name in rows[0].scores},  # type: ignore[misc]
            "train minus test": spread(lambda row: row.train - row.headline(self.headline)),
            "outside": spread(lambda row: row.outside),
            "worst site": spread(lambda row: row.worst),
            "samples": round(sum(row.samples for row in rows) / len(rows)),
            "bytes up": rows[0].bytes_up,
            "bytes down": rows[0].bytes_down,
            "seconds": spread(lambda row: row.seconds),
        }


def _mean(values: Sequence[float]) -> float:
    """Of those that there are; NaN without one."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _spread(values: Sequence[float]) -> list[float | None]:
    """[mean, half of the 95 % interval of the mean by Student's t], null where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return [None, None]
    mean, half = interval(finite)
    return [_rounded(mean), _rounded(half)]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.4g}") if abs(value) < TINY else round(value, 4)
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    return value
