"""Language-model tasks: what is predicted, gradients of one record at a time, and refusals before anything is spent."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import LLAMA_POSITIONS, language_settings, save_tiny_llama
from torch import Tensor, nn

from dp.errors import PrivacyError, UnsupportedMechanismError
from dp.objective import IDS, IGNORED, LABELS, MASK, Records
from dp.sampling import Csprng
from dp.training import DpSgdPlan, _per_sample_gradients, _train_mode, train
from ffm import models
from ffm.adapters import AdapterSettings, build
from ffm.data import Record, read_pairs, read_texts
from ffm.errors import DataError, ModelError
from ffm.task import build_manifest
from ffm.tasks import find
from ffm.tasks.language import MASK_TOKEN
from protocol.manifest import ServerSpec, TrainingSpec

TEXTS = ("Type 2 diabetes mellitus without complications", "Acute bronchitis", "Fracture of the left femur", "Fever")


def rng(label: int = 1) -> Csprng:
    return Csprng(label.to_bytes(32, "big"))


def training(task: str, max_length: int = 24, labels: tuple[str, ...] = ()) -> TrainingSpec:
    server = ServerSpec(optimizer="fedavg", learning_rate="1", beta1="0", beta2="0", tau="0")
    return TrainingSpec(
        task=task, labels=labels, max_length=max_length, optimizer="sgd", learning_rate="0.1", rounds=1,
        local_steps=1, expected_batch=4, proximal="0", server=server,
    )  # fmt: skip


def texts(*values: str) -> tuple[Record, ...]:
    return tuple(Record(value, "") for value in values)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


def loaded(name: str, folder: Path) -> tuple[Any, nn.Module, Any, TrainingSpec]:
    """(task, model, tokenizer, training)."""
    task, how = find(name), training(name)
    return task, task.load(folder, how, 1), models.load_tokenizer(folder), how


def folder_of(name: str, llama: Path) -> Path:
    return models.locate("bert-tiny") if name == "masked-lm" else llama


# What is predicted


def test_masked_tokens_are_fifteen_percent_of_each_text_and_never_special(llama: Path) -> None:
    task, how = find("masked-lm"), training("masked-lm", 200)
    tokenizer = models.load_tokenizer(models.locate("bert-tiny"))
    dataset = task.tensors(tokenizer, texts(*TEXTS, "word " * 100), how)
    batch = task.prepare(dataset, rng())
    hidden = batch[LABELS] != IGNORED
    assert hidden.sum(1).tolist() == [1, 1, 1, 1, 15]
    assert bool((batch[IDS][hidden] == tokenizer.mask_token_id).all())
    assert bool((batch[LABELS][hidden] == dataset[IDS][hidden]).all())
    assert bool((batch[IDS][~hidden] == dataset[IDS][~hidden]).all())
    special = torch.isin(dataset[IDS], torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id, 0]))
    assert not bool((hidden & special).any())


def test_masks_are_fresh_each_step_and_come_from_the_csprng_alone() -> None:
    task, how = find("masked-lm"), training("masked-lm", 200)
    dataset = task.tensors(models.load_tokenizer(models.locate("bert-tiny")), texts(*["word " * 100] * 4), how)
    stream = rng()
    first, second = task.prepare(dataset, stream), task.prepare(dataset, stream)
    torch.manual_seed(0)
    again = task.prepare(dataset, rng())
    assert torch.equal(first[IDS], again[IDS])
    assert not torch.equal(first[IDS], second[IDS])
    assert len({tuple(row.tolist()) for row in first[IDS]}) == 4  # not the same places in every record


def test_masked_places_are_uniform() -> None:
    task, how = find("masked-lm"), training("masked-lm", 200)
    dataset = task.tensors(models.load_tokenizer(models.locate("bert-tiny")), texts(*["word " * 20] * 2000), how)
    hidden = (task.prepare(dataset, rng())[LABELS] != IGNORED).double().mean(dim=0)[1:21]
    assert float((hidden - 0.15).abs().max()) < 5 * math.sqrt(0.15 * 0.85 / 2000)


def test_a_causal_model_predicts_each_next_token_and_no_padding(llama: Path) -> None:
    task, model, tokenizer, how = loaded("causal-lm", llama)
    dataset = task.tensors(tokenizer, texts(*TEXTS), how)
    losses = task.losses(model, dataset).detach()
    for row, text in enumerate(TEXTS):
        ids = tokenizer(text, return_tensors="pt")[IDS]
        logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        chosen = -logits.gather(1, ids[0, 1:, None])
        assert torch.allclose(losses[row], chosen.mean() if len(chosen) else torch.zeros(()), atol=1e-5)


def test_instruction_tuning_predicts_the_response_and_its_end_alone(llama: Path) -> None:
    task, _, tokenizer, _ = loaded("instruction-tuning", llama)
    record = Record("Which chapter is a fever?", "Symptoms and signs")
    dataset = task.tensors(tokenizer, [record, Record("Hello", "Hi")], training("instruction-tuning", 60))
    predicted = dataset[LABELS][0] != IGNORED
    assert tokenizer.decode(dataset[LABELS][0][predicted]) == "Symptoms and signs<|im_end|>\n"
    asked = tokenizer.decode(dataset[IDS][0][~predicted & (dataset[MASK][0] == 1)])
    assert "fever" in asked and asked.endswith("<|im_start|>assistant\n")
    assert torch.equal(dataset[LABELS][0][predicted], dataset[IDS][0][predicted])


def test_the_head_answers_for_the_response_alone(llama: Path) -> None:
    """Logits of as many tokens as the longest response has, and the losses that logits of all tokens give; in training
    only of a record by itself: how long a response is must not shape what others are computed in."""
    task, model, tokenizer, _ = loaded("instruction-tuning", llama)
    answers = [Record(text, "sign " * (1 + k)) for k, text in enumerate(TEXTS)]
    batch = task.tensors(tokenizer, answers, training("instruction-tuning", 60))
    logits = model(input_ids=batch[IDS], attention_mask=batch[MASK]).logits[:, :-1].log_softmax(-1)
    labels = batch[LABELS][:, 1:]
    response = labels != IGNORED
    chosen = -logits.gather(2, labels.clamp_min(0).unsqueeze(2)).squeeze(2) * response
    shapes = []
    head = model.get_output_embeddings()  # type: ignore[operator]
    hook = head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape[:2])))
    losses = task.losses(model, batch)
    longest = int(response.sum(dim=1).argmax())
    task.losses(model, {name: field[longest : longest + 1] for name, field in batch.items()})
    with torch.no_grad():
        task.losses(model, batch)
    hook.remove()
    assert torch.allclose(losses, chosen.sum(dim=1) / response.sum(dim=1), atol=1e-5)
    assert len({int(count) for count in response.sum(dim=1)}) == len(TEXTS)
    most = int(response.sum(dim=1).max())
    assert shapes == [(len(TEXTS), labels.shape[1]), (1, most), (len(TEXTS), most)]


def test_the_perplexity_of_a_model_that_has_diverged_is_a_number(llama: Path) -> None:
    task, model, tokenizer, how = loaded("causal-lm", llama)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(math.inf)  # type: ignore[operator]
    scores = task.scores(model, task.tensors(tokenizer, texts(*TEXTS), how))
    assert math.isnan(scores["loss"]) and 1e300 < scores["perplexity"] < math.inf


def test_without_a_chat_template_a_response_follows_on_a_new_line(llama: Path) -> None:
    task, _, tokenizer, how = loaded("instruction-tuning", llama)
    tokenizer.chat_template = None
    dataset = task.tensors(tokenizer, [Record("Fever?", "Yes")], how)
    assert tokenizer.decode(dataset[IDS][0]) == "Fever?\nYes<|im_end|>"
    assert tokenizer.decode(dataset[LABELS][0][dataset[LABELS][0] != IGNORED]) == "Yes<|im_end|>"


def test_a_template_that_asks_the_date_gets_the_same_everywhere(llama: Path) -> None:
    task, _, tokenizer, how = loaded("instruction-tuning", llama)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    dataset = task.tensors(tokenizer, [Record("Fever?", "Yes")], how)
    assert tokenizer.decode(dataset[IDS][0]).startswith("01 Jan 2026\nFever?")
    for template in ("\n{{ messages[0]['content'] }}!", "   {% if true %}{{ messages[0]['content'] }}{% endif %}!"):
        tokenizer.chat_template = template + "{% for m in messages[1:] %}{{ m['content'] }}{% endfor %}"
        plain = tokenizer.apply_chat_template([{"role": "user", "content": "Fever?"}], tokenize=False)
        dataset = task.tensors(tokenizer, [Record("Fever?", "Yes")], how)
        assert tokenizer.decode(dataset[IDS][0]) == plain + "Yes"


# The loss of one record


@pytest.mark.parametrize("name", ["masked-lm", "causal-lm", "instruction-tuning"])
def test_the_loss_of_a_record_does_not_know_the_others(name: str, llama: Path) -> None:
    task, model, tokenizer, _ = loaded(name, folder_of(name, llama))
    records = [Record(text, "an answer") for text in TEXTS]
    batch = task.prepare(task.tensors(tokenizer, records, training(name, 60)), rng())
    together = task.losses(model, batch)
    for row in range(len(TEXTS)):
        width = int(batch[MASK][row].sum())
        alone = {key: value[row : row + 1] for key, value in batch.items()}
        alone = {key: value[:, :width] if value.ndim == 2 else value for key, value in alone.items()}
        assert torch.allclose(task.losses(model, alone)[0], together[row], atol=1e-5)


def per_sample(task: Any, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    with _train_mode(model), _per_sample_gradients(model, parameters, wanted=True):
        task.losses(model, batch).sum().backward()
        return torch.cat([p.grad_sample.reshape(len(batch[IDS]), -1) for p in parameters], dim=1)


def one_at_a_time(task: Any, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    rows = []
    for row in range(len(batch[IDS])):
        model.zero_grad()
        task.losses(model, {key: value[row : row + 1] for key, value in batch.items()}).sum().backward()
        rows.append(torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.requires_grad]))
    return torch.stack(rows)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", ["masked-lm", "causal-lm", "instruction-tuning"])
def test_gradients_per_record_are_those_of_one_at_a_time(name: str, method: str, llama: Path) -> None:
    """`full`: every parameter, so the embedding that is tied to the head, and positions looked up once a batch."""
    task, model, tokenizer, _ = loaded(name, folder_of(name, llama))
    targets = ("query", "value") if name == "masked-lm" else ("q_proj", "v_proj")
    settings = AdapterSettings(2, 4, targets, 1, "lora") if method == "lora" else AdapterSettings(0, 0, (), 1, "full")
    model = build(model, settings, task.peft_type)
    for key, p in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(p, std=0.1)
    model = model.double()  # so that a mistake cannot hide in rounding
    records = [Record(text, "an answer") for text in TEXTS]
    batch = task.prepare(task.tensors(tokenizer, records, training(name, 60)), rng())
    found, expected = per_sample(task, model, batch), one_at_a_time(task, model, batch)
    assert float(expected.norm(dim=1).max()) > 0.01
    assert float((found - expected).abs().max()) <= 1e-10 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", ["masked-lm", "causal-lm"])
def test_training_lowers_the_perplexity(name: str, llama: Path) -> None:
    task, model, tokenizer, how = loaded(name, folder_of(name, llama))
    dataset = task.tensors(tokenizer, texts(*TEXTS), how)
    before = task.scores(model, dataset)
    plan = DpSgdPlan(4, 1, 1, None, 4, "adam", 0.003)
    train(model, dataset, plan, rng(), task)
    after = task.scores(model, dataset)
    assert after["perplexity"] < before["perplexity"] and after["loss"] < before["loss"]
    assert after["perplexity"] >= 1


def test_perplexity_is_per_token_and_the_same_each_time(llama: Path) -> None:
    task, model, tokenizer, how = loaded("causal-lm", llama)
    dataset = task.tensors(tokenizer, texts(*TEXTS), how)
    total, count = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")[IDS]
        if ids.shape[1] > 1:
            total += float(model(input_ids=ids, labels=ids).loss.detach()) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    assert task.scores(model, dataset)["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    masked, encoder, words, plan = loaded("masked-lm", models.locate("bert-tiny"))
    test = masked.tensors(words, texts(*TEXTS), plan)
    assert masked.scores(encoder, test) == masked.scores(encoder, test)


# Refusals


@pytest.mark.parametrize(
    "name, base, code",
    [
        ("masked-lm", "minilm", "E506"),  # no head
        ("masked-lm", "llama", "E506"),
        ("causal-lm", "bert-tiny", "E506"),  # sees the token that it predicts
        ("instruction-tuning", "bert-tiny", "E506"),
    ],
)
def test_a_model_of_another_class_is_refused(name: str, base: str, code: str, llama: Path) -> None:
    folder = llama if base == "llama" else models.locate(base)
    with pytest.raises(ModelError) as caught:
        find(name).load(folder, training(name), 1)
    assert caught.value.code == code and caught.value.do


@pytest.mark.parametrize("name", ["masked-lm", "causal-lm", "sequence-classification"])
def test_texts_longer_than_the_context_are_refused(name: str, llama: Path) -> None:
    limit, folder = (LLAMA_POSITIONS, llama) if name == "causal-lm" else (512, models.locate("bert-tiny"))
    model = find(name).load(folder, training(name, limit, ("a", "b")), 1)
    models.check_context(model, limit)
    with pytest.raises(ModelError, match="context") as caught:
        models.check_context(model, limit + 1)
    assert caught.value.code == "E510"


def test_a_manifest_with_texts_longer_than_the_context_is_not_made(llama: Path) -> None:
    assert build_manifest(language_settings(llama), "small").adapter.tensors
    for changes in ({"max_length": LLAMA_POSITIONS + 1}, {"virtual_tokens": LLAMA_POSITIONS - 23}):
        with pytest.raises(ModelError, match="context"):
            build_manifest(language_settings(llama, **changes), "small")


def test_a_missing_tokenizer_is_refused(llama: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(llama / name)
    with pytest.raises(ModelError, match="tokenizer") as caught:
        models.load_tokenizer(tmp_path)
    assert caught.value.code == "E506"


def test_a_tokenizer_without_a_mask_token_is_refused(llama: Path) -> None:
    with pytest.raises(ModelError, match="mask token"):
        find("masked-lm").tensors(models.load_tokenizer(llama), texts("a"), training("masked-lm"))


@pytest.mark.parametrize("packed", ["one text<|endoftext|>another", "<|im_start|>user\nhello", "a<|im_end|>b"])
def test_packed_texts_are_refused(packed: str, llama: Path) -> None:
    tokenizer = models.load_tokenizer(llama)
    for name, record in (("causal-lm", Record(packed, "")), ("instruction-tuning", Record("ok", packed))):
        with pytest.raises(DataError, match="packed") as caught:
            find(name).tensors(tokenizer, [record], training(name))
        assert caught.value.code == "E518" and packed not in str(caught.value.found)
    encoder = models.load_tokenizer(models.locate("bert-tiny"))
    for name in ("masked-lm", "sequence-classification"):
        with pytest.raises(DataError, match="packed"):
            find(name).tensors(encoder, [Record("one [SEP] two", "x")], training(name, labels=("x",)))


def test_a_prompt_that_fills_the_length_is_refused(llama: Path) -> None:
    tokenizer = models.load_tokenizer(llama)
    with pytest.raises(DataError, match="room") as caught:
        find("instruction-tuning").tensors(tokenizer, [Record("word " * 30, "x")], training("instruction-tuning", 30))
    assert caught.value.code == "E519"


@pytest.mark.parametrize(
    "content, code", [("text\n", "E514"), ("other\nx\n", "E512"), ('text\n""\n', "E512"), (None, "E511")]
)
def test_an_empty_or_broken_client_is_refused(content: str | None, code: str, tmp_path: Path) -> None:
    path = tmp_path / "site.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_texts(path)
    assert caught.value.code == code


def test_texts_and_pairs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "site.csv"
    path.write_text('label,text\n"Yes, it is",Fever?\n')
    assert read_texts(path) == (Record("Fever?", ""),)
    assert read_pairs(path) == (Record("Fever?", "Yes, it is"),)


def change(name: str, to: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda dataset: {**dataset, name: to(dataset[name])}


@pytest.mark.parametrize(
    "broken, code",
    [
        (change(LABELS, lambda v: v.masked_fill(v == v.max(), 49152)), "E226"),
        (change(LABELS, lambda v: v.masked_fill(v == v.max(), -1)), "E226"),
        (change(LABELS, lambda v: v.masked_fill(v >= 0, IGNORED)), "E226"),
        (change(LABELS, lambda v: v[:, :-1]), "E222"),
        (change(IDS, lambda v: v.masked_fill(v == v.max(), 49152)), "E226"),
    ],
)
def test_labels_out_of_range_are_refused_before_anything_is_drawn(
    broken: Callable[[dict[str, Tensor]], dict[str, Tensor]], code: str, llama: Path
) -> None:
    task, model, tokenizer, how = loaded("causal-lm", llama)
    dataset = broken(dict(task.tensors(tokenizer, texts(*TEXTS), how)))
    stream = rng()
    with pytest.raises(PrivacyError) as caught:
        train(model, dataset, DpSgdPlan(1, 1, 1, None, 4, "sgd", 0.1), stream, task)
    assert caught.value.code == code
    assert stream.take(8) == rng().take(8)


def test_a_classifier_under_a_language_task_is_refused(llama: Path) -> None:
    task, _, tokenizer, how = loaded("causal-lm", llama)
    classifier = models.load_classifier(llama, ("a", "b"), 1)
    with pytest.raises(UnsupportedMechanismError) as caught:
        Records(classifier, task.tensors(tokenizer, texts(*TEXTS), how), task)
    assert caught.value.code == "E224"


def test_a_data_set_of_another_task_is_refused(llama: Path) -> None:
    task, model, tokenizer, how = loaded("causal-lm", llama)
    dataset = {**task.tensors(tokenizer, texts(*TEXTS), how), MASK_TOKEN: torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(PrivacyError) as caught:
        Records(model, dataset, task)
    assert caught.value.code == "E222"
