"""The client's side of one attempt, as a sans-I/O state machine. SPEC 6.

States are values that hold only what the next step needs: after the masks are derived no private key is left, after
unmasking no share is left. Each step is a pure function of `protocol.client_phases`; `ClientSession` is the one mutable
object, and one attribute of it changes. A failed check raises RemoteProtocolError, erases all secrets and ends the
session for good.
"""

from protocol import client_phases, encrypted_phases
from protocol.client_states import (
    PHASES,
    Aborted,
    Attempt,
    AwaitingCertificate,
    AwaitingHashes,
    AwaitingInput,
    AwaitingKeys,
    AwaitingShares,
    AwaitingSurvivors,
    ClientMemory,
    ClientSetup,
    Completed,
    State,
    erase,
)
from protocol.context import announcement_error, context
from protocol.effects import Effects
from protocol.encrypted import InputHashes
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.key_list import reject
from protocol.messages import (
    Announcement,
    AttemptAborted,
    Certificate,
    Finished,
    KeyList,
    PeerShares,
    RoundResult,
    ServerMessage,
    SurvivorNotice,
)
from secagg.encoding import Values
from secagg.errors import AuthenticationError, SecAggError
from secagg.masking import Framed
from secagg.types import ClientId, Phase, Rng


class ClientSession:
    """One attempt of one client. `start`, then `receive` for each message and `provide_input` when training is done."""

    def __init__(self, setup: ClientSetup, announcement: Announcement, memory: ClientMemory, rng: Rng) -> None:
        """Checks the announcement against the signed documents and the journal.

        Raises:
            RemoteProtocolError: The announcement does not fit, or this attempt was joined, or this round spent, before.
        """
        problem = announcement_error(announcement, setup.roster, setup.manifest)
        if problem is None and setup.me not in announcement.cohort:
            problem = "this client is not invited"
        if problem is None and (announcement.round, announcement.attempt) <= memory.joined:
            problem = "this attempt, or a later one, was already joined: attempts of a task only increase"
        if problem is None and announcement.round <= memory.spent_round:
            problem = "this round is spent: its update was already released once"
        if problem is not None:
            reject(problem, found=f"round {announcement.round}, attempt {announcement.attempt}")
        self._attempt = Attempt(setup, announcement, context(announcement, setup.params), memory)
        if setup.params.encrypted:
            encrypted_phases.scheme_of(self._attempt)
        self._rng = rng
        self._state: State | None = None
        self._values: Values | Framed | None = None
        self.survivors: tuple[ClientId, ...] | None = None  # U3, once checked and signed

    @property
    def _key(self) -> tuple[int, int]:
        return self._attempt.announcement.round, self._attempt.announcement.attempt

    @property
    def ctx(self) -> bytes:
        """The 32-byte context of this attempt."""
        return self._attempt.ctx

    @property
    def phase(self) -> Phase:
        """The phase whose server message is awaited, or how the session ended."""
        return Phase.ADVERTISE_KEYS if self._state is None else PHASES[type(self._state)]

    def start(self) -> Effects:
        """Phase 0."""
        if self._state is not None:
            raise LocalProtocolError("the session was started before")
        self._state, effects = client_phases.advertise_keys(self._attempt, self._rng)
        return effects

    def receive(self, message: ServerMessage) -> Effects:
        """One message of the server. Raises RemoteProtocolError after erasing every secret."""
        try:
            return self._step(message)
        except RemoteProtocolError as error:
            self.abort(error.what)
            raise
        except AuthenticationError as error:
            self.abort(error.what)
            raise RemoteProtocolError(error.what) from None
        except SecAggError as error:  # our own input did not fit: nothing was sent, nothing is kept
            self.abort(error.what)
            raise

    def provide_input(self, values: Values | Framed) -> Effects:
        """The encoded update: framed words, or int64 of shape (vector_length,). Kept until the shares are there."""
        if self._values is not None or self._state is None:
            raise LocalProtocolError("the input was given before, or the session was not started")
        if isinstance(self._state, AwaitingKeys | AwaitingShares):
            self._values = values
            return ()
        if not isinstance(self._state, AwaitingInput):
            raise LocalProtocolError("no input is awaited", found=self.phase.name)
        try:
            self._state, effects = client_phases.mask_input(self._state, self._attempt, values)
        except SecAggError as error:
            self.abort(error.what)
            raise
        return effects

    def abort(self, reason: str = "aborted by this client") -> None:
        """End the session and erase its secrets."""
        state, self._values = self._state, None
        if not isinstance(state, Completed | Aborted):
            self._state = Aborted(reason)
            erase(state)

    def _step(self, message: ServerMessage) -> Effects:
        match (self._state, message):
            case (AwaitingKeys() as state, KeyList()):
                self._state, effects = client_phases.share_keys(state, self._attempt, message, self._rng)
            case (AwaitingShares() as state, PeerShares()):
                self._state, effects = client_phases.open_shares(state, self._attempt, message), ()
                if self._values is not None:
                    values, self._values = self._values, None
                    self._state, effects = client_phases.mask_input(self._state, self._attempt, values)
            case (AwaitingHashes() as state, InputHashes()):
                self._state, effects = encrypted_phases.upload_encrypted(state, self._attempt, message)
            case (AwaitingSurvivors() as state, SurvivorNotice()):
                self._state, effects = client_phases.check_consistency(state, self._attempt, message)
                self.survivors = self._state.masked
            case (AwaitingCertificate() as state, Certificate()):
                self._state, effects = client_phases.unmask(state, self._attempt, message)
            case (_, AttemptAborted()) if (message.round, message.attempt) != self._key:
                effects = ()
            case (_, AttemptAborted()):
                self.abort(f"the server aborted: {message.reason}")
                effects = ()
            case (_, RoundResult() | Finished()):  # it may have ended without us: lost messages are nobody's fault
                self.abort("the attempt ended without this client")
                effects = ()
            case _:
                reject("unexpected message", found=type(message).__name__, expected=f"one for {self.phase.name}")
        return effects
