"""Packaged weights in GGUF -> a folder of safetensors that everything else loads; made once for each user.

The conversion adds nothing up and draws nothing: every value is dequantised by one multiplication and one addition in
float32 and rounded to bfloat16, so the weights are the same bits on every machine. The tokenizer's file is written by
the library `tokenizers`, whose version `constraints/` pins; config and template are written here, with sorted keys and
without the name of a version or a path. A manifest pins the digests of the results like those of any base model: a
machine whose conversion differs is refused (E501) before it trains.
"""

import contextlib
import fcntl
import importlib.util
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ffm.errors import ModelError

_FORM: Final = 1  # of the converted files; raised when what is written changes
_CONFIG: Final = (
    "attention_bias",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "vocab_size",
)


def cache_folder() -> Path:
    """Where this user's converted models lie."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "secagg" / "models"


def converted(name: str, source: Path) -> Path:
    """The folder with the safetensors form of the GGUF file `source`; converted by the first call.

    Processes wait for one another; a folder is there as a whole or not at all.

    Raises:
        ModelError: E502 without the library `gguf`, E506 if the file is no such model or the cache cannot be written.
    """
    target = cache_folder() / f"{name}-{_FORM}"
    if target.is_dir():
        return target
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            "the library that reads GGUF files is not installed",
            found="no module gguf",
            expected="gguf",
            do="pip install --no-deps gguf==0.19.0",
            code="E502",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock")):
            if not target.is_dir():  # another process may have been first
                _convert_into(target, source)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            "the packaged weights cannot be converted",
            found=f"{type(error).__name__} while converting {source.name}",
            expected="a GGUF file of a Llama, and room for it in the cache folder",
            do=f"make {cache_folder()} writable (or set XDG_CACHE_HOME), and install the package again",
        ) from error
    return target


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released with the file, also by a crash
        yield


def _convert_into(target: Path, source: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars that no switch turns off
            _write_weights(work, source)
            _write_tokenizer(work, source)
        work.chmod(0o755)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_weights(folder: Path, source: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(source.parent), gguf_file=source.name, dtype=torch.float32, local_files_only=True
        )
    tied = model.config.tie_word_embeddings
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = model.config.to_dict()
    _write_json(
        folder / "config.json",
        {"architectures": [type(model).__name__], "dtype": "bfloat16", **{key: found[key] for key in _CONFIG}},
    )


def _write_tokenizer(folder: Path, source: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name, local_files_only=True)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": tokenizer.chat_template, **special},
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n", encoding="utf-8")
