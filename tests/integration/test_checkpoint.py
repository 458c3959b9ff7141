"""The run folder: a server that is killed between any two writes of a checkpoint ends with the same model and facts.

A kill is a copy of everything on disk at that moment, on which a new process is started.
"""

import asyncio
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import Consortium, server_run, together
from test_attempts import QUICKLY, finished
from wire import Federation, Hub, federation

from ffm import run_folder as module
from ffm.published_sum import sum_bytes
from ffm.run_folder import MODEL, NEXT_MODEL, STATE, SUM, RoundFacts
from ffm.step import model_bytes
from protocol.errors import ProtocolError

N = 4
F = federation(N, training__rounds=1)
TALLIED = federation(N, training__rounds=1, training__optimizer="sgd", training__consolidation={"strength": "0"})
SQUARES = "squares-1-0.safetensors"
ZERO = np.zeros(F.manifest.adapter.size, dtype=np.float32)


def copy(folder: Path, to: Path) -> None:
    """What a kill at this moment leaves; the clients' files are not the server's."""
    for part in ("server", "spool", "run"):
        if (folder / part).exists():
            shutil.copytree(folder / part, to / part)


def times_apart(facts: RoundFacts) -> dict[str, Any]:
    return {key: value for key, value in asdict(facts).items() if key not in ("started", "ended")}


@pytest.mark.parametrize("f", [F, TALLIED], ids=["plain", "tallied"])
def test_a_kill_between_any_two_writes_changes_nothing(
    f: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, kills = tmp_path / "real", []
    squares = [SQUARES] if f is TALLIED else []
    write, rename = module.write_atomic, os.replace

    def snapshot(name: str) -> None:
        kills.append(name)
        copy(folder, tmp_path / f"kill-{len(kills)}")

    def recorded(path: Path, data: bytes) -> None:
        snapshot(f"before {path.name}")
        write(path, data)

    def renamed(source: Path, target: Path) -> None:
        if source.name == NEXT_MODEL:
            snapshot("before the renaming")
        rename(source, target)
        if source.name == NEXT_MODEL:
            snapshot("after the renaming")

    async def main() -> Consortium:
        async with Hub(f, folder) as hub:
            return await together(hub, finished, QUICKLY)

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_atomic", recorded)
        patched.setattr(module.os, "replace", renamed)
        real = asyncio.run(main())
    expected, model = real.run.state.rounds[0], (folder / "run" / MODEL).read_bytes()
    wanted = [f"before {name}" for name in (STATE, SUM, *squares, NEXT_MODEL, STATE)]
    assert [*wanted, "before the renaming", "after the renaming"] == kills and expected.status == "released"

    async def again(number: int) -> None:
        async with Hub(f, tmp_path / f"kill-{number}", bound=False) as hub:
            run = server_run(hub, QUICKLY)
            resumed = await run.restore(ZERO)
            await hub.bind()
            assert resumed == (2 <= number <= len(wanted)), kills[number - 1]
            assert model_bytes(await run.run(ZERO)) == model
            assert [times_apart(facts) for facts in run.state.rounds] == [times_apart(expected)]
            assert hub.journal.ledger.seq == 1
            names = sorted(path.name for path in (hub.folder / "run").iterdir())
            assert names == sorted([MODEL, STATE, SUM, *squares])
            assert np.array_equal(run.importance, real.run.importance) if squares else run.importance is None
            assert not list((hub.folder / "spool").iterdir())
            assert not list((hub.folder / "server").glob("*-attempt-*"))

    for number in range(2, len(kills) + 1):  # the first is the empty run folder, before any attempt
        asyncio.run(again(number))


def released_run(folder: Path) -> Consortium:
    async def main() -> Consortium:
        async with Hub(F, folder) as hub:
            return await together(hub, finished, QUICKLY)

    return asyncio.run(main())


def test_a_restarted_server_repeats_the_last_result(tmp_path: Path) -> None:
    """A client that had not fetched the sum when the server went still gets it, and the result is told once more."""
    c = released_run(tmp_path)
    facts = c.run.state.rounds[0]

    async def main() -> None:
        async with Hub(F, tmp_path, bound=False) as hub:
            run = server_run(hub, QUICKLY)
            assert not await run.restore(ZERO)
            total = hub.server.blob(bytes.fromhex(facts.aggregate_digest))
            assert total == (tmp_path / "run" / SUM).read_bytes()
            assert hub.server.blob(bytes.fromhex(facts.model_digest)) == (tmp_path / "run" / MODEL).read_bytes()
            assert all(outbox.after(0) is not None for outbox in hub.server._outboxes.values())

    asyncio.run(main())


def test_a_run_folder_with_another_model_is_refused(tmp_path: Path) -> None:
    released_run(tmp_path)
    (tmp_path / "run" / MODEL).write_bytes(model_bytes(ZERO + np.float32(1)))

    async def main() -> None:
        async with Hub(F, tmp_path, bound=False) as hub:
            with pytest.raises(ProtocolError) as caught:
                await server_run(hub, QUICKLY).run(ZERO)
            assert caught.value.code == "E422"

    asyncio.run(main())


def test_a_run_folder_that_lost_its_squares_is_refused(tmp_path: Path) -> None:
    """Importance would be that of fewer sums than the report names."""

    async def main() -> None:
        async with Hub(TALLIED, tmp_path) as hub:
            done = await together(hub, finished, QUICKLY)
            assert done.run.importance is not None and done.run.importance.any()
            (tmp_path / "run" / SQUARES).unlink()
            with pytest.raises(ProtocolError) as caught:
                server_run(hub, QUICKLY)
            assert caught.value.code == "E422"

    asyncio.run(main())


def test_every_row_of_the_release_ledger_has_its_facts(tmp_path: Path) -> None:
    """The attempt whose row was written could not be resumed: the report must not have a hole there."""
    c = released_run(tmp_path)
    facts = c.run.state.rounds.pop()
    two = federation(N, training__rounds=1)

    async def main() -> None:
        (tmp_path / "run" / STATE).unlink()
        (tmp_path / "run" / MODEL).unlink()
        async with Hub(two, tmp_path, bound=False) as hub:
            run = server_run(hub, replace(QUICKLY, advertise_keys=0.1))
            assert not await run.restore(ZERO)
            assert (await run.run(ZERO) == ZERO).all()
            (found,) = run.state.rounds
            assert (found.round, found.attempt, found.status) == (1, 0, "aborted")
            assert found.ledger_row == facts.ledger_row and found.ctx == facts.ctx

    asyncio.run(main())


def test_a_sum_is_four_bytes_a_value_or_refused() -> None:
    total = np.array([-(2**31) + 1, 0, 2**31 - 1], dtype=np.int64)
    assert len(sum_bytes(total)) == 12
    assert sum_bytes(np.array([], dtype=np.int64)) == b""
    for beyond in (2**31, -(2**31)):
        with pytest.raises(Exception, match="headroom"):
            sum_bytes(np.array([0, beyond], dtype=np.int64))
