"""Prompt tuning (Lester et al. 2021): trained embeddings that stand before the text; the base model is frozen.

PEFT has the same and loads what is saved here. But it looks the prompt up once for a whole batch and repeats the
result, so that Opacus sees one gradient for all records together. `SoftPrompt` looks it up once for each record: the
same values, and a gradient of each record's own.
"""

from pathlib import Path
from typing import Any

import torch
from peft import PromptTuningConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ffm.adapters.method import AdapterSettings, Method, is_head, new_modules
from ffm.errors import AdapterError
from ffm.seeded import SeededStream

_PARAMETER, _FILE = "prompt.weight", "prompt_embeddings"


class SoftPrompt(nn.Module):
    """A base model that reads a prompt of embeddings before each text, called like the base model itself.

    Logits of a language model begin with those of the virtual tokens, as PEFT's do.
    """

    def __init__(self, base: PreTrainedModel, start: Tensor, peft_type: str) -> None:
        super().__init__()
        self.base_model = base  # PEFT's name: parameters have the names of its files
        self.peft_type = peft_type
        self.prompt = nn.Embedding(start.shape[0], start.shape[1], _weight=start)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """(records, tokens) each."""
        places = torch.arange(self.prompt.num_embeddings, device=input_ids.device)
        # Contiguous, one row for each record: what Opacus takes in all its modes.
        prompt = self.prompt(places.expand(len(input_ids), -1).contiguous())
        embedded = torch.cat([prompt, self.get_input_embeddings()(input_ids).to(prompt.dtype)], dim=1)
        mask = torch.cat([attention_mask.new_ones(prompt.shape[:2]), attention_mask], dim=1)
        return self.base_model(inputs_embeds=embedded, attention_mask=mask)

    def get_input_embeddings(self) -> Any:
        """Of the text."""
        return self.base_model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The language-model head, if there is one."""
        base: Any = self.base_model
        return base.get_output_embeddings()


class Prompt(Method):
    """`virtual_tokens` embeddings, and the head of a classifier."""

    name = "prompt"
    uses = ("virtual_tokens",)
    exact = True

    def attach(self, base: PreTrainedModel, settings: AdapterSettings, peft_type: str) -> nn.Module:
        """Starts at the embeddings of words that the seed draws."""
        _refuse_reading_padding(base)
        embeddings: Any = base.get_input_embeddings()
        words = embeddings.weight.detach()
        stream = SeededStream(settings.seed, f"prompt/{_FILE}")
        start = words[[stream.below(len(words)) for _ in range(settings.virtual_tokens)]].clone()
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(is_head(name))
        return SoftPrompt(base, start, peft_type)

    def plain_name(self, parameter: str) -> str:
        """As in PEFT's file."""
        return _FILE if parameter == _PARAMETER else parameter

    def save(self, model: nn.Module, folder: Path, base_name: str) -> None:
        """PEFT's two files: the prompt, and what no checkpoint supplies."""
        prompted: Any = model
        base: Any = prompted.base_model
        config = PromptTuningConfig(
            task_type=TaskType(prompted.peft_type),
            num_virtual_tokens=prompted.prompt.num_embeddings,
            token_dim=prompted.prompt.embedding_dim,
            num_transformer_submodules=1,
            num_attention_heads=base.config.num_attention_heads,
            num_layers=base.config.num_hidden_layers,
            modules_to_save=new_modules(base) or None,
            base_model_name_or_path=base_name,
            inference_mode=True,
        )
        new = {f"base_model.{name}" for name in getattr(base, "new_parameters", ())}
        tensors = {
            self.plain_name(name): parameter.detach().cpu().contiguous()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad or name in new
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        config.save_pretrained(str(folder))

    def merged(self, model: nn.Module) -> PreTrainedModel:
        """There is none."""
        raise AdapterError(
            "a prompt cannot be merged: it is read before the text, and no weight of the base model stands for it",
            found=self.name,
            expected="a LoRA method, bitfit or full",
            do="keep the adapter's folder beside the base model",
            code="E508",
        )


def _refuse_reading_padding(base: PreTrainedModel) -> None:
    """A decoder with a classification head reads its last position. Given embeddings in place of tokens, it cannot tell
    the text's last token from padding, and its answer for one record would depend on the length of the others."""
    device = next(base.parameters()).device
    ids = torch.tensor([[5, 6, 7]], device=device)
    embeddings: Any = base.get_input_embeddings()
    embedded = embeddings(ids)
    mask = torch.ones_like(ids)
    mask[0, 2] = 0
    with torch.no_grad():
        padded = base(inputs_embeds=embedded, attention_mask=mask).logits
        alone = base(inputs_embeds=embedded[:, :2], attention_mask=mask[:, :2]).logits
    if padded.ndim == 3:
        padded = padded[:, :2]
    if not torch.allclose(padded, alone, atol=1e-3, rtol=1e-3):
        raise AdapterError(
            "behind a soft prompt the base model's answer depends on padding",
            found=type(base).__name__,
            expected="an encoder with a classification head, or a language model",
            do="choose another method, such as ffa-lora, or the task instruction-tuning",
            code="E505",
        )
