"""The leakage demo: what one client's update tells if it is neither masked nor noised.

The gradient of a linear layer's first LoRA matrix is a sum, over the tokens of the batch, of outer products with the
layer's inputs: its rows lie in the span of the inputs. In the first attention block an input depends on one token and
its position alone, so a span check token by token gives the sentence back (Petrov et al. 2024, "DAGER"). Rank 8 on
query, key and value spans 24 tokens. FFA-LoRA does not train that matrix; the demo trains it, as plain LoRA does.

The demo is a control and a check: the plain update must give the sentence back, or the attack is none; masked or noised
updates must not. The sentence is public and stands here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn

from dp.audit import Finding, Reals
from dp.sampling import Csprng
from dp.training import DpSgdPlan, train
from ffm.models import load_classifier, load_tokenizer
from ffm.seeded import SeededStream
from secagg.encoding import SlotEncoding
from secagg.masking import Mask, add_masks, frame_real
from secagg.params import SecAggParams
from secagg.types import Secret

SENTENCE: Final = "patient admitted with acute myocardial infarction and pneumonia in the left lower lobe"
RANK: Final = 8
_BY_CHANCE: Final = 2  # tokens; each is hit with probability 1 in the vocabulary's size
_WORDS_AT_ONCE = 1024
_NAMES = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))


@dataclass(frozen=True, slots=True)
class Victim:
    """A model with plain LoRA on the first attention block, one sentence, and where the matrices lie in its update."""

    model: nn.Module = field(repr=False)
    sentence: dict[str, Tensor] = field(repr=False)
    matrices: tuple[tuple[slice, int], ...]  # of the flat update: coordinates, columns
    inputs: nn.Module = field(repr=False)  # the layer whose input the attack guesses

    @property
    def tokens(self) -> list[int]:
        """What is to be found."""
        return [int(token) for token in self.sentence["input_ids"][0]]


def build_victim(base_model: Path, labels: Sequence[str]) -> Victim | None:
    """None for an architecture in which the demo does not know the first attention block."""
    base = load_classifier(base_model, labels, 0)
    linear = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    targets: list[str] = []
    for names in _NAMES:
        first = next((name for name in linear if name.endswith("." + names[0])), None)
        if first is not None:
            targets = [first.removesuffix(names[0]) + name for name in names]
    if not targets:
        return None
    with torch.random.fork_rng(devices=[]):
        model = get_peft_model(base, LoraConfig(task_type=TaskType.SEQ_CLS, r=RANK, target_modules=targets))
    matrices, start = [], 0
    for name, p in model.named_parameters():
        if ".lora_" in name:  # any value but zero, as after the first round: B = 0 would hide everything
            values = SeededStream(0, f"leakage/{name}").uniform(tuple(p.shape), 1 / p.shape[-1] ** 0.5)
            with torch.no_grad():
                p.copy_(torch.from_numpy(values))
        if p.requires_grad:
            if ".lora_A." in name:
                matrices.append((slice(start, start + p.numel()), p.shape[1]))
            start += p.numel()
    encoded = load_tokenizer(base_model)([SENTENCE], truncation=True, max_length=3 * RANK - 4, return_tensors="pt")
    sentence = {
        "input_ids": encoded["input_ids"],
        "attention_mask": encoded["attention_mask"],
        "labels": torch.zeros(1, dtype=torch.int64),
    }
    layer = next(module for name, module in model.named_modules() if name.endswith(targets[0]))
    return Victim(model, sentence, tuple(matrices), layer)


def update_of(victim: Victim, plan: DpSgdPlan, rng: Csprng) -> Reals:
    """One client's update after one step on the sentence, by the real loop; the model is put back."""
    parameters = [p for p in victim.model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    once = replace(
        plan,
        steps=1,
        sampling_numerator=1,
        sampling_denominator=1,
        expected_batch=1,
        optimizer="sgd",
        learning_rate=1.0,
    )
    train(victim.model, victim.sentence, once, rng)
    parts = [(p.detach() - value).double().reshape(-1) for p, value in zip(parameters, start, strict=True)]
    with torch.no_grad():
        for p, value in zip(parameters, start, strict=True):
            p.copy_(value)
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)


def recovered(victim: Victim, update: Reals) -> int:
    """At how many positions the token whose input lies nearest to the update's span is the true one."""
    rows = np.concatenate([update[where].reshape(-1, columns) for where, columns in victim.matrices])
    _, values, basis = np.linalg.svd(rows, full_matrices=False)
    basis = basis[values > 1e-5 * values[0]]
    tokens = victim.tokens
    nearest: NDArray[np.float64] = np.full(len(tokens), np.inf)
    guess: NDArray[np.int64] = np.full(len(tokens), -1, dtype=np.int64)
    for first, inputs in _candidates(victim, len(tokens)):
        norms = np.linalg.norm(inputs, axis=2)
        inside = np.linalg.norm(inputs @ basis.T, axis=2)
        distance = 1 - inside / norms  # (candidates, positions)
        best = distance.argmin(axis=0)
        value = distance[best, np.arange(len(tokens))]
        guess = np.where(value < nearest, first + best, guess)
        nearest = np.minimum(value, nearest)
    return int((guess == np.array(tokens)).sum())


def check_leakage(base_model: Path, labels: Sequence[str], plan: DpSgdPlan, rng: Csprng) -> list[Finding]:
    """Plain, encoded, masked and noised updates under the same attack."""
    victim = build_victim(base_model, labels)
    if victim is None:
        return []
    total = len(victim.tokens)
    plain = update_of(victim, replace(plan, mechanism=None), rng)
    whole = None if plan.mechanism is None else replace(plan.mechanism, shares=1)  # of R2: with the noise of a sum
    noised = update_of(victim, replace(plan, mechanism=whole), rng)
    found = recovered(victim, plain)
    without, masked = (recovered(victim, _sent(plain, masks, rng)) for masks in (0, 1))
    blind = "stronger attacks, other layers; a weak attack is no proof"
    rows = [("a masked update", masked), ("a noised update", recovered(victim, noised))]
    return [
        Finding(
            "control: leakage of a plain update",
            f"{found} of {total} tokens of a sentence from one client's rank-{RANK} update, {without} once encoded",
            f"more than {3 * total // 4} each",
            min(found, without) > 3 * total // 4,
            "an attack that is none",
            blind,
            control=True,
        ),
        *(
            Finding(
                f"leakage: {what}",
                f"{count} of {total} tokens",
                f"at most {_BY_CHANCE}, by chance",
                count <= _BY_CHANCE,
                "masks or noise that are not there",
                blind,
                1,
            )
            for what, count in rows
        ),
    ]


def _sent(update: Reals, masks: int, rng: Csprng) -> Reals:
    """What the server reads from an upload, encoded and under so many masks, if it takes the words for slots."""
    bound = 2**17
    encoding = SlotEncoding(3, 1, bound, 3)
    params = SecAggParams(3, 0, 0, 3, len(update), encoding, 1024)
    framed = frame_real(update / np.abs(update).max() * (bound - 1), params, rng.take)
    words = framed.words
    add_masks(words, [Mask(Secret(rng.take(32)), 1) for _ in range(masks)])
    payload = np.delete(words, np.arange(0, len(words), params.chunk_words))[1:]
    bits, low = encoding.slot_bits, np.uint64((1 << encoding.slot_bits) - 1)
    slots = np.stack([payload >> np.uint64(bits * j) & low for j in range(3)], axis=1).reshape(-1)[: len(update)]
    return slots.astype(np.float64) - bound


class _Seen(Exception):
    """The input is known: the rest of the forward pass is not needed."""


@contextmanager
def _stopping(layer: nn.Module, inputs: list[Tensor]) -> Iterator[None]:
    def stop(_module: nn.Module, arguments: Any) -> None:
        inputs.append(arguments[0].detach())
        raise _Seen

    handle = layer.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def _candidates(victim: Victim, width: int) -> Iterator[tuple[int, Reals]]:
    """(first token, inputs of the first attention block (tokens, positions, features)), for the whole vocabulary."""
    words = int(victim.model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    for first in range(0, words, _WORDS_AT_ONCE):
        ids = torch.arange(first, min(first + _WORDS_AT_ONCE, words))[:, None].expand(-1, width).contiguous()
        inputs: list[Tensor] = []
        with _stopping(victim.inputs, inputs), torch.inference_mode():
            try:
                victim.model(input_ids=ids, attention_mask=torch.ones_like(ids))
            except _Seen:
                yield first, np.asarray(inputs[0].double().numpy(), dtype=np.float64)
