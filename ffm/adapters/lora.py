"""Low-rank adaptation by PEFT: W + (alpha / rank) B A with a matrix A, drawn from the seed, and a matrix B of zeros.

- FFA-LoRA (Sun et al., "Improving LoRA in privacy-preserving federated learning", ICLR 2024) freezes A at its start and
  trains B alone: half the noised dimensions, linear in what is noised, and the average of the clients' adapters is
  exactly the adapter of the average.
- LoRA (Hu et al. 2021) trains both. The average of products is not the product of averages: inexact under summation.
- RoLoRA (Chen et al. 2024, "Robust federated finetuning of LLMs via alternating optimization of LoRA") trains both in
  turn, B in odd rounds and A in even ones. What stands still is the same everywhere, so each round's average is exact.
- FedSA-LoRA (Guo et al., "Selective aggregation for low-rank adaptation in federated learning", ICLR 2025) trains both,
  shares A and leaves B with its client.

Trained besides, in all of them: the classification head.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from ffm.adapters.method import AdapterSettings, Method, is_head, new_modules, start_uniform, targets
from ffm.errors import AdapterError
from protocol.manifest import Manifest


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

    def factors(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """(outputs, rank) and (rank, inputs) of every adapted layer."""
        layers: dict[str, Any] = {
            name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)
        }
        return {
            name.removeprefix("base_model.model."): (
                layer.lora_B["default"].weight.detach() * layer.scaling["default"],
                layer.lora_A["default"].weight.detach(),
            )
            for name, layer in layers.items()
        }

    def merged(self, model: nn.Module) -> PreTrainedModel:
        """B A added to the weights."""
        wrapped: Any = model
        merged: PreTrainedModel = wrapped.merge_and_unload()
        return merged


class Lora(FfaLora):
    """A and B, both shared."""

    name = "lora"
    exact = False
    trains_a = True


class RoLora(Lora):
    """A and B in turn. While B is still zero A has no gradient, so B begins."""

    name = "rolora"
    exact = True

    def moves(self, tensor: str, round_: int) -> bool:
        """B and the head in odd rounds, A in even ones."""
        return (".lora_A." in tensor) == (round_ % 2 == 0)

    def refuse(self, manifest: Manifest) -> None:
        """Moments of the server's optimizer, and noise that a rotation spreads, would move what is to stand still."""
        if manifest.rotated:
            raise AdapterError(
                "rolora takes no rotation: it would spread the noise over the half that stands still",
                found='aggregation.rotation = "hadamard"',
                expected="no rotation",
                do="use slots of 32 bits, or choose another method",
                code="E507",
            )
        if manifest.training.server.optimizer != "fedavg":
            raise AdapterError(
                "rolora needs a server step without moments: they would move the half that stands still",
                found=manifest.training.server.optimizer,
                expected="fedavg",
                do='set server.optimizer = "fedavg", or choose another method',
                code="E507",
            )


class FedSaLora(Lora):
    """A is shared, B never leaves its client."""

    name = "fedsa-lora"

    def stays(self, tensor: str) -> bool:
        """B."""
        return ".lora_B." in tensor
