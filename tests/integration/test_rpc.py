"""Real gRPC with mutual TLS on loopback: the whole attempt, its losses, and peers that misbehave."""

import asyncio
import dataclasses
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from cryptography import x509
from simulator import random_values
from wire import HOST, QUICK, Hub, Line, Site, authority, certificates, federation, leaf, running

from protocol.effects import Abort, Released
from protocol.errors import RemoteProtocolError, TransportError
from protocol.messages import (
    Announcement,
    AttemptAborted,
    ConsistencyCheck,
    Finished,
    MaskedInput,
    RoundResult,
    Statement,
    Withdraw,
)
from protocol.rpc import frames, limits, pki
from protocol.rpc.client import AggregationClient
from protocol.rpc.credentials import Doorkeeper, channel_credentials
from protocol.rpc.frames import Cursor, Status, Submission, UploadChunk
from protocol.rpc.journal import ServerJournal
from protocol.rpc.limits import Deadlines
from protocol.rpc.server import AggregationServer, ServerSetup
from protocol.rpc.status import Refusal
from secagg.types import ClientId, Phase

N = 4
FEDERATION = federation(N)
VALUES = random_values(FEDERATION.manifest, range(1, N + 1))
PATIENT = Deadlines(grace=2.0)  # a lost client must be noticed by its absence, never by a deadline

Scenario = Callable[[Hub], Coroutine[Any, Any, None]]


def play(folder: Path, scenario: Scenario) -> list[dict[str, Any]]:
    """Run a scenario against a fresh server; its events."""

    async def main() -> list[dict[str, Any]]:
        async with Hub(FEDERATION, folder) as hub:
            await asyncio.wait_for(scenario(hub), 30)
            return hub.events

    return asyncio.run(main())


def sites(hub: Hub, **only: Site) -> list[Site]:
    """One site per client; `c3=...` replaces that of client 3."""
    return [only.get(f"c{i}", Site(hub, ClientId(i), VALUES[ClientId(i)])) for i in range(1, N + 1)]


def client(hub: Hub, number: int, **options: Any) -> AggregationClient:
    return AggregationClient(HOST, hub.port, certificates(N)[1][number - 1], patience=QUICK, **options)


def expected(masked: tuple[ClientId, ...]) -> np.ndarray:
    return np.sum([VALUES[c] for c in masked], axis=0)


def raw_channel(hub: Hub, number: int) -> grpc.aio.Channel:
    """A channel without our client: for what our client would never send."""
    identity = certificates(N)[1][number - 1]
    return grpc.aio.secure_channel(f"{HOST}:{hub.port}", channel_credentials(identity), options=limits.client_options())


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


# ---- the attempt and its losses


def test_the_exact_sum_of_all(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        everybody = sites(hub)
        async with running(*everybody) as tasks:
            outcome = await hub.run(PATIENT)
            assert isinstance(outcome, Released)
            assert outcome.masked == (1, 2, 3, 4)
            assert (outcome.total == expected(outcome.masked)).all()
            result = RoundResult(1, 0, outcome.masked, bytes(32), bytes(32))
            hub.server.broadcast(result)
            await asyncio.wait_for(asyncio.gather(*tasks), 5)
        assert all(site.results == [result] and site.charged == [1] for site in everybody)
        assert all(receipt.status is Status.ACCEPTED for site in everybody for receipt in site.receipts)
        assert not list((tmp_path / "spool").iterdir())

    play(tmp_path, scenario)
    with_row = ServerJournal(tmp_path / "server" / "journal.sqlite", FEDERATION.manifest.digest())
    assert (with_row.last, with_row.ledger.seq) == ((1, 0), 1)
    with_row.close()


@pytest.mark.parametrize("phase", [p for p in Phase if p < Phase.COMPLETED])
def test_a_client_lost_in_any_phase(tmp_path: Path, phase: Phase) -> None:
    async def scenario(hub: Hub) -> None:
        async with running(*sites(hub, c3=Site(hub, ClientId(3), VALUES[ClientId(3)], stop_at=phase))):
            begun = time.monotonic()
            outcome = await hub.run(PATIENT)
            assert time.monotonic() - begun < 10
            assert isinstance(outcome, Released)
            lost_before_upload = phase <= Phase.MASKED_INPUT
            assert outcome.masked == ((1, 2, 4) if lost_before_upload else (1, 2, 3, 4))
            assert (outcome.total == expected(outcome.masked)).all()
        assert [(d["client"], d["reason"]) for d in hub.named("drop")] == [(3, "TIMED_OUT")]

    play(tmp_path, scenario)


def test_two_lost_clients_are_one_too_many(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        gone = {f"c{i}": Site(hub, ClientId(i), VALUES[ClientId(i)], stop_at=Phase.SHARE_KEYS) for i in (2, 3)}
        everybody = sites(hub, **gone)
        async with running(*everybody) as tasks:
            outcome = await hub.run(PATIENT)
            assert isinstance(outcome, Abort) and outcome.phase is Phase.SHARE_KEYS
            await asyncio.wait_for(asyncio.gather(tasks[0], tasks[3]), 5)
        assert [type(r) for r in everybody[0].results] == [AttemptAborted]

    play(tmp_path, scenario)


def test_a_client_killed_in_the_middle_of_its_upload(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        slow = Site(hub, ClientId(2), VALUES[ClientId(2)], rate_limit=100)
        async with running(*sites(hub, c2=slow)) as tasks:
            attempt = asyncio.create_task(hub.run(PATIENT))
            event = await hub.until("upload", client=2)
            assert 1 <= event["chunk"] < event["of"]
            for other in (1, 3, 4):
                await hub.until("upload", client=other, chunk=event["of"])
            whole = 8 * hub.federation.manifest.secagg_params().total_words
            half = [spool for spool in (tmp_path / "spool").iterdir() if spool.stat().st_size < whole]
            assert len(half) == 1
            tasks[1].cancel()
            assert half[0].exists()  # its process might only have lost the connection
            outcome = await attempt
            assert not half[0].exists()
            assert isinstance(outcome, Released) and outcome.masked == (1, 3, 4)
            assert (outcome.total == expected(outcome.masked)).all()

    play(tmp_path, scenario)


def test_connections_that_break_in_every_phase_lose_nothing(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        async with Line(hub.port) as line:
            shaky = Site(hub, ClientId(1), VALUES[ClientId(1)], rate_limit=1500, port=line.port)
            async with running(shaky, *sites(hub)[1:]):
                attempt = asyncio.create_task(hub.run(Deadlines(grace=5.0)))
                for phase in ("ADVERTISE_KEYS", "SHARE_KEYS"):
                    await hub.until("phase", phase=phase)
                    line.cut()
                await hub.until("upload", client=1, chunk=2)
                line.cut()  # in the middle of the upload, which goes on there
                await hub.until("upload", client=1, chunk=4)
                line.cut()
                for phase in ("CONSISTENCY_CHECK", "UNMASKING"):
                    await hub.until("phase", phase=phase)
                    line.cut()
                outcome = await attempt
        assert isinstance(outcome, Released) and outcome.masked == (1, 2, 3, 4)
        assert (outcome.total == expected(outcome.masked)).all()
        chunks = FEDERATION.manifest.secagg_params().num_chunks
        assert [e["chunk"] for e in hub.named("upload") if e["client"] == 1] == list(range(1, chunks + 1))
        assert hub.named("drop") == [] and line.cuts >= 6

    play(tmp_path, scenario)


def test_an_upload_over_a_line_that_breaks_again_and_again_costs_less_than_two(tmp_path: Path) -> None:
    """Real chunks of 128 KiB; the line is cut four times on the way. What was received stays, and is not sent again."""
    big = federation(N, length=48 * (16384 - 1) * 3, aggregation__chunk_words=16384)
    params = big.manifest.secagg_params()
    values = {c: np.full(params.vector_length, c, dtype=np.int64) for c in big.roster.ids}
    size = 8 * params.total_words
    cuts = [size // 5, 2 * size // 5, 3 * size // 5, 4 * size // 5]

    async def main() -> None:
        async with Hub(big, tmp_path) as hub, Line(hub.port, cuts) as line:
            shaky = Site(hub, ClientId(1), values[ClientId(1)], port=line.port, rate_limit=20_000_000)
            async with running(shaky, *(Site(hub, c, values[c]) for c in big.roster.ids[1:])):
                outcome = await hub.run(Deadlines(grace=20.0))  # a loaded machine is not what breaks here
            assert isinstance(outcome, Released) and outcome.masked == (1, 2, 3, 4)
            assert (outcome.total == 10).all()
            assert line.cuts == len(cuts) and params.num_chunks > 40
            assert size < line.sent < 2 * size and shaky.sent < 2 * size

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_second_upload_of_the_same_header_goes_on_where_the_first_was(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        slow = Site(hub, ClientId(1), VALUES[ClientId(1)], rate_limit=400)
        slow.patience = dataclasses.replace(QUICK, unreachable=20.0)  # a slow disk is no reason to give up
        async with running(slow, *sites(hub)[1:]) as tasks:
            attempt = asyncio.create_task(hub.run(PATIENT))
            await hub.until("upload", client=1, chunk=1)
            assert slow.rpc is not None and slow.header is not None and slow.words is not None
            receipt = await slow.rpc.upload(slow.header, slow.pieces)
            assert receipt.status is Status.ACCEPTED
            assert (await slow.rpc.upload(slow.header, slow.pieces)).status is Status.ACCEPTED  # once is enough
            outcome = await attempt
            assert isinstance(outcome, Released) and outcome.masked == (1, 2, 3, 4)
            assert (outcome.total == expected(outcome.masked)).all()
            hub.server.broadcast(Finished(1))
            await asyncio.wait_for(tasks[0], 5)  # told that its upload was given up, it asked: it is complete
            assert slow.receipts[-1].status is Status.ACCEPTED

    play(tmp_path, scenario)


def test_a_client_that_withdraws_is_not_waited_for(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        async with running(*sites(hub)[:3]), client(hub, 4) as fourth:
            attempt = asyncio.create_task(hub.run(PATIENT))
            assert isinstance(await fourth.next(), Announcement)
            assert (await fourth.send(Withdraw("E201", "BudgetExceededError"))).status is Status.REFUSED
            outcome = await attempt
            assert isinstance(outcome, Released) and outcome.masked == (1, 2, 3)
        assert hub.named("withdraw")[0]["code"] == "E201"
        assert [d["reason"] for d in hub.named("drop")] == ["WITHDREW"]

    play(tmp_path, scenario)


# ---- restarts


def test_a_restarted_client_waits_for_the_next_attempt(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        burnt = Site(hub, ClientId(2), VALUES[ClientId(2)], stop_at=Phase.SHARE_KEYS)
        others = [site for site in sites(hub) if site.client != 2]
        again = Site(hub, ClientId(2), VALUES[ClientId(2)])
        async with running(*others, burnt, attempts=2) as tasks:
            attempt = asyncio.create_task(hub.run(Deadlines(share_keys=4.0)))
            await asyncio.wait_for(tasks[3], 10)  # died after AdvertiseKeys
            async with running(again, attempts=2):
                outcome = await attempt
                assert isinstance(outcome, Released) and outcome.masked == (1, 3, 4)
                assert again.receipts == [] and again.results == []
                hub.server.broadcast(RoundResult(1, 0, outcome.masked, bytes(32), bytes(32)))
                second = await hub.run(PATIENT, 2)
                assert isinstance(second, Released) and second.masked == (1, 2, 3, 4)

    play(tmp_path, scenario)


def test_a_restarted_server_goes_on_with_its_ledger(tmp_path: Path) -> None:
    async def main() -> None:
        async with Hub(FEDERATION, tmp_path) as first:
            port = first.port
            everybody = sites(first)
            async with running(*everybody, attempts=3):
                assert isinstance(await first.run(PATIENT), Released)
                stuck = asyncio.create_task(first.run(PATIENT, 2))
                await first.until("phase", round=2, phase="SHARE_KEYS")
                stuck.cancel()  # the server is stopped in the middle of round 2; its clients live on
                await asyncio.gather(stuck, return_exceptions=True)
                await first.server.stop(0)
                first.journal.close()
                async with Hub(FEDERATION, tmp_path, port=port) as second:
                    assert second.journal.last == (2, 0) and not second.resumed  # its clients were told
                    assert second.journal.ledger.seq >= 1
                    outcome = await second.run(PATIENT, 3)
                    assert isinstance(outcome, Released) and outcome.masked == (1, 2, 3, 4)
                    assert (outcome.total == expected(outcome.masked)).all()

    asyncio.run(asyncio.wait_for(main(), 30))


# ---- who may call


def test_a_servers_certificate_opens_no_clients_channel(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        async with AggregationClient(HOST, hub.port, certificates(N)[0], patience=QUICK) as impostor:
            with pytest.raises(TransportError) as caught:
                await impostor.next()
            assert caught.value.code == "E310" and "certificate" in str(caught.value.do)
        assert hub.named("connected") == []

    play(tmp_path, scenario)


def test_a_client_outside_the_roster_is_refused_by_every_call(tmp_path: Path) -> None:
    smaller = FEDERATION.roster.model_copy(update={"clients": FEDERATION.roster.clients[:3]})

    async def main() -> None:
        journal = ServerJournal(tmp_path / "server" / "journal", FEDERATION.manifest.digest())
        server = AggregationServer(ServerSetup(smaller, certificates(N)[0], journal, tmp_path / "spool"))
        port = await server.start(HOST, 0)
        async with AggregationClient(HOST, port, certificates(N)[1][3], patience=QUICK) as fourth:
            header = MaskedInput(bytes(32), 5, (), bytes(64))
            for call in (
                fourth.next,
                lambda: fourth.send(ConsistencyCheck(bytes(64))),
                lambda: fourth.upload(header, lambda first: [bytes(8)]),
                lambda: fourth.download(bytes(32), 10),
            ):
                with pytest.raises(TransportError) as caught:
                    await call()
                assert caught.value.code == "E304", str(caught.value.found)
                assert "not in the roster" in str(caught.value.found)
        await server.stop(0)
        journal.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_another_authority_or_no_certificate_opens_no_channel(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        stranger = certificates(N, "somebody else")[1][0]
        async with AggregationClient(HOST, hub.port, stranger, patience=QUICK) as other:
            with pytest.raises(TransportError) as caught:
                await other.next()
            assert caught.value.code == "E345"  # it does not trust our server either
        server_only = grpc.ssl_channel_credentials(certificates(N)[0].authority_pem)
        channel = grpc.aio.secure_channel(f"{HOST}:{hub.port}", server_only)
        call = channel.unary_unary(f"/{limits.SERVICE}/Next")
        code, _ = await status_of(call(frames.encode_cursor(Cursor(bytes(16), b"", 0)), timeout=3))
        assert code is grpc.StatusCode.UNAVAILABLE
        await channel.close()
        assert hub.named("connected") == []

    play(tmp_path, scenario)


def test_an_expired_certificate_opens_no_channel_and_no_call(tmp_path: Path) -> None:
    old = leaf(authority("test"), "client-1", pki.Usage.CLIENT, timedelta(days=pki.LEAF_DAYS + 1))

    async def scenario(hub: Hub) -> None:
        async with AggregationClient(HOST, hub.port, old, patience=QUICK) as late:
            with pytest.raises(TransportError) as caught:
                await late.next()
            assert caught.value.code == "E310" and "dates" in str(caught.value.do)

    play(tmp_path, scenario)
    member = FEDERATION.roster.clients[0].model_copy(update={"tls_key_sha256": pki.spki_sha256(old.certificate)})
    door = Doorkeeper(FEDERATION.roster.model_copy(update={"clients": (member,)}))
    with pytest.raises(Refusal, match="validity"):  # a channel that was opened while it was valid
        door.client({"x509_pem_cert": [old.certificate_pem]})
    renewed = dataclasses.replace(old, certificate=_renewed(old))
    assert door.client({"x509_pem_cert": [renewed.certificate_pem]}) == 1  # same key, same client


def _renewed(old: pki.TlsIdentity) -> x509.Certificate:
    request = pki.signing_request(old.key, "client-1")
    return pki.issue_leaf(authority("test"), request, ("client-1", pki.Usage.CLIENT, ()), datetime.now(UTC))


def test_the_newer_process_of_a_client_takes_over(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        async with client(hub, 1) as old, client(hub, 1) as new:
            assert await hub.server.wait_connected([ClientId(1)], 0) == ()
            waiting = asyncio.create_task(old.next())
            assert await hub.server.wait_connected([ClientId(1)], 10) == (1,)
            await hub.until("connected", client=1)
            latest = asyncio.create_task(new.next())
            with pytest.raises(TransportError, match="refused a call") as caught:
                await waiting
            assert "another process of this client" in str(caught.value.found)
            hub.server.broadcast(Finished(1))
            assert await latest == Finished(1)

    play(tmp_path, scenario)


# ---- peers that misbehave


def test_garbage_is_answered_and_changes_nothing(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        channel = raw_channel(hub, 4)
        garbage = [b"", b"\xff" * 40, frames.encode_submission(Submission(bytes(16), 1, 0, b"\xff\xff"))]
        async with running(*sites(hub)[:3]):
            attempt = asyncio.create_task(hub.run(PATIENT, there=(1, 2, 3)))
            for name in ("Next", "Send"):
                for data in garbage:
                    code, text = await status_of(channel.unary_unary(f"/{limits.SERVICE}/{name}")(data, timeout=5))
                    assert (code, text[:6]) == (grpc.StatusCode.INVALID_ARGUMENT, "[E410]")
            upload = channel.stream_unary(f"/{limits.SERVICE}/Upload")
            for part in (b"\xff", frames.encode_part(UploadChunk(0, bytes(8)))):
                code, _ = await status_of(upload(iter([part]), timeout=5))
                assert code is grpc.StatusCode.INVALID_ARGUMENT
            code, _ = await status_of(channel.unary_unary(f"/{limits.SERVICE}/Nothing")(b"", timeout=5))
            assert code is grpc.StatusCode.UNIMPLEMENTED
            huge = bytes(limits.MAX_TO_SERVER + 1)
            raw = grpc.aio.secure_channel(f"{HOST}:{hub.port}", channel_credentials(certificates(N)[1][3]))
            code, _ = await status_of(raw.unary_unary(f"/{limits.SERVICE}/Send")(huge, timeout=5))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            await raw.close()
            outcome = await attempt
            assert isinstance(outcome, Released) and outcome.masked == (1, 2, 3)
        await channel.close()

    play(tmp_path, scenario)


def test_uploads_are_refused_before_their_body(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        async with running(*sites(hub)[:3]), client(hub, 4) as fourth:
            attempt = asyncio.create_task(hub.run(Deadlines(grace=2.0)))
            await fourth.next()
            header = MaskedInput(bytes(32), hub.federation.manifest.secagg_params().total_words, (), bytes(64))
            sent: list[int] = []

            def endless(first: int) -> Any:
                while True:
                    yield bytes(128)

            receipt = await fourth.upload(header, endless, on_chunk=sent.append)
            assert receipt.status is Status.REFUSED and "WRONG_PHASE" in receipt.reason
            assert not list((tmp_path / "spool").iterdir())
            assert sent == []
            raw = raw_channel(hub, 4)  # not our client: a body without asking first
            parts = [frames.encode_part(fourth._submission(header))]
            answer = await raw.stream_unary(f"/{limits.SERVICE}/Upload")(iter(parts), timeout=5)
            assert frames.decode_receipt(answer).status is Status.REFUSED
            await raw.close()
            await fourth.send(Withdraw("E000", "done"))
            assert isinstance(await attempt, Released)

    play(tmp_path, scenario)


def test_a_header_that_does_not_fit_is_named(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        liar = Site(hub, ClientId(2), VALUES[ClientId(2)], claim=1)
        async with running(*sites(hub, c2=liar)):
            outcome = await hub.run(PATIENT)
            assert isinstance(outcome, Released) and outcome.masked == (1, 3, 4)
        assert liar.receipts[-1].status is Status.REFUSED and "BAD_HEADER" in liar.receipts[-1].reason
        assert [(d["client"], d["reason"]) for d in hub.named("drop")] == [(2, "BAD_HEADER")]
        assert not [e for e in hub.named("upload") if e["client"] == 2]

    play(tmp_path, scenario)


def test_a_body_that_is_not_the_signed_one_is_not_in_the_sum(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        liar = Site(hub, ClientId(2), VALUES[ClientId(2)], corrupt=True)
        async with running(*sites(hub, c2=liar)) as tasks:
            outcome = await hub.run(PATIENT)
            assert isinstance(outcome, Released) and outcome.masked == (1, 3, 4)
            assert (outcome.total == expected(outcome.masked)).all()
            with pytest.raises(TransportError) as caught:
                await tasks[1]
            assert "other content than its header" in str(caught.value.found)

    play(tmp_path, scenario)


def test_messages_of_another_attempt_change_nothing(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        async with running(*sites(hub)[:3]), client(hub, 4) as fourth:
            fourth._attempt = (7, 7)
            attempt = asyncio.create_task(hub.run(PATIENT))
            assert (await fourth.send(ConsistencyCheck(bytes(64)))).status is Status.STALE
            assert isinstance(await fourth.next(), Announcement)
            assert (await fourth.send(ConsistencyCheck(bytes(64)))).status is Status.REFUSED
            await fourth.send(Withdraw("E000", "done"))
            assert isinstance(await attempt, Released)

    play(tmp_path, scenario)


def test_the_same_bytes_twice_get_the_same_receipt(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        sent: list[tuple[bytes, bytes]] = []
        submit = hub.server.submit

        def twice(who: ClientId, submission: Submission, message: Any) -> Any:
            first = submit(who, submission, message)
            second = submit(who, submission, message)  # the answer was lost and the client asked again
            sent.append((frames.encode_receipt(first), frames.encode_receipt(second)))
            return second

        hub.server.submit = twice  # type: ignore[method-assign]
        async with running(*sites(hub)):
            outcome = await hub.run(PATIENT)
            assert isinstance(outcome, Released) and outcome.masked == (1, 2, 3, 4)
        assert len(sent) == 5 * N and all(first == second for first, second in sent)

    play(tmp_path, scenario)


# ---- around attempts


def test_blobs_are_downloaded_in_pieces_and_bounded(tmp_path: Path) -> None:
    blob = bytes(range(256)) * 5000  # more than two chunks

    async def scenario(hub: Hub) -> None:
        hub.server.publish(b"\x01" * 32, blob)
        hub.server.publish(b"\x02" * 32, b"")
        async with client(hub, 1) as one:
            assert await one.download(b"\x01" * 32, len(blob)) == blob
            assert await one.download(b"\x02" * 32, 0) == b""
            with pytest.raises(RemoteProtocolError, match="does not fit"):
                await one.download(b"\x01" * 32, len(blob) - 1)
            with pytest.raises(TransportError, match="refused") as caught:
                await one.download(b"\x03" * 32, 10)
            assert "E347" in str(caught.value.found)
            for i in range(limits.MAX_BLOBS):
                hub.server.publish(bytes([9, i]) * 16, b"x")
            with pytest.raises(TransportError):
                await one.download(b"\x01" * 32, len(blob))

    play(tmp_path, scenario)


def test_statements_are_collected_and_late_processes_learn_of_the_end(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        hub.server.broadcast(Finished(3))

        async def report(number: int) -> None:
            async with client(hub, number) as one:
                assert await one.next() == Finished(3)
                assert (await one.send(Statement(b"{%d}" % number, bytes(64)))).status is Status.ACCEPTED

        reports = [asyncio.create_task(report(i)) for i in range(1, N + 1)]
        await asyncio.gather(*reports)
        statements = await hub.server.collect_statements(5)
        assert {c: s.body for c, s in statements.items()} == {c: b"{%d}" % c for c in range(1, N + 1)}

    play(tmp_path, scenario)


def test_heartbeats_say_what_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "POLL", 0.2)

    async def scenario(hub: Hub) -> None:
        beats: list[frames.Waiting] = []
        async with client(hub, 1, on_waiting=beats.append) as one:
            attempt = asyncio.create_task(hub.run(Deadlines(advertise_keys=1.0), there=(1,)))
            assert isinstance(await one.next(), Announcement)
            waiting = asyncio.create_task(one.next())
            while not beats:
                await asyncio.sleep(0.02)
            assert beats[0] == frames.Waiting(1, 0, Phase.ADVERTISE_KEYS, (1, 2, 3, 4))
            one_message = await waiting
            assert isinstance(one_message, AttemptAborted)
            assert isinstance(await attempt, Abort)

    play(tmp_path, scenario)


def test_a_cancelled_attempt_tells_its_clients(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        async with client(hub, 1) as one:
            attempt = asyncio.create_task(hub.run(Deadlines(), there=(1,)))
            assert isinstance(await one.next(), Announcement)
            attempt.cancel()
            message = await one.next()
            assert isinstance(message, AttemptAborted) and message.reason == "the server stopped"

    play(tmp_path, scenario)


def test_a_failure_of_our_own_ends_the_attempt_and_shows_nothing(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        async with client(hub, 1) as one:
            session = hub.session()
            attempt = asyncio.create_task(hub.server.run_attempt(session, Deadlines()))
            await one.next()

            def broken(sender: ClientId, message: object) -> Any:
                raise ZeroDivisionError("inner detail")

            session.receive = broken  # type: ignore[method-assign]
            with pytest.raises(TransportError) as caught:
                await one.send(ConsistencyCheck(bytes(64)))
            assert "inner detail" not in f"{caught.value} {caught.value.found}"
            with pytest.raises(ZeroDivisionError):
                await attempt

    play(tmp_path, scenario)


# ---- networks


def test_a_busy_port_is_one_clear_error(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        journal = ServerJournal(tmp_path / "second" / "journal", FEDERATION.manifest.digest())
        setup = ServerSetup(FEDERATION.roster, certificates(N)[0], journal, tmp_path / "second" / "spool")
        with socket.socket() as taken:
            taken.bind((HOST, 0))
            taken.listen()
            for port in (taken.getsockname()[1], hub.port):  # another program's, and that of a server of ours
                with pytest.raises(TransportError, match="cannot listen") as caught:
                    await AggregationServer(setup).start(HOST, port)
                assert caught.value.code == "E340" and str(port) in (caught.value.do or "")
        journal.close()

    play(tmp_path, scenario)


def test_a_dead_server_is_one_clear_error_in_bounded_time() -> None:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]

    async def main() -> None:
        async with AggregationClient(HOST, port, certificates(N)[1][0], patience=QUICK) as one:
            begun = time.monotonic()
            with pytest.raises(TransportError) as caught:
                await one.next()
            assert time.monotonic() - begun < 8
            assert caught.value.code == "E310"
            assert f"{HOST}:{port}" in str(caught.value) and "refused" in str(caught.value.found)

    asyncio.run(main())


def test_the_largest_part_fits_into_one_grpc_message() -> None:
    assert len(frames.encode_part(UploadChunk(2**30, bytes(frames.MAX_CHUNK)))) < limits.MAX_TO_SERVER
    assert frames.MAX_SUBMISSION < limits.MAX_TO_SERVER and frames.MAX_DELIVERY < limits.MAX_TO_CLIENT


def test_a_compressed_call_is_refused(tmp_path: Path) -> None:
    async def scenario(hub: Hub) -> None:
        credentials = channel_credentials(certificates(N)[1][0])
        channel = grpc.aio.secure_channel(f"{HOST}:{hub.port}", credentials, compression=grpc.Compression.Gzip)
        call = channel.unary_unary(f"/{limits.SERVICE}/Send")
        code, text = await status_of(call(bytes(400_000), timeout=5))  # 400 bytes on the wire
        assert code is grpc.StatusCode.UNIMPLEMENTED, text
        await channel.close()

    play(tmp_path, scenario)


def test_the_shell_works_without_torch() -> None:
    code = "import protocol.rpc.server, protocol.rpc.client, sys; assert not {'torch', 'ffm'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
