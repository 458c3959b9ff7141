"""One client's update of one round, and what becomes of it over the attempts of that round.

An attempt that is aborted before this client signed its set is followed by another one with the same cohort. It gets
the very same encoded values under fresh keys: they are released once at most, so they are charged once. The values
live in RAM only; a restarted process trains afresh and is charged afresh.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ffm.step import Model
from protocol.errors import LocalProtocolError
from secagg.masking import Framed

Number = TypeVar("Number", np.float32, np.int64)
Update = NDArray[np.float32] | NDArray[np.int64]


class Trainer(Protocol):
    """What trains: `ffm.training_process.TrainingProcess`."""

    async def train(self, round_: int, parameters: Model) -> Update:
        """The update of one round: the difference of the trainable parameters, float32, noised where promised; where
        noise comes in shares integers in grid steps, int64: noised sum of gradients (R2), noised difference (C)."""

    async def keep(self, round_: int) -> None:
        """The round is paid for: what its training made of the personal tensors is this site's from now on."""


def integers_only(update: Update) -> NDArray[np.int64]:
    """The update where noise comes in shares, or LocalProtocolError: reals would have to be rounded after the noise."""
    return _of_type(np.int64, update)


def reals_only(update: Update) -> Model:
    """The update of protocols R1 and none, or LocalProtocolError."""
    return _of_type(np.float32, update)


def _of_type(kind: type[Number], update: Update) -> NDArray[Number]:
    if update.dtype != kind:
        raise LocalProtocolError("an update of another type", found=update.dtype, expected=kind.__name__)
    return cast(NDArray[Number], update)


@dataclass(slots=True)
class RoundUpdate:
    """From the start of the training until the round is spent or over."""

    round: int
    attempt: int  # the first one that it was made for
    model_digest: bytes
    training: asyncio.Task[Update] | None
    values: Framed | None = field(default=None, repr=False)  # encoded; each attempt masks a copy
    charged: bool = False

    def forget(self) -> None:
        """Erase the values. Training is not interrupted half-way: its result is thrown away, and the next training
        waits for its turn at the process."""
        if self.training is not None:
            self.training.add_done_callback(_ignore)
            self.training = None
        if self.values is not None:
            self.values.wipe()
            self.values = None


def _ignore(training: "asyncio.Task[Update]") -> None:
    """Nobody waits for this result; a failure shows again in the next training."""
    if not training.cancelled():
        training.exception()
