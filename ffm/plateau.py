"""When a loss has stopped falling. Kept apart from all training: the server asks it too."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plateau:
    """The loss has stopped falling: none of the last `patience` ones is below the best before them by the share
    `least`."""

    patience: int = 2
    least: float = 0.005

    def reached(self, losses: Sequence[float]) -> bool:
        """`losses`: the one at the phase's start, and after each of its rounds; as `comparable` gives them. Of a task
        of one's own they may be below zero."""
        if len(losses) <= self.patience:
            return False
        best, since = min(losses[: -self.patience]), min(losses[-self.patience :])
        return since >= best or best - since < self.least * abs(best)


def comparable(loss: float) -> float:
    """A loss that is no finite number, as of a model that has diverged, is worse than all others."""
    return loss if math.isfinite(loss) else sys.float_info.max
