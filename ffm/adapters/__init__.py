"""What is trained of a model: built from a manifest, flattened into one vector, written to disk.

The flat vector is the concatenation, row-major, float32, of the tensors in the order of `AdapterSpec.tensors`; tensors
of `AdapterSpec.personal` are trained beside them and never leave their client. Names are those of the saved file.
"""

import shutil
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from ffm.adapters.aggregation import AggregationError, LayerError, aggregation_error, exact_under_summation
from ffm.adapters.flat import (
    Vector,
    check_same,
    check_vector,
    flatten,
    flatten_personal,
    load_flat,
    load_personal,
    only_moving,
    trainable,
)
from ffm.adapters.method import AdapterSettings, Method, is_head
from ffm.adapters.registry import METHODS, find
from ffm.errors import AdapterError
from ffm.models import loaded_files
from protocol.manifest import AdapterSpec, Manifest, TensorSpec

__all__ = [
    "METHODS",
    "AdapterSettings",
    "AggregationError",
    "LayerError",
    "Method",
    "Vector",
    "adapter_spec",
    "aggregation_error",
    "build",
    "build_from_spec",
    "check_vector",
    "exact_under_summation",
    "find",
    "flatten",
    "flatten_personal",
    "load_flat",
    "load_personal",
    "merge",
    "only_moving",
    "refuse",
    "save_adapter",
]


def build(base: PreTrainedModel, settings: AdapterSettings, peft_type: str = "SEQ_CLS") -> nn.Module:
    """Attach the adapter of `settings` to `base` (as `Task.load` gives it). What is trained requires a gradient.

    Move the result to its device before training hooks are attached.

    Raises:
        AdapterError: E505 if settings and method do not fit, a target matches nothing or nothing would be trained.
    """
    method = find(settings.method)
    _check_settings(method, settings)
    model = method.attach(base, settings, peft_type)
    names = trainable(model, method)
    if not names:
        raise AdapterError("the adapter trains no parameter", found=0, expected="at least 1", code="E505")
    if settings.personal_head and not any(is_head(name) for name in names):
        raise AdapterError(
            "there is no head to be personal",
            found=f"{peft_type} without a trained head",
            expected="a classifier",
            do="leave personal_head away",
            code="E505",
        )
    return model


def _check_settings(method: Method, settings: AdapterSettings) -> None:
    for key in ("rank", "alpha", "virtual_tokens", "target_modules"):
        value, used = getattr(settings, key), key in method.uses
        if used and not value:
            raise AdapterError(
                f"{method.name} needs {key}",
                found=value,
                expected="at least one" if key == "target_modules" else "an integer of at least 1",
                do="correct the adapter's settings",
                code="E505",
            )
        if value and not used:
            raise AdapterError(
                f"{method.name} has no {key}",
                found=value,
                expected="none",
                do=f"leave {key} away, or choose another method",
                code="E505",
            )


def _personal(method: Method, tensor: str, settings: AdapterSettings) -> bool:
    return method.stays(tensor) or (settings.personal_head and is_head(tensor))


def adapter_spec(model: nn.Module, settings: AdapterSettings) -> AdapterSpec:
    """The manifest's schema of what `model` trains: names, shapes and order of the flat vector."""
    method = find(settings.method)
    shared: list[TensorSpec] = []
    personal: list[TensorSpec] = []
    for name, parameter in trainable(model, method).items():
        tensor = TensorSpec(name=name, shape=tuple(parameter.shape))
        (personal if _personal(method, name, settings) else shared).append(tensor)
    return AdapterSpec(
        method=settings.method,
        rank=settings.rank,
        alpha=settings.alpha,
        virtual_tokens=settings.virtual_tokens,
        target_modules=settings.target_modules,
        seed=settings.seed,
        tensors=tuple(shared),
        personal=tuple(personal),
    )


def build_from_spec(base: PreTrainedModel, spec: AdapterSpec, peft_type: str = "SEQ_CLS") -> nn.Module:
    """`build` for a client: refuses if what would be trained here differs from what the manifest says.

    Raises:
        AdapterError: E503 names the first tensor that differs; E505 as `build`.
    """
    personal_head = any(is_head(tensor.name) for tensor in spec.personal)
    settings = AdapterSettings(
        spec.rank, spec.alpha, spec.target_modules, spec.seed, spec.method, spec.virtual_tokens, personal_head
    )
    model = build(base, settings, peft_type)
    check_same(model, spec)
    _check_personal(adapter_spec(model, settings), spec)
    return model


def _check_personal(here: AdapterSpec, spec: AdapterSpec) -> None:
    """A tensor that the method keeps at the client must not be among the shared ones, nor the other way round."""
    differs = {t.name for t in here.personal} ^ {t.name for t in spec.personal}
    if differs:
        name = min(differs)
        raise AdapterError(
            f"the adapter tensor {name} is shared where it should be personal, or the other way round",
            found="shared" if name in {t.name for t in spec.tensors} else "personal",
            expected=f"as the method {spec.method} has it",
            do="ask the owner for a manifest that this version of secagg made",
        )


def refuse(manifest: Manifest) -> None:
    """Raise AdapterError E507 where the method cannot run under the rest of the manifest, with the reason."""
    find(manifest.adapter.method).refuse(manifest)


def save_adapter(model: nn.Module, spec: AdapterSpec, folder: Path, base_name: str) -> None:
    """Write the adapter in its method's plain form; no network. With PEFT,

    `PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=...), folder)`
    gives the same logits. `base_name` is written as the base model's name in place of this machine's path.
    """
    find(spec.method).save(model, folder, base_name)


def merge(model: nn.Module, spec: AdapterSpec, folder: Path, base_model: Path) -> None:
    """Write base model and adapter as one model in plain transformers: safetensors, config, and the tokenizer's files
    of `base_model` as they are. Uses `model` up.

    The folder is a base model like any other, so one phase's result is the next phase's start. Dropout rates are
    written as they were trained with: 0.

    Raises:
        AdapterError: E508 if the method has no merged form.
    """
    merged = find(spec.method).merged(model)
    merged.name_or_path = merged.config.name_or_path = folder.name  # no path of this machine
    merged.save_pretrained(str(folder))
    for name in loaded_files(base_model):
        if not (folder / name).exists() and not name.startswith("model"):
            shutil.copyfile(base_model / name, folder / name)
