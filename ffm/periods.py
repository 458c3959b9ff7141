"""Streams of data for continual learning: the records of every site, cut into periods that arrive one after the other.

Two kinds of change, both public rules that draw nothing from the records: new labels appear (`by_labels`), or the same
labels come in other proportions (`by_drift`).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ffm.data import Partition, Record, label_names, partition
from ffm.errors import DataError

Sites = tuple[tuple[Record, ...], ...]


@dataclass(frozen=True, slots=True)
class Period:
    """What arrives in one period: training records of each site, and test records like them."""

    name: str
    train: Sites = field(repr=False)
    test: Sites = field(repr=False)


def by_labels(records: tuple[Sequence[Record], Sequence[Record]], periods: int, plan: Partition) -> tuple[Period, ...]:
    """The labels in their order, in `periods` groups of nearly equal number: each period brings labels unseen before.

    `records`: (train, test). Sites are drawn by `plan` as everywhere, test records go to the sites in proportion.
    """
    labels = label_names(records[0])
    _enough(periods, len(labels), "labels")
    groups = [labels[i * len(labels) // periods : (i + 1) * len(labels) // periods] for i in range(periods)]
    train, test = _sites(records, plan)
    return tuple(
        Period(
            f"{group[0]} to {group[-1]}",
            tuple(tuple(r for r in site if r.label in group) for site in train),
            tuple(tuple(r for r in site if r.label in group) for site in test),
        )
        for group in groups
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
    """(train, test) of each site. A site gets of each label's test records the share that it has of the training ones,
    rounded by largest remainder."""
    train = partition(records[0], plan)
    test: list[list[Record]] = [[] for _ in train]
    of_label: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records[1]:
        of_label[record.label].append(record)
    for label, held in sorted(of_label.items()):
        counts = [sum(r.label == label for r in site) for site in train]
        total = max(1, sum(counts))
        shares = [count * len(held) // total for count in counts]
        rest = sorted(range(len(counts)), key=lambda i: (-(counts[i] * len(held) % total), i))
        for i in rest[: len(held) - sum(shares)]:
            shares[i] += 1
        start = 0
        for site, share in zip(test, shares, strict=True):
            site.extend(held[start : start + share])
            start += share
    return train, tuple(tuple(site) for site in test)


def _enough(periods: int, available: int, what: str) -> None:
    if not 1 <= periods <= available:
        raise DataError(
            "periods that cannot be filled",
            found=f"{periods} periods, {available} {what}",
            expected=f"1 to {available} periods",
            do="choose fewer periods",
            code="E514",
        )
