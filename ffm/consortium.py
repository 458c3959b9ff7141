"""The owner's side of a consortium: authority, approvals, signed documents; and all sites at once for a trial.

The owner's folder holds the two private keys that the whole consortium hangs on, each optionally under a passphrase; it
belongs on no server. The owner sees public keys only: a site makes its keys itself and asks (`ffm.joining`).

| in the owner's folder | what | mode |
|---|---|---|
| `owner.key`, `ca.key` | Ed25519 signing key; P-256 key of the authority | 0600 |
| `owner.pub`, `ca.pem` | their public halves | public |
| `consortium.json` | name and server address | public |
| `members/NAME.json`, `NAME.pem` | approved keys and current leaf of each member | public |
| `roster.json`, `.sig`, `manifest.json`, `.sig` | the current signed documents | public |

| code | meaning |
|---|---|
| E355 | `consortium.toml` contradicts itself or the manifest |
| E356 | a member with this name has other keys, or there is no such member |
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ffm.joining import JoinRequest, Welcome, accept, create_site, read_request, verify_request
from ffm.site import AUTHORITY, MANIFEST, OWNER, ROSTER, SIGNATURE, Host, PeerName, Port, fitting, read_toml
from protocol import signed
from protocol.errors import DocumentError
from protocol.manifest import Manifest, sign_manifest
from protocol.roster import Hex32, Member, Peer, Roster, StrictModel, parse_model, sign_roster, verify_roster
from protocol.rpc import pki
from protocol.rpc.keyfiles import (
    private_folder,
    read_public,
    read_signing_key,
    read_tls_key,
    replace_public,
    verify_key_pem,
    write_new,
    write_signing_key,
    write_tls_key,
)
from secagg.signing import SigningKey, VerifyKey

OWNER_KEY, AUTHORITY_KEY = "owner.key", "ca.key"
CONSORTIUM, MEMBERS = "consortium.json", "members"
SERVER_ID, DECRYPTOR_ID = 0, -1  # in members/NAME.json; clients have their ClientId there


class ServerConfig(StrictModel):
    """Where the server listens, and under which further names it is reached."""

    name: PeerName = "server"
    host: Host
    port: Port
    also_known_as: tuple[Host, ...] = ()


class ConsortiumConfig(StrictModel):
    """`consortium.toml`: who takes part. `task` is a path to the task's settings, relative to the file; `decryptor` the
    name of the one that opens encrypted sums, where the task encrypts."""

    consortium: Annotated[str, Field(min_length=1, max_length=200)]
    task: Annotated[str, Field(min_length=1)]
    server: ServerConfig
    decryptor: PeerName | None = None
    clients: Annotated[tuple[PeerName, ...], Field(min_length=3, max_length=256)]


class ConsortiumFile(StrictModel):
    """`consortium.json` of the owner's folder."""

    consortium: str
    server: ServerConfig
    decryptor: PeerName | None = None

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        return signed.canonical(self.model_dump(mode="json", exclude_none=True))


class MemberRecord(StrictModel):
    """`members/NAME.json`: what the owner approved."""

    name: PeerName
    member_id: Annotated[int, Field(ge=DECRYPTOR_ID, le=65535)]
    identity_key: Hex32
    tls_key_sha256: Hex32


@dataclass(frozen=True, slots=True)
class Owner:
    """An opened owner's folder. No field shows a secret."""

    folder: Path
    key: SigningKey
    authority: pki.Authority
    file: ConsortiumFile

    @property
    def fingerprint(self) -> str:
        """Of the owner's public key; read out by phone to every site."""
        return self.key.verify_key.fingerprint()


@dataclass(frozen=True, slots=True)
class Consortium:
    """The folders that `create_consortium` made."""

    owner: Path
    server: Path
    clients: Mapping[str, Path]
    owner_key: VerifyKey
    decryptor: Path | None = None


def read_config(path: Path) -> ConsortiumConfig:
    """Read and check `consortium.toml`.

    Raises:
        DocumentError: E305 for an unknown or malformed entry, E319 or E354 for the file, E355 for a name used twice.
    """
    config = parse_model(ConsortiumConfig, path.name, read_toml(path))
    names = names_of(config)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DocumentError(
            "two members have one name", found=", ".join(twice), expected="a name of its own for each", code="E355"
        )
    return config


# -- the owner ------------------------------------------------------------------------------------------------------


def create_owner(folder: Path, file: ConsortiumFile, now: datetime, passphrase: bytes | None = None) -> Owner:
    """Make the owner's key and the authority in a new folder.

    Args:
        folder: New folder (mode 0700).
        file: Name of the consortium and address of its server.
        now: Timezone-aware time; the authority is valid for five years from it.
        passphrase: Encrypts both keys; the same for both.

    Raises:
        DocumentError: E320 if there is an owner already, E318 or E319 if the folder cannot be used.
    """
    owner = Owner(folder, SigningKey.generate(os.urandom), pki.create_authority(file.consortium, now), file)
    private_folder(folder)
    write_signing_key(folder / OWNER_KEY, owner.key, passphrase)
    write_tls_key(folder / AUTHORITY_KEY, owner.authority.key, passphrase)
    write_new(folder / OWNER, verify_key_pem(owner.key.verify_key))
    write_new(folder / AUTHORITY, pki.pem(owner.authority.certificate))
    write_new(folder / CONSORTIUM, file.to_bytes())
    private_folder(folder / MEMBERS)
    return owner


def load_owner(folder: Path, passphrase: bytes | None = None) -> Owner:
    """Open an owner's folder. Raises DocumentError E305, E317 to E321."""
    key = read_signing_key(private_folder(folder) / OWNER_KEY, passphrase)
    certificate = pki.read_certificate(folder / AUTHORITY)
    authority_key = read_tls_key(folder / AUTHORITY_KEY, passphrase)
    if certificate.public_key() != authority_key.public_key():
        raise DocumentError(
            "the authority's key and certificate do not belong together",
            found=f"{AUTHORITY_KEY} beside {AUTHORITY}",
            expected="the pair that was made together",
            do="restore both from the same backup",
            code="E317",
        )
    file = parse_model(ConsortiumFile, CONSORTIUM, read_public(folder / CONSORTIUM))
    return Owner(folder, key, pki.Authority(certificate, authority_key), file)


def approve(owner: Owner, request: JoinRequest, now: datetime) -> MemberRecord:
    """Issue a leaf to a site whose request was verified and whose fingerprint was compared by phone.

    The one called like the configured server becomes the server, the one called like the configured decryptor becomes
    the decryptor; everybody else becomes the next client. Asked again with the same keys, the member keeps its id and
    gets a fresh leaf (renewal).

    Raises:
        DocumentError: E322 for an unusable request, E356 if a member of that name has other keys.
    """
    members, server = _members(owner), owner.file.server
    known = next((m for m in members if m.name == request.name), None)
    usage = pki.Usage.SERVER if request.name == server.name else pki.Usage.CLIENT
    hosts = tuple(dict.fromkeys((server.host, *server.also_known_as)))  # for the server's leaf alone
    csr = request.certificate_request()
    leaf = pki.issue_leaf(owner.authority, csr, (request.name, usage, hosts), now)
    record = MemberRecord(
        name=request.name,
        member_id=_member_id(owner, members, request.name),
        identity_key=request.identity_key,
        tls_key_sha256=pki.spki_sha256(leaf),
    )
    if known is not None and known != record:
        raise DocumentError(
            f"{request.name} is a member already, with other keys",
            found=f"a request with fingerprint {request.fingerprint()}",
            expected="the keys that were approved before",
            do="if the site lost its keys: remove the member, publish, and approve it under a new name",
            code="E356",
        )
    replace_public(owner.folder / MEMBERS / f"{record.name}.pem", pki.pem(leaf))
    replace_public(owner.folder / MEMBERS / f"{record.name}.json", signed.canonical(record.model_dump(mode="json")))
    return record


def remove(owner: Owner, name: str) -> None:
    """Take a client out of the next roster; its id is not given away again. Raises DocumentError E356."""
    record = next((m for m in _members(owner) if m.name == name and m.member_id > SERVER_ID), None)
    if record is None:
        raise DocumentError(f"there is no client {name}", expected="the name of an approved client", code="E356")
    (owner.folder / MEMBERS / f"{name}.json").rename(owner.folder / MEMBERS / f"{record.member_id}.removed")
    (owner.folder / MEMBERS / f"{name}.pem").unlink()


def publish(owner: Owner, manifest: Manifest) -> Roster:
    """Sign a roster of all approved members, one version on from the last if it changed, and the manifest.

    Raises:
        DocumentError: E354 if the manifest is for another number of clients, E356 if there is no server yet.
    """
    members = _members(owner)
    servers = [m for m in members if m.member_id == SERVER_ID]
    if not servers:
        raise DocumentError(
            "no server has joined", expected=f"an approved request of {owner.file.server.name}", code="E356"
        )
    entry = servers[0]
    second = next((m for m in members if m.member_id == DECRYPTOR_ID), None)
    last = _last_roster(owner)
    roster = Roster(
        consortium=owner.file.consortium,
        version=last.version if last else 1,
        server=_peer(entry),
        decryptor=None if second is None else _peer(second),
        clients=tuple(
            Member(name=m.name, identity_key=m.identity_key, tls_key_sha256=m.tls_key_sha256, client_id=m.member_id)
            for m in members
            if m.member_id > SERVER_ID
        ),
    )
    fitting(roster, manifest)
    if last is not None and roster != last:
        roster = roster.model_copy(update={"version": last.version + 1})
    for name, (body, signature) in (
        (ROSTER, sign_roster(roster, owner.key)),
        (MANIFEST, sign_manifest(manifest, owner.key)),
    ):
        replace_public(owner.folder / (name + SIGNATURE), signature)
        replace_public(owner.folder / name, body)
    return roster


def welcome(owner: Owner, name: str) -> bytes:
    """What is sent back to a member after `publish`: a canonical `Welcome`, nothing of it secret.

    Raises:
        DocumentError: E319 before the first `publish`, or if there is no such member.
    """
    folder = owner.folder
    message = Welcome(
        version=1,
        certificate=read_public(folder / MEMBERS / f"{name}.pem").decode("ascii"),
        authority=pki.pem(owner.authority.certificate).decode("ascii"),
        owner_key=owner.key.verify_key.to_bytes().hex(),
        roster=read_public(folder / ROSTER).decode("utf-8"),
        roster_signature=read_public(folder / (ROSTER + SIGNATURE)).hex(),
        manifest=read_public(folder / MANIFEST).decode("utf-8"),
        manifest_signature=read_public(folder / (MANIFEST + SIGNATURE)).hex(),
        server_host=owner.file.server.host,
        server_port=owner.file.server.port,
    )
    return message.to_bytes()


# -- everything on one machine --------------------------------------------------------------------------------------


def create_consortium(
    config: ConsortiumConfig, folder: Path, manifest: Manifest, passphrase: bytes | None = None
) -> Consortium:
    """All folders of a consortium on one machine, right for a trial: ``owner/`` and ``sites/NAME/``.

    Exactly the steps that separate machines would take: each site makes its keys, the owner approves and publishes,
    each site accepts. Between organisations, run them apart.

    Raises:
        DocumentError: E320 if the folder has been used before; E355 if the manifest is for another number of clients.
    """
    if manifest.aggregation.num_clients != len(config.clients):
        raise DocumentError(
            "consortium and manifest do not fit together",
            found=f"{len(config.clients)} clients",
            expected=f"{manifest.aggregation.num_clients}, as in the task's settings",
            do="change the clients in consortium.toml or the task's settings",
            code="E355",
        )
    now = datetime.now(UTC)
    if manifest.aggregation.encryption is not None and config.decryptor is None:
        raise DocumentError(
            "the task encrypts, and nobody is named to decrypt",
            found=f"assurance {manifest.aggregation.assurance!r}",
            expected="a decryptor that is neither the server nor a client",
            do='add decryptor = "NAME" to consortium.toml',
            code="E355",
        )
    file = ConsortiumFile(consortium=config.consortium, server=config.server, decryptor=config.decryptor)
    private_folder(folder)
    owner = create_owner(folder / "owner", file, now, passphrase)
    sites = {name: folder / "sites" / name for name in names_of(config)}
    private_folder(folder / "sites")
    for name, site in sites.items():
        create_site(site, name)
        approve(owner, verify_request(*read_request(site)), now)
    publish(owner, manifest)
    for name, site in sites.items():
        accept(site, welcome(owner, name), owner.fingerprint)
    server = sites.pop(config.server.name)
    decryptor = None if config.decryptor is None else sites.pop(config.decryptor)
    return Consortium(owner.folder, server, sites, owner.key.verify_key, decryptor)


# -- small parts ----------------------------------------------------------------------------------------------------


def _members(owner: Owner) -> list[MemberRecord]:
    """All approved members, ascending by id."""
    paths = sorted((owner.folder / MEMBERS).glob("*.json"))
    records = [parse_model(MemberRecord, path.name, read_public(path)) for path in paths]
    return sorted(records, key=lambda record: record.member_id)


def names_of(config: ConsortiumConfig) -> tuple[str, ...]:
    """Every member: the server, the decryptor if there is one, the clients."""
    second = () if config.decryptor is None else (config.decryptor,)
    return (config.server.name, *second, *config.clients)


def _peer(record: MemberRecord) -> Peer:
    return Peer(name=record.name, identity_key=record.identity_key, tls_key_sha256=record.tls_key_sha256)


def _member_id(owner: Owner, members: list[MemberRecord], name: str) -> int:
    if name == owner.file.server.name:
        return SERVER_ID
    if name == owner.file.decryptor:
        return DECRYPTOR_ID
    known = next((m for m in members if m.name == name), None)
    return known.member_id if known else _next_id(owner, members)


def _next_id(owner: Owner, members: list[MemberRecord]) -> int:
    removed = (owner.folder / MEMBERS).glob("*.removed")
    used = [parse_model(MemberRecord, path.name, read_public(path)).member_id for path in removed]
    return max([SERVER_ID, *used, *(m.member_id for m in members)]) + 1


def _last_roster(owner: Owner) -> Roster | None:
    path = owner.folder / ROSTER
    if not path.exists():
        return None
    signature = read_public(path.with_name(ROSTER + SIGNATURE))
    return verify_roster(read_public(path), signature, owner.key.verify_key)
