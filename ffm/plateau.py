"""When a loss has stopped falling. Kept apart from all training: the server asks it too."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plateau:
    """The loss has stopped falling: none of the last `patience` ones is below the best before them by the share
    `least`."""

    patience: int = 2
    least: float = 0.005

    def reached(self, losses: Sequence[float]) -> bool:
        """`losses`: the one at the phase's start, and after each of its rounds."""
        if len(losses) <= self.patience:
            return False
        best = min(losses[: -self.patience])
        return min(losses[-self.patience :]) > best * (1 - self.least)
