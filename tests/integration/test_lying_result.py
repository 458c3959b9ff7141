"""A18: a server that publishes another sum, another set or another model than the attempt gave. Real gRPC, real client.

The client under attack runs the whole client loop with its journals; the others bear sessions only. Training is a
stand-in that returns a fixed update: what is learned does not matter here.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulator import random_values
from wire import HOST, QUICK, Hub, Site, certificates, federation, running

from dp.ledger import PrivacyLedger
from ffm.client_run import ClientRun
from ffm.published_sum import sum_bytes
from ffm.step import Model, aggregate_digest, model_bytes, next_model
from protocol.effects import Released
from protocol.errors import RemoteProtocolError
from protocol.messages import Finished, RoundResult
from protocol.rpc.client import AggregationClient
from protocol.rpc.journal import ClientJournal
from protocol.rpc.limits import Deadlines
from protocol.server import ServerSession
from secagg.types import ClientId

N = 4
FEDERATION = federation(N, privacy__protocol="none", privacy__noise_steps=0)
MANIFEST = FEDERATION.manifest
VALUES = random_values(MANIFEST, range(1, N + 1))
INITIAL = np.zeros(MANIFEST.adapter.size, dtype=np.float32)
PATIENT = Deadlines(grace=5.0)


class FixedUpdate:
    """Trains nothing."""

    async def train(self, round_: int, model: Model) -> Model:
        return np.full(MANIFEST.adapter.size, 0.5, dtype=np.float32)


@dataclass
class Round:
    """One attempt that ended with a sum, and what an honest server would publish of it."""

    hub: Hub
    session: ServerSession
    outcome: Released
    model: Model

    @property
    def sum_bytes(self) -> bytes:
        return sum_bytes(self.outcome.total)

    @property
    def next_model(self) -> Model:
        return next_model(self.model, self.outcome.total, len(self.outcome.masked), MANIFEST)

    def publish(
        self,
        total: bytes | None = None,
        under: bytes | None = None,
        included: tuple[ClientId, ...] | None = None,
        model: Model | None = None,
    ) -> None:
        """The honest result, but for what is given: the sum, the digest it goes under, the set, the next model."""
        data = self.sum_bytes if total is None else total
        named = self.outcome.masked if included is None else included
        digest = under or aggregate_digest(self.session.ctx, named, data)
        following = MANIFEST.model_digest(model_bytes(self.next_model if model is None else model))
        announcement = self.session.announcement
        self.hub.server.publish(digest, data)
        self.hub.server.broadcast(RoundResult(announcement.round, announcement.attempt, named, digest, following))


Lie = Callable[[Round], Awaitable[None]]


def play(folder: Path, lie: Lie, model: Model = INITIAL) -> list[dict[str, Any]]:
    """Client 1's events in a round that an honest attempt starts and a lie ends. Raises what client 1 raises."""

    async def story(hub: Hub) -> None:
        await lie(await announce(hub, 1, model))
        hub.server.broadcast(Finished(2))

    async def main() -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        async with Hub(FEDERATION, folder) as hub, client_one(hub, events) as client:
            others = [Site(hub, ClientId(i), VALUES[ClientId(i)]) for i in range(2, N + 1)]
            async with running(*others, attempts=9):
                told = asyncio.create_task(story(hub))
                try:
                    await client.run()
                finally:
                    told.cancel()
                    await asyncio.gather(told, return_exceptions=True)
        return events

    return asyncio.run(asyncio.wait_for(main(), 60))


@asynccontextmanager
async def client_one(hub: Hub, events: list[dict[str, Any]]) -> AsyncIterator[ClientRun]:
    """The whole loop of client 1, with journal and ledger on disk."""
    journal = ClientJournal(hub.folder / "client-1" / "journal.sqlite", ClientId(1), MANIFEST.digest())
    with closing(journal), PrivacyLedger.open(hub.folder / "client-1" / "l", silo="one", population="all") as ledger:
        async with AggregationClient(HOST, hub.port, certificates(N)[1][0], patience=QUICK) as rpc:
            client = ClientRun(FEDERATION.setup(ClientId(1)), rpc, FixedUpdate(), (journal, ledger), INITIAL)
            client.on_event = events.append
            yield client


async def announce(hub: Hub, round_: int, model: Model) -> Round:
    """Publish a model and run one attempt on it."""
    digest = MANIFEST.model_digest(model_bytes(model))
    hub.server.publish(digest, model_bytes(model))
    assert len(await hub.server.wait_connected(FEDERATION.roster.ids, 10)) == N
    seq = hub.journal.ledger.seq
    announcement = FEDERATION.announcement(round_, 0, digest, seq)
    params, ledger = MANIFEST.secagg_params(), hub.journal.ledger
    session = ServerSession(params, announcement, FEDERATION.roster, FEDERATION.server_key, ledger)
    outcome = await hub.server.run_attempt(session, PATIENT)
    assert isinstance(outcome, Released)
    await hub.server.settle()
    return Round(hub, session, outcome, model)


def joined(events: list[dict[str, Any]]) -> list[int]:
    return [e["round"] for e in events if e["event"] == "joined"]


def test_an_honest_result_is_accepted_and_followed(tmp_path: Path) -> None:
    async def honest(first: Round) -> None:
        first.publish()
        second = await announce(first.hub, 2, first.next_model)
        assert second.outcome.masked == (1, 2, 3, 4)
        second.publish()

    events = play(tmp_path, honest)
    assert joined(events) == [1, 2]
    assert [e["round"] for e in events if e["event"] == "result"] == [1, 2]


LIES: dict[str, tuple[str, Callable[[Round], None]]] = {  # what the client says to it
    "another set": ("E434", lambda r: r.publish(included=(ClientId(1), ClientId(2), ClientId(3)))),
    "a sum without its digest": ("E435", lambda r: r.publish(total=bytes(len(r.sum_bytes)), under=true_digest(r))),
    "a sum of another length": ("E435", lambda r: r.publish(total=r.sum_bytes[:-8])),
    "another sum than the next model shows": ("E433", lambda r: r.publish(total=bytes(len(r.sum_bytes)))),
    "another next model than the sum gives": ("E433", lambda r: r.publish(model=r.next_model + np.float32(1))),
}


def true_digest(r: Round) -> bytes:
    return aggregate_digest(r.session.ctx, r.outcome.masked, r.sum_bytes)


@pytest.mark.parametrize("lie", LIES)
def test_a18_what_is_published_is_recomputed(tmp_path: Path, lie: str) -> None:
    code, publish = LIES[lie]

    async def tell(first: Round) -> None:
        publish(first)

    with pytest.raises(RemoteProtocolError) as caught:
        play(tmp_path, tell)
    assert caught.value.code == code


def test_a18_round_one_starts_from_the_manifest(tmp_path: Path) -> None:
    async def nothing(first: Round) -> None:
        pass

    with pytest.raises(RemoteProtocolError, match="initial adapter") as caught:
        play(tmp_path, nothing, INITIAL + np.float32(1))
    assert caught.value.code == "E432"


async def another_model_next(first: Round) -> None:
    """An honest result, and then a next round on another model than it gave."""
    first.publish()
    await announce(first.hub, 2, first.next_model + np.float32(1))


def test_a18_the_next_round_starts_from_the_published_result(tmp_path: Path) -> None:
    with pytest.raises(RemoteProtocolError, match="announced model is not the last model") as caught:
        play(tmp_path, another_model_next)
    assert caught.value.code == "E433"


async def a_result_of_an_attempt_that_never_was(first: Round) -> None:
    """It shall make the client forget the honest one."""
    first.publish()
    attempt, nothing = first.session.announcement.attempt + 1, bytes(32)
    first.hub.server.broadcast(RoundResult(1, attempt, first.outcome.masked, nothing, nothing))
    await announce(first.hub, 2, first.next_model + np.float32(1))


async def an_old_round_again(first: Round) -> None:
    """As a restored server announces it; and then its result, as if it had been over without this client."""
    first.publish()
    first.hub.server.broadcast(first.session.announcement)
    first.publish()
    await announce(first.hub, 2, first.next_model + np.float32(1))


@pytest.mark.parametrize("forget", [a_result_of_an_attempt_that_never_was, an_old_round_again])
def test_a18_an_honest_result_is_not_forgotten(tmp_path: Path, forget: Lie) -> None:
    with pytest.raises(RemoteProtocolError, match="announced model is not the last model") as caught:
        play(tmp_path, forget)
    assert caught.value.code == "E433"


def test_a18_a_result_that_is_withheld_is_noticed(tmp_path: Path) -> None:
    """Then any model can follow. What a record does to the sum of a round is bounded whatever the model."""

    async def silent(first: Round) -> None:
        (await announce(first.hub, 2, first.next_model + np.float32(1e7))).publish()

    events = play(tmp_path, silent)
    assert joined(events) == [1, 2]
    assert [e["round"] for e in events if e["event"] == "unverified"] == [2]


def test_a18_succeeds_against_a_client_that_does_not_recompute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it trains on, and sends its update on, whatever model it is given."""

    async def believe(self: ClientRun, message: RoundResult) -> None:
        self.on_event({"event": "result", "round": message.round})

    monkeypatch.setattr(ClientRun, "_result", believe)
    assert joined(play(tmp_path, another_model_next)) == [1, 2]


def test_a18_a_consistent_lie_is_not_seen(tmp_path: Path) -> None:
    """THREAT_MODEL 5: nobody but the server knows the true sum. A false one that fits its digest, the signed set and
    the next model is taken: what a client can check is that these belong together."""

    async def consistent(first: Round) -> None:
        total = first.outcome.total + 7
        model = next_model(first.model, total, len(first.outcome.masked), MANIFEST)
        first.publish(total=sum_bytes(total), model=model)
        await announce(first.hub, 2, model)

    assert joined(play(tmp_path, consistent)) == [1, 2]
