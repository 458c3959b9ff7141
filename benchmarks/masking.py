"""How close the client's and the server's masking come to the cipher alone.

`python -m benchmarks.masking [--json] [--length 10000000] [--clients 100] [--repetitions 7]`

The yardstick is AES-256-CTR by the same library over the same number of bytes, key set-up included, written over one
buffer in the cache and thrown away: the least that any implementation of this keystream by CTR could take. Ours makes
the same bytes and adds them to the vector.
"""

import argparse
import gc
import json
import os
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from benchmarks.bench import (
    Bar,
    Report,
    Timing,
    in_child,
    machine,
    memory_kib,
    parser,
    publish,
    reset_peak,
    side_by_side,
)
from dp.sampling import Csprng
from protocol.rpc.frames import UploadChunk, encode_part
from protocol.rpc.unmask import unmask
from secagg.encoding import SlotEncoding
from secagg.masking import InputDigest, Mask, add_masks, chunks, frame, frame_real, unframe
from secagg.params import SecAggParams
from secagg.prg import Stream, choose_faster
from secagg.types import Secret

BOUND = 2**13 - 1  # 14-bit values in 21-bit slots
SCALE = 1000
CHUNK_WORDS = 65536
BUFFER_WORDS = 131072  # of the yardstick: what was fastest for it
MIB = 2**20

WHAT = """\
One thread unless the row says otherwise; best of the repetitions, all contenders in turn. `x` is CPU time over that of
AES-256-CTR alone for the same keystream bytes (degree + 1 streams: the pairwise masks and the self mask). Input: a
float32 vector; quantise is unbiased stochastic rounding with a range check. Ours reads the keystream off AES-GCM where
that is faster (AVX-512): the same bytes; compare with the rows of that keystream alone. Memory: peak of a
fresh process (VmHWM) minus what it held before (imports, input vector, seeds) minus one accumulator; a client that may
retry also keeps its unmasked frame; the server's result vector is not counted."""


def parameters(length: int, clients: int) -> SecAggParams:
    """14-bit values in 21-bit slots, complete graph, a third corrupt."""
    corrupt = clients // 3
    return SecAggParams(clients, corrupt, 0, corrupt + 2, length, SlotEncoding(3, SCALE, BOUND, clients), CHUNK_WORDS)


def vector(length: int) -> NDArray[np.float32]:
    """Uniform in the range of 14-bit values."""
    x: NDArray[np.float32] = np.empty(length, dtype=np.float32)
    rng = Csprng.from_os()
    for start in range(0, length, MIB):
        part = x[start : start + MIB]
        np.multiply(np.frombuffer(rng.take(4 * len(part)), dtype="<i4"), 0.999 * BOUND / SCALE / 2**31, out=part)
    return x


def masks(count: int) -> list[Mask]:
    """Fresh seeds, signs alternating."""
    return [Mask(Secret(os.urandom(32)), 1 - 2 * (i % 2)) for i in range(count)]


def aes_ctr(streams: list[Mask], words: int) -> None:
    """The yardstick."""
    zeros, out = bytes(8 * BUFFER_WORDS), bytearray(8 * BUFFER_WORDS)
    for mask in streams:
        encryptor = Cipher(AES256(mask.seed.view), CTR(bytes(16))).encryptor()
        for start in range(0, words, BUFFER_WORDS):
            size = 8 * min(BUFFER_WORDS, words - start)
            encryptor.update_into(memoryview(zeros)[:size], memoryview(out)[:size])


def keystream(streams: list[Mask], words: int) -> None:
    """The same bytes as the product reads them, not added to anything."""
    zeros, out = bytes(8 * BUFFER_WORDS), bytearray(8 * BUFFER_WORDS)
    for mask in streams:
        stream = Stream(mask.seed)
        for start in range(0, words, BUFFER_WORDS):
            size = 8 * min(BUFFER_WORDS, words - start)
            stream.write(memoryview(zeros)[:size], memoryview(out)[:size])


def check(params: SecAggParams, x: NDArray[np.float32], streams: list[Mask]) -> None:
    """What is timed is right: masked and unmasked again, every value is rounded to one of its two neighbours."""
    words = frame_real(x, params, Csprng.from_os().take).words
    add_masks(words, streams)
    unmask(words, [Mask(mask.seed, -mask.sign) for mask in streams])
    values = unframe(words, 1, params)
    assert (np.abs(values - x * np.float64(SCALE)) < 1).all()


def memory(side: str, length: int, clients: int) -> dict[str, float]:
    """Run in a fresh process: MiB that masking (or unmasking) takes beside its input and one accumulator."""
    params, streams = parameters(length, clients), masks(clients)
    small = parameters(1000, clients)
    add_masks(frame_real(vector(1000), small, Csprng.from_os().take).words, streams)  # everything is loaded and warm
    unmask(np.zeros(small.total_words, dtype="<u8"), streams)
    x = vector(length) if side != "server" else None
    accumulator = 8 * params.total_words
    total = np.ones(params.total_words, dtype="<u8") if x is None else None
    gc.collect()
    reset_peak()
    before = memory_kib()["now"] * 1024
    if x is None:
        assert total is not None
        accumulator = 0  # it is there already
        unmask(total, streams)
    else:
        framed = frame_real(x, params, Csprng.from_os().take)
        words = framed.copy(params) if side == "client that may retry" else framed.words
        add_masks(words, streams)
        digest = InputDigest()
        digest.update(words.view(np.uint8).data)
        for chunk in chunks(words, params):
            encode_part(UploadChunk(0, chunk))
    return {"mib": (memory_kib()["peak"] * 1024 - before - accumulator) / MIB}


def wire_bytes(params: SecAggParams) -> int:
    """All chunks of one upload as protobuf."""
    words = np.zeros(params.total_words, dtype="<u8")
    return sum(len(encode_part(UploadChunk(i, chunk))) for i, chunk in enumerate(chunks(words, params)))


def measure(options: argparse.Namespace) -> Report:
    """All rows and bars."""
    length, clients, repetitions = options.length, options.clients, options.repetitions
    params = parameters(length, clients)
    words, x = params.total_words, vector(length)
    all_streams = masks(clients)
    some = all_streams[: min(32, clients)]
    check(params, x, some)
    degrees = {len(some) - 1: some, clients - 1: all_streams}
    buffer = frame_real(x, params, Csprng.from_os().take).words
    values = np.ones(length, dtype=np.int64)
    one_frame = frame(values, params)

    def mask_real(streams: list[Mask]) -> None:
        add_masks(frame_real(x, params, Csprng.from_os().take).words, streams)

    def mask_integers(streams: list[Mask]) -> None:
        add_masks(frame(values, params), streams)

    contenders: dict[str, Callable[[], object]] = {
        "quantise and pack": lambda: frame_real(x, params, Csprng.from_os().take),
        "pack integers": lambda: frame(values, params),
        "sum to values": lambda: unframe(one_frame, 1, params),
    }
    for degree, streams in degrees.items():
        contenders |= {
            f"AES-CTR alone, degree {degree}": partial(aes_ctr, streams, words),
            f"our keystream alone, degree {degree}": partial(keystream, streams, words),
            f"mask and add, degree {degree}": partial(add_masks, buffer, streams),
            f"pack integers, mask and add, degree {degree}": partial(mask_integers, streams),
            f"quantise, pack, mask and add, degree {degree}": partial(mask_real, streams),
        }
    cores = int(machine()["cores"])
    threads = max(2, cores)
    last = clients - 1
    timings = side_by_side(contenders, repetitions)
    dropouts = clients // 10
    to_remove = (all_streams * (dropouts + 1))[: (clients - dropouts) * (dropouts + 1)]  # self masks, pairwise masks
    server = f"server: {len(to_remove)} masks, {dropouts} dropouts"
    timings |= side_by_side(
        {f"{server}, {count} thread(s)": partial(unmask, buffer, to_remove, count) for count in (1, threads)},
        min(3, repetitions),
        warm_up=False,
    )

    def ratio(name: str, degree: int) -> float:
        return timings[name].best_cpu / timings[f"AES-CTR alone, degree {degree}"].best_cpu

    rows = [_row(name, timing, length, timings[_yardstick(name, last)]) for name, timing in timings.items()]
    wire = wire_bytes(params) / length
    sides = ("client", "client that may retry", "server")
    extra = {side: in_child("benchmarks.masking", "--memory-of", side, *_sizes(options))["mib"] for side in sides}
    low = len(some) - 1
    bars = [
        Bar(f"mask and add, degree {last}, over AES-CTR", ratio(f"mask and add, degree {last}", last), 1.3, unit="x"),
        Bar(
            f"quantise, pack, mask and add, degree {low}, over AES-CTR",
            ratio(f"quantise, pack, mask and add, degree {low}", low),
            2.0,
            unit="x",
        ),
        Bar(
            f"quantise, pack, mask and add, degree {last}, over AES-CTR",
            ratio(f"quantise, pack, mask and add, degree {last}", last),
            1.5,
            unit="x",
        ),
        Bar("wire bytes per parameter", wire, 2.7),
        *(Bar(f"extra memory, {side}", mib, 64, unit="MiB") for side, mib in extra.items()),
    ]
    one, many = (timings[f"{server}, {count} thread(s)"] for count in (1, threads))
    report = Report("masking", "Masking against the cipher alone", WHAT, repetitions, rows, bars)
    report.extra = {
        "length": length,
        "clients": clients,
        "threads": 1,
        "unmasking_speed_up": {
            "threads": threads,
            "cores": cores,
            "factor": round(one.best / many.best, 3),  # of wall-clock time: needs as many idle cores
            "cpu_time_factor": round(many.best_cpu / one.best_cpu, 3),  # what the threads cost besides
        },
    }
    return report


def _yardstick(name: str, last: int) -> str:
    degree = name.rsplit("degree ", 1)[1] if "degree " in name else str(last)
    return f"AES-CTR alone, degree {degree}"


def _row(name: str, timing: Timing, length: int, yardstick: Timing) -> dict[str, object]:
    return {
        "work": name,
        "CPU ms": round(1e3 * timing.best_cpu, 2),
        "wall ms": round(1e3 * timing.best, 2),
        "x": round(timing.best_cpu / yardstick.best_cpu, 3),
        "ns per parameter": round(1e9 * timing.best_cpu / length, 2),
    }


def _sizes(options: argparse.Namespace) -> list[str]:
    return ["--length", str(options.length), "--clients", str(options.clients)]


def main() -> None:
    """Measure and print; with --memory-of, be the fresh process that measures memory."""
    made = parser(__doc__, repetitions=7)
    made.add_argument("--length", type=int, default=10_000_000, help="values in one vector")
    made.add_argument("--clients", type=int, default=100)
    made.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = made.parse_args()
    choose_faster(time.perf_counter)
    if options.memory_of:
        print(json.dumps(memory(options.memory_of, options.length, options.clients)))
        return
    publish(measure(options), options)


if __name__ == "__main__":
    main()
