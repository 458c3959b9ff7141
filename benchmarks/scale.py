"""How time and memory grow: whole rounds with 100 to 10,000 clients, and with 10^5 to 10^8 parameters.

    python -m benchmarks.scale [--json] [--out FILE] [--clients 100,...,10000] [--lengths 100000,...,100000000]

Each row is a round of its own in fresh processes (`benchmarks.simulated_round`): the real sessions, frames and spool,
two processes of clients beside the server, 5 % of the clients silent from the masked input on, the released sum
compared with the sum of the inputs. Time runs from the announcement to the sum; training, gRPC, TLS and journals are
not in it. Memory is VmHWM, which includes the interpreter and its libraries (about 55 MiB per process).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.bench import Bar, Report, in_child, parser, publish
from benchmarks.consortium import Size

CLIENTS = (100, 200, 500, 1000, 2000, 5000, 10_000)
LENGTHS = (10**5, 10**6, 10**7, 10**8)
PARAMETERS = 100_000  # while the number of clients grows
FEW = 5  # clients while the number of parameters grows
TARGET = (10_000, 1200.0)  # clients, seconds
MIB = 2.0**20


def simulated(size: Size, processes: int) -> dict[str, Any]:
    """One round in processes of its own."""
    return in_child("benchmarks.simulated_round", json.dumps(asdict(size)), str(processes))


def row(found: dict[str, Any]) -> dict[str, Any]:
    """A line of the table."""
    return {
        "clients": found["clients"],
        "parameters": found["length"],
        "graph": found["graph"],
        "neighbours": found["degree"],
        "dropouts": found["dropouts"],
        "seconds": found["seconds"],
        "ms per client": 1e3 * found["seconds"] / found["clients"],
        "server peak MiB": found["server_peak_bytes"] / MIB,
        "clients' peak MiB": found["client_peak_bytes"] / MIB,
        "upload bytes per parameter": found["bytes_upload"] / found["length"],
        "other KiB up": found["bytes_up"] / 1024,
        "KiB down": found["bytes_down"] / 1024,
        "sum": "exact" if found["exact"] else "WRONG",
    }


def run(clients: Sequence[int], lengths: Sequence[int]) -> Report:
    """All rows; the bar is on the largest number of clients, if it is that of the target."""
    found = [simulated(Size(n, PARAMETERS), 2) for n in clients]
    found += [simulated(Size(FEW, length, dropout_percent=20), 1) for length in lengths]
    bars = []
    for result in found:
        if (result["clients"], result["length"]) == (TARGET[0], PARAMETERS):
            bars.append(
                Bar(f"{TARGET[0]:,} clients x {PARAMETERS:,} parameters", result["seconds"], TARGET[1], unit="s")
            )
    return Report(
        benchmark="scale",
        title="Growth with clients and with parameters",
        what=(
            "Whole rounds with the real client and server sessions in memory, frames and spool included; without "
            "gRPC, TLS, journals and training. 5 % of the clients (one of five in the rows with five) fall silent "
            "before their masked input. Two processes of clients beside the server (one with five clients). Verified "
            "signatures and parsed broadcasts are remembered within a process. Peaks are VmHWM, interpreter included; "
            "the clients' is the sum over their processes. Bytes are protocol frames of one client, mean over all."
        ),
        repetitions=1,
        rows=[row(result) for result in found],
        bars=bars,
        extra={"rounds": found},
    )


def numbers(text: str) -> tuple[int, ...]:
    """Comma-separated integers; none for an empty text."""
    return tuple(int(part) for part in text.split(",") if part)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser(__doc__, 1)
    options.add_argument("--clients", type=numbers, default=CLIENTS)
    options.add_argument("--lengths", type=numbers, default=LENGTHS)
    chosen = options.parse_args(arguments)
    publish(run(chosen.clients, chosen.lengths), chosen)


if __name__ == "__main__":
    main()
