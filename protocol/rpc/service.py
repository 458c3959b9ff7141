"""The five calls of the wire. Decode, hand over, encode; nothing is decided here. SPEC 9.

Identity is looked up on every call. Each call is idempotent, because any answer may be lost.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import grpc
import grpc.aio

from protocol.codec import decode_client
from protocol.errors import RemoteProtocolError
from protocol.messages import ClientMessage, UploadHeader
from protocol.roster import Roster
from protocol.rpc import frames, limits
from protocol.rpc.credentials import Doorkeeper
from protocol.rpc.frames import Delivery, InputHeader, InputRequest, Receipt, Submission, UploadChunk, Waiting
from protocol.rpc.outbox import Outbox
from protocol.rpc.presence import Presence
from protocol.rpc.spool import Spool
from protocol.rpc.status import Context, Refusal, errors_as_status
from secagg.types import DECRYPTOR, ClientId

STALE = Receipt(frames.Status.STALE)


class Desk(Protocol):
    """Who decides: the aggregation server. Called on the event loop, answers at once."""

    @property
    def instance(self) -> bytes:
        """16 random bytes of this server process."""

    def admit(self, client: ClientId, token: bytes) -> Outbox | None:
        """The outbox of this client process, or None if a newer process took over."""

    def waiting(self) -> Waiting:
        """What the server waits for."""

    def submit(self, client: ClientId, submission: Submission, message: ClientMessage) -> Receipt:
        """One message."""

    def open_upload(self, client: ClientId, submission: Submission, header: UploadHeader) -> Spool | Receipt:
        """An upload begins."""

    def chunk_received(self, client: ClientId, spool: Spool) -> None:
        """Its next chunk is on disk."""

    def close_upload(self, client: ClientId, spool: Spool) -> Receipt:
        """All chunks are on stable storage."""

    def encrypted_input(self, request: InputRequest) -> tuple[bytes, Spool] | None:
        """What the decryptor was asked to add: header and ciphertext of one client."""

    def blob(self, digest: bytes) -> bytes | None:
        """A published blob."""

    def failed(self, error: Exception) -> None:
        """Something of ours broke."""


class AggregationService:
    """Handlers of one server."""

    def __init__(self, roster: Roster, desk: Desk, presence: Presence) -> None:
        self._door = Doorkeeper(roster)
        self._desk = desk
        self._presence = presence
        self._sends = asyncio.Semaphore(limits.SEND_SLOTS)
        self._uploads = asyncio.Semaphore(limits.UPLOAD_SLOTS)
        self._downloads = asyncio.Semaphore(limits.DOWNLOAD_SLOTS)
        self._polls: dict[ClientId, int] = {}
        self._uploading: dict[ClientId, asyncio.Task[Any]] = {}
        self._downloading: dict[ClientId, asyncio.Task[Any]] = {}
        self._replaced: set[asyncio.Task[Any]] = set()  # streams that a newer one of their client ended

    def handler(self) -> grpc.GenericRpcHandler:
        """For `grpc.aio.Server.add_generic_rpc_handlers`. Bytes in, bytes out: the codec is the only decoder."""
        return grpc.method_handlers_generic_handler(
            limits.SERVICE,
            {
                "Next": grpc.unary_unary_rpc_method_handler(self.next),
                "Send": grpc.unary_unary_rpc_method_handler(self.send),
                "Upload": grpc.stream_unary_rpc_method_handler(self.upload),
                "Download": grpc.unary_stream_rpc_method_handler(self.download),
                "Input": grpc.unary_stream_rpc_method_handler(self.input),
            },
        )

    async def next(self, request: bytes, context: Context) -> bytes:
        """The client's next frame, at the latest after `limits.POLL` seconds a heartbeat."""
        async with errors_as_status(context, self._desk.failed):
            client = self._door.client(context.auth_context())
            cursor = frames.decode_cursor(request)
            with self._presence.call(client):
                outbox = self._admitted(client, cursor.token)
                index = cursor.index if cursor.server == self._desk.instance else 0
                return frames.encode_delivery(await self._wait(client, outbox, index))
        raise AssertionError("unreachable: an error ends the call")

    async def send(self, request: bytes, context: Context) -> bytes:
        """One message of a client."""
        async with errors_as_status(context, self._desk.failed):
            client = self._door.client(context.auth_context())
            with self._presence.call(client):
                async with self._sends:
                    submission = frames.decode_submission(request)
                    message = decode_client(submission.frame)
                    self._admitted(client, submission.token)
                    return frames.encode_receipt(self._desk.submit(client, submission, message))
        raise AssertionError("unreachable: an error ends the call")

    async def upload(self, parts: AsyncIterator[bytes], context: Context) -> bytes:
        """A masked input: its signed header, refused before the body if it is not acceptable, then its chunks."""
        async with errors_as_status(context, self._desk.failed):
            client = self._door.client(context.auth_context())
            with self._presence.call(client), self._newest(client, self._uploading):
                async with self._uploads:
                    return frames.encode_receipt(await self._receive(client, parts))
        raise AssertionError("unreachable: an error ends the call")

    async def download(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """A published model or aggregate, by digest."""
        async with errors_as_status(context, self._desk.failed):
            client = self._door.client(context.auth_context())
            digest = frames.decode_request(request).digest
            with self._presence.call(client), self._newest(client, self._downloading):
                async with self._downloads:
                    blob = self._desk.blob(digest)
                    if blob is None:
                        raise Refusal(
                            grpc.StatusCode.NOT_FOUND,
                            f"[E347] no blob with digest {digest.hex()[:16]}; expected one of the last"
                            f" {limits.MAX_BLOBS} models and aggregates",
                        )
                    for offset in range(0, len(blob) or 1, limits.BLOB_CHUNK):
                        data = blob[offset : offset + limits.BLOB_CHUNK]
                        yield frames.encode_blob(frames.BlobChunk(len(blob), offset, data))

    async def input(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """To the decryptor alone: one client's encrypted input, from the chunk that it asks for on."""
        async with errors_as_status(context, self._desk.failed):
            peer = self._door.client(context.auth_context())
            if peer != DECRYPTOR:
                raise Refusal(
                    grpc.StatusCode.PERMISSION_DENIED, "[E304] encrypted inputs go to the roster's decryptor only"
                )
            wanted = frames.decode_input_request(request)
            with self._presence.call(peer), self._newest(peer, self._downloading):
                self._admitted(peer, wanted.token)
                found = self._desk.encrypted_input(wanted)
                if found is None:
                    text = f"[E347] no input of client {wanted.client} to be added now"
                    raise Refusal(grpc.StatusCode.NOT_FOUND, text)
                header, spool = found
                yield frames.encode_input_part(InputHeader(header))
                for index in range(wanted.first, spool.total):
                    data = await asyncio.to_thread(spool.chunk, index)
                    yield frames.encode_input_part(UploadChunk(index, data))

    @contextmanager
    def _newest(self, client: ClientId, running: "dict[ClientId, asyncio.Task[Any]]") -> Iterator[None]:
        """One stream of a kind per client, the newest: the slots are shared by all, and an idle stream holds one."""
        mine, older = asyncio.current_task(), running.get(client)
        if older is not None:
            self._replaced.add(older)
            older.cancel()
        if mine is None:
            raise AssertionError("a call runs in a task")
        running[client] = mine
        try:
            yield
        except asyncio.CancelledError:
            if mine not in self._replaced:
                raise
            mine.uncancel()  # by a newer stream, not by the peer or by us: the older one is told
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION, "[E342] a newer stream of this client took over"
            ) from None
        finally:
            self._replaced.discard(mine)
            if running.get(client) is mine:
                del running[client]

    def _admitted(self, client: ClientId, token: bytes) -> Outbox:
        outbox = self._desk.admit(client, token)
        if outbox is None:
            raise Refusal(
                grpc.StatusCode.ABORTED,
                "[E343] another process of this client took over; expected one process per client",
            )
        return outbox

    async def _wait(self, client: ClientId, outbox: Outbox, index: int) -> Delivery:
        desk, loop = self._desk, asyncio.get_running_loop()
        mine = self._polls[client] = self._polls.get(client, 0) + 1
        token, end = outbox.token, loop.time() + limits.POLL
        outbox.wake()  # an older poll of this client is answered now: at most one is kept waiting
        while True:
            current = self._polls[client] == mine and outbox.token == token
            entry = outbox.after(index) if current else None
            if entry is not None:
                return Delivery(desk.instance, entry.index, entry.frame, desk.waiting())
            left = end - loop.time()
            if not current or left <= 0:
                return Delivery(desk.instance, index, b"", desk.waiting())
            await outbox.wait(left)

    async def _receive(self, client: ClientId, parts: AsyncIterator[bytes]) -> Receipt:
        submission = frames.decode_part(await _next_part(parts))
        if not isinstance(submission, Submission):
            raise _bad_stream("a chunk before the header", "the header first")
        header = decode_client(submission.frame)
        if not isinstance(header, UploadHeader):
            raise _bad_stream(f"a {type(header).__name__} as header", "the header of an upload")
        self._admitted(client, submission.token)
        opened = self._desk.open_upload(client, submission, header)
        if isinstance(opened, Receipt):
            return opened
        return await self._fill(client, opened, parts)

    async def _fill(self, client: ClientId, spool: Spool, parts: AsyncIterator[bytes]) -> Receipt:
        """Chunks from the first missing one on. Whatever ends the stream, what has arrived stays for the next one."""
        holder, first = spool.take(), True
        try:
            while not spool.full:
                part = frames.decode_part(await _next_part(parts))
                if not isinstance(part, UploadChunk):
                    raise _bad_stream("a second header", "chunks after the header")
                if first and part.index != (received := await spool.settled()):
                    return Receipt(frames.Status.PARTIAL, received=received)  # an older stream was faster
                first = False
                await spool.add(holder, part.index, part.data)
                self._desk.chunk_received(client, spool)
            await spool.seal()
            return self._desk.close_upload(client, spool)
        finally:
            spool.pause(holder)


async def _next_part(parts: AsyncIterator[bytes]) -> bytes:
    try:
        return await asyncio.wait_for(anext(parts), limits.PART_IDLE)
    except StopAsyncIteration:
        raise _bad_stream("the end of the stream", "every chunk that is missing") from None
    except TimeoutError:
        raise Refusal(
            grpc.StatusCode.DEADLINE_EXCEEDED, f"[E411] no part of the upload for {limits.PART_IDLE:.0f} s"
        ) from None


def _bad_stream(found: str, expected: str) -> RemoteProtocolError:
    return RemoteProtocolError("malformed upload", found=found, expected=expected, code="E411")
