"""One attempt of ours, step by step in one process, for `benchmarks.peers`: every client's step under a clock.

Real sessions and real verification; messages are handed over as objects, and what protocol.codec would make of them is
counted outside the clock, as Flower's serialisation is on its side.
"""

import asyncio
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar, cast
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.consortium import Consortium
from dp.sampling import Csprng
from protocol import client_phases
from protocol.client import ClientSession
from protocol.codec import encode_client, encode_server
from protocol.drops import DropReason
from protocol.effects import AcceptUpload, Aggregate, Effects, Released, Send, Upload
from protocol.messages import Announcement, ClientMessage, MaskedInput, PeerShares, ServerMessage
from protocol.rpc.frames import UploadChunk, encode_part
from protocol.rpc.spool import Spool, SpoolRoom
from protocol.rpc.unmask import add_uploads, unmask
from secagg.encoding import Words
from secagg.masking import Mask, add_masks, chunks, frame_real
from secagg.types import ClientId

E = TypeVar("E", AcceptUpload, Aggregate, Released, Upload)


class OurAttempt:
    """`deal_shares`, `mask` for each of `alive`, `collect_shares`, `unmask`; then the figures."""

    def __init__(self, consortium: Consortium, updates: Mapping[ClientId, NDArray[np.float32]], folder: Path) -> None:
        self._consortium, self._updates = consortium, updates
        dropouts = consortium.size.dropouts
        self.alive = consortium.ids[: len(consortium.ids) - dropouts]
        self.bytes: dict[str, list[int]] = {}  # phase: [to clients, from clients]
        self.masking = self.adding = self.removing = 0.0
        self.mean: NDArray[np.float64] = np.zeros(0)
        self._server = consortium.server_session()
        self._sessions: dict[ClientId, ClientSession] = {}
        self._shares: dict[ClientId, PeerShares] = {}
        self._spools: dict[ClientId, Spool] = {}
        self._room = SpoolRoom(folder)
        self._loop = asyncio.new_event_loop()

    def deal_shares(self) -> None:
        """Phases 0 and 1: every client holds the encrypted shares of the others."""
        self._exchange(self._server.start())
        self._exchange(self._server.close_phase())
        for effect in self._server.close_phase():
            if isinstance(effect, Send) and effect.to in self.alive:
                self._shares[effect.to] = cast(PeerShares, effect.message)
                self._count(0, len(encode_server(cast(ServerMessage, effect.message))))

    def mask(self, client: ClientId) -> float:
        """Phase 2 of one client; seconds until the bytes of its upload are there. `masking`: the masks' part of it."""
        session, shares, update = self._sessions[client], self._shares.pop(client), self._updates[client]
        params = self._consortium.params
        self.masking = 0.0
        with patch.object(client_phases, "add_masks", self._add_masks):
            began = time.perf_counter()
            session.provide_input(frame_real(update, params, Csprng.from_os().take))
            effects = session.receive(shares)
            upload = self._only(effects, Upload)
            parts = list(chunks(upload.words, params))
            seconds = time.perf_counter() - began
        self._upload(client, upload.header, parts)
        return seconds

    def collect_shares(self) -> None:
        """Phases 3 and 4 up to the last share."""
        self._exchange(self._server.close_phase())
        self._exchange(self._server.close_phase())

    def unmask(self) -> float:
        """From the last share to the mean, without adding the uploads; seconds. `adding` and `removing` hold parts."""
        params = self._consortium.params
        began = time.perf_counter()
        aggregate = self._only(self._server.close_phase(), Aggregate)
        seconds = time.perf_counter() - began
        total = np.zeros(params.total_words, dtype="<u8")
        began = time.perf_counter()
        add_uploads(total, [self._spools[client].path for client in aggregate.masked], threads=1)
        self.adding = time.perf_counter() - began
        began = time.perf_counter()
        unmask(total, aggregate.masks, threads=1)
        released = self._only(self._server.finish(total), Released)
        self.mean = params.encoding.dequantize(released.total, len(released.masked))
        self.removing = time.perf_counter() - began
        return seconds + self.removing

    def close(self) -> None:
        """Remove the spooled uploads."""
        for spool in self._spools.values():
            spool.discard()
        self._loop.close()

    def _add_masks(self, words: Words, masks: Iterable[Mask]) -> None:
        began = time.perf_counter()
        add_masks(words, masks)
        self.masking += time.perf_counter() - began

    def _exchange(self, effects: Effects) -> None:
        for effect in effects:
            if not isinstance(effect, Send):
                continue
            client, message = cast(ClientId, effect.to), cast(ServerMessage, effect.message)
            self._count(0, len(encode_server(message)))
            if isinstance(message, Announcement):
                session = self._consortium.client_session(client, message, os.urandom)
                self._sessions[client] = session
                answers = session.start()
            else:
                answers = self._sessions[client].receive(message)
            for answer in answers:
                if isinstance(answer, Send):
                    self._submit(client, cast(ClientMessage, answer.message))

    def _submit(self, client: ClientId, message: ClientMessage) -> Effects:
        self._count(1, len(encode_client(message)))
        effects = self._server.receive(client, message)
        if isinstance(effects, DropReason):
            raise RuntimeError(f"our server dropped client {client}: {effects.name}")
        return effects

    def _upload(self, client: ClientId, header: MaskedInput, parts: list[bytes]) -> None:
        self._only(self._submit(client, header), AcceptUpload)
        self._count(1, sum(len(encode_part(UploadChunk(i, part))) for i, part in enumerate(parts)))

        async def fill() -> Spool:
            spool = self._room.spool(self._room.new_name(), header, self._consortium.params)
            holder = spool.take()
            for index, part in enumerate(parts):
                await spool.add(holder, index, part)
            await spool.seal()
            return spool

        self._spools[client] = self._loop.run_until_complete(fill())
        self._server.upload_complete(client)

    def _count(self, way: int, size: int) -> None:
        both = self.bytes.setdefault(self._server.phase.name.lower(), [0, 0])
        both[way] += size

    @staticmethod
    def _only(effects: Effects, kind: type[E]) -> E:
        for effect in effects:
            if isinstance(effect, kind):
                return effect
        raise RuntimeError(f"{kind.__name__} expected, found {effects}")
