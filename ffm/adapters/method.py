"""What a method of adaptation is: the one interface behind which everything else is the same for all of them.

`adapter.method` of a manifest is a word of `ffm.adapters.registry`. A method says how the adapter sits in a base model,
which of its tensors stay with the client, which of them move in a round, and what it looks like on disk. Flat vectors,
specs and refusals are those of `ffm.adapters`; clipping, noise and masks never see a method.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ffm.errors import AdapterError
from ffm.seeded import SeededStream
from protocol.manifest import Manifest

HEADS: Final = frozenset({"classifier", "score"})  # what PEFT itself takes for the head of a sequence classifier


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """What an owner chooses; `adapter_spec` turns it, with a base model, into the manifest's full schema."""

    rank: int
    alpha: int
    target_modules: tuple[str, ...]
    seed: int
    method: str = "ffa-lora"
    virtual_tokens: int = 0
    personal_head: bool = False


class Method(ABC):
    """A method of adaptation. Subclasses override what is not so for them; an object holds no state."""

    name: str
    uses: tuple[str, ...] = ()  # settings that it takes besides seed and personal_head; the others must be 0 or empty
    exact: bool  # the mean of the clients' vectors is the mean of their models: effective weights are linear in it

    @abstractmethod
    def attach(self, base: PreTrainedModel, settings: AdapterSettings, peft_type: str) -> nn.Module:
        """`base` with its adapter: exactly the trained parameters require a gradient, all start values from the seed.

        Deterministic on every machine, and called like the base: `model(input_ids=, attention_mask=).logits`. Raises
        AdapterError E505 for a base model that the method does not fit.
        """

    def plain_name(self, parameter: str) -> str:
        """Name of a parameter of the attached model, as in manifests and in the saved file."""
        return parameter

    def stays(self, tensor: str) -> bool:
        """Whether the tensor is personal: trained at each client and never sent."""
        return False

    def moves(self, tensor: str, round_: int) -> bool:
        """Whether the tensor is trained in round `round_` >= 1; what is not has an update of exactly zero."""
        return True

    def refuse(self, manifest: Manifest) -> None:  # noqa: B027 - a hook: most methods refuse nothing
        """Raise AdapterError E507 for a manifest under which the method would not be what its name says."""

    def factors(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """By layer the matrices B (scaled) and A whose product changes the layer's weight; none where nothing is
        multiplied."""
        return {}

    @abstractmethod
    def save(self, model: nn.Module, folder: Path, base_name: str) -> None:
        """Write the adapter as PEFT does, or in transformers' names where PEFT has no such method. No network,
        no path of this machine in it."""

    @abstractmethod
    def merged(self, model: nn.Module) -> PreTrainedModel:
        """A plain transformers model with the same logits; `model` is used up. Raises AdapterError E508 if there is
        none."""


def is_head(tensor: str) -> bool:
    """Whether a tensor belongs to the head of a classifier."""
    return not HEADS.isdisjoint(tensor.split("."))


def new_modules(base: nn.Module) -> list[str]:
    """Modules whose weights no checkpoint supplies, by the last part of their name: they travel with the adapter."""
    names: set[str] = set()
    for parameter in getattr(base, "new_parameters", ()):
        parts = parameter.split(".")[:-1]
        if HEADS.isdisjoint(parts):  # PEFT adds the head by itself
            # BERT's `bert.pooler.dense` -> `pooler`; DistilBERT's `pre_classifier` is already the module.
            names.add(parts[-2] if len(parts) > 1 and parts[-1] == "dense" else parts[-1])
    return sorted(names)


def start_uniform(parameter: nn.Parameter, seed: int, label: str, bound: float) -> None:
    """Fill in place, uniform in (-bound, bound), the same on every machine."""
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(SeededStream(seed, label).uniform(tuple(parameter.shape), bound)))


def targets(base: nn.Module, wanted: Sequence[str]) -> list[str]:
    """Full names of the Linear layers that `wanted` suffixes select, each suffix at least once. Raises E505."""
    linear = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    chosen: set[str] = set()
    for suffix in wanted:
        hits = [name for name in linear if name == suffix or name.endswith("." + suffix)]
        if not hits:
            raise AdapterError(
                f"no linear layer of the base model matches the target module {suffix!r}",
                found=", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear})[:12]) or "no linear layer",
                expected="a suffix of a linear layer's name",
                do="correct adapter.target_modules in the task's settings",
                code="E505",
            )
        chosen.update(hits)
    return [name for name in linear if name in chosen]
