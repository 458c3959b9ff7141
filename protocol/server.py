"""The server's side of one attempt, as a sans-I/O state machine. SPEC 7.

The server never raises on remote input: it returns a DropReason, remembers it, and goes on without that client. A phase
ends when the shell calls `close_phase` (all answered, or the deadline passed); a set below what the parameters require
ends the attempt as an outcome, not as an exception. No sum is returned in doubt.
"""

from collections import Counter
from typing import TypeVar

from protocol.context import context
from protocol.drops import DropReason
from protocol.effects import Abort, AcceptUpload, Aggregate, Effect, Effects, Persist, Released, ReleaseRecord, Send
from protocol.errors import LocalProtocolError
from protocol.messages import (
    KEY_SHARE,
    SELF_SHARE,
    AdvertiseKeys,
    Announcement,
    AttemptAborted,
    Certificate,
    ClientMessage,
    ConsistencyCheck,
    DealtShare,
    KeyList,
    MaskedInput,
    PeerShares,
    SealedShare,
    ServerMessage,
    ShareKeys,
    SurvivorNotice,
    UnmaskingShares,
    Withdraw,
    consistency_body,
    hash_masked,
    input_body,
    root_advertised,
    root_shared,
    seed_commitment,
    share_hash,
    shares_body,
)
from protocol.release import ReleaseLedger
from protocol.roster import Roster
from secagg import kdf, key_agreement, shamir
from secagg.encoding import Words
from secagg.errors import AuthenticationError, ReconstructionError, SecAggError
from secagg.graph import CompleteGraph
from secagg.masking import Mask, pairwise_sign, unframe
from secagg.params import SecAggParams
from secagg.signing import SigningKey
from secagg.transcript import bitmap, merkle_path, merkle_root
from secagg.types import ClientId, Phase, Secret

M = TypeVar("M", AdvertiseKeys, ShareKeys, ConsistencyCheck, UnmaskingShares)


class ServerSession:
    """One attempt. `start`, `receive` / `upload_complete` per message, `close_phase` per phase, `finish` at the end."""

    def __init__(
        self,
        params: SecAggParams,
        announcement: Announcement,
        roster: Roster,
        signer: SigningKey,
        ledger: ReleaseLedger,
    ) -> None:
        self.params = params
        self.announcement = announcement
        self.roster = roster
        self.ledger = ledger
        self.ctx = context(announcement, params)
        self.phase = Phase.ADVERTISE_KEYS
        self.drops: dict[ClientId, DropReason] = {}
        self._signer = signer
        self._messages: dict[Phase, dict[ClientId, ClientMessage]] = {phase: {} for phase in Phase}
        self._headers: dict[ClientId, MaskedInput] = {}
        self._sets: dict[Phase, tuple[ClientId, ...]] = {}
        self._root_u1 = self._root_u2 = self._hash_u3 = b""
        self._shares: dict[tuple[ClientId, ClientId], SealedShare] = {}  # (dealer, holder)

    @property
    def advertised(self) -> tuple[ClientId, ...]:
        """U1, once phase 0 is closed."""
        return self._sets.get(Phase.ADVERTISE_KEYS, ())

    @property
    def shared(self) -> tuple[ClientId, ...]:
        """U2, once phase 1 is closed."""
        return self._sets.get(Phase.SHARE_KEYS, ())

    @property
    def masked(self) -> tuple[ClientId, ...]:
        """U3, once phase 2 is closed."""
        return self._sets.get(Phase.MASKED_INPUT, ())

    @property
    def checked(self) -> tuple[ClientId, ...]:
        """U4, once phase 3 is closed."""
        return self._sets.get(Phase.CONSISTENCY_CHECK, ())

    @property
    def unmasked(self) -> tuple[ClientId, ...]:
        """U5, once phase 4 is closed."""
        return self._sets.get(Phase.UNMASKING, ())

    @property
    def open(self) -> bool:
        """Whether a phase waits for clients."""
        return self.phase < Phase.COMPLETED and Phase.UNMASKING not in self._sets

    def start(self) -> Effects:
        """Announce the attempt to the cohort."""
        return tuple(Send(self.announcement, client) for client in self.announcement.cohort)

    def missing(self) -> tuple[ClientId, ...]:
        """Admitted clients that the open phase still waits for."""
        if not self.open:
            return ()
        answered = self._messages[self.phase]
        return tuple(c for c in self._admitted() if c not in answered and c not in self.drops)

    def receive(self, sender: ClientId, message: ClientMessage) -> Effects | DropReason:
        """One message. A reason drops the sender from this attempt, except for late and repeated messages."""
        if sender not in self.announcement.cohort:
            return DropReason.NOT_INVITED
        if sender in self.drops:
            return self.drops[sender]
        if isinstance(message, Withdraw):
            return self._drop(sender, DropReason.WITHDREW)
        phase = _PHASE_OF.get(type(message))
        if phase is None:
            return DropReason.WRONG_PHASE
        earlier = self._headers.get(sender) if isinstance(message, MaskedInput) else self._messages[phase].get(sender)
        if earlier is not None:  # a lost answer makes a client repeat itself: the same bytes are fine, others are not
            if earlier != message:
                return self._drop(sender, DropReason.CHANGED_MESSAGE)
            again = phase is Phase.MASKED_INPUT and phase is self.phase and sender not in self._messages[phase]
            return (AcceptUpload(sender, self._headers[sender]),) if again else ()  # its upload was cut off: once more
        if phase is not self.phase or not self.open:
            return DropReason.WRONG_PHASE
        if sender not in self._admitted():
            return DropReason.NOT_ADMITTED
        match message:
            case AdvertiseKeys():
                problem = self._check_advertise(sender, message)
            case ShareKeys():
                problem = self._check_shares(sender, message)
            case MaskedInput():
                problem = self._check_header(sender, message)
                if problem is None:
                    self._headers[sender] = message
                    return (AcceptUpload(sender, message),)
            case ConsistencyCheck():
                problem = self._check_consistency(sender, message)
            case UnmaskingShares():
                problem = self._check_unmasking(sender, message)
            case _:
                return DropReason.WRONG_PHASE
        if problem is not None:
            return self._drop(sender, problem)
        self._messages[phase][sender] = message
        return ()

    def upload_complete(self, sender: ClientId) -> Effects | DropReason:
        """All chunks of an accepted header were spooled and their digest is the header's: the sender is in U3."""
        header = self._headers.get(sender)
        if header is None or sender in self.drops:
            return self.drops.get(sender, DropReason.UPLOAD_NOT_ACCEPTED)
        if self.phase is not Phase.MASKED_INPUT:  # SPEC 7.4: a late masked input is never folded in
            return DropReason.WRONG_PHASE
        self._messages[Phase.MASKED_INPUT][sender] = header
        return ()

    def close_phase(self) -> Effects:
        """Fix the set of the open phase and go on, or abort below what the parameters require."""
        if not self.open:
            raise LocalProtocolError("no phase is open", found=self.phase.name)
        members = tuple(sorted(c for c in self._messages[self.phase] if c not in self.drops))
        for client in self._admitted():
            if client not in members:
                self.drops.setdefault(client, DropReason.TIMED_OUT)
        self._sets[self.phase] = members
        if len(members) < self.params.required:
            return self._abort(f"{len(members)} clients left, {self.params.required} required")
        match self.phase:
            case Phase.ADVERTISE_KEYS:
                return self._close_advertise()
            case Phase.SHARE_KEYS:
                return self._close_shares()
            case Phase.MASKED_INPUT:
                return self._close_masked()
            case Phase.CONSISTENCY_CHECK:
                signatures = tuple((c, self._message(ConsistencyCheck, c).signature) for c in members)
                self.phase = Phase.UNMASKING
                return tuple(Send(Certificate(signatures), c) for c in members)
            case _:
                return self._close_unmasking()

    def finish(self, words: Words) -> Effects:
        """Check the unmasked sum; release it, or abort: a wrong sum is never returned."""
        if self.phase is not Phase.UNMASKING or self.open:
            raise LocalProtocolError("no sum is awaited", found=self.phase.name)
        try:
            total = unframe(words, len(self.masked), self.params)
        except ReconstructionError as error:
            return self._abort(error.what)
        self.phase = Phase.COMPLETED
        return (Released(self.masked, total),)

    # -- closing ------------------------------------------------------------------------------------------------------

    def _close_advertise(self) -> Effects:
        entries = tuple((c, self._message(AdvertiseKeys, c)) for c in self.advertised)
        self._root_u1 = root_advertised(self.ctx, entries)
        self.phase = Phase.SHARE_KEYS
        return tuple(Send(KeyList(entries, self.ledger.since(m.ledger_seq)), c) for c, m in entries)

    def _close_shares(self) -> Effects:
        shared = bitmap(self.shared, self.advertised)
        self._root_u2 = root_shared(self._root_u1, shared)
        dealt: dict[ClientId, list[DealtShare]] = {c: [] for c in self.shared}
        for dealer in self.shared:
            message = self._message(ShareKeys, dealer)
            leaves = [share.leaf(dealer) for share in message.shares]
            for index, share in enumerate(message.shares):
                self._shares[dealer, share.recipient] = share
                if share.recipient != dealer and share.recipient in dealt:
                    path = merkle_path(leaves, index)
                    dealt[share.recipient].append(
                        DealtShare(dealer, share.ciphertext, share.self_hash, share.key_hash, path, message.signature)
                    )
        self.phase = Phase.MASKED_INPUT
        return tuple(Send(PeerShares(shared, tuple(dealt[c])), c) for c in self.shared)

    def _close_masked(self) -> Effects:
        complaints = Counter(d for c in self.masked for d in set(self._headers[c].complaints))
        convicted = sorted(d for d, count in complaints.items() if count > self.params.max_corrupt)
        if convicted:  # more complaints than corrupt clients: an honest one complains, the dealer is to blame
            return self._abort(f"client {convicted[0]} dealt shares that do not open")
        masked = bitmap(self.masked, self.shared)
        self._hash_u3 = hash_masked(self._root_u2, masked)
        row = self.ledger.next_row(self.ctx, self._root_u2, self._hash_u3, self._signer)
        self.ledger = self.ledger.extended(row)
        self.phase = Phase.CONSISTENCY_CHECK
        record = Persist(ReleaseRecord(row, self.ledger.head))
        return (record, *(Send(SurvivorNotice(masked, row), c) for c in self.masked))

    def _close_unmasking(self) -> Effects:
        masks: list[Mask] = []
        try:
            for client in self.masked:
                masks.append(self._self_mask(client))
            for client in sorted(set(self.shared) - set(self.masked)):
                masks += self._pairwise_masks(client)
        except SecAggError as error:
            return self._abort(error.what)
        return (Aggregate(self.masked, tuple(masks)),)

    def _self_mask(self, client: ClientId) -> Mask:
        seed = self._reconstruct(client, SELF_SHARE)
        if seed_commitment(self.ctx, client, seed) != self._message(AdvertiseKeys, client).commitment:
            raise ReconstructionError(f"client {client} dealt shares of another seed than it committed to")
        return Mask(kdf.self_mask_key(seed, self.ctx, client), -1)

    def _pairwise_masks(self, dropped: ClientId) -> list[Mask]:
        private = self._reconstruct(dropped, KEY_SHARE)
        if key_agreement.public_key(private) != self._message(AdvertiseKeys, dropped).masking_pk:
            raise ReconstructionError(f"client {dropped} dealt shares of another key than it advertised")
        masks = []
        for peer in CompleteGraph(self.advertised).neighbors(dropped):
            if peer not in self.masked:
                continue
            agreed = key_agreement.agree(private, self._message(AdvertiseKeys, peer).masking_pk)
            seed = kdf.pairwise_seed(agreed, self.ctx, self._root_u2, dropped, peer)
            masks.append(Mask(seed, -pairwise_sign(peer, dropped)))
        return masks

    def _reconstruct(self, dealer: ClientId, kind: int) -> Secret:
        shares: dict[int, Secret] = {}
        for holder in self.unmasked:
            message = self._message(UnmaskingShares, holder)
            listed = dict(message.self_shares if kind == SELF_SHARE else message.key_shares)
            if dealer in listed:
                shares[holder] = Secret(listed[dealer])
        try:
            return shamir.reconstruct(shares, self.params.threshold)
        except ReconstructionError as error:
            raise ReconstructionError(f"shares of client {dealer}: {error.what}") from None

    def _abort(self, reason: str) -> Effects:
        at, self.phase = self.phase, Phase.ABORTED
        notice: ServerMessage = AttemptAborted(self.announcement.round, self.announcement.attempt, at, reason)
        sends: list[Effect] = [Send(notice, c) for c in self.announcement.cohort]
        return (*sends, Abort(at, reason))

    # -- checking -----------------------------------------------------------------------------------------------------

    def _admitted(self) -> tuple[ClientId, ...]:
        if self.phase is Phase.ADVERTISE_KEYS:
            return self.announcement.cohort
        return self._sets.get(Phase(self.phase - 1), ())

    def _drop(self, client: ClientId, reason: DropReason) -> DropReason:
        self.drops[client] = reason
        return reason

    def _signed(self, client: ClientId, signature: bytes, body: bytes) -> bool:
        try:
            self.roster.verify_key(client).verify(signature, body)
        except AuthenticationError:
            return False
        return True

    def _check_advertise(self, sender: ClientId, message: AdvertiseKeys) -> DropReason | None:
        if not self._signed(sender, message.signature, message.body(self.ctx, sender)):
            return DropReason.BAD_SIGNATURE
        if message.ledger_seq > self.ledger.seq or self.ledger.head_at(message.ledger_seq) != message.ledger_head:
            return DropReason.LEDGER_MISMATCH
        if not (key_agreement.is_canonical(message.encryption_pk) and key_agreement.is_canonical(message.masking_pk)):
            return DropReason.BAD_KEYS
        fresh = {message.encryption_pk, message.masking_pk, message.commitment}
        for other in self._messages[Phase.ADVERTISE_KEYS].values():
            if isinstance(other, AdvertiseKeys) and fresh & {other.encryption_pk, other.masking_pk, other.commitment}:
                return DropReason.BAD_KEYS
        try:  # a small-order key would make every honest client abort: it is found here, and named
            for key in (message.encryption_pk, message.masking_pk):
                key_agreement.agree(Secret(self.ctx), key)
        except AuthenticationError:
            return DropReason.BAD_KEYS
        return DropReason.BAD_KEYS if len(fresh) != 3 else None

    def _check_shares(self, sender: ClientId, message: ShareKeys) -> DropReason | None:
        holders = CompleteGraph(self.advertised).dealt_to(sender)
        if tuple(share.recipient for share in message.shares) != holders:
            return DropReason.BAD_SHARE_LIST
        if any((share.recipient == sender) != (share.ciphertext == b"") for share in message.shares):
            return DropReason.BAD_SHARE_LIST
        root = merkle_root([share.leaf(sender) for share in message.shares])
        if not self._signed(sender, message.signature, shares_body(self.ctx, self._root_u1, sender, root)):
            return DropReason.BAD_SIGNATURE
        return None

    def _check_header(self, sender: ClientId, message: MaskedInput) -> DropReason | None:
        named = message.complaints
        if message.total_words != self.params.total_words or not set(named) <= set(self.shared) - {sender}:
            return DropReason.BAD_HEADER
        if list(named) != sorted(set(named)):  # a name twice would count twice against an honest dealer
            return DropReason.BAD_HEADER
        if not self._signed(sender, message.signature, input_body(self.ctx, self._root_u2, sender, message)):
            return DropReason.BAD_SIGNATURE
        return None

    def _check_consistency(self, sender: ClientId, message: ConsistencyCheck) -> DropReason | None:
        body = consistency_body(self.ctx, self._root_u2, self._hash_u3, self.ledger.seq, self.ledger.head)
        return None if self._signed(sender, message.signature, body) else DropReason.BAD_SIGNATURE

    def _check_unmasking(self, sender: ClientId, message: UnmaskingShares) -> DropReason | None:
        """Exactly the shares that the sender must hold, each as its dealer hashed it (else: the sender's fault)."""
        refused = set(self._headers[sender].complaints)
        survivors = set(self.masked)
        expected = {
            SELF_SHARE: [d for d in self.shared if d in survivors and d not in refused],
            KEY_SHARE: [d for d in self.shared if d not in survivors and d not in refused],
        }
        for kind, listed in ((SELF_SHARE, message.self_shares), (KEY_SHARE, message.key_shares)):
            if [dealer for dealer, _ in listed] != expected[kind]:
                return DropReason.BAD_SHARES
            for dealer, share in listed:
                dealt = self._shares[dealer, sender]
                committed = dealt.self_hash if kind == SELF_SHARE else dealt.key_hash
                if share_hash(self.ctx, dealer, sender, kind, Secret(share)) != committed:
                    return DropReason.BAD_SHARES
        return None

    def _message(self, kind: type[M], client: ClientId) -> M:
        """The accepted message of one kind; a KeyError would be our bug, and so would another kind."""
        message = self._messages[_PHASE_OF[kind]][client]
        if not isinstance(message, kind):
            raise LocalProtocolError("a message stands under another phase", found=type(message).__name__)
        return message


_PHASE_OF: dict[type, Phase] = {
    AdvertiseKeys: Phase.ADVERTISE_KEYS,
    ShareKeys: Phase.SHARE_KEYS,
    MaskedInput: Phase.MASKED_INPUT,
    ConsistencyCheck: Phase.CONSISTENCY_CHECK,
    UnmaskingShares: Phase.UNMASKING,
}
