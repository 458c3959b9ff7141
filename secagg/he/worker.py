"""`python -m secagg.he.worker`: the process that holds one secret key, adds ciphertexts and opens their sum once.

It speaks `secagg.he.pipe` on standard input and output and ends when its input ends. Whatever a peer manages to do to
native code happens here, under limits on memory and processor time, without a network library and without anybody's
identity key: the worst of it is a signal, which the parent sees and ascribes to the sender of the last bytes.

This is the one module of `secagg` that does I/O, and only on the two streams that it is started with (docs/adr/0031).
"""

import os
import resource
import signal
import sys
from typing import BinaryIO

from secagg.errors import SecAggError
from secagg.he.bfv import BfvOpening
from secagg.he.errors import OpeningError, WorkerError
from secagg.he.pipe import REQUEST, Op, pack_answer, pack_error, unpack_begin, unpack_expect, words_to_bytes

MEMORY = 1 << 30  # address space beside the running sum and its words: libraries, stacks, one block
CPU_S = 20  # processor time of one request beside the opening, which takes a millisecond a block
BLOCKS_PER_S = 100
LARGEST_FRAME = 1 << 24  # of a peer's block or of a first request with 65,537 clients


class Worker:
    """Requests in, answers out; one opening."""

    def __init__(self) -> None:
        self._opening: BfvOpening | None = None
        self._blocks = 0

    def answer(self, op: int, client: int, block: int, body: bytes) -> bytes:
        """The frame that answers one request."""
        limit_cpu(CPU_S + (self._blocks // BLOCKS_PER_S if op == Op.OPEN else 0))
        try:
            if op == Op.BEGIN:
                return self._begin(body)
            if self._opening is None:
                raise OpeningError("a request before the first", expected="BEGIN")
            if op == Op.ADD:
                self._opening.add(client, block, body)
                return pack_answer()
            if op == Op.EXPECT:
                self._opening.expect(unpack_expect(body))
                return pack_answer()
            if op == Op.OPEN:
                return pack_answer(words_to_bytes(self._opening.open_()))
            raise OpeningError("an unknown request", found=op)
        except SecAggError as error:
            return pack_error(error)
        except MemoryError:
            return pack_error(WorkerError("the HE process has no memory left", do="check the limits of this machine"))

    def _begin(self, body: bytes) -> bytes:
        if self._opening is not None:
            raise OpeningError("a second sum in one process", expected="one process for each attempt")
        begin = unpack_begin(body)
        self._blocks = begin.params.blocks_for(begin.words)
        limit_memory(MEMORY + begin.sum_bytes + 2 * 8 * begin.words)
        self._opening = BfvOpening(begin.params, begin.words, begin.clients)
        return pack_answer(self._opening.public_key)


def limit_cpu(seconds: int) -> None:
    """From now on this process may use that much more processor time; then SIGXCPU ends it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, resource.RLIM_INFINITY))


def limit_memory(size: int) -> None:
    """At most `size` bytes of address space, for good."""
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the requests end, between two of them or inside of one."""
    worker = Worker()
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        op, client, block, length = REQUEST.unpack(head)
        if length > LARGEST_FRAME:
            return
        body = requests.read(length)
        if len(body) < length:
            return
        answers.write(worker.answer(op, client, block, body))
        answers.flush()


def main() -> None:
    """Serve on standard input and output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the secret key
    # Standard output belongs to the answers: whatever native code prints lands on standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
