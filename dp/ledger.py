"""The privacy ledger of one silo over one population: what was spent, for ever.

Every task, tuning run, abandoned run and attempt is charged here, across rounds, restarts and the whole life of a
model. A charge is durable before the masked upload leaves; it is never refunded and there is no delete. Each
client's own ledger is the authority over its own data: it is what refuses a round.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp.errors import LedgerError
from dp.events import MAX_INTEGER, SampledGaussian, parse
from dp.store import ChainedStore, Row

FORMAT = "secagg-privacy-ledger/1"
CHARGE = "charge"

_HEX32 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Charge:
    """One attempt's spending.

    Attributes:
        task: The manifest's task, for people.
        manifest_digest: 64 lowercase hex digits.
        round: Training round, >= 0.
        attempt: Attempt within the task, >= 0.
        event: Event tree of `dp.events`, integers only.

    Raises:
        LedgerError: A field out of range. UnsupportedMechanismError: an event outside the closed list.
    """

    task: str
    manifest_digest: str
    round: int
    attempt: int
    event: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.task or not _HEX32.fullmatch(self.manifest_digest):
            raise LedgerError("a charge without its task or manifest", expected="a task and 64 lowercase hex digits")
        for value in (self.round, self.attempt):
            if type(value) is not int or not 0 <= value <= MAX_INTEGER:
                raise LedgerError("a charge for no round", found=value, expected="a non-negative integer")
        parse(self.event)

    @property
    def key(self) -> tuple[str, int, int]:
        """What is charged once: (manifest digest, round, attempt)."""
        return self.manifest_digest, self.round, self.attempt

    @property
    def mechanism(self) -> SampledGaussian:
        """The event, parsed."""
        return parse(self.event)

    def to_json(self) -> dict[str, Any]:
        """The row body. The event tree is copied, so later changes of the caller's do not reach it."""
        body: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "task": self.task,
                    "manifest_digest": self.manifest_digest,
                    "round": self.round,
                    "attempt": self.attempt,
                    "event": self.event,
                }
            )
        )
        return body

    @classmethod
    def from_json(cls, body: Any) -> "Charge":
        """Read a row body; exactly these fields or LedgerError."""
        fields = {"task", "manifest_digest", "round", "attempt", "event"}
        if not isinstance(body, Mapping) or set(body) != fields:
            raise LedgerError("a charge row with other fields", expected=", ".join(sorted(fields)))
        if not isinstance(body["task"], str) or not isinstance(body["manifest_digest"], str):
            raise LedgerError("a charge row with fields of another type", expected="task and manifest_digest as text")
        return cls(**body)


def genesis(silo: str, population: str) -> dict[str, Any]:
    """Body of the genesis row: which book this is."""
    return {"format": FORMAT, "silo": silo, "population": population}


class PrivacyLedger:
    """The open ledger of one (silo, population)."""

    def __init__(self, store: ChainedStore, silo: str, population: str) -> None:
        self._store = store
        self.silo = silo
        self.population = population
        self._charges = {
            charge.key: (charge, row) for row in store.rows(CHARGE) for charge in (Charge.from_json(row.value()),)
        }

    @classmethod
    def open(cls, path: Path | str, *, silo: str, population: str) -> "PrivacyLedger":
        """Create or open the ledger; the whole chain is replayed. Raises LedgerError (see `ChainedStore.open`)."""
        store = ChainedStore.open(path, genesis(silo, population))
        try:
            return cls(store, silo, population)
        except BaseException:
            store.close()
            raise

    def __enter__(self) -> "PrivacyLedger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def charge(self, charge: Charge) -> Row:
        """Write the charge; durable when this returns. Charging the same attempt again changes nothing.

        Raises:
            LedgerError: The attempt stands in the ledger with another event or task, or the storage failed.
        """
        known = self._charges.get(charge.key)
        if known is not None:
            if known[0].to_json() != charge.to_json():
                raise LedgerError(
                    "this attempt is charged already, with another event",
                    found=f"round {charge.round}, attempt {charge.attempt}",
                    expected="one event per attempt",
                    do="start a new attempt",
                )
            return known[1]
        row = self._store.append(CHARGE, charge.to_json())
        self._charges[charge.key] = (Charge.from_json(row.value()), row)
        return row

    def charges(self) -> tuple[Charge, ...]:
        """Everything ever charged, in order."""
        return tuple(charge for charge, _ in self._charges.values())

    @property
    def last_charged(self) -> Charge | None:
        """When a record of this population was last charged: task, manifest, round and attempt. None: never.

        A round charges everybody in the population alike, whether sampled or not: who was sampled is nobody's to know.
        The ledger keeps no clock; rows are in the order in which they were made durable.
        """
        return next(reversed(self._charges.values()))[0] if self._charges else None

    def rows(self) -> tuple[Row, ...]:
        """All rows with the genesis row, for the report."""
        return self._store.rows()

    @property
    def head(self) -> tuple[int, bytes]:
        """(seq, hash) of the last row; goes to the peers."""
        return self._store.head

    def close(self) -> None:
        """Release the file."""
        self._store.close()
