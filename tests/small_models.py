"""A BERT of 8 dimensions and a Llama of 16 with real tokenizers: base models like any other, and quick."""

import shutil
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from ffm import models

LLAMA_POSITIONS = 64


def save_tiny_bert(folder: Path) -> Path:
    """An encoder without a head, far from degenerate, in `folder`."""
    config = BertConfig(
        vocab_size=30522,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        initializer_range=0.4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        BertForSequenceClassification(config).bert.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(models.locate("bert-tiny") / name, folder / name)
    return folder


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
