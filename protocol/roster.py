"""The signed membership list: who takes part, under which identity key and which TLS key. SPEC 2.2."""

from functools import cached_property
from typing import Annotated, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocol import signed
from protocol.errors import DocumentError
from secagg.labels import ROSTER_ROOT
from secagg.signing import SigningKey, VerifyKey
from secagg.transcript import digest
from secagg.types import ClientId

KIND = "application/vnd.secagg.roster.v1+json"


class _Document(Protocol):
    def to_bytes(self) -> bytes: ...


M = TypeVar("M", bound=BaseModel)
D = TypeVar("D", bound=_Document)

Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class StrictModel(BaseModel):
    """Base of everything that is parsed from a signed document: strict, frozen, no unknown key."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    def __copy__(self) -> Self:
        """Fields only: what was computed once (`cached_property`) must not pass on to a copy that gets changed."""
        return self.model_construct(
            self.model_fields_set, **{name: getattr(self, name) for name in type(self).model_fields}
        )

    def __deepcopy__(self, memo: object = None) -> Self:
        """The same: a frozen document holds nothing that could change below it."""
        return self.__copy__()


class Peer(StrictModel):
    """One machine that holds a certificate."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    identity_key: Hex32  # Ed25519 public key
    tls_key_sha256: Hex32  # SHA-256 of the SubjectPublicKeyInfo of the TLS leaf


class Member(Peer):
    """A client. `client_id` >= 1 is also its Shamir x-coordinate."""

    client_id: Annotated[int, Field(ge=1, le=65535)]


class Roster(StrictModel):
    """Versioned membership of one consortium; every change is a new version with the same `consortium`."""

    consortium: Annotated[str, Field(min_length=1, max_length=200)]
    version: Annotated[int, Field(ge=1)]
    server: Peer
    decryptor: Peer | None = None  # the key is left out where there is none; null is refused (`exactly`)
    clients: tuple[Member, ...]

    @model_validator(mode="after")
    def _distinct(self) -> "Roster":
        ids = [member.client_id for member in self.clients]
        if ids != sorted(set(ids)):
            raise ValueError("client ids must be distinct and ascending")
        peers = self.peers
        for field in ("name", "identity_key", "tls_key_sha256"):
            if len({getattr(peer, field) for peer in peers}) != len(peers):
                raise ValueError(f"two members share one {field}")
        return self

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        return signed.canonical(self.model_dump(mode="json", exclude_none=True))

    @property
    def peers(self) -> tuple[Peer, ...]:
        """Everybody: the server, the decryptor if there is one, the clients."""
        second = () if self.decryptor is None else (self.decryptor,)
        return (self.server, *second, *self.clients)

    @property
    def decryptor_key(self) -> VerifyKey:
        """Identity key of the decryptor. Raises DocumentError if the roster names none."""
        if self.decryptor is None:
            raise DocumentError("the roster names no decryptor", expected="one, for this assurance", code="E304")
        return VerifyKey(bytes.fromhex(self.decryptor.identity_key))

    def root(self) -> bytes:
        """32-byte digest that enters ctx."""
        return self._root

    def member(self, client_id: ClientId) -> Member | None:
        """The client with this id, or None."""
        return self._members.get(client_id)

    def verify_key(self, client_id: ClientId) -> VerifyKey:
        """Identity key of a client. Raises DocumentError if it is not in the roster."""
        key = self._verify_keys.get(client_id)
        if key is None:
            raise DocumentError("client is not in the roster", found=client_id, expected="a roster member", code="E304")
        return key

    @cached_property
    def ids(self) -> tuple[ClientId, ...]:
        """All client ids, ascending."""
        return tuple(self._members)

    @cached_property
    def _root(self) -> bytes:
        return digest(ROSTER_ROOT, self.to_bytes())

    @cached_property
    def _members(self) -> dict[ClientId, Member]:
        return {ClientId(m.client_id): m for m in self.clients}

    @cached_property
    def _verify_keys(self) -> dict[ClientId, VerifyKey]:
        return {client: VerifyKey(bytes.fromhex(m.identity_key)) for client, m in self._members.items()}


def sign_roster(roster: Roster, owner: SigningKey) -> tuple[bytes, bytes]:
    """(document bytes, detached signature)."""
    body = roster.to_bytes()
    return body, signed.sign(KIND, body, owner)


def verify_roster(body: bytes, signature: bytes, owner: VerifyKey) -> Roster:
    """Signature, canonical form, schema; in this order."""
    signed.verify(KIND, body, signature, owner)
    return exactly(parse_model(Roster, "roster", body), body)


def exactly(document: D, body: bytes) -> D:
    """The document, if its own bytes are the signed ones: ``true`` for 1 parses, but is not what was signed."""
    if document.to_bytes() != body:
        raise DocumentError("a document that reads as something else than it says", expected="exact types", code="E303")
    return document


def parse_model(model: type[M], what: str, body: bytes) -> M:
    """Validate JSON bytes against a strict model; all findings in one error, never the input."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        raise DocumentError(
            f"the {what} does not fit its schema", found=places, expected=f"a {what} of this version", code="E305"
        ) from None
