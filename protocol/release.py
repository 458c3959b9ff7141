"""The server's release ledger: one hash-chained, signed row per opened set. SPEC 8.

A server that was restored from a backup, or that keeps two ledgers, shows itself: clients sign the head after each row,
remember the highest they signed, and accept extensions of it only.
"""

from dataclasses import dataclass

from protocol.messages import LedgerRow, ledger_genesis, ledger_head_digest
from secagg.errors import AuthenticationError
from secagg.signing import SigningKey, VerifyKey


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

    def head_at(self, seq: int) -> bytes:
        """Head after row `seq`, 0 <= seq <= self.seq."""
        return self.heads[seq - 1] if seq else ledger_genesis(self.manifest_digest)

    def since(self, seq: int) -> tuple[LedgerRow, ...]:
        """Rows after `seq`."""
        return self.rows[seq:]

    def next_row(self, ctx: bytes, root_u2: bytes, hash_u3: bytes, signer: SigningKey) -> LedgerRow:
        """The signed row that would extend this ledger."""
        unsigned = LedgerRow(self.seq + 1, ctx, root_u2, hash_u3, b"")
        head = unsigned.head(self.head)
        signature = signer.sign(ledger_head_digest(self.manifest_digest, unsigned.seq, head))
        return LedgerRow(unsigned.seq, ctx, root_u2, hash_u3, signature)

    def extended(self, row: LedgerRow) -> "ReleaseLedger":
        """The ledger with one more row."""
        return ReleaseLedger(self.manifest_digest, (*self.rows, row), (*self.heads, row.head(self.head)))


def follow(
    manifest_digest: bytes, seq: int, head: bytes, rows: tuple[LedgerRow, ...], server: VerifyKey
) -> tuple[int, bytes] | None:
    """Walk `rows` from (seq, head); the new (seq, head), or None if they are no signed extension of it."""
    for row in rows:
        if row.seq != seq + 1:
            return None
        seq, head = row.seq, row.head(head)
        try:
            server.verify(row.signature, ledger_head_digest(manifest_digest, seq, head))
        except AuthenticationError:
            return None
    return seq, head
