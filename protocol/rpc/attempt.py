"""One running attempt inside the server's shell: a ServerSession, its uploads, and its effects. SPEC 9.4.

Every state change is synchronous: a cancelled call can never leave one half done.
"""

from collections.abc import Callable
from dataclasses import dataclass

from protocol.drops import DropReason
from protocol.effects import Abort, AcceptUpload, Aggregate, Effects, Persist, Released, Send
from protocol.errors import LocalProtocolError
from protocol.messages import ClientMessage, MaskedInput, ServerMessage
from protocol.rpc.frames import Receipt, Status
from protocol.rpc.journal import ServerJournal
from protocol.rpc.spool import Spool, SpoolRoom, fold
from protocol.server import ServerSession
from secagg.encoding import Words
from secagg.types import ClientId, Phase

Post = Callable[[ClientId, ServerMessage], None]
ACCEPTED = Receipt(Status.ACCEPTED)


@dataclass(slots=True)
class Gate:
    """An accepted upload header and the spool that is being filled for it."""

    header: MaskedInput
    spool: Spool | None = None


class RunningAttempt:
    """Drives one session. `post` puts a message into a client's outbox."""

    def __init__(self, session: ServerSession, journal: ServerJournal, spools: SpoolRoom, post: Post) -> None:
        self.session = session
        self.key = (session.announcement.round, session.announcement.attempt)
        self.outcome: Released | Abort | None = None
        self._journal = journal
        self._spools = spools
        self._post = post
        self._gates: dict[ClientId, Gate] = {}
        self._aggregate: Aggregate | None = None

    def begin(self) -> None:
        """Write the attempt down, then announce it."""
        self._journal.start(self.session.announcement, self.session.ctx)
        self._apply(self.session.start())

    def joinable(self, client: ClientId) -> bool:
        """Whether a new process of this client can still take part."""
        return self.session.phase is Phase.ADVERTISE_KEYS and client in self.session.missing()

    def submit(self, client: ClientId, message: ClientMessage) -> Receipt:
        """One message of this attempt. The session answers the same message twice in the same way."""
        if isinstance(message, MaskedInput):
            return Receipt(Status.REFUSED, "a masked input comes as an upload")
        return self._outcome(self.session.receive(client, message))

    def open_upload(self, client: ClientId, header: MaskedInput) -> Spool | Receipt:
        """A spool to fill if the header is acceptable; a newer upload of the same header replaces an unfinished one."""
        gate = self._gates.get(client)
        if gate is None or gate.header != header:
            receipt = self._outcome(self.session.receive(client, header))
            gate = self._gates.get(client)
            if receipt.status is not Status.ACCEPTED:
                return receipt
            if gate is None or gate.header != header:  # accepted earlier, and the phase has closed since
                return _refused(DropReason.WRONG_PHASE)
        if gate.spool is not None and gate.spool.complete:
            return ACCEPTED
        if self.session.phase is not Phase.MASKED_INPUT or client in self.session.drops:
            return _refused(self.session.drops.get(client, DropReason.WRONG_PHASE))
        if gate.spool is not None:
            gate.spool.discard()
        gate.spool = self._spools.open(header, self.session.params)
        return gate.spool

    def close_upload(self, client: ClientId, spool: Spool) -> Receipt:
        """All chunks are in. Raises RemoteProtocolError if their digest is not the signed one."""
        gate = self._gates.get(client)
        if gate is None or gate.spool is not spool:
            return _refused(DropReason.UPLOAD_NOT_ACCEPTED)
        try:
            spool.close()
        finally:
            if not spool.complete:
                spool.discard()
        receipt = self._outcome(self.session.upload_complete(client))
        if receipt.status is not Status.ACCEPTED:
            spool.discard()
        return receipt

    def close_phase(self) -> None:
        """Everybody answered, or nobody is waited for any longer."""
        collecting = self.session.phase is Phase.MASKED_INPUT
        self._apply(self.session.close_phase())
        if collecting:
            for client in set(self._gates) - set(self.session.masked):
                self._discard(client)

    @property
    def to_fold(self) -> Aggregate | None:
        """The sum that the session waits for, if any."""
        return self._aggregate

    def fold(self, aggregate: Aggregate) -> Words:
        """Uploads of U3 plus masks. Long and without shared state: runs in a thread of its own."""
        spools = [spool for client in aggregate.masked if (spool := self._gates[client].spool) is not None]
        if len(spools) != len(aggregate.masked):
            raise LocalProtocolError("an upload of U3 is missing", found=len(spools), expected=len(aggregate.masked))
        return fold(spools, aggregate.masks, self.session.params)

    def finish(self, words: Words) -> None:
        """The folded sum is there."""
        aggregate, self._aggregate = self._aggregate, None
        if aggregate is not None:
            for mask in aggregate.masks:
                mask.seed.wipe()
        self._apply(self.session.finish(words))

    def discard(self) -> None:
        """Remove every spool."""
        for client in list(self._gates):
            self._discard(client)

    def _discard(self, client: ClientId) -> None:
        spool = self._gates.pop(client).spool
        if spool is not None:
            spool.discard()

    def _outcome(self, result: Effects | DropReason) -> Receipt:
        if isinstance(result, DropReason):
            return _refused(result)
        self._apply(result)
        return ACCEPTED

    def _apply(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case Persist(record):
                    self._journal.record(record)
                case Send(message, to) if to is not None and isinstance(message, ServerMessage):
                    self._post(to, message)
                case AcceptUpload(sender, header):
                    self._gates[sender] = Gate(header)
                case Aggregate():
                    self._aggregate = effect
                case Released() | Abort():
                    self.outcome = effect
                case _:
                    raise LocalProtocolError("an effect that a server does not have", found=type(effect).__name__)


def _refused(reason: DropReason) -> Receipt:
    return Receipt(Status.REFUSED, f"{reason.name}: {reason.value}")
