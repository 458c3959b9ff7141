"""The HE process: exact sums through its pipe, its limits, and what its death says about whom."""

import asyncio
import io
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.rpc.he_process import HeProcess
from secagg.errors import EncodingError, ParameterError
from secagg.he import pipe
from secagg.he.bfv import Bfv
from secagg.he.errors import CiphertextError, OpeningError, WorkerError
from secagg.he.pipe import Begin, Op
from secagg.he.scheme import BfvParams

ROOT = Path(__file__).parent.parent
P = BfvParams(3, 32)
BEGIN = Begin(P, 3000, (1, 2))
VECTORS = [np.arange(3000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15 + i) for i in range(2)]


def with_process(act: Callable[[HeProcess], Awaitable[None]], begin: Begin = BEGIN) -> None:
    async def run() -> None:
        async with await HeProcess.spawn(begin) as process:
            await act(process)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_sum_through_the_process() -> None:
    async def act(process: HeProcess) -> None:
        encryptor = Bfv().encryptor(P, process.public_key)
        for client, vector in enumerate(VECTORS, 1):
            for block, ciphertext in enumerate(encryptor.encrypt(vector)):
                await process.add(client, block, ciphertext)
        assert np.array_equal(await process.open_(), VECTORS[0] + VECTORS[1])
        with pytest.raises(OpeningError, match="opened already") as caught:
            await process.open_()
        assert caught.value.code == "E106" and caught.value.do

    with_process(act)


def test_refusals_come_through_and_do_no_harm() -> None:
    async def act(process: HeProcess) -> None:
        good = next(Bfv().encryptor(P, process.public_key).encrypt(VECTORS[0]))
        with pytest.raises(CiphertextError, match="bytes of the ciphertext") as caught:
            await process.add(1, 0, good + b"\0")
        assert (caught.value.found, caught.value.expected) == (str(len(good) - 7), str(len(good) - 8))
        with pytest.raises(OpeningError, match="outside the set"):
            await process.add(3, 0, good)
        await process.add(1, 0, good)
        with pytest.raises(OpeningError, match="missing"):
            await process.open_()

    with_process(act)


def test_a_key_for_three_and_a_sum_of_two() -> None:
    async def act(process: HeProcess) -> None:
        with pytest.raises(OpeningError):
            await process.expect((1, 4))
        await process.expect((1, 3))
        encryptor = Bfv().encryptor(P, process.public_key)
        for client, vector in zip((1, 3), VECTORS, strict=True):
            for block, ciphertext in enumerate(encryptor.encrypt(vector)):
                await process.add(client, block, ciphertext)
        assert np.array_equal(await process.open_(), VECTORS[0] + VECTORS[1])

    with_process(act, Begin(P, 3000, (1, 2, 3)))


def test_no_core_file_and_deaf_to_the_terminal() -> None:
    async def act(process: HeProcess) -> None:
        limits = Path(f"/proc/{process.pid}/limits").read_text(encoding="ascii")
        assert re.search(r"Max core file size +0 +0 ", limits)
        os.kill(process.pid, signal.SIGINT)
        with pytest.raises(OpeningError, match="missing"):
            await process.open_()

    with_process(act)


def test_a_sum_of_one_is_refused_at_the_start() -> None:
    with pytest.raises(ParameterError, match="clients of a sum"):
        with_process(lambda process: asyncio.sleep(0), Begin(P, 10, (1,)))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_death_by_a_signal_names_the_sender(number: int) -> None:
    async def act(process: HeProcess) -> None:
        os.kill(process.pid, signal.SIGSTOP)  # so that it dies with the request unanswered
        adding = asyncio.ensure_future(process.add(2, 0, b"x" * 100))
        await asyncio.sleep(0)
        os.kill(process.pid, number)
        os.kill(process.pid, signal.SIGCONT)
        with pytest.raises(WorkerError, match="ended") as caught:
            await adding
        assert (caught.value.signal, caught.value.client) == (number, 2)
        assert caught.value.code == "E108"
        with pytest.raises(WorkerError):
            await process.open_()

    with_process(act)


def test_an_exit_accuses_nobody() -> None:
    async def act(process: HeProcess) -> None:
        assert process._process.stdin is not None
        process._process.stdin.write(pipe.REQUEST.pack(Op.ADD, 1, 0, 2**31))  # more than the process takes
        with pytest.raises(WorkerError) as caught:
            await process.add(2, 0, b"x")
        assert (caught.value.signal, caught.value.client) == (None, None)

    with_process(act)


def test_a_cancelled_request_kills_the_process() -> None:
    async def act(process: HeProcess) -> None:
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.add(1, 0, b"x"), 0.1)
        assert await process._ended() == -signal.SIGKILL

    with_process(act)


def test_the_process_ends_with_its_input() -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "secagg.he.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    out, _ = child.communicate(pipe.pack_begin(BEGIN) + pipe.pack_request(Op.ADD, b"abc", 1)[:-1], timeout=60)
    assert child.returncode == 0
    good, length = pipe.ANSWER.unpack_from(out)
    assert good == 1 and len(out) == pipe.ANSWER.size + length  # one answer; the half request has none


LIMITS = """
import resource, signal, sys
from secagg.he import worker
from secagg.he.pipe import Begin, Op, pack_begin, ANSWER, REQUEST
from secagg.he.scheme import BfvParams
w = worker.Worker()
frame = pack_begin(Begin(BfvParams(3, 32), 3000, (1, 2)))
assert w.answer(Op.BEGIN, 0, 0, frame[REQUEST.size:])[0] == 1
if sys.argv[1] == "memory":
    try:
        bytearray(worker.MEMORY)
    except MemoryError:
        print("bounded")
elif sys.argv[1] == "modules":
    company = {"grpc", "google", "torch", "protocol", "ffm", "dp", "ssl", "asyncio"}
    print(sorted(name for name in sys.modules if name.split(".")[0] in company))
else:
    worker.limit_cpu(1)
    while True:
        pass
"""


def limits(what: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", LIMITS, what], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_its_memory_is_one_sum_whatever_the_number_of_clients() -> None:
    begin = Begin(BfvParams(8, 32), 100 * P.words_per_block, tuple(range(1, 9)))
    assert begin.sum_bytes == 100 * 2**16

    def peak(process: HeProcess) -> int:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]

    async def act(process: HeProcess) -> None:
        block = next(Bfv().encryptor(begin.params, process.public_key).encrypt(VECTORS[0]))
        start = peak(process)
        for client in begin.clients:
            for number in range(100):
                await process.add(client, number, block)
        assert peak(process) - start < begin.sum_bytes + 4 * 2**20  # all ciphertexts are 45 MiB
        await process.open_()
        assert peak(process) - start < 2 * begin.sum_bytes + 24 * 2**20

    with_process(act, begin)


def test_its_memory_is_bounded() -> None:
    done = limits("memory")
    assert done.stdout.strip() == "bounded", done.stderr


def test_an_endless_computation_ends_by_a_signal() -> None:
    started = time.monotonic()
    assert limits("time").returncode == -signal.SIGXCPU
    assert time.monotonic() - started < 50


def test_it_loads_no_network_and_no_protocol() -> None:
    done = limits("modules")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.fixture
def own_limits() -> Iterator[None]:
    """A worker in this process limits this process: its processor time is given back, or the tests would end soon."""
    before = resource.getrlimit(resource.RLIMIT_CPU)
    yield
    resource.setrlimit(resource.RLIMIT_CPU, before)


@pytest.mark.usefixtures("own_limits")
def test_a_worker_refuses_what_is_out_of_order() -> None:
    from secagg.he.worker import Worker

    worker = Worker()

    def asked(op: int, body: bytes = b"") -> Exception:
        answer = worker.answer(op, 1, 0, body)
        good, length = pipe.ANSWER.unpack_from(answer)
        assert good == 0 and len(answer) == pipe.ANSWER.size + length
        return pipe.unpack_error(answer[pipe.ANSWER.size :])

    assert isinstance(asked(Op.ADD), OpeningError)
    assert isinstance(asked(9), OpeningError)
    for body in (b"", b"123", bytes(13), pipe.pack_begin(BEGIN)[pipe.REQUEST.size : -1]):
        assert isinstance(asked(Op.BEGIN, body), ParameterError)


def test_one_process_holds_one_key() -> None:
    begin = pipe.pack_begin(BEGIN)
    command = [sys.executable, "-m", "secagg.he.worker"]
    done = subprocess.run(command, input=begin + begin, stdout=subprocess.PIPE, cwd=ROOT, timeout=60, check=True)
    good, length = pipe.ANSWER.unpack_from(done.stdout)
    again = done.stdout[pipe.ANSWER.size + length :]
    assert good == 1 and pipe.ANSWER.unpack_from(again)[0] == 0
    assert pipe.unpack_error(again[pipe.ANSWER.size :]).what == "a second sum in one process"


def test_errors_keep_their_class_and_parts() -> None:
    for kind in (ParameterError, EncodingError, CiphertextError, OpeningError):
        error = kind("what", found=3, expected="x", do="y")
        again = pipe.unpack_error(pipe.pack_error(error)[pipe.ANSWER.size :])
        assert (type(again), again.what, again.found, again.expected, again.do) == (kind, "what", "3", "x", "y")


def test_a_request_that_is_too_long_ends_the_service() -> None:
    from secagg.he import worker

    answers = io.BytesIO()
    size = worker.LARGEST_FRAME + 1
    worker.serve(io.BytesIO(pipe.REQUEST.pack(Op.ADD, 0, 0, size) + bytes(size)), answers)
    assert answers.getvalue() == b""
