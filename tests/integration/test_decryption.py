"""Encrypted rounds over real mutual TLS, with the real scheme and the decryptor's key in a process of its own."""

import asyncio
import copy
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from simulator import Federation, encrypted, random_values
from test_decryptor import Evil, above_the_modulus, one_more, other_parameters, over_long, truncated
from wire import (
    HOST,
    QUICK,
    DecryptorSite,
    Hub,
    Line,
    Site,
    certificates,
    decryptor_certificate,
    federation,
    running,
)

from protocol.effects import Abort, Released
from protocol.encrypted import DecryptorKey
from protocol.errors import TransportError
from protocol.messages import Announcement, Finished, RoundResult
from protocol.rpc import frames, limits
from protocol.rpc.client import AggregationClient
from protocol.rpc.credentials import channel_credentials
from protocol.rpc.limits import Deadlines, Patience
from secagg.encoding import Values
from secagg.he.bfv import Bfv
from secagg.types import DECRYPTOR, ClientId, Phase

N = 4
PATIENT = Deadlines(grace=3.0)
LASTING = Patience(unreachable=300.0, call=120.0)


def consortium(assurance: str = "dual", n: int = N, length: int = 200, **changes: Any) -> Federation:
    changes.setdefault("aggregation__chunk_words", 1024)
    return replace(federation(n, length, **encrypted(assurance), **changes), scheme=Bfv())


DUAL, HE = consortium("dual"), consortium("he")
VALUES = random_values(DUAL.manifest, range(1, N + 1))
Scenario = Callable[[Hub], Coroutine[Any, Any, None]]


def play(f: Federation, folder: Path, scenario: Scenario, seconds: float = 120) -> list[dict[str, Any]]:
    async def main() -> list[dict[str, Any]]:
        async with Hub(f, folder) as hub:
            await asyncio.wait_for(scenario(hub), seconds)
            return hub.events

    return asyncio.run(main())


def sites(hub: Hub, values: dict[ClientId, Values] | None = None, **only: Site) -> list[Site]:
    given = VALUES if values is None else values
    return [only.get(f"c{i}", Site(hub, ClientId(i), given[ClientId(i)])) for i in hub.federation.roster.ids]


def exact(outcome: Released | Abort, members: tuple[int, ...]) -> bool:
    assert isinstance(outcome, Released), outcome
    expected = np.sum([VALUES[ClientId(c)] for c in members], axis=0)
    return outcome.masked == members and bool((outcome.total == expected).all())


@pytest.mark.parametrize("f", [DUAL, HE], ids=["dual", "he"])
def test_the_exact_sum_of_all(f: Federation, tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        decryptor, everybody = DecryptorSite(hub), sites(hub)
        async with running(decryptor, *everybody) as tasks:
            outcome = await hub.run(PATIENT)
            assert exact(outcome, (1, 2, 3, 4))
            hub.server.broadcast(RoundResult(1, 0, (1, 2, 3, 4), bytes(32), bytes(32)))
            hub.server.broadcast(Finished(1))
            assert await asyncio.wait_for(tasks[0], 30) == 1
        assert all(site.charged == [1] for site in everybody)
        assert [e["event"] for e in decryptor.events] == ["key", *["added"] * 4, "opened", "finished"]
        assert decryptor.memory.joined == (1, 0) and decryptor.memory.opened_round == 1
        assert all(p._process.returncode is not None for p in decryptor.processes)  # the key is gone
        assert not list((tmp_path / "spool").iterdir())

    play(f, tmp_path, scenario)


@pytest.mark.parametrize("phase", [Phase.SHARE_KEYS, Phase.MASKED_INPUT, Phase.CONSISTENCY_CHECK])
def test_a_lost_client_stops_nothing(tmp_path: Path, phase: Phase) -> None:
    async def scenario(hub: Hub) -> None:
        lost = Site(hub, ClientId(3), VALUES[ClientId(3)], stop_at=phase)
        async with running(DecryptorSite(hub), *sites(hub, c3=lost)):
            outcome = await hub.run(PATIENT)
        assert exact(outcome, (1, 2, 3, 4) if phase is Phase.CONSISTENCY_CHECK else (1, 2, 4))

    play(DUAL, tmp_path, scenario)


@pytest.mark.parametrize(
    "make", [truncated, over_long, other_parameters, above_the_modulus, one_more], ids=lambda m: m.__name__
)
def test_a_malformed_ciphertext_costs_its_sender_only(tmp_path: Path, make: Callable[..., list[bytes]]) -> None:
    """It has the digest that its client signed; the server finds out before it counts as uploaded."""
    evil = replace(DUAL, scheme=Evil(make))

    async def scenario(hub: Hub) -> None:
        bad = Site(replace_federation(hub, evil), ClientId(3), VALUES[ClientId(3)])
        async with running(DecryptorSite(hub), *sites(hub, c3=bad)) as tasks:
            assert exact(await hub.run(PATIENT), (1, 2, 4))
            with pytest.raises(TransportError, match="refused a call"):
                await tasks[3]

    play(DUAL, tmp_path, scenario)


def replace_federation(hub: Hub, federation: Federation) -> Hub:
    """The same server, as a client with another federation sees it."""
    other = copy.copy(hub)
    other.federation = federation
    return other


def test_without_a_decryptor_the_attempt_ends_and_the_next_one_goes_on(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        async with running(*sites(hub), attempts=2):
            outcome = await hub.run(Deadlines(grace=1.0), there=range(1, N + 1))
            assert isinstance(outcome, Abort) and "the decryptor did not answer" in outcome.reason
            assert outcome.phase is Phase.ADVERTISE_KEYS
            async with running(DecryptorSite(hub)):
                await hub.server.wait_connected([DECRYPTOR], 10)
                again = await hub.server.run_attempt(hub.session(1, 1), PATIENT)
                assert exact(again, (1, 2, 3, 4))
                await hub.server.settle()

    play(DUAL, tmp_path, scenario)


def test_a_decryptor_that_is_restarted_lost_its_key(tmp_path: Path) -> None:
    """It is killed when the clients upload; a new process gets no second chance at this attempt, but the next one."""

    async def scenario(hub: Hub) -> None:
        first = DecryptorSite(hub)
        slow = Site(hub, ClientId(2), VALUES[ClientId(2)], rate_limit=60_000)
        async with running(*sites(hub, c2=slow), attempts=2):
            async with running(first):
                attempt = asyncio.create_task(hub.run(PATIENT))
                await hub.until("phase", phase="MASKED_INPUT")
            second = DecryptorSite(hub)
            async with running(second):
                outcome = await attempt
                assert isinstance(outcome, Abort) and "the decryptor did not answer" in outcome.reason
                assert hub.journal.ledger.seq == 1  # the row was written: the round is spent
                again = await hub.server.run_attempt(hub.session(2), PATIENT)
                assert exact(again, (1, 2, 3, 4))
                await hub.server.settle()
                assert [e["event"] for e in second.events][:1] == ["key"]

    play(DUAL, tmp_path, scenario)


def test_a_line_that_breaks_costs_the_decryptor_nothing(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        async with Line(hub.port) as line:
            decryptor = DecryptorSite(hub, port=line.port)
            async with running(decryptor, *sites(hub)):
                attempt = asyncio.create_task(hub.run(PATIENT))
                for phase in ("SHARE_KEYS", "INPUT_HASHES", "UNMASKING"):
                    await hub.until("phase", phase=phase)
                    line.cut()
                assert exact(await attempt, (1, 2, 3, 4))

    play(DUAL, tmp_path, scenario)


def test_encrypted_inputs_go_to_nobody_else(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        identity = certificates(N)[1][0]
        async with grpc.aio.secure_channel(
            f"{HOST}:{hub.port}", channel_credentials(identity), options=limits.client_options()
        ) as channel:
            request = frames.encode_input_request(frames.InputRequest(bytes(16), 1, 0, ClientId(2), 0))
            call = channel.unary_stream(f"/{limits.SERVICE}/Input")(request)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        async with AggregationClient(HOST, hub.port, decryptor_certificate(), patience=QUICK) as rpc:
            with pytest.raises(TransportError, match="refused a call"):  # no attempt runs
                async for _ in rpc.fetch(ClientId(2)):
                    raise AssertionError

    play(DUAL, tmp_path, scenario)


def test_a_decryptors_certificate_is_no_clients(tmp_path: Path) -> None:
    """Whoever holds it can say what a decryptor says, and nothing else."""

    async def scenario(hub: Hub) -> None:
        async with (
            running(*sites(hub)),
            AggregationClient(HOST, hub.port, decryptor_certificate(), patience=QUICK) as rpc,
        ):
            waiting = asyncio.create_task(rpc.next())
            attempt = asyncio.create_task(hub.run(Deadlines(grace=1.0)))
            announcement = await waiting
            assert isinstance(announcement, Announcement)
            receipt = await rpc.send(DecryptorKey(b"key", bytes(64)))
            assert receipt.status is frames.Status.ACCEPTED  # and the attempt ends for it
            outcome = await attempt
            assert isinstance(outcome, Abort) and "the decryptor's key is not signed" in outcome.reason

    play(DUAL, tmp_path, scenario)


@pytest.mark.parametrize(
    ("event", "values"),
    [("phase", {"phase": "MASKED_INPUT"}), ("phase", {"phase": "UNMASKING"}), ("upload", {"client": 0})],
    ids=["uploads", "opening", "opened"],
)
def test_a_killed_server_goes_on_with_an_encrypted_attempt(tmp_path: Path, event: str, values: dict[str, Any]) -> None:
    """The server's process is replaced; clients and decryptor keep theirs."""

    async def main() -> None:
        first = Hub(DUAL, tmp_path)
        await first.__aenter__()
        decryptor, everybody = DecryptorSite(first), sites(first)
        everybody[1].rate_limit = 60_000
        async with running(decryptor, *everybody):
            attempt = asyncio.create_task(first.run(PATIENT))
            await first.until(event, **values)
            killed = first.server
            killed._give_up = lambda session: None  # type: ignore[method-assign] - a killed process says nothing
            killed.settle = _nothing  # type: ignore[method-assign]
            await killed.stop(0.0)  # and answers nobody; on a loaded machine the attempt may end meanwhile
            attempt.cancel()
            await asyncio.gather(attempt, return_exceptions=True)
            assert killed._log is not None
            killed._log.close()  # the file lock goes with the process
            await first.__aexit__()
            async with Hub(DUAL, tmp_path, first.port) as second:
                assert second.resumed, second.burnt
                outcome = await asyncio.wait_for(second.server.resume(PATIENT), 40)
                assert exact(outcome, (1, 2, 3, 4))
                await second.server.settle()

    asyncio.run(main())


async def _nothing() -> None:
    """What a killed process does."""


@pytest.mark.slow
def test_ten_clients_a_million_parameters(tmp_path: Path) -> None:
    """A dual round gives the bit-exact sum of the masked round with the same inputs."""
    n, length = 10, 1_000_000
    changes = {"aggregation__max_corrupt": 3, "aggregation__min_cohort": 7, "aggregation__chunk_words": 65536}
    totals = []
    bound = federation(n, length, **changes).manifest.aggregation.bound
    spread = np.arange(length, dtype=np.int64)
    values = {ClientId(c): (spread * 7919 * c + c) % (2 * bound + 1) - bound for c in range(1, n + 1)}
    for name, f in (
        ("masking", federation(n, length, **changes)),
        ("dual", consortium("dual", n, length, **changes)),
    ):

        async def scenario(hub: Hub) -> None:
            decryptor = [] if hub.federation.roster.decryptor is None else [DecryptorSite(hub, patience=LASTING)]
            everybody = sites(hub, values)
            for site in everybody:
                site.patience = LASTING
            async with running(*decryptor, *everybody):
                outcome = await hub.run(Deadlines(300.0, 300.0, 600.0, 300.0, 300.0, grace=60.0))
                assert isinstance(outcome, Released), outcome
                totals.append(outcome.total)

        play(f, tmp_path / name, scenario, 900)
    assert np.array_equal(*totals)
    assert np.array_equal(totals[0], sum(values.values()))
