"""One running attempt inside the server's shell: a ServerSession, its uploads, its log and its effects. SPEC 9.4, 11.4.

Every state change is synchronous: a cancelled call can never leave one half done. What changed the session is in the
log before anybody can see it, so an attempt of a server that was killed goes on where it was.
"""

from collections.abc import Callable
from dataclasses import dataclass

from dp.errors import LedgerError
from protocol.codec import encode_client
from protocol.drops import DropReason
from protocol.effects import Abort, AcceptUpload, Aggregate, Effects, Persist, Released, Send
from protocol.encrypted import DecryptorKey, EncryptedInput
from protocol.errors import LocalProtocolError
from protocol.messages import AdvertiseKeys, ClientMessage, ServerMessage, UploadHeader
from protocol.rpc.attempt_log import Accepted, AttemptLog, Closed, Uploaded
from protocol.rpc.frames import Receipt, Status, Submission
from protocol.rpc.journal import ServerJournal
from protocol.rpc.spool import Spool, SpoolRoom, fold
from protocol.server import ServerSession
from secagg.encoding import Words
from secagg.errors import SecAggError
from secagg.types import DECRYPTOR, ClientId, Phase

Post = Callable[[ClientId, ServerMessage], None]
ACCEPTED = Receipt(Status.ACCEPTED)


@dataclass(slots=True)
class Books:
    """Where a running attempt writes: the task's journal, the attempt's own log, the directory of uploads."""

    journal: ServerJournal
    log: AttemptLog
    spools: SpoolRoom


class RunningAttempt:
    """Drives one session. `post` puts a message into a client's outbox."""

    def __init__(self, session: ServerSession, books: Books, post: Post) -> None:
        self.session = session
        self.key = (session.announcement.round, session.announcement.attempt)
        self.outcome: Released | Abort | None = None
        self._journal, self._log, self._room = books.journal, books.log, books.spools
        self._post = post
        self._spools: dict[ClientId, Spool] = {}  # uploads whose header was accepted
        self._seen: set[tuple[ClientId, type]] = set()  # messages that were accepted
        self._uploaded: set[ClientId] = set()
        self._aggregate: Aggregate | None = None

    def begin(self) -> None:
        """Announce the attempt, which stands in journal and log."""
        self._apply(self.session.start())

    def joinable(self, client: ClientId) -> bool:
        """Whether a new process of this client, or of the decryptor, can still take part."""
        session, first = self.session, DecryptorKey if client == DECRYPTOR else AdvertiseKeys
        left_out = client in session.drops or (client, first) in self._seen
        return session.phase is Phase.ADVERTISE_KEYS and client in session.invited and not left_out

    def submit(self, client: ClientId, submission: Submission, message: ClientMessage) -> Receipt:
        """One message of this attempt. The session answers the same message twice in the same way."""
        drops = len(self.session.drops)
        result = self.session.receive(client, message)
        kind = (client, type(message))
        taken = not isinstance(result, DropReason) and kind not in self._seen
        if taken or len(self.session.drops) != drops:
            spool = self._room.new_name() if taken and isinstance(message, UploadHeader) else ""
            self._log.accepted(client, submission.token, submission.frame, spool)
            if isinstance(message, UploadHeader) and spool:
                self._spools[client] = self._room.spool(spool, message, self.session.params)
        if isinstance(result, DropReason):
            return _refused(result)
        self._seen.add(kind)
        self._apply(result)
        return self._progress(client) if isinstance(message, UploadHeader) else ACCEPTED

    def open_upload(self, client: ClientId, submission: Submission, header: UploadHeader) -> Spool | Receipt:
        """A spool to fill if the header is acceptable and chunks are missing."""
        receipt = self.submit(client, submission, header)
        return self._spools[client] if receipt.status is Status.PARTIAL else receipt

    def close_upload(self, client: ClientId, spool: Spool) -> Receipt:
        """All chunks are on stable storage, and their digest is the signed one."""
        if self._spools.get(client) is not spool or not spool.complete:
            return _refused(DropReason.UPLOAD_NOT_ACCEPTED)
        result = self.session.upload_complete(client)
        if isinstance(result, DropReason):
            if client not in self._uploaded:
                self._discard(client)
            return _refused(result)
        if client not in self._uploaded:
            self._log.uploaded(client)
            self._uploaded.add(client)
        self._apply(result)
        return ACCEPTED

    def close_phase(self) -> None:
        """Everybody answered, or nobody is waited for any longer."""
        phase = self.session.phase
        effects = self.session.close_phase()
        self._log.closed(phase, self._members(phase))
        self._closed(phase, effects)

    @property
    def to_fold(self) -> Aggregate | None:
        """The sum that the session waits for, if any."""
        return self._aggregate

    def fold(self, aggregate: Aggregate) -> Words:
        """Uploads of U3 plus masks. Long and without shared state: runs in a thread of its own."""
        spools = [self._spools[client] for client in aggregate.sources if client in self._spools]
        if len(spools) != len(aggregate.sources):
            raise LocalProtocolError("an upload of U3 is missing", found=len(spools), expected=len(aggregate.sources))
        return fold(spools, aggregate.masks, self.session.params)

    def encrypted_input(self, client: ClientId) -> tuple[bytes, Spool] | None:
        """For the decryptor: a client's header as a frame, and its ciphertext; None unless they are to be added now."""
        spool = self._spools.get(client)
        if self.session.phase is not Phase.UNMASKING or client not in self.session.masked or spool is None:
            return None
        if not isinstance(spool.header, EncryptedInput) or not spool.complete:
            return None
        return encode_client(spool.header), spool

    def finish(self, words: Words) -> None:
        """The folded sum is there."""
        aggregate, self._aggregate = self._aggregate, None
        if aggregate is not None:
            for mask in aggregate.masks:
                mask.seed.wipe()
        self._apply(self.session.finish(words))

    def discard(self) -> None:
        """Remove every spool."""
        for client in list(self._spools):
            self._discard(client)

    # -- after a restart ----------------------------------------------------------------------------------------------

    def reopen(self) -> None:
        """Hash again what was uploaded. Blocks; touches no session: runs in a thread before `replay`.

        Raises:
            LedgerError: The log cannot be read.
            TransportError: An upload cannot be read (E341).
        """
        names = {e.client: (e.spool, e.message) for e in self._log.entries() if isinstance(e, Accepted) and e.spool}
        self._room.sweep([name for name, _ in names.values()])
        for client, (name, header) in names.items():
            if not isinstance(header, UploadHeader):
                raise LocalProtocolError("a spool for a message without an upload", found=type(header).__name__)
            self._spools[client] = self._room.spool(name, header, self.session.params)
            self._spools[client].restore()

    def replay(self, joined: Callable[[ClientId, bytes], None]) -> None:
        """Bring a fresh session to where its predecessor was; every frame to the clients is posted once more.

        Args:
            joined: Told the process of each client that joined.

        Raises:
            LedgerError, LocalProtocolError: What stands in the log does not lead to what stands in the log.
            TransportError: An upload that was complete is not any more.
        """
        self.begin()
        for entry in self._log.entries():
            match entry:
                case Accepted(client, token, message):
                    if isinstance(message, AdvertiseKeys | DecryptorKey):
                        joined(client, token)
                    result = self.session.receive(client, message)
                    if not isinstance(result, DropReason):
                        self._seen.add((client, type(message)))
                        self._apply(result)
                case Uploaded(client):
                    spool = self._spools.get(client)
                    if spool is None or isinstance(self.session.upload_complete(client), DropReason):
                        raise _diverged(f"an upload of client {client}", "the upload of an accepted header")
                    spool.reseal()
                    self._uploaded.add(client)
                case Closed(phase, members):
                    if self.session.phase is not phase:
                        raise _diverged(f"phase {self.session.phase.name}", phase.name)
                    effects = self.session.close_phase()
                    if self._members(phase) != members:
                        raise _diverged(f"{self._members(phase)} in phase {phase.name}", members)
                    self._closed(phase, effects)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _members(self, phase: Phase) -> tuple[ClientId, ...]:
        return self.session.members(phase)

    def _closed(self, phase: Phase, effects: Effects) -> None:
        self._apply(effects)
        if phase is Phase.MASKED_INPUT:
            # The decryptor's comes later; in a replay its file is here already.
            for client in set(self._spools) - {DECRYPTOR, *self.session.masked}:
                self._discard(client)

    def _progress(self, client: ClientId) -> Receipt:
        """How far the upload of an accepted header is."""
        spool = self._spools.get(client)
        if spool is not None and client in self._uploaded:
            return ACCEPTED
        if spool is None or self.session.phase is not (Phase.UNMASKING if client == DECRYPTOR else Phase.MASKED_INPUT):
            return _refused(DropReason.WRONG_PHASE)
        return Receipt(Status.PARTIAL, received=spool.received)

    def _discard(self, client: ClientId) -> None:
        self._spools.pop(client).discard()

    def _apply(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case Persist(record):
                    self._journal.record(record)
                case Send(message, to) if to is not None and isinstance(message, ServerMessage):
                    self._post(to, message)
                case AcceptUpload(sender, _):
                    if sender not in self._spools:
                        raise LocalProtocolError("an upload that nothing was prepared for", found=sender)
                case Aggregate():
                    self._aggregate = effect
                case Released() | Abort():
                    self.outcome = effect
                case _:
                    raise LocalProtocolError("an effect that a server does not have", found=type(effect).__name__)


CANNOT_RESUME = (LedgerError, SecAggError)
"""What `reopen` and `replay` raise where an attempt cannot go on: it is given up, and another one takes its place."""


def _refused(reason: DropReason) -> Receipt:
    return Receipt(Status.REFUSED, f"{reason.name}: {reason.value}")


def _diverged(found: object, expected: object) -> LocalProtocolError:
    return LocalProtocolError("the attempt's log does not lead to what it says", found=found, expected=expected)
