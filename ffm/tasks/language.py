"""Language models: masked and causal on texts, and instruction tuning on prompts with their responses.

A record is one text, cut at `max_length`; nothing is packed or chunked, so a person's record stays one record. Its loss
is the mean over its own predicted tokens, never over those of a batch: such a mean would couple the records. Judged by
the perplexity per predicted token, smaller is better.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dp.errors import PrivacyError, UnsupportedMechanismError
from dp.objective import FIELDS, IDS, IGNORED, LABELS, MASK, Batch, Dataset, check_range
from dp.sampling import Csprng
from ffm.data import Record, read_pairs, read_texts, refuse_special, with_padding
from ffm.errors import DataError, ModelError
from ffm.models import load_causal_lm, load_masked_lm, vocabulary
from ffm.tasks.interface import Scores
from protocol.manifest import TrainingSpec

MASK_TOKEN: Final = "mask_token"  # noqa: S105 - a field: the id of [MASK], once for each record
_MASKED_PERCENT: Final = 15
_LOGITS: Final = 2**25  # of one evaluation batch
_EVALUATION: Final = sha256(b"secagg-ffm/evaluation/masked-lm").digest()  # public: the same masks for every model
# In front of a chat template: what it takes for today, in whatever format, is the same at every site and in every year.
_TODAY: Final = "{% macro strftime_now(format) %}01 Jan 2026{% endmacro %}\n"  # templates are read with trimmed blocks

Row = tuple[list[int], list[int]]  # token ids, and labels of the same length


_Count = TypeVar("_Count", int, Tensor)


class _LanguageModel(ABC):
    """What the three have in common."""

    fields: tuple[str, ...] = FIELDS
    headline, lower_is_better = "perplexity", True

    def prepare(self, batch: Batch, rng: Csprng) -> Batch:
        """Nothing is drawn."""
        return batch

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """(records,): mean over the predicted tokens of each record; 0 for a record that predicts nothing."""
        total, count = self._log_losses(model, batch)
        return total / count.clamp_min(1)

    def check(self, model: nn.Module, dataset: Dataset) -> None:
        """Labels are tokens of the vocabulary or IGNORED, and at least one is a token."""
        labels = dataset[LABELS]
        if labels.shape != dataset[IDS].shape:
            raise PrivacyError("the tensors of the data set do not fit together", expected="labels (n, t)", code="E222")
        predicted = labels[labels != IGNORED]
        if not len(predicted):
            raise PrivacyError(
                "no token of the data set is predicted", expected="texts of two or more tokens", code="E226"
            )
        device = next(model.parameters()).device
        with torch.no_grad():
            logits = model(input_ids=dataset[IDS][:1].to(device), attention_mask=dataset[MASK][:1].to(device)).logits
        if logits.ndim != 3 or logits.shape[1] < labels.shape[1]:
            expected = "(records, tokens, vocabulary)"
            raise UnsupportedMechanismError("logits", found=tuple(logits.shape), expected=expected, code="E224")
        check_range("labels", predicted, int(logits.shape[2]))

    def read(self, path: Path, training: TrainingSpec) -> tuple[Record, ...]:
        """CSV with the column text."""
        return read_texts(path)

    def scores(self, model: nn.Module, test: Dataset) -> Scores:
        """Perplexity per predicted token, and the loss that is trained: the mean over records of their own means."""
        test = self.prepare({**test, LABELS: test[LABELS].to(torch.int64)}, Csprng(_EVALUATION))
        mode, device = model.training, next(model.parameters()).device
        model.eval()
        lengths = test[MASK].sum(dim=1)
        size = max(1, _LOGITS // (self._places(test) * vocabulary(model)))
        totals, counts = [], []
        with torch.inference_mode():
            for rows in torch.argsort(lengths, stable=True).split(size):  # type: ignore[no-untyped-call]
                width = int(lengths[rows].max())
                batch = {name: test[name][rows, :width].to(device) for name in FIELDS}
                total, count = self._log_losses(model, batch)
                totals.append(total.double().cpu())
                counts.append(count.cpu())
        model.train(mode)
        total, count = torch.cat(totals), torch.cat(counts)
        mean = float(total.sum() / count.sum().clamp_min(1))
        return {
            "perplexity": math.exp(min(700.0, mean)),  # finite, also for a model that has diverged; of NaN 700 is less
            "loss": float((total / count.clamp_min(1)).mean()),
        }

    def _log_losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(records,) each: sum over the predicted tokens in nats, and their number."""
        logits, labels = self._predicted(model, batch)
        losses = nn.functional.cross_entropy(
            _wide(logits).flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return losses.view(labels.shape).sum(dim=1), (labels != IGNORED).sum(dim=1)

    def _places(self, test: Dataset) -> int:
        """Logits that the head computes for one record are at most so many times the vocabulary."""
        return int((test[LABELS] != IGNORED).sum(dim=1).amax().clamp_min(1))

    @abstractmethod
    def _predicted(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(records, places, vocabulary) logits, and the (records, places) labels that they predict."""


class MaskedLanguageModel(_LanguageModel):
    """Guess hidden tokens. Of each text 15 %, at least one, become [MASK], drawn anew in every step from the client's
    own generator; all of them, without the tenths that BERT left or replaced (Wettig et al. 2023 found no use in it).
    """

    name = "masked-lm"
    peft_type = "FEATURE_EXTRACTION"
    fields: tuple[str, ...] = (*FIELDS, MASK_TOKEN)

    def load(self, folder: Path, training: TrainingSpec, seed: int) -> PreTrainedModel:
        """Encoder with its own head; nothing is drawn."""
        return load_masked_lm(folder)

    def tensors(self, tokenizer: Any, records: Sequence[Record], training: TrainingSpec) -> Dataset:
        """`labels`: the tokens that may be hidden."""
        if tokenizer.mask_token_id is None:
            raise ModelError(
                "the base model's tokenizer has no mask token",
                found="no mask_token",
                expected="a token to hide others with",
                do="choose an encoder that was pre-trained as a masked language model",
            )
        refuse_special(tokenizer, [record.text for record in records])
        encoded = tokenizer(
            [record.text for record in records],
            truncation=True,
            max_length=training.max_length,
            return_special_tokens_mask=True,
        )
        rows = [
            (ids, [IGNORED if added else token for token, added in zip(ids, special, strict=True)])
            for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
        ]
        dataset = _padded(tokenizer, rows)
        return {**dataset, MASK_TOKEN: torch.full((len(rows),), tokenizer.mask_token_id, dtype=torch.int64)}

    def prepare(self, batch: Batch, rng: Csprng) -> Batch:
        """Hide 15 % of each record's tokens: those with the largest of independent uniform words."""
        labels = batch[LABELS]
        candidates = labels != IGNORED
        words = (rng.words(labels.numel()) >> 1).astype("int64")
        keys = torch.from_numpy(words).reshape(labels.shape).to(labels.device).masked_fill(~candidates, -1)
        ranks = keys.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        count = candidates.sum(dim=1, keepdim=True)
        hidden = candidates & (ranks < _hidden(count).clamp_min(1))
        ids = torch.where(hidden, batch[MASK_TOKEN].unsqueeze(1).to(batch[IDS].dtype), batch[IDS])
        return {**batch, IDS: ids, LABELS: labels.masked_fill(~hidden, IGNORED)}

    def _predicted(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of hidden tokens alone: the head is most of the work."""
        width = batch[LABELS].shape[1]
        return _chosen(model, batch, batch[LABELS], max(1, _hidden(width)))


class CausalLanguageModel(_LanguageModel):
    """Guess each next token of a text."""

    name = "causal-lm"
    peft_type = "CAUSAL_LM"

    def load(self, folder: Path, training: TrainingSpec, seed: int) -> PreTrainedModel:
        """Decoder; nothing is drawn."""
        return load_causal_lm(folder)

    def tensors(self, tokenizer: Any, records: Sequence[Record], training: TrainingSpec) -> Dataset:
        """All tokens are labels."""
        texts = [record.text for record in records]
        refuse_special(tokenizer, texts)
        encoded = tokenizer(texts, truncation=True, max_length=training.max_length)
        return _padded(tokenizer, [(ids, ids) for ids in encoded["input_ids"]])

    def _predicted(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of all tokens but the first; the virtual tokens of a soft prompt stand before it and predict nothing."""
        labels = batch[LABELS]
        logits = model(input_ids=batch[IDS], attention_mask=batch[MASK]).logits[:, -labels.shape[1] :]
        return logits[:, :-1], labels[:, 1:]


class InstructionTuning(CausalLanguageModel):
    """Guess the tokens of the response to a prompt, in the tokenizer's chat template where it has one."""

    name = "instruction-tuning"

    def read(self, path: Path, training: TrainingSpec) -> tuple[Record, ...]:
        """CSV with the columns text,label: prompt and response."""
        return read_pairs(path)

    def tensors(self, tokenizer: Any, records: Sequence[Record], training: TrainingSpec) -> Dataset:
        """Tokens of the response and of its end are labels. Long responses are cut; a prompt is never cut."""
        refuse_special(tokenizer, [text for record in records for text in (record.text, record.label)])
        rows = []
        for record in records:
            prompt, response = _conversation(tokenizer, record)
            if len(prompt) >= training.max_length:
                raise DataError(
                    "a prompt leaves no room for its response",
                    found=f"a prompt of {training.max_length} tokens or more",
                    expected=f"less than max_length, {training.max_length}",
                    do="shorten the prompts, or ask the owner for a manifest with a larger max_length",
                    code="E519",
                )
            ids = [*prompt, *response][: training.max_length]
            rows.append((ids, [IGNORED] * len(prompt) + ids[len(prompt) :]))
        return _padded(tokenizer, rows)

    def _predicted(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the response alone: most tokens are the prompt's, and the head is a fifth of a small model."""
        labels = batch[LABELS][:, 1:]
        return _chosen(model, batch, labels, labels.shape[1])


def _hidden(tokens: _Count) -> _Count:
    """How many of so many tokens are hidden, if at least one is."""
    return (tokens * _MASKED_PERCENT + 50) // 100


def _chosen(model: nn.Module, batch: Batch, labels: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Logits and labels at the places of `labels` (records, tokens or one less) that are not IGNORED, and at as many
    places of every record; the head sees no others. `limit`: what a batch of this shape may have of them. Several
    records that are trained on take that many, so that none has a say in the shape that another is computed in."""
    wanted = labels != IGNORED
    together = torch.is_grad_enabled() and len(labels) > 1
    most = limit if together else int(wanted.sum(dim=1).amax().clamp_min(1))
    places = wanted.to(torch.int8).topk(most, dim=1).indices
    tokens = batch[IDS].shape[1]

    def choose(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = args[0]  # with those of a soft prompt before them
        chosen = (places + states.shape[1] - tokens).unsqueeze(2)
        return (states.gather(1, chosen.expand(-1, -1, states.shape[2])), *args[1:])

    output: Any = model
    hook = output.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        logits = model(input_ids=batch[IDS], attention_mask=batch[MASK]).logits
    finally:
        hook.remove()
    return logits, labels.gather(1, places)


def _conversation(tokenizer: Any, record: Record) -> Row:
    """Tokens of the prompt, and of the response that follows it up to the end of its turn."""
    if tokenizer.chat_template is None:
        prompt = tokenizer(record.text + "\n")["input_ids"]
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return prompt, tokenizer(record.label, add_special_tokens=False)["input_ids"] + end
    template = _TODAY + tokenizer.get_chat_template()
    turns = [{"role": "user", "content": record.text}]
    asked = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True)
    turns.append({"role": "assistant", "content": record.label})
    whole = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    if not whole.startswith(asked):
        raise ModelError(
            "the tokenizer's chat template does not put the response behind the prompt",
            found="a conversation that does not start with its own prompt",
            expected="prompt, then response",
            do="choose a model with a plain chat template, or remove chat_template from tokenizer_config.json",
        )
    prompt, response = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (asked, whole[len(asked) :]))
    return prompt, response


def _padded(tokenizer: Any, rows: Sequence[Row]) -> Dataset:
    """Rows of different lengths, padded on the right."""
    with_padding(tokenizer)
    if not all(ids for ids, _ in rows):
        raise DataError(
            "a text has no token",
            found="a record of which the tokenizer leaves nothing",
            expected="a text in every record",
            do="remove texts of blanks and control characters",
            code="E512",
        )
    width = max(len(ids) for ids, _ in rows)
    fill = ((IDS, tokenizer.pad_token_id), (MASK, 0), (LABELS, IGNORED))
    parts: dict[str, list[list[int]]] = {name: [] for name, _ in fill}
    for ids, labels in rows:
        for (name, blank), values in zip(fill, (ids, [1] * len(ids), labels), strict=True):
            parts[name].append([*values, *[blank] * (width - len(ids))])
    return {name: torch.tensor(values, dtype=torch.int64) for name, values in parts.items()}


def _wide(logits: Tensor) -> Tensor:
    """In float32 at least."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
