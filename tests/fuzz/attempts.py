"""Real attempts, recorded: every message as the receiving session saw it, and that session as it was just before.

Sessions are cloned by hand, secrets included, so that one recording serves any number of hostile messages.
"""

import copy
import dataclasses
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np
from simulator import Federation, Simulation, Tamper, insecure_rng, make_manifest, random_values

from protocol import client_states
from protocol.client import ClientSession
from protocol.client_states import ClientMemory
from protocol.effects import Abort, Released
from protocol.messages import ClientMessage, ServerMessage
from protocol.server import ServerSession
from secagg.masking import Mask
from secagg.types import ClientId, Phase, Secret

N: Final = 7
RING: Final = 200  # the fewest clients that a ring may have
SAMPLED: Final = 20  # of the messages on the ring, one in so many is recorded
LENGTH: Final = 12
# One client is lost before each phase in which a client can be lost; the first round leaves a ledger row that only
# some clients know.
FIRST: Final = {ClientId(6): Phase.ADVERTISE_KEYS, ClientId(7): Phase.CONSISTENCY_CHECK}
SECOND: Final = {ClientId(2): Phase.MASKED_INPUT, ClientId(5): Phase.UNMASKING}


@dataclass(frozen=True)
class AtServer:
    """A client's message on its way into a server session."""

    server: ServerSession
    sender: ClientId
    message: ClientMessage


@dataclass(frozen=True)
class AtClient:
    """A server's message on its way into a client session; no session yet where it is an Announcement."""

    session: ClientSession | None
    client: ClientId
    memory: ClientMemory
    message: ServerMessage


@dataclass
class Recording:
    """An attempt, its messages with the state that each of them met."""

    federation: Federation
    server: list[AtServer] = field(default_factory=list)
    client: list[AtClient] = field(default_factory=list)

    @property
    def from_clients(self) -> tuple[ClientMessage, ...]:
        """Every message that a client sent."""
        return tuple(event.message for event in self.server)

    @property
    def from_server(self) -> tuple[ServerMessage, ...]:
        """Every message that the server sent."""
        return tuple(event.message for event in self.client)


def consortium() -> Federation:
    """Seven clients, one of them corrupt at most, two lost at most."""
    return Federation.create(make_manifest(N, 1, 2, LENGTH))


def simulation(federation: Federation, **options: Any) -> Simulation:
    """The second round, ready to run: memories and release ledger are those after the first."""
    ledger, memories = _first_round()
    values = random_values(federation.manifest, federation.client_keys)
    options.setdefault("lost", dict(SECOND))
    return Simulation(federation, values, ledger=ledger, memories=dict(memories), round=2, **options)


@cache
def _first_round() -> tuple[Any, dict[ClientId, ClientMemory]]:
    federation = consortium()
    first = Simulation(federation, random_values(federation.manifest, federation.client_keys), dict(FIRST))
    if not isinstance(first.run(), Released):
        raise AssertionError(first.outcome)
    return first.server.ledger, first.memories


@cache
def recorded() -> Recording:
    """The recording on the complete graph; made once per process."""
    federation = consortium()
    return _recording(simulation(federation), 1)


@cache
def recorded_ring() -> Recording:
    """One round of 200 clients on the ring, of degree 22; one message in twenty is kept. Takes seconds."""
    options = {"aggregation__graph": "ring", "aggregation__min_cohort": 150}
    federation = Federation.create(make_manifest(RING, 2, 10, LENGTH, **options))
    return _recording(
        Simulation(federation, random_values(federation.manifest, federation.client_keys), dict(SECOND)), SAMPLED
    )


def _recording(run: Simulation, one_in: int) -> Recording:
    recording = Recording(run.federation)
    count = 0

    def at_server(sender: ClientId, message: Any) -> Any:
        nonlocal count
        count += 1
        if count % one_in == 0:
            recording.server.append(AtServer(clone(run.server), sender, message))
        return message

    def at_client(client: ClientId, message: Any) -> Any:
        nonlocal count
        count += 1
        if count % one_in == 0:
            memory = run.memories.get(client, ClientMemory.fresh(run.federation.manifest))
            recording.client.append(AtClient(clone(run.clients.get(client)), client, memory, message))
        return message

    run.tamper_client, run.tamper_server = at_server, at_client
    if check_outcome(run) != "exact sum":
        raise AssertionError(run.outcome)
    return recording


def check_outcome(run: Simulation) -> str:
    """Play an attempt to its end: the exact sum of exactly the released set, or no sum. Returns which."""
    outcome = run.run()
    if isinstance(outcome, Abort):
        return f"aborted in {outcome.phase.name}"
    expected = np.sum([run.values[client] for client in outcome.masked], axis=0)
    if len(outcome.masked) < run.server.params.required or not np.array_equal(outcome.total, expected):
        raise AssertionError(f"a wrong sum was released over {outcome.masked}")
    return "exact sum"


def clone(value: Any) -> Any:
    """A session, state or container whose later life does not touch the original's. Messages are shared."""
    if isinstance(value, Secret):
        return Secret(value.view)
    if isinstance(value, dict):
        return {key: clone(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(clone(item) for item in value)
    if isinstance(value, ServerSession | ClientSession):
        twin = copy.copy(value)
        twin.__dict__.update({k: clone(v) for k, v in value.__dict__.items() if k not in ("_attempt", "_rng")})
        if isinstance(twin, ClientSession):
            twin._rng = insecure_rng("clone")
        return twin
    kind: Any = type(value)
    if kind is Mask or (dataclasses.is_dataclass(value) and kind.__module__ == client_states.__name__):
        return kind(*(clone(getattr(value, part.name)) for part in dataclasses.fields(value)))
    return value


def secrets_in(value: Any) -> list[Secret]:
    """Every non-empty Secret that a state still holds."""
    if isinstance(value, Secret):
        return [value] if len(value) else []
    if isinstance(value, dict):
        return [secret for item in value.values() for secret in secrets_in(item)]
    if isinstance(value, list | tuple):
        return [secret for item in value for secret in secrets_in(item)]
    if isinstance(value, Mask) or type(value).__module__ == client_states.__name__:
        return [secret for part in dataclasses.fields(value) for secret in secrets_in(getattr(value, part.name))]
    return []


def tampering(run: Simulation, kind: type, places: set[int], replaced: Tamper) -> None:
    """Make `run` replace the messages of one type that stand at `places` among those of this type."""
    count = 0

    def tamper(client: ClientId, message: Any) -> Any:
        nonlocal count
        if not isinstance(message, kind):
            return message
        count += 1
        return replaced(client, message) if count - 1 in places else message

    run.tamper_client = run.tamper_server = tamper
