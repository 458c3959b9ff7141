"""Attempts and rounds: aborted ones are tried again with the same bytes, spent ones are not, and a server that forgot
gets its past back. Real sessions, journals, ledgers and gRPC; only the training is a double."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import Consortium, Scenario, server_run, together
from wire import Hub, Site, federation, running

from ffm.errors import TrainingProcessError
from protocol.effects import Abort, Released
from protocol.messages import ShareKeys, shares_body
from protocol.rpc.limits import Deadlines
from secagg.errors import SecAggError
from secagg.transcript import merkle_root
from secagg.types import ClientId, Phase

N = 4
QUICKLY = Deadlines(grace=0.7)
ONE_ROUND = federation(N, training__rounds=1)
THREE_ROUNDS = federation(N, training__rounds=3)


def play(f: Any, folder: Path, scenario: Scenario, deadlines: Deadlines = QUICKLY) -> Consortium:
    """A fresh server, all clients, and what became of them."""

    async def main() -> Consortium:
        async with Hub(f, folder) as hub:
            return await together(hub, scenario, deadlines)

    return asyncio.run(main())


async def finished(c: Consortium) -> np.ndarray:
    """Run the server to its end, say so, and let the clients go."""
    model = await c.run.run(np.zeros(c.hub.federation.manifest.adapter.size, dtype=np.float32))
    statements = await c.run.finish(10)
    assert len(statements) == N
    return model


def test_phases_0_and_1_run_while_everybody_trains(tmp_path: Path) -> None:
    async def scenario(c: Consortium) -> None:
        for party in c.parties.values():
            party.drill.gate.clear()
        run = asyncio.create_task(finished(c))
        await c.hub.until("phase", phase="MASKED_INPUT")
        assert all(party.drill.calls == [1] for party in c.parties.values())
        assert c.hub.named("upload") == [] and all(party.charges() == [] for party in c.parties.values())
        for party in c.parties.values():
            party.drill.gate.set()
        await run

    c = play(ONE_ROUND, tmp_path, scenario)
    assert c.rounds == [(1, 0, "released")]


def test_an_aborted_attempt_is_tried_again_with_the_very_same_values(tmp_path: Path) -> None:
    """Clients 3 and 4 die before their upload. Clients 1 and 2 have uploaded and paid: attempt 1 carries the same
    values, and costs them nothing more. Those that were restarted train and pay afresh."""
    sent: dict[int, list[bytes]] = {}

    async def scenario(c: Consortium) -> None:
        for number in (3, 4):
            c.parties[number].drill.gate.clear()
        run = asyncio.create_task(finished(c))
        for number in (1, 2):
            await c.parties[number].until("trained")
        while not all(c.parties[number].charges() for number in (1, 2)):
            await asyncio.sleep(0.02)
        for number in (3, 4):
            await c.parties[number].restart()
        await c.hub.until("aborted", round=1, attempt=0)
        model = await run
        # 100: the first training of each process; 10: the round; and the client
        assert (model == np.float32(np.mean([111, 112, 113, 114]) / 1024)).all()
        for number, party in c.parties.items():
            again = [e["same_update"] for e in party.events if e["event"] == "joined"]
            assert again == ([False, True] if number < 3 else [False, False]), number
            assert party.drill.calls == [1]
            assert party.charges() == ([(1, 0)] if number < 3 else [(1, 1)])
        sent.clear()

    c = play(ONE_ROUND, tmp_path, scenario)
    assert c.rounds == [(1, 0, "aborted"), (1, 1, "released")]
    assert c.run.state.rounds[1].masked == [1, 2, 3, 4]


def test_personal_tensors_are_kept_when_they_are_paid_for_and_never_before(tmp_path: Path) -> None:
    """Kept once a round, after the charge and before the upload; a training that is thrown away is not kept."""
    before: list[Any] = []

    async def scenario(c: Consortium) -> None:
        for number in (3, 4):
            c.parties[number].drill.gate.clear()
        run = asyncio.create_task(finished(c))
        for number in (1, 2):
            await c.parties[number].until("trained")
        while not all(c.parties[number].charges() for number in (1, 2)):
            await asyncio.sleep(0.02)
        for number in (3, 4):
            before.extend(c.parties[number].drill.kept)
            await c.parties[number].restart()
        await c.hub.until("aborted", round=1, attempt=0)
        await run
        assert before == []  # trained, or training, but not paid for
        for party in c.parties.values():
            assert party.drill.kept == [(1, 1)]  # once, also where the values went out in two attempts
        # 200 shared values, three to a word, 16 words to a chunk; with the personal ones it would be six chunks.
        assert {e["of"] for e in c.hub.named("upload")} == {5}

    personal = [{"name": "own", "shape": [50]}]
    play(federation(N, training__rounds=1, adapter__personal=personal), tmp_path, scenario)


@pytest.mark.parametrize(("wrong", "paid"), [("out of range", True), ("not finite", True), ("out of memory", False)])
def test_a_withdrawal_over_what_came_out_of_a_training_is_paid_for(wrong: str, paid: bool, tmp_path: Path) -> None:
    """It tells the server something of the update. What only tells of the machine costs nothing."""

    async def train(round_: int, model: np.ndarray) -> np.ndarray:
        if wrong != "out of range":
            raise TrainingProcessError(wrong, code="E504" if wrong == "not finite" else "E523")
        return np.full(len(model), 1e6, dtype=np.float32)

    async def scenario(c: Consortium) -> None:
        c.parties[4].drill.train = train  # type: ignore[method-assign]
        await c.run.run(np.zeros(c.hub.federation.manifest.adapter.size, dtype=np.float32))
        with pytest.raises(SecAggError, match=wrong):
            await c.parties[4].task
        assert c.parties[4].charges() == ([(1, 0)] if paid else []) and c.parties[4].drill.kept == []
        assert c.parties[1].charges() == [(1, 0)]

    c = play(ONE_ROUND, tmp_path, scenario)
    assert c.run.state.rounds[0].masked == [1, 2, 3]


def test_an_attempt_that_ends_during_training_costs_neither_training_nor_charge(tmp_path: Path) -> None:
    async def scenario(c: Consortium) -> None:
        for party in c.parties.values():
            party.drill.gate.clear()
        run = asyncio.create_task(finished(c))
        await c.hub.until("phase", phase="MASKED_INPUT")
        for number in (3, 4):
            await c.parties[number].stop()
        for number in (1, 2):
            await c.parties[number].until("joined", attempt=0)
        await c.hub.until("aborted", round=1, attempt=0)
        for number in (3, 4):
            c.parties[number].start()
        for number in (1, 2):
            await c.parties[number].until("joined", attempt=1)
            c.parties[number].drill.gate.set()
        await run
        assert [c.parties[number].drill.calls for number in (1, 2)] == [[1], [1]]
        assert all(party.charges()[-1][0] == 1 and len(party.charges()) == 1 for party in c.parties.values())

    short = replace(QUICKLY, masked_input=1.5)  # the living ones are still training
    c = play(ONE_ROUND, tmp_path, scenario, short)
    assert c.rounds[0] == (1, 0, "aborted") and c.rounds[-1][2] == "released"


def test_a_round_that_was_signed_is_never_tried_again(tmp_path: Path) -> None:
    """Two clients die after they signed: the attempt is aborted, its round is spent, the next one starts from the same
    model. And a server that announces the spent round once more is not followed."""

    async def scenario(c: Consortium) -> None:
        run = asyncio.create_task(finished(c))
        await c.hub.until("phase", round=1, phase="UNMASKING")
        for number in (3, 4):
            await c.parties[number].restart()
        await c.hub.until("aborted", round=1, at="UNMASKING")
        await run
        for party in c.parties.values():
            assert party.journal.memory.spent_round == 3
            assert sorted(party.charges()) == [(1, 0), (2, 0), (3, 0)]

    c = play(THREE_ROUNDS, tmp_path, scenario)
    if c.rounds[0] != (1, 0, "released"):  # they may have answered before they died
        assert c.rounds == [(1, 0, "aborted"), (2, 0, "released"), (3, 0, "released")]
        assert c.run.state.rounds[0].ledger_row is not None


def test_a_spent_round_that_is_announced_again_is_waited_out(tmp_path: Path) -> None:
    async def scenario(c: Consortium) -> None:
        hub = c.hub
        assert isinstance(await hub.run(QUICKLY), Released)
        again = await hub.server.run_attempt(hub.session(1, 1), replace(QUICKLY, advertise_keys=1.0))
        assert isinstance(again, Abort) and again.phase is Phase.ADVERTISE_KEYS
        for party in c.parties.values():
            await party.until("skipped", round=1, attempt=1)
            assert party.drill.calls == [1] and party.charges() == [(1, 0)]

    async def main() -> None:
        f = federation(N, training__rounds=2)
        async with Hub(f, tmp_path) as hub:
            model = np.zeros(f.manifest.adapter.size, dtype=np.float32).tobytes()
            digest = f.manifest.model_digest(model)
            announcement = f.announcement
            hub.federation.announcement = lambda *a, **k: announcement(*a, **{**k, "model": digest})  # type: ignore[method-assign]
            hub.server.publish(digest, model)
            await together(hub, scenario, QUICKLY)

    asyncio.run(main())


def test_a_convicted_dealer_is_left_out_of_the_next_attempt(tmp_path: Path) -> None:
    """Client 4 deals sealed rubbish under its own signature. Everybody complains: it is named, and stays out."""
    f = federation(N)
    values = {c: np.full(f.manifest.adapter.size, c, dtype=np.int64) for c in f.roster.ids}

    class Rubbish(Site):
        async def _apply(self, rpc: Any, effects: Any) -> bool:
            bent = tuple(
                replace(e, message=self.bend(e.message)) if isinstance(getattr(e, "message", None), ShareKeys) else e
                for e in effects
            )
            return await super()._apply(rpc, bent)

        def bend(self, message: ShareKeys) -> ShareKeys:
            shares = tuple(replace(s, ciphertext=bytes(len(s.ciphertext))) for s in message.shares)
            state = self.session._state
            root = merkle_root([s.leaf(self.client) for s in shares])
            body = shares_body(self.session.ctx, state.root_u1, self.client, root)  # type: ignore[union-attr]
            return ShareKeys(shares, f.client_keys[self.client].sign(body))

    async def main() -> None:
        async with Hub(f, tmp_path) as hub:
            everybody = [(Rubbish if c == 4 else Site)(hub, c, values[c]) for c in f.roster.ids]
            async with running(*everybody, attempts=2):
                first = await hub.run(QUICKLY)
                assert isinstance(first, Abort) and first.convicted == (4,)
                hub.journal.convict(first.convicted)
                second = await hub.server.run_attempt(hub.session(1, 1), QUICKLY)
                assert isinstance(second, Released) and second.masked == (1, 2, 3)
                assert (second.total == 6).all()
        assert [(d["client"], d["reason"]) for d in hub.named("drop")] == [(4, "CONVICTED")]

    asyncio.run(main())


def test_a_server_from_an_old_backup_gets_its_rows_back(tmp_path: Path) -> None:
    """Its journal is restored to the state before round 2; the clients know better. It takes over what bears its own
    signature, and goes on above it: no round is opened twice, no client is lost."""
    f = federation(N, training__rounds=3)
    backup = tmp_path / "backup"

    async def scenario(c: Consortium) -> None:
        first = asyncio.create_task(finished(c))
        await c.hub.until("round-ended", round=2)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await c.hub.server.stop(0)
        c.hub.journal.close()
        shutil.rmtree(tmp_path / "server")
        shutil.copytree(backup, tmp_path / "server")
        async with Hub(f, tmp_path, port=c.hub.port, bound=False) as rewound:
            assert (rewound.journal.last, rewound.journal.ledger.seq) == ((1, 0), 1)
            c.run, c.hub = server_run(rewound, QUICKLY), rewound
            assert not await c.run.restore(np.zeros(f.manifest.adapter.size, dtype=np.float32))
            await rewound.bind()
            await finished(c)
            assert rewound.journal.ledger.seq == 3
            assert [row.round for row in rewound.journal.ledger.rows] == [1, 2, 3]
        resupplied = [e["rows"] for party in c.parties.values() for e in party.events if e["event"] == "resupplied"]
        assert 1 in resupplied
        for party in c.parties.values():
            assert party.journal.memory.ledger.seq == 3

    async def main() -> Consortium:
        async with Hub(f, tmp_path) as hub:

            def copy(event: dict[str, Any]) -> None:
                if event["event"] == "round-ended" and event["round"] == 1 and not backup.exists():
                    hub.journal._store._connection.execute("PRAGMA wal_checkpoint(FULL)")  # type: ignore[union-attr]
                    shutil.copytree(tmp_path / "server", backup, ignore=shutil.ignore_patterns("*attempt*"))

            on_event = hub._on_event
            hub._on_event = lambda event: (on_event(event), copy(event))  # type: ignore[method-assign]
            return await together(hub, scenario, QUICKLY)

    c = asyncio.run(main())
    assert [r for r in c.rounds if r[2] == "released"] == [(1, 0, "released"), (2, 0, "released"), c.rounds[-1]]
    assert c.rounds[-1][0] == 3


@pytest.mark.parametrize("phase", [p for p in Phase if p < Phase.COMPLETED])
def test_a_client_that_dies_in_any_phase_burns_its_attempt_only(tmp_path: Path, phase: Phase) -> None:
    async def scenario(c: Consortium) -> None:
        victim, dying = c.parties[3], asyncio.Event()
        if phase is Phase.ADVERTISE_KEYS:  # after its journal entry, before its keys left
            await victim.stop()
            victim.start()
            record = victim.journal.record

            def die(entry: Any) -> None:
                record(entry)
                dying.set()
                victim.task.get_loop().call_soon_threadsafe(victim.task.cancel)

            victim.journal.record = die  # type: ignore[method-assign]
        run = asyncio.create_task(finished(c))
        if phase is Phase.ADVERTISE_KEYS:
            await asyncio.wait_for(dying.wait(), 20)
        else:
            await c.hub.until("phase", round=1, phase=phase.name)
        await victim.restart()
        await run
        assert victim.journal.memory.spent_round == 3
        (first,) = [f for f in c.run.state.rounds if f.round == 1 and f.status == "released"]
        assert set(first.masked) >= {1, 2, 4}
        assert [f.masked for f in c.run.state.rounds if f.round > 1] == [[1, 2, 3, 4], [1, 2, 3, 4]]

    play(THREE_ROUNDS, tmp_path, scenario)


def test_a_consortium_that_cannot_finish_says_so(tmp_path: Path) -> None:
    """Three attempts per round, two rounds, then the reason; nobody waits for ever."""
    from protocol.errors import ProtocolError

    async def scenario(c: Consortium) -> None:
        for number in (3, 4):
            await c.parties[number].stop()
        with pytest.raises(ProtocolError) as caught:
            await c.run.run(np.zeros(c.hub.federation.manifest.adapter.size, dtype=np.float32))
        assert caught.value.code == "E420"

    c = play(THREE_ROUNDS, tmp_path, scenario, replace(QUICKLY, grace=0.1, advertise_keys=0.5))
    assert [r[:2] for r in c.rounds] == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert ClientId(1) in c.hub.federation.roster.ids
