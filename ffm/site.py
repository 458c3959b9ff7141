"""One site of a consortium: its folder, loaded and verified. How the folder comes to be is in `ffm.joining`.

| file | what | mode |
|---|---|---|
| `identity.key`, `tls.key` | Ed25519 identity, P-256 for TLS; made here, never leave | 0600 |
| `request.json`, `.sig` | request to join, signed by the identity key | public |
| `tls.pem`, `ca.pem` | own leaf and the authority that issued it | public |
| `owner.pub` | the pinned key of the owner | public |
| `roster.json`, `.sig`, `manifest.json`, `.sig` | what the owner signed | public |
| `server.toml`, `decryptor.toml` or `client.toml` | settings of this site alone: addresses, paths, device | public |

| code | meaning |
|---|---|
| E302 | roster or manifest are not what the pinned owner signed |
| E304 | not in the roster |
| E353 | the own identity key is not the one in the roster |
| E354 | settings that cannot be read, no site's folder, or roster and manifest that do not fit together |
"""

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from protocol.errors import DocumentError
from protocol.manifest import Manifest, verify_manifest
from protocol.roster import Peer, Roster, StrictModel, parse_model, verify_roster
from protocol.rpc import pki
from protocol.rpc.keyfiles import (
    private_folder,
    read_public,
    read_signing_key,
    read_verify_key,
    replace_public,
)
from secagg.signing import SigningKey, VerifyKey
from secagg.types import ClientId

IDENTITY_KEY, TLS_KEY = "identity.key", "tls.key"
LEAF, AUTHORITY, OWNER = "tls.pem", "ca.pem", "owner.pub"
ROSTER, MANIFEST = "roster.json", "manifest.json"
SIGNATURE = ".sig"

PeerName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]{1,253}$")]
Port = Annotated[int, Field(ge=1, le=65535)]

Role = Literal["server", "decryptor", "client"]
ROLES: tuple[Role, ...] = ("server", "decryptor", "client")

D = TypeVar("D")


class SiteSettings(StrictModel):
    """Settings of one site. Nothing in here can change what is computed: that stands in the manifest."""

    name: PeerName
    server_host: Host
    server_port: Port
    data: str = "records.csv"  # client only; relative to the folder
    base_model: str = ""  # a local folder; empty: found by the manifest's name
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:[0-9]{1,2})?)$")] = "cpu"
    precision: Annotated[str, Field(pattern="^(float32|bfloat16)$")] = "float32"
    checkpointing: bool = False  # compute layers twice and keep less in memory
    physical_batch: Annotated[int, Field(ge=0, le=4096)] = 0  # records a pass; 0: chosen by the size of the adapter
    task_file: str = ""  # Python file of the consortium's own task; relative to the folder; empty: a built-in one


@dataclass(frozen=True, slots=True)
class Site:
    """A loaded and verified site folder. No field shows a secret."""

    folder: Path
    role: Role
    settings: SiteSettings
    identity: SigningKey
    tls: pki.TlsIdentity
    owner: VerifyKey
    roster: Roster
    roster_signature: bytes
    manifest: Manifest
    manifest_signature: bytes

    @property
    def client_id(self) -> ClientId:
        """Own id in the roster; raises DocumentError E304 at the server."""
        member = next((m for m in self.roster.clients if m.name == self.settings.name), None)
        if member is None:
            raise DocumentError(f"{self.settings.name} is not a client", expected="a client's folder", code="E304")
        return ClientId(member.client_id)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the server."""
        return self.settings.server_host, self.settings.server_port

    @property
    def data(self) -> Path:
        """The client's own records."""
        return self.folder / self.settings.data

    @property
    def task_file(self) -> Path | None:
        """The file of the consortium's own task, where this site has one."""
        return self.folder / self.settings.task_file if self.settings.task_file else None

    def check_certificate(self, now: datetime) -> Peer:
        """Run `pki.check_own_certificate` for this site; before every dial and every bind."""
        usage = pki.Usage.SERVER if self.role == "server" else pki.Usage.CLIENT
        return pki.check_own_certificate(self.tls, self.roster, self.settings.name, usage, now)


# -- loading --------------------------------------------------------------------------------------------------------


def load_site(folder: Path) -> Site:
    """Read a site folder and verify all of it against the pinned owner's key and the own keys.

    Certificates' dates need a clock: call `Site.check_certificate` afterwards.

    Raises:
        DocumentError: As in the table of this module, of `protocol.rpc.keyfiles` and of `protocol.rpc.pki`.
    """
    if not folder.is_dir():
        raise _no_site(folder)
    private_folder(folder)
    role, settings = _read_settings(folder)
    owner = read_verify_key(folder / OWNER)
    roster, roster_signature = _document(folder / ROSTER, owner, verify_roster)
    manifest, manifest_signature = _document(folder / MANIFEST, owner, verify_manifest)
    fitting(roster, manifest)
    identity = read_signing_key(folder / IDENTITY_KEY)
    own_entry(roster, settings.name, identity)
    tls = pki.load_identity(folder / LEAF, folder / TLS_KEY, folder / AUTHORITY)
    return Site(
        folder=folder,
        role=role,
        settings=settings,
        identity=identity,
        tls=tls,
        owner=owner,
        roster=roster,
        roster_signature=roster_signature,
        manifest=manifest,
        manifest_signature=manifest_signature,
    )


def fitting(roster: Roster, manifest: Manifest) -> None:
    """Raises DocumentError E354 unless the manifest is for as many clients as the roster has, and for a decryptor only
    where there is one."""
    if manifest.aggregation.num_clients != len(roster.clients):
        raise DocumentError(
            "roster and manifest do not fit together",
            found=f"{len(roster.clients)} clients in the roster",
            expected=f"{manifest.aggregation.num_clients}, as in the manifest",
            do="the owner must sign a manifest for this roster",
            code="E354",
        )
    encryption = manifest.aggregation.encryption
    if encryption is not None and roster.decryptor is None:
        raise DocumentError(
            "roster and manifest do not fit together",
            found=f"assurance {manifest.aggregation.assurance!r}, and no decryptor in the roster",
            expected="a decryptor that is neither the server nor a client",
            do="the owner must sign a roster with a decryptor",
            code="E354",
        )


def _document(path: Path, owner: VerifyKey, verify: Callable[[bytes, bytes, VerifyKey], D]) -> tuple[D, bytes]:
    body, signature = read_public(path), read_public(path.with_name(path.name + SIGNATURE))
    try:
        return verify(body, signature, owner), signature
    except DocumentError as error:
        if error.code != "E302":
            raise
        raise DocumentError(
            f"{path} is not what the owner signed",
            found="a changed file, or the signature of another owner",
            expected=f"the exact bytes that the owner {owner.fingerprint()} signed",
            do="get it again from the owner; do not take part until the fingerprints agree by phone",
            code="E302",
        ) from None


def own_entry(roster: Roster, name: str, identity: SigningKey) -> Peer:
    """The roster entry of `name`, which must hold this identity key. Raises DocumentError E304, E353."""
    peers = roster.peers
    me = next((peer for peer in peers if peer.name == name), None)
    if me is None:
        raise DocumentError(
            f"{name} is not in the roster",
            found=f"roster version {roster.version} with {', '.join(peer.name for peer in peers)}",
            expected=f"an entry for {name}",
            do="ask the owner for the current roster, or to be added to it",
            code="E304",
        )
    own = identity.verify_key
    if me.identity_key != own.to_bytes().hex():
        raise DocumentError(
            f"the identity key is not the one of {name}",
            found=f"a key with fingerprint {own.fingerprint()}",
            expected=f"{VerifyKey(bytes.fromhex(me.identity_key)).fingerprint()}, as in the roster",
            do="put the own key back; if it was replaced, the owner must sign a new roster",
            code="E353",
        )
    return me


def read_toml(path: Path) -> bytes:
    """A TOML file as JSON bytes, for a strict model. Raises DocumentError E319, E354."""
    try:
        return json.dumps(tomllib.loads(read_public(path).decode("utf-8"))).encode()
    except (ValueError, TypeError) as error:  # json refuses TOML's dates and times
        raise DocumentError(
            f"{path} cannot be read", found=str(error), expected="TOML with text and whole numbers", code="E354"
        ) from None


def _read_settings(folder: Path) -> tuple[Role, SiteSettings]:
    found = [role for role in ROLES if (folder / f"{role}.toml").exists()]
    if len(found) != 1:
        raise _no_site(folder)
    path = folder / f"{found[0]}.toml"
    return found[0], parse_model(SiteSettings, path.name, read_toml(path))


def change_settings(folder: Path, changes: Mapping[str, str]) -> None:
    """Change entries of a site's own settings; an empty text takes an entry away. The rest of the file stays as it is.

    Raises:
        DocumentError: E354 no site's folder, or a file that cannot be read; E305 for an entry that there is not, or
            with a value that makes no sense. The file is then as it was.
    """
    role, _ = _read_settings(folder)
    path = folder / f"{role}.toml"
    kept = [line for line in path.read_text().splitlines() if line.partition("=")[0].strip() not in changes]
    lines = [*kept, *(f"{key} = {json.dumps(value)}" for key, value in changes.items() if value)]
    text = "\n".join(lines) + "\n"
    parse_model(SiteSettings, path.name, json.dumps(tomllib.loads(text)).encode())
    replace_public(path, text.encode())


def _no_site(folder: Path) -> DocumentError:
    return DocumentError(
        f"{folder} is no site's folder",
        found="not exactly one of client.toml, server.toml and decryptor.toml",
        expected="the folder of one server, one client or one decryptor",
        do="secagg init, or accept the owner's welcome first",
        code="E354",
    )
