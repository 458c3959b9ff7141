"""Key files: written once, mode 0600, and refused when anybody else could read them. SPEC 3.3.

A private key is PKCS #8 in PEM, made on the machine that uses it. The owner's keys may carry a passphrase; the keys of
unattended processes cannot.

| code | meaning |
|---|---|
| E318 | others may read, replace or own a private file |
| E319 | a file is missing or cannot be read |
| E320 | a file is there already and is not overwritten |
| E321 | a file holds something else than its name says, or its passphrase is wrong |
"""

import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from protocol.errors import DocumentError
from secagg.signing import SigningKey, VerifyKey

PRIVATE = 0o600
PUBLIC = 0o644
MAX_FILE = 64 * 1024 * 1024  # bytes; a manifest of a large adapter is the largest file read here


def private_folder(path: Path) -> Path:
    """Create a folder of mode 0700, or check that an existing one is ours and nobody else may write to it.

    Raises:
        DocumentError: E318 for a folder that others may write to, E319 if it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise DocumentError(
            f"others may replace files in {path}",
            found=f"mode {stat.S_IMODE(status.st_mode):04o}, owner {status.st_uid}",
            expected=f"mode 0700, owner {os.geteuid()}",
            do=f"check who wrote to it, then: chmod 700 {path}",
            code="E318",
        )
    return path


def write_new(path: Path, data: bytes, mode: int = PUBLIC) -> None:
    """Create a file with exactly this mode and make it durable. Nothing that exists is ever overwritten.

    Raises:
        DocumentError: E320 if the file exists, E319 if it cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, mode)
    except FileExistsError:
        raise DocumentError(
            f"{path} is there already",
            found="an existing file",
            expected="a new one: keys and signed documents are never overwritten",
            do="use another folder, or move the old one away",
            code="E320",
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # the umask may only make it stricter; this makes it exact
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def replace_public(path: Path, data: bytes) -> None:
    """Put a signed successor in the place of a public file: a reader sees the old one or the new one, whole.

    Raises:
        DocumentError: E319 if it cannot be written.
    """
    _replace(path, data, PUBLIC)


def replace_private(path: Path, data: bytes) -> None:
    """As `replace_public`, for what nobody else on this machine may read."""
    _replace(path, data, PRIVATE)


def _replace(path: Path, data: bytes, mode: int) -> None:
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    write_new(new, data, mode)
    os.replace(new, path)


def read_public(path: Path) -> bytes:
    """The whole of a public file. Raises DocumentError E319."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise DocumentError(f"{path} is too large", expected=f"at most {MAX_FILE} bytes", code="E319")
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def read_private(path: Path) -> bytes:
    """The whole of a private file, after its owner and mode have been checked on the open file.

    Raises:
        DocumentError: E318 if it is a link, not ours, or readable by others; E319 if it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(path, error) from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise DocumentError(
                f"the private file {path} is not private",
                found=f"mode {stat.S_IMODE(status.st_mode):04o}, owner {status.st_uid}",
                expected=f"a regular file, mode 0600, owner {os.geteuid()}",
                do=f"if nobody else can have read it: chmod 600 {path}; otherwise make new keys and tell the owner",
                code="E318",
            )
        return file.read(MAX_FILE)


# -- Ed25519: identities and the owner ------------------------------------------------------------------------------


def write_signing_key(path: Path, key: SigningKey, passphrase: bytes | None = None) -> None:
    """Write an Ed25519 private key (0600, PKCS #8 PEM)."""
    private = Ed25519PrivateKey.from_private_bytes(key.to_bytes())
    write_new(path, _private_pem(private, passphrase), PRIVATE)


def read_signing_key(path: Path, passphrase: bytes | None = None) -> SigningKey:
    """Read an Ed25519 private key. Raises DocumentError E318, E319, E321."""
    key = _load_private(path, passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise _not_a(path, "an Ed25519 private key")
    return SigningKey.from_bytes(key.private_bytes_raw())


def verify_key_pem(key: VerifyKey) -> bytes:
    """SubjectPublicKeyInfo PEM of an Ed25519 public key."""
    public = Ed25519PublicKey.from_public_bytes(key.to_bytes())
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def read_verify_key(path: Path) -> VerifyKey:
    """Read an Ed25519 public key. Raises DocumentError E319, E321."""
    try:
        key = serialization.load_pem_public_key(read_public(path))
    except (ValueError, UnsupportedAlgorithm):
        raise _not_a(path, "an Ed25519 public key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise _not_a(path, "an Ed25519 public key")
    return VerifyKey(key.public_bytes_raw())


# -- ECDSA P-256: certificates --------------------------------------------------------------------------------------


def write_tls_key(path: Path, key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> None:
    """Write a P-256 private key (0600, PKCS #8 PEM)."""
    write_new(path, _private_pem(key, passphrase), PRIVATE)


def read_tls_key(path: Path, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """Read a P-256 private key. Raises DocumentError E318, E319, E321."""
    key = _load_private(path, passphrase)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _not_a(path, "an ECDSA P-256 private key")
    return key


def tls_key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Unencrypted PKCS #8 PEM, for the TLS stack's memory; never logged."""
    return _private_pem(key, None)


def _private_pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, passphrase: bytes | None) -> bytes:
    protection: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def _load_private(path: Path, passphrase: bytes | None) -> PrivateKeyTypes:
    data = read_private(path)
    encrypted = b"ENCRYPTED" in data
    try:
        return serialization.load_pem_private_key(data, passphrase if encrypted else None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        if encrypted:
            raise DocumentError(
                f"{path} does not open with this passphrase",
                found="no passphrase" if passphrase is None else "another passphrase, or a damaged file",
                expected="the passphrase that it was written with",
                code="E321",
            ) from None
        raise _not_a(path, "a private key in PEM") from None


def _not_a(path: Path, expected: str) -> DocumentError:
    return DocumentError(
        f"{path} does not hold what its name says", found="something else", expected=expected, code="E321"
    )


def _unreadable(path: Path, error: OSError) -> DocumentError:
    return DocumentError(
        f"{path} cannot be used",
        found=os.strerror(error.errno) if error.errno else type(error).__name__,
        expected="a file or folder of this site",
        do="check the path and who owns it",
        code="E319",
    )
