"""Two tasks of one life over real gRPC and mTLS, everything but the training: it is a fixed update, so that the models
can be computed beside. The second task starts from the first one's model and holds what mattered in it."""

import asyncio
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import language_settings, save_tiny_masked_bert

from ffm import start
from ffm.chain import next_link
from ffm.consolidation import Tally
from ffm.demo import Layout, found, local_settings
from ffm.site import load_site
from ffm.sources import Written
from ffm.start import ServerOptions, participate_with, serve
from ffm.step import Model, Pull, initial_model, next_model, parameters_of, vector_digest
from ffm.succession import left_by
from ffm.task import TaskSettings, build_manifest
from ffm.tasks.continual import period_manifest
from protocol.errors import RemoteProtocolError
from protocol.manifest import Manifest
from protocol.rpc.limits import Deadlines

NAMES = ("north", "east", "south", "west")
QUICK = Deadlines(grace=2.0)
SCALE = 65536


def settings(base: Path) -> TaskSettings:
    method = {"method": "lora", "virtual_tokens": 0, "rank": 2, "alpha": 4, "target_modules": ("query",)}
    made = language_settings(base, "masked-lm", **method, noise_steps=0)
    return made.model_copy(update={"privacy": made.privacy.model_copy(update={"protocol": "none"})})


class Fixed:
    """The same update in every round, in whole grid steps; another one at every site."""

    def __init__(self, place: int, size: int) -> None:
        self.steps = np.arange(size, dtype=np.int64) % (7 + place) * (place + 1) * 100

    async def train(self, round_: int, parameters: Model) -> Model:
        return (self.steps / SCALE).astype(np.float32)

    async def keep(self, round_: int) -> None:
        raise AssertionError("nothing is personal here")


def play(layout: Layout, seeded: Model) -> list[Any]:
    """The task to its end; what the server and each client have to say: a folder, (rounds, model), or what they
    raised."""

    async def main() -> list[Any]:
        server = serve(load_site(layout.consortium.server), ServerOptions(layout.run, QUICK, 20, 5), lambda event: None)
        clients = [
            participate_with(load_site(site), Fixed(place, len(seeded)), seeded, lambda event: None)
            for place, site in enumerate(layout.consortium.clients.values())
        ]
        tasks = [asyncio.ensure_future(work) for work in (server, *clients)]
        done, left = await asyncio.wait(tasks, timeout=60)
        refused = [task for task in done if task.exception() is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return [task.exception() if task in refused else None if task in left else task.result() for task in tasks]

    return asyncio.run(main())


def beside(manifest: Manifest, begin: Model, pull: Pull | None = None) -> tuple[Model, Model]:
    """(parameters, importance) after all rounds, computed here."""
    model, tally = initial_model(begin, manifest), Tally(manifest)
    total = sum(Fixed(place, len(begin)).steps for place in range(len(NAMES)))
    for round_ in range(1, manifest.training.rounds + 1):
        tally.add((round_, 0), np.asarray(total), len(NAMES))
        model = next_model(model, np.asarray(total), len(NAMES), manifest, pull)
    return parameters_of(model, manifest), tally.importance(None if pull is None else pull.importance)


def texts(folder: Path) -> Mapping[str, Path]:
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.csv").write_text("text\nfever\n")
    return {name: folder / f"{name}.csv" for name in NAMES}


@pytest.mark.slow
def test_a_task_starts_from_the_last_one_and_holds_what_mattered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings(save_tiny_masked_bert(tmp_path / "bert"))
    base, local, strength = build_manifest(made, "small"), local_settings(made, "small"), Decimal(3)
    first = period_manifest(base, 1, "spring", None, strength)
    layout = found(tmp_path / "run-1", Written(texts(tmp_path / "texts"), tmp_path / "-"), first, local)
    seeded = start._learner(load_site(layout.consortium.server)).initial()
    told = play(layout, seeded)
    assert told[0] == layout.run.resolve() and [rounds for rounds, _ in told[1:]] == [2, 2, 2, 2]
    model, importance = beside(first, seeded)
    before, past = left_by(layout.run)
    assert before == first and np.array_equal(past.start, model)
    assert past.importance is not None and np.array_equal(past.importance, importance) and importance.max() > 0

    second = period_manifest(base, 2, "summer", past, strength)
    assert second.adapter.start == vector_digest(model)
    layout = next_link(layout, tmp_path / "run-2", second, local)
    told = play(layout, seeded)
    pull = Pull(past.start, importance)
    expected, later = beside(second, past.start, pull)
    free, _ = beside(period_manifest(base, 2, "summer", past), past.start)
    assert not np.array_equal(expected, free)
    for rounds, own in told[1:]:  # every client followed the server's model to the end, from the sums alone
        assert rounds == 2 and np.array_equal(parameters_of(own, second), expected)
    _, past = left_by(layout.run)
    assert np.array_equal(past.start, expected)
    assert past.importance is not None and np.array_equal(past.importance, later)

    # A server that holds by another importance than the owner pinned is found out in the first round.
    third = period_manifest(base, 3, "autumn", past, strength)
    layout = next_link(layout, tmp_path / "run-3", third, local)
    honest = start._offer

    def lying(site: Any, rpc: Any) -> Pull | None:
        real = honest(site, rpc)
        assert real is not None
        return Pull(real.anchor, real.importance * np.float32(2))

    monkeypatch.setattr(start, "_offer", lying)
    told = play(layout, seeded)
    caught = [one for one in told[1:] if isinstance(one, RemoteProtocolError)]
    assert [one.code for one in caught] == ["E433"] * 4
