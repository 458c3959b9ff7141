"""A script with Hugging Face's Trainer as a client: rounds, what is refused, and how it ends. In memory; the same over
gRPC, with processes, is in tests/integration/test_trainer.py."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from ffm.errors import TrainingProcessError
from ffm.learner import Learner, Vector
from ffm.trainer import SecAggCallback, refuse_protocol
from protocol.manifest import Manifest
from secagg.errors import SecAggError
from tests.small_models import save_tiny_bert
from tests.test_personal import manifest_of, records

ROUNDS, STEPS = 3, 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("base"))


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """What a script's own data set looks like to a Trainer."""

    def __init__(self, learner: Learner) -> None:
        self.tensors = learner.tensors(records(0))

    def __len__(self) -> int:
        return len(self.tensors["labels"])

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return {name: field[place] for name, field in self.tensors.items()}


class Server:
    """The network's side: gives out a round's parameters, takes the updates, and adds them up by itself."""

    def __init__(self, manifest: Manifest, rounds: int = ROUNDS) -> None:
        self.manifest, self.rounds = manifest, rounds
        self.given: list[Vector] = []
        self.updates: list[Any] = []
        self.last: Vector | None = None

    async def join(self, trainer: Any, initial: Vector) -> tuple[int, Vector | None]:
        model = initial
        for round_ in range(1, self.rounds + 1):
            self.given.append(model)
            self.updates.append(await trainer.train(round_, model))
            await trainer.keep(round_)
            change = self.updates[-1]
            if change.dtype == np.int64:
                change = (change / self.manifest.aggregation.scale).astype(np.float32)
            model = model + change / 2  # as if another client had not moved
        self.last = model
        return self.rounds, model


def script(callback: SecAggCallback, folder: Path, **changes: Any) -> Trainer:
    own = {"max_steps": ROUNDS * STEPS, "learning_rate": 0.1, "per_device_train_batch_size": 8}
    arguments = TrainingArguments(
        output_dir=str(folder), report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, **{**own, **changes}
    )
    return Trainer(
        model=changes.pop("model", callback.model),
        args=arguments,
        train_dataset=Rows(callback._learner),
        callbacks=[callback],
    )


def joined(base: Path, method: str = "lora", **changes: Any) -> tuple[SecAggCallback, Server]:
    manifest = manifest_of(base, method, rounds=ROUNDS, local_steps=STEPS, **changes)
    server = Server(manifest)
    return SecAggCallback.of(Learner.load(manifest, base), server.join), server


def test_a_round_is_local_steps_of_the_trainer_from_the_rounds_parameters(base: Path, tmp_path: Path) -> None:
    callback, server = joined(base)
    trainer = script(callback, tmp_path, max_steps=1000)
    seen: list[np.ndarray] = []
    callback_next: Callable[..., None] = callback._next

    def watched(control: Any) -> None:
        callback_next(control)
        seen.append(callback._learner.initial())

    callback._next = watched  # type: ignore[method-assign]
    trainer.train()
    assert trainer.state.global_step == ROUNDS * STEPS  # the federation ended, so did the training
    assert len(server.updates) == ROUNDS
    for given, loaded in zip(server.given, seen, strict=False):
        assert np.array_equal(given, loaded)
    for update in server.updates:
        assert update.dtype == np.float32
        assert np.count_nonzero(update) > 0.5 * len(update)
    assert not np.array_equal(server.updates[0], server.updates[1])
    assert np.array_equal(callback._learner.initial(), server.last)  # the model is the last global one


def test_the_update_is_what_the_trainer_alone_would_have_changed(base: Path, tmp_path: Path) -> None:
    callback, server = joined(base)
    server.rounds = 1
    script(callback, tmp_path, seed=3).train()
    alone = Learner.load(callback.manifest, base)
    start = alone.initial()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        max_steps=ROUNDS * STEPS,
        learning_rate=0.1,
        per_device_train_batch_size=8,
        seed=3,
    )

    class Stop(SecAggCallback):
        """Two steps and no more."""

        def __init__(self) -> None:
            pass

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            return control

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            return control

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = state.global_step == STEPS
            return control

    Trainer(model=alone.model, args=arguments, train_dataset=Rows(alone), callbacks=[Stop()]).train()
    assert np.allclose(server.updates[0], alone.initial() - start, atol=1e-6)
    assert np.abs(server.updates[0]).max() > 0.05


def test_rolora_and_personal_tensors_under_a_trainer(base: Path, tmp_path: Path) -> None:
    callback, server = joined(base, "rolora")
    script(callback, tmp_path).train()
    a = np.concatenate([np.full(int(np.prod(t.shape)), "lora_A" in t.name) for t in callback.manifest.adapter.tensors])
    for number, update in enumerate(server.updates, start=1):
        assert not update[a if number % 2 else ~a].any()
        assert update.any()
    callback, server = joined(base, "fedsa-lora", personal_head=True)
    script(callback, tmp_path).train()
    assert all(len(update) == callback.manifest.adapter.size for update in server.updates)
    assert np.abs(callback._personal.kept).max() > 0.1
    assert np.array_equal(callback._personal.kept, callback._learner.personal())


def test_under_c_the_whole_difference_is_bounded_and_noised_here(base: Path, tmp_path: Path) -> None:
    manifest = manifest_of(base, "lora", rounds=ROUNDS, local_steps=STEPS)
    claim = {"protocol": "C", "unit": "client", "adjacency": "zero-out"}
    numbers = {"scale": 2**16, "clip_steps": 2**14, "noise_steps": 223}
    privacy = manifest.privacy.model_copy(update={**claim, **numbers})
    aggregation = manifest.aggregation.model_copy(update={"min_cohort": 500, "max_corrupt": 25, "scale": 2**16})
    made = manifest.model_copy(update={"privacy": privacy, "aggregation": aggregation})
    server = Server(made)
    callback = SecAggCallback.of(Learner.load(made, base), server.join)
    script(callback, tmp_path).train()
    for update in server.updates:
        assert update.dtype == np.int64
        assert 0.9 * 2**14 < np.linalg.norm(update) < 1.2 * 2**14  # a quarter of a unit, and a share of noise


@pytest.mark.parametrize("protocol", ["R1", "R2"])
def test_protocols_that_promise_something_of_records_are_refused(base: Path, protocol: str) -> None:
    changes = {"local_steps": 1} if protocol == "R2" else {}
    manifest = manifest_of(base, "lora", protocol, **changes)
    with pytest.raises(TrainingProcessError, match="every record") as caught:
        SecAggCallback.of(Learner.load(manifest, base), Server(manifest).join)
    assert caught.value.code == "E541"
    assert "secagg client" in str(caught.value.do)
    refuse_protocol(manifest_of(base, "lora"))


def test_trainers_that_cannot_take_part_are_refused_before_anything_is_joined(base: Path, tmp_path: Path) -> None:
    callback, server = joined(base)
    other = Learner.load(callback.manifest, base).model
    for changes, text in (
        ({"max_steps": ROUNDS * STEPS - 1}, "end before the federation"),
        ({"dataloader_num_workers": 2}, "fork"),
        ({"model": other}, "another model"),
    ):
        model = changes.pop("model", callback.model)
        trainer = script(callback, tmp_path, **changes)
        trainer.model = trainer.model_wrapped = model  # type: ignore[assignment]
        trainer.callback_handler.model = model  # type: ignore[assignment]
        with pytest.raises(TrainingProcessError, match=text) as caught:
            trainer.train()
        assert caught.value.code == "E541"
        assert caught.value.do
    assert server.given == []
    script(callback, tmp_path).train()
    with pytest.raises(TrainingProcessError, match="joined once"):
        script(callback, tmp_path).train()


def test_an_error_of_the_network_ends_the_training(base: Path, tmp_path: Path) -> None:
    manifest = manifest_of(base, "lora", rounds=ROUNDS, local_steps=STEPS)

    async def broken(trainer: Any, initial: Vector) -> tuple[int, None]:
        await trainer.train(1, initial)
        raise SecAggError("the line is cut", code="E399")

    callback = SecAggCallback.of(Learner.load(manifest, base), broken)
    trainer = script(callback, tmp_path)
    with pytest.raises(SecAggError, match="the line is cut"):
        trainer.train()
    assert trainer.state.global_step == STEPS


def test_a_trainer_that_ends_early_or_breaks_down_tells_the_network(base: Path, tmp_path: Path) -> None:
    manifest = manifest_of(base, "lora", rounds=ROUNDS, local_steps=STEPS)
    told: list[BaseException] = []

    async def waits(trainer: Any, initial: Vector) -> tuple[int, None]:
        try:
            await trainer.train(1, initial)
        except SecAggError as error:
            told.append(error)
            raise
        return 1, None

    callback = SecAggCallback.of(Learner.load(manifest, base), waits)
    trainer = script(callback, tmp_path)
    step = callback.on_step_end

    def one_step(args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        step(args, state, control, **kwargs)
        control.should_training_stop = True
        return control

    callback.on_step_end = one_step  # type: ignore[method-assign]
    trainer.train()
    callback._line.news.get(timeout=10)
    assert [error.code for error in told] == ["E541"]  # type: ignore[attr-defined]

    callback = SecAggCallback.of(Learner.load(manifest, base), waits)
    with pytest.raises(SecAggError, match="not finite") as caught:
        script(callback, tmp_path, learning_rate=1e38).train()
    assert caught.value.code == "E504"


def test_who_fails_and_lives_on_leaves_the_federation(base: Path, tmp_path: Path) -> None:
    """As in a notebook: the training raises, the process and the network's thread stay."""
    manifest = manifest_of(base, "lora", rounds=ROUNDS, local_steps=STEPS)
    told: list[str] = []

    async def waits(asks: Any, initial: Vector) -> tuple[int, None]:
        for round_ in (1, 2):
            try:
                await asks.train(round_, initial)
            except SecAggError as error:
                told.append(error.code)
        return 1, None

    class Cut(Exception):
        pass

    def fails(*_: Any, **__: Any) -> Any:
        raise Cut

    with pytest.raises(Cut), SecAggCallback.of(Learner.load(manifest, base), waits) as federation:
        trainer = script(federation, tmp_path)
        trainer.training_step = fails  # type: ignore[method-assign]
        trainer.train()
    federation._line.news.get(timeout=10)
    federation.close()
    assert told == ["E541", "E541"]

    with SecAggCallback.of(Learner.load(manifest, base), waits) as left:
        late = script(left, tmp_path)
    with pytest.raises(TrainingProcessError, match="has left the federation"):
        late.train()


def test_a_round_that_went_on_without_the_client_is_left_behind(base: Path, tmp_path: Path) -> None:
    """Its update has nobody waiting for it; the next round is begun from its own parameters."""
    manifest = manifest_of(base, "lora", rounds=ROUNDS, local_steps=STEPS)
    updates: list[Any] = []

    async def impatient(trainer: Any, initial: Vector) -> tuple[int, None]:
        late = asyncio.ensure_future(trainer.train(1, initial))
        await asyncio.sleep(0)
        late.cancel()
        updates.append(await trainer.train(2, initial + np.float32(0.5)))
        return 1, None

    callback = SecAggCallback.of(Learner.load(manifest, base), impatient)
    script(callback, tmp_path).train()
    assert len(updates) == 1 and np.abs(updates[0]).max() < 0.4  # from where round 2 began
