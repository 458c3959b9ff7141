"""Signed documents: canonical JSON (RFC 8785) under a typed Ed25519 signature.

A document is a pair of files: ``name.json`` (exact canonical bytes) and ``name.json.sig`` (64 bytes,
detached). The signature covers the DSSE pre-authentication encoding of (type, exact bytes), so a roster can
never pass for a manifest. Order of checks: signature over the exact bytes, parse, canonical form. JSON readers
keep the last of two duplicate keys; the canonical form has none. Signed documents hold no floats: decimals are
strings. SPEC 2.
"""

import json
from typing import Any

import rfc8785

from protocol.errors import DocumentError
from secagg.errors import AuthenticationError
from secagg.signing import SigningKey, VerifyKey


def pre_authentication_encoding(kind: str, body: bytes) -> bytes:
    """DSSE v1 PAE: ``"DSSEv1" SP LEN(type) SP type SP LEN(body) SP body`` with decimal byte lengths."""
    name = kind.encode("ascii")
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(body), body)


def canonical(value: Any) -> bytes:
    """RFC 8785 bytes of a JSON value. Floats are refused: signed documents use integers and decimal strings."""
    _refuse_floats(value, "$")
    return rfc8785.dumps(value)


def sign(kind: str, body: bytes, key: SigningKey) -> bytes:
    """Detached Ed25519 signature (64 bytes) over the typed document bytes."""
    return key.sign(pre_authentication_encoding(kind, body))


def verify(kind: str, body: bytes, signature: bytes, key: VerifyKey) -> Any:
    """Check the signature over the exact bytes, then parse, then demand the canonical form.

    Raises:
        DocumentError: Wrong signature, not JSON, or not canonical.
    """
    try:
        key.verify(signature, pre_authentication_encoding(kind, body))
    except AuthenticationError:
        raise DocumentError(
            f"the signature of the {kind} does not verify",
            found="bytes that the expected key did not sign",
            expected=f"a {kind} signed by key {key.fingerprint()}",
            do="get the document again from its owner and compare fingerprints by phone",
            code="E302",
        ) from None
    return parse(kind, body)


def parse(kind: str, body: bytes) -> Any:
    """Parse canonical JSON bytes and demand that they are canonical (no duplicate keys, no floats)."""
    try:
        value = json.loads(body)
        again = canonical(value)
    except (ValueError, RecursionError, rfc8785.CanonicalizationError) as error:
        raise DocumentError(
            f"the {kind} is not canonical JSON", found=type(error).__name__, expected="RFC 8785 bytes", code="E303"
        ) from None
    if again != body:
        raise DocumentError(
            f"the {kind} is not in canonical form", found="other bytes", expected="RFC 8785 bytes", code="E303"
        )
    return value


def _refuse_floats(value: Any, path: str) -> None:
    if isinstance(value, float):
        raise ValueError(f"float at {path}: signed documents use integers and decimal strings")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_floats(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_floats(item, f"{path}[{index}]")
