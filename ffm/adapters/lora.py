"""Low-rank adaptation by PEFT: W + (alpha / rank) B A with a matrix A, drawn from the seed, and a matrix B of zeros.

FFA-LoRA (Sun et al., "Improving LoRA in privacy-preserving federated learning", ICLR 2024) freezes A at its start and
trains B alone: half the noised dimensions, linear in what is noised, and the average of the clients' adapters is
exactly the adapter of the average. Trained besides: the classification head.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from ffm.adapters.method import AdapterSettings, Method, is_head, new_modules, start_uniform, targets


class PeftMethod(Method):
    """What PEFT has: its wrapper, its names, its files."""

    def plain_name(self, parameter: str) -> str:
        """PEFT's in-memory name -> the name in its files: no adapter name, no wrapper in it."""
        return (
            parameter.replace(".lora_A.default.", ".lora_A.")
            .replace(".lora_B.default.", ".lora_B.")
            .replace(".modules_to_save.default.", ".")
        )

    def save(self, model: nn.Module, folder: Path, base_name: str) -> None:
        """`adapter_model.safetensors` and `adapter_config.json`; no embedding lookup at the hub."""
        wrapped: Any = model
        wrapped.peft_config["default"].base_model_name_or_path = base_name
        # PEFT writes these two into the folder's README.md.
        base = wrapped.get_base_model()
        base.name_or_path = base_name
        base.config.name_or_path = base_name
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)


class FfaLora(PeftMethod):
    """B and the head; A stays at its start."""

    name = "ffa-lora"
    uses = ("rank", "alpha", "target_modules")
    exact = True
    trains_a = False

    def attach(self, base: PreTrainedModel, settings: AdapterSettings, peft_type: str) -> nn.Module:
        """B = 0, so the first logits are the base's own."""
        config = LoraConfig(
            task_type=TaskType(peft_type),
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=targets(base, settings.target_modules),
            modules_to_save=new_modules(base) or None,
            lora_dropout=0.0,
            bias="none",
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT draws A from torch's generator; it is overwritten below from the manifest's seed.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            model = get_peft_model(base, config)
        for name, parameter in model.named_parameters():
            plain = self.plain_name(name)
            if ".lora_A." in name:
                parameter.requires_grad_(self.trains_a)
                # Uniform within 1/sqrt(inputs), as in PEFT and in the LoRA paper's code.
                start_uniform(parameter, settings.seed, f"lora/{plain}", 1.0 / math.sqrt(parameter.shape[1]))
            elif ".lora_B." in name:
                parameter.requires_grad_(True)
                with torch.no_grad():
                    parameter.zero_()
            else:
                parameter.requires_grad_(".modules_to_save.default." in name and is_head(plain))
        return model

    def merged(self, model: nn.Module) -> PreTrainedModel:
        """B A added to the weights."""
        wrapped: Any = model
        merged: PreTrainedModel = wrapped.merge_and_unload()
        return merged
