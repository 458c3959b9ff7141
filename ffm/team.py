"""The processes that train one client's model together, as `accelerate launch` or `torchrun` start them.

They average gradients and keep equal copies of the model. One of them, the first, speaks to the server; what it learns
there it tells the others as plain tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from ffm.adapters import Vector


@dataclass(frozen=True, slots=True)
class Team:
    """This process among its client's; most often the only one."""

    device: torch.device

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return not _several()

    @property
    def first(self) -> bool:
        """Whether this process speaks to the server."""
        return not _several() or dist.get_rank() == 0

    def tell(self, numbers: Sequence[int], vector: Vector) -> tuple[tuple[int, ...], Vector]:
        """What the first process gives, in every process. All of them call it, with as many numbers."""
        if not _several():
            return tuple(numbers), vector
        head = torch.tensor([*numbers, len(vector)], dtype=torch.int64, device=self.device)
        dist.broadcast(head, 0)
        *told, length = (int(number) for number in head.tolist())
        body = torch.empty(length, dtype=torch.float32, device=self.device)
        if self.first:
            body.copy_(torch.from_numpy(vector))
        if length:
            dist.broadcast(body, 0)
        return tuple(told), np.asarray(body.cpu().numpy(), dtype=np.float32)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
