"""The handshake that names the cause, against real gRPC servers and against things that are none, on loopback."""

import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from protocol.errors import TransportError
from protocol.roster import Member, Peer, Roster
from protocol.rpc.pki import Authority, TlsIdentity, Usage, create_authority, issue_leaf, new_key, signing_request
from protocol.rpc.pki import spki_sha256 as fingerprint
from protocol.rpc.probe import probe_server

NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=400)
SOON = NOW + timedelta(days=2)
AUTHORITY = create_authority("a consortium", LONG_AGO)
OTHER = create_authority("a consortium", LONG_AGO)


def identity(
    authority: Authority, name: str, usage: Usage, host: str = "localhost", when: datetime = NOW
) -> TlsIdentity:
    key = new_key()
    leaf = issue_leaf(authority, signing_request(key, name), (name, usage, (host, "127.0.0.1")), when)
    return TlsIdentity(leaf, authority.certificate, key)


SERVER = identity(AUTHORITY, "server", Usage.SERVER)
CLIENT = identity(AUTHORITY, "north", Usage.CLIENT)


def roster(server: TlsIdentity = SERVER) -> Roster:
    return Roster(
        consortium="a consortium",
        version=1,
        server=Peer(name="server", identity_key=f"{2:064x}", tls_key_sha256=fingerprint(server.certificate)),
        clients=(
            Member(name="north", identity_key=f"{1:064x}", tls_key_sha256=fingerprint(CLIENT.certificate), client_id=1),
        ),
    )


@contextmanager
def grpc_server(own: TlsIdentity) -> Iterator[int]:
    """A real gRPC server that demands client certificates; yields its port."""
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials([(own.key_pem, own.certificate_pem)], own.authority_pem, True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


@contextmanager
def listener(answer: bytes | None) -> Iterator[int]:
    """Something that listens: sends `answer` and closes, or says nothing at all."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                if answer is not None:
                    connection.recv(1)
                    connection.sendall(answer)
                else:
                    done.wait(10)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            done.set()
            thread.join(10)


def refused(
    code: str, port: int, host: str = "localhost", own: TlsIdentity = CLIENT, timeout: float = 5
) -> TransportError:
    with pytest.raises(TransportError) as caught:
        probe_server((host, port), own, roster(), timeout)
    error = caught.value
    assert error.code == code, str(error)
    assert error.found and error.expected and error.do
    assert str(port) in error.what
    return error


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_good_server(host: str) -> None:
    with grpc_server(SERVER) as port:
        probe = probe_server((host, port), CLIENT, roster())
    assert probe.tls_version == "TLSv1.3"
    assert probe.tls_key_sha256 == fingerprint(SERVER.certificate)
    assert probe.not_after == int(SERVER.certificate.not_valid_after_utc.timestamp())


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "refused" in str(refused("E330", port).found)


def test_the_server_has_another_authority() -> None:
    with grpc_server(identity(OTHER, "server", Usage.SERVER)) as port:
        refused("E332", port)


def test_the_servers_certificate_is_out_of_date() -> None:
    with grpc_server(identity(AUTHORITY, "server", Usage.SERVER, when=LONG_AGO)) as port:
        assert "has expired" in refused("E333", port).what
    with grpc_server(identity(AUTHORITY, "server", Usage.SERVER, when=SOON)) as port:
        assert "not valid yet" in refused("E333", port).what


def test_the_servers_certificate_is_for_another_host() -> None:
    with grpc_server(identity(AUTHORITY, "server", Usage.SERVER, host="elsewhere.example")) as port:
        refused("E334", port)


def test_a_client_plays_server() -> None:
    """A member of the consortium with a valid leaf listens at the server's address."""
    with grpc_server(CLIENT) as port:
        refused("E334", port)


def test_the_servers_key_is_not_in_the_roster() -> None:
    with grpc_server(identity(AUTHORITY, "server", Usage.SERVER)) as port:
        assert "of server" in str(refused("E335", port).expected)


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(replace(identity(OTHER, "north", Usage.CLIENT), authority=AUTHORITY.certificate), id="authority"),
        pytest.param(identity(AUTHORITY, "north", Usage.CLIENT, when=LONG_AGO), id="expired"),
        pytest.param(identity(AUTHORITY, "north", Usage.SERVER), id="usage"),
    ],
)
def test_the_server_refuses_our_certificate(own: TlsIdentity) -> None:
    with grpc_server(SERVER) as port:
        refused("E336", port, own=own)


def test_things_that_are_no_server() -> None:
    with listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        refused("E331", port)
    with listener(b"") as port:
        refused("E331", port)
    with listener(None) as port:
        assert "nothing within 0.2 s" in str(refused("E331", port, timeout=0.2).found)


@pytest.mark.parametrize(("alpn", "answer", "code"), [("", b"", "E331"), ("h2", b"\0\0\0\7\0\0\0\0\0", "E331")])
def test_tls_without_grpc(alpn: str, answer: bytes, code: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The right certificate in front of something that does not speak HTTP/2, or not as a server does."""
    chain = tmp_path_factory.mktemp("tls") / "chain.pem"
    chain.write_bytes(SERVER.key_pem + SERVER.certificate_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    context.set_alpn_protocols([alpn] if alpn else ["http/1.1"])
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with context.wrap_socket(connection, server_side=True) as channel:
                channel.sendall(answer)
                channel.recv(100)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        refused(code, server.getsockname()[1])
        thread.join(10)
