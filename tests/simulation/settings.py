"""What one schedule plays: sizes, who is corrupt, who lies, which faults may strike. Its first choices say so."""

import contextlib
import enum
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from unittest.mock import patch

from secagg import params
from secagg.params import Graph
from secagg.thresholds import RingParameters
from secagg.types import ClientId
from tests.simulation.schedule import Schedule
from tests.simulator import Federation, make_manifest

LENGTH: Final = 6  # values of one client: bit, round, training, three zeros

Size = tuple[int, int, int, Graph]  # clients, corrupt, dropouts

SIZES: Final[tuple[Size, ...]] = (
    (4, 1, 1, "complete"),
    (5, 1, 1, "complete"),
    (3, 1, 0, "complete"),
    (4, 1, 1, "complete"),
    (5, 2, 1, "complete"),
    (6, 1, 2, "complete"),
    (4, 0, 1, "complete"),
    (3, 0, 0, "complete"),
    (4, 1, 1, "complete"),
    (5, 1, 1, "complete"),
    (8, 1, 1, "ring"),
    (10, 0, 1, "ring"),
)
# Rings as small as these need no bound on luck: nobody has more corrupt neighbours than there are corrupt clients.
SMALL_RINGS: Final = {
    (8, 1, 1): RingParameters(degree=6, threshold=5, max_corrupt_neighbors=1),
    (10, 0, 1): RingParameters(degree=4, threshold=3, max_corrupt_neighbors=0),
}


class Server(enum.Enum):
    """Who runs the server."""

    HONEST = "honest"
    LYING = "lying"


class Fault(enum.Enum):
    """What may go wrong between honest parties, and what a corrupt party may do. Half of them are off in each run."""

    REORDER = "clients move in any order"
    LOST_REQUEST = "a request is lost"
    LOST_ANSWER = "the answer to a request is lost"
    DUPLICATE = "a request arrives a second time, later"
    CUT_UPLOAD = "an upload breaks off between header and body"
    LATE_TRAINING = "training ends after the shares are there"
    EARLY_CLOSE = "a deadline passes while clients are on their way"
    STALL = "a client is cut off for a while"
    CLIENT_CRASH = "a client dies between two effects"
    SERVER_CRASH = "the server dies between two effects"
    LOG_DAMAGED = "the log of the running attempt is lost in a crash"
    REWIND = "the server is restored from an older backup"
    SABOTAGE = "corrupt clients bend what they send"
    SPLIT = "the lying server shows different views"
    REPLAY = "the lying server repeats old messages"
    SHRINK = "the lying server leaves clients out"
    FORK = "the lying server keeps several release ledgers"
    FORGE = "the lying server changes fields"


NETWORK: Final = tuple(f for f in Fault if f not in {Fault.SPLIT, Fault.REPLAY, Fault.SHRINK, Fault.FORK, Fault.FORGE})
LIES: Final = (Fault.REORDER, Fault.CLIENT_CRASH, Fault.LATE_TRAINING, *list(Fault)[-5:])


@dataclass(frozen=True)
class Settings:
    """The constants of one run."""

    federation: Federation
    server: Server
    corrupt: frozenset[ClientId]
    rounds: int
    faults: frozenset[Fault]

    @property
    def clients(self) -> tuple[ClientId, ...]:
        """All, ascending."""
        return tuple(self.federation.client_keys)

    @property
    def min_cohort(self) -> int:
        """From the signed manifest: what no run may fall below."""
        return self.federation.manifest.aggregation.min_cohort


@contextlib.contextmanager
def small_rings() -> Iterator[None]:
    """For the time of the block rings may have eight clients; what 200 and more get is as it was."""
    proved = params.ring_parameters

    def ring_parameters(clients: int, corrupt: int, dropouts: int) -> RingParameters:
        return SMALL_RINGS.get((clients, corrupt, dropouts)) or proved(clients, corrupt, dropouts)

    with (
        patch.dict(params.SIZES, {"ring": (8, params.SIZES["ring"][1])}),
        patch.object(params, "ring_parameters", ring_parameters),
    ):
        yield


@lru_cache(maxsize=16)
def federation(clients: int, corrupt: int, dropouts: int, graph: Graph) -> Federation:
    """Keys and documents of one size."""
    with small_rings():
        return Federation.create(make_manifest(clients, corrupt, dropouts, LENGTH, aggregation__graph=graph))


def draw(schedule: Schedule) -> Settings:
    """Settings from the schedule: an empty one gives four clients, an honest server and no fault at all."""
    size = SIZES[schedule.pick(len(SIZES))]
    fed = federation(*size)
    server = Server.LYING if schedule.pick(10) >= 6 else Server.HONEST
    rounds = 1 + schedule.pick(3)
    first = schedule.pick(size[0])
    ids = tuple(fed.client_keys)
    corrupt = frozenset(ids[(first + i) % size[0]] for i in range(size[1]))
    possible = LIES if server is Server.LYING else NETWORK
    crowded = schedule.pick(2)  # half of the runs have few faults: what many of them hide is seen there
    faults = frozenset(fault for fault in possible if (schedule.pick(2) if crowded else schedule.chance(4)))
    return Settings(fed, server, corrupt, rounds, faults)
