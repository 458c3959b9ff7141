"""A private round against the same round with plain federated averaging, over gRPC, without training.

`python -m benchmarks.round [--json] [--out FILE.json] [--clients 10] [--length 10000000] [--repetitions 2]`

Both paths use the same shell (`benchmarks.round_parts`): mutual TLS, chunks, hashed spool, journal, checkpoint. One
process serves, two hold the clients. A run has several rounds; a round lasts from its beginning to the beginning of the
next, which is when every client of the private path has also fetched and checked the published sum. The first round
warms up. Private and plain runs take turns.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import bench
from benchmarks.bench import ROOT, Bar, Report
from benchmarks.consortium import Size
from benchmarks.round_parts import make

ROUNDS = 4  # the first warms up, the last has no end that both paths share
LIMIT = 2.0  # ours: nobody set one
PHASES = ("ADVERTISE_KEYS", "SHARE_KEYS", "MASKED_INPUT", "CONSISTENCY_CHECK", "UNMASKING", "aggregate", "released")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(mode: str, size: Size, rounds: int) -> dict[str, Any]:
    """One run of one path in processes of its own."""
    with tempfile.TemporaryDirectory(prefix="round-") as name:
        folder, port = Path(name), free_port()
        make(folder, size)
        common = [mode, name, str(port), json.dumps(asdict(size) | {"rounds": rounds})]
        half = (size.clients + 1) // 2
        groups = [range(1, half + 1), range(half + 1, size.clients + 1)]
        commands = [["server", *common], *(["clients", *common, *map(str, group)] for group in groups)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.round_parts", *command],
                cwd=ROOT,
                env={**os.environ, **bench.ONE_THREAD},
                stdout=subprocess.PIPE,
                text=True,
            )
            for command in commands
        ]
        try:
            outs = [process.communicate(timeout=1200)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a {mode} run failed")
    server, *clients = (json.loads(out.strip().splitlines()[-1]) for out in outs)
    begun = {number: at for at, event, number in server["events"] if event == "round"}
    seconds = [begun[number + 1] - begun[number] for number in range(2, rounds)]
    clock: dict[str, float] = {}
    for part in clients:
        for work, spent in part["clock"].items():
            clock[work] = clock.get(work, 0.0) + spent
    spent_by = [part["cpu"] for part in (server, *clients)]  # JSON: the rounds are texts here
    return {
        "seconds": seconds,
        "cpu": sum(part[str(rounds)] - part["2"] for part in spent_by) / (rounds - 2),
        "phases": [phases_of(server["events"], number) for number in range(2, rounds)],
        "server": {work: spent / rounds for work, spent in server["clock"].items()},
        "client": {work: spent / rounds / size.clients for work, spent in clock.items()},
        "server_peak_mib": server["peak_mib"],
        "client_peak_mib": max(part["peak_mib"] for part in clients),
    }


def phases_of(events: list[list[Any]], number: int) -> dict[str, float]:
    """Seconds from one mark of a round to the next; what comes before the first and after the last is named as well."""
    marks = [(at, name) for at, name, round_ in events if round_ == number and name in ("round", *PHASES)]
    marks.append(next((at, "end") for at, name, round_ in events if round_ == number + 1 and name == "round"))
    names = {"round": "begin", "aggregate": "adding up", "released": "checkpoint and result"}
    return {names.get(name, name): later - at for (at, name), (later, _) in pairwise(marks) if later > at}


def main() -> None:
    """Command line."""
    options_parser = bench.parser(__doc__, repetitions=2)
    options_parser.add_argument("--clients", type=int, default=10)
    options_parser.add_argument("--length", type=int, default=10_000_000)
    options_parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = options_parser.parse_args()
    size = Size(options.clients, options.length)
    runs: dict[str, list[dict[str, Any]]] = {"private": [], "plain": []}
    for _ in range(options.repetitions):
        for mode, done in runs.items():
            done.append(run(mode, size, options.rounds))
    best = {mode: min(second for one in done for second in one["seconds"]) for mode, done in runs.items()}
    median = {mode: statistics.median(s for one in done for s in one["seconds"]) for mode, done in runs.items()}
    cpu = {mode: min(one["cpu"] for one in done) for mode, done in runs.items()}
    rows = []
    for mode, done in runs.items():
        rows.append({"round": mode, "where": "all processes", "what": "processor time", "seconds": cpu[mode]})
        for where in ("phases", "server", "client"):
            parts = [p for one in done for p in (one[where] if where == "phases" else [one[where]])]
            for name in parts[0]:
                label = {"phases": "wall", "server": "server, threads", "client": "one client"}[where]
                spent = statistics.median(part.get(name, 0.0) for part in parts)
                rows.append({"round": mode, "where": label, "what": name.lower().replace("_", " "), "seconds": spent})
    report = Report(
        benchmark="round",
        title="A private round against plain federated averaging",
        what=f"{options.clients} clients x {options.length} parameters over gRPC with mutual TLS on loopback, without "
        "training. A round lasts from its beginning to the beginning of the next; rows `wall` add up to one round, the "
        "others are work inside of it, which overlaps; medians. Both limits are ours. Private: the product's server "
        "and client loops, every client also fetches the published sum and recomputes the next model. Plain: float32 "
        "vectors, which the server reads and averages, over the same transport, spool, hash, journal and checkpoint.",
        repetitions=options.repetitions * (options.rounds - 2),
        rows=rows,
        bars=[
            Bar(
                "time of a private round against plain federated averaging (best of all rounds)",
                best["private"] / best["plain"],
                LIMIT,
                unit="x",
            ),
            Bar(
                "processor time of a private round, all processes, against plain federated averaging",
                cpu["private"] / cpu["plain"],
                LIMIT,
                unit="x",
            ),
        ],
        packages=("numpy", "cryptography", "grpcio", "protobuf"),
        extra={
            "clients": options.clients,
            "length": options.length,
            "seconds": {
                mode: {"best": best[mode], "median": median[mode], "all": [s for o in runs[mode] for s in o["seconds"]]}
                for mode in runs
            },
            "peak_mib": {
                mode: {
                    "server": max(one["server_peak_mib"] for one in done),
                    "client process": max(one["client_peak_mib"] for one in done),
                }
                for mode, done in runs.items()
            },
        },
    )
    bench.publish(report, options)


if __name__ == "__main__":
    main()
