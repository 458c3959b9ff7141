"""Joining a consortium: what a site sends, what the owner answers, and what the site checks before it believes it.

The keys are made here and never leave the folder. What travels is public: a `JoinRequest` to the owner and a `Welcome`
back, each a single file. Because either could be replaced on the way, a fingerprint of each is read out by phone: the
site reads out the request's, the owner reads out the owner key's.

| code | meaning |
|---|---|
| E351 | another owner than the pinned or expected one |
| E352 | an older roster than the one in the folder |
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import Field

from ffm.site import (
    AUTHORITY,
    IDENTITY_KEY,
    LEAF,
    MANIFEST,
    OWNER,
    ROSTER,
    SIGNATURE,
    TLS_KEY,
    Host,
    PeerName,
    Port,
    Role,
    fitting,
    own_entry,
)
from protocol import signed
from protocol.errors import DocumentError
from protocol.manifest import verify_manifest
from protocol.roster import Hex32, Member, Roster, StrictModel, parse_model, verify_roster
from protocol.rpc import pki
from protocol.rpc.keyfiles import (
    private_folder,
    read_public,
    read_signing_key,
    read_tls_key,
    read_verify_key,
    replace_public,
    verify_key_pem,
    write_new,
    write_signing_key,
    write_tls_key,
)
from secagg.signing import SigningKey, VerifyKey

REQUEST_KIND = "application/vnd.secagg.join-request.v1+json"
REQUEST = "request.json"

Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Pem = Annotated[str, Field(max_length=16384)]


class JoinRequest(StrictModel):
    """What a site sends to the owner. `csr` is a PKCS #10 request in PEM, of which only the public key counts."""

    version: Literal[1]
    name: PeerName
    identity_key: Hex32
    csr: Pem

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        return signed.canonical(self.model_dump(mode="json"))

    def fingerprint(self) -> str:
        """Over name and both keys; the site reads it out to the owner by phone."""
        digest = hashlib.sha256(self.to_bytes()).hexdigest()[:20]
        return "-".join(digest[i : i + 4] for i in range(0, 20, 4))

    def certificate_request(self) -> x509.CertificateSigningRequest:
        """The parsed `csr`. Raises DocumentError E322."""
        try:
            return x509.load_pem_x509_csr(self.csr.encode("ascii"))
        except ValueError:
            raise DocumentError(
                "the join request holds no signing request", found="other text", expected="PKCS #10 in PEM", code="E322"
            ) from None


class Welcome(StrictModel):
    """What the owner sends back, all public: the leaf, the owner's key and what the owner signed."""

    version: Literal[1]
    certificate: Pem
    authority: Pem
    owner_key: Hex32
    roster: str
    roster_signature: Hex64
    manifest: str
    manifest_signature: Hex64
    server_host: Host
    server_port: Port

    def to_bytes(self) -> bytes:
        """Canonical bytes."""
        return signed.canonical(self.model_dump(mode="json"))


# -- the site --------------------------------------------------------------------------------------------------------


def create_site(folder: Path, name: str) -> JoinRequest:
    """Make both keys in a new folder and write the request for the owner beside them.

    Raises:
        DocumentError: E320 if there are keys already, E318 or E319 if the folder cannot be used, E305 for a bad name.
    """
    tls_key, identity = pki.new_key(), SigningKey.generate(os.urandom)
    csr = pki.signing_request(tls_key, name).public_bytes(Encoding.PEM).decode("ascii")
    raw = {"version": 1, "name": name, "identity_key": identity.verify_key.to_bytes().hex(), "csr": csr}
    request = parse_model(JoinRequest, "join request", signed.canonical(raw))
    private_folder(folder)
    write_signing_key(folder / IDENTITY_KEY, identity)
    write_tls_key(folder / TLS_KEY, tls_key)
    body = request.to_bytes()
    write_new(folder / REQUEST, body)
    write_new(folder / (REQUEST + SIGNATURE), signed.sign(REQUEST_KIND, body, identity))
    return request


def read_request(folder: Path) -> tuple[bytes, bytes]:
    """(request, signature) of a site folder, as they are sent to the owner."""
    return read_public(folder / REQUEST), read_public(folder / (REQUEST + SIGNATURE))


def verify_request(body: bytes, signature: bytes) -> JoinRequest:
    """Parse a request that claims nothing but its own keys: its identity key must have signed it.

    Raises:
        DocumentError: E302, E303, E305 or E322.
    """
    signed.parse(REQUEST_KIND, body)
    request = parse_model(JoinRequest, "join request", body)
    signed.verify(REQUEST_KIND, body, signature, VerifyKey(bytes.fromhex(request.identity_key)))
    pki.request_key(request.certificate_request())
    return request


def accept(folder: Path, welcome: bytes, owner_fingerprint: str) -> None:
    """Check everything in the owner's answer against the own keys, then write it into the site folder.

    The first acceptance pins the owner's key; later ones (a new roster, a renewed certificate) must come from the same
    owner and may not go back to an older roster.

    Args:
        folder: Site folder with its keys.
        welcome: Bytes of a `Welcome`.
        owner_fingerprint: As the owner read it out by phone.

    Raises:
        DocumentError: E302 to E305, E312, E316, E318 to E321, E351 to E354.
    """
    signed.parse("welcome", welcome)
    message = parse_model(Welcome, "welcome", welcome)
    owner = VerifyKey(bytes.fromhex(message.owner_key))
    pinned = read_verify_key(folder / OWNER) if (folder / OWNER).exists() else None
    for expected in (owner_fingerprint, pinned.fingerprint() if pinned else owner_fingerprint):
        if owner.fingerprint() != expected:
            raise _wrong_owner(owner.fingerprint(), expected)
    roster_body, roster_signature = message.roster.encode(), bytes.fromhex(message.roster_signature)
    manifest_body, manifest_signature = message.manifest.encode(), bytes.fromhex(message.manifest_signature)
    roster = verify_roster(roster_body, roster_signature, owner)
    fitting(roster, verify_manifest(manifest_body, manifest_signature, owner))
    if (folder / ROSTER).exists():
        _check_successor(roster, parse_model(Roster, "roster", read_public(folder / ROSTER)))
    request = verify_request(*read_request(folder))
    me = own_entry(roster, request.name, read_signing_key(folder / IDENTITY_KEY))
    leaf = pki.parse_certificate(message.certificate.encode(), "the welcome's certificate")
    authority = pki.parse_certificate(message.authority.encode(), "the welcome's authority")
    key = read_tls_key(folder / TLS_KEY)
    if leaf.public_key() != key.public_key():
        raise DocumentError(
            "the certificate is for another key",
            found="a leaf that was not requested by this site",
            expected=f"a leaf over the key with SHA-256 {me.tls_key_sha256[:16]}...",
            do="put the own tls.key back, or send this folder's request.json to the owner again",
            code="E316",
        )
    role: Role = "client" if isinstance(me, Member) else "server" if me == roster.server else "decryptor"
    usage = pki.Usage.SERVER if role == "server" else pki.Usage.CLIENT  # a decryptor dials, as a client does
    identity = pki.TlsIdentity(leaf, authority, key)
    pki.check_own_certificate(identity, roster, me.name, usage, leaf.not_valid_before_utc)
    files = {
        OWNER: verify_key_pem(owner),
        AUTHORITY: pki.pem(authority),
        LEAF: pki.pem(leaf),
        MANIFEST + SIGNATURE: manifest_signature,
        MANIFEST: manifest_body,
        ROSTER + SIGNATURE: roster_signature,
        ROSTER: roster_body,
    }
    for name, data in files.items():
        replace_public(folder / name, data)
    settings = folder / f"{role}.toml"
    if not settings.exists():
        write_new(settings, _settings_toml(me.name, message, role))


def _check_successor(new: Roster, old: Roster) -> None:
    if new.consortium != old.consortium or new.version < old.version:
        raise DocumentError(
            "the roster is no successor of the one in this folder",
            found=f"version {new.version} of {new.consortium!r}",
            expected=f"version {old.version} or later of {old.consortium!r}",
            do="ask the owner for the current roster",
            code="E352",
        )


def _settings_toml(name: str, welcome: Welcome, role: Role) -> bytes:
    rows: dict[str, str | int] = {
        "name": name,
        "server_host": welcome.server_host,
        "server_port": welcome.server_port,
    }
    if role == "client":
        rows |= {"data": "records.csv", "device": "cpu"}
    lines = ["# Settings of this site alone. What is computed stands in manifest.json, signed by the owner."]
    lines += [f"{key} = {json.dumps(value)}" for key, value in rows.items()]
    return ("\n".join(lines) + "\n").encode()


def _wrong_owner(found: str, expected: str) -> DocumentError:
    return DocumentError(
        "another owner signed this",
        found=f"owner key {found}",
        expected=f"owner key {expected}",
        do="call the owner and compare the fingerprint; accept nothing until they agree",
        code="E351",
    )
