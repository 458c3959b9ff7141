"""The server's side of the second lock: what the decryptor said in one attempt, and the list of hashes. SPEC 7.9.

The decryptor is one of a kind: a fault of its own ends the attempt, because nobody can take its place.
"""

from protocol.drops import DropReason
from protocol.effects import AcceptUpload, Effects
from protocol.encrypted import (
    DecryptorKey,
    InputHashes,
    OpenedSum,
    hash_list,
    key_body,
    key_digest,
    opened_body,
)
from protocol.messages import ClientMessage, Withdraw
from protocol.roster import Roster
from secagg.errors import AuthenticationError
from secagg.params import SecAggParams
from secagg.types import DECRYPTOR, Phase


class SecondLock:
    """Key, list of hashes, and sum of one attempt. Nothing in it where the manifest encrypts nothing."""

    def __init__(self, ctx: bytes, params: SecAggParams, roster: Roster) -> None:
        self.ctx = ctx
        self.used = params.encrypted
        self.listed: InputHashes | None = None
        self.opened = False  # the whole sum is there
        self._params = params
        self._roster = roster
        self._key: DecryptorKey | None = None
        self._sum: OpenedSum | None = None

    @property
    def key(self) -> tuple[bytes, ...]:
        """Public key and signature, as a KeyList has them; nothing where nothing is encrypted."""
        return () if self._key is None else (self._key.public_key, self._key.signature)

    @property
    def key_digest(self) -> tuple[bytes, ...]:
        """What root(U1) binds."""
        return () if self._key is None else (key_digest(self._key.public_key),)

    def hash_list(self, root_u2: bytes) -> tuple[bytes, ...]:
        """What H(U3) binds."""
        return () if self.listed is None else (hash_list(root_u2, self.listed),)

    def awaited(self, phase: Phase) -> bool:
        """Whether this phase cannot be closed without the decryptor."""
        if not self.used:
            return False
        if phase is Phase.ADVERTISE_KEYS:
            return self._key is None
        return phase is Phase.UNMASKING and not self.opened

    def receive(self, message: ClientMessage, phase: Phase, hash_u3: bytes) -> Effects | DropReason | str:
        """One message of the decryptor; a text is a fault that ends the attempt."""
        match message:
            case _ if phase in (Phase.COMPLETED, Phase.ABORTED):
                return DropReason.WRONG_PHASE
            case Withdraw():
                return f"the decryptor refused: {message.code} {message.what}"
            case DecryptorKey() if self._key is not None:
                return () if message == self._key else "the decryptor gave a second key"
            case DecryptorKey() if phase is Phase.ADVERTISE_KEYS:
                if not self._signed(message.signature, key_body(self.ctx, message.public_key)):
                    return "the decryptor's key is not signed"
                self._key = message
                return ()
            case OpenedSum() if self._sum is not None:
                if message != self._sum:
                    return "the decryptor gave a second sum"
                return () if self.opened else (AcceptUpload(DECRYPTOR, message),)
            case OpenedSum() if phase is Phase.UNMASKING:
                if message.total_words != self._params.total_words:
                    return "the decryptor's sum has another length"
                if not self._signed(message.signature, opened_body(self.ctx, hash_u3, message)):
                    return "the decryptor's sum is not signed"
                self._sum = message
                return (AcceptUpload(DECRYPTOR, message),)
            case _:
                return DropReason.WRONG_PHASE

    def upload_complete(self) -> Effects | DropReason:
        """All words of the sum are there, with the digest that the decryptor signed."""
        if self._sum is None:
            return DropReason.UPLOAD_NOT_ACCEPTED
        self.opened = True
        return ()

    def _signed(self, signature: bytes, body: bytes) -> bool:
        try:
            self._roster.decryptor_key.verify(signature, body)
        except AuthenticationError:
            return False
        return True
