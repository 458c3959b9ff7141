"""A BERT of 8 dimensions and a Llama of 16 with real tokenizers: base models like any other, and quick."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from ffm import models
from ffm.task import TaskSettings

LLAMA_POSITIONS = 64


def _save_bert(folder: Path, build: Callable[[BertConfig], PreTrainedModel], **more: float) -> Path:
    config = BertConfig(
        vocab_size=30522,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        **more,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        build(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(models.locate("bert-tiny") / name, folder / name)
    return folder


def save_tiny_bert(folder: Path) -> Path:
    """An encoder without a head, far from degenerate, in `folder`."""
    return _save_bert(folder, lambda config: BertForSequenceClassification(config).bert, initializer_range=0.4)


def save_tiny_masked_bert(folder: Path) -> Path:
    """An encoder with its masked-language head, in `folder`; the same at each call."""
    return _save_bert(folder, BertForMaskedLM)


def save_tiny_llama(folder: Path) -> Path:
    """A random causal language model with the tokenizer of SmolLM2, in `folder`; the same at each call."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=LLAMA_POSITIONS,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(models.locate("smollm2") / name, folder / name)
    return folder


def language_settings(folder: Path, learns: str = "causal-lm", **model: Any) -> TaskSettings:
    """Four clients who train a soft prompt on a base model in `folder`, under R1; `model` changes its section."""
    section = {
        "base_model": str(folder),
        "method": "prompt",
        "virtual_tokens": 4,
        "max_length": 24,
        "optimizer": "sgd",
        "learning_rate": "0.1",
        "rounds": 2,
        "local_steps": 2,
        "expected_batch": 4,
        "sampling": "1/2",
        "scale": 65536,
        "clip_steps": 65536,
        "noise_steps": 262144,
        "aggregation_scale": 65536,
        "aggregation_bound": 131072,
    }
    return TaskSettings.model_validate(
        {
            "task": "small-language-task",
            "learns": learns,
            "labels": ("no", "yes") if learns == "sequence-classification" else (),
            "adapter_seed": 7,
            "data": {"source": "sites", "description": "a few texts"},
            "privacy": {"protocol": "R1", "epsilon": "8", "delta": "0.00001", "max_records": 1000, "spare_rounds": 0},
            "aggregation": {
                "num_clients": 4,
                "max_corrupt": 1,
                "max_dropouts": 1,
                "min_cohort": 3,
                "slots_per_word": 3,
                "chunk_words": 1024,
            },
            "models": {"small": {**section, **model}},
        }
    )
