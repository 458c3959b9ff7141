"""Many real client sessions in one process: the other end of `benchmarks.simulated_round`.

    python -m benchmarks.scale_clients '{"clients": 100, "length": 1000, ...}'

stdin: requests, head (operation, client, length) and a frame; stdout: one answer for each. No request is sent before
the answer to the one before it was read, so neither pipe can fill up for good. The sessions are those of
protocol.client, fed with the bytes of protocol.codec; only two things are shared between clients: the roster remembers
which signatures were good, and a frame that came for the client before is not parsed again.
"""

import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import BinaryIO

from benchmarks.consortium import Consortium, Size
from protocol.client import ClientSession
from protocol.codec import decode_server, encode_client
from protocol.effects import Send, Upload
from protocol.messages import Announcement, PeerShares, ServerMessage
from secagg.masking import chunks
from secagg.prg import choose_faster
from secagg.types import ClientId

HEAD = struct.Struct("<BIIQ")  # operation, client, bytes of the frame, bytes of the upload behind it
DELIVER, AGAIN, REPORT, ANSWER = 1, 2, 3, 4  # AGAIN: the frame of the request before


def peak_memory(pid: int | str = "self") -> int:
    """VmHWM: bytes of the largest resident set that a process ever had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc: this benchmark measures on Linux only")


class Clients:
    """The sessions of one process."""

    def __init__(self, consortium: Consortium) -> None:
        self._consortium = consortium
        self._sessions: dict[ClientId, ClientSession] = {}
        self._last: ServerMessage | None = None
        self.seconds: dict[str, float] = {}

    def deliver(self, client: ClientId, frame: bytes | None, out: BinaryIO) -> None:
        """One message to one client; its answer, if any, goes to `out`."""
        began = time.process_time()
        if frame is not None:
            self._last = decode_server(frame)
        message = self._last
        assert message is not None
        if isinstance(message, Announcement):
            session = self._consortium.client_session(client, message, os.urandom)
            self._sessions[client] = session
            effects = session.start()
        else:
            session = self._sessions[client]
            if isinstance(message, PeerShares):  # local training ends when the shares of the others are there
                session.provide_input(self._consortium.values(client))
            effects = session.receive(message)
        answer, words = b"", None
        for effect in effects:  # Persist and Charge are the shell's: this process has no journal
            if isinstance(effect, Send):
                answer = encode_client(effect.message)  # type: ignore[arg-type]
            elif isinstance(effect, Upload):
                answer = encode_client(effect.header)
                words = effect.words
        name = type(message).__name__
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - began
        out.write(HEAD.pack(ANSWER, client, len(answer), 0 if words is None else 8 * len(words)))
        out.write(answer)
        if words is not None:
            for chunk in chunks(words, self._consortium.params):
                out.write(chunk)
        out.flush()


def main() -> None:
    """Serve requests until stdin ends."""
    choose_faster(time.perf_counter)
    clients = Clients(Consortium(Size(**json.loads(sys.argv[1]))))
    source, out = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(HEAD.size):
        operation, client, length, _ = HEAD.unpack(head)
        if operation == REPORT:
            body = json.dumps({"peak_bytes": peak_memory(), "cpu_seconds": clients.seconds}).encode()
            out.write(HEAD.pack(ANSWER, 0, len(body), 0) + body)
            out.flush()
        else:
            clients.deliver(ClientId(client), source.read(length) if operation == DELIVER else None, out)


if __name__ == "__main__":
    main()
