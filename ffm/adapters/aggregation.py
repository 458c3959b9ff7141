"""What averaging does to an adapter: ‖mean(B A) − mean(B) mean(A)‖, layer by layer.

The server averages matrices; what the clients trained is their product. Where a method is `exact` the two agree up to
rounding. It takes the clients' single adapters, so only a simulation can measure it: no real server sees one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot

import numpy as np
import torch
from torch import Tensor, nn

from ffm.adapters.flat import Vector, load_flat, load_personal
from ffm.adapters.registry import find
from protocol.manifest import AdapterSpec, Manifest


@dataclass(frozen=True, slots=True)
class LayerError:
    """Frobenius norms of one layer."""

    layer: str
    error: float  # ‖mean(B A) − mean(B) mean(A)‖
    mean: float  # ‖mean(B A)‖

    @property
    def relative(self) -> float:
        """Of the mean change that the clients made; 0 where they made none."""
        return self.error / self.mean if self.mean else 0.0


@dataclass(frozen=True, slots=True)
class AggregationError:
    """All layers; none of them for a method that multiplies nothing."""

    layers: tuple[LayerError, ...]

    @property
    def total(self) -> LayerError:
        """All layers as one long vector."""
        return LayerError("all", hypot(*(x.error for x in self.layers)), hypot(*(x.mean for x in self.layers)))


def exact_under_summation(manifest: Manifest) -> bool:
    """Whether the aggregate is the model that the mean of the clients' models would be: a property of the method, and
    of R2, whose clients sum gradients at one common point and have no adapters of their own to average."""
    return manifest.privacy.protocol == "R2" or find(manifest.adapter.method).exact


def aggregation_error(
    model: nn.Module, spec: AdapterSpec, clients: Sequence[tuple[Vector, Vector]]
) -> AggregationError:
    """`clients`: flat vectors of shared and personal tensors after local training. Leaves `model` at the last one."""
    method = find(spec.method)
    products: dict[str, Tensor] = {}
    left: dict[str, Tensor] = {}
    right: dict[str, Tensor] = {}
    for shared, personal in clients:
        load_flat(model, spec, shared)
        load_personal(model, spec, personal)
        for name, (b, a) in method.factors(model).items():
            b, a = b.double() / len(clients), a.double()
            products[name] = products.get(name, torch.zeros(())) + b @ a
            left[name] = left.get(name, torch.zeros(())) + b
            right[name] = right.get(name, torch.zeros(())) + a / len(clients)

    def norm(value: Tensor) -> float:
        return float(np.linalg.norm(value.cpu().numpy()))

    return AggregationError(
        tuple(LayerError(name, norm(x - left[name] @ right[name]), norm(x)) for name, x in products.items())
    )
