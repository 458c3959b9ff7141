"""Training in place: the base model's own parameters, all of them or the biases alone. PEFT has neither.

What is saved is `trained.safetensors` with the names of plain transformers: whoever loads the base model and then
`load_state_dict(load_file("trained.safetensors"), strict=False)` has the same logits.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from ffm.adapters.method import AdapterSettings, Method, is_head
from ffm.errors import AdapterError

TRAINED = "trained.safetensors"


class _InPlace(Method):
    exact = True  # parameters of the model themselves

    @abstractmethod
    def trained(self, parameter: str) -> bool:
        """Whether a parameter of the base model is trained."""

    def attach(self, base: PreTrainedModel, settings: AdapterSettings, peft_type: str) -> nn.Module:
        """The base model itself; its start is its own, and what the checkpoint lacks was drawn from the seed."""
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(self.trained(name))
        _a_row_for_each_record(base)
        return base

    def save(self, model: nn.Module, folder: Path, base_name: str) -> None:
        """Trained tensors, and those that no checkpoint supplies."""
        new = set(getattr(model, "new_parameters", ()))
        tensors = {
            name: parameter.detach().cpu().contiguous()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad or name in new
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / TRAINED, {"format": "pt", "base_model": base_name, "method": self.name})

    def merged(self, model: nn.Module) -> PreTrainedModel:
        """The model as it is."""
        merged: Any = model
        return merged  # type: ignore[no-any-return]


class BitFit(_InPlace):
    """Ben Zaken et al. 2022: every bias, and the head."""

    name = "bitfit"

    def trained(self, parameter: str) -> bool:
        """Biases and the head."""
        return parameter.rsplit(".", 1)[-1] == "bias" or is_head(parameter)

    def attach(self, base: PreTrainedModel, settings: AdapterSettings, peft_type: str) -> nn.Module:
        """Raises AdapterError E505 for a base model without biases, such as Llama's."""
        if not any(name.endswith("bias") and not is_head(name) for name, _ in base.named_parameters()):
            raise AdapterError(
                "bitfit trains biases, and the base model has none",
                found=type(base).__name__,
                expected="a model with biases, such as BERT",
                do="choose another method, such as ffa-lora",
                code="E505",
            )
        return super().attach(base, settings, peft_type)


class Full(_InPlace):
    """Every parameter. Under DP the noise grows with their number; it is here as a comparison, and for small models."""

    name = "full"

    def trained(self, parameter: str) -> bool:
        """All."""
        return True


def _a_row_for_each_record(model: nn.Module) -> None:
    """Look embeddings up once for each record: BERT and GPT-2 look up position ids of shape (1, tokens) once for the
    batch, which gives one gradient for all records together. The values are the same."""
    records = [1]

    def count(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(ids, torch.Tensor):
            records[0] = ids.shape[0]

    def expand(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        ids = args[0]
        return (ids.expand(records[0], *ids.shape[1:]), *args[1:]) if ids.shape[0] == 1 else args

    model.register_forward_pre_hook(count, with_kwargs=True)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            module.register_forward_pre_hook(expand)
