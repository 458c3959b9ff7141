"""The client's shell: polls, sends, uploads and downloads, each repeated until it got through or time is up. SPEC 9.

Every call is idempotent, so a lost answer is cured by asking again. What a session makes of a message is decided above;
here a dead server ends in one TransportError that names it. Polling goes on while the caller trains or waits: an open
poll is how the server knows that this client lives.
"""

import asyncio
import contextlib
import hashlib
import os
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc
import grpc.aio

from protocol.codec import decode_client, decode_server, encode_client
from protocol.encrypted import EncryptedInput
from protocol.errors import RemoteProtocolError, TransportError
from protocol.messages import Announcement, ClientMessage, ServerMessage, UploadHeader
from protocol.rpc import frames, limits
from protocol.rpc.credentials import channel_credentials
from protocol.rpc.frames import (
    NO_ATTEMPT,
    TOKEN_BYTES,
    BlobRequest,
    Cursor,
    InputHeader,
    InputRequest,
    Receipt,
    Status,
    Submission,
    UploadChunk,
    Waiting,
)
from protocol.rpc.limits import Patience
from protocol.rpc.pki import TlsIdentity
from protocol.rpc.status import is_transient, transport_error
from secagg.prg import choose_faster
from secagg.types import ClientId

Chunks = Callable[[int], Iterable[bytes]]  # from this index on; replayable: an upload that broke off goes on
OnWaiting = Callable[[Waiting], None]
OnChunk = Callable[[int], None]

MAX_INBOX = 64  # messages that wait for the caller: an honest server sends a dozen per attempt
MAX_HANDLED = 256  # frames that are recognised when a restarted server sends them again

# How a call ends that the other side cut off while we were writing: gRPC has several words for it.
CUT_OFF = (asyncio.InvalidStateError, grpc.aio.AioRpcError, grpc.aio.InternalError)
FAILURES = (*CUT_OFF, TimeoutError)

if TYPE_CHECKING:  # generic for the type checker only
    Unary = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


class AggregationClient:
    """One process of one client, connected to one server. Check certificates first: `protocol.rpc.pki`.

    Args:
        host: Name or address; it must stand in the server's certificate.
        port: TCP port.
        tls: CA, own certificate and key.
        on_waiting: Called with every heartbeat: what the server waits for.
        patience: How long an unreachable server is borne.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tls: TlsIdentity,
        on_waiting: OnWaiting = lambda waiting: None,
        patience: Patience | None = None,
    ) -> None:
        self.target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        choose_faster(time.perf_counter)
        self._patience = patience or Patience()
        self._on_waiting = on_waiting
        self._token = os.urandom(TOKEN_BYTES)  # a restarted process is another one: it has no secrets of the old one
        self._server = b""
        self._index = 0
        self._attempt = NO_ATTEMPT
        self._handled: deque[bytes] = deque(maxlen=MAX_HANDLED)  # SHA-256 of every frame that was passed on
        self._inbox: asyncio.Queue[ServerMessage | None] = asyncio.Queue()  # None: polling ended
        self._polling: asyncio.Task[None] | None = None
        self._channel = grpc.aio.secure_channel(self.target, channel_credentials(tls), options=limits.client_options())
        self._next: Unary = self._channel.unary_unary(f"/{limits.SERVICE}/Next")
        self._send: Unary = self._channel.unary_unary(f"/{limits.SERVICE}/Send")
        self._upload: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = self._channel.stream_unary(
            f"/{limits.SERVICE}/Upload"
        )
        self._download: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
            f"/{limits.SERVICE}/Download"
        )
        self._input: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
            f"/{limits.SERVICE}/Input"
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop polling and close the connection."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        await self._channel.close(None)

    async def next(self) -> ServerMessage:
        """The next message for this client, however long that takes, as long as the server answers.

        May be cancelled: no message is lost. An Announcement makes its attempt the one that `send` and `upload` mean.

        Raises:
            TransportError: The server cannot be reached, or refuses this client.
            RemoteProtocolError: The server sent something that is no message.
        """
        if self._polling is None:
            self._polling = asyncio.ensure_future(self._poll())
            self._polling.add_done_callback(lambda polling: self._inbox.put_nowait(None))
        message = await self._inbox.get()
        if message is None:
            polling, self._polling = self._polling, None
            if not polling.cancelled():
                polling.result()
            raise TransportError("this client was closed", do="make a new one")
        if isinstance(message, Announcement):
            self._attempt = (message.round, message.attempt)
        return message

    async def send(self, message: ClientMessage) -> Receipt:
        """Hand one message over; the receipt says what became of it.

        Raises:
            TransportError: The server cannot be reached, or refuses this client.
        """
        request = frames.encode_submission(self._submission(message))
        return frames.decode_receipt(await self._call(self._send, request, self._patience.call))

    async def upload(
        self, header: UploadHeader, chunks: Chunks, rate_limit: int | None = None, on_chunk: OnChunk = lambda sent: None
    ) -> Receipt:
        """Hand over an input or a sum: the header first, as a call of its own, then the chunks that are missing there.

        A connection that breaks costs what was under way: the server is asked again, and the upload goes on there.

        Args:
            header: The signed header.
            chunks: Gives the same chunks, in order, from the given index on, whenever it is called.
            rate_limit: Bytes per second, or None.
            on_chunk: Called with the number of chunks sent so far.

        Raises:
            TransportError: The server cannot be reached, or refuses this client.
        """
        best, tries, started = -1, 0, time.monotonic()
        while True:
            receipt = await self.send(header)
            if receipt.status is not Status.PARTIAL:
                return receipt
            if receipt.received > best:  # it moves: patience begins anew
                best, tries, started = receipt.received, 0, time.monotonic()
            failure: Exception | None = None
            try:
                pieces = _paced(chunks(receipt.received), receipt.received, rate_limit)
                receipt = await self._stream(frames.encode_part(self._submission(header)), pieces, on_chunk)
                if receipt.status is not Status.PARTIAL:
                    return receipt
            except FAILURES as error:
                failure = error
            tries += 1
            await self._pause(failure, tries, started)

    async def _stream(self, header: bytes, pieces: AsyncIterator[tuple[int, bytes]], on_chunk: OnChunk) -> Receipt:
        """One stream, which may end early for any reason; only the server's own word is returned."""
        call: grpc.aio.StreamUnaryCall[bytes, bytes] = self._upload()
        try:
            open_ = await self._write(call, header)
            async for index, chunk in pieces:
                open_ = open_ and await self._write(call, frames.encode_part(UploadChunk(index, chunk)))
                if not open_:  # the server decided before the end: its result says why
                    break
                on_chunk(index + 1)
            if open_:
                # The server may end the call at this very moment, too.
                with contextlib.suppress(*CUT_OFF):
                    await call.done_writing()
            return frames.decode_receipt(await asyncio.wait_for(call, self._patience.call))
        finally:
            call.cancel()

    async def download(self, digest: bytes, size: int) -> bytes:
        """A published blob of at most `size` bytes. The caller compares the digest: it knows what it is one of.

        Raises:
            TransportError: The server cannot be reached, or does not have it.
            RemoteProtocolError: The server sends more than `size`, or pieces that do not fit.
        """
        request = frames.encode_request(BlobRequest(digest))

        async def once() -> bytes:
            call = self._download(request, timeout=self._patience.call + size / (64 * 1024))
            try:
                return await _collect(call, size)
            finally:
                call.cancel()

        return await self._persist(once)

    async def fetch(self, client: ClientId) -> AsyncIterator[EncryptedInput | bytes]:
        """For the decryptor: what one client signed, then its encrypted input, chunk by chunk.

        A connection that breaks costs what was under way: it goes on with the first chunk that is missing.

        Raises:
            TransportError: The server cannot be reached, or does not have it.
            RemoteProtocolError: Parts in another order, or another header after a break.
        """
        header: EncryptedInput | None = None
        received, tries, started = 0, 0, time.monotonic()
        while True:
            request = frames.encode_input_request(InputRequest(self._token, *self._attempt, client, received))
            call = self._input(request)
            try:
                first = True
                while True:
                    data = await asyncio.wait_for(call.read(), self._patience.call)
                    if not isinstance(data, bytes):  # the end of the stream
                        break
                    part = frames.decode_input_part(data)
                    if isinstance(part, InputHeader):
                        told = decode_client(part.frame)
                        if not first or not isinstance(told, EncryptedInput) or header not in (None, told):
                            raise _bad_input("another header", "one EncryptedInput, first")
                        if header is None:
                            header = told
                            yield told
                    elif first or part.index != received:
                        raise _bad_input(f"chunk {part.index}", f"chunk {received}, after the header")
                    else:
                        received, tries, started = received + 1, 0, time.monotonic()
                        yield part.data
                    first = False
                return
            except FAILURES as error:
                failure: Exception = error
            finally:
                call.cancel()
            tries += 1
            await self._pause(failure, tries, started)

    async def _poll(self) -> None:
        while True:
            cursor = frames.encode_cursor(Cursor(self._token, self._server, self._index))
            answer = await self._call(self._next, cursor, limits.POLL + self._patience.call)
            delivery = frames.decode_delivery(answer)
            self._server, self._index = delivery.server, delivery.index
            if not delivery.frame:
                self._on_waiting(delivery.waiting)
                continue
            digest = hashlib.sha256(delivery.frame).digest()
            if digest in self._handled:  # from a server that was restarted and cannot know what arrived
                continue
            self._handled.append(digest)
            self._inbox.put_nowait(decode_server(delivery.frame))
            if self._inbox.qsize() > MAX_INBOX:
                raise RemoteProtocolError(
                    "the server floods this client", found=f"more than {MAX_INBOX} messages unread", code="E413"
                )

    def _submission(self, message: ClientMessage) -> Submission:
        return Submission(self._token, *self._attempt, encode_client(message))

    async def _call(self, method: "Unary", request: bytes, seconds: float) -> bytes:
        async def once() -> bytes:
            return await method(request, timeout=seconds)

        return await self._persist(once)

    async def _write(self, call: "grpc.aio.StreamUnaryCall[bytes, bytes]", part: bytes) -> bool:
        """Whether the part was taken. If not, the call has ended, and its result says why."""
        if call.done():
            return False
        try:
            await asyncio.wait_for(call.write(part), self._patience.call)
        except CUT_OFF:
            return False
        return True

    async def _persist(self, once: Callable[[], Awaitable[bytes]]) -> bytes:
        """Repeat `once` while the server is unreachable, with growing pauses, up to `Patience.unreachable`."""
        started, tries = time.monotonic(), 0
        while True:
            try:
                return await once()
            except FAILURES as error:
                failure = error
            tries += 1
            await self._pause(failure, tries, started)

    async def _pause(self, failure: Exception | None, tries: int, started: float) -> None:
        """Before the next try; raises TransportError where another one is no use, or the time since `started` is up."""
        code, details = grpc.StatusCode.UNAVAILABLE, "the server took the call over"
        match failure:
            case grpc.aio.AioRpcError():
                code, details = failure.code(), failure.details() or ""
            case TimeoutError():
                code, details = grpc.StatusCode.DEADLINE_EXCEEDED, "a call that does not move"
            case Exception():
                details = "the connection broke off while we were writing"
        lasting = time.monotonic() - started
        pause = self._patience.backoff(tries)
        if not is_transient(code, details) or lasting + pause > self._patience.unreachable:
            raise transport_error(code, details, self.target, lasting) from failure
        await asyncio.sleep(pause)


async def _collect(parts: AsyncIterable[bytes], size: int) -> bytes:
    blob, total = bytearray(), None
    async for data in parts:
        chunk = frames.decode_blob(data)
        total = chunk.total if total is None else total
        if chunk.total != total or total > size or chunk.offset != len(blob):
            raise RemoteProtocolError(
                "a download that does not fit",
                found=f"{chunk.total} bytes, piece at {chunk.offset}",
                expected=f"at most {size} bytes, piece at {len(blob)}",
                code="E412",
            )
        blob += chunk.data
    if len(blob) != total:
        raise RemoteProtocolError("a download that ends early", found=len(blob), expected=total, code="E412")
    return bytes(blob)


def _bad_input(found: str, expected: str) -> RemoteProtocolError:
    return RemoteProtocolError("malformed encrypted input", found=found, expected=expected, code="E412")


async def _paced(chunks: Iterable[bytes], first: int, rate_limit: int | None) -> AsyncIterator[tuple[int, bytes]]:
    for index, chunk in enumerate(chunks, first):
        yield index, chunk
        if rate_limit is not None:
            await asyncio.sleep(len(chunk) / rate_limit)
