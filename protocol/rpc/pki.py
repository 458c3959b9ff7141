"""The consortium's small certificate authority, and the checks that a peer runs on itself before it dials. SPEC 9.2.

ECDSA P-256 throughout (gRPC and X.509 path validation refuse Ed25519); leaves of 90 days with one usage each. A
certificate only opens the channel: *who* the peer is, is decided by the SHA-256 of its public key in the signed roster,
on every call. The key of a leaf is made at the site and survives renewal; the authority sees a request and takes
nothing from it but the public key.

When a server refuses a certificate, the client's TLS stack learns nothing of use. So each cause is looked for here:

| code | meaning |
|---|---|
| E304 | not in the roster |
| E311 | a certificate that has expired, or is not valid yet |
| E312 | a certificate that another authority has issued |
| E313 | a certificate for another usage or host |
| E316 | another member's certificate |
| E317 | a key file that does not belong to the certificate |
| E321 | a file that does not hold a certificate or request |
| E322 | a signing request that is not signed by its own key, or not P-256 |
"""

import enum
import hashlib
import ipaddress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.errors import DocumentError
from protocol.roster import Peer, Roster
from protocol.rpc.keyfiles import read_public, read_tls_key, tls_key_pem

LEAF_DAYS = 90
AUTHORITY_DAYS = 5 * 365
CLOCK_SKEW = timedelta(minutes=5)  # new certificates begin a little in the past: clocks of sites differ

RENEW = "send a new signing request to the owner (the key stays), and accept the new certificate"


class Usage(enum.Enum):
    """What a leaf may be used for; never both."""

    SERVER = "server"
    CLIENT = "client"

    @property
    def oid(self) -> x509.ObjectIdentifier:
        """Extended key usage."""
        return ExtendedKeyUsageOID.SERVER_AUTH if self is Usage.SERVER else ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True, slots=True)
class Authority:
    """The owner's certificate authority."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """What one peer shows on a channel, and the authority that it trusts."""

    certificate: x509.Certificate
    authority: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def certificate_pem(self) -> bytes:
        """PEM of the leaf, as the TLS stack wants it."""
        return pem(self.certificate)

    @property
    def authority_pem(self) -> bytes:
        """PEM of the consortium's root."""
        return pem(self.authority)

    @property
    def key_pem(self) -> bytes:
        """Unencrypted PEM of the private key, for the TLS stack's memory only."""
        return tls_key_pem(self.key)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key from the operating system's generator."""
    return ec.generate_private_key(ec.SECP256R1())


def pem(certificate: x509.Certificate) -> bytes:
    """PEM of a certificate."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def spki_sha256(certificate: x509.Certificate) -> str:
    """Lowercase hex SHA-256 of the DER SubjectPublicKeyInfo (RFC 5280): `tls_key_sha256` of the roster."""
    der = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


# -- the owner's side -----------------------------------------------------------------------------------------------


def create_authority(consortium: str, now: datetime) -> Authority:
    """A new root for one consortium, valid for five years from `now` (timezone-aware)."""
    key = new_key()
    name = _name(consortium, "certificate authority")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _builder(name, name, key.public_key(), (now, AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issue_leaf(
    authority: Authority,
    request: x509.CertificateSigningRequest,
    peer: tuple[str, Usage, tuple[str, ...]],
    now: datetime,
) -> x509.Certificate:
    """A leaf of 90 days over the request's public key.

    Args:
        authority: The issuing root.
        request: From the site. Only its public key is used; name, usage and hosts are the owner's decision.
        peer: Roster name, usage, and for a server the DNS names and IP addresses it is reached under.
        now: Timezone-aware time of issue.

    Raises:
        DocumentError: E322 if the request is not signed by its own key, or is not P-256.
    """
    name, usage, hosts = peer
    public = request_key(request)
    alternative = [_general_name(host) for host in hosts] if usage is Usage.SERVER else [x509.DNSName(name)]
    issuer = authority.certificate.subject
    organisation = issuer.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value
    key_usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _builder(_name(str(organisation), name), issuer, public, (now, LEAF_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage.oid]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    return builder.sign(authority.key, hashes.SHA256())


def request_key(request: x509.CertificateSigningRequest) -> ec.EllipticCurvePublicKey:
    """The public key of a request that proves possession of its private key. Raises DocumentError E322."""
    try:
        key = request.public_key()
        good = request.is_signature_valid
        if good and isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            return key
    except (ValueError, UnsupportedAlgorithm):
        pass  # a point that is not on the curve, a curve or algorithm that nobody here knows: refused below
    raise DocumentError(
        "the signing request cannot be used",
        found="another kind of key, or a signature that its own key did not make",
        expected="an ECDSA P-256 request, signed with the key that it names",
        do="make the request again at the site",
        code="E322",
    )


# -- the site's side ------------------------------------------------------------------------------------------------


def signing_request(key: ec.EllipticCurvePrivateKey, name: str) -> x509.CertificateSigningRequest:
    """What a site sends to the owner: its public TLS key, signed with the private one."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())


def read_certificate(path: Path) -> x509.Certificate:
    """One certificate in PEM. Raises DocumentError E319, E321."""
    return parse_certificate(read_public(path), str(path))


def parse_certificate(data: bytes, source: str) -> x509.Certificate:
    """One P-256 certificate in PEM; `source` is for the error text. Raises DocumentError E321."""
    try:
        certificate = x509.load_pem_x509_certificate(data)
        if isinstance(certificate.public_key(), ec.EllipticCurvePublicKey):
            return certificate
    except (ValueError, UnsupportedAlgorithm):
        pass  # not PEM, not a certificate, a point that is not on its curve: refused below
    raise DocumentError(
        f"{source} does not hold what its name says",
        found="something else",
        expected="an ECDSA P-256 certificate in PEM",
        do="get it again from the owner",
        code="E321",
    )


def load_identity(certificate: Path, key: Path, authority: Path) -> TlsIdentity:
    """Read the three files; the key must belong to the certificate.

    Raises:
        DocumentError: E317 for a key of another certificate; E318 to E321 for the files themselves.
    """
    identity = TlsIdentity(read_certificate(certificate), read_certificate(authority), read_tls_key(key))
    if identity.key.public_key() != identity.certificate.public_key():
        raise DocumentError(
            "the TLS key does not belong to the certificate",
            found=f"{key} beside {certificate}",
            expected="the key that the certificate was requested with",
            do="restore the key, or send a new signing request to the owner",
            code="E317",
        )
    return identity


def check_own_certificate(identity: TlsIdentity, roster: Roster, name: str, usage: Usage, now: datetime) -> Peer:
    """Everything that the other side will check, checked before dialling; one error for each cause.

    Args:
        identity: Own leaf with the authority that issued it.
        roster: The verified roster.
        name: Own roster name.
        usage: How the leaf is going to be used.
        now: Timezone-aware current time.

    Returns:
        Own roster entry.

    Raises:
        DocumentError: E304, E311, E312, E313 or E316, in the order issuer, dates, usage, roster.
    """
    leaf, root = identity.certificate, identity.authority
    _check_issuer(leaf, root)
    for what, certificate in (("own", leaf), ("authority's", root)):
        _check_dates(what, certificate, now)
    _check_usage(identity, usage, now)
    return _check_roster(leaf, roster, name)


def _check_issuer(leaf: x509.Certificate, root: x509.Certificate) -> None:
    try:
        leaf.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise DocumentError(
            "the own certificate was issued by another authority",
            found=f"issuer {leaf.issuer.rfc4514_string()}, not signed by {_fingerprint(root)}",
            expected=f"issuer {root.subject.rfc4514_string()}, fingerprint {_fingerprint(root)}",
            do="compare the authority's fingerprint with the owner by phone, then ask for a new certificate",
            code="E312",
        ) from None


def _check_dates(what: str, certificate: x509.Certificate, now: datetime) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if begin <= now <= end:
        return
    state = "has expired" if now > end else "is not valid yet"
    raise DocumentError(
        f"the {what} certificate {state}",
        found=f"valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC",
        expected=f"valid at {now:%Y-%m-%d %H:%M} UTC",
        do=RENEW if now > end else "check this machine's clock, then ask the owner",
        code="E311",
    )


def _check_usage(identity: TlsIdentity, usage: Usage, now: datetime) -> None:
    """Path validation by `cryptography`, the same rules that a TLS stack applies to the chain."""
    leaf = identity.certificate
    builder = verification.PolicyBuilder().store(verification.Store([identity.authority])).time(now)
    reason = ""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if usage is Usage.CLIENT:
            builder.build_client_verifier().verify(leaf, [])
        else:
            for name in names:
                builder.build_server_verifier(_subject(name)).verify(leaf, [])
        return
    except x509.ExtensionNotFound:
        reason = "a certificate without a name"
    except (verification.VerificationError, ValueError) as error:
        reason = str(error) or type(error).__name__
    raise DocumentError(
        f"the own certificate cannot be used by a {usage.value}",
        found=reason,
        expected=f"a leaf for {usage.value} authentication under the consortium's root",
        do="ask the owner for a certificate with the right usage",
        code="E313",
    )


def _check_roster(leaf: x509.Certificate, roster: Roster, name: str) -> Peer:
    fingerprint = spki_sha256(leaf)
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
    if me.tls_key_sha256 != fingerprint:
        other = next((peer.name for peer in peers if peer.tls_key_sha256 == fingerprint), None)
        raise DocumentError(
            f"the certificate is not the one of {name}",
            found=f"the certificate of {other}" if other else f"a key with SHA-256 {fingerprint[:16]}...",
            expected=f"the key with SHA-256 {me.tls_key_sha256[:16]}... of {name}",
            do="put the own certificate and key back; if the key was replaced, the owner must sign a new roster",
            code="E316",
        )
    return me


# -- small parts ----------------------------------------------------------------------------------------------------


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, validity: tuple[datetime, int]
) -> x509.CertificateBuilder:
    now, days = validity
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(consortium: str, common: str) -> x509.Name:
    # X.520 allows 64 characters; the full name stands in the roster.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, consortium[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, common[:64]),
        ]
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _subject(name: x509.GeneralName) -> verification.Subject:
    if isinstance(name, x509.DNSName):
        return x509.DNSName(name.value)
    if isinstance(name, x509.IPAddress) and isinstance(name.value, ipaddress.IPv4Address | ipaddress.IPv6Address):
        return x509.IPAddress(name.value)
    raise ValueError("a certificate for something else than a host")


def _fingerprint(certificate: x509.Certificate) -> str:
    digest = certificate.fingerprint(hashes.SHA256()).hex()[:20]
    return "-".join(digest[i : i + 4] for i in range(0, 20, 4))
