"""A real server process that kills itself at a chosen point, for the tests of resumption. Run as a program, with the
project and its tests on PYTHONPATH:

python killed_server.py FOLDER PORT CLIENTS WHERE

WHERE is "never", or "<what>:<n>:<before|after>": SIGKILL before or after the n-th row of that kind reaches the disk,
counted over all processes of the attempt: "log" (rows of the attempt's log) or "release" (rows of the release ledger);
or "fold::before" / "fold::after", around the fold. Prints one JSON object for each attempt that ended.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simulator import Federation
from wire import Hub, federation, load_consortium

from dp.store import ChainedStore
from protocol.effects import Released
from protocol.rpc import attempt
from protocol.rpc.journal import ServerJournal
from protocol.rpc.limits import Deadlines


def kill() -> None:
    """As a crash or the kernel would."""
    os.kill(os.getpid(), signal.SIGKILL)


def around(call: Callable[..., Any], when: str, hit: Callable[..., bool]) -> Callable[..., Any]:
    """`call` with a kill before or after it, whenever `hit` says so of its arguments."""

    def wrapped(*arguments: Any) -> Any:
        struck = hit(*arguments)
        if struck and when == "before":
            kill()
        result = call(*arguments)
        if struck:
            kill()
        return result

    return wrapped


def arm(where: str) -> None:
    """Put the bomb in its place. The rows are counted by their sequence number, so across restarts."""
    if where == "never":
        return
    what, number, when = where.split(":")
    if what == "log":

        def nth(store: ChainedStore, kind: str, body: Any) -> bool:
            return kind in ("message", "upload", "closed") and store.head[0] == int(number)

        ChainedStore.append = around(ChainedStore.append, when, nth)  # type: ignore[method-assign]
    elif what == "release":
        ServerJournal.record = around(ServerJournal.record, when, lambda *_: True)  # type: ignore[method-assign]
    else:
        attempt.fold = around(attempt.fold, when, lambda *_: True)


async def main(folder: Path, port: int, f: Federation) -> None:
    made, tls = load_consortium(f, folder)
    async with Hub(made, folder, port, tls) as hub:
        print(json.dumps({"resumed": hub.resumed, "burnt": hub.burnt}), flush=True)
        outcome = await (hub.server.resume(Deadlines()) if hub.resumed else hub.run(Deadlines()))
        released = isinstance(outcome, Released)
        row = hub.journal.ledger.rows[-1] if hub.journal.ledger.rows else None
        result = {
            "masked": outcome.masked if released else None,
            "total": outcome.total.tolist() if released else None,
            "reason": None if released else outcome.reason,
            "last": hub.journal.last,
            "rows": hub.journal.ledger.seq,
            "row": None if row is None else row.signature.hex(),
            "drops": hub.named("drop"),
        }
        await hub.server.settle()
        result["left"] = [p.name for p in (*(folder / "spool").iterdir(), *(folder / "server").glob("*-attempt-*"))]
        print(json.dumps(result), flush=True)
        await asyncio.sleep(0.2)


if __name__ == "__main__":
    arm(sys.argv[4])
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), federation(int(sys.argv[3]))))
