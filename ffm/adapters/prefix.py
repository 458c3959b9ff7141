"""Prefix tuning (Li and Liang 2021) by PEFT: trained keys and values that every layer attends to before the text.

The vector is what the layers see, with no network in between, so averages are exact. PEFT's prompt tuning is another
matter: it gives no gradient per record (`ffm.adapters.prompt` does).
"""

import math
import warnings

import torch
from peft import PrefixTuningConfig, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from ffm.adapters.lora import PeftMethod
from ffm.adapters.method import AdapterSettings, is_head, new_modules, start_uniform
from ffm.errors import AdapterError

_PARAMETER, _FILE = "prompt_encoder.default.embedding.weight", "prompt_embeddings"
_DEVIATION = 0.02


class Prefix(PeftMethod):
    """Keys and values of `virtual_tokens` positions, and the classification head."""

    name = "prefix"
    uses = ("virtual_tokens",)
    exact = True

    def attach(self, base: PreTrainedModel, settings: AdapterSettings, peft_type: str) -> nn.Module:
        """One matrix (virtual tokens, 2 · layers · width)."""
        config = PrefixTuningConfig(
            task_type=TaskType(peft_type),
            num_virtual_tokens=settings.virtual_tokens,
            modules_to_save=new_modules(base) or None,
        )
        probe = next(base.parameters()).new_zeros((1, 2), dtype=torch.long)
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.no_grad():
                warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
                model: nn.Module = get_peft_model(base, config)
                model(input_ids=probe, attention_mask=torch.ones_like(probe))
        except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
            raise AdapterError(
                "the base model takes no prefix",
                found=f"{type(base).__name__}: {type(error).__name__}",
                expected="a model that attends to past keys and values",
                do="choose another method, such as ffa-lora",
                code="E505",
            ) from error
        for name, parameter in model.named_parameters():
            if name == _PARAMETER:
                parameter.requires_grad_(True)
                start_uniform(parameter, settings.seed, f"prefix/{_FILE}", math.sqrt(3.0) * _DEVIATION)
            else:
                parameter.requires_grad_(".modules_to_save.default." in name and is_head(name))
        return model

    def plain_name(self, parameter: str) -> str:
        """As in PEFT's file."""
        return _FILE if parameter == _PARAMETER else super().plain_name(parameter)

    def merged(self, model: nn.Module) -> PreTrainedModel:
        """There is none."""
        raise AdapterError(
            "a prefix cannot be merged: it is attended to, and no weight of the base model stands for it",
            found=self.name,
            expected="a LoRA method, bitfit or full",
            do="keep the adapter's folder beside the base model",
            code="E508",
        )
