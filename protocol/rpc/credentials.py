"""TLS material for gRPC, and who a connection belongs to. SPEC 9.2.

Identity is the SHA-256 of the leaf's public key, looked up in the signed roster on every call: a certificate that the
CA signed is not enough, and a renewed certificate with the same key is the same client.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache

import grpc
from cryptography import x509

from protocol.roster import Roster
from protocol.rpc.pki import TlsIdentity, spki_sha256
from protocol.rpc.status import Refusal
from secagg.types import DECRYPTOR, ClientId


def server_credentials(identity: TlsIdentity) -> grpc.ServerCredentials:
    """Mutual TLS: clients without a certificate of the consortium's CA are cut off in the handshake."""
    leaf = (identity.key_pem, identity.certificate_pem)
    return grpc.ssl_server_credentials([leaf], identity.authority_pem, require_client_auth=True)


def channel_credentials(identity: TlsIdentity) -> grpc.ChannelCredentials:
    """Trusts the consortium's CA and nothing else."""
    return grpc.ssl_channel_credentials(identity.authority_pem, identity.key_pem, identity.certificate_pem)


class Doorkeeper:
    """Maps connections to clients of one roster."""

    def __init__(self, roster: Roster) -> None:
        self._consortium = f"{roster.consortium!r}, roster version {roster.version}"
        self._clients = {member.tls_key_sha256: ClientId(member.client_id) for member in roster.clients}
        if roster.decryptor is not None:
            self._clients[roster.decryptor.tls_key_sha256] = DECRYPTOR
        self._server = roster.server.tls_key_sha256

    def client(self, auth: Mapping[str, Iterable[bytes]]) -> ClientId:
        """Client, or DECRYPTOR, behind an auth context. Raises Refusal (PERMISSION_DENIED) that names the reason."""
        leaf = next(iter(auth.get("x509_pem_cert", ())), None)
        if leaf is None:
            raise _denied("no certificate", f"a client of {self._consortium}")
        key, first, last = _leaf(bytes(leaf))
        if not first <= datetime.now(UTC) <= last:  # the handshake may have been long ago
            raise _denied(f"validity {first:%Y-%m-%d} to {last:%Y-%m-%d}", "a certificate that is valid now")
        client = self._clients.get(key)
        if client is None:
            found = "the server's own key" if key == self._server else f"key sha256:{key[:16]}, not in the roster"
            raise _denied(found, f"a client of {self._consortium}")
        return client


def _denied(found: str, expected: str) -> Refusal:
    return Refusal(
        grpc.StatusCode.PERMISSION_DENIED,
        f"[E304] this certificate opens nothing here: found {found}; expected {expected}",
    )


@lru_cache(maxsize=1024)
def _leaf(pem: bytes) -> tuple[str, datetime, datetime]:
    certificate = x509.load_pem_x509_certificate(pem)
    return spki_sha256(certificate), certificate.not_valid_before_utc, certificate.not_valid_after_utc
