"""One attempt with the real sessions: the server here, the clients in worker processes, an exact check of the sum.

Real: protocol.server, protocol.client, protocol.codec, the spool of protocol.rpc, every check and every key. Left out:
gRPC, TLS and the journals. Memoised, because many clients share a process and check the same bytes: good signatures and
the parsing of a frame that goes to several clients. Clients that drop out fall silent before their masked input, the
most expensive moment for the server.
"""

import asyncio
import fcntl
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from benchmarks.consortium import PIECE, Consortium, Size
from benchmarks.scale_clients import AGAIN, DELIVER, HEAD, REPORT, peak_memory
from protocol.codec import decode_client, encode_server
from protocol.drops import DropReason
from protocol.effects import Abort, AcceptUpload, Aggregate, Effects, Released, Send
from protocol.messages import MaskedInput, PeerShares, ServerMessage
from protocol.rpc.spool import Spool, SpoolRoom, fold
from secagg.encoding import Values
from secagg.prg import choose_faster
from secagg.types import ClientId

F_SETPIPE_SZ = 1031
ROOT = Path(__file__).parent.parent
PHASES = ("advertise keys", "share keys", "masked input", "consistency check", "unmasking")


class Worker:
    """One process of clients."""

    def __init__(self, size: Size) -> None:
        command = [sys.executable, "-m", "benchmarks.scale_clients", json.dumps(asdict(size))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        self._in = cast(IO[bytes], self._process.stdin)
        self.out = cast(IO[bytes], self._process.stdout)
        for pipe in (self._in, self.out):
            fcntl.fcntl(pipe.fileno(), F_SETPIPE_SZ, 1 << 20)
        self.queue: deque[tuple[ClientId, ServerMessage]] = deque()
        self._last: ServerMessage | None = None
        self.sent_bytes = 0

    def send_next(self) -> bool:
        """Deliver the next queued message; False if there is none."""
        if not self.queue:
            return False
        client, message = self.queue.popleft()
        if message == self._last:
            self._in.write(HEAD.pack(AGAIN, client, 0, 0))
        else:
            self._frame = encode_server(message)
            self._in.write(HEAD.pack(DELIVER, client, len(self._frame), 0) + self._frame)
        self._last = message
        self.sent_bytes += len(self._frame)
        self._in.flush()
        return True

    def answer(self) -> tuple[ClientId, bytes, int]:
        """(client, frame, bytes of the upload that follow) for the message delivered last; an empty frame: silent."""
        head = self.out.read(HEAD.size)
        if len(head) != HEAD.size:
            raise RuntimeError("a client process died; its traceback is above")
        client, length, upload = HEAD.unpack(head)[1:]
        return ClientId(client), self.out.read(length), upload

    def report(self) -> dict[str, Any]:
        """Peak memory and processor time of the process."""
        self._in.write(HEAD.pack(REPORT, 0, 0, 0))
        self._in.flush()
        return cast(dict[str, Any], json.loads(self.answer()[1]))

    def close(self) -> None:
        """End the process."""
        self._in.close()
        self._process.wait(timeout=60)
        self.out.close()


@dataclass
class Outcome:
    """What a round took and gave. Seconds are wall-clock time; bytes are those of one client, mean over all."""

    size: Size
    released: Released
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_up: float = 0.0  # frames, without the chunks of the upload
    bytes_upload: float = 0.0  # the chunks, mean over those that upload
    bytes_down: float = 0.0
    server_cpu: float = 0.0
    server_peak: int = 0
    reports: list[dict[str, Any]] = field(default_factory=list)

    @property
    def total_seconds(self) -> float:
        """From the announcement to the released sum."""
        return sum(self.seconds.values())

    @property
    def client_peak(self) -> int:
        """Peak memory of all client processes together."""
        return sum(int(report["peak_bytes"]) for report in self.reports)


class Round:
    """The server's side. Use `run`."""

    def __init__(self, consortium: Consortium, workers: list[Worker], room: SpoolRoom) -> None:
        self._consortium, self._workers, self._room = consortium, workers, room
        n, dropouts = consortium.size.clients, consortium.size.dropouts
        self._silent = (
            frozenset(consortium.ids[i * n // dropouts] for i in range(dropouts)) if dropouts else frozenset()
        )
        self._spools: dict[ClientId, Spool] = {}
        self._loop = asyncio.new_event_loop()
        self._up = self._uploaded = 0
        self.server = consortium.server_session()
        self.seconds: dict[str, float] = {}
        self.outcome: Released | Abort | None = None
        self.tell = sys.stderr.isatty()  # a large round takes minutes

    def run(self) -> Outcome:
        """The five phases. Raises RuntimeError if the attempt does not end with a sum."""
        cpu_began = time.process_time()
        effects = self.server.start()
        for name in PHASES:
            began = time.perf_counter()
            self._apply(effects)
            effects = self.server.close_phase()
            self.seconds[name] = time.perf_counter() - began
            if self.tell:
                print(f"{name}: {self.seconds[name]:.1f} s", file=sys.stderr, flush=True)
        began = time.perf_counter()
        self._apply(effects)
        self.seconds["sum and masks"] = time.perf_counter() - began
        server_cpu = time.process_time() - cpu_began
        if not isinstance(self.outcome, Released):
            raise RuntimeError(f"the attempt did not end with a sum: {self.outcome}; drops {self.server.drops}")
        n = self._consortium.size.clients
        return Outcome(
            self._consortium.size,
            self.outcome,
            self.seconds,
            self._up / n,
            self._uploaded / (n - self._consortium.size.dropouts),
            sum(worker.sent_bytes for worker in self._workers) / n,
            server_cpu,
            peak_memory(),
            [worker.report() for worker in self._workers],
        )

    def close(self) -> None:
        """Remove the spools."""
        for spool in self._spools.values():
            spool.discard()
        self._loop.close()

    def _apply(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case Send(message, to) if to is not None:
                    if not (isinstance(message, PeerShares) and to in self._silent):
                        self._workers[to % len(self._workers)].queue.append((to, cast(ServerMessage, message)))
                case Aggregate(masked, masks):
                    spools = [self._spools[client] for client in masked]
                    self._apply(self.server.finish(fold(spools, masks, self.server.params)))
                case Released() | Abort():
                    self.outcome = effect
                case _:
                    pass  # Persist: the ledger row is the shell's to keep
        del effects
        self._exchange()

    def _exchange(self) -> None:
        with selectors.DefaultSelector() as ready:
            for worker in self._workers:
                if worker.send_next():
                    ready.register(worker.out, selectors.EVENT_READ, worker)
            while ready.get_map():
                for key, _ in ready.select():
                    if not self._take(cast(Worker, key.data)):
                        ready.unregister(key.fileobj)

    def _take(self, worker: Worker) -> bool:
        """Receive one answer; whether the worker got another message."""
        client, frame, size = worker.answer()
        chunk = 8 * self.server.params.chunk_words
        sizes = [min(chunk, size - start) for start in range(0, size, chunk)]
        parts: Iterable[bytes] = (worker.out.read(size) for size in sizes)
        if len(sizes) <= 1:  # the worker goes on while its answer is checked; a long upload stays in the pipe
            parts = list(parts)
            more = worker.send_next()
        if frame:
            self._receive(client, frame, parts)
        self._up += len(frame)
        self._uploaded += size
        return more if len(sizes) <= 1 else worker.send_next()

    def _receive(self, client: ClientId, frame: bytes, parts: Iterable[bytes]) -> None:
        answer = self.server.receive(client, decode_client(frame))
        if isinstance(answer, DropReason):
            raise RuntimeError(f"the server dropped client {client}: {answer.name}")
        for effect in answer:
            if isinstance(effect, AcceptUpload):
                self._spools[client] = self._loop.run_until_complete(self._spool(effect.header, parts))
                if isinstance(done := self.server.upload_complete(client), DropReason):
                    raise RuntimeError(f"the server refused the upload of client {client}: {done.name}")

    async def _spool(self, header: MaskedInput, parts: Iterable[bytes]) -> Spool:
        spool = self._room.spool(self._room.new_name(), header, self.server.params)
        holder = spool.take()
        for index, part in enumerate(parts):
            await spool.add(holder, index, part)
        await spool.seal()
        return spool


def expected_sum(consortium: Consortium, masked: tuple[ClientId, ...]) -> Iterator[tuple[int, Values]]:
    """(start, sum) in pieces: the inputs of `masked`, made again and added without any cryptography."""
    length = consortium.size.length
    for start in range(0, length, PIECE):
        stop = min(start + PIECE, length)
        total = np.zeros(stop - start, dtype=np.int64)
        for client in masked:
            total += consortium.values(client, start, stop)
        yield start, total


def simulate(size: Size, processes: int = 2) -> Outcome:
    """One round of that size; the sum is exact over exactly the clients that did not drop out, or RuntimeError."""
    consortium = Consortium(size)
    workers = [Worker(size) for _ in range(processes)]
    try:
        consortium.roster.root()
        for worker in workers:
            worker.report()  # it has started: the clock begins when all are there
        with tempfile.TemporaryDirectory() as folder:
            simulated = Round(consortium, workers, SpoolRoom(Path(folder)))
            try:
                outcome = simulated.run()
            finally:
                simulated.close()
    finally:
        for worker in workers:
            worker.close()
    if len(outcome.released.masked) != size.clients - size.dropouts:
        raise RuntimeError(f"{len(outcome.released.masked)} clients in the sum, not {size.clients - size.dropouts}")
    for start, total in expected_sum(consortium, outcome.released.masked):
        if not np.array_equal(outcome.released.total[start : start + len(total)], total):
            raise RuntimeError("the released sum is not the sum of the inputs")
    return outcome


def main() -> None:
    """One round in this process; one JSON object on stdout. A process of its own makes VmHWM that of one round."""
    choose_faster(time.perf_counter)
    size, processes = Size(**json.loads(sys.argv[1])), int(sys.argv[2])
    outcome = simulate(size, processes)
    cpu: dict[str, float] = {}
    for report in outcome.reports:
        for name, seconds in report["cpu_seconds"].items():
            cpu[name] = cpu.get(name, 0.0) + seconds
    params = Consortium(size).params
    row = {
        **asdict(size),
        "graph": size.graph,
        "degree": params.degree,
        "threshold": params.threshold,
        "dropouts": size.dropouts,
        "processes": processes,
        "seconds": round(outcome.total_seconds, 3),
        "phases": {name: round(value, 3) for name, value in outcome.seconds.items()},
        "client_cpu_seconds": {name: round(value, 3) for name, value in cpu.items()},
        "server_cpu_seconds": round(outcome.server_cpu, 3),
        "server_peak_bytes": outcome.server_peak,
        "client_peak_bytes": outcome.client_peak,
        "bytes_up": round(outcome.bytes_up),
        "bytes_upload": round(outcome.bytes_upload),
        "bytes_down": round(outcome.bytes_down),
        "exact": True,  # or it would have raised
    }
    print(json.dumps(row))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
