"""The decryptor's side of one attempt, as a sans-I/O state machine. SPEC 6.9.

It trusts nobody: a quorum's signatures, not the server, tell it over whom the sum is; it gets the ciphertext of each of
them, compares it with what its client signed before any was uploaded, adds them itself, and gives out the sum modulo
2^64, once. The secret key is not in here: the shell makes it, adds and opens, in the order of the effects.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np

from protocol.context import announcement_error, context
from protocol.effects import AddBlock, Effects, Fetch, JoinRecord, OpeningRecord, OpenSum, Persist, Send, Upload
from protocol.encrypted import (
    BlockReader,
    DecryptorKey,
    EncryptedInput,
    InputHashes,
    OpenedSum,
    OpeningRequest,
    encrypted_input_body,
    hash_list,
    key_body,
    key_digest,
    opened_body,
    packed_sizes,
    split_digests,
)
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.key_list import reject
from protocol.manifest import Manifest
from protocol.messages import (
    Announcement,
    AttemptAborted,
    Finished,
    RoundResult,
    ServerMessage,
    consistency_body,
    hash_masked,
    root_advertised,
    root_shared,
)
from protocol.roster import Roster
from secagg.encoding import Words
from secagg.errors import AuthenticationError
from secagg.labels import ENCRYPTED_INPUT, OPENED_SUM
from secagg.masking import InputDigest
from secagg.params import SecAggParams
from secagg.signing import SigningKey
from secagg.transcript import from_bitmap
from secagg.types import ClientId

T = TypeVar("T")

ENDED: Final = "the attempt ended"


@dataclass(frozen=True, slots=True)
class DecryptorMemory:
    """What a decryptor remembers between attempts, rebuilt from its journal. Never a key, never a value."""

    joined: tuple[int, int] = (0, 0)  # highest (round, attempt) that a key was made for
    opened_round: int = 0  # highest round of which a sum was opened


@dataclass(frozen=True, slots=True)
class DecryptorSetup:
    """Who this decryptor is and what the owner signed."""

    signing_key: SigningKey
    roster: Roster
    manifest: Manifest
    params: SecAggParams


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that a quorum signed, checked."""

    message: OpeningRequest
    masked: tuple[ClientId, ...]  # U3
    digests: dict[ClientId, bytes]
    hash_list: bytes
    hash_u3: bytes


@dataclass(slots=True)
class _Summand:
    """The ciphertext that is being received."""

    client: ClientId
    header: EncryptedInput
    reader: BlockReader
    digest: InputDigest = field(default_factory=lambda: InputDigest(ENCRYPTED_INPUT))
    received: int = 0


class DecryptorSession:
    """One attempt: `start`, `receive` the request, for each client of U3 `begin`, `part`..., `end`, then `opened`.

    A failed check raises RemoteProtocolError and ends the session for good; the shell then forgets the key.
    """

    def __init__(self, setup: DecryptorSetup, announcement: Announcement, memory: DecryptorMemory) -> None:
        """Checks the announcement against the signed documents and the journal.

        Raises:
            RemoteProtocolError: It does not fit, a key was made for this attempt, or a sum of this round was opened.
        """
        problem = announcement_error(announcement, setup.roster, setup.manifest)
        if problem is None and (announcement.round, announcement.attempt) <= memory.joined:
            problem = "a key was made for this attempt, or a later one, before: attempts of a task only increase"
        if problem is None and announcement.round <= memory.opened_round:
            problem = "a sum of this round was opened already"
        if problem is not None:
            reject(problem, found=f"round {announcement.round}, attempt {announcement.attempt}")
        self.announcement = announcement
        self.ctx = context(announcement, setup.params)
        self._setup = setup
        self._public_key = b""
        self._request: _Request | None = None
        self._summand: _Summand | None = None
        self._added: list[ClientId] = []
        self._answer: Upload | None = None
        self._ended = ""

    @property
    def ended(self) -> bool:
        """Whether nothing is answered any more."""
        return bool(self._ended)

    def start(self, public_key: bytes) -> Effects:
        """Sign the key that was made for this attempt; the journal has the attempt before the key is seen."""
        if self._public_key or self._ended:
            raise LocalProtocolError("the session was started before")
        self._public_key = public_key
        message = DecryptorKey(public_key, self._setup.signing_key.sign(key_body(self.ctx, public_key)))
        return Persist(JoinRecord(*self._key, self.ctx)), Send(message)

    def receive(self, message: ServerMessage) -> Effects:
        """One message of the server. Raises RemoteProtocolError."""
        match message:
            case OpeningRequest():
                return self._guarded(lambda: self._requested(message))
            case AttemptAborted() if (message.round, message.attempt) != self._key:
                return ()
            case AttemptAborted() | RoundResult() | Finished():
                self.abort(ENDED)
                return ()
            case _:
                return self._guarded(lambda: reject("unexpected message", found=type(message).__name__))

    def begin(self, client: ClientId, header: EncryptedInput) -> None:
        """The next member of U3, in order, and what it signed."""
        self._guarded(lambda: self._begin(client, header))

    def part(self, data: bytes) -> Effects:
        """The next bytes of the ciphertext that was begun; blocks are added as they are complete."""
        return self._guarded(lambda: self._part(data))

    def end(self) -> Effects:
        """All bytes are here: compare the digest. After the last member of U3: journal, then open."""
        return self._guarded(self._end)

    def opened(self, words: Words) -> Effects:
        """The sum, to be signed and handed over."""
        return self._guarded(lambda: self._sign(words))

    def abort(self, reason: str = "aborted by this decryptor") -> None:
        """End the session and wipe the sum."""
        self._ended = self._ended or reason
        answer, self._answer = self._answer, None
        self._summand = None
        if answer is not None:
            answer.words.fill(0)

    @property
    def _key(self) -> tuple[int, int]:
        return self.announcement.round, self.announcement.attempt

    # -- inside -------------------------------------------------------------------------------------------------------

    def _requested(self, message: OpeningRequest) -> Effects:
        if self._request is not None:
            if self._request.message == message and self._answer is not None:
                return (self._answer,)  # the same again: the same bytes again
            reject("a second opening of one attempt", expected="one request, answered once")
        if not self._public_key or self._ended:
            reject("a request for a key that is gone", expected="the process and the attempt that made the key")
        self._request = self._check(message)
        return (Fetch(self._request.masked),)

    def _check(self, message: OpeningRequest) -> _Request:
        """Everything that a quorum signed, recomputed from our own ctx and key. SPEC 6.9."""
        params, ctx = self._setup.params, self.ctx
        u1 = _members("U1", message.advertised, self.announcement.cohort, params.required_advertised)
        own = key_digest(self._public_key)
        root_u1 = root_advertised(ctx, message.advertised, message.tree_root, own)
        u2 = _members("U2", message.shared, u1, params.required)
        root_u2 = root_shared(root_u1, message.shared)
        listed = _members("the list of hashes", message.listed, u2, params.required)
        digests = split_digests(message.digests, len(listed))
        if digests is None:
            reject("the hashes are not one for each listed client, all different")
        u3 = _members("U3", message.masked, u2, max(params.required, params.min_cohort))
        if not set(u3) <= set(listed):
            reject("a member of U3 is not in the list of hashes")
        seen = hash_list(root_u2, InputHashes(message.listed, message.digests))
        hash_u3 = hash_masked(root_u2, message.masked, seen)
        body = consistency_body(ctx, root_u2, hash_u3, message.ledger_seq, message.ledger_head)
        self._check_quorum(message, u3, body)
        return _Request(message, u3, dict(zip(listed, digests, strict=True)), seen, hash_u3)

    def _check_quorum(self, message: OpeningRequest, u3: tuple[ClientId, ...], body: bytes) -> None:
        signers = [client for client, _ in message.signatures]
        if signers != sorted(set(signers)) or not set(signers) <= set(u3):
            reject("the certificate's signers are not ascending members of U3", found=signers)
        if len(signers) < self._setup.params.quorum:
            reject("too few signatures on U3", found=len(signers), expected=f"at least {self._setup.params.quorum}")
        for client, signature in message.signatures:
            if not self._signed(client, signature, body):
                reject("a signature of the certificate is not on this set", found=f"client {client}")

    def _begin(self, client: ClientId, header: EncryptedInput) -> None:
        request, params = self._asked, self._setup.params
        if self._summand is not None or client != self._next:
            reject("a ciphertext out of order", found=f"client {client}", expected=f"client {self._next}")
        if header.input_digest != request.digests[client]:
            reject("a ciphertext whose hash is not in the signed list", found=f"client {client}")
        low, high = packed_sizes(params.num_blocks)
        if not low <= header.total_bytes <= high:
            reject("a ciphertext of an impossible length", found=header.total_bytes, expected=f"{low} to {high} bytes")
        body = encrypted_input_body(self.ctx, request.hash_list, client, header)
        if not self._signed(client, header.signature, body):
            reject("a ciphertext that its client did not sign after the list of hashes", found=f"client {client}")
        self._summand = _Summand(client, header, BlockReader(params.num_blocks))

    def _part(self, data: bytes) -> Effects:
        summand = self._begun
        summand.received += len(data)
        if summand.received > summand.header.total_bytes:
            reject("a ciphertext longer than its header says", found=f"client {summand.client}")
        summand.digest.update(data)
        first = summand.reader.blocks
        try:
            blocks = summand.reader.feed(data)
        except ValueError as error:
            reject(f"a ciphertext that cannot be read: {error}", found=f"client {summand.client}")
        return tuple(AddBlock(summand.client, number, block) for number, block in enumerate(blocks, first))

    def _end(self) -> Effects:
        summand, request = self._begun, self._asked
        if summand.received != summand.header.total_bytes or not summand.reader.complete:
            reject("a ciphertext that ends early", found=f"client {summand.client}")
        if summand.digest.digest() != summand.header.input_digest:
            reject("a ciphertext with another hash than its client signed", found=f"client {summand.client}")
        self._added.append(summand.client)
        self._summand = None
        if tuple(self._added) != request.masked:
            return ()
        return Persist(OpeningRecord(*self._key, self.ctx, request.hash_u3)), OpenSum()

    def _sign(self, words: Words) -> Effects:
        request, params = self._asked, self._setup.params
        if tuple(self._added) != request.masked or self._answer is not None or len(words) != params.total_words:
            raise LocalProtocolError("no sum is awaited, or one of another length", found=len(words))
        hasher = InputDigest(OPENED_SUM)
        hasher.update(words.astype("<u8", copy=False).view(np.uint8).data)
        unsigned = OpenedSum(hasher.digest(), len(words), b"")
        signature = self._setup.signing_key.sign(opened_body(self.ctx, request.hash_u3, unsigned))
        self._answer = Upload(OpenedSum(unsigned.input_digest, unsigned.total_words, signature), words)
        return (self._answer,)

    def _signed(self, client: ClientId, signature: bytes, body: bytes) -> bool:
        try:
            self._setup.roster.verify_key(client).verify(signature, body)
        except AuthenticationError:
            return False
        return True

    def _guarded(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except RemoteProtocolError as error:
            self.abort(error.what)
            raise

    @property
    def _asked(self) -> _Request:
        if self._request is None or self._ended:
            reject("a ciphertext that nobody asked for")
        return self._request

    @property
    def _begun(self) -> _Summand:
        if self._summand is None:
            reject("bytes of a ciphertext that was not begun")
        return self._summand

    @property
    def _next(self) -> ClientId | None:
        return next((c for c in self._asked.masked if c not in self._added), None)


def _members(what: str, bits: bytes, within: tuple[ClientId, ...], least: int) -> tuple[ClientId, ...]:
    members = from_bitmap(bits, within)
    if members is None:
        reject(f"the bitmap of {what} is malformed")
    if len(members) < least:
        reject(f"{what} is too small", found=len(members), expected=f"at least {least}")
    return tuple(ClientId(m) for m in members)
