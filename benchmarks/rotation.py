"""Narrow slots by a rotation: bytes of an upload, and what the coarser grid costs, against 32-bit slots without one.

    python -m benchmarks.rotation [--json] [--length 91410] [--clients 500]

For each width the finest grid that the manifest allows, with noise for the same multiplier over that grid's own
sensitivity, so for the same ε. Measured is a whole round through frames: the error of the mean that comes out, value by
value, in clip norms; the noise is most of it. The bound on the sample is part of the headroom, so part of the price.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from benchmarks.bench import Bar, Report, parser, publish
from benchmarks.consortium import Size, manifest_of
from dp.mechanism import GaussianMechanism
from dp.sampling import Csprng
from ffm.plan import client_mechanism, rotated_sum
from ffm.step import next_model
from protocol import bounds
from protocol.manifest import Manifest
from secagg.masking import frame, unframe

FINE = 2**20  # grid steps per unit where records are clipped
RECORDS, RATE = 2000, (1, 20)  # of all silos, and the sampling probability: R2
SLOTS = {2: "32 bits", 3: "21 bits, rotated", 4: "16 bits, rotated"}


def manifest(protocol: str, clients: int, length: int, slots: int) -> Manifest | None:
    """The finest grid, by powers of two, whose sums fit; None where there is none."""
    corrupt = clients // 20 if protocol == "C" else clients // 3
    size = Size(clients, length, slots, dropout_percent=1, max_corrupt=corrupt)
    body = json.loads(manifest_of(size).to_bytes())
    claim = {"protocol": "R2"} if protocol == "R2" else {"protocol": "C", "unit": "client", "adjacency": "zero-out"}
    budget = {"epsilon": "8", "delta": "0.00001", "max_records": RECORDS}
    body["privacy"] |= {**claim, **budget, "sampling_numerator": RATE[0], "sampling_denominator": RATE[1]}
    body["aggregation"]["bound"] = (2 ** (64 // slots) - 1) // (2 * clients)
    body["aggregation"]["min_cohort"] = clients - 10 if protocol == "C" else clients - 1
    if slots > 2:
        body["aggregation"]["rotation"] = "hadamard"
    for scale in (2**k for k in range(20, 0, -1)):
        if (made := _on_grid(body, scale, slots)) is not None:
            return made
    return None


def _on_grid(body: dict[str, Any], scale: int, slots: int) -> Manifest | None:
    """Clip norm 1, noise of 1 (R2) or 5 (C) times the sensitivity on a grid of `scale` steps per unit."""
    length, rotated = body["adapter"]["tensors"][0]["shape"][0], slots > 2
    size = bounds.rotated_length(length) if rotated else length
    if body["privacy"]["protocol"] == "C":
        fine, sensitivity, times = scale, bounds.rounded_norm(scale, size), 5
    else:
        fine, times = FINE if rotated else scale, 1
        sensitivity = bounds.rounded_norm(scale, size, bounds.DITHER) if rotated else scale
    body["privacy"] |= {"scale": fine, "clip_steps": fine, "noise_steps": times * sensitivity * fine // scale}
    body["aggregation"]["scale"] = scale
    try:
        return Manifest.model_validate_json(json.dumps(body))
    except ValueError:
        return None


def round_of(made: Manifest, rng: Csprng) -> tuple[float, float]:
    """Error of one value of the mean, root mean square in clip norms; seconds of one client's release."""
    size, clients = made.adapter.size, made.aggregation.num_clients
    params, p = made.secagg_params(), made.privacy
    rotated, seconds = rotated_sum(made), []
    total, exact = np.zeros(params.total_words, dtype=np.uint64), np.zeros(size)
    for vector in _vectors(made, rng):
        started = time.perf_counter()
        if p.protocol == "C":
            values = client_mechanism(made).privatize(vector, rng)
        elif rotated is not None:
            values = rotated.privatize(vector, rng)
        else:
            values = GaussianMechanism(p.scale, p.clip_steps, p.noise_steps, made.noise_shares).privatize(vector, rng)
        seconds.append(time.perf_counter() - started)
        total += frame(values, params)
        exact += vector if p.protocol == "C" else vector / p.scale
    after = next_model(np.zeros(size, dtype=np.float32), unframe(total, clients, params), clients, made)
    divisor = clients if p.protocol == "C" else made.training.expected_batch
    factor = 1.0 if p.protocol == "C" else -float(made.training.learning_rate)
    error = (after / factor - exact / divisor) * divisor / clients
    return float(np.sqrt(np.mean(error**2))), min(seconds)


def _vectors(made: Manifest, rng: Csprng) -> Iterator[Any]:
    """What clients have before the noise: C a direction of norm 1, float32; R2 sums of norm 20, integers."""
    for k in range(made.aggregation.num_clients):
        direction = np.sin(np.arange(made.adapter.size) * (k + 1.0) + float(rng.words(1)[0] >> np.uint64(40)))
        direction /= np.linalg.norm(direction)
        yield (
            direction.astype(np.float32)
            if made.privacy.protocol == "C"
            else np.rint(20 * direction * made.privacy.clip_steps).astype(np.int64)
        )


def measure(options: argparse.Namespace) -> Report:
    """R2 with ten clients, C with many."""
    rows: list[dict[str, Any]] = []
    for protocol, clients, length in (("R2", 10, options.length), ("C", options.clients + 10, options.length // 4)):
        base = math.nan
        for slots, width in SLOTS.items():
            made = manifest(protocol, clients, length, slots)
            row: dict[str, Any] = {"protocol": protocol, "clients": clients, "values": length, "slots": width}
            if made is None:
                rows.append(row | dict.fromkeys(_FIGURES, "no headroom"))
                continue
            rounds = [round_of(made, Csprng.from_os()) for _ in range(options.repetitions)]
            error, seconds = math.sqrt(statistics.mean(e**2 for e, _ in rounds)), min(s for _, s in rounds)
            base = error if slots == 2 else base
            rows.append(row | dict(zip(_FIGURES, _figures(made, error, base, seconds), strict=True)))
    narrow = next(row for row in rows if row["slots"] == SLOTS[3])
    saved = 1 - narrow["bytes per value"] / rows[0]["bytes per value"]
    return Report(
        benchmark="rotation",
        title="Rotated sums in narrow slots",
        what=f"A round through frames at the same ε: noise of 1 (R2: {RECORDS} records, q = 1/20) or 5 (C) times the "
        "sensitivity of the grid, the finest that the headroom allows. Error: root mean square of a value of the mean, "
        "in clip norms; sensitivity: over the clip norm, on that grid.",
        repetitions=options.repetitions,
        rows=rows,
        bars=[Bar("R2, 21-bit slots: part of the upload that is saved", saved, 0.25, at_least=True)],
        extra={},
    )


_FIGURES = ("grid steps per unit", "bytes per value", "sensitivity", "error", "error over 32 bits", "ms per client")


def _figures(made: Manifest, error: float, base: float, seconds: float) -> tuple[float, ...]:
    size = 8 * made.secagg_params().total_words / made.adapter.size
    sensitivity = float(Fraction(made.sensitivity_steps, made.release_clip_steps))
    return float(made.aggregation.scale), size, sensitivity, error, error / base, 1000 * seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 0 whatever the bars say, as of every benchmark."""
    made = parser(__doc__, repetitions=3)
    made.add_argument("--length", type=int, default=91410, help="values of R2; C takes a quarter (default %(default)s)")
    made.add_argument("--clients", type=int, default=500, help="of C, and ten more (default %(default)s)")
    options = made.parse_args(arguments)
    publish(measure(options), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
