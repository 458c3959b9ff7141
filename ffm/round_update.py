"""One client's update of one round, and what becomes of it over the attempts of that round.

An attempt that is aborted before this client signed its set is followed by another one with the same cohort. It gets
the very same encoded values under fresh keys: they are released once at most, so they are charged once. The values
live in RAM only; a restarted process trains afresh and is charged afresh.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from ffm.step import Model
from secagg.masking import Framed


class Trainer(Protocol):
    """What trains: `ffm.training_process.TrainingProcess`."""

    async def train(self, round_: int, model: Model) -> Model:
        """The update of one round: the difference of the trainable parameters, float32, noised where promised."""


@dataclass(slots=True)
class RoundUpdate:
    """From the start of the training until the round is spent or over."""

    round: int
    attempt: int  # the first one that it was made for
    model_digest: bytes
    training: asyncio.Task[Model] | None
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


def _ignore(training: "asyncio.Task[Model]") -> None:
    """Nobody waits for this result; a failure shows again in the next training."""
    if not training.cancelled():
        training.exception()
