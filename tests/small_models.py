"""A BERT of 8 dimensions with the real tokenizer: a base model like any other, and quick."""

import shutil
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from ffm import models


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
