"""One TLS handshake with the standard library that says why a channel would not open. SPEC 9.2.

gRPC reports every failed handshake as "unavailable" and tries again for ever. This handshake is made once, before the
first call and again when a channel stays down, and it names the cause: a wrong certificate is a sentence and not
a wait.

| code | meaning |
|---|---|
| E330 | nobody listens at the address, or the network does not lead there |
| E331 | something answers that is not a server of this protocol, or it does not answer in time |
| E332 | the server's certificate comes from another authority |
| E333 | the server's certificate has expired, or is not valid yet |
| E334 | the server's certificate is for another host or another usage |
| E335 | the server's key is not the one in the roster |
| E336 | the server refuses our certificate |
"""

import os
import socket
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from protocol.errors import TransportError
from protocol.roster import Roster
from protocol.rpc.pki import TlsIdentity, spki_sha256

# RFC 9113: what a client says first, then an empty SETTINGS frame. The server's own SETTINGS come back if, and only if,
# it has accepted our certificate.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_FRAME_HEADER = 9
_SETTINGS = 4

# OpenSSL's x509_vfy.h; the ssl module exports only the numbers.
_DATES = {9, 10}
_HOST_OR_USAGE = {26, 62, 64}


@dataclass(frozen=True, slots=True)
class ServerProbe:
    """What the handshake showed. `not_after` is the end of the server's certificate, seconds since 1970."""

    tls_version: str
    tls_key_sha256: str
    not_after: int


def probe_server(address: tuple[str, int], identity: TlsIdentity, roster: Roster, timeout: float = 5.0) -> ServerProbe:
    """Connect once and check the server as a channel would. Blocks for at most about twice `timeout` seconds.

    Args:
        address: Host, as it stands in the server's certificate, and port.
        identity: Own leaf, key and the consortium's root.
        roster: The verified roster with the server's entry.
        timeout: Seconds for each of connecting and answering.

    Raises:
        TransportError: E330 to E336.
    """
    host, port = address
    where = f"{host}:{port}"
    try:
        with socket.create_connection(address, timeout) as plain:
            context = _context(identity)
            with context.wrap_socket(plain, server_hostname=host) as channel:
                probe = _look(channel)
                if probe.tls_key_sha256 != roster.server.tls_key_sha256:
                    raise TransportError(
                        f"the server at {where} is not the one in the roster",
                        found=f"a key with SHA-256 {probe.tls_key_sha256[:16]}...",
                        expected=f"{roster.server.tls_key_sha256[:16]}... of {roster.server.name}",
                        do="check the address; if the server has new keys, get the owner's new roster",
                        code="E335",
                    )
                _await_settings(channel, where)
                return probe
    except ssl.SSLCertVerificationError as error:
        raise _untrusted(where, error) from error
    except (ssl.SSLError, ssl.SSLEOFError, ConnectionResetError, BrokenPipeError) as error:
        raise TransportError(
            f"{where} does not complete a TLS handshake",
            found=getattr(error, "reason", None) or type(error).__name__,
            expected="the consortium's server",
            do="check host and port in the settings; something else may listen there",
            code="E331",
        ) from error
    except TimeoutError as error:
        raise TransportError(
            f"{where} does not answer",
            found=f"nothing within {timeout:g} s",
            expected="the consortium's server",
            do="check that the server runs and that no firewall drops the connection",
            code="E331",
        ) from error
    except OSError as error:
        raise TransportError(
            f"no connection to {where}",
            found=_system_reason(error),
            expected="a listening server",
            do="check host and port in the settings, and that the server has been started",
            code="E330",
        ) from error


def _context(identity: TlsIdentity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=identity.authority_pem.decode("ascii"))
    # The ssl module reads keys from files only: a file of mode 0600 in a folder of mode 0700, gone when this returns.
    with tempfile.TemporaryDirectory(prefix="secagg-") as folder:
        chain = Path(folder, "chain.pem")
        descriptor = os.open(chain, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(identity.key_pem + identity.certificate_pem)
        context.load_cert_chain(chain)
    return context


def _look(channel: ssl.SSLSocket) -> ServerProbe:
    der = channel.getpeercert(binary_form=True)
    if der is None:
        raise TransportError("the server shows no certificate", code="E331")
    certificate = x509.load_der_x509_certificate(der)
    until = int(certificate.not_valid_after_utc.timestamp())
    return ServerProbe(channel.version() or "", spki_sha256(certificate), until)


def _await_settings(channel: ssl.SSLSocket, where: str) -> None:
    """In TLS 1.3 a refusal of the client's certificate arrives after the handshake: wait for the first frame."""
    if channel.selected_alpn_protocol() != "h2":
        raise _not_grpc(where, "no HTTP/2")
    try:
        channel.sendall(_PREFACE)
        header = b""
        while len(header) < _FRAME_HEADER:
            more = channel.recv(_FRAME_HEADER - len(header))
            if not more:
                raise ConnectionResetError("closed")
            header += more
    except TimeoutError:
        raise
    except OSError as error:
        raise TransportError(
            f"the server at {where} refuses our certificate",
            found=getattr(error, "reason", None) or "the connection was closed after our certificate was sent",
            expected="a certificate that the server's authority has issued and that is still valid",
            do="compare the fingerprint of ca.pem with the server's operator; ask the owner for a new certificate",
            code="E336",
        ) from error
    if header[3] != _SETTINGS:
        raise _not_grpc(where, f"an HTTP/2 frame of type {header[3]}")


def _not_grpc(where: str, found: str) -> TransportError:
    return TransportError(
        f"{where} does not speak gRPC",
        found=found,
        expected="the consortium's server, which begins with HTTP/2 settings",
        do="check host and port in the settings; a proxy may stand in between",
        code="E331",
    )


def _untrusted(where: str, error: ssl.SSLCertVerificationError) -> TransportError:
    if error.verify_code in _DATES:
        state = "has expired" if error.verify_code == max(_DATES) else "is not valid yet"
        return TransportError(
            f"the certificate of the server at {where} {state}",
            found=error.verify_message,
            expected="a valid certificate",
            do="check this machine's clock; then the server's operator must renew the certificate",
            code="E333",
        )
    if error.verify_code in _HOST_OR_USAGE:
        return TransportError(
            f"the certificate of the server at {where} is for another host or usage",
            found=error.verify_message,
            expected="a server certificate that names this host",
            do="dial the name that stands in the certificate, or ask the owner to issue one for this host",
            code="E334",
        )
    return TransportError(
        f"the certificate of the server at {where} comes from another authority",
        found=error.verify_message,
        expected="a certificate of the consortium's own authority (ca.pem)",
        do="check the address, and compare the fingerprint of ca.pem with the owner by phone",
        code="E332",
    )


def _system_reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "the name is unknown"
    return os.strerror(error.errno) if error.errno else type(error).__name__
