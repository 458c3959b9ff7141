"""How a site computes: layers computed twice, half precision; and what of it is refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dp import training
from dp.objective import CLASSIFICATION, IDS, Records
from dp.sampling import Csprng
from ffm import learner as learner_module
from ffm.adapters import load_flat
from ffm.compute import HalfPrecision
from ffm.data import icd10_records, partition, split_by_code
from ffm.errors import TrainingProcessError
from ffm.learner import Learner, plan_of
from ffm.local_setup import Compute, LocalSetup
from ffm.models import locate
from ffm.task import build_manifest, example_settings, load_settings
from protocol.manifest import Manifest
from tests.small_models import save_tiny_bert
from tests.test_personal import manifest_of, records


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("base"))


def rows(learner: Learner, count: int, size: int) -> np.ndarray:
    """(records, d): what this learner's objective and model give for each record, `size` records a pass."""
    model = moved(learner.model)
    dataset = learner.tensors(records(0)[:count])
    parameters = [p for p in model.parameters() if p.requires_grad]
    model.train()
    found = []
    with training._per_sample_gradients(model, parameters, wanted=True):
        batches = Records(model, dataset, learner._objective()).batches(np.arange(count), size, Csprng.from_os())
        for batch in batches:
            training._Losses(model, learner._objective()).backward(batch)
            found.append(torch.cat(training._collect(parameters, len(batch["labels"])), dim=1))
    return torch.cat(found).float().numpy()


def moved(model: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return model


def loaded(base: Path, method: str, protocol: str, local_steps: int = 2, **compute: Any) -> Learner:
    changes: dict[str, Any] = {"virtual_tokens": 3} if method == "prefix" else {}
    changes["local_steps"] = local_steps
    return Learner.load(manifest_of(base, method, protocol, **changes), base, Compute(**compute))


@pytest.mark.parametrize("method", ["ffa-lora", "lora", "bitfit", "full"])
def test_layers_computed_twice_give_the_same_gradient_of_each_record(base: Path, method: str) -> None:
    plain = rows(loaded(base, method, "R1"), 6, 3)
    again = loaded(base, method, "R1", checkpointing=True)
    counted = [0]
    layer = next(module for name, module in again.model.named_modules() if name.endswith("layer.1.intermediate.dense"))
    layer.register_forward_hook(lambda *_: counted.__setitem__(0, counted[0] + 1))
    twice = rows(again, 6, 3)
    assert counted[0] == 3 + 2 * 2  # the checks; two passes, each layer twice
    assert np.abs(plain).max() > 0.05
    assert np.abs(plain - twice).max() < 1e-5


def test_the_other_form_of_checkpointing_gives_no_gradient_of_records(base: Path) -> None:
    """Why the reentrant form is asked for by name: with the other one the first batch is refused."""
    learner = loaded(base, "lora", "R1", checkpointing=True)
    learner.model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(training.UnsupportedMechanismError, match="no gradient per record"):
        learner.update(learner.initial(), learner.tensors(records(0)), plan_of(learner.manifest), Csprng.from_os(), 1)


def test_half_precision_is_near_and_of_each_record_alone(base: Path) -> None:
    full = rows(loaded(base, "lora", "R1"), 6, 6)
    half = rows(loaded(base, "lora", "R1", precision="bfloat16", physical_batch=1), 6, 1)
    assert not np.array_equal(full, half)  # it does run in half precision
    assert np.linalg.norm(full - half) < 0.05 * np.linalg.norm(full)
    alone = rows(loaded(base, "lora", "R1", precision="bfloat16", physical_batch=1), 3, 1)
    # Batches run by length: the same rows in the same order, whoever else is there.
    assert all((half == row).all(axis=1).any() for row in alone)


def test_half_precision_trains_and_its_parameters_stay_float32(base: Path) -> None:
    for protocol, size in (("none", 0), ("R1", 1)):
        learner = loaded(base, "lora", protocol, precision="bfloat16", physical_batch=size)
        dataset, start = learner.tensors(records(0)), learner.initial()
        update = learner.update(start, dataset, plan_of(learner.manifest), Csprng.from_os(), 1)
        assert np.count_nonzero(update) > 0.4 * len(update)
        assert all(p.dtype == torch.float32 for p in learner.model.parameters())


@pytest.mark.parametrize("method", ["ffa-lora", "bitfit"])
def test_clients_with_other_physical_batches_send_the_same_integers(base: Path, method: str) -> None:
    """R2, one client that sees a record a pass, one seven, one all: the sum is that of clients that are alike, but for
    last bits of float32 kernels, which move single grid steps."""
    sizes = {1: 1, 2: 7, 3: 64}
    learner = loaded(base, method, "R2", local_steps=1)
    start, plan = learner.initial(), plan_of(learner.manifest)

    def total(physical: dict[int, int], seed: int = 5) -> np.ndarray:
        found = np.zeros(len(start), dtype=np.int64)
        for client, size in physical.items():
            own = replace(learner, compute=Compute(physical_batch=size))
            dataset, rng = own.tensors(records(client)), Csprng(bytes([seed, client]) * 16)
            found += own.update(start, dataset, plan, rng, 1)
        return found

    alike, mixed = total(dict.fromkeys(sizes, 0)), total(sizes)
    clip = learner.manifest.privacy.clip_steps
    assert np.abs(mixed - alike).max() <= 2 * len(sizes)
    assert np.linalg.norm((mixed - alike).astype(float)) < clip / 1000
    assert np.linalg.norm((total(sizes, seed=6) - alike).astype(float)) > clip  # another sample and noise


def chosen_by_the_server(learner: Learner) -> np.ndarray:
    """LayerNorm takes a large constant away again: of the hidden states the last bits are left, and they decide."""
    vector, place = learner.initial(), 0
    draw = torch.Generator().manual_seed(0)
    for tensor in learner.manifest.adapter.tensors:
        size = int(np.prod(tensor.shape))
        part = vector[place : place + size].reshape(tensor.shape)
        if "lora_B" in tensor.name and "output.dense" in tensor.name:
            part[:, 0] = 1e7
        elif "classifier" in tensor.name and len(tensor.shape) == 2:
            part[:] = 3 * torch.randn(tensor.shape, generator=draw).numpy()
        place += size
    return vector


def test_no_model_lets_a_record_move_the_rows_of_others() -> None:
    """The hospital example, at a model that makes last bits decide. In passes as records come one record moves the sum
    of the others by more than the clip norm; in those of one shape by its own row, to the last digit."""
    settings = load_settings(example_settings("hospital"))
    learner = Learner.load(build_manifest(settings, "bert-tiny"), locate("bert-tiny"))
    plan = settings.data.partition()  # type: ignore[union-attr]
    site = partition(split_by_code(icd10_records(), plan.cap_per_class, plan.seed)[0], plan)[0][:100]
    dataset, mechanism = learner.tensors(site), plan_of(learner.manifest).mechanism
    assert mechanism is not None
    load_flat(learner.model, learner.manifest.adapter, chosen_by_the_server(learner))
    parameters = [p for p in learner.model.parameters() if p.requires_grad]
    losses, records = training._Losses(learner.model, learner.task), Records(learner.model, dataset, learner.task)

    def as_they_come(rows: np.ndarray, size: int) -> Iterator[tuple[Any, int]]:
        return ((batch, len(batch[IDS])) for batch in records.batches(rows, size, Csprng.from_os()))

    def in_one_shape(rows: np.ndarray, size: int) -> Iterator[tuple[Any, int]]:
        return records.passes(rows, size, Csprng.from_os())

    def moved(passes: Any, size: int, index: int) -> float:
        """How far the sum is from the others' sum and the record's own row."""
        everybody = np.arange(len(site))
        parts = (everybody, np.delete(everybody, index), everybody[index : index + 1])
        whole, rest, own = (
            training._bounded_sum(losses, parameters, passes(part, size), mechanism).astype(float) for part in parts
        )
        return float(np.linalg.norm(whole - rest - own))

    learner.model.train()
    with training._per_sample_gradients(learner.model, parameters, wanted=True):
        assert [moved(in_one_shape, size, index) for size in (12, 1) for index in (3, 40, 77)] == [0.0] * 6
        assert max(moved(as_they_come, 64, index) for index in (3, 40, 77)) > mechanism.clip_steps


def refused(manifest: Manifest, base: Path, **compute: Any) -> TrainingProcessError:
    with pytest.raises(TrainingProcessError) as caught:
        Learner.load(manifest, base, Compute(**compute))
    assert caught.value.code == "E525"
    return caught.value


def test_what_would_change_a_guarantee_is_refused(base: Path) -> None:
    private = manifest_of(base, "lora", "R1")
    for size in (0, 2, 64):
        assert "neighbours" in str(refused(private, base, precision="bfloat16", physical_batch=size))
    prefix = manifest_of(base, "prefix", "none", virtual_tokens=2)
    assert "prefix" in str(refused(prefix, base, checkpointing=True))
    for wrong in ({"precision": "float16"}, {"physical_batch": -1}, {"physical_batch": 4097}):
        with pytest.raises(TrainingProcessError) as caught:
            Compute(**wrong)
        assert caught.value.code == "E525"


def test_the_setup_travels_whole() -> None:
    compute = Compute("cuda:1", 3, "bfloat16", True, 1)
    setup = LocalSetup(Path("/b"), Path("/d"), Path("/t"), Path("/p"), compute)
    assert LocalSetup.parse(setup.header()) == setup
    bare = LocalSetup(Path("/b"), Path("/d"))
    assert LocalSetup.parse(bare.header()) == bare
    for name, wrong in (("threads", "1"), ("checkpointing", 1), ("personal", None), ("physical_batch", True)):
        with pytest.raises(TrainingProcessError) as caught:
            LocalSetup.parse({**setup.header(), name: wrong})
        assert caught.value.code == "E522"


def test_a_pass_holds_fewer_records_where_more_is_trained(base: Path) -> None:
    manifest = manifest_of(base, "full")
    assert plan_of(manifest_of(base, "lora")).max_physical_batch == learner_module.PHYSICAL_BATCH
    private = manifest_of(base, "lora", "R1")  # with DP 16, or a quarter of a site's share of the expected sample
    for expected, size in ((250, 16), (60, 15), (3, 1)):
        training_ = private.training.model_copy(update={"expected_batch": expected})
        assert plan_of(private.model_copy(update={"training": training_})).max_physical_batch == size
    shared = manifest_of(base, "lora", "R2", local_steps=1)
    sites = shared.aggregation.num_clients
    training_ = shared.training.model_copy(update={"expected_batch": 12 * sites})
    assert plan_of(shared.model_copy(update={"training": training_})).max_physical_batch == 3
    few, many = learner_module._VALUES // 3, learner_module._VALUES + 1
    for size, expected in ((few, 3), (many, 1)):
        tensor = manifest.adapter.tensors[0].model_copy(update={"shape": (size,)})
        adapter = manifest.adapter.model_copy(update={"tensors": (tensor,)})
        assert plan_of(manifest.model_copy(update={"adapter": adapter})).max_physical_batch == expected


def test_half_precision_is_an_objective(base: Path) -> None:
    wrapped = HalfPrecision(CLASSIFICATION, "cpu")
    assert wrapped.fields == CLASSIFICATION.fields
