"""Abusive clients over real TLS: one member of four misbehaves as no client of ours would, three finish exactly.

Sans-I/O abuse (what a client says) is in tests/test_abusive_client.py; here it is about how bytes arrive: endless, too
long, too slow, cut off, too many, under another name. Where each abuse of SECAGG 7 is played:

- oversized or endless uploads: here; test_rpc.py (refused before the body), test_spool.py
- floods, slow loris, truncated streams, another client's id: here
- wrong shapes: here and in test_abusive_client.py
- duplicate connections: here and in test_rpc.py; an expired certificate: test_rpc.py
- a garbage share against an honest client: test_abusive_client.py
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from simulator import insecure_rng, random_values
from wire import HOST, QUICK, Hub, Site, certificates, federation, running

from protocol.client import ClientSession
from protocol.client_states import ClientMemory
from protocol.codec import encode_client
from protocol.effects import Released, Send
from protocol.messages import AdvertiseKeys, Announcement
from protocol.rpc import frames, limits
from protocol.rpc.client import AggregationClient
from protocol.rpc.credentials import channel_credentials
from protocol.rpc.frames import Cursor, Submission, UploadChunk
from protocol.rpc.limits import Deadlines
from secagg.types import ClientId

N = 4
FEDERATION = federation(N)
PARAMS = FEDERATION.manifest.secagg_params()
VALUES = random_values(FEDERATION.manifest, range(1, N + 1))
BAD = ClientId(4)
HONEST = (1, 2, 3)
PATIENT = Deadlines(grace=2.0)
HURRIED = Deadlines(masked_input=6.0, grace=2.0)  # a stalled upload is somebody who is there: the deadline decides

Scenario = Callable[[Hub], Coroutine[Any, Any, None]]


def play(folder: Path, scenario: Scenario, seconds: float = 60) -> list[dict[str, Any]]:
    async def main() -> list[dict[str, Any]]:
        async with Hub(FEDERATION, folder) as hub:
            await asyncio.wait_for(scenario(hub), seconds)
            return hub.events

    return asyncio.run(main())


def honest(hub: Hub) -> list[Site]:
    return [Site(hub, ClientId(i), VALUES[ClientId(i)]) for i in HONEST]


def exact(outcome: object, members: tuple[int, ...] = HONEST) -> bool:
    assert isinstance(outcome, Released), outcome
    assert outcome.masked == members
    return bool((outcome.total == np.sum([VALUES[ClientId(c)] for c in members], axis=0)).all())


def raw_channel(hub: Hub) -> grpc.aio.Channel:
    """A connection of client 4, without our client: for what our client would never send."""
    credentials = channel_credentials(certificates(N)[1][BAD - 1])
    return grpc.aio.secure_channel(f"{HOST}:{hub.port}", credentials, options=limits.client_options())


def upload_of(channel: grpc.aio.Channel) -> "grpc.aio.StreamUnaryMultiCallable[bytes, bytes]":
    return channel.stream_unary(f"/{limits.SERVICE}/Upload")


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


# -- uploads: endless, too long, too short, cut off --------------------------------------------------------------------


@dataclass
class Abuser(Site):
    """An honest client but for the chunks of its upload."""

    bend: Callable[[Iterator[bytes]], Iterator[bytes]] = iter
    largest: int = 0
    watched: list[int] = field(default_factory=list)

    def pieces(self, first: int = 0) -> Iterator[bytes]:
        for chunk in self.bend(super().pieces(first)):
            spools = [path.stat().st_size for path in (self.hub.folder / "spool").rglob("*.spool")]
            self.watched.append(max(spools, default=0))
            yield chunk


def endless(chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield from chunks
    while True:
        yield bytes(8 * PARAMS.chunk_words)


def longer(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk + bytes(8)


def largest(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for _ in chunks:
        yield bytes(frames.MAX_CHUNK)


def crooked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk[:-3]


def cut(chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield next(chunks)
    yield next(chunks)


def other_order(chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield from reversed(list(chunks))


BENDS = [longer, largest, crooked, cut, other_order]


@pytest.mark.parametrize("bend", BENDS, ids=lambda b: b.__name__)
def test_a_bent_upload_is_refused_and_the_others_finish(tmp_path: Path, bend: Any) -> None:
    async def scenario(hub: Hub) -> None:
        abuser = Abuser(hub, BAD, VALUES[BAD], bend=bend)
        async with running(*honest(hub), abuser) as tasks:
            assert exact(await hub.run(HURRIED))
            whole = 8 * PARAMS.total_words
            assert abuser.watched and max(abuser.watched) <= whole  # on disk never more than a whole upload
            tasks[-1].cancel()

    events = play(tmp_path, scenario)
    assert [e["reason"] for e in events if e["event"] == "drop"] == ["TIMED_OUT"]


def test_an_endless_upload_ends_where_the_header_said(tmp_path: Path) -> None:
    """Its first chunks are the signed ones, so it is in the sum; what comes after them is not even read."""

    async def scenario(hub: Hub) -> None:
        abuser = Abuser(hub, BAD, VALUES[BAD], bend=endless)
        async with running(*honest(hub), abuser):
            assert exact(await hub.run(PATIENT), (*HONEST, 4))
            assert max(abuser.watched) <= 8 * PARAMS.total_words
            assert len(abuser.watched) < 10_000

    play(tmp_path, scenario)


def chunk(index: int, data: bytes = bytes(8 * PARAMS.chunk_words)) -> bytes:
    return frames.encode_part(UploadChunk(index, data))


PARTS: dict[str, Callable[[bytes], list[bytes]]] = {
    "a chunk before the header": lambda header: [chunk(0)],
    "two headers": lambda header: [header, header],
    "no part at all": lambda header: [],
    "nothing after the header": lambda header: [header],
    "garbage": lambda header: [b"\xff" * 1000],
    "garbage after the header": lambda header: [header, b"\xff" * 1000],
    "a chunk twice": lambda header: [header, chunk(0), chunk(0)],
    "a chunk left out": lambda header: [header, chunk(0), chunk(2)],
    "a chunk of another length": lambda header: [header, chunk(0, bytes(8))],
    "another message as header": lambda header: [
        frames.encode_part(Submission(bytes(16), 1, 0, bytes.fromhex("22420a40") + bytes(64)))
    ],
}


def test_malformed_streams_are_answered_and_hurt_nobody(tmp_path: Path) -> None:
    """After a header that was accepted: the client itself is honest until then, and its own upload never moves."""

    async def scenario(hub: Hub) -> None:
        channel = raw_channel(hub)
        abuser = Abuser(hub, BAD, VALUES[BAD], bend=stuck)
        async with running(*honest(hub), abuser):
            attempt = asyncio.create_task(hub.run(HURRIED))
            while abuser.header is None or abuser.rpc is None:
                await asyncio.sleep(0.02)
            header = frames.encode_part(Submission(abuser.rpc._token, 1, 0, encode_client(abuser.header)))
            answers = {}
            for case, parts in PARTS.items():
                answers[case] = [await answer_to(upload_of(channel)(iter(parts(header)), timeout=5)) for _ in range(3)]
            assert exact(await attempt)
            assert {a for several in answers.values() for a in several} == {"INVALID_ARGUMENT", "PARTIAL"}, answers
            good = [case for case, several in answers.items() if "PARTIAL" in several]
            assert set(good) <= {case for case in PARTS if case.startswith("a chunk ")}  # once chunk 0 is there
        await channel.close()

    play(tmp_path, scenario)


async def answer_to(call: Any) -> str:
    """The error's name, or that of the receipt's status: PARTIAL says from which chunk the server would go on."""
    try:
        return frames.decode_receipt(await call).status.name
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)


def stuck(chunks: Iterator[bytes]) -> Iterator[bytes]:
    time.sleep(0.01)
    yield from ()


# -- slow loris --------------------------------------------------------------------------------------------------------


def test_an_upload_that_stalls_costs_its_client_and_nobody_else(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        slow = Site(hub, BAD, VALUES[BAD], rate_limit=8)  # one byte a second or so: months to go
        async with running(*honest(hub), slow):
            begun = time.monotonic()
            assert exact(await hub.run(HURRIED))
            assert time.monotonic() - begun < 20
            assert [p for p in (hub.folder / "spool").rglob("*.spool")] == []

    play(tmp_path, scenario)


def test_a_stream_that_says_nothing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PART_IDLE", 0.5)

    async def scenario(hub: Hub) -> None:
        channel = raw_channel(hub)
        begun = time.monotonic()
        assert await code_of(upload_of(channel)(forever())) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - begun < 5
        await channel.close()

    play(tmp_path, scenario)


async def forever() -> AsyncIterator[bytes]:
    await asyncio.sleep(3600)
    yield b""


def test_idle_streams_of_one_client_do_not_keep_the_others_from_uploading(tmp_path: Path) -> None:
    """As many open uploads as the server has slots for all clients together, over several connections."""

    async def scenario(hub: Hub) -> None:
        channels = [raw_channel(hub) for _ in range(6)]
        idle = [
            asyncio.ensure_future(upload_of(channel)(forever()))
            for channel in channels
            for _ in range(limits.MAX_STREAMS)
        ]
        await asyncio.sleep(1.0)
        async with running(*honest(hub)):
            begun = time.monotonic()
            # who has a stream open is there, and is waited for until the deadline of the phase
            assert exact(await hub.run(Deadlines(advertise_keys=3.0, grace=2.0), there=HONEST))
            assert time.monotonic() - begun < limits.PART_IDLE / 2
        await put_away(idle, channels)

    play(tmp_path, scenario)


def test_downloads_that_nobody_reads_do_not_keep_the_others_from_downloading(tmp_path: Path) -> None:
    blob = bytes(8 * 1024 * 1024)

    async def scenario(hub: Hub) -> None:
        hub.server.publish(b"\x01" * 32, blob)
        channels = [raw_channel(hub) for _ in range(6)]
        request = frames.encode_request(frames.BlobRequest(b"\x01" * 32))
        unread = [
            channel.unary_stream(f"/{limits.SERVICE}/Download")(request)
            for channel in channels
            for _ in range(limits.MAX_STREAMS)
        ]
        await asyncio.sleep(1.0)
        async with AggregationClient(HOST, hub.port, certificates(N)[1][0], patience=QUICK) as one:
            assert await asyncio.wait_for(one.download(b"\x01" * 32, len(blob)), 10) == blob
        for call in unread:
            call.cancel()
        for channel in channels:
            await channel.close()

    play(tmp_path, scenario)


async def put_away(calls: list[asyncio.Future[Any]], channels: list[grpc.aio.Channel]) -> None:
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    for channel in channels:
        await channel.close()


def test_silent_connections_do_not_lock_the_door(tmp_path: Path) -> None:
    """More TCP connections than the server admits, none of which begins a handshake: it takes no certificate."""

    async def scenario(hub: Hub) -> None:
        silent = []
        for _ in range(4 * N + 40):
            sock = socket.create_connection((HOST, hub.port))
            silent.append(sock)
        async with running(*honest(hub)):
            begun = time.monotonic()
            assert exact(await hub.run(PATIENT, there=HONEST))
            assert time.monotonic() - begun < 4 * limits.HANDSHAKE
        for sock in silent:
            sock.close()

    play(tmp_path, scenario)


# -- floods ------------------------------------------------------------------------------------------------------------


def test_a_flood_of_calls_does_not_stop_the_round(tmp_path: Path) -> None:
    """Polls, messages, garbage and the largest frames, as fast as one client can, over four connections."""

    async def scenario(hub: Hub) -> None:
        channels = [raw_channel(hub) for _ in range(4)]
        sent = 0
        largest_frame = frames.encode_submission(Submission(bytes(16), 1, 0, bytes(300_000)))

        async def flood(channel: grpc.aio.Channel) -> None:
            nonlocal sent
            send = channel.unary_unary(f"/{limits.SERVICE}/Send")
            poll = channel.unary_unary(f"/{limits.SERVICE}/Next")
            for i in count():
                calls = [
                    poll(frames.encode_cursor(Cursor(i.to_bytes(16, "big"), b"", 0)), timeout=1),
                    send(largest_frame, timeout=5),
                    send(b"\xff" * 1000, timeout=5),
                    send(frames.encode_submission(Submission(bytes(16), 1, 0, b"")), timeout=5),
                ]
                await asyncio.gather(*calls, return_exceptions=True)
                sent += len(calls)

        async with running(*honest(hub)):
            floods = [asyncio.create_task(flood(channel)) for channel in channels]
            begun = time.monotonic()
            assert exact(await hub.run(Deadlines(advertise_keys=8.0, grace=2.0), there=HONEST))
            assert time.monotonic() - begun < 45 and sent > 50
            await put_away(floods, channels)

    play(tmp_path, scenario, 90)


def test_two_processes_of_one_client_that_fight_hurt_nobody_else(tmp_path: Path) -> None:
    """Each takes over from the other as often as it can; neither gets far, and three finish."""

    async def scenario(hub: Hub) -> None:
        channel = raw_channel(hub)
        poll = channel.unary_unary(f"/{limits.SERVICE}/Next")

        async def fight(token: bytes) -> None:
            while True:
                await asyncio.gather(
                    poll(frames.encode_cursor(Cursor(token, b"", 0)), timeout=1), return_exceptions=True
                )
                await asyncio.sleep(0.01)

        async with running(*honest(hub)):
            fights = [asyncio.create_task(fight(bytes([i]) * 16)) for i in (1, 2)]
            assert exact(await hub.run(Deadlines(advertise_keys=5.0, grace=2.0), there=HONEST))
            await put_away(fights, [channel])

    events = play(tmp_path, scenario)
    assert [(e["client"], e["reason"]) for e in events if e["event"] == "drop"] == [(BAD, "TIMED_OUT")]


# -- another client's id -----------------------------------------------------------------------------------------------


def test_a_message_of_another_client_is_this_clients_own_fault(tmp_path: Path) -> None:
    """Client 4 sends, over its own connection, what client 1 would have signed: identity is the certificate's."""

    async def scenario(hub: Hub) -> None:
        tls = certificates(N)[1][BAD - 1]
        async with running(*honest(hub)), AggregationClient(HOST, hub.port, tls, patience=QUICK) as rpc:
            attempt = asyncio.create_task(hub.run(PATIENT))
            announcement = await rpc.next()
            assert isinstance(announcement, Announcement)
            memory = ClientMemory.fresh(FEDERATION.manifest)
            as_one = ClientSession(FEDERATION.setup(ClientId(1)), announcement, memory, insecure_rng("thief"))
            (keys,) = [e.message for e in as_one.start() if isinstance(e, Send)]
            assert isinstance(keys, AdvertiseKeys)
            receipt = await rpc.send(keys)
            assert receipt.status is frames.Status.REFUSED and "BAD_SIGNATURE" in receipt.reason
            assert exact(await attempt)

    events = play(tmp_path, scenario)
    assert [(e["client"], e["reason"]) for e in events if e["event"] == "drop"] == [(BAD, "BAD_SIGNATURE")]


def test_a_token_of_another_client_opens_nothing(tmp_path: Path) -> None:
    """Tokens name processes of the client that the certificate names: client 1's, from client 4, is client 4's."""

    async def scenario(hub: Hub) -> None:
        async with running(*honest(hub)) as tasks:
            attempt = asyncio.create_task(hub.run(PATIENT, there=HONEST))
            await hub.until("phase", phase="ADVERTISE_KEYS")
            token = hub.server._outboxes[ClientId(1)].token
            assert token is not None
            channel = raw_channel(hub)
            answer = await channel.unary_unary(f"/{limits.SERVICE}/Next")(
                frames.encode_cursor(Cursor(token, b"", 0)), timeout=20
            )
            assert frames.decode_delivery(answer).waiting is not None
            assert hub.server._outboxes[ClientId(1)].token == token
            await channel.close()
            assert exact(await attempt)
            assert not any(task.done() and task.exception() for task in tasks)

    play(tmp_path, scenario)
