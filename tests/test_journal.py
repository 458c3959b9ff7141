"""Journals: what a process knew before it died is what its successor knows; nothing decreases."""

from pathlib import Path

import pytest
from simulator import insecure_rng, make_manifest, simulate

from dp.errors import LedgerError
from dp.store import ChainedStore
from protocol.client_states import ClientMemory
from protocol.effects import JoinRecord, ReleaseRecord, SpentRecord
from protocol.errors import LocalProtocolError
from protocol.messages import Announcement
from protocol.release import ReleaseLedger
from protocol.rpc.journal import ClientJournal, ServerJournal
from secagg.signing import SigningKey
from secagg.types import ClientId

MANIFEST = make_manifest()
DIGEST = MANIFEST.digest()
KEY = SigningKey.generate(insecure_rng("server"))
ME = ClientId(3)


def announcement(round_: int, attempt: int = 0) -> Announcement:
    return Announcement(round_, attempt, DIGEST, bytes(32), bytes(32), (ClientId(1), ClientId(2)), 0)


def grown(rows: int) -> ReleaseLedger:
    ledger = ReleaseLedger(DIGEST)
    for i in range(rows):
        ledger = ledger.extended(ledger.next_row((i + 1, 0, bytes([i]) * 32, bytes(32), bytes(32)), KEY))
    return ledger


def test_a_client_remembers_across_restarts(tmp_path: Path) -> None:
    path = tmp_path / "site" / "journal"
    journal = ClientJournal(path, ME, DIGEST)
    assert journal.memory == ClientMemory.fresh(MANIFEST)
    ledger = grown(2)
    journal.record(JoinRecord(4, 1, bytes(32)))
    journal.record(SpentRecord(4, 1, ledger.rows[:1], ledger.heads[0]))
    journal.record(JoinRecord(5, 0, bytes(32)))
    journal.record(SpentRecord(5, 0, ledger.rows[1:], ledger.head))
    journal.record(JoinRecord(6, 2, bytes(32)))
    expected = ClientMemory((6, 2), 5, ledger)
    assert journal.memory == expected
    with pytest.raises(LocalProtocolError, match="only increase"):
        journal.record(JoinRecord(6, 2, bytes(32)))
    third = grown(3)
    with pytest.raises(LocalProtocolError, match="spent once"):
        journal.record(SpentRecord(5, 1, third.rows[2:], third.head))
    assert journal.memory == expected
    journal.close()
    again = ClientJournal(path, ME, DIGEST)
    assert again.memory == expected
    again.close()


def test_what_a_session_persists_is_what_the_simulator_remembers(tmp_path: Path) -> None:
    simulation = simulate()
    journal = ClientJournal(tmp_path / "site" / "journal", ME, simulation.federation.manifest.digest())
    for client, record in simulation.records:
        if client == ME:
            journal.record(record)
    assert journal.memory == simulation.memories[ME]
    assert journal.memory.spent_round == 1
    journal.close()


def test_a_server_remembers_across_restarts(tmp_path: Path) -> None:
    path = tmp_path / "server" / "journal"
    journal = ServerJournal(path, DIGEST)
    assert (journal.last, journal.ledger) == ((0, 0), ReleaseLedger(DIGEST))
    ledger = grown(2)
    journal.start(announcement(1), bytes(32))
    journal.record(ReleaseRecord(ledger.rows[0], ledger.heads[0]))
    journal.start(announcement(2), bytes(32))
    journal.record(ReleaseRecord(ledger.rows[1], ledger.head))
    journal.start(announcement(2, 1), bytes(32))
    journal.close()
    again = ServerJournal(path, DIGEST)
    assert again.last == (2, 1)
    assert again.ledger == ledger
    again.close()


def test_attempts_only_increase(tmp_path: Path) -> None:
    journal = ServerJournal(tmp_path / "server" / "journal", DIGEST)
    journal.start(announcement(2, 3), bytes(32))
    for late in (announcement(2, 3), announcement(2, 2), announcement(1, 9)):
        with pytest.raises(LocalProtocolError, match="only increase"):
            journal.start(late, bytes(32))
    journal.start(announcement(2, 4), bytes(32))
    journal.close()


def test_release_rows_must_extend_the_ledger(tmp_path: Path) -> None:
    journal = ServerJournal(tmp_path / "server" / "journal", DIGEST)
    ledger = grown(2)
    with pytest.raises(LocalProtocolError):  # a gap
        journal.record(ReleaseRecord(ledger.rows[1], ledger.head))
    with pytest.raises(LocalProtocolError):  # another head
        journal.record(ReleaseRecord(ledger.rows[0], ledger.head))
    journal.record(ReleaseRecord(ledger.rows[0], ledger.heads[0]))
    journal.record(ReleaseRecord(ledger.rows[0], ledger.heads[0]))  # once more: an attempt that is resumed
    other = ReleaseLedger(DIGEST)
    other = other.extended(other.next_row((1, 0, b"o" * 32, bytes(32), bytes(32)), KEY))
    with pytest.raises(LocalProtocolError):  # another row with the same number
        journal.record(ReleaseRecord(other.rows[0], other.head))
    assert journal.ledger == grown(1)
    journal.close()


def test_convicted_clients_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "server" / "journal"
    journal = ServerJournal(path, DIGEST)
    assert journal.convicted == frozenset()
    journal.convict([ClientId(3)])
    journal.convict([ClientId(3), ClientId(1)])
    journal.convict([])
    journal.close()
    again = ServerJournal(path, DIGEST)
    assert again.convicted == {1, 3}
    again.close()


def test_a_client_remembers_every_row_it_followed(tmp_path: Path) -> None:
    """Rows of rounds that it missed come with the key list: a rewound server gets all of them back."""
    journal = ClientJournal(tmp_path / "site" / "journal", ME, DIGEST)
    ledger = grown(4)
    for rows, head in (((), ledger.head), (ledger.rows[1:3], ledger.heads[2]), (ledger.rows[:3], ledger.heads[1])):
        with pytest.raises(LocalProtocolError, match="do not extend"):
            journal.record(SpentRecord(1, 0, rows, head))
    journal.record(SpentRecord(3, 0, ledger.rows[:3], ledger.heads[2]))
    journal.record(SpentRecord(4, 0, ledger.rows[3:], ledger.head))
    assert journal.memory.ledger == ledger
    journal.close()


def test_records_of_the_other_side_are_refused(tmp_path: Path) -> None:
    client, server = ClientJournal(tmp_path / "c" / "j", ME, DIGEST), ServerJournal(tmp_path / "s" / "j", DIGEST)
    row = grown(1).rows[0]
    with pytest.raises(LocalProtocolError):
        client.record(ReleaseRecord(row, bytes(32)))
    with pytest.raises(LocalProtocolError):
        server.record(JoinRecord(1, 0, bytes(32)))
    client.close()
    server.close()


def test_another_clients_or_tasks_journal_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "site" / "journal"
    ClientJournal(path, ME, DIGEST).close()
    for client, digest in ((ClientId(4), DIGEST), (ME, bytes(32))):
        with pytest.raises(LedgerError, match="another book"):
            ClientJournal(path, client, digest)
    with pytest.raises(LedgerError, match="another book"):
        ServerJournal(path, DIGEST)


def test_well_chained_rows_that_make_no_sense_stop_the_process(tmp_path: Path) -> None:
    path = tmp_path / "site" / "journal"
    ledger = grown(1)
    journal = ClientJournal(path, ME, DIGEST)
    journal.record(SpentRecord(1, 0, ledger.rows, ledger.head))
    with pytest.raises(LocalProtocolError, match="do not extend"):
        journal.record(SpentRecord(2, 0, ledger.rows, ledger.head))
    journal.close()
    ClientJournal(path, ME, DIGEST).close()  # the refused record was not written
    server = tmp_path / "server" / "journal"
    ServerJournal(server, DIGEST).close()
    genesis = {"book": "server journal", "version": 2, "manifest": DIGEST.hex()}
    with ChainedStore.open(server, genesis) as store:
        store.append("unknown", {"round": 1})
    with pytest.raises(LedgerError, match="does not fit"):
        ServerJournal(server, DIGEST)
