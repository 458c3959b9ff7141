"""A server that is killed goes on with its attempt: the same attempt, the same set, the exact sum, nobody lost."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulator import random_values
from wire import HOST, Hub, Patience, Site, federation, running, save_consortium

from dp.store import ChainedStore
from protocol.rpc.attempt_log import AttemptLog
from protocol.rpc.journal import ServerJournal
from secagg.types import ClientId

N = 4
FEDERATION = federation(N)
VALUES = random_values(FEDERATION.manifest, range(1, N + 1))
EVERYBODY = list(range(1, N + 1))
SCRIPT = Path(__file__).with_name("killed_server.py")
PATIENT = Patience(unreachable=30.0, first_backoff=0.05, max_backoff=0.2, call=10.0)

# Rows of one undisturbed attempt: four messages and a closed phase, five times, and four uploads beside their headers.
ROWS = 5 * (N + 1) + N
IN_PHASE = {0: 2, 1: N + 3, 2: 2 * (N + 1) + N, 3: 3 * (N + 1) + N + 2, 4: 4 * (N + 1) + N + 2}
CLOSING = {0: N + 1, 1: 2 * (N + 1), 2: 3 * (N + 1) + N, 3: 4 * (N + 1) + N, 4: ROWS}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


async def serve(folder: Path, port: int, where: str) -> tuple[int, list[dict[str, Any]]]:
    """One server process until it ends; its status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SCRIPT),
        str(folder),
        str(port),
        str(N),
        where,
        env={**os.environ, "PYTHONPATH": f"{SCRIPT.parents[2]}{os.pathsep}{SCRIPT.parents[1]}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), 60)
    except BaseException:
        process.kill()
        raise
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return process.returncode or 0, [json.loads(line) for line in out.splitlines()]


def survive(folder: Path, wheres: Sequence[str], *changed: Site) -> list[list[dict[str, Any]]]:
    """Servers one after the other, each killed where it is said, and one that ends; what each of them printed."""
    save_consortium(FEDERATION, folder)

    async def main() -> list[list[dict[str, Any]]]:
        hub = Hub(FEDERATION, folder, free_port())  # the way to the server; nobody serves in this process
        others = {site.client: site for site in changed}
        sites = [others.get(ClientId(i), Site(hub, ClientId(i), VALUES[ClientId(i)])) for i in EVERYBODY]
        for site in sites:
            site.hub, site.patience = hub, PATIENT
        printed = []
        async with running(*sites) as tasks:
            for where in (*wheres, "never"):
                code, lines = await serve(folder, hub.port, where)
                assert code == (0 if where == "never" else -signal.SIGKILL), (where, lines)
                printed.append(lines)
                for task in tasks:
                    if task.done() and not task.cancelled():
                        task.result()
        return printed

    return asyncio.run(main())


def assert_exact(result: dict[str, Any]) -> None:
    """Round 1, attempt 0, everybody, one row, and nothing is left on disk."""
    assert result["masked"] == EVERYBODY, result
    assert (np.array(result["total"]) == np.sum([VALUES[ClientId(c)] for c in EVERYBODY], axis=0)).all()
    assert (result["last"], result["rows"], result["drops"], result["left"]) == ([1, 0], 1, [], [])


def test_a_server_killed_in_every_phase_finishes_the_round_with_all_clients(tmp_path: Path) -> None:
    """Five kills in one attempt: each process goes on where the one before was killed."""
    printed = survive(tmp_path, [f"log:{row}:after" for row in IN_PHASE.values()])
    assert [lines[0]["resumed"] for lines in printed] == [False, True, True, True, True, True]
    assert_exact(printed[-1][1])


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_server_killed_around_the_end_of_every_phase(tmp_path: Path, when: str) -> None:
    printed = survive(tmp_path, [f"log:{row}:{when}" for row in CLOSING.values()])
    assert all(lines[0]["resumed"] for lines in printed[1:])
    assert_exact(printed[-1][1])


def test_a_server_killed_around_row_and_fold_writes_one_row(tmp_path: Path) -> None:
    """The second process is killed by the row again, in the middle of the replay."""
    printed = survive(tmp_path, ["release::before", "release::after", "fold::before", "fold::after"])
    assert printed[1] == [] and all(lines[0]["resumed"] for lines in printed[2:])
    assert_exact(printed[-1][1])


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("row", range(1, ROWS + 1))
def test_a_server_killed_at_every_row(tmp_path: Path, row: int, when: str) -> None:
    printed = survive(tmp_path, [f"log:{row}:{when}"])
    assert printed[-1][0]["resumed"]
    assert_exact(printed[-1][1])


def test_an_upload_goes_on_after_the_server_was_killed(tmp_path: Path) -> None:
    """Killed by its first complete upload, while another client is in the middle of its own."""
    hub = Hub(FEDERATION, tmp_path)
    slow = Site(hub, ClientId(2), VALUES[ClientId(2)], rate_limit=1000)
    first = 2 * (N + 1) + N + 1
    printed = survive(tmp_path, [f"log:{first}:after"], slow)
    assert_exact(printed[-1][1])
    assert slow.words is not None and 8 * len(slow.words) <= slow.sent < 2 * 8 * len(slow.words)


def test_a_damaged_log_burns_the_attempt_and_says_so(tmp_path: Path) -> None:
    save_consortium(FEDERATION, tmp_path)

    async def main() -> None:
        hub = Hub(FEDERATION, tmp_path, free_port())
        sites = [Site(hub, ClientId(i), VALUES[ClientId(i)], patience=PATIENT) for i in EVERYBODY]
        async with running(*sites):
            await serve(tmp_path, hub.port, f"log:{IN_PHASE[1]}:after")
        (log,) = (tmp_path / "server").glob("*-attempt-1-0.sqlite")
        journal = ServerJournal(tmp_path / "server" / "journal.sqlite", FEDERATION.manifest.digest())
        opened = AttemptLog.unfinished(journal)
        assert opened is not None and len(list(opened.entries())) == IN_PHASE[1]
        opened._store.append("closed", {"phase": 1, "members": [1, 2, 3]})  # well chained, but not what followed
        opened.close()
        journal.close()
        async with Hub(FEDERATION, tmp_path) as restarted:
            assert not restarted.resumed and "does not lead to" in restarted.burnt
            assert restarted.journal.last == (1, 0) and not log.exists()
            assert list((tmp_path / "spool").iterdir()) == []

    asyncio.run(main())


def test_a_log_that_is_no_log_is_not_replayed(tmp_path: Path) -> None:
    journal = ServerJournal(tmp_path / "server" / "journal.sqlite", FEDERATION.manifest.digest())
    journal.start(FEDERATION.announcement(), bytes(32))
    assert AttemptLog.unfinished(journal) is None  # killed between journal and log: nothing was announced
    path = journal.path.with_name("journal-attempt-1-0.sqlite")
    key = {"manifest": FEDERATION.manifest.digest().hex(), "round": 1, "attempt": 0}
    ChainedStore.open(path, {"book": "attempt log", "version": 1, **key}).close()
    journal.close()

    async def main() -> None:
        async with Hub(FEDERATION, tmp_path) as hub:
            assert not hub.resumed and "cannot be replayed" in hub.burnt

    asyncio.run(main())
