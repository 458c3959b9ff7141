"""Streams of data for continual learning: the records of every site, cut into periods that arrive one after the other.

Two kinds of change, both public rules that draw nothing from the records: new labels appear (`by_labels`), or the same
labels come in other proportions (`by_drift`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ffm.data import Partition, Record, label_names, partition, split_like
from ffm.errors import DataError

Sites = tuple[tuple[Record, ...], ...]


@dataclass(frozen=True, slots=True)
class Period:
    """What arrives in one period: training records of each site, and test records like them."""

    name: str
    train: Sites = field(repr=False)
    test: Sites = field(repr=False)


Cut = Callable[[tuple[Sequence[Record], Sequence[Record]], int, Partition], tuple[Period, ...]]  # by_labels, by_drift


def by_labels(records: tuple[Sequence[Record], Sequence[Record]], periods: int, plan: Partition) -> tuple[Period, ...]:
    """The labels in their order, in `periods` groups of nearly equal number: each period brings labels unseen before.

    `records`: (train, test). Sites are drawn by `plan` as everywhere, test records go to the sites in proportion.
    """
    labels = label_names(records[0])
    _enough(periods, len(labels), "labels")
    groups = [labels[i * len(labels) // periods : (i + 1) * len(labels) // periods] for i in range(periods)]
    sides = _sites(records, plan)
    return tuple(
        Period(
            f"labels {number * len(labels) // periods + 1} to {(number + 1) * len(labels) // periods}",
            *(tuple(tuple(r for r in site if r.label in group) for site in side) for side in sides),
        )
        for number, group in enumerate(groups)
    )


def by_drift(records: tuple[Sequence[Record], Sequence[Record]], periods: int, plan: Partition) -> tuple[Period, ...]:
    """All labels in every period, in shares that turn: label i is twice as frequent in period i modulo `periods`."""
    _enough(periods, min(Counter(r.label for r in records[0]).values()), "records of each label")
    labels = label_names(records[0])
    parts = [[_turned(site, labels, periods) for site in side] for side in _sites(records, plan)]
    return tuple(
        Period(f"mix {number + 1}", *(tuple(site[number] for site in side) for side in parts))
        for number in range(periods)
    )


def _turned(site: Sequence[Record], labels: Sequence[str], periods: int) -> list[tuple[Record, ...]]:
    """One site's records by period. Of every `periods` + 1 records of a label, two go to its own period."""
    out: list[list[Record]] = [[] for _ in range(periods)]
    seen: Counter[str] = Counter()
    for record in site:
        own = labels.index(record.label) % periods
        turn = seen[record.label] % (periods + 1)
        out[own if turn == periods else turn].append(record)
        seen[record.label] += 1
    return [tuple(part) for part in out]


def _sites(records: tuple[Sequence[Record], Sequence[Record]], plan: Partition) -> tuple[Sites, Sites]:
    """(train, test) of each site, the test records of each label in the proportions of the training ones."""
    train = partition(records[0], plan)
    return train, split_like(records[1], train, plan.seed)


def _enough(periods: int, available: int, what: str) -> None:
    if not 1 <= periods <= available:
        raise DataError(
            "periods that cannot be filled",
            found=f"{periods} periods, {available} {what}",
            expected=f"1 to {available} periods",
            do="choose fewer periods",
            code="E514",
        )
