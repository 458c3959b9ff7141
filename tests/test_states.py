"""Every client state x every server message, and every server phase x every client message: a product, no gaps."""

import typing

import numpy as np
import pytest
from attacker import LyingServer
from simulator import Federation, Simulation, insecure_rng, make_manifest, random_values, simulate

from protocol.client import ClientSession
from protocol.client_states import PHASES, AwaitingHashes, ClientMemory
from protocol.drops import DropReason
from protocol.effects import (
    Abort,
    AcceptUpload,
    Aggregate,
    Charge,
    JoinRecord,
    Persist,
    Released,
    ReleaseRecord,
    Send,
    SpentRecord,
    Upload,
)
from protocol.encrypted import DecryptorKey, EncryptedInput, InputHash, InputHashes, OpenedSum, OpeningRequest
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import (
    AttemptAborted,
    ClientMessage,
    ConsistencyCheck,
    Finished,
    LedgerRows,
    MaskedInput,
    RoundResult,
    ServerMessage,
    Statement,
    Withdraw,
)
from protocol.release import ReleaseLedger
from protocol.server import ServerSession
from secagg.masking import add_masks
from secagg.types import ClientId, Phase

ME = ClientId(3)

# -- client -----------------------------------------------------------------------------------------------------------

MASKING = [state for state in PHASES if state is not AwaitingHashes]  # the others are in test_decryptor.py
CLIENT_STATES = ["NotStarted", *(state.__name__ for state in MASKING)]
SERVER_MESSAGES = [kind.__name__ for kind in typing.get_args(ServerMessage)]
STEP = {  # the only messages that move a state on
    ("AwaitingKeys", "KeyList"): "AwaitingShares",
    ("AwaitingShares", "PeerShares"): "AwaitingInput",
    ("AwaitingSurvivors", "SurvivorNotice"): "AwaitingCertificate",
    ("AwaitingCertificate", "Certificate"): "Completed",
}
ENDS = {"RoundResult", "AttemptAborted", "Finished"}  # the end may be told at any time and is no fault


def client_in(state: str) -> LyingServer:
    """All clients in one state, and the server with the honest messages of every phase."""
    federation = Federation.create(make_manifest())
    values = random_values(federation.manifest, range(1, 6))
    server = LyingServer(federation, {})
    if state == "NotStarted":
        server.announce()
        server.sessions[ME] = ClientSession(
            federation.setup(ME),
            federation.announcement(),
            ClientMemory.fresh(federation.manifest),
            insecure_rng("not started"),
        )
        return server
    wanted = next(i for i, s in enumerate(MASKING) if s.__name__ == state)
    server.announce()
    steps = [
        lambda c: server.tell(c, server.key_list()),
        lambda c: server.tell(c, server.peer_shares(c)),
        lambda c: server._take(c, lambda: server.sessions[c].provide_input(values[c])),
        lambda c: server.tell(c, server.notice(server.ids)),
        lambda c: server.tell(c, server.certificate(server.ids)),
    ]
    if state == "Aborted":
        server.sessions[ME].abort()
        wanted = 0
    for step in steps[:wanted]:
        for client in server.ids:
            step(client)
    return server


def honest(server: LyingServer, kind: str) -> ServerMessage:
    """A well-formed message of this kind; those of later phases are made from what the other clients said so far."""
    if kind == "KeyList":
        return server.key_list()
    if kind in ("RoundResult", "AttemptAborted", "Finished", "Announcement"):
        return {
            "RoundResult": RoundResult(1, 0, server.ids, bytes(32), bytes(32)),
            "AttemptAborted": AttemptAborted(1, 0, Phase.SHARE_KEYS, "too few"),
            "Finished": Finished(1),
            "Announcement": server.federation.announcement(2),
        }[kind]
    if kind == "InputHashes":
        return InputHashes(b"\xf8", bytes(range(160)))
    if kind == "OpeningRequest":
        return OpeningRequest(b"\xf8", bytes(32), b"\xf8", b"\xf8", bytes(range(160)), b"\xf8", 1, bytes(32), ())
    complete = client_in("Completed")
    return {
        "PeerShares": lambda: complete.peer_shares(ME),
        "SurvivorNotice": lambda: complete.notice(complete.ids),
        "Certificate": lambda: complete.certificate(complete.ids),
    }[kind]()


def state_of(server: LyingServer) -> str:
    state = server.sessions[ME]._state
    return "NotStarted" if state is None else type(state).__name__


@pytest.mark.parametrize("kind", SERVER_MESSAGES)
@pytest.mark.parametrize("state", CLIENT_STATES)
def test_client_state_times_server_message(state: str, kind: str) -> None:
    server = client_in(state)
    assert state_of(server) == state
    session, message = server.sessions[ME], honest(server, kind)
    if (state, kind) in STEP:
        session.receive(message)
        assert state_of(server) == STEP[state, kind]
    elif kind in ENDS:
        assert session.receive(message) == ()
        assert session.phase is (Phase.COMPLETED if state == "Completed" else Phase.ABORTED)
    else:
        with pytest.raises(RemoteProtocolError, match="unexpected message"):
            session.receive(message)
        assert session.phase is (Phase.COMPLETED if state == "Completed" else Phase.ABORTED)


@pytest.mark.parametrize("state", CLIENT_STATES)
def test_the_end_of_another_attempt_ends_nothing(state: str) -> None:
    server = client_in(state)
    session = server.sessions[ME]
    before = session._state
    for round_, attempt in ((1, 1), (2, 0)):
        assert session.receive(AttemptAborted(round_, attempt, Phase.SHARE_KEYS, "too few")) == ()
        assert session._state is before


@pytest.mark.parametrize("state", CLIENT_STATES)
def test_local_calls_in_every_state(state: str) -> None:
    """A call that is illegal here is our own bug: it raises LocalProtocolError and changes nothing."""
    server = client_in(state)
    session = server.sessions[ME]
    values = np.zeros(40, dtype=np.int64)
    if state == "NotStarted":
        assert len(session.start()) == 2
    else:
        before = session._state
        with pytest.raises(LocalProtocolError):
            session.start()
        assert session._state is before
    session = client_in(state).sessions[ME]
    if state in ("AwaitingKeys", "AwaitingShares"):
        assert session.provide_input(values) == ()
        with pytest.raises(LocalProtocolError):
            session.provide_input(values)
    elif state == "AwaitingInput":
        assert len(session.provide_input(values)) == 2
        with pytest.raises(LocalProtocolError):
            session.provide_input(values)
    else:
        before = session._state
        with pytest.raises(LocalProtocolError):
            session.provide_input(values)
        assert session._state is before


def test_input_before_or_after_the_shares_makes_no_difference() -> None:
    early, late = simulate(), client_in("AwaitingSurvivors")
    assert np.array_equal(early.uploads[ME], late.words[ME])


def test_effects_come_in_order() -> None:
    """Durable first: joined before the keys leave, charged before the upload, spent before the signature."""
    server = client_in("NotStarted")
    session = server.sessions[ME]
    join, send = session.start()
    assert isinstance(join, Persist) and join.record == JoinRecord(1, 0, session.ctx) and isinstance(send, Send)
    charge, upload = client_in("AwaitingInput").sessions[ME].provide_input(np.zeros(40, dtype=np.int64))
    assert charge == Charge(1, 0) and isinstance(upload, Upload)
    server = client_in("AwaitingSurvivors")
    notice = server.notice(server.ids)
    spent, send = server.sessions[ME].receive(notice)
    head = notice.row.head(server.ledger.head)
    assert isinstance(spent, Persist) and spent.record == SpentRecord(1, 0, (notice.row,), head)
    assert isinstance(send, Send) and isinstance(send.message, ConsistencyCheck)
    aggregator = server_in(Phase.MASKED_INPUT)
    row, *notices = aggregator.close_phase()
    assert isinstance(row, Persist) and isinstance(row.record, ReleaseRecord)
    assert row.record.row == aggregator.ledger.rows[-1] and row.record.head == aggregator.ledger.head
    assert all(isinstance(n, Send) and n.message.row == row.record.row for n in notices)  # type: ignore[union-attr]


# -- server -----------------------------------------------------------------------------------------------------------

PLAYED = simulate({1: Phase.MASKED_INPUT})  # client 1 is in U2 and not in U3
SAID: dict[ClientId, list[ClientMessage]] = {c: [m for s, m in PLAYED.view if s == c] for c in PLAYED.clients}
ORDER = ["AdvertiseKeys", "ShareKeys", "MaskedInput", "ConsistencyCheck", "UnmaskingShares"]
FOREIGN: dict[str, ClientMessage] = {  # of an encrypted task, and of the decryptor
    "InputHash": InputHash(bytes(32), 1, (), bytes(64)),
    "EncryptedInput": EncryptedInput(bytes(32), 1, bytes(64)),
    "DecryptorKey": DecryptorKey(b"key", bytes(64)),
    "OpenedSum": OpenedSum(bytes(32), 1, bytes(64)),
}
CLIENT_MESSAGES = [kind.__name__ for kind in typing.get_args(ClientMessage)]


def said(client: int, kind: str) -> ClientMessage:
    if kind == "Withdraw":
        return Withdraw("E111", "EncodingError")
    if kind == "Statement":
        return Statement(b"{}", bytes(64))
    if kind == "LedgerRows":
        return LedgerRows(PLAYED.server.ledger.rows)
    if kind in FOREIGN:
        return FOREIGN[kind]
    return next(m for m in SAID[ClientId(client)] if type(m).__name__ == kind)


def server_in(phase: Phase, waiting: set[int] | None = None) -> ServerSession:
    """A server in `phase`, fed with the recorded messages; `waiting` have not answered this phase yet."""
    f = PLAYED.federation
    ledger = ReleaseLedger(f.manifest.digest())
    server = ServerSession(f.manifest.secagg_params(), f.announcement(), f.roster, f.server_key, ledger)
    server.start()
    steps = ORDER if phase >= Phase.COMPLETED else ORDER[: phase + 1]
    for number, kind in enumerate(steps):
        for client in (1, 2, 3, 4, 5):
            if (client == 1 and number >= 2) or (number == phase and client in (waiting or set())):
                continue
            answer = server.receive(ClientId(client), said(client, kind))
            assert not isinstance(answer, DropReason), answer
            if kind == "MaskedInput":
                assert server.upload_complete(ClientId(client)) == ()
        if number < phase:
            effects = server.close_phase()
    if phase is Phase.ABORTED:
        raise AssertionError
    if phase is Phase.COMPLETED:
        (aggregate,) = effects
        assert isinstance(aggregate, Aggregate)
        total = np.zeros(server.params.total_words, dtype=np.uint64)
        for client in aggregate.masked:
            total += PLAYED.uploads[client]
        add_masks(total, aggregate.masks)
        (released,) = server.finish(total)
        assert isinstance(released, Released)
    return server


def aborted() -> ServerSession:
    server = server_in(Phase.ADVERTISE_KEYS, waiting={1, 2, 3})
    server.close_phase()
    return server


@pytest.mark.parametrize("kind", CLIENT_MESSAGES)
@pytest.mark.parametrize("phase", [p for p in Phase if p < Phase.ABORTED])
def test_server_phase_times_client_message(phase: Phase, kind: str) -> None:
    server = server_in(phase, waiting={3})
    answer = server.receive(ME, said(3, kind))
    if kind == "Withdraw":
        assert answer is DropReason.WITHDREW and server.drops[ME] is DropReason.WITHDREW
    elif kind == "LedgerRows" and phase is Phase.ADVERTISE_KEYS:  # this server has none: it was restored
        assert not isinstance(answer, DropReason) and server.ledger == PLAYED.server.ledger
        assert isinstance(answer[0], Persist) and isinstance(answer[-1], Abort)
        assert server.phase is Phase.ABORTED
        return
    elif kind in ("Statement", "LedgerRows", *FOREIGN):
        assert answer is DropReason.WRONG_PHASE
    else:
        number = ORDER.index(kind)
        if number < phase:
            assert answer == ()  # said before, the same bytes
        elif number > phase:
            assert answer is DropReason.WRONG_PHASE
        elif kind == "MaskedInput":
            assert answer == (AcceptUpload(ME, typing.cast(MaskedInput, said(3, kind))),)
        else:
            assert answer == ()
        assert ME not in server.drops  # neither lateness nor repetition evicts anybody
    assert server.phase is phase


@pytest.mark.parametrize("kind", CLIENT_MESSAGES)
def test_aborted_server_times_client_message(kind: str) -> None:
    server = aborted()
    assert server.phase is Phase.ABORTED and not server.open and server.missing() == ()
    answer = server.receive(ClientId(4), said(4, kind))
    if kind == "AdvertiseKeys":
        assert answer == ()
    else:
        assert answer is (DropReason.WITHDREW if kind == "Withdraw" else DropReason.WRONG_PHASE)
    assert server.phase is Phase.ABORTED


@pytest.mark.parametrize("kind", ["ConsistencyCheck", "UnmaskingShares"])
def test_a_client_left_out_stays_out(kind: str) -> None:
    server = server_in(Phase(ORDER.index(kind)), waiting={3})
    answer = server.receive(ClientId(1), said(3, kind))
    assert answer is DropReason.TIMED_OUT


@pytest.mark.parametrize("phase", [p for p in Phase if p < Phase.COMPLETED])
def test_missing_names_who_has_not_answered(phase: Phase) -> None:
    server = server_in(phase, waiting={3})
    expected = (1, 3) if phase is Phase.MASKED_INPUT else (3,)
    assert server.missing() == expected and server.open
    server.receive(ME, Withdraw("E000", "gone"))
    assert server.missing() == tuple(c for c in expected if c != 3)


@pytest.mark.parametrize("phase", [p for p in Phase if p <= Phase.ABORTED])
def test_server_calls_in_the_wrong_phase(phase: Phase) -> None:
    server = aborted() if phase is Phase.ABORTED else server_in(phase)
    with pytest.raises(LocalProtocolError):
        server.finish(np.zeros(1, dtype=np.uint64))
    if phase >= Phase.COMPLETED:
        with pytest.raises(LocalProtocolError):
            server.close_phase()


def test_between_unmasking_and_the_sum_nothing_is_accepted() -> None:
    server = server_in(Phase.UNMASKING, waiting={3})
    # 4 required, 4 in U3, one has not answered: too few
    assert [type(e).__name__ for e in server.close_phase()][-1] == "Abort"
    server = server_in(Phase.UNMASKING)
    (aggregate,) = server.close_phase()
    assert isinstance(aggregate, Aggregate) and not server.open
    assert server.receive(ME, said(3, "Withdraw")) is DropReason.WITHDREW
    with pytest.raises(LocalProtocolError):
        server.close_phase()


@pytest.mark.parametrize("phase", [p for p in Phase if p < Phase.COMPLETED])
def test_an_abort_is_told_to_everybody_with_its_phase(phase: Phase) -> None:
    server = server_in(phase, waiting={2, 3, 4})
    effects = server.close_phase()
    told = [e for e in effects if isinstance(e, Send)]
    assert [e.to for e in told] == [1, 2, 3, 4, 5]
    assert all(isinstance(e.message, AttemptAborted) and e.message.phase is phase for e in told)
    assert server.phase is Phase.ABORTED


def test_a_cut_upload_may_come_again_until_the_phase_closes() -> None:
    server = server_in(Phase.MASKED_INPUT, waiting={3})
    header = typing.cast(MaskedInput, said(3, "MaskedInput"))
    assert server.receive(ME, header) == (AcceptUpload(ME, header),)
    assert server.receive(ME, header) == (AcceptUpload(ME, header),)
    assert server.upload_complete(ME) == ()
    assert server.receive(ME, header) == ()
    assert server.upload_complete(ME) == ()
    server.close_phase()
    assert server.masked == (2, 3, 4, 5)


def test_recorded_replay_gives_the_same_sum() -> None:
    values = random_values(PLAYED.federation.manifest, range(1, 6))
    replay = Simulation(PLAYED.federation, values, {ClientId(1): Phase.MASKED_INPUT})
    outcome = replay.run()
    assert isinstance(outcome, Released) and isinstance(PLAYED.outcome, Released)
    assert np.array_equal(outcome.total, PLAYED.outcome.total)
