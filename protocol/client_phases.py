"""The client's phases: one pure function per server message, named after the phase it answers. SPEC 6.

Each takes the state and the message and gives the next state and effects; each distrusts every field that the server
sends. A failed check raises RemoteProtocolError; `protocol.client` then erases every secret.
"""

from dataclasses import replace

import numpy as np

from protocol.client_states import (
    Attempt,
    AwaitingCertificate,
    AwaitingHashes,
    AwaitingInput,
    AwaitingKeys,
    AwaitingShares,
    AwaitingSurvivors,
    Completed,
    Held,
    erase,
)
from protocol.effects import Charge, Effects, JoinRecord, Persist, Send, SpentRecord, Upload
from protocol.encrypted_phases import check_decryptor_key, encrypt_input
from protocol.key_list import check_key_list, reject
from protocol.messages import (
    KEY_SHARE,
    NO_HASH,
    SELF_SHARE,
    AdvertiseKeys,
    Certificate,
    ConsistencyCheck,
    DealtShare,
    KeyList,
    MaskedInput,
    PeerShares,
    SealedShare,
    ShareKeys,
    SurvivorNotice,
    UnmaskingShares,
    consistency_body,
    hash_masked,
    input_body,
    root_shared,
    seed_commitment,
    share_hash,
    shares_body,
)
from protocol.release import follow
from secagg import aead, kdf, key_agreement, shamir
from secagg.encoding import Values
from secagg.errors import AuthenticationError
from secagg.graph import index_in
from secagg.key_agreement import Agreement
from secagg.labels import AD_SHARE
from secagg.masking import Framed, InputDigest, Mask, add_masks, frame, pairwise_sign
from secagg.transcript import encode, from_bitmap, merkle_climb, merkle_root
from secagg.types import ClientId, Rng, Secret


def advertise_keys(attempt: Attempt, rng: Rng) -> tuple[AwaitingKeys, Effects]:
    """Phase 0: fresh keys, commitment to a fresh self seed."""
    setup, memory = attempt.setup, attempt.memory
    encryption_sk, masking_sk = key_agreement.generate(rng), key_agreement.generate(rng)
    self_seed = Secret(rng(shamir.SECRET_BYTES))
    unsigned = AdvertiseKeys(
        encryption_pk=key_agreement.public_key(encryption_sk),
        masking_pk=key_agreement.public_key(masking_sk),
        commitment=seed_commitment(attempt.ctx, setup.me, self_seed),
        ledger_seq=memory.ledger.seq,
        ledger_head=memory.ledger.head,
        signature=b"",
    )
    mine = replace(unsigned, signature=setup.signing_key.sign(unsigned.body(attempt.ctx, setup.me)))
    record = JoinRecord(attempt.announcement.round, attempt.announcement.attempt, attempt.ctx)
    return AwaitingKeys(mine, encryption_sk, masking_sk, self_seed), (Persist(record), Send(mine))


def share_keys(state: AwaitingKeys, attempt: Attempt, message: KeyList, rng: Rng) -> tuple[AwaitingShares, Effects]:
    """Phase 1: check U1 and the release ledger, deal shares of the self seed and of the masking key."""
    setup, params, ctx = attempt.setup, attempt.setup.params, attempt.ctx
    bound = check_decryptor_key(attempt, message)
    neighborhood = check_key_list(attempt, state.mine, message, *bound)
    advertised, graph, root_u1 = neighborhood.advertised, neighborhood.graph, neighborhood.root_u1
    ledger = follow(attempt.memory.ledger, message.segment, setup.server_key)
    if ledger is None:
        reject(
            "the server's release ledger is no extension of the one this client signed",
            found="rows that do not chain, or are not signed by the server",
            expected=f"signed rows after seq {attempt.memory.ledger.seq}",
        )
    holders = graph.dealt_to(setup.me)
    points = {holder: graph.point(setup.me, holder) for holder in holders}
    self_shares = shamir.split(state.self_seed, params.threshold, points.values(), rng)
    key_shares = shamir.split(state.masking_sk, params.threshold, points.values(), rng)
    agreement = Agreement(state.encryption_sk)
    sealed = []
    try:
        for holder, point in points.items():
            self_share, key_share = self_shares[point], key_shares[point]
            self_hash = share_hash(ctx, setup.me, holder, SELF_SHARE, self_share)
            if holder == setup.me:  # SPEC 6.3: no key share of one's own is ever kept or hashed
                sealed.append(SealedShare(holder, b"", self_hash, NO_HASH))
                continue
            key = _share_key(agreement, advertised[holder].encryption_pk, (ctx, root_u1), (setup.me, holder))
            plaintext = Secret(bytearray(self_share.view) + key_share.view)
            ciphertext = aead.seal(key, plaintext.view, _share_ad(ctx, root_u1, setup.me, holder))
            erase((key, plaintext))
            key_hash = share_hash(ctx, setup.me, holder, KEY_SHARE, key_share)
            sealed.append(SealedShare(holder, ciphertext, self_hash, key_hash))
        own_share = Secret(self_shares[points[setup.me]].view) if setup.me in points else None
    finally:  # also when a key of small order ends the attempt half-way
        erase(self_shares)
        erase(key_shares)
    root = merkle_root([share.leaf(setup.me) for share in sealed])
    signature = setup.signing_key.sign(shares_body(ctx, root_u1, setup.me, root))
    secrets = (state.encryption_sk, state.masking_sk, state.self_seed)
    next_state = AwaitingShares(advertised, graph, root_u1, ledger, own_share, *secrets, message.decryptor_key)
    return next_state, (Send(ShareKeys(tuple(sealed), signature)),)


def open_shares(state: AwaitingShares, attempt: Attempt, message: PeerShares) -> AwaitingInput:
    """Between phases 1 and 2: check U2, open what was dealt to us, derive every mask seed, drop the private keys."""
    held = Held({} if state.own_share is None else {attempt.setup.me: state.own_share}, {})
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
    members = from_bitmap(message.shared, state.graph.members)
    if members is None or setup.me not in members:
        reject("the bitmap of U2 is malformed or leaves us out")
    shared = tuple(ClientId(m) for m in members)
    if len(shared) < params.required:
        reject("U2 is too small", found=len(shared), expected=f"at least {params.required}")
    present = set(shared)
    neighbors = tuple(v for v in state.graph.neighbors(setup.me) if v in present)
    if tuple(share.dealer for share in message.shares) != neighbors:
        reject("shares of other dealers than our neighbours in U2", found=[s.dealer for s in message.shares])
    complaints = []
    agreement = Agreement(state.encryption_sk)
    for share in message.shares:
        opened = _open_share(state, attempt, share, agreement)
        if opened is None:
            complaints.append(share.dealer)
        else:
            held.self_shares[share.dealer], held.key_shares[share.dealer] = opened
    # SPEC 6.4: one bad dealer is left out; with too few left nothing could be rebuilt
    if len(held.self_shares) < params.threshold:
        reject("too few shares opened", found=len(held.self_shares), expected=f"at least {params.threshold}")
    root_u2 = root_shared(state.root_u1, message.shared)
    if params.masks:
        masks.append(Mask(kdf.self_mask_key(state.self_seed, attempt.ctx, setup.me), 1))
    agreement = Agreement(state.masking_sk)
    for peer in neighbors if params.masks else ():
        agreed = _agree(agreement, state.advertised[peer].masking_pk)
        seed = kdf.pairwise_seed(agreed, attempt.ctx, root_u2, setup.me, peer)
        agreed.wipe()
        masks.append(Mask(seed, pairwise_sign(setup.me, peer)))
    for secret in (state.encryption_sk, state.masking_sk, state.self_seed):
        secret.wipe()
    public = (shared, state.graph, root_u2, state.ledger, tuple(complaints))
    return AwaitingInput(*public, held, tuple(masks), state.decryptor_key)


def mask_input(
    state: AwaitingInput, attempt: Attempt, values: Values | Framed
) -> tuple[AwaitingSurvivors | AwaitingHashes, Effects]:
    """Phase 2: frame, mask in place, sign the digest. Charge comes before the first byte leaves."""
    setup = attempt.setup
    words = values.copy(setup.params) if isinstance(values, Framed) else frame(values, setup.params)
    add_masks(words, state.masks)
    erase(state.masks)
    if setup.params.encrypted:
        return encrypt_input(state, attempt, words)
    hasher = InputDigest()
    hasher.update(words.view(np.uint8).data)
    unsigned = MaskedInput(hasher.digest(), len(words), state.complaints, b"")
    signature = setup.signing_key.sign(input_body(attempt.ctx, state.root_u2, setup.me, unsigned))
    header = MaskedInput(unsigned.input_digest, unsigned.total_words, unsigned.complaints, signature)
    charge = Charge(attempt.announcement.round, attempt.announcement.attempt)
    public = (state.shared, state.graph, state.root_u2, state.ledger)
    next_state = AwaitingSurvivors(*public, state.held, state.shared, ())
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
    if not set(masked) <= set(state.listed):  # SPEC 6.8: whoever gave no hash before the uploads is not summed
        reject("a member of U3 is not in the list of hashes")
    if len(masked) < params.required:
        reject("U3 is too small", found=len(masked), expected=f"at least {params.required}")
    # SPEC 6.5: nobody may be cut off from the rest, or its secrets could be rebuilt alone (or not at all)
    if (fewest := state.graph.fewest_holders(state.shared, masked)) < params.threshold:
        reject("a member of U2 has too few neighbours in U3", found=fewest, expected=f"at least {params.threshold}")
    hash_u3 = hash_masked(state.root_u2, message.masked, *state.hash_list)
    row, key = message.row, (announcement.round, announcement.attempt)
    opened = (row.round, row.attempt, row.ctx, row.root_u2, row.hash_u3)
    if opened != (*key, attempt.ctx, state.root_u2, hash_u3):
        reject("the release-ledger row is not that of this attempt and this U3")
    ledger = follow(state.ledger, (row,), setup.server_key)
    if ledger is None:
        reject("the release-ledger row is no signed extension of the ledger", expected=f"seq {state.ledger.seq + 1}")
    body = consistency_body(attempt.ctx, state.root_u2, hash_u3, ledger.seq, ledger.head)
    record = SpentRecord(*key, ledger.since(attempt.memory.ledger.seq), ledger.head)
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


def _agree(agreement: Agreement, peer_key: bytes) -> Secret:
    try:
        return agreement.agree(peer_key)
    except AuthenticationError:
        reject("an advertised key is not a valid X25519 key", found=peer_key.hex())


def _share_key(
    agreement: Agreement, peer_key: bytes, roots: tuple[bytes, bytes], way: tuple[ClientId, ClientId]
) -> Secret:
    """AEAD key for the direction ``way = (sender, recipient)``; the agreement is ours, at either end."""
    agreed = _agree(agreement, peer_key)
    try:
        return kdf.share_key(agreed, *roots, *way)
    finally:
        agreed.wipe()


def _share_ad(ctx: bytes, root_u1: bytes, sender: ClientId, recipient: ClientId) -> bytes:
    return encode(AD_SHARE, ctx, root_u1, sender, recipient)


def _open_share(
    state: AwaitingShares, attempt: Attempt, share: DealtShare, agreement: Agreement
) -> tuple[Secret, Secret] | None:
    """(self share, key share) of one dealer; None if the dealer is to blame.

    The relayed signature and path are the server's responsibility: a mismatch there ends the attempt.
    """
    setup, ctx, me = attempt.setup, attempt.ctx, attempt.setup.me
    leaf = SealedShare(me, share.ciphertext, share.self_hash, share.key_hash).leaf(share.dealer)
    holders = state.graph.dealt_to(share.dealer)
    root = merkle_climb(leaf, index_in(holders, me), len(holders), share.path)
    if root is None:
        reject("a share's path has the wrong length", found=f"dealer {share.dealer}")
    try:
        body = shares_body(ctx, state.root_u1, share.dealer, root)
        setup.roster.verify_key(share.dealer).verify(share.signature, body)
    except AuthenticationError:
        reject("relayed shares are not signed by their dealer", found=f"dealer {share.dealer}")
    peer_key = state.advertised[share.dealer].encryption_pk
    key = _share_key(agreement, peer_key, (ctx, state.root_u1), (share.dealer, me))
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
