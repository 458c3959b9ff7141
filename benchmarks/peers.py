"""Side by side with Flower's SecAgg+: client masking, server unmasking, bytes on the wire.

    python -m benchmarks.peers [--json] [--out FILE] [--clients 32] [--length 1000000] [--repetitions 3]

Both sides run whole attempts of their own, real code, one thread, each step in turn with the other side's. A client's
step begins with the other clients' encrypted shares and the update as float32, and ends with the bytes to upload (open
the shares, quantise, derive the seeds, mask; ours also checks signatures, hashes and signs). The server's begins when
the last share has arrived and ends with the mean as floats. Same threshold, same dropouts.

A *step* is all of that; what it costs once (key agreement, Shamir, signatures) is left out of the figures per parameter
and of the removal of masks. Not compared is what the masks are worth: Flower draws them from a Mersenne Twister that is
seeded with 32 bits, ours are AES-256-CTR under 256-bit keys.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from benchmarks.bench import ONE_THREAD, ROOT, Bar, Report, Timing, parser, publish
from benchmarks.consortium import Consortium, Size
from benchmarks.our_attempt import OurAttempt
from secagg.prg import choose_faster

PYTHON = ROOT / ".venv-peers" / "bin" / "python"
SCRIPT = Path(__file__).parent / "peer_flower" / "secaggplus.py"
TIMES_FASTER = 10.0
WHY_CLIENT = (
    "without the wide AES instructions of AVX-512 as many streams of AES-256, added to nothing, take most of a tenth "
    "of Flower's time; see masking.md"
)
SLOTS = {3: "21-bit slots", 2: "32-bit slots"}
PER_PARAMETER = "client step, ns per parameter"
STEPS = ("client step", "client masks", "server unmasks", "server removes masks", "server adds")


class FlowerAttempt:
    """One attempt of Flower's in its own environment; it waits for us before every timed step."""

    def __init__(self, python: Path, size: Size, threshold: int) -> None:
        sizes = {"clients": size.clients, "length": size.length, "dropouts": size.dropouts, "threshold": threshold}
        environment = {"PATH": os.defpath, "FLWR_TELEMETRY_ENABLED": "0", **ONE_THREAD}
        self._process = subprocess.Popen(
            [python, SCRIPT, json.dumps(sizes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        self._in, self._out = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)

    def step(self, at: str, go: bool = True) -> dict[str, Any]:
        """Let the next step run; what it reports. Raises RuntimeError if Flower's side died."""
        if go:
            self._in.write("go\n")
            self._in.flush()
        line = self._out.readline()
        if not line:
            raise RuntimeError("Flower's side ended early: run benchmarks/peer_flower/secaggplus.py by hand to see why")
        said: dict[str, Any] = json.loads(line)
        if said["at"] != at:
            raise RuntimeError(f"Flower's side is at {said['at']}, not at {at}")
        return said

    def close(self) -> None:
        """End the process."""
        self._in.close()
        self._process.wait(timeout=60)
        self._out.close()


@dataclass
class Samples:
    """Seconds of every timed step of one side at one length, and bytes of one client by phase [down, up]."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in STEPS})
    bytes: dict[str, list[float]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def timing(self, step: str) -> Timing:
        """Best and median of one step."""
        return Timing(tuple(self.seconds[step]))


def one_attempt(python: Path, size: Size, ours: Samples, theirs: Samples) -> None:
    """One attempt of each side, in turn; both results are checked."""
    consortium = Consortium(size, memo=False)
    flower = FlowerAttempt(python, size, consortium.params.threshold)
    updates = {i: np.sin(np.arange(size.length, dtype=np.float64) + i).astype(np.float32) for i in consortium.ids}
    try:
        with tempfile.TemporaryDirectory() as folder:
            attempt = OurAttempt(consortium, updates, Path(folder))
            attempt.deal_shares()
            for client in attempt.alive:
                said = flower.step("client")
                theirs.seconds["client step"].append(said["seconds"])
                theirs.seconds["client masks"].append(said["masking"])
                ours.seconds["client step"].append(attempt.mask(client))
                ours.seconds["client masks"].append(attempt.masking)
            attempt.collect_shares()
            said = flower.step("server")
            theirs.seconds["server unmasks"].append(said["unmask"])
            theirs.seconds["server removes masks"].append(said["unmask"] - said["secrets"])
            theirs.seconds["server adds"].append(said["add"])
            ours.seconds["server unmasks"].append(attempt.unmask())
            ours.seconds["server removes masks"].append(attempt.removing)
            ours.seconds["server adds"].append(attempt.adding)
            attempt.close()
        end = flower.step("end", go=False)
    finally:
        flower.close()
    mean = np.mean([updates[i] for i in attempt.alive], axis=0, dtype=np.float64)
    error = float(np.abs(attempt.mean - mean).max())
    if end["error"] > 1e-4 or error > 1.0 / consortium.manifest.aggregation.scale:
        raise RuntimeError(f"a wrong mean: Flower is off by {end['error']:.2g}, we are off by {error:.2g}")
    ours.bytes = {phase: [total / size.clients for total in both] for phase, both in attempt.bytes.items()}
    theirs.bytes = {phase: [total / size.clients for total in both] for phase, both in end["bytes"].items()}
    theirs.versions = end["versions"]


def compare(python: Path, sizes: tuple[Size, Size], attempts: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows for one slot width, and Flower's versions. `sizes`: the long vector and the short one."""
    ours, theirs = (Samples(), Samples()), (Samples(), Samples())
    for _ in range(attempts):
        for size, mine, its in zip(sizes, ours, theirs, strict=True):
            one_attempt(python, size, mine, its)
    length = sizes[0].length - sizes[1].length
    slots = SLOTS[sizes[0].slots_per_word]
    rows = []
    for step in STEPS:
        us, them = ours[0].timing(step), theirs[0].timing(step)
        rows.append(_row(f"{step}, ms", slots, 1e3 * us.best, 1e3 * them.best))
        rows[-1] |= {"ours, median": 1e3 * us.median, "Flower, median": 1e3 * them.median}
    masking = ((side[0].timing(STEPS[0]).best - side[1].timing(STEPS[0]).best) / length for side in (ours, theirs))
    rows.append(_row(PER_PARAMETER, slots, *(1e9 * slope for slope in masking)))
    for direction, index in (("to", 0), ("from", 1)):
        up_or_down = (sum(both[index] for both in side[0].bytes.values()) for side in (ours, theirs))
        rows.append(_row(f"bytes {direction} a client", slots, *up_or_down))
    return rows, theirs[0].versions


def _row(what: str, slots: str, ours: float, flower: float) -> dict[str, Any]:
    ratio = flower / ours
    return {"what": what, "our encoding": slots, "ours": ours, "Flower": flower, "Flower / ours": ratio} | {
        "ours, median": "",
        "Flower, median": "",
    }


def run(python: Path, size: Size, attempts: int) -> Report:
    """Both slot widths against Flower's defaults (22-bit values in 64-bit integers, modulus 2^32)."""
    rows: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    for slots in SLOTS:
        long = Size(size.clients, size.length, slots, size.dropout_percent)
        short = Size(size.clients, max(size.length // 1000, 4), slots, size.dropout_percent)
        more, versions = compare(python, (long, short), attempts)
        rows += more
    limits = [
        _bar(rows, "client masks, ms", "client masking: times faster than Flower", WHY_CLIENT),
        _bar(rows, "server unmasks, ms", "server unmasking: times faster than Flower"),
    ]
    return Report(
        benchmark="peers",
        title="Beside Flower's SecAgg+",
        what=(
            f"{size.clients} clients, {size.length:,} parameters, {size.dropouts} dropouts, one thread, each step in "
            f"turn; best of {attempts} attempts (client step: of all clients in them). Client "
            "step: open the others' shares, quantise, derive seeds, mask, serialise; ours also verifies signatures, "
            "hashes and signs. Client masks: the part of that step that makes the masks and adds them. Per "
            "parameter: slope between this length and a thousandth of it. Unmasking: from the "
            "last share to the mean; removing masks: the same without rebuilding secrets and agreeing on seeds. Bytes: "
            "all messages of the aggregation, model distribution left out. 21-bit slots hold 16-bit values, 32-bit "
            "slots 27-bit values, Flower's integers 22-bit values. Flower seeds a Mersenne Twister with 32 bits for "
            "each mask; ours are AES-256-CTR under 256-bit keys."
        ),
        repetitions=attempts,
        rows=rows,
        bars=limits,
        extra={"flower": versions},
    )


def _bar(rows: Sequence[dict[str, Any]], what: str, name: str, reason: str = "") -> Bar:
    row = next(r for r in rows if r["what"] == what and r["our encoding"] == SLOTS[3])
    return Bar(f"{name} ({SLOTS[3]})", row["Flower / ours"], TIMES_FASTER, at_least=True, unit="x", reason=reason)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser(__doc__, 3)
    options.add_argument("--python", type=Path, default=PYTHON, help="interpreter of Flower's environment")
    options.add_argument("--clients", type=int, default=32)
    options.add_argument("--length", type=int, default=1_000_000)
    chosen = options.parse_args(arguments)
    choose_faster(time.perf_counter)
    if not chosen.python.exists():
        options.exit(2, f"error: {chosen.python} is not there; do: make peers-setup\n")
    size = Size(chosen.clients, chosen.length, dropout_percent=10)
    publish(run(chosen.python, size, chosen.repetitions), chosen)


if __name__ == "__main__":
    main()
