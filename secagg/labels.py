"""Every domain-separation label of the protocol, one per use, the version inside. SPEC 3.2."""

from typing import Final

_V: Final = b"secagg/v1/"

# digests
CTX: Final = _V + b"ctx"
PARAMS: Final = _V + b"params"
COHORT: Final = _V + b"cohort"
ROSTER_ROOT: Final = _V + b"roster"
MANIFEST_DIGEST: Final = _V + b"manifest"
MODEL_DIGEST: Final = _V + b"model"
ROTATION: Final = _V + b"rotation"
AGGREGATE_DIGEST: Final = _V + b"aggregate"
ADVERTISE_LEAF: Final = _V + b"advertise-leaf"
ROOT_ADVERTISED: Final = _V + b"root-u1"
RING_ORDER: Final = _V + b"ring-order"
ROOT_SHARED: Final = _V + b"root-u2"
ROOT_MASKED: Final = _V + b"root-u3"
SEED_COMMITMENT: Final = _V + b"seed-commitment"
SHARE_HASH: Final = _V + b"share-hash"
CIPHERTEXT_HASH: Final = _V + b"ciphertext-hash"
ENVELOPE_LEAF: Final = _V + b"envelope-leaf"
MERKLE_NODE: Final = _V + b"merkle-node"
MASKED_INPUT: Final = _V + b"masked-input"
ENCRYPTED_INPUT: Final = _V + b"encrypted-input"
OPENED_SUM: Final = _V + b"opened-sum"
DECRYPTOR_KEY: Final = _V + b"decryptor-key"
HASH_LIST: Final = _V + b"hash-list"
LEDGER_ROW: Final = _V + b"release-ledger-row"
LEDGER_GENESIS: Final = _V + b"release-ledger-genesis"

# signatures (what the signed digest is a digest of)
SIGN_ADVERTISE: Final = _V + b"sign-advertise-keys"
SIGN_SHARES: Final = _V + b"sign-share-keys"
SIGN_INPUT: Final = _V + b"sign-masked-input"
SIGN_DECRYPTOR_KEY: Final = _V + b"sign-decryptor-key"
SIGN_INPUT_HASH: Final = _V + b"sign-input-hash"
SIGN_ENCRYPTED_INPUT: Final = _V + b"sign-encrypted-input"
SIGN_OPENED_SUM: Final = _V + b"sign-opened-sum"
SIGN_CONSISTENCY: Final = _V + b"sign-consistency-check"
SIGN_LEDGER_HEAD: Final = _V + b"sign-release-ledger-head"

# key derivation
KDF_SHARE: Final = _V + b"kdf-share"
KDF_PAIRWISE_MASK: Final = _V + b"kdf-pairwise-mask"
KDF_SELF_MASK: Final = _V + b"kdf-self-mask"

# associated data
AD_SHARE: Final = _V + b"ad-share"
