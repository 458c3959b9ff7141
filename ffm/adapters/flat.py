"""The flat vector: row-major float32 concatenation of the tensors that a manifest names, in its order.

There are two of them: of the shared tensors, which is what travels, and of the personal ones, which stays.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ffm.adapters.method import Method
from ffm.adapters.registry import find
from ffm.errors import AdapterError
from protocol.manifest import AdapterSpec, TensorSpec

Vector = np.ndarray[Any, np.dtype[np.float32]]


def named(model: nn.Module, method: Method) -> dict[str, nn.Parameter]:
    """All parameters by their name in the manifest, in the order of the model."""
    return {
        method.plain_name(name.removeprefix("_module.").replace("._module.", ".")): parameter
        for name, parameter in model.named_parameters()
    }


def trainable(model: nn.Module, method: Method) -> dict[str, nn.Parameter]:
    """Those that require a gradient."""
    return {name: parameter for name, parameter in named(model, method).items() if parameter.requires_grad}


def check_same(model: nn.Module, spec: AdapterSpec) -> None:
    """Refuse (E503) a model that trains other tensors than the manifest names, or in another order."""
    here = trainable(model, find(spec.method))
    named = {tensor.name for tensor in (*spec.tensors, *spec.personal)}
    extra = here.keys() - named
    _matched(here, (*spec.tensors, *spec.personal))
    if extra:
        raise AdapterError(
            "the adapter trains a tensor that the manifest does not name",
            found=min(extra),
            expected=f"the manifest's {len(named)} tensors",
            do="use the manifest's base model and adapter settings",
        )
    for tensors in (spec.tensors, spec.personal):
        wanted = {tensor.name for tensor in tensors}
        order = [name for name in here if name in wanted]
        for tensor, name in zip(tensors, order, strict=True):
            if tensor.name != name:
                raise AdapterError(
                    "the manifest names the tensors in another order than the model has them",
                    found=tensor.name,
                    expected=name,
                    do="ask the owner for a manifest that this version of secagg made",
                )


def _matched(here: dict[str, nn.Parameter], tensors: Sequence[TensorSpec]) -> list[nn.Parameter]:
    for tensor in tensors:
        found = here.get(tensor.name)
        if found is None or tuple(found.shape) != tensor.shape:
            raise AdapterError(
                f"the adapter tensor {tensor.name} is not as the manifest says",
                found="no such trainable tensor" if found is None else f"shape {tuple(found.shape)}",
                expected=f"shape {tensor.shape}",
                do="use the manifest's base model and adapter settings",
            )
    return [here[tensor.name] for tensor in tensors]


def check_vector(vector: npt.NDArray[np.float32], spec: AdapterSpec) -> None:
    """Refuse a flat vector of another length or type (E503), or with NaN or infinite values (E504)."""
    _check(vector, spec.size)


def _check(vector: npt.NDArray[np.float32], size: int) -> None:
    if vector.dtype != np.float32 or vector.shape != (size,):
        raise AdapterError(
            "the flat adapter vector has the wrong shape",
            found=f"{vector.dtype} {vector.shape}",
            expected=f"float32 ({size},)",
            do="check that every client and the server use the same manifest",
        )
    bad = int(vector.size - np.count_nonzero(np.isfinite(vector)))
    if bad:
        raise AdapterError(
            "the flat adapter vector holds values that are not finite numbers",
            found=f"{bad} of {vector.size} are NaN or infinite",
            expected="finite values only",
            do="lower the learning rate, or start again from an earlier adapter",
            code="E504",
        )


def flatten(model: nn.Module, spec: AdapterSpec) -> Vector:
    """Copy the shared tensors into one float32 vector of length `spec.size`.

    Raises:
        AdapterError: E503 on other names or shapes, E504 on NaN or infinite values.
    """
    return _read(model, spec, spec.tensors)


def load_flat(model: nn.Module, spec: AdapterSpec, vector: npt.NDArray[np.float32]) -> None:
    """Copy `vector` into the shared tensors; nothing is written unless everything fits. Raises as `flatten`."""
    _write(model, spec, spec.tensors, vector)


def flatten_personal(model: nn.Module, spec: AdapterSpec) -> Vector:
    """Copy the personal tensors, of which there may be none. Raises as `flatten`."""
    return _read(model, spec, spec.personal)


def load_personal(model: nn.Module, spec: AdapterSpec, vector: npt.NDArray[np.float32]) -> None:
    """Copy `vector` into the personal tensors. Raises as `flatten`."""
    _write(model, spec, spec.personal, vector)


def _read(model: nn.Module, spec: AdapterSpec, tensors: Sequence[TensorSpec]) -> Vector:
    parameters = _matched(named(model, find(spec.method)), tensors)
    parts = [p.detach().to("cpu", torch.float32).numpy().reshape(-1) for p in parameters]
    vector: Vector = np.concatenate([np.empty(0, np.float32), *parts])
    _check(vector, _size(tensors))
    return vector


def _write(model: nn.Module, spec: AdapterSpec, tensors: Sequence[TensorSpec], vector: Vector) -> None:
    parameters = _matched(named(model, find(spec.method)), tensors)
    _check(vector, _size(tensors))
    start = 0
    with torch.no_grad():
        for parameter in parameters:
            piece = vector[start : start + parameter.numel()].reshape(tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(piece.copy()))
            start += parameter.numel()


def _size(tensors: Sequence[TensorSpec]) -> int:
    return sum(prod(tensor.shape) for tensor in tensors)


@contextmanager
def only_moving(model: nn.Module, spec: AdapterSpec, round_: int) -> Iterator[npt.NDArray[np.bool_]]:
    """For the length of the block only what moves in round `round_` requires a gradient.

    Gives, for every value of the shared flat vector, whether it moves.
    """
    method = find(spec.method)
    here = trainable(model, method)
    still = [parameter for name, parameter in here.items() if not method.moves(name, round_)]
    moving = [np.full(prod(t.shape), method.moves(t.name, round_)) for t in spec.tensors]
    for parameter in still:
        parameter.requires_grad_(False)
    try:
        yield np.concatenate(moving)
    finally:
        for parameter in still:
            parameter.requires_grad_(True)
