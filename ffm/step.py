"""The server step, and the bytes in which models and aggregates travel. Both sides run the same code.

A model is the flat float32 vector of the manifest's tensors, followed by the moments of the server's optimizer where it
has them; it travels as little-endian bytes under its digest. The step is federated averaging (McMahan et al. 2017) with
equal, public weights, or FedAdam or FedYogi (Reddi et al. 2021) on the same mean: float64 additions, multiplications,
divisions and square roots, which IEEE 754 fixes, and one rounding to float32, so the same bits on every machine. A
client that knows the model and the published sum recomputes the next model by itself.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ffm.plan import rotation_of
from protocol.manifest import Manifest, ServerSpec
from secagg.encoding import Values
from secagg.errors import SecAggError
from secagg.labels import AGGREGATE_DIGEST
from secagg.transcript import digest, id_list
from secagg.types import ClientId

Model = NDArray[np.float32]

_PIECE = 1 << 15  # values; stays in the cache


@dataclass(frozen=True, slots=True)
class Pull:
    """What elastic weight consolidation holds: every parameter near its anchor, by its importance. Both float32, shape
    (parameters,); importance finite and not negative. SPEC 7.7, docs/adr/0067."""

    anchor: Model = field(repr=False)
    importance: Model = field(repr=False)


def model_bytes(model: Model) -> bytes:
    """Little-endian float32 bytes: 4 per value."""
    return model.astype("<f4", copy=False).tobytes()


def floats(data: bytes) -> Model:
    """The values of little-endian float32 bytes; an incomplete last one is left out, so that a count can tell."""
    return np.frombuffer(data[: len(data) // 4 * 4], dtype="<f4").astype(np.float32)


def model_from_bytes(data: bytes, manifest: Manifest, expected_digest: bytes) -> Model:
    """A model as received; its digest is checked first, then length and finiteness."""
    if manifest.model_digest(data) != expected_digest:
        raise SecAggError(
            "the downloaded model is not the announced one",
            found=f"digest {manifest.model_digest(data).hex()[:16]}...",
            expected=f"{expected_digest.hex()[:16]}...",
            do="the attempt was refused; ask the server's operator",
            code="E430",
        )
    model = np.frombuffer(data, dtype="<f4")
    if len(model) != manifest.model_size or not np.isfinite(model).all():
        raise SecAggError(
            "the model has the wrong shape or holds NaN or infinite values",
            found=f"{len(model)} values",
            expected=f"{manifest.model_size} finite values",
            code="E431",
        )
    return model.astype(np.float32)


def vector_digest(vector: Model) -> str:
    """SHA-256 of a vector's little-endian float32 bytes, as `adapter.start` and `importance` of a manifest name it."""
    return hashlib.sha256(model_bytes(vector)).hexdigest()


def aggregate_digest(ctx: bytes, included: tuple[ClientId, ...], total: bytes) -> bytes:
    """Digest under which a sum (little-endian int32 bytes) over `included` is published."""
    return digest(AGGREGATE_DIGEST, ctx, id_list(included), total)


def initial_model(parameters: Model, manifest: Manifest) -> Model:
    """The model that round 1 starts from: these parameters, moments of zero."""
    return np.concatenate([parameters, np.zeros(manifest.model_size - len(parameters), dtype=np.float32)])


def parameters_of(model: Model, manifest: Manifest) -> Model:
    """The trained parameters inside a model: a view."""
    return model[: manifest.adapter.size]


def next_model(
    model: Model, total: Values | NDArray[np.int32], count: int, manifest: Manifest, pull: Pull | None = None
) -> Model:
    """The model after a sum over `count` clients; piece by piece, without full float64 copies. A rotated sum goes back
    first: exactly, by integers and a power of two. SPEC 7.7.

    `pull`: what the manifest pins for consolidation, where it does.

    The mean update is total / (scale * count) of differences (R1, C, none) by the number of clients in the sum, which
    is public, or -learning_rate / (scale * expected_batch) times the total of gradients (R2), whose divisor is public.
    """
    training, size = manifest.training, manifest.adapter.size
    factor, divisor = 1.0, float(manifest.aggregation.scale * count)
    if manifest.privacy.protocol == "R2":
        factor = -float(training.learning_rate)
        divisor = float(manifest.aggregation.scale * training.expected_batch)
    rotation = rotation_of(manifest)
    steps = total if rotation is None else rotation.back(total)
    out = np.empty(len(model), dtype=np.float32)
    vectors, old = out.reshape(-1, size), model.reshape(-1, size)
    scratch = np.empty(_PIECE)
    for start in range(0, size, _PIECE):
        part = slice(start, start + _PIECE)
        mean = np.divide(steps[part], divisor, out=scratch[: len(steps[part])])
        if factor != 1.0:
            mean *= factor
        if training.server.optimizer == "fedavg":
            mean *= float(training.server.learning_rate)
            np.add(mean, old[0, part], out=vectors[0, part], dtype=np.float64, casting="same_kind")
        else:
            _adapt(mean, old[:, part].astype(np.float64), vectors[:, part], training.server)
    held = training.consolidation is not None and training.consolidation.importance is not None
    if held != (pull is not None):
        raise AssertionError("the manifest says whether parameters are held, and by which importance")
    if pull is not None and training.consolidation is not None:
        _hold(vectors[0], pull, float(training.consolidation.strength))
    return out


def _hold(parameters: Model, pull: Pull, strength: float) -> None:
    """The proximal step towards the anchor, (x + c·anchor) / (1 + c) with c = strength · importance; in place."""
    for start in range(0, len(parameters), _PIECE):
        part = slice(start, start + _PIECE)
        weight = strength * pull.importance[part].astype(np.float64)
        parameters[part] = (parameters[part].astype(np.float64) + weight * pull.anchor[part]) / (1.0 + weight)


def _adapt(mean: NDArray[np.float64], old: NDArray[np.float64], new: Model, server: ServerSpec) -> None:
    """FedAdam and FedYogi: rows parameters, first and second moment."""
    rate, beta1, beta2 = float(server.learning_rate), float(server.beta1), float(server.beta2)
    square = mean * mean
    first = beta1 * old[1] + (1 - beta1) * mean
    if server.optimizer == "fedadam":
        second = beta2 * old[2] + (1 - beta2) * square
    else:
        second = old[2] - (1 - beta2) * square * np.sign(old[2] - square)
    new[1], new[2] = first, second
    new[0] = old[0] + rate * first / (np.sqrt(second) + float(server.tau))
