"""The bytes in which a released sum travels, and what a client makes of them. SPEC 7.7.

A sum is a vector of little-endian int32: with headroom proved for n clients, |sum| <= n * bound < 2^31 whatever the
slots, so four bytes hold every value exactly.
"""

import numpy as np
from numpy.typing import NDArray

from ffm.step import Model, Pull, aggregate_digest, model_bytes, next_model
from protocol.errors import RemoteProtocolError
from protocol.manifest import Manifest
from protocol.messages import RoundResult
from secagg.encoding import Values
from secagg.errors import EncodingError

VALUE_BYTES = 4
_LIMIT = np.iinfo(np.int32).max


def sum_bytes(total: Values) -> bytes:
    """Little-endian int32 bytes of an exact sum in grid steps. Raises EncodingError if the headroom did not hold."""
    if total.size and max(int(total.max()), -int(total.min())) > _LIMIT:
        raise EncodingError("a sum beyond the headroom of the encoding", expected=f"at most {_LIMIT} in magnitude")
    return total.astype("<i4").tobytes()


def sum_from_bytes(data: bytes) -> NDArray[np.int32]:
    """The values of a sum, read-only and without a copy where the machine is little-endian."""
    return np.frombuffer(data, dtype="<i4").astype(np.int32, copy=False)


def verified_next(
    manifest: Manifest, before: tuple[bytes, Model], result: RoundResult, data: bytes, pull: Pull | None = None
) -> Model:
    """The next model, recomputed from a downloaded sum.

    Args:
        manifest: Of the task.
        before: ctx of the attempt that gave the sum, and the model that it started from.
        result: What the server announced.
        data: The downloaded sum.
        pull: What the manifest pins for consolidation, where it does.

    Raises:
        RemoteProtocolError: E435, the sum does not have its digest; E433, it does not give the announced next model.
    """
    ctx, model = before
    whole = len(data) == VALUE_BYTES * manifest.vector_length
    if not whole or aggregate_digest(ctx, result.included, data) != result.aggregate_digest:
        raise RemoteProtocolError("the published sum does not have its digest", code="E435")
    model = next_model(model, sum_from_bytes(data), len(result.included), manifest, pull)
    digest = manifest.model_digest(model_bytes(model))
    if digest != result.model_digest:
        raise RemoteProtocolError(
            "the next model is not the last model plus the published sum",
            found=f"digest {result.model_digest.hex()[:16]}...",
            expected=f"{digest.hex()[:16]}...",
            code="E433",
        )
    return model
