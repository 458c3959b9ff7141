"""FFA-LoRA by PEFT: what is trained, its flat vector, and its plain PEFT form on disk.

FFA-LoRA (Sun et al., "Improving LoRA in privacy-preserving federated learning", ICLR 2024) freezes the LoRA matrix A at
its seeded start and trains B alone: half the noised dimensions, linear in what is noised, and the average of the
clients' adapters is exactly the adapter of the average. Trained besides B: the classification head.

The flat vector is the concatenation, row-major, float32, of the tensors in the order of `AdapterSpec.tensors`.
Tensor names are those of PEFT's own files (no adapter name, no wrapper in them).
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from ffm.errors import AdapterError
from ffm.seeded import SeededStream
from protocol.manifest import AdapterSpec, TensorSpec

_HEAD_NAMES = frozenset({"classifier", "score"})  # what PEFT itself takes for the head of a sequence classifier


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """What an owner chooses; `adapter_spec` turns it, with a base model, into the manifest's full schema."""

    rank: int
    alpha: int
    target_modules: tuple[str, ...]
    seed: int
    method: str = "ffa-lora"
    virtual_tokens: int = 0
    personal_head: bool = False


def _plain_name(name: str) -> str:
    """PEFT's in-memory parameter name -> the name in its files."""
    return (
        name.replace(".lora_A.default.", ".lora_A.")
        .replace(".lora_B.default.", ".lora_B.")
        .replace(".modules_to_save.default.", ".")
    )


def _targets(base: nn.Module, wanted: Sequence[str]) -> list[str]:
    """Full names of the Linear layers that `wanted` suffixes select, each suffix at least once."""
    linear = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    chosen: set[str] = set()
    for suffix in wanted:
        hits = [name for name in linear if name == suffix or name.endswith("." + suffix)]
        if not hits:
            raise AdapterError(
                f"no linear layer of the base model matches the target module {suffix!r}",
                found=", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear})[:12]) or "no linear layer",
                expected="a suffix of a linear layer's name",
                do="correct adapter.target_modules in the task's settings",
                code="E505",
            )
        chosen.update(hits)
    return [name for name in linear if name in chosen]


def _new_modules(base: PreTrainedModel) -> list[str]:
    """Modules whose weights no checkpoint supplies, by the last part of their name: they travel with the adapter."""
    names: set[str] = set()
    for parameter in getattr(base, "new_parameters", ()):
        parts = parameter.split(".")[:-1]
        if _HEAD_NAMES.isdisjoint(parts):  # PEFT adds the head by itself
            # BERT's `bert.pooler.dense` -> `pooler`; DistilBERT's `pre_classifier` is already the module.
            names.add(parts[-2] if len(parts) > 1 and parts[-1] == "dense" else parts[-1])
    return sorted(names)


def build(base: PreTrainedModel, settings: AdapterSettings, peft_type: str = "SEQ_CLS") -> PeftModel:
    """Wrap `base` (from `ffm.models.load_classifier`) in FFA-LoRA; B = 0, so the first logits are the base's own.

    Exactly B and the head have `requires_grad`. Move the result to its device before training hooks are attached.

    Raises:
        AdapterError: E505 if a target matches nothing or nothing would be trained.
    """
    if settings.method != "ffa-lora" or settings.personal_head or settings.virtual_tokens:
        raise AdapterError("an unknown method", found=settings.method, expected="ffa-lora", code="E505")
    if settings.rank < 1 or settings.alpha < 1:
        raise AdapterError(
            "LoRA needs a positive rank and alpha",
            found=f"rank {settings.rank}, alpha {settings.alpha}",
            expected="integers of at least 1",
            do="correct the adapter's settings",
            code="E505",
        )
    config = LoraConfig(
        task_type=TaskType(peft_type),
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=_targets(base, settings.target_modules),
        modules_to_save=_new_modules(base) or None,
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT draws A from torch's generator; it is overwritten below from the manifest's seed.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        plain = _plain_name(name)
        if ".lora_A." in name:
            parameter.requires_grad_(False)
            # Uniform within 1/sqrt(inputs), as in PEFT and in the LoRA paper's code.
            values = SeededStream(settings.seed, f"lora/{plain}").uniform(
                tuple(parameter.shape), 1.0 / math.sqrt(parameter.shape[1])
            )
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(values))
        elif ".lora_B." in name:
            parameter.requires_grad_(True)
            with torch.no_grad():
                parameter.zero_()
        else:
            saved = ".modules_to_save.default." in name
            parameter.requires_grad_(saved and not _HEAD_NAMES.isdisjoint(plain.split(".")))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise AdapterError("the adapter trains no parameter", found=0, expected="at least 1", code="E505")
    return model


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield _plain_name(name.removeprefix("_module.").replace("._module.", ".")), parameter


def adapter_spec(model: nn.Module, settings: AdapterSettings) -> AdapterSpec:
    """The manifest's schema of what `model` trains: names, shapes and order of the flat vector."""
    tensors = tuple(TensorSpec(name=name, shape=tuple(p.shape)) for name, p in _trainable(model))
    return AdapterSpec(
        method=settings.method,
        rank=settings.rank,
        alpha=settings.alpha,
        virtual_tokens=settings.virtual_tokens,
        target_modules=settings.target_modules,
        seed=settings.seed,
        tensors=tensors,
        personal=(),
    )


def build_from_spec(base: PreTrainedModel, spec: AdapterSpec, peft_type: str = "SEQ_CLS") -> PeftModel:
    """`build` for a client: refuses if what would be trained here differs from what the manifest says.

    Raises:
        AdapterError: E503 names the first tensor that differs; E505 as `build`.
    """
    settings = AdapterSettings(
        spec.rank, spec.alpha, spec.target_modules, spec.seed, spec.method, spec.virtual_tokens, bool(spec.personal)
    )
    model = build(base, settings, peft_type)
    _matched(model, spec)
    return model


def _matched(model: nn.Module, spec: AdapterSpec) -> list[nn.Parameter]:
    """The model's trainable parameters in the order of `spec`; names and shapes must agree completely."""
    here = dict(_trainable(model))
    for tensor in spec.tensors:
        found = here.get(tensor.name)
        if found is None or tuple(found.shape) != tensor.shape:
            raise AdapterError(
                f"the adapter tensor {tensor.name} is not as the manifest says",
                found="no such trainable tensor" if found is None else f"shape {tuple(found.shape)}",
                expected=f"shape {tensor.shape}",
                do="use the manifest's base model and adapter settings",
            )
    extra = here.keys() - {tensor.name for tensor in spec.tensors}
    if extra:
        raise AdapterError(
            "the adapter trains a tensor that the manifest does not name",
            found=min(extra),
            expected=f"the manifest's {len(spec.tensors)} tensors",
            do="use the manifest's base model and adapter settings",
        )
    return [here[tensor.name] for tensor in spec.tensors]


def check_vector(vector: npt.NDArray[np.float32], spec: AdapterSpec) -> None:
    """Refuse a flat vector of another length or type (E503), or with NaN or infinite values (E504)."""
    if vector.dtype != np.float32 or vector.shape != (spec.size,):
        raise AdapterError(
            "the flat adapter vector has the wrong shape",
            found=f"{vector.dtype} {vector.shape}",
            expected=f"float32 ({spec.size},)",
            do="check that every client and the server use the same manifest",
        )
    bad = int(vector.size - np.count_nonzero(np.isfinite(vector)))
    if bad:
        raise AdapterError(
            "the flat adapter vector holds values that are not finite numbers",
            found=f"{bad} of {vector.size} are NaN or infinite",
            expected="finite values only",
            do="lower the learning rate, or start again from an earlier adapter",
            code="E504",
        )


def flatten(model: nn.Module, spec: AdapterSpec) -> npt.NDArray[np.float32]:
    """Copy the trainable tensors into one float32 vector of length `spec.size`.

    Raises:
        AdapterError: E503 on other names or shapes, E504 on NaN or infinite values.
    """
    parts = [p.detach().to("cpu", torch.float32).numpy().reshape(-1) for p in _matched(model, spec)]
    vector = np.concatenate(parts)
    check_vector(vector, spec)
    return vector


def load_flat(model: nn.Module, spec: AdapterSpec, vector: npt.NDArray[np.float32]) -> None:
    """Copy `vector` into the trainable tensors; nothing is written unless everything fits. Raises as `flatten`."""
    parameters = _matched(model, spec)
    check_vector(vector, spec)
    start = 0
    with torch.no_grad():
        for parameter in parameters:
            piece = vector[start : start + parameter.numel()].reshape(tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(piece.copy()))
            start += parameter.numel()


def save_adapter(model: PeftModel, folder: Path, base_name: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` as PEFT does; no network, no embedding lookup.

    `PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=...), folder)`
    gives the same logits. `base_name` is written as the base model's name in place of this machine's path.
    """
    model.peft_config["default"].base_model_name_or_path = base_name
    # PEFT writes these two into the folder's README.md.
    base: Any = model.get_base_model()
    base.name_or_path = base_name
    base.config.name_or_path = base_name
    model.save_pretrained(str(folder), save_embedding_layers=False)
