"""The server's release ledger: one hash-chained, signed row per opened set. SPEC 8.

A server that was restored from a backup, or that keeps two ledgers, shows itself: clients sign the head after each row,
remember every row, and accept extensions only. A restored server gets the rows that it lost back from them.
"""

from dataclasses import dataclass, replace
from typing import Final

from protocol.messages import Announcement, LedgerRow, LedgerRows, ledger_genesis, ledger_head_digest
from secagg.errors import AuthenticationError
from secagg.signing import SigningKey, VerifyKey

MAX_SEGMENT: Final = 2048  # rows in one message


@dataclass(frozen=True, slots=True)
class ReleaseLedger:
    """The rows of one task, as a value; `heads[i]` is the head after row i (seq i + 1)."""

    manifest_digest: bytes
    rows: tuple[LedgerRow, ...] = ()
    heads: tuple[bytes, ...] = ()

    @property
    def seq(self) -> int:
        """Sequence number of the last row; 0 when empty."""
        return len(self.rows)

    @property
    def head(self) -> bytes:
        """Head after the last row."""
        return self.head_at(self.seq)

    @property
    def last_round(self) -> int:
        """Highest round that a row names; 0 when empty."""
        return max((row.round for row in self.rows), default=0)

    def head_at(self, seq: int) -> bytes:
        """Head after row `seq`, 0 <= seq <= self.seq."""
        return self.heads[seq - 1] if seq else ledger_genesis(self.manifest_digest)

    def upto(self, seq: int) -> "ReleaseLedger":
        """The ledger as it was after row `seq`."""
        return ReleaseLedger(self.manifest_digest, self.rows[:seq], self.heads[:seq])

    def since(self, seq: int) -> tuple[LedgerRow, ...]:
        """Rows after `seq`."""
        return self.rows[seq:]

    def next_row(self, opened: tuple[int, int, bytes, bytes, bytes], signer: SigningKey) -> LedgerRow:
        """The signed row that would extend this ledger. `opened` = (round, attempt, ctx, root_u2, hash_u3)."""
        unsigned = LedgerRow(self.seq + 1, *opened, signature=b"")
        head = ledger_head_digest(self.manifest_digest, unsigned.seq, unsigned.head(self.head))
        return replace(unsigned, signature=signer.sign(head))

    def extended(self, row: LedgerRow) -> "ReleaseLedger":
        """The ledger with one more row. Unchecked: see `follow`."""
        return ReleaseLedger(self.manifest_digest, (*self.rows, row), (*self.heads, row.head(self.head)))


def follow(ledger: ReleaseLedger, rows: tuple[LedgerRow, ...], server: VerifyKey) -> ReleaseLedger | None:
    """`ledger` with `rows`, or None if they are no extension of it that the server signed."""
    for row in rows:
        if row.seq != ledger.seq + 1:
            return None
        ledger = ledger.extended(row)
        try:
            server.verify(row.signature, ledger_head_digest(ledger.manifest_digest, ledger.seq, ledger.head))
        except AuthenticationError:
            return None
    return ledger


def resupply(announcement: Announcement, ledger: ReleaseLedger) -> LedgerRows | None:
    """What a client that remembers `ledger` sends a server that announces fewer rows, instead of joining. SPEC 8.3."""
    rows = ledger.since(announcement.ledger_seq)[:MAX_SEGMENT]
    return LedgerRows(rows) if rows else None
