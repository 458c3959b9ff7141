"""Our exact BFV path against the CKKS settings that NVIDIA FLARE ships, side by side on the same updates.

`python -m benchmarks.he [--json] [--length 100000] [--clients 100]`

Both sides start at the float32 update of each client and end at the sum of all of them. FLARE's: one call encrypts the
whole vector under N = 8192, coefficient bits 60, 40, 40, scale 2^40, a secret key that every client holds; the server
adds what it loads; a client decrypts. Ours: quantise to 14-bit values, three to a word, limbs of `widest_limbs` bits
under a public key; the decryptor reads each ciphertext through the guard, adds, opens once. The library is the same.
"""

import argparse
import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import tenseal  # noqa: TID251 - the peer's side uses the library as NVIDIA FLARE does
from numpy.typing import NDArray

from benchmarks.bench import Bar, Report, Timing, parser, publish
from dp.sampling import Csprng
from protocol.rpc.he_process import HeProcess
from secagg.encoding import SlotEncoding, Words
from secagg.he.bfv import Bfv
from secagg.he.pipe import Begin
from secagg.he.scheme import BfvParams, widest_limbs

BOUND = 2**13 - 1  # 14-bit values in 21-bit slots
SCALE = 1000
SLOTS = 3
DEGREE, BITS, CKKS_SCALE = 8192, [60, 40, 40], 2.0**40
OURS, PEER, CHILD = "BFV, ours", "CKKS as in FLARE", "BFV, ours, in the HE process"

WHAT = """\
One thread. Each client's update is encrypted and added by one side, then by the other, then the next client; figures
are medians over the clients. Encrypt: from float32 to bytes, ours with quantising and packing. Add: from bytes to the
running sum, ours with the guard; "in the HE process" also through its pipe. Decrypt: from the sum to numbers, once.
Errors are of the sum of all clients, in units of the update: against the exact sum of the quantised updates (ours) and
of the float32 updates (CKKS). Quantising, unbiased on a grid of 1/1000 here, costs what its own column says; the grid
is the manifest's choice. What the figures do not show: the peer's key decrypts every single update and lies on each
client; ours opens one sum and lies in the decryptor's process."""


@dataclass(slots=True)
class Side:
    """What one side took."""

    encrypt: list[float] = field(default_factory=list)
    add: list[float] = field(default_factory=list)
    decrypt: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    error: float = float("nan")
    rounding: float = 0.0  # what quantising adds: the price of exactness


class Clock:
    """Seconds since the last look."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        before, self._last = self._last, time.perf_counter()
        return self._last - before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The library writes to standard output, below Python, that a long vector cannot be multiplied by a matrix."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def update(length: int) -> NDArray[np.float32]:
    """Uniform in the range of 14-bit values."""
    raw = np.frombuffer(Csprng.from_os().take(4 * length), dtype="<i4")
    return np.multiply(raw, 0.999 * BOUND / SCALE / 2**31, dtype=np.float64).astype(np.float32)


def encode(x: NDArray[np.float32], encoding: SlotEncoding) -> Words:
    """Quantised and packed."""
    random = np.frombuffer(Csprng.from_os().take(4 * len(x)), dtype="<u4")
    return encoding.pack(encoding.quantize(x, random))


async def compare(length: int, clients: int) -> dict[str, Side]:
    """All clients in turn, both sides for each."""
    params = BfvParams(clients, widest_limbs(clients))
    encoding = SlotEncoding(SLOTS, SCALE, BOUND, clients)
    sides = {OURS: Side(), PEER: Side(), CHILD: Side()}
    words = encoding.words_for(length)
    opening = Bfv().opening(params, words, range(1, clients + 1))
    encryptor = Bfv().encryptor(params, opening.public_key)
    peer = tenseal.context(tenseal.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=BITS, n_threads=1)
    peer.global_scale = CKKS_SCALE
    exact_words, exact = np.zeros(words, np.uint64), np.zeros(length, np.float64)
    peer_sum = None
    async with await HeProcess.spawn(Begin(params, words, tuple(range(1, clients + 1)))) as process:
        for client in range(1, clients + 1):
            x = update(length)
            ours, theirs, child = sides[OURS], sides[PEER], sides[CHILD]
            clock = Clock()
            packed = encode(x, encoding)
            blocks = list(encryptor.encrypt(packed))
            ours.encrypt.append(clock.lap())
            with quiet():
                sent = tenseal.ckks_vector(peer, x.tolist()).serialize()
            theirs.encrypt.append(clock.lap())
            for i, block in enumerate(blocks):
                opening.add(client, i, block)
            ours.add.append(clock.lap())
            with quiet():
                loaded = tenseal.ckks_vector_from(peer, sent)
            if peer_sum is None:
                peer_sum = loaded
            else:
                peer_sum += loaded
            theirs.add.append(clock.lap())
            for i, block in enumerate(blocks):
                await process.add(client, i, block)
            child.add.append(clock.lap())
            ours.sent.append(sum(map(len, blocks)))
            theirs.sent.append(len(sent))
            exact_words += packed
            exact += x
        assert peer_sum is not None
        clock = Clock()
        opened = opening.open_()
        sides[OURS].decrypt.append(clock.lap())
        approximate = np.array(peer_sum.decrypt())
        sides[PEER].decrypt.append(clock.lap())
    total = encoding.unpack(opened, length, clients)
    wanted = encoding.unpack(exact_words, length, clients)
    sides[OURS].error = float(np.abs(total - wanted).max()) / SCALE
    sides[OURS].rounding = float(np.abs(total / SCALE - exact).max())
    sides[PEER].error = float(np.abs(approximate - exact).max())
    return sides


def measure(options: argparse.Namespace) -> Report:
    """All rows and bars."""
    length, clients = options.length, options.clients
    params = BfvParams(clients, widest_limbs(clients))
    sides = asyncio.run(compare(length, clients))
    ours, peer = sides[OURS], sides[PEER]

    def ratio(name: str) -> float:
        return _median(getattr(peer, name)) / _median(getattr(ours, name))

    rows = [_row(name, side, length) for name, side in sides.items()]
    bytes_each = max(ours.sent) / length
    report = Report("he", "Homomorphic sums: exact BFV against CKKS", WHAT, clients, rows)
    report.packages = ("numpy", "tenseal", "zstandard")
    report.bars = [
        Bar("bytes per parameter", bytes_each, 15),
        Bar("encrypt, times faster than CKKS", ratio("encrypt"), 1.5, at_least=True, unit="x"),
        Bar("error of the sum", ours.error, 0),
    ]
    report.extra = {
        "length": length,
        "clients": clients,
        "largest_rounding_of_the_sum": ours.rounding,
        "grid_step": 1 / SCALE,
        "limb_bits": params.limb_bits,
        "coefficient_bits": params.coefficient_bits,
        "times_faster": {name: round(ratio(name), 2) for name in ("encrypt", "add", "decrypt")},
        "times_smaller": round(max(peer.sent) / max(ours.sent), 2),
    }
    return report


def _median(seconds: list[float]) -> float:
    return Timing(tuple(seconds)).median


def _row(name: str, side: Side, length: int) -> dict[str, object]:
    def per_parameter(seconds: list[float]) -> object:
        return round(1e9 * _median(seconds) / length, 1) if seconds else ""

    return {
        "scheme": name,
        "bytes per parameter": round(max(side.sent) / length, 2) if side.sent else "",
        "encrypt, ns per parameter": per_parameter(side.encrypt),
        "add, ns per parameter": per_parameter(side.add),
        "decrypt, ns per parameter": per_parameter(side.decrypt),
        "largest error of the sum": side.error if side.sent else "",
        "and by quantising": side.rounding if side.sent else "",
    }


def main() -> None:
    """Measure and print."""
    made = parser(__doc__, repetitions=1)
    made.add_argument("--length", type=int, default=100_000, help="values in one update")
    made.add_argument("--clients", type=int, default=100)
    options = made.parse_args()
    publish(measure(options), options)


if __name__ == "__main__":
    main()
