"""A task that ends before its last round: what is charged, what is told, and what a restart does. Real sessions,
journals, ledgers and gRPC; the rule is the test's own."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from consortium import Consortium, server_run, together
from test_attempts import QUICKLY, THREE_ROUNDS, N, finished
from wire import Hub

from ffm.step import Model, model_bytes
from protocol.errors import ProtocolError

ZERO = np.zeros(THREE_ROUNDS.manifest.adapter.size, dtype=np.float32)


class AfterTwo:
    """Ends the task with the second released round."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []

    async def over(self, released: int, model: Model) -> bool:
        self.asked.append((released, float(model[0])))
        return released >= 2


def test_rounds_that_are_not_run_are_not_charged_and_a_restart_ends_it_again(tmp_path: Path) -> None:
    rule, again = AfterTwo(), AfterTwo()

    async def scenario(c: Consortium) -> None:
        c.run.over = rule.over
        model = await finished(c)  # every client sent its statement
        assert (tmp_path / "run" / "model.f32").read_bytes() == model_bytes(model)
        assert all(party.charges() == [(1, 0), (2, 0)] for party in c.parties.values())
        assert [await party.task for party in c.parties.values()] == [2] * N

    async def main() -> Consortium:
        async with Hub(THREE_ROUNDS, tmp_path) as hub:
            return await together(hub, scenario, QUICKLY)

    c = asyncio.run(main())
    assert c.rounds == [(1, 0, "released"), (2, 0, "released")]
    assert [released for released, _ in rule.asked] == [0, 1, 2] and len({first for _, first in rule.asked}) == 3

    async def restarted() -> None:
        async with Hub(THREE_ROUNDS, tmp_path, bound=False) as hub:
            run = server_run(hub, QUICKLY)
            run.over = again.over
            assert not await run.restore(ZERO)
            await hub.bind()
            assert model_bytes(await run.run(ZERO)) == (tmp_path / "run" / "model.f32").read_bytes()
            assert len(run.state.rounds) == 2

    asyncio.run(restarted())
    assert again.asked == rule.asked[-1:]


def test_where_nobody_can_tell_no_round_begins_and_the_next_server_goes_on(tmp_path: Path) -> None:
    async def doubtful(released: int, model: Model) -> bool:
        if released == 1:
            raise ProtocolError("could not be judged", code="E425")
        return False

    async def scenario(c: Consortium) -> None:
        c.run.over = doubtful
        with pytest.raises(ProtocolError) as stopped:
            await c.run.run(ZERO)
        assert stopped.value.code == "E425" and c.hub.journal.last == (1, 0)
        assert all(party.charges() == [(1, 0)] for party in c.parties.values())
        c.run = server_run(c.hub, QUICKLY)  # the operator starts it again, without the option
        await finished(c)

    async def main() -> Consortium:
        async with Hub(THREE_ROUNDS, tmp_path) as hub:
            return await together(hub, scenario, QUICKLY)

    assert asyncio.run(main()).rounds == [(round_, 0, "released") for round_ in (1, 2, 3)]
