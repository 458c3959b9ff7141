"""The server step, and the bytes in which models and aggregates travel. Both sides run the same code.

A model is the flat float32 vector of the manifest's tensors; it travels as little-endian bytes under its digest. The
step is federated averaging (McMahan et al. 2017) with equal, public weights: float64 arithmetic, one rounding to
float32, the same bits on every machine. A client that knows the model and the published sum recomputes the next model
by itself.
"""

import numpy as np
from numpy.typing import NDArray

from protocol.manifest import Manifest
from secagg.encoding import Values
from secagg.errors import SecAggError
from secagg.labels import AGGREGATE_DIGEST
from secagg.transcript import digest, id_list
from secagg.types import ClientId

Model = NDArray[np.float32]

_PIECE = 1 << 15  # values; stays in the cache


def model_bytes(model: Model) -> bytes:
    """Little-endian float32 bytes: 4 per value."""
    return model.astype("<f4", copy=False).tobytes()


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
    if len(model) != manifest.adapter.size or not np.isfinite(model).all():
        raise SecAggError(
            "the model has the wrong shape or holds NaN or infinite values",
            found=f"{len(model)} values",
            expected=f"{manifest.adapter.size} finite values",
            code="E431",
        )
    return model.astype(np.float32)


def aggregate_digest(ctx: bytes, included: tuple[ClientId, ...], total: bytes) -> bytes:
    """Digest under which a sum (little-endian int32 bytes) over `included` is published."""
    return digest(AGGREGATE_DIGEST, ctx, id_list(included), total)


def next_model(model: Model, total: Values | NDArray[np.int32], count: int, manifest: Manifest) -> Model:
    """model + total / (scale * count), rounded once to float32; piece by piece, without full float64 copies."""
    divisor = float(manifest.aggregation.scale * count)
    out = np.empty(len(model), dtype=np.float32)
    scratch = np.empty(_PIECE)
    for start in range(0, len(model), _PIECE):
        part = out[start : start + _PIECE]
        mean = np.divide(total[start : start + _PIECE], divisor, out=scratch[: len(part)])
        np.add(mean, model[start : start + _PIECE], out=part, dtype=np.float64, casting="same_kind")
    return out
