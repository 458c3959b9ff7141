"""What a client does beside its masks where inputs are encrypted for the decryptor. SPEC 6.8.

The digest of a ciphertext goes out before anybody has the ciphertext, and the ciphertext only after the digests of all
others are here: nobody can make its own from somebody else's.
"""

from protocol.client_states import Attempt, AwaitingHashes, AwaitingInput, AwaitingSurvivors
from protocol.effects import Charge, Effect, Effects, Persist, Send, UploadCiphertext, UploadRecord
from protocol.encrypted import (
    EncryptedInput,
    InputHash,
    InputHashes,
    encrypted_input_body,
    hash_list,
    input_hash_body,
    key_body,
    key_digest,
    pack,
    packed_digest,
    split_digests,
)
from protocol.errors import LocalProtocolError
from protocol.key_list import reject
from protocol.messages import KeyList
from secagg.encoding import Words
from secagg.errors import AuthenticationError
from secagg.he.errors import CiphertextError
from secagg.he.scheme import AdditiveScheme
from secagg.transcript import from_bitmap
from secagg.types import ClientId


def check_decryptor_key(attempt: Attempt, message: KeyList) -> tuple[bytes, ...]:
    """The digest that root(U1) binds, or nothing where nothing is encrypted. Raises RemoteProtocolError."""
    setup = attempt.setup
    key, signature = message.decryptor_key, message.decryptor_signature
    if not setup.params.encrypted:
        if key or signature:
            reject("a decryptor's key where the manifest encrypts nothing")
        return ()
    try:
        setup.roster.decryptor_key.verify(signature, key_body(attempt.ctx, key))
    except AuthenticationError:
        reject("the key to encrypt with is not signed by the roster's decryptor for this attempt")
    try:  # before anything is dealt or masked: a key that cannot be used ends the attempt here
        scheme_of(attempt).encryptor(setup.params.bfv, key)
    except CiphertextError as error:
        reject(f"the decryptor's key cannot be used: {error.what}")
    return (key_digest(key),)


def encrypt_input(state: AwaitingInput, attempt: Attempt, words: Words) -> tuple[AwaitingHashes, Effects]:
    """Encrypt the words, wipe them, sign the digest. Charged before even the digest leaves."""
    setup, params = attempt.setup, attempt.setup.params
    try:
        encryptor = scheme_of(attempt).encryptor(params.bfv, state.decryptor_key)
        ciphertext = pack(encryptor.encrypt(words))
    finally:
        words.fill(0)
    unsigned = InputHash(packed_digest(ciphertext), len(ciphertext), state.complaints, b"")
    signature = setup.signing_key.sign(input_hash_body(attempt.ctx, state.root_u2, setup.me, unsigned))
    mine = InputHash(unsigned.input_digest, unsigned.total_bytes, unsigned.complaints, signature)
    next_state = AwaitingHashes(state.shared, state.graph, state.root_u2, state.ledger, state.held, mine, ciphertext)
    charge = Charge(attempt.announcement.round, attempt.announcement.attempt)
    return next_state, (charge, Send(mine))


def upload_encrypted(
    state: AwaitingHashes, attempt: Attempt, message: InputHashes
) -> tuple[AwaitingSurvivors, Effects]:
    """Phase 2: everybody is bound to a ciphertext; only now ours leaves. Without masks the round is spent first."""
    setup, params, announcement = attempt.setup, attempt.setup.params, attempt.announcement
    members = from_bitmap(message.listed, state.shared)
    if members is None or setup.me not in members:
        reject("the bitmap of the hashes is malformed or leaves us out")
    listed = tuple(ClientId(m) for m in members)
    if len(listed) < params.required:
        reject("too few hashes", found=len(listed), expected=f"at least {params.required}")
    digests = split_digests(message.digests, len(listed))
    if digests is None:
        reject("the hashes are not one for each listed client, all different")
    if digests[listed.index(setup.me)] != state.mine.input_digest:
        reject("our own hash is missing or changed")
    seen = hash_list(state.root_u2, message)
    unsigned = EncryptedInput(state.mine.input_digest, state.mine.total_bytes, b"")
    signature = setup.signing_key.sign(encrypted_input_body(attempt.ctx, seen, setup.me, unsigned))
    header = EncryptedInput(unsigned.input_digest, unsigned.total_bytes, signature)
    # SPEC 6.8: from here on server and decryptor together could read an input that carries no mask
    spent: tuple[Effect, ...] = ()
    if not params.masks:
        spent = (Persist(UploadRecord(announcement.round, announcement.attempt)),)
    next_state = AwaitingSurvivors(state.shared, state.graph, state.root_u2, state.ledger, state.held, listed, (seen,))
    return next_state, (*spent, UploadCiphertext(header, state.ciphertext))


def scheme_of(attempt: Attempt) -> AdditiveScheme:
    """How this client encrypts. Raises LocalProtocolError if its shell gave it no way."""
    scheme = attempt.setup.scheme
    if scheme is None:
        raise LocalProtocolError("the manifest encrypts inputs, and this session was given no scheme")
    return scheme
