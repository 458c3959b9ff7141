"""The client's states as values: each holds exactly the secrets that the next step needs. SPEC 6.

A secret that is not in the state cannot leak from it. After the masks are derived no private key is left; after
unmasking no share is left, so "never both shares of one peer" and "never answer twice" hold by construction.
"""

from dataclasses import dataclass, field, fields

from protocol.encrypted import InputHash
from protocol.manifest import Manifest
from protocol.messages import AdvertiseKeys, Announcement
from protocol.release import ReleaseLedger
from protocol.roster import Roster
from secagg.graph import NeighborGraph
from secagg.he.scheme import AdditiveScheme
from secagg.masking import Mask
from secagg.params import SecAggParams
from secagg.signing import SigningKey, VerifyKey
from secagg.types import ClientId, Phase, Secret


@dataclass(frozen=True, slots=True)
class ClientMemory:
    """What a client remembers between attempts, rebuilt from its journal. Never a secret."""

    joined: tuple[int, int]  # highest (round, attempt) ever joined
    spent_round: int  # highest round whose ConsistencyCheck was signed
    ledger: ReleaseLedger  # every row signed or followed so far

    @classmethod
    def fresh(cls, manifest: Manifest) -> "ClientMemory":
        """Memory of a client that never took part in this task."""
        return cls((0, 0), 0, ReleaseLedger(manifest.digest()))


@dataclass(frozen=True, slots=True)
class ClientSetup:
    """Who this client is and what its owner signed. `scheme`: how inputs are encrypted, where they are."""

    me: ClientId
    signing_key: SigningKey
    roster: Roster
    manifest: Manifest
    params: SecAggParams
    scheme: AdditiveScheme | None = None

    @property
    def server_key(self) -> VerifyKey:
        """The server's identity key, from the roster."""
        return VerifyKey(bytes.fromhex(self.roster.server.identity_key))


@dataclass(frozen=True, slots=True)
class Attempt:
    """The public constants of one attempt."""

    setup: ClientSetup
    announcement: Announcement
    ctx: bytes
    memory: ClientMemory


@dataclass(frozen=True, slots=True)
class AwaitingKeys:
    """Keys advertised; the list of U1 comes next."""

    mine: AdvertiseKeys
    encryption_sk: Secret
    masking_sk: Secret
    self_seed: Secret


@dataclass(frozen=True, slots=True)
class AwaitingShares:
    """Shares dealt; the shares of the others come next."""

    advertised: dict[ClientId, AdvertiseKeys]  # ours and the neighbours'
    graph: NeighborGraph
    root_u1: bytes
    ledger: ReleaseLedger
    own_share: Secret | None  # on the complete graph only
    encryption_sk: Secret
    masking_sk: Secret
    self_seed: Secret
    decryptor_key: bytes  # public; empty where nothing is encrypted


@dataclass(frozen=True, slots=True)
class Held:
    """Shares of others that this client holds, by dealer."""

    self_shares: dict[ClientId, Secret]  # own share included
    key_shares: dict[ClientId, Secret]


@dataclass(frozen=True, slots=True)
class AwaitingInput:
    """Mask seeds derived, private keys gone; the values to send come next, from local training."""

    shared: tuple[ClientId, ...]
    graph: NeighborGraph
    root_u2: bytes
    ledger: ReleaseLedger
    complaints: tuple[ClientId, ...]
    held: Held
    masks: tuple[Mask, ...]
    decryptor_key: bytes


@dataclass(frozen=True, slots=True)
class AwaitingHashes:
    """Only where inputs are encrypted: the digest of ours is out, the ciphertext is not; all digests come next."""

    shared: tuple[ClientId, ...]
    graph: NeighborGraph
    root_u2: bytes
    ledger: ReleaseLedger
    held: Held
    mine: InputHash
    ciphertext: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AwaitingSurvivors:
    """Input handed over; U3 comes next."""

    shared: tuple[ClientId, ...]
    graph: NeighborGraph
    root_u2: bytes
    ledger: ReleaseLedger
    held: Held
    listed: tuple[ClientId, ...]  # who may be in U3
    hash_list: tuple[bytes, ...]  # digest of the list of hashes, or none


@dataclass(frozen=True, slots=True)
class AwaitingCertificate:
    """U3 checked and signed; the quorum's signatures on the same tuple come next."""

    shared: tuple[ClientId, ...]
    masked: tuple[ClientId, ...]
    signed_body: bytes
    held: Held


@dataclass(frozen=True, slots=True)
class Completed:
    """Shares handed over, everything secret erased. Nothing is answered any more."""


@dataclass(frozen=True, slots=True)
class Aborted:
    """Ended without unmasking, everything secret erased."""

    reason: str


State = (
    AwaitingKeys
    | AwaitingShares
    | AwaitingInput
    | AwaitingHashes
    | AwaitingSurvivors
    | AwaitingCertificate
    | Completed
    | Aborted
)

PHASES: dict[type, Phase] = {
    AwaitingKeys: Phase.ADVERTISE_KEYS,
    AwaitingShares: Phase.SHARE_KEYS,
    AwaitingInput: Phase.MASKED_INPUT,
    AwaitingHashes: Phase.INPUT_HASHES,
    AwaitingSurvivors: Phase.CONSISTENCY_CHECK,
    AwaitingCertificate: Phase.UNMASKING,
    Completed: Phase.COMPLETED,
    Aborted: Phase.ABORTED,
}


def erase(value: object) -> None:
    """Wipe every Secret inside a state, mapping or sequence."""
    match value:
        case Secret():
            value.wipe()
        case dict():
            for item in value.values():
                erase(item)
        case tuple() | list():
            for item in value:
                erase(item)
        case (
            Mask()
            | Held()
            | AwaitingKeys()
            | AwaitingShares()
            | AwaitingInput()
            | AwaitingHashes()
            | AwaitingSurvivors()
            | AwaitingCertificate()
        ):
            for part in fields(value):
                erase(getattr(value, part.name))
        case _:
            pass
