"""A table of persons at several sites: as text for an encoder, and as numbers for a statistician.

An example is one value of `SiteTable`: where the rows come from, which columns they have, who counts as positive.
Split, words, files and features are the same for all. Numbers become words by fixed public limits: nothing is fitted to
the data, so nothing of it leaks that way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ffm.data import Record
from ffm.seeded import SeededStream

TEST_ONE_IN: Final = 4

Row = Mapping[str, str]
Sites = Mapping[str, tuple[Row, ...]]


@dataclass(frozen=True, slots=True)
class Number:
    """A column of numbers. A value below the first limit is the first word, and so on; an empty cell is left out."""

    column: str
    name: str  # in the text, before the word
    limits: tuple[float, ...]
    words: tuple[str, ...]
    zero_is_missing: bool = False

    def value(self, row: Row) -> float | None:
        """None where nothing was measured."""
        value = float(row[self.column]) if row[self.column] else None
        return None if self.zero_is_missing and value == 0 else value

    def text(self, row: Row) -> str:
        """In words; empty where nothing was measured."""
        value = self.value(row)
        return "" if value is None else f"{self.name} {self.words[sum(value >= limit for limit in self.limits)]}"

    def features(self, row: Row) -> list[float]:
        """The number, zero where it is missing, and whether it is."""
        value = self.value(row)
        return [0.0 if value is None else value, float(value is None)]


@dataclass(frozen=True, slots=True)
class Category:
    """A column of known words: each has its phrase."""

    column: str
    phrases: Mapping[str, str]

    def text(self, row: Row) -> str:
        """Its phrase; empty where nothing was noted."""
        return self.phrases[row[self.column]] if row[self.column] else ""

    def features(self, row: Row) -> list[float]:
        """One indicator per word."""
        return [float(row[self.column] == word) for word in self.phrases]


Column = Number | Category


@dataclass(frozen=True, slots=True)
class SiteTable:
    """One example's table.

    Attributes:
        name: Of the example; part of every seeded draw.
        labels: In the classifier's order.
        columns: In the order of the text.
        read: The rows of each site by the site's name, in the order of the file. Raises ModelError E502 with the pip
            line if the data package is not installed, DataError if it is not what it should be.
        label: Of a row, as an index of `labels`; above 0 is positive.
        flagged: Share of the highest scores that is called positive. A public figure: no test label chooses it.
    """

    name: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...] = field(repr=False)
    read: Callable[[], Sites] = field(repr=False)
    label: Callable[[Row], int] = field(repr=False)
    flagged: float

    def text(self, row: Row) -> str:
        """A person in words; what was not measured is left out."""
        return ", ".join(filter(None, (column.text(row) for column in self.columns)))

    def records(self, rows: Sequence[Row]) -> tuple[Record, ...]:
        """As text and label."""
        return tuple(Record(self.text(row), self.labels[self.label(row)]) for row in rows)

    def positive(self, rows: Sequence[Row]) -> NDArray[np.int64]:
        """1 for the positive rows."""
        return np.array([int(self.label(row) > 0) for row in rows], dtype=np.int64)

    def features(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """As a statistician would take them: numbers with a column for what is missing, one column per category."""
        ordered = sorted(self.columns, key=lambda column: isinstance(column, Category))  # numbers first
        return np.array([[value for column in ordered for value in column.features(row)] for row in rows])

    def split(self, seed: int) -> tuple[Sites, Sites]:
        """(train, test) per site: one row in four is tested, drawn from the positive and the others apart."""
        train: dict[str, tuple[Row, ...]] = {}
        test: dict[str, tuple[Row, ...]] = {}
        for site, rows in self.read().items():
            kept: list[Row] = []
            held: list[Row] = []
            for wanted in (False, True):
                group = [row for row in rows if (self.label(row) > 0) is wanted]
                drawn = SeededStream(seed, f"{self.name}/{site}/{wanted}").shuffled(group)
                cut = max(1, len(drawn) // TEST_ONE_IN)
                held += drawn[:cut]
                kept += drawn[cut:]
            train[site] = tuple(SeededStream(seed, f"{self.name}/order/{site}").shuffled(kept))
            test[site] = tuple(held)
        return train, test


def pooled(sites: Sites) -> tuple[Row, ...]:
    """The rows of all sites, in the order of the sites."""
    return tuple(row for rows in sites.values() for row in rows)
