"""Local DP-SGD: every hazard of Opacus, PEFT and transformers that has a guard is set off here."""

import os
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from dp import training
from dp.errors import PrivacyError, UnsupportedMechanismError
from dp.mechanism import GaussianMechanism
from dp.objective import CLASSIFICATION, Objective, Records
from dp.sampling import Csprng, discrete_gaussian, poisson_sample
from dp.training import DpSgdPlan, bounded_rows, train

CLASSES, VOCABULARY = 3, 50
BROKEN_TOKEN = 49  # its embedding is NaN in `broken_model`

# A fine grid and little noise, so that a test sees the arithmetic through the noise.
QUIET = GaussianMechanism(scale=2**20, clip_steps=2**20, noise_steps=10)
LOUD = GaussianMechanism(scale=2**16, clip_steps=2**16, noise_steps=2**16)


def rng(label: int) -> Csprng:
    return Csprng(label.to_bytes(32, "big"))


def adapted_model() -> nn.Module:
    """A one-layer BERT with an FFA-LoRA adapter and a head, the same at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
            id2label={i: str(i) for i in range(CLASSES)},
            initializer_range=0.4,  # far from degenerate: gradients differ in size and direction
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        base = BertForSequenceClassification(config)
        lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
        model: nn.Module = get_peft_model(base, lora)
        for name, p in model.named_parameters():
            if "lora_A" in name:
                p.requires_grad_(False)
            elif "lora_B" in name:
                nn.init.normal_(p, std=0.3)  # zero would hide mistakes in the forward pass
    return model


def broken_model() -> nn.Module:
    model = adapted_model()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "word_embeddings" in name:
                p[BROKEN_TOKEN] = float("nan")
    return model


def records(n: int = 24, tokens: int = 9) -> dict[str, Tensor]:
    """Records of different lengths; token BROKEN_TOKEN does not occur."""
    ids = torch.arange(n * tokens).reshape(n, tokens) * 7 % (VOCABULARY - 1)
    lengths = 2 + torch.arange(n) * 5 % (tokens - 1)
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.arange(n) ** 2 // 2 % CLASSES}


def plan(mechanism: GaussianMechanism | None = QUIET, **changes: Any) -> DpSgdPlan:
    values: dict[str, Any] = {
        "steps": 1,
        "sampling_numerator": 1,
        "sampling_denominator": 1,
        "mechanism": mechanism,
        "expected_batch": 10,
        "optimizer": "sgd",
        "learning_rate": 1.0,
    }
    return DpSgdPlan(**{**values, **changes})


def trainable(model: nn.Module) -> NDArray[np.float64]:
    parts = [p.detach().double().reshape(-1) for p in model.parameters() if p.requires_grad]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)


def movement(model: nn.Module, dataset: dict[str, Tensor], how: DpSgdPlan, stream: Csprng) -> NDArray[np.float64]:
    before = trainable(model)
    train(model, dataset, how, stream)
    return trainable(model) - before


def gradients_one_by_one(model: nn.Module, dataset: dict[str, Tensor]) -> NDArray[np.float64]:
    """The reference: plain autograd, one record at a time, no Opacus. (records, d)."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for i in range(len(dataset["labels"])):
        logits = model(
            input_ids=dataset["input_ids"][i : i + 1], attention_mask=dataset["attention_mask"][i : i + 1]
        ).logits
        loss = nn.functional.cross_entropy(logits, dataset["labels"][i : i + 1])
        rows.append(torch.cat([g.double().reshape(-1) for g in torch.autograd.grad(loss, parameters)]).numpy())
    return np.stack(rows)


# ---- the arithmetic of a step ----


@pytest.mark.parametrize("clip_norm", [2**20, 2**18])
def test_a_step_is_the_noised_sum_of_clipped_gradients(clip_norm: int) -> None:
    """Planted data at next to no noise: per-sample losses, flat clip, sum, public divisor, learning rate."""
    mechanism = GaussianMechanism(scale=2**20, clip_steps=clip_norm, noise_steps=10)
    rows = gradients_one_by_one(adapted_model(), records())
    norms = np.linalg.norm(rows, axis=1)
    assert (norms > float(mechanism.clip_norm)).sum() >= 3  # the clip has work to do
    expected = -0.5 * mechanism.clip(rows).sum(axis=0) / 10
    moved = movement(adapted_model(), records(), plan(mechanism, learning_rate=0.5), rng(1))
    assert np.abs(expected).max() > 0.01
    # Rounding: below one step per record; noise: ten steps.
    assert np.abs(moved - expected).max() < 0.5 / 10 * (24 + 60) / 2**20 + 1e-6


@pytest.mark.parametrize("physical", [1, 3, 7, 100])
def test_micro_batches_do_not_change_the_sum(physical: int) -> None:
    whole = movement(adapted_model(), records(), plan(max_physical_batch=24), rng(1))
    parts = movement(adapted_model(), records(), plan(max_physical_batch=physical), rng(1))
    assert np.abs(parts - whole).max() < 3 / 2**20 / 10 + 1e-6


def test_noise_is_added_once_per_logical_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = GaussianMechanism.privatize

    def counted(self: GaussianMechanism, rows: NDArray[np.int64], stream: Csprng) -> NDArray[np.int64]:
        calls.append(rows.shape)
        return real(self, rows, stream)

    monkeypatch.setattr(GaussianMechanism, "privatize", counted)
    model = adapted_model()
    outcome = train(model, records(), plan(LOUD, steps=4, max_physical_batch=2), rng(1))
    assert calls == [trainable(model).shape] * 4
    assert (outcome.steps, outcome.noise_calls, outcome.records_seen) == (4, 4, 4 * 24)


def test_planted_gradient_moves_every_tensor_without_noise() -> None:
    model = adapted_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    outcome = train(model, records(), plan(None), rng(1))
    for name, p in model.named_parameters():
        assert torch.equal(before[name], p) != p.requires_grad, name
    assert (outcome.noise_calls, outcome.records_seen) == (0, 24)
    expected = -gradients_one_by_one(adapted_model(), records()).sum(axis=0) / 10
    assert np.abs(movement(adapted_model(), records(), plan(None), rng(1)) - expected).max() < 1e-5


def test_training_learns() -> None:
    easy = records(60)
    easy["input_ids"][:, 1] = 10 + easy["labels"]
    for mechanism in (None, GaussianMechanism(2**16, 2**16, 2**14)):
        model = adapted_model()
        how = plan(mechanism, steps=60, sampling_denominator=2, expected_batch=30, optimizer="adam", learning_rate=0.05)
        train(model, easy, how, rng(2))
        with torch.no_grad():
            logits = model(input_ids=easy["input_ids"], attention_mask=easy["attention_mask"]).logits
        assert (logits.argmax(dim=1) == easy["labels"]).double().mean() > 0.8


@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.one_of(st.floats(-3, 3), st.sampled_from([0.0, 1e300, -1e300, float("nan"), float("inf")])),
    )
)
def test_the_torch_rows_are_the_rows_of_the_mechanism(gradients: NDArray[np.float64]) -> None:
    expected = LOUD.round_toward_zero_and_bound(LOUD.clip(gradients))
    got = bounded_rows(torch.from_numpy(gradients.copy()), LOUD).numpy()
    assert got.dtype == np.float64
    assert (got == np.trunc(got)).all()
    assert ((got * got).sum(axis=1) <= LOUD.clip_steps**2).all()
    for row, reference in zip(got, expected, strict=True):
        # One multiplication is in another order, so a coordinate may fall on the other side of a grid point, or a row
        # just at the bound may be dropped by one of the two.
        assert np.abs(row - reference).max() <= 1 or not row.any() or not reference.any()
    single = bounded_rows(torch.from_numpy(gradients).float(), LOUD).numpy()
    assert ((single * single).sum(axis=1) <= LOUD.clip_steps**2).all()


def test_no_row_exceeds_the_bound_whatever_the_clip_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.from_numpy(discrete_gaussian(rng(9), 1000, 4 * 500).reshape(500, 4)).float()
    rows[:250] *= 1e-5  # below the clip norm: these stay
    monkeypatch.setattr(training, "_CLIP_ROOM", -0.5)  # a clip that is wrong by half
    bounded = bounded_rows(rows, LOUD)
    assert all(sum(int(x) ** 2 for x in row) <= LOUD.clip_steps**2 for row in bounded.tolist())
    assert (bounded != 0).any(dim=1).tolist() == [True] * 250 + [False] * 250


def test_rows_are_summed_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = integer_sum(records(), 24)
    monkeypatch.setattr(training, "_CPU_BLOCK", 5 * 115)
    assert np.abs(whole).max() > 1000
    assert integer_sum(records(), 24).tolist() == whole.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clip_steps", [2**10, 2**16, 2**26])
def test_rows_at_the_clip_norm_are_not_dropped(clip_steps: int, dtype: torch.dtype) -> None:
    # A dropped row is safe but useless. Also where float32 is coarser than the grid.
    mechanism = GaussianMechanism(scale=clip_steps, clip_steps=clip_steps, noise_steps=clip_steps)
    stream = discrete_gaussian(rng(9), 1000, 400 * 300).reshape(400, 300)
    for columns in (1, 2, 3, 300):
        rows = bounded_rows(torch.from_numpy(stream[:, :columns] * 100 + 50).to(dtype), mechanism)
        norms = torch.linalg.vector_norm(rows, dim=1)
        assert (norms > 0.98 * clip_steps).all()


# ---- what one record can do ----


def integer_sum(
    dataset: dict[str, Tensor], physical: int, model: nn.Module | None = None, objective: Objective = CLASSIFICATION
) -> NDArray[np.int64]:
    model = model or adapted_model()
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    passes = Records(model, dataset, objective).passes(np.arange(len(dataset["labels"])), physical, rng(1))
    with training._per_sample_gradients(model, parameters, True):
        return training._bounded_sum(training._Losses(model, objective), parameters, passes, LOUD)


def others(index: int) -> dict[str, Tensor]:
    return {name: torch.cat([t[:index], t[index + 1 :]]) for name, t in records().items()}


def own(index: int) -> dict[str, Tensor]:
    return {name: t[index : index + 1] for name, t in records().items()}


@pytest.mark.parametrize("physical", [1, 3, 8])
def test_one_record_moves_the_integer_sum_by_its_own_row(physical: int) -> None:
    """Grey box: no noise in the way. To the last digit, whoever is in the pass."""
    model = adapted_model()
    whole = integer_sum(records(), physical, model)
    for index in (0, 5, 11, 23):
        row = whole - integer_sum(others(index), physical, model)
        assert row.tolist() == integer_sum(own(index), physical, model).tolist()
        assert 0 < sum(int(x) ** 2 for x in row) <= LOUD.clip_steps**2


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_pass_looks_the_same_whoever_is_in_it(size: int) -> None:
    """Rows and tokens; and whether anything is masked, since models leave a mask of ones away."""
    dataset = records(n=40, tokens=13)
    numbered = {**dataset, "labels": torch.arange(40)}
    model = adapted_model()
    all_records = Records(model, dataset, CLASSIFICATION)
    all_records._dataset = numbered  # to tell them apart
    seen: list[int] = []
    for batch, count in all_records.passes(np.arange(40), size, rng(1)):
        rows, width = batch["input_ids"].shape
        lengths = dataset["attention_mask"][batch["labels"]].sum(dim=1)
        assert rows == size and set(batch["labels"][count:].tolist()) <= {int(batch["labels"][0])}
        assert len({int(length) == width for length in lengths}) == 1
        if size > 1:
            assert {min(13, -(-int(length) // 8) * 8) for length in lengths} == {width}
        seen += batch["labels"][:count].tolist()
    assert sorted(seen) == list(range(40))


class _ByPlace:
    """As a kernel that adds up in another order at the end of a pass."""

    fields = CLASSIFICATION.fields
    prepare, check = CLASSIFICATION.prepare, CLASSIFICATION.check

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return CLASSIFICATION.losses(model, batch) * (1 + 1e-6 * torch.arange(len(batch["labels"])))


def test_where_a_row_depends_on_its_place_records_run_one_by_one() -> None:
    model = adapted_model()
    alone = integer_sum(records(), 1, model, _ByPlace())
    assert np.abs(integer_sum(records(), 8, model, _ByPlace()) - alone).max() <= 24  # texts are padded further
    assert set(training._PLACES[model].values()) == {False}
    for index in (0, 11):
        row = integer_sum(records(), 8, model, _ByPlace()) - integer_sum(others(index), 8, model, _ByPlace())
        assert row.tolist() == integer_sum(own(index), 8, model, _ByPlace()).tolist()


def test_no_record_has_a_say_in_whether_places_are_alike() -> None:
    """A broken one is the first of its pass, and would look different from itself."""
    model, dataset = broken_model(), records()
    dataset["input_ids"][:12, 0] = BROKEN_TOKEN
    integer_sum(dataset, 8, model)
    assert set(training._PLACES[model].values()) == {True}


def test_looking_at_the_machine_leaves_the_parameters_as_they_were() -> None:
    model = adapted_model()
    before = [p.detach().clone() for p in model.parameters()]
    integer_sum(records(), 8, model)
    assert all(torch.equal(p, kept) for p, kept in zip(model.parameters(), before, strict=True))
    assert set(training._PLACES[model].values()) == {True}


def test_a_broken_record_counts_as_zero() -> None:
    healthy = records()
    broken = {name: torch.cat([t, t[:1]]) for name, t in healthy.items()}
    broken["input_ids"][-1, 0] = BROKEN_TOKEN
    with_it = movement(broken_model(), broken, plan(), rng(1))
    assert np.isfinite(with_it).all()
    assert np.abs(with_it - movement(broken_model(), healthy, plan(), rng(1))).max() < 3 / 2**20 / 10 + 1e-6
    model = broken_model()
    train(model, broken, plan(), rng(1))
    with pytest.raises(PrivacyError) as caught:  # without DP nobody bounds it: the client stops
        train(model, broken, plan(None), rng(1))
    assert caught.value.code == "E227"


def test_labels_and_lengths_are_the_records_own() -> None:
    """Sorting by length and trimming must not mix the fields of two records."""
    data = records()
    order = torch.from_numpy(np.argsort(poisson_sample(rng(3), 10**6, 1, 40_000)[:24] * 7919 % 101))
    mixed = {name: t[order] for name, t in data.items()}
    padded = {name: nn.functional.pad(t, (0, 6)) if t.ndim == 2 else t for name, t in data.items()}
    reference = movement(adapted_model(), data, plan(), rng(1))
    for same in (mixed, padded):
        assert np.abs(movement(adapted_model(), same, plan(max_physical_batch=5), rng(1)) - reference).max() < 1e-5


# ---- randomness ----


def test_an_empty_sample_is_a_step_of_noise_alone() -> None:
    how = plan(LOUD, steps=3, sampling_denominator=10**12, expected_batch=7, learning_rate=2.0)
    model = adapted_model()
    moved = movement(model, records(), how, rng(4))
    stream, expected = rng(4), np.zeros(moved.size)
    for _ in range(3):
        assert poisson_sample(stream, 24, 1, 10**12).size == 0
        expected -= 2.0 * discrete_gaussian(stream, LOUD.noise_steps, moved.size) / LOUD.scale / 7
    assert np.abs(moved - expected).max() < 1e-5
    assert train(model, records(), plan(None, sampling_denominator=10**12), rng(4)).records_seen == 0


def test_every_tensor_gets_the_noise_that_is_claimed() -> None:
    model = adapted_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    steps = 60
    how = plan(LOUD, steps=steps, sampling_denominator=10**12, expected_batch=1)
    train(model, records(), how, rng(5))
    after = dict(model.named_parameters())
    for name, start in before.items():
        noise = (after[name].detach() - start).double() / steps**0.5
        spread = float((noise**2).mean())
        assert abs(spread - 1) < 4 * (2 / noise.numel()) ** 0.5, name


def test_torchs_generator_decides_nothing() -> None:
    how = plan(LOUD, steps=3, sampling_denominator=2)
    moves = []
    for torch_seed, seed in ((1, 6), (2, 6), (1, 7)):
        torch.manual_seed(torch_seed)
        before = torch.random.get_rng_state()
        moves.append(movement(adapted_model(), records(), how, rng(seed)))
        assert torch.equal(before, torch.random.get_rng_state())
    assert moves[0].tolist() == moves[1].tolist()
    assert np.abs(moves[0] - moves[2]).min() > 0  # other noise under the same torch seed, on every coordinate
    torch.manual_seed(1)
    sizes = [
        train(adapted_model(), records(200), plan(None, sampling_denominator=2), rng(s)).records_seen for s in (6, 7)
    ]
    assert sizes[0] != sizes[1]


def test_each_step_and_each_round_draws_afresh() -> None:
    model, stream = adapted_model(), rng(8)
    how = plan(LOUD, sampling_denominator=10**12)
    rounds = np.stack([movement(model, records(), how, stream) for _ in range(6)])
    correlation = np.corrcoef(rounds) - np.eye(6)
    assert np.abs(correlation).max() < 4 / rounds.shape[1] ** 0.5


# ---- nothing stays behind ----


def test_the_model_is_reusable_and_unhooked_after_training() -> None:
    model = adapted_model()
    model.eval()
    names = {name: sorted(vars(module)) for name, module in model.named_modules()}
    first = movement(model, records(), plan(LOUD), rng(1))
    assert not any(module.training for module in model.modules())
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == names
    for p in model.parameters():
        assert p.grad is None
        assert not hasattr(p, "grad_sample")
        assert not hasattr(p, "_forward_counter")
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    second = movement(model, records(), plan(LOUD), rng(1))
    assert np.abs(first - second).max() < 1  # the same noise, nearly the same gradients: not twice of anything
    assert np.abs(second).max() > 0.01


def test_nothing_stays_behind_after_an_error_either() -> None:
    model = adapted_model()
    state = {"fail": True}

    def explode(*_: object) -> None:
        if state["fail"] and torch.is_grad_enabled():
            raise RuntimeError("out of memory")

    handle = model.register_forward_hook(explode)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(model, records(), plan(), rng(1))
    state["fail"] = False
    handle.remove()
    clean = movement(adapted_model(), records(), plan(), rng(1))
    assert np.abs(movement(model, records(), plan(), rng(1)) - clean).max() < 1e-6


# ---- refusals, all before anything is drawn ----


def refused(model: nn.Module, dataset: dict[str, Tensor], how: DpSgdPlan | None = None) -> str:
    """The code of the refusal; the stream must not have been touched, nor the parameters."""
    stream, before = rng(1), trainable(model) if any(p.requires_grad for p in model.parameters()) else None
    with pytest.raises(PrivacyError) as caught:
        train(model, dataset, how or plan(), stream)
    assert stream.take(16) == rng(1).take(16)
    assert before is None or trainable(model).tolist() == before.tolist()
    return caught.value.code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d: d | {name: t[:0] for name, t in d.items()}, "E223"),
        (lambda d: d | {"labels": d["labels"] + 1}, "E226"),
        (lambda d: d | {"labels": d["labels"] - 1}, "E226"),
        (lambda d: d | {"input_ids": d["input_ids"] + VOCABULARY}, "E226"),
        (lambda d: d | {"input_ids": d["input_ids"] - 1}, "E226"),
        (lambda d: d | {"labels": d["labels"][:-1]}, "E222"),
        (lambda d: d | {"attention_mask": d["attention_mask"][:, :-1]}, "E222"),
        (lambda d: d | {"labels": d["labels"][:, None]}, "E222"),
        (lambda d: d | {"labels": d["labels"].double()}, "E222"),
        (lambda d: d | {"weights": d["labels"]}, "E222"),
        (lambda d: {name: t for name, t in d.items() if name != "labels"}, "E222"),
    ],
)
@pytest.mark.parametrize("mechanism", [QUIET, None])
def test_unusable_data_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], code: str, mechanism: GaussianMechanism | None
) -> None:
    assert refused(adapted_model(), change(records()), plan(mechanism)) == code


def test_messages_carry_no_record() -> None:
    data = records(17)
    data["labels"][3] = 41
    with pytest.raises(PrivacyError) as caught:
        train(adapted_model(), data, plan(), rng(1))
    assert "41" not in str(caught.value)
    assert "17" not in str(caught.value)


def test_an_adapter_that_trains_nothing_is_refused() -> None:
    model = adapted_model()
    model.requires_grad_(False)
    assert refused(model, records()) == "E229"


def test_dropout_is_refused() -> None:
    model = adapted_model()
    dropout = next(module for module in model.modules() if isinstance(module, nn.Dropout))
    dropout.p = 0.1
    assert refused(model, records()) == "E230"
    dropout.p = 0.0
    holder: Any = next(module for module in model.modules() if not list(module.children()))
    holder.attention_dropout = 0.1  # how Llama keeps its rate
    assert refused(model, records()) == "E230"


class Classifier(nn.Module):
    """Embedding, something between, and a linear head; the smallest model that `train` accepts."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 4)
        self.embedding.requires_grad_(False)
        self.between = between
        self.head = nn.Linear(4, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        weights = attention_mask[:, :, None] / attention_mask.sum(dim=1)[:, None, None]
        return SimpleNamespace(logits=self.head(self.between((self.embedding(input_ids) * weights).sum(dim=1))))


class MinusBatchMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0, keepdim=True)


class WithLooseParameter(nn.Module):
    """A trainable parameter that no gradient ever reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_small_model_is_accepted() -> None:
    assert np.abs(movement(Classifier(nn.Identity()), records(), plan(), rng(1))).max() > 1e-3


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("mechanism", [QUIET, None])
def test_modules_that_couple_records_are_refused(frozen: bool, mechanism: GaussianMechanism | None) -> None:
    norm = nn.BatchNorm1d(4)
    norm.requires_grad_(not frozen)
    assert refused(Classifier(norm), records(), plan(mechanism)) == "E225"
    assert refused(Classifier(MinusBatchMean()), records(), plan(mechanism)) == "E225"


def test_what_opacus_rejects_is_refused() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.lstm(x[:, None])[0][:, 0])

    assert refused(Classifier(Recurrent()), records()) == "E225"


def test_a_model_with_hooks_is_refused() -> None:
    from opacus.grad_sample import GradSampleHooks

    model = adapted_model()
    hooks = GradSampleHooks(model, loss_reduction="sum")
    assert refused(model, records()) == "E225"
    hooks.cleanup()
    train(model, records(), plan(), rng(1))


def test_a_parameter_without_gradient_is_refused() -> None:
    with pytest.raises(UnsupportedMechanismError) as caught:
        train(Classifier(WithLooseParameter()), records(), plan(), rng(1))
    assert caught.value.code == "E228"


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"expected_batch": 0},
        {"max_physical_batch": 0},
        {"sampling_numerator": 0},
        {"sampling_numerator": 2},
        {"optimizer": "lion"},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
    ],
)
def test_senseless_plans_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError) as caught:
        plan(**changes)
    assert caught.value.code == "E220"
