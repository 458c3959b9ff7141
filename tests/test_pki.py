"""Certificates: what is issued, and one clear error for each way in which the own one can be wrong."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from protocol.errors import DocumentError
from protocol.roster import Member, Peer, Roster
from protocol.rpc.keyfiles import write_new, write_tls_key
from protocol.rpc.pki import (
    Authority,
    TlsIdentity,
    Usage,
    check_own_certificate,
    create_authority,
    issue_leaf,
    load_identity,
    new_key,
    pem,
    request_key,
    signing_request,
    spki_sha256,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class World:
    """A consortium of one server and two clients."""

    authority: Authority
    server: TlsIdentity
    clients: dict[str, TlsIdentity]
    roster: Roster


def identity(authority: Authority, name: str, usage: Usage = Usage.CLIENT, hosts: tuple[str, ...] = ()) -> TlsIdentity:
    key = new_key()
    leaf = issue_leaf(authority, signing_request(key, name), (name, usage, hosts), NOW)
    return TlsIdentity(leaf, authority.certificate, key)


@pytest.fixture(scope="module")
def world() -> World:
    authority = create_authority("a consortium", NOW)
    server = identity(authority, "server", Usage.SERVER, ("localhost", "127.0.0.1", "::1"))
    clients = {name: identity(authority, name) for name in ("north", "south")}
    members = tuple(
        Member(name=name, identity_key=f"{i:064x}", tls_key_sha256=spki_sha256(own.certificate), client_id=i)
        for i, (name, own) in enumerate(clients.items(), 1)
    )
    entry = Peer(name="server", identity_key=f"{99:064x}", tls_key_sha256=spki_sha256(server.certificate))
    return World(
        authority, server, clients, Roster(consortium="a consortium", version=1, server=entry, clients=members)
    )


def refused(code: str, call: object, *args: object) -> DocumentError:
    assert callable(call)
    with pytest.raises(DocumentError) as caught:
        call(*args)
    error = caught.value
    assert error.code == code, str(error)
    assert error.found and error.expected and error.do
    return error


def test_the_own_certificate_is_good(world: World) -> None:
    me = check_own_certificate(world.clients["north"], world.roster, "north", Usage.CLIENT, NOW)
    assert me == world.roster.clients[0]
    assert check_own_certificate(world.server, world.roster, "server", Usage.SERVER, NOW) == world.roster.server


def test_leaf_contents(world: World) -> None:
    leaf = world.clients["north"].certificate
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    assert leaf.not_valid_after_utc - NOW == 90 * DAY
    server = world.server.certificate
    assert list(server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    root = world.authority.certificate
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    assert leaf.serial_number != server.serial_number != root.serial_number


@pytest.mark.parametrize(
    ("offset", "code"),
    [
        (timedelta(0), None),
        (90 * DAY, None),
        (90 * DAY + timedelta(seconds=1), "E311"),
        (-timedelta(minutes=5), None),
        (-timedelta(minutes=5, seconds=1), "E311"),
        (6 * 365 * DAY, "E311"),
    ],
)
def test_dates(world: World, offset: timedelta, code: str | None) -> None:
    args = (world.clients["north"], world.roster, "north", Usage.CLIENT, NOW + offset)
    if code is None:
        assert check_own_certificate(*args).name == "north"
    else:
        error = refused(code, check_own_certificate, *args)
        assert ("has expired" if offset > DAY else "not valid yet") in error.what


def test_an_expired_authority(world: World) -> None:
    late = NOW + 5 * 365 * DAY - DAY
    key = new_key()
    leaf = issue_leaf(world.authority, signing_request(key, "north"), ("north", Usage.CLIENT, ()), late)
    own = TlsIdentity(leaf, world.authority.certificate, key)
    error = refused("E311", check_own_certificate, own, world.roster, "north", Usage.CLIENT, late + 3 * DAY)
    assert "authority's" in error.what


def test_another_authority(world: World) -> None:
    """Same names, other key: only the signature differs."""
    other = create_authority("a consortium", NOW)
    assert other.certificate.subject == world.authority.certificate.subject
    own = world.clients["north"]
    mixed = TlsIdentity(own.certificate, other.certificate, own.key)
    refused("E312", check_own_certificate, mixed, world.roster, "north", Usage.CLIENT, NOW)
    stranger = TlsIdentity(own.certificate, create_authority("another", NOW).certificate, own.key)
    refused("E312", check_own_certificate, stranger, world.roster, "north", Usage.CLIENT, NOW)


def test_the_wrong_usage(world: World) -> None:
    refused("E313", check_own_certificate, world.server, world.roster, "server", Usage.CLIENT, NOW)
    refused("E313", check_own_certificate, world.clients["north"], world.roster, "north", Usage.SERVER, NOW)


def test_a_leaf_cannot_issue(world: World) -> None:
    """A site that signs certificates with its own leaf does not become an authority."""
    site = world.clients["north"]
    forged = identity(Authority(site.certificate, site.key), "south")
    refused("E313", check_own_certificate, forged, world.roster, "south", Usage.CLIENT, NOW)
    pretended = TlsIdentity(forged.certificate, world.authority.certificate, forged.key)
    refused("E312", check_own_certificate, pretended, world.roster, "south", Usage.CLIENT, NOW)


def test_another_members_certificate(world: World) -> None:
    error = refused("E316", check_own_certificate, world.clients["south"], world.roster, "north", Usage.CLIENT, NOW)
    assert error.found == "the certificate of south"
    fresh = identity(world.authority, "north")
    error = refused("E316", check_own_certificate, fresh, world.roster, "north", Usage.CLIENT, NOW)
    assert str(error.found).startswith("a key with SHA-256")


def test_not_in_the_roster(world: World) -> None:
    own = identity(world.authority, "west")
    error = refused("E304", check_own_certificate, own, world.roster, "west", Usage.CLIENT, NOW)
    assert "north, south" in str(error.found)


def test_renewal_keeps_the_key(world: World) -> None:
    own, later = world.clients["north"], NOW + 89 * DAY
    leaf = issue_leaf(world.authority, signing_request(own.key, "north"), ("north", Usage.CLIENT, ()), later)
    renewed = TlsIdentity(leaf, own.authority, own.key)
    assert check_own_certificate(renewed, world.roster, "north", Usage.CLIENT, NOW + 100 * DAY).name == "north"


def test_requests_are_checked() -> None:
    good = signing_request(new_key(), "north")
    assert request_key(good) == good.public_key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "north")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    refused("E322", request_key, builder.sign(ed25519.Ed25519PrivateKey.generate(), None))
    refused("E322", request_key, builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()))
    der = bytearray(good.public_bytes(Encoding.DER))
    der[-1] ^= 1
    refused("E322", request_key, x509.load_der_x509_csr(bytes(der)))


def test_loading(world: World, tmp_path: Path) -> None:
    own, other = world.clients["north"], world.clients["south"]
    write_new(tmp_path / "tls.pem", pem(own.certificate))
    write_new(tmp_path / "ca.pem", pem(own.authority))
    write_tls_key(tmp_path / "tls.key", own.key)
    write_tls_key(tmp_path / "other.key", other.key)
    loaded = load_identity(tmp_path / "tls.pem", tmp_path / "tls.key", tmp_path / "ca.pem")
    assert loaded.certificate == own.certificate and loaded.key_pem == own.key_pem
    refused("E317", load_identity, tmp_path / "tls.pem", tmp_path / "other.key", tmp_path / "ca.pem")
    (tmp_path / "bad.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(DocumentError) as caught:
        load_identity(tmp_path / "bad.pem", tmp_path / "tls.key", tmp_path / "ca.pem")
    assert caught.value.code == "E321"


def test_no_repr_shows_a_key(world: World) -> None:
    for thing in (world.authority, world.server, world.clients):
        assert "Key" not in repr(thing) and "PRIVATE" not in repr(thing)
