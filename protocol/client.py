"""The client's side of one attempt, as a sans-I/O state machine. SPEC 6.

States are values that hold only what the next step needs: after the masks are derived no private key is left, after
unmasking no share is left. Each step is a pure function named after the phase it answers; `ClientSession` is the one
mutable object, and one attribute of it changes. The client distrusts every field that the server sends: a failed check
raises RemoteProtocolError, erases all secrets and ends the session for good.
"""

from typing import NoReturn

from protocol.client_states import (
    PHASES,
    Aborted,
    Attempt,
    AwaitingCertificate,
    AwaitingInput,
    AwaitingKeys,
    AwaitingShares,
    AwaitingSurvivors,
    ClientMemory,
    ClientSetup,
    Completed,
    Held,
    State,
    erase,
)
from protocol.context import announcement_error, context
from protocol.effects import Charge, Effects, JoinRecord, Persist, Send, SpentRecord, Upload
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import (
    KEY_SHARE,
    NO_HASH,
    SELF_SHARE,
    AdvertiseKeys,
    Announcement,
    AttemptAborted,
    Certificate,
    ConsistencyCheck,
    DealtShare,
    Finished,
    KeyList,
    MaskedInput,
    PeerShares,
    RoundResult,
    SealedShare,
    ServerMessage,
    ShareKeys,
    SurvivorNotice,
    UnmaskingShares,
    consistency_body,
    hash_masked,
    input_body,
    root_advertised,
    root_shared,
    seed_commitment,
    share_hash,
    shares_body,
)
from protocol.release import follow
from secagg import aead, kdf, key_agreement, shamir
from secagg.encoding import Values
from secagg.errors import AuthenticationError, SecAggError
from secagg.graph import CompleteGraph
from secagg.labels import AD_SHARE
from secagg.masking import InputDigest, Mask, add_masks, chunks, frame, pairwise_sign
from secagg.transcript import encode, from_bitmap, merkle_climb, merkle_root
from secagg.types import ClientId, Phase, Rng, Secret


def reject(what: str, *, found: object = None, expected: object = None) -> NoReturn:
    """The peer's fault: this attempt is over."""
    raise RemoteProtocolError(
        what,
        found=found,
        expected=expected,
        do="the attempt was aborted and its secrets erased; ask the server's operator",
    )


def advertise_keys(attempt: Attempt, rng: Rng) -> tuple[AwaitingKeys, Effects]:
    """Phase 0: fresh keys, commitment to a fresh self seed."""
    setup, memory = attempt.setup, attempt.memory
    encryption_sk, masking_sk = key_agreement.generate(rng), key_agreement.generate(rng)
    self_seed = Secret(rng(shamir.SECRET_BYTES))
    unsigned = AdvertiseKeys(
        encryption_pk=key_agreement.public_key(encryption_sk),
        masking_pk=key_agreement.public_key(masking_sk),
        commitment=seed_commitment(attempt.ctx, setup.me, self_seed),
        ledger_seq=memory.ledger_seq,
        ledger_head=memory.ledger_head,
        signature=b"",
    )
    mine = AdvertiseKeys(
        unsigned.encryption_pk,
        unsigned.masking_pk,
        unsigned.commitment,
        unsigned.ledger_seq,
        unsigned.ledger_head,
        setup.signing_key.sign(unsigned.body(attempt.ctx, setup.me)),
    )
    record = JoinRecord(attempt.announcement.round, attempt.announcement.attempt, attempt.ctx)
    return AwaitingKeys(mine, encryption_sk, masking_sk, self_seed), (Persist(record), Send(mine))


def share_keys(state: AwaitingKeys, attempt: Attempt, message: KeyList, rng: Rng) -> tuple[AwaitingShares, Effects]:
    """Phase 1: check U1 and the release ledger, deal shares of the self seed and of the masking key."""
    setup, params, ctx = attempt.setup, attempt.setup.params, attempt.ctx
    ids = tuple(client for client, _ in message.entries)
    # SPEC 6.3: U1 is an ascending subset of the cohort, large enough, with our own entry unchanged
    if list(ids) != sorted(set(ids)) or not set(ids) <= set(attempt.announcement.cohort):
        reject("U1 is not an ascending subset of the cohort", found=ids, expected=attempt.announcement.cohort)
    if len(ids) < params.required:
        reject("U1 is too small", found=len(ids), expected=f"at least {params.required}")
    advertised = dict(message.entries)
    if advertised.get(setup.me) != state.mine:
        reject("our own key advertisement is missing or changed")
    for name in ("encryption_pk", "masking_pk", "commitment"):
        if len({getattr(entry, name) for entry in advertised.values()}) != len(advertised):
            reject(f"two clients advertise the same {name}")
    for client, entry in message.entries:  # SPEC 6.3: one key has one encoding, or the check for duplicates is void
        if not (key_agreement.is_canonical(entry.encryption_pk) and key_agreement.is_canonical(entry.masking_pk)):
            reject("an advertised key is not in canonical form", found=f"client {client}")
    for client, entry in message.entries:
        try:
            setup.roster.verify_key(client).verify(entry.signature, entry.body(ctx, client))
        except AuthenticationError:
            reject("a key advertisement is not signed by its client", found=f"client {client}")
    ledger = follow(
        setup.manifest.digest(),
        attempt.memory.ledger_seq,
        attempt.memory.ledger_head,
        message.segment,
        setup.server_key,
    )
    if ledger is None:
        reject(
            "the server's release ledger is no extension of the one this client signed",
            found="rows that do not chain, or are not signed by the server",
            expected=f"signed rows after seq {attempt.memory.ledger_seq}",
        )
    root_u1 = root_advertised(ctx, message.entries)
    holders = CompleteGraph(ids).dealt_to(setup.me)
    self_shares = shamir.split(state.self_seed, params.threshold, holders, rng)
    key_shares = shamir.split(state.masking_sk, params.threshold, holders, rng)
    sealed = []
    try:
        for holder in holders:
            self_hash = share_hash(ctx, setup.me, holder, SELF_SHARE, self_shares[holder])
            if holder == setup.me:  # SPEC 6.3: no key share of one's own is ever kept or hashed
                sealed.append(SealedShare(holder, b"", self_hash, NO_HASH))
                continue
            key = _share_key(state.encryption_sk, advertised[holder].encryption_pk, (ctx, root_u1), (setup.me, holder))
            plaintext = Secret(bytearray(self_shares[holder].view) + key_shares[holder].view)
            ciphertext = aead.seal(key, plaintext.view, _share_ad(ctx, root_u1, setup.me, holder))
            erase((key, plaintext))
            key_hash = share_hash(ctx, setup.me, holder, KEY_SHARE, key_shares[holder])
            sealed.append(SealedShare(holder, ciphertext, self_hash, key_hash))
        own_share = Secret(self_shares[setup.me].view)
    finally:  # also when a key of small order ends the attempt half-way
        erase(self_shares)
        erase(key_shares)
    root = merkle_root([share.leaf(setup.me) for share in sealed])
    signature = setup.signing_key.sign(shares_body(ctx, root_u1, setup.me, root))
    next_state = AwaitingShares(
        advertised, root_u1, ledger, own_share, state.encryption_sk, state.masking_sk, state.self_seed
    )
    return next_state, (Send(ShareKeys(tuple(sealed), signature)),)


def open_shares(state: AwaitingShares, attempt: Attempt, message: PeerShares) -> AwaitingInput:
    """Between phases 1 and 2: check U2, open what was dealt to us, derive every mask seed, drop the private keys."""
    held = Held({attempt.setup.me: state.own_share}, {})
    masks: list[Mask] = []
    try:
        return _open_shares(state, attempt, message, held, masks)
    except BaseException:  # what was opened or derived so far is in no state yet: `abort` would not find it
        erase(held)
        erase(masks)
        raise


def _open_shares(
    state: AwaitingShares, attempt: Attempt, message: PeerShares, held: Held, masks: list[Mask]
) -> AwaitingInput:
    setup, params = attempt.setup, attempt.setup.params
    u1 = tuple(sorted(state.advertised))
    members = from_bitmap(message.shared, u1)
    if members is None or setup.me not in members:
        reject("the bitmap of U2 is malformed or leaves us out")
    shared = tuple(ClientId(m) for m in members)
    if len(shared) < params.required:
        reject("U2 is too small", found=len(shared), expected=f"at least {params.required}")
    neighbors = tuple(v for v in CompleteGraph(u1).neighbors(setup.me) if v in shared)
    if tuple(share.dealer for share in message.shares) != neighbors:
        reject("shares of other dealers than our neighbours in U2", found=[s.dealer for s in message.shares])
    complaints = []
    for share in message.shares:
        opened = _open_share(state, attempt, share, u1)
        if opened is None:
            complaints.append(share.dealer)
        else:
            held.self_shares[share.dealer], held.key_shares[share.dealer] = opened
    # SPEC 6.4: one bad dealer is left out; with too few left nothing could be rebuilt
    if len(held.self_shares) < params.threshold:
        reject("too few shares opened", found=len(held.self_shares), expected=f"at least {params.threshold}")
    root_u2 = root_shared(state.root_u1, message.shared)
    masks.append(Mask(kdf.self_mask_key(state.self_seed, attempt.ctx, setup.me), 1))
    for peer in neighbors:
        agreed = _agree(state.masking_sk, state.advertised[peer].masking_pk)
        seed = kdf.pairwise_seed(agreed, attempt.ctx, root_u2, setup.me, peer)
        agreed.wipe()
        masks.append(Mask(seed, pairwise_sign(setup.me, peer)))
    for secret in (state.encryption_sk, state.masking_sk, state.self_seed):
        secret.wipe()
    return AwaitingInput(shared, root_u2, state.ledger, tuple(complaints), held, tuple(masks))


def mask_input(state: AwaitingInput, attempt: Attempt, values: Values) -> tuple[AwaitingSurvivors, Effects]:
    """Phase 2: frame, mask in place, sign the digest. Charge comes before the first byte leaves."""
    setup = attempt.setup
    words = frame(values, setup.params)
    add_masks(words, state.masks)
    erase(state.masks)
    hasher = InputDigest()
    for chunk in chunks(words, setup.params):
        hasher.update(chunk)
    unsigned = MaskedInput(hasher.digest(), len(words), state.complaints, b"")
    signature = setup.signing_key.sign(input_body(attempt.ctx, state.root_u2, setup.me, unsigned))
    header = MaskedInput(unsigned.input_digest, unsigned.total_words, unsigned.complaints, signature)
    charge = Charge(attempt.announcement.round, attempt.announcement.attempt)
    next_state = AwaitingSurvivors(state.shared, state.root_u2, state.ledger, state.held)
    return next_state, (charge, Upload(header, words))


def check_consistency(
    state: AwaitingSurvivors, attempt: Attempt, message: SurvivorNotice
) -> tuple[AwaitingCertificate, Effects]:
    """Phase 3: check U3 and the new ledger row, mark the round spent durably, then sign once."""
    setup, params, announcement = attempt.setup, attempt.setup.params, attempt.announcement
    members = from_bitmap(message.masked, state.shared)
    if members is None or setup.me not in members:  # SPEC 6.5: reject our own dropout
        reject("the bitmap of U3 is malformed or leaves us out")
    masked = tuple(ClientId(m) for m in members)
    if len(masked) < params.required:
        reject("U3 is too small", found=len(masked), expected=f"at least {params.required}")
    hash_u3 = hash_masked(state.root_u2, message.masked)
    row = message.row
    if (row.ctx, row.root_u2, row.hash_u3) != (attempt.ctx, state.root_u2, hash_u3):
        reject("the release-ledger row is not that of this attempt and this U3")
    extended = follow(setup.manifest.digest(), *state.ledger, (row,), setup.server_key)
    if extended is None:
        reject("the release-ledger row is no signed extension of the ledger", expected=f"seq {state.ledger[0] + 1}")
    seq, head = extended
    body = consistency_body(attempt.ctx, state.root_u2, hash_u3, seq, head)
    record = SpentRecord(announcement.round, announcement.attempt, row, head)
    effects = (Persist(record), Send(ConsistencyCheck(setup.signing_key.sign(body))))
    return AwaitingCertificate(state.shared, masked, body, state.held), effects


def unmask(state: AwaitingCertificate, attempt: Attempt, message: Certificate) -> tuple[Completed, Effects]:
    """Phase 4: with a quorum on exactly the tuple we signed, hand over one share per member of U2, never two."""
    setup = attempt.setup
    signers = [client for client, _ in message.signatures]
    if signers != sorted(set(signers)) or not set(signers) <= set(state.masked):
        reject("the certificate's signers are not ascending members of U3", found=signers)
    if len(signers) < setup.params.quorum:
        reject("too few signatures on U3", found=len(signers), expected=f"at least {setup.params.quorum}")
    for client, signature in message.signatures:
        try:
            setup.roster.verify_key(client).verify(signature, state.signed_body)
        except AuthenticationError:
            reject("a signature of the certificate is not on the set that we signed", found=f"client {client}")
    survivors = set(state.masked)
    answer = UnmaskingShares(
        self_shares=tuple((d, bytes(s.view)) for d, s in sorted(state.held.self_shares.items()) if d in survivors),
        key_shares=tuple((d, bytes(s.view)) for d, s in sorted(state.held.key_shares.items()) if d not in survivors),
    )
    erase(state.held)
    return Completed(), (Send(answer),)


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
        self._rng = rng
        self._state: State | None = None
        self._values: Values | None = None
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
        self._state, effects = advertise_keys(self._attempt, self._rng)
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

    def provide_input(self, values: Values) -> Effects:
        """The encoded update, int64, shape (vector_length,). Kept until the shares of the others are there."""
        if self._values is not None or self._state is None:
            raise LocalProtocolError("the input was given before, or the session was not started")
        if isinstance(self._state, AwaitingKeys | AwaitingShares):
            self._values = values
            return ()
        if not isinstance(self._state, AwaitingInput):
            raise LocalProtocolError("no input is awaited", found=self.phase.name)
        try:
            self._state, effects = mask_input(self._state, self._attempt, values)
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
                self._state, effects = share_keys(state, self._attempt, message, self._rng)
            case (AwaitingShares() as state, PeerShares()):
                self._state, effects = open_shares(state, self._attempt, message), ()
                if self._values is not None:
                    values, self._values = self._values, None
                    self._state, effects = mask_input(self._state, self._attempt, values)
            case (AwaitingSurvivors() as state, SurvivorNotice()):
                self._state, effects = check_consistency(state, self._attempt, message)
                self.survivors = self._state.masked
            case (AwaitingCertificate() as state, Certificate()):
                self._state, effects = unmask(state, self._attempt, message)
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


def _agree(private: Secret, peer_key: bytes) -> Secret:
    try:
        return key_agreement.agree(private, peer_key)
    except AuthenticationError:
        reject("an advertised key is not a valid X25519 key", found=peer_key.hex())


def _share_key(private: Secret, peer_key: bytes, roots: tuple[bytes, bytes], way: tuple[ClientId, ClientId]) -> Secret:
    """AEAD key for the direction ``way = (sender, recipient)``; `private` is ours, at either end."""
    agreed = _agree(private, peer_key)
    try:
        return kdf.share_key(agreed, *roots, *way)
    finally:
        agreed.wipe()


def _share_ad(ctx: bytes, root_u1: bytes, sender: ClientId, recipient: ClientId) -> bytes:
    return encode(AD_SHARE, ctx, root_u1, sender, recipient)


def _open_share(
    state: AwaitingShares, attempt: Attempt, share: DealtShare, u1: tuple[ClientId, ...]
) -> tuple[Secret, Secret] | None:
    """(self share, key share) of one dealer; None if the dealer is to blame.

    The relayed signature and path are the server's responsibility: a mismatch there ends the attempt.
    """
    setup, ctx, me = attempt.setup, attempt.ctx, attempt.setup.me
    leaf = SealedShare(me, share.ciphertext, share.self_hash, share.key_hash).leaf(share.dealer)
    root = merkle_climb(leaf, u1.index(me), len(u1), share.path)
    if root is None:
        reject("a share's path has the wrong length", found=f"dealer {share.dealer}")
    try:
        body = shares_body(ctx, state.root_u1, share.dealer, root)
        setup.roster.verify_key(share.dealer).verify(share.signature, body)
    except AuthenticationError:
        reject("relayed shares are not signed by their dealer", found=f"dealer {share.dealer}")
    peer_key = state.advertised[share.dealer].encryption_pk
    key = _share_key(state.encryption_sk, peer_key, (ctx, state.root_u1), (share.dealer, me))
    try:
        opened = aead.open_(key, share.ciphertext, _share_ad(ctx, state.root_u1, share.dealer, me))
    except AuthenticationError:
        return None
    finally:
        key.wipe()
    self_share, key_share = Secret(opened.view[: shamir.SHARE_BYTES]), Secret(opened.view[shamir.SHARE_BYTES :])
    opened.wipe()
    good = (
        len(key_share) == shamir.SHARE_BYTES
        and share_hash(ctx, share.dealer, me, SELF_SHARE, self_share) == share.self_hash
        and share_hash(ctx, share.dealer, me, KEY_SHARE, key_share) == share.key_hash
    )
    if not good:
        erase((self_share, key_share))
        return None
    return self_share, key_share
