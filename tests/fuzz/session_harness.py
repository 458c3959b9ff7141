"""Mutated messages into sessions of every phase and into whole attempts: one kind of error, and never a wrong sum."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

from fuzz.attempts import (
    AtClient,
    AtServer,
    N,
    Recording,
    check_outcome,
    clone,
    recorded,
    secrets_in,
    simulation,
    tampering,
)
from fuzz.dice import Dice
from fuzz.doors import DOORS
from fuzz.harness import Violation
from fuzz.replace import Pool, by_client, by_server
from fuzz.rules import sample

from protocol import codec
from protocol.client import ClientSession
from protocol.client_states import Aborted
from protocol.drops import DropReason
from protocol.effects import Effect, Persist
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import AdvertiseKeys, Announcement, ClientMessage
from secagg.types import ClientId, Phase, Rng

CLIENT_DOOR, SERVER_DOOR = DOORS[0], DOORS[1]
REFUSED: Final = "refused by the codec"


class _Messages:
    """Draws hostile messages; what the codec refuses never reaches a session."""

    def __init__(self, real: Recording) -> None:
        self.real = real
        self.of_clients = Pool(self.real.from_clients)
        self.of_server = Pool(self.real.from_server)

    def to_server(self, dice: Dice, event: AtServer, message: Any = None) -> Any | None:
        """A message for the session of `event`, from its sender."""
        message = self._drawn(dice, event.message if message is None else message, self.of_clients, CLIENT_DOOR.types)
        if not dice.chance(3):
            message = by_client(message, event.sender, self.real.federation.client_keys[event.sender], event.server)
            message = by_server(message, event.server.ledger, self.real.federation.server_key)
        return _through(codec.encode_client, codec.decode_client, message)

    def to_client(self, dice: Dice, event: AtClient) -> Any | None:
        """A message for the session of `event`."""
        message = self._drawn(dice, event.message, self.of_server, SERVER_DOOR.types)
        if not dice.chance(3):
            message = by_server(message, event.memory.ledger, self.real.federation.server_key)
        return _through(codec.encode_server, codec.decode_server, message)

    def _drawn(self, dice: Dice, message: Any, pool: Pool, types: tuple[type, ...]) -> Any:
        way = dice.below(12)
        if way == 11:
            return sample(dice.pick(types), dice)  # legal on the wire, and nothing more
        if way == 10:
            return pool.mutated(dice.pick(pool.messages), dice)  # of any phase
        if way == 9:
            return dice.pick(pool.messages)  # somebody else's, unchanged
        return pool.mutated(message, dice)


def _through(encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], message: Any) -> Any | None:
    """The message as the other side gets it, or None if it cannot be sent."""
    try:
        data = encode(message)
    except LocalProtocolError:
        return None
    if decode(data) != message:
        raise Violation("a message changed on its way through the codec")
    return message


class ServerHarness:
    """One message into a server session; other clients must not notice, and the attempt must be able to go on."""

    def __init__(self, recording: Callable[[], Recording] = recorded, name: str = "session/server") -> None:
        """`recording` is made when it is first needed."""
        self.name = name
        self._recording = recording

    @cached_property
    def _messages(self) -> _Messages:
        return _Messages(self._recording())

    def _drawn(self, dice: Dice) -> tuple[AtServer, Any | None]:
        source = self._messages
        event = dice.pick(source.real.server)
        if dice.chance(4):  # a session of another phase
            event = AtServer(dice.pick(source.real.server).server, event.sender, event.message)
        return event, source.to_server(dice, event)

    def run(self, dice: Dice) -> str:
        """One message, then the honest one, then the end of the phase."""
        event, message = self._drawn(dice)
        if message is None:
            return REFUSED
        server = clone(event.server)
        before = _others(server, event.sender)
        answer = server.receive(event.sender, message)
        if isinstance(answer, DropReason):
            outcome = answer.name
            if _others(server, event.sender) != before:
                raise Violation("a refused message changed something for other clients")
        elif not isinstance(answer, tuple) or not all(isinstance(effect, Effect) for effect in answer):
            raise Violation(f"neither effects nor a reason: {type(answer).__name__}")
        else:
            outcome = "accepted" if message != event.message else "as recorded"
            adopted = sum(isinstance(effect, Persist) for effect in answer)
            if server.ledger.seq != event.server.ledger.seq + adopted:
                raise Violation("the release ledger changed without its record")
            if not adopted and _others(server, event.sender) != before:
                raise Violation("a message changed something for other clients")
        server.receive(event.sender, event.message)
        server.upload_complete(event.sender)
        if server.open and dice.chance(4):
            server.close_phase()
        return outcome

    def explain(self, dice: Dice) -> str:
        """Phase, sender, message."""
        event, message = self._drawn(dice)
        where = f"server in {event.server.phase.name}, from client {event.sender}"
        return f"{where}:\n{message!r}\nhonest: {event.message!r}"


def _others(server: Any, sender: Any) -> Any:
    """What the server knows of everybody but the sender."""
    messages = {phase: {c: m for c, m in of.items() if c != sender} for phase, of in server._messages.items()}
    headers = {c: m for c, m in server._headers.items() if c != sender}
    drops = {c: reason for c, reason in server.drops.items() if c != sender}
    return messages, headers, drops, server.phase, server.ledger


class ClientHarness:
    """One message into a client session: effects, or the one error and no secret left."""

    def __init__(self, recording: Callable[[], Recording] = recorded, name: str = "session/client") -> None:
        """`recording` is made when it is first needed."""
        self.name = name
        self._recording = recording

    @cached_property
    def _messages(self) -> _Messages:
        return _Messages(self._recording())

    def _drawn(self, dice: Dice) -> tuple[AtClient, Any | None]:
        source = self._messages
        event = dice.pick(source.real.client)
        if dice.chance(4):
            other = dice.pick(source.real.client)
            event = AtClient(other.session, other.client, other.memory, event.message)
        return event, source.to_client(dice, event)

    def run(self, dice: Dice) -> str:
        """One message, then the honest one."""
        event, message = self._drawn(dice)
        if message is None:
            return REFUSED
        if event.session is None and not isinstance(message, Announcement):
            return "no session"
        if isinstance(message, Announcement):
            return self._joined(event, message)
        session: ClientSession = clone(event.session)
        outcome = self._received(session, message)
        if message == event.message:
            return f"as recorded, {outcome}"
        if outcome == "refused":
            self._received(session, event.message)
            if not isinstance(session._state, Aborted):
                raise Violation("a session came back to life")
        return f"{outcome} in {session.phase.name}"

    def _received(self, session: ClientSession, message: Any) -> str:
        try:
            effects: Any = session.receive(message)
        except RemoteProtocolError as error:
            if not f"{error}".isprintable():
                raise Violation("an unprintable error") from error
            if session.phase not in (Phase.ABORTED, Phase.COMPLETED) or secrets_in(session.__dict__):
                raise Violation("a refused message left the session alive, or secrets in it") from error
            return "refused"
        if not isinstance(effects, tuple) or not all(isinstance(effect, Effect) for effect in effects):
            raise Violation(f"no effects: {type(effects).__name__}")
        return "accepted"

    def _joined(self, event: AtClient, message: Announcement) -> str:
        setup = self._messages.real.federation.setup(event.client)
        try:
            ClientSession(setup, message, event.memory, _rng()).start()
        except RemoteProtocolError:
            return "announcement refused"
        return "joined"

    def explain(self, dice: Dice) -> str:
        """Phase, client, message."""
        event, message = self._drawn(dice)
        phase = "no session" if event.session is None else event.session.phase.name
        return f"client {event.client}, {phase}:\n{message!r}\nhonest: {event.message!r}"


class AttemptHarness:
    """A whole attempt in which one or two messages are replaced: the exact sum, or none."""

    def __init__(self, only: type | None = None) -> None:
        """`only`: replace messages of this type; by default of any."""
        self.name = "session/attempt"
        self._only = only

    @cached_property
    def _messages(self) -> _Messages:
        return _Messages(recorded())

    @cached_property
    def _kinds(self) -> tuple[Any, ...]:
        """One message of each type that an attempt has, so that every phase is hit equally often."""
        real = self._messages.real
        return tuple({type(m): m for m in (*real.from_clients, *real.from_server)}.values())

    def run(self, dice: Dice) -> str:
        """One attempt, with the same losses as the recorded one or none."""
        return self._played(dice)[0]

    def _played(self, dice: Dice) -> tuple[str, list[str]]:
        source = self._messages
        run = simulation(source.real.federation, **({} if dice.chance(2) else {"lost": {}}))
        told: list[str] = []

        def hostile(client: ClientId, message: Any) -> Any:
            other: Any
            if isinstance(message, ClientMessage):
                other = source.to_server(dice, AtServer(run.server, client, message))
                if isinstance(other, AdvertiseKeys) and isinstance(message, AdvertiseKeys):
                    # An abusive client stands by its lie; an honest one would leave at once.
                    session = run.clients[client]
                    session._state = replace(session._state, mine=other)  # type: ignore[type-var]
            else:
                memory = run._memory(client)
                other = source.to_client(dice, AtClient(None, client, memory, message))
                if not isinstance(other, type(message)):  # a session must stand before anything else can be said
                    other = None if isinstance(message, Announcement) else other
            told.append(f"client {client}, {run.server.phase.name}: {other!r}\n  instead of {message!r}")
            return message if other is None else other

        kind = type(dice.pick(self._kinds)) if self._only is None else self._only
        tampering(run, kind, {dice.below(N) for _ in range(1 + dice.below(2))}, hostile)
        return check_outcome(run), told

    def explain(self, dice: Dice) -> str:
        """What was said instead of what."""
        try:
            return "\n".join(self._played(dice)[1])
        except Exception as error:  # the finding itself
            return f"{type(error).__name__}: {error}"


def _rng() -> Rng:
    from simulator import insecure_rng

    return insecure_rng("joining")
