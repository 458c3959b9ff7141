"""Whole runs over loopback in one process: ServerRun and ClientRun with real journals, ledgers, TLS and cryptography.

Only the training is a double: it answers when the test lets it, with numbers that the test knows.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from wire import HOST, QUICK, Hub, certificates

from dp.ledger import PrivacyLedger
from ffm.client_run import ClientRun
from ffm.server_run import ServerRun
from ffm.step import Model
from protocol.rpc.client import AggregationClient
from protocol.rpc.journal import ClientJournal
from protocol.rpc.limits import Deadlines
from secagg.types import ClientId

Events = list[dict[str, Any]]


@dataclass
class Drill:
    """A Trainer: waits at its gate, then gives an update that depends on client, round and the number of the call."""

    client: ClientId
    size: int
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[int] = field(default_factory=list)
    kept: list[tuple[int, int]] = field(default_factory=list)  # round, and charges in the ledger at that moment
    charges: Callable[[], int] = lambda: 0

    async def train(self, round_: int, model: Model) -> Model:
        self.calls.append(round_)
        await self.gate.wait()
        return np.full(self.size, (self.client + 10 * round_ + 100 * len(self.calls)) / 1024, dtype=np.float32)

    async def keep(self, round_: int) -> None:
        self.kept.append((round_, self.charges()))


@dataclass
class Party:
    """One client process after the other, over the same books."""

    hub: Hub
    client: ClientId
    events: Events = field(default_factory=list)
    trained: bool = True  # whether the gate stands open
    seen: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> None:
        """A new process."""
        f = self.hub.federation
        self.drill = Drill(self.client, f.manifest.adapter.size)
        if self.trained:
            self.drill.gate.set()
        folder = self.hub.folder / f"client-{self.client}"
        self.journal = ClientJournal(folder / "journal.sqlite", self.client, f.manifest.digest())
        self.ledger = PrivacyLedger.open(folder / "ledger.sqlite", silo=f"site-{self.client}", population="records")
        self.drill.charges = lambda: len(self.charges())
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> int:
        f = self.hub.federation
        _, leaves = certificates(len(f.client_keys))
        async with AggregationClient(HOST, self.hub.port, leaves[self.client - 1], patience=QUICK) as rpc:
            initial = np.zeros(f.manifest.adapter.size, dtype=np.float32)
            run = ClientRun(f.setup(self.client), rpc, self.drill, (self.journal, self.ledger), initial)
            run.on_event = self._on_event
            return await run.run()

    def _on_event(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self.seen.set()

    async def until(self, event: str, **values: Any) -> dict[str, Any]:
        """The first such event."""

        async def look() -> dict[str, Any]:
            while True:
                for e in self.events:
                    if e["event"] == event and all(e.get(k) == v for k, v in values.items()):
                        return e
                self.seen.clear()
                if self.task.done():
                    self.task.result()
                await self.seen.wait()

        return await asyncio.wait_for(look(), 20)

    async def stop(self) -> None:
        """End the process wherever it is; its memory is gone."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.journal.close()
        self.ledger.close()

    async def restart(self) -> None:
        """A process that died, and the next one."""
        await self.stop()
        self.start()

    def charges(self) -> list[tuple[int, int]]:
        """(round, attempt) of every charge."""
        return [(c.round, c.attempt) for c in self.ledger.charges()]


Scenario = Callable[["Consortium"], Any]


@dataclass
class Consortium:
    """A server run and its clients."""

    hub: Hub
    run: ServerRun
    parties: dict[int, Party]

    @property
    def rounds(self) -> list[tuple[int, int, str]]:
        """(round, attempt, status) of everything that ended so far."""
        return [(f.round, f.attempt, f.status) for f in self.run.state.rounds]


def server_run(hub: Hub, deadlines: Deadlines) -> ServerRun:
    """A run over the hub's server, in a folder that outlives it."""
    f, folder = hub.federation, hub.folder / "run"
    folder.mkdir(exist_ok=True)
    run = ServerRun((f.manifest, f.roster), f.server_key, hub.server, hub.journal, folder)
    run.deadlines, run.on_event = deadlines, hub._on_event
    return run


async def together(hub: Hub, scenario: Scenario, deadlines: Deadlines, without: Iterable[int] = ()) -> Consortium:
    """Start all clients but `without`, and play."""
    parties = {int(c): Party(hub, c) for c in hub.federation.roster.ids}
    consortium = Consortium(hub, server_run(hub, deadlines), parties)
    try:
        for number, party in parties.items():
            if number not in without:
                party.start()
        await asyncio.wait_for(scenario(consortium), 60)
    finally:
        for party in parties.values():
            if hasattr(party, "task"):
                await party.stop()
    return consortium
