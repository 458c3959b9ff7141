"""The server's side of one attempt, as a sans-I/O state machine. SPEC 7.

The server never raises on remote input: it returns a DropReason, remembers it, and goes on without that client. A phase
ends when the shell calls `close_phase` (all answered, or the deadline passed); a set below what the parameters require
ends the attempt as an outcome, not as an exception. No sum is returned in doubt.
"""

from collections import Counter
from typing import TypeVar

from protocol.context import context
from protocol.drops import DropReason
from protocol.effects import (
    Abort,
    AcceptUpload,
    Aggregate,
    Effect,
    Effects,
    ListRecord,
    Persist,
    Released,
    ReleaseRecord,
    Send,
)
from protocol.encrypted import (
    EncryptedInput,
    InputHash,
    InputHashes,
    OpeningRequest,
    encrypted_input_body,
    input_hash_body,
    packed_sizes,
)
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
    KeyEntry,
    KeyList,
    LedgerRows,
    MaskedInput,
    PeerShares,
    SealedShare,
    ServerMessage,
    ShareKeys,
    SurvivorNotice,
    UnmaskingShares,
    UploadHeader,
    Withdraw,
    advertise_leaf,
    consistency_body,
    hash_masked,
    input_body,
    root_advertised,
    root_shared,
    share_hash,
    shares_body,
)
from protocol.release import MAX_SEGMENT, ReleaseLedger, follow
from protocol.roster import Roster
from protocol.second_lock import SecondLock
from protocol.unmasking import DealerFault, Unmasking
from secagg import key_agreement
from secagg.encoding import Words
from secagg.errors import AuthenticationError, ReconstructionError, SecAggError
from secagg.graph import NeighborGraph, index_in, neighbor_graph
from secagg.masking import unframe
from secagg.params import SecAggParams
from secagg.signing import SigningKey, VerifyKey
from secagg.transcript import MerkleTree, bitmap, merkle_root
from secagg.types import DECRYPTOR, ClientId, Phase, Secret

M = TypeVar("M", AdvertiseKeys, ShareKeys, InputHash, ConsistencyCheck, UnmaskingShares)


class ServerSession:
    """One attempt. `start`, `receive` / `upload_complete` per message, `close_phase` per phase, `finish` at the end."""

    def __init__(
        self,
        params: SecAggParams,
        announcement: Announcement,
        roster: Roster,
        signer: SigningKey,
        ledger: ReleaseLedger,
        excluded: frozenset[ClientId] = frozenset(),
    ) -> None:
        """`excluded`: clients convicted in an earlier attempt of this task; they get no further than phase 0."""
        self.params = params
        self.announcement = announcement
        self.roster = roster
        self.ledger = ledger
        self.ctx = context(announcement, params)
        self.phase = Phase.ADVERTISE_KEYS
        self.drops: dict[ClientId, DropReason] = {}
        self._signer = signer
        self._messages: dict[Phase, dict[ClientId, ClientMessage]] = {phase: {} for phase in Phase}
        self._headers: dict[ClientId, UploadHeader] = {}
        self._lock = SecondLock(self.ctx, params, roster)
        self._sets: dict[Phase, tuple[ClientId, ...]] = {}
        self._inside: dict[Phase, frozenset[ClientId]] = {}  # the same sets, to look a client up
        self._excluded = excluded
        self._invited = frozenset(announcement.cohort)
        self._keys_seen: set[bytes] = set()  # public keys and commitments: no two clients may share one
        self._graph: NeighborGraph | None = None
        self._tree_root = self._root_u1 = self._root_u2 = self._hash_u3 = b""

    @property
    def invited(self) -> tuple[ClientId, ...]:
        """The cohort, and the decryptor first if it takes part."""
        return (DECRYPTOR, *self.announcement.cohort) if self._lock.used else self.announcement.cohort

    @property
    def advertised(self) -> tuple[ClientId, ...]:
        """U1, once phase 0 is closed."""
        return self._sets.get(Phase.ADVERTISE_KEYS, ())

    @property
    def shared(self) -> tuple[ClientId, ...]:
        """U2, once phase 1 is closed."""
        return self._sets.get(Phase.SHARE_KEYS, ())

    @property
    def listed(self) -> tuple[ClientId, ...]:
        """Whose digests were given to everybody before the first upload; only where inputs are encrypted."""
        return self._sets.get(Phase.INPUT_HASHES, ())

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
        return self.phase not in (Phase.COMPLETED, Phase.ABORTED) and Phase.UNMASKING not in self._sets

    def members(self, phase: Phase) -> tuple[ClientId, ...]:
        """The set that closing this phase fixed; nothing before."""
        return self._sets.get(phase, ())

    def start(self) -> Effects:
        """Announce the attempt to the cohort, and to the decryptor if it takes part."""
        return tuple(Send(self.announcement, client) for client in self.invited)

    def missing(self) -> tuple[ClientId, ...]:
        """Admitted clients, and the decryptor, that the open phase still waits for."""
        if not self.open:
            return ()
        answered = self._messages[self.phase]
        clients = tuple(c for c in self._admitted_list() if c not in answered and c not in self.drops)
        return (DECRYPTOR, *clients) if self._lock.awaited(self.phase) else clients

    def receive(self, sender: ClientId, message: ClientMessage) -> Effects | DropReason:
        """One message. A reason drops the sender from this attempt, except for late and repeated messages."""
        if sender == DECRYPTOR and self._lock.used:
            result = self._lock.receive(message, self.phase, self._hash_u3)
            return self._abort(result) if isinstance(result, str) else result
        if sender not in self._invited:
            return DropReason.NOT_INVITED
        if sender in self.drops:
            return self.drops[sender]
        if isinstance(message, Withdraw):
            return self._drop(sender, DropReason.WITHDREW)
        if isinstance(message, LedgerRows):
            return self._adopt(sender, message)
        phase = _PHASE_OF.get(type(message))
        if phase is None or type(message) in (_PLAIN if self._lock.used else _ENCRYPTED):
            return DropReason.WRONG_PHASE
        uploads = isinstance(message, MaskedInput | EncryptedInput)
        earlier = self._headers.get(sender) if uploads else self._messages[phase].get(sender)
        if earlier is not None:  # a lost answer makes a client repeat itself: the same bytes are fine, others are not
            if earlier != message:
                return self._drop(sender, DropReason.CHANGED_MESSAGE)
            again = phase is Phase.MASKED_INPUT and phase is self.phase and sender not in self._messages[phase]
            return (AcceptUpload(sender, self._headers[sender]),) if again else ()  # its upload was cut off: once more
        if phase is not self.phase or not self.open:
            return DropReason.WRONG_PHASE
        if self.phase is not Phase.ADVERTISE_KEYS and sender not in self._inside[self._before(self.phase)]:
            return DropReason.NOT_ADMITTED
        match message:
            case AdvertiseKeys():
                problem = self._check_advertise(sender, message)
            case ShareKeys():
                problem = self._check_shares(sender, message)
            case InputHash():
                problem = self._check_hash(sender, message)
            case MaskedInput() | EncryptedInput():
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
        if sender == DECRYPTOR:
            return self._lock.upload_complete()
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
        for client in self._admitted_list():
            if client not in self._messages[self.phase]:
                self.drops.setdefault(client, DropReason.TIMED_OUT)
        self._sets[self.phase], self._inside[self.phase] = members, frozenset(members)
        params = self.params
        required = params.required_advertised if self.phase is Phase.ADVERTISE_KEYS else params.required
        if len(members) < required:
            return self._abort(f"{len(members)} clients left, {required} required")
        if self._lock.awaited(self.phase):  # nobody else can make the key, or open the sum
            return self._abort("the decryptor did not answer")
        match self.phase:
            case Phase.ADVERTISE_KEYS:
                return self._close_advertise()
            case Phase.SHARE_KEYS:
                return self._close_shares()
            case Phase.INPUT_HASHES:
                return self._close_hashes()
            case Phase.MASKED_INPUT:
                return self._close_masked()
            case Phase.CONSISTENCY_CHECK:
                signers = members[: params.quorum]  # more of them would say the same again
                signatures = tuple((c, self._message(ConsistencyCheck, c).signature) for c in signers)
                self.phase = Phase.UNMASKING
                certificate = Certificate(signatures)
                return (*self._opening_request(signatures), *(Send(certificate, c) for c in members))
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
        members, cohort = self.advertised, self.announcement.cohort
        messages = {c: self._message(AdvertiseKeys, c) for c in members}
        tree = MerkleTree([advertise_leaf(self.ctx, c, keys) for c, keys in messages.items()])
        bits = bitmap(members, cohort)
        self._tree_root = tree.root
        self._root_u1 = root_advertised(self.ctx, bits, tree.root, *self._lock.key_digest)
        graph = self._graph = neighbor_graph(self.params, members, self._root_u1)
        whole = self.params.graph == "complete"
        entries = {c: KeyEntry(c, keys, () if whole else tree.path(i)) for i, (c, keys) in enumerate(messages.items())}
        self.phase = Phase.SHARE_KEYS
        return tuple(
            Send(
                KeyList(
                    bits,
                    tuple(entries[v] for v in sorted((c, *graph.neighbors(c)))),
                    self.ledger.since(keys.ledger_seq),
                    *self._lock.key,
                ),
                c,
            )
            for c, keys in messages.items()
        )

    def _close_shares(self) -> Effects:
        bits = bitmap(self.shared, self.advertised)
        self._root_u2 = root_shared(self._root_u1, bits)
        if problem := self._cut_off(self.shared):
            return self._abort(problem)
        dealt: dict[ClientId, list[DealtShare]] = {c: [] for c in self.shared}
        for dealer in self.shared:
            message = self._message(ShareKeys, dealer)
            tree = MerkleTree([share.leaf(dealer) for share in message.shares])
            for index, share in enumerate(message.shares):
                if share.recipient != dealer and share.recipient in dealt:
                    dealt[share.recipient].append(
                        DealtShare(
                            dealer,
                            share.ciphertext,
                            share.self_hash,
                            share.key_hash,
                            tree.path(index),
                            message.signature,
                        )
                    )
        self.phase = Phase.INPUT_HASHES if self.params.encrypted else Phase.MASKED_INPUT
        return tuple(Send(PeerShares(bits, tuple(dealt[c])), c) for c in self.shared)

    def _close_hashes(self) -> Effects:
        """SPEC 7.9: the list is fixed before the first ciphertext is here, and nobody else can be in U3."""
        digests = b"".join(self._message(InputHash, c).input_digest for c in self.listed)
        listed = self._lock.listed = InputHashes(bitmap(self.listed, self.shared), digests)
        self.phase = Phase.MASKED_INPUT
        sends: list[Effect] = [Send(listed, c) for c in self.listed]
        if self.params.masks:
            return tuple(sends)
        return (Persist(ListRecord(self.announcement.round, self.announcement.attempt)), *sends)

    def _close_masked(self) -> Effects:
        complaints = Counter(d for c in self.masked for d in set(self._complaints(c)))
        convicted = sorted(d for d, count in complaints.items() if count > self.params.max_corrupt_neighbors)
        if convicted:  # more complaints than corrupt holders: an honest one complains, the dealer is to blame
            return self._abort(f"client {convicted[0]} dealt shares that do not open", tuple(convicted))
        if problem := self._cut_off(self.masked):  # SPEC 7.4: such a U3 is never published
            return self._abort(problem)
        masked = bitmap(self.masked, self.shared)
        self._hash_u3 = hash_masked(self._root_u2, masked, *self._lock.hash_list(self._root_u2))
        key = (self.announcement.round, self.announcement.attempt)
        row = self.ledger.next_row((*key, self.ctx, self._root_u2, self._hash_u3), self._signer)
        self.ledger = self.ledger.extended(row)
        self.phase = Phase.CONSISTENCY_CHECK
        notice = SurvivorNotice(masked, row)
        return (Persist(ReleaseRecord(row, self.ledger.head)), *(Send(notice, c) for c in self.masked))

    def _close_unmasking(self) -> Effects:
        unmasking = Unmasking(
            self.ctx,
            self._root_u2,
            self._drawn_graph,
            self.params.threshold,
            {c: self._message(AdvertiseKeys, c) for c in self.shared},
            self._inside[Phase.MASKED_INPUT],
        )
        try:
            masks = unmasking.masks(self.shared, {c: self._message(UnmaskingShares, c) for c in self.unmasked})
        except DealerFault as error:
            return self._abort(error.what, (error.dealer,))
        except SecAggError as error:
            return self._abort(error.what)
        if not self.params.masks:
            masks = ()
        return (Aggregate(self.masked, masks, opened=self.params.encrypted),)

    def _opening_request(self, signatures: tuple[tuple[ClientId, bytes], ...]) -> Effects:
        listed = self._lock.listed
        if listed is None:
            return ()
        request = OpeningRequest(
            advertised=bitmap(self.advertised, self.announcement.cohort),
            tree_root=self._tree_root,
            shared=bitmap(self.shared, self.advertised),
            listed=listed.listed,
            digests=listed.digests,
            masked=bitmap(self.masked, self.shared),
            ledger_seq=self.ledger.seq,
            ledger_head=self.ledger.head,
            signatures=signatures,
        )
        return (Send(request, DECRYPTOR),)

    def _cut_off(self, present: tuple[ClientId, ...]) -> str | None:
        """Why the secrets of some member of U2 could not be rebuilt by `present` alone; None if all can."""
        fewest, threshold = self._drawn_graph.fewest_holders(self.shared, present), self.params.threshold
        return None if fewest >= threshold else f"a client has {fewest} of {threshold} required neighbours left"

    def _abort(self, reason: str, convicted: tuple[ClientId, ...] = ()) -> Effects:
        at, self.phase = self.phase, Phase.ABORTED
        notice: ServerMessage = AttemptAborted(self.announcement.round, self.announcement.attempt, at, reason)
        sends: list[Effect] = [Send(notice, c) for c in self.invited]
        return (*sends, Abort(at, reason, convicted))

    def _adopt(self, sender: ClientId, message: LedgerRows) -> Effects | DropReason:
        """SPEC 8.3: rows that a restored backup of this server does not know, under its own signature."""
        if self.phase is not Phase.ADVERTISE_KEYS:  # the row of this attempt may stand already: nothing is adopted
            return DropReason.WRONG_PHASE
        longer = follow(self.ledger, tuple(row for row in message.rows if row.seq > self.ledger.seq), self._own_key)
        if longer is None or longer.seq == self.ledger.seq:
            return self._drop(sender, DropReason.LEDGER_MISMATCH)
        before, self.ledger = self.ledger.seq, longer
        records = [Persist(ReleaseRecord(r, longer.head_at(r.seq))) for r in longer.since(before)]
        reason = f"this server was behind its own release ledger: {len(records)} signed rows adopted"
        return (*records, *self._abort(reason))

    # -- checking -----------------------------------------------------------------------------------------------------

    @property
    def _drawn_graph(self) -> NeighborGraph:
        if self._graph is None:
            raise LocalProtocolError("the graph is drawn when phase 0 is closed", found=self.phase.name)
        return self._graph

    @property
    def _own_key(self) -> VerifyKey:
        return self._signer.verify_key

    def _admitted_list(self) -> tuple[ClientId, ...]:
        if self.phase is Phase.ADVERTISE_KEYS:
            return self.announcement.cohort
        return self.members(self._before(self.phase))

    def _before(self, phase: Phase) -> Phase:
        """The phase whose set this one builds on."""
        if phase is Phase.INPUT_HASHES:
            return Phase.SHARE_KEYS
        if phase is Phase.MASKED_INPUT and self.params.encrypted:
            return Phase.INPUT_HASHES
        return Phase(phase - 1)

    def _complaints(self, client: ClientId) -> tuple[ClientId, ...]:
        if self.params.encrypted:
            return self._message(InputHash, client).complaints
        header = self._headers[client]
        return header.complaints if isinstance(header, MaskedInput) else ()

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
        if sender in self._excluded:
            return DropReason.CONVICTED
        if message.ledger_seq > self.ledger.seq or self.ledger.head_at(message.ledger_seq) != message.ledger_head:
            return DropReason.LEDGER_MISMATCH
        if self.ledger.seq - message.ledger_seq > MAX_SEGMENT:
            return DropReason.LEDGER_BEHIND
        if not (key_agreement.is_canonical(message.encryption_pk) and key_agreement.is_canonical(message.masking_pk)):
            return DropReason.BAD_KEYS
        fresh = {message.encryption_pk, message.masking_pk, message.commitment}
        if len(fresh) != 3 or fresh & self._keys_seen:
            return DropReason.BAD_KEYS
        try:  # a small-order key would make every honest client abort: it is found here, and named
            for key in (message.encryption_pk, message.masking_pk):
                key_agreement.agree(Secret(self.ctx), key)
        except AuthenticationError:
            return DropReason.BAD_KEYS
        self._keys_seen |= fresh
        return None

    def _check_shares(self, sender: ClientId, message: ShareKeys) -> DropReason | None:
        holders = self._drawn_graph.dealt_to(sender)
        if tuple(share.recipient for share in message.shares) != holders:
            return DropReason.BAD_SHARE_LIST
        if any((share.recipient == sender) != (share.ciphertext == b"") for share in message.shares):
            return DropReason.BAD_SHARE_LIST
        root = merkle_root([share.leaf(sender) for share in message.shares])
        if not self._signed(sender, message.signature, shares_body(self.ctx, self._root_u1, sender, root)):
            return DropReason.BAD_SIGNATURE
        return None

    def _check_header(self, sender: ClientId, message: MaskedInput | EncryptedInput) -> DropReason | None:
        if isinstance(message, MaskedInput):
            if message.total_words != self.params.total_words or not self._may_complain(sender, message.complaints):
                return DropReason.BAD_HEADER
            body = input_body(self.ctx, self._root_u2, sender, message)
        else:
            given = self._message(InputHash, sender)
            if (message.input_digest, message.total_bytes) != (given.input_digest, given.total_bytes):
                return DropReason.CHANGED_MESSAGE
            (listed,) = self._lock.hash_list(self._root_u2)
            body = encrypted_input_body(self.ctx, listed, sender, message)
        return None if self._signed(sender, message.signature, body) else DropReason.BAD_SIGNATURE

    def _check_hash(self, sender: ClientId, message: InputHash) -> DropReason | None:
        low, high = packed_sizes(self.params.num_blocks)
        others = self._messages[Phase.INPUT_HASHES].values()
        if not low <= message.total_bytes <= high or not self._may_complain(sender, message.complaints):
            return DropReason.BAD_HEADER
        if any(isinstance(m, InputHash) and m.input_digest == message.input_digest for m in others):
            return DropReason.BAD_HEADER  # somebody else's ciphertext counted twice, or nobody's
        body = input_hash_body(self.ctx, self._root_u2, sender, message)
        return None if self._signed(sender, message.signature, body) else DropReason.BAD_SIGNATURE

    def _may_complain(self, sender: ClientId, named: tuple[ClientId, ...]) -> bool:
        """Ascending neighbours in U2; a name twice would count twice against an honest dealer."""
        near = set(self._drawn_graph.neighbors(sender)) & self._inside[Phase.SHARE_KEYS]
        return set(named) <= near and list(named) == sorted(set(named))

    def _check_consistency(self, sender: ClientId, message: ConsistencyCheck) -> DropReason | None:
        body = consistency_body(self.ctx, self._root_u2, self._hash_u3, self.ledger.seq, self.ledger.head)
        return None if self._signed(sender, message.signature, body) else DropReason.BAD_SIGNATURE

    def _check_unmasking(self, sender: ClientId, message: UnmaskingShares) -> DropReason | None:
        """Exactly the shares that the sender must hold, each as its dealer hashed it (else: the sender's fault)."""
        refused = set(self._complaints(sender))
        shared, survivors = self._inside[Phase.SHARE_KEYS], self._inside[Phase.MASKED_INPUT]
        dealers = [d for d in self._drawn_graph.dealt_to(sender) if d in shared and d not in refused]
        expected = {
            SELF_SHARE: [d for d in dealers if d in survivors],
            KEY_SHARE: [d for d in dealers if d not in survivors],
        }
        for kind, listed in ((SELF_SHARE, message.self_shares), (KEY_SHARE, message.key_shares)):
            if [dealer for dealer, _ in listed] != expected[kind]:
                return DropReason.BAD_SHARES
            for dealer, share in listed:
                dealt = self._sealed(dealer, sender)
                committed = dealt.self_hash if kind == SELF_SHARE else dealt.key_hash
                if share_hash(self.ctx, dealer, sender, kind, Secret(share)) != committed:
                    return DropReason.BAD_SHARES
        return None

    def _sealed(self, dealer: ClientId, holder: ClientId) -> SealedShare:
        """What `dealer` sealed for `holder`: the recipients of accepted shares are exactly `dealt_to(dealer)`."""
        return self._message(ShareKeys, dealer).shares[index_in(self._drawn_graph.dealt_to(dealer), holder)]

    def _message(self, kind: type[M], client: ClientId) -> M:
        """The accepted message of one kind; a KeyError would be our bug, and so would another kind."""
        message = self._messages[_PHASE_OF[kind]][client]
        if not isinstance(message, kind):
            raise LocalProtocolError("a message stands under another phase", found=type(message).__name__)
        return message


_PLAIN = (MaskedInput,)  # only where nothing is encrypted
_ENCRYPTED = (InputHash, EncryptedInput)  # only where inputs are
_PHASE_OF: dict[type, Phase] = {
    AdvertiseKeys: Phase.ADVERTISE_KEYS,
    ShareKeys: Phase.SHARE_KEYS,
    InputHash: Phase.INPUT_HASHES,
    MaskedInput: Phase.MASKED_INPUT,
    EncryptedInput: Phase.MASKED_INPUT,
    ConsistencyCheck: Phase.CONSISTENCY_CHECK,
    UnmaskingShares: Phase.UNMASKING,
}
