"""Replay: what a site keeps of its earlier records, and how a new period's records take their place. SPEC knows nothing
of it: it is a site's own choice which of its records it trains on, and all of them are charged in every round.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Final, Generic, TypeVar

from dp.sampling import Csprng, poisson_sample
from ffm.errors import DataError
from protocol.rpc.keyfiles import replace_private

R = TypeVar("R")
Line = tuple[str, ...]

_ARRIVED: Final = "period-{}.csv"  # what came in the running period, below SITE/state/replay
_KEPT: Final = "kept-{}.csv"  # what was kept after so many periods


@dataclass(slots=True)
class Memory(Generic[R]):
    """What one site keeps of its earlier records. It never leaves the site.

    Every record is kept or dropped by a coin of its own (the site's CSPRNG, public odds): after k periods each of them
    has share/k of its records in memory, so the memory is bounded in the mean and never grows. A fixed number of places
    would couple records, one more pushing another one out, and neighbours in the sense of DP would differ by two.
    """

    share: Fraction
    rng: Csprng = field(repr=False)
    records: tuple[R, ...] = field(default=(), repr=False)
    periods: int = 0

    def end_period(self, arrived: Sequence[R]) -> None:
        """Keep some of what arrived, drop some of what was kept."""
        self.periods += 1
        old = self._drawn(self.records, Fraction(self.periods - 1, self.periods))
        self.records = old + self._drawn(arrived, self.share / self.periods)

    def _drawn(self, records: Sequence[R], odds: Fraction) -> tuple[R, ...]:
        if not records or not odds:
            return ()
        chosen = poisson_sample(self.rng, len(records), odds.numerator, odds.denominator)
        return tuple(records[i] for i in chosen)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A period has begun at a site. Counts of real records: they stay there."""

    period: int
    arrived: int
    kept: int


def arrive(state: Path, records: Path, new: Path, share: Fraction, rng: Csprng) -> Arrival:
    """Begin the next period at a site: `new` becomes its records, with what its memory keeps of earlier ones.

    The same file again is the same period again: nothing is drawn a second time, and a call that was interrupted is
    finished.

    Args:
        state: The site's private folder of state.
        records: The file that the site trains on; it is written anew. What is in it at the first call was its first
            period.
        new: CSV of the records that came; any columns, but the same in all periods.
        share: Of one period's records, expected to be kept of all earlier ones together; 0: nothing is kept.
        rng: The site's own.

    Raises:
        DataError: E511 for a file that cannot be read, E512 for other columns than before, E514 without records.
    """
    folder = state / "replay"
    folder.mkdir(mode=0o700, exist_ok=True)
    period = max((int(path.stem.split("-")[1]) for path in folder.glob(_ARRIVED.format("*"))), default=0)
    header, lines = _read(new)
    if not lines:
        raise DataError("a period without records", found=0, expected="at least one record", code="E514")
    if not period and records.is_file():  # what the site trained on before its first arrival was its first period
        _write(folder / _KEPT.format(1), header, ())
        _write(folder / _ARRIVED.format(1), *_read(records))
        period = 1
    running = _read(folder / _ARRIVED.format(period)) if period else (header, ())
    if running[0] != header:
        raise DataError(
            "the new records have other columns than those before",
            found=f"{len(header)} columns",  # never their names: in a file without a header they are a record
            expected=f"the {len(running[0])} columns of the period before, in their order",
            do="bring them into the same form, the header included",
            code="E512",
        )
    if running[1] != lines:  # else it is here already
        memory = Memory(share, rng, _kept(folder, period), period - 1) if period else None
        if memory is not None:
            memory.end_period(running[1])
        period += 1
        _write(folder / _KEPT.format(period), header, () if memory is None else memory.records)
        _write(folder / _ARRIVED.format(period), header, lines)
    kept = _kept(folder, period)
    _write(records, header, lines + kept)
    for name in (_ARRIVED, _KEPT):
        for path in folder.glob(name.format("*")):
            if path.name != name.format(period):
                path.unlink()
    return Arrival(period, len(lines), len(kept))


def _kept(folder: Path, period: int) -> tuple[Line, ...]:
    """What is trained on again in a period: of all before it."""
    return _read(folder / _KEPT.format(period))[1]


def _read(path: Path) -> tuple[Line, tuple[Line, ...]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [tuple(row) for row in csv.reader(file, strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            "records that cannot be read",
            found=f"{path}: {type(error).__name__}",
            expected="a CSV in UTF-8 with a header",
            code="E511",
        ) from None
    if not rows:
        raise DataError("a CSV without a header", found=str(path), expected="the names of the columns", code="E512")
    return rows[0], tuple(rows[1:])


def _write(path: Path, header: Line, lines: Sequence[Line]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows([header, *lines])
    replace_private(path, text.getvalue().encode())
