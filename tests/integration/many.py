"""A round with hundreds of connected clients: one server process, the clients as tasks of a few others.

Run as a program, with the project and its tests on PYTHONPATH:

many.py make FOLDER CLIENTS LENGTH       certificates and documents, written once
many.py server FOLDER PORT               one attempt on the ring; prints one JSON object
many.py clients FOLDER PORT FIRST LAST SILENT...    clients FIRST to LAST; SILENT ones vanish before they upload
"""

import asyncio
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from simulator import Federation, make_manifest
from wire import Hub, Patience, Site, certificates, federation, load_consortium, running, save_consortium

from protocol.effects import Released
from protocol.messages import Finished
from protocol.rpc import pki
from protocol.rpc.limits import Deadlines
from secagg.types import ClientId, Phase

PATIENT = Patience(unreachable=300.0, call=120.0)
BOUND = 2000  # headroom for 500 clients
DEADLINES = Deadlines(600.0, 600.0, 600.0, 600.0, 600.0, grace=20.0)


def changes(n: int) -> dict[str, Any]:
    """Ring parameters for n clients: C and D are a twentieth each."""
    return {
        "aggregation__graph": "ring",
        "aggregation__max_corrupt": n // 20,
        "aggregation__max_dropouts": n // 20,
        "aggregation__min_cohort": (n + n // 20) // 2 + 1,
        "aggregation__chunk_words": 4096,
        "aggregation__bound": BOUND,
    }


def plain(folder: Path) -> Federation:
    """The federation of the folder, before its roster is loaded."""
    n, length = json.loads((folder / "size.json").read_text())
    return Federation.create(make_manifest(n, 1, 1, length, **changes(n)))


def make(folder: Path, n: int, length: int) -> None:
    """Everything that the other processes read."""
    f = federation(n, length, **changes(n))
    save_consortium(f, folder)
    (folder / "size.json").write_text(json.dumps([n, length]))
    for number, leaf in enumerate(certificates(n)[1], start=1):
        (folder / f"client-{number}.pem").write_bytes(leaf.certificate_pem + leaf.key_pem)


def value_of(client: int) -> int:
    """What client adds to every coordinate: distinct sums for distinct sets, nearly always."""
    return (client * 7919) % (2 * BOUND + 1) - BOUND


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


async def serve(folder: Path, port: int) -> None:
    """One attempt and its figures."""
    f, tls = load_consortium(plain(folder), folder)
    begun, marks = time.monotonic(), {}
    async with Hub(f, folder, port, tls) as hub:
        await hub.server.wait_connected(f.roster.ids, 300)
        marks["connected"] = time.monotonic() - begun
        announced = time.monotonic()
        emit = hub.server._emit

        def timed(event: Any) -> None:
            if event["event"] == "phase":
                marks[event["phase"]] = time.monotonic() - announced
            emit(event)

        hub.server._emit = timed
        idle = peak_mib()
        outcome = await hub.server.run_attempt(hub.session(), DEADLINES)
        seconds = time.monotonic() - announced
        log = sum(path.stat().st_size for path in (folder / "server").glob("*-attempt-*"))
        spools = sum(path.stat().st_size for path in (folder / "spool").iterdir())
        await hub.server.settle()
        hub.server.broadcast(Finished(1))
        result: dict[str, Any] = {
            "clients": len(f.roster.ids),
            "degree": f.manifest.secagg_params().degree,
            "threshold": f.manifest.secagg_params().threshold,
            "length": f.manifest.adapter.size,
            "released": isinstance(outcome, Released),
            "reason": None if isinstance(outcome, Released) else outcome.reason,
            "masked": list(outcome.masked) if isinstance(outcome, Released) else [],
            "exact": isinstance(outcome, Released)
            and bool((outcome.total == sum(value_of(c) for c in outcome.masked)).all()),
            "drops": {d["client"]: d["reason"] for d in hub.named("drop")},
            "seconds": round(seconds, 1),
            "marks": {name: round(at, 1) for name, at in marks.items()},
            "peak_mib_connected": round(idle, 1),
            "peak_mib": round(peak_mib(), 1),
            "log_mib": round(log / 2**20, 1),
            "spool_mib": round(spools / 2**20, 1),
        }
        print(json.dumps(result), flush=True)
        await asyncio.sleep(2)  # everybody is told


async def take_part(folder: Path, port: int, first: int, last: int, silent: set[int]) -> None:
    """Clients first..last, each with its own connection, until the server says that the task has ended."""
    f, _ = load_consortium(plain(folder), folder)
    hub = Hub(f, folder, port)
    sites = []
    for number in range(first, last + 1):
        pem = (folder / f"client-{number}.pem").read_bytes()
        key = serialization.load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        values = np.full(f.manifest.adapter.size, value_of(number), dtype=np.int64)
        site = Site(hub, ClientId(number), values, Phase.MASKED_INPUT if number in silent else None)
        site.patience, site.tls = PATIENT, pki.TlsIdentity(x509.load_pem_x509_certificate(pem), ca, key)
        sites.append(site)
    async with running(*sites) as tasks:
        await asyncio.gather(*tasks)


def main() -> None:
    """See above."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16), hard))
    what, folder, *rest = sys.argv[1:]
    numbers = [int(number) for number in rest]
    if what == "make":
        make(Path(folder), *numbers)
    elif what == "server":
        asyncio.run(serve(Path(folder), *numbers))
    else:
        asyncio.run(take_part(Path(folder), *numbers[:3], set(numbers[3:])))


if __name__ == "__main__":
    main()
