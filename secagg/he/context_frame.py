"""The library's serialised contexts, as far as we need them: a public key out of our own, and a peer's put in.

A context without a secret key is field 1, the sealed encryption parameters, and field 2, the public part: field 1, the
sealed public key, then flags and scale. Only contexts that the library in this process has just written are read here;
bytes of a peer enter as the checked key of `guard.check_public_key`, between fields that we write.
"""

from secagg.he.errors import CiphertextError
from secagg.he.guard import varint

_PARAMETERS, _PUBLIC = 0x0A, 0x12
_KEY = 0x0A


def public_key_of(context: bytes) -> bytes:
    """The sealed public key. Raises CiphertextError for a context with anything but parameters and a public part."""
    return _parts(context)[1]


def with_public_key(context: bytes, sealed: bytes) -> bytes:
    """The same context with another, checked key in the place of its own."""
    parameters, _, rest = _parts(context)
    public = _field(_KEY, sealed) + rest
    return _field(_PARAMETERS, parameters) + _field(_PUBLIC, public)


def _parts(context: bytes) -> tuple[bytes, bytes, bytes]:
    """(parameters, public key, what follows it in the public part)."""
    parameters, rest = _take(_PARAMETERS, context)
    public, end = _take(_PUBLIC, rest)
    if end:  # a private part would be field 3
        raise CiphertextError("a context with more than a public part")
    key, flags = _take(_KEY, public)
    return parameters, key, flags


def _take(tag: int, data: bytes) -> tuple[bytes, bytes]:
    length, shift, position = 0, 0, 1
    while data[position] >= 0x80:
        length |= (data[position] & 0x7F) << shift
        shift, position = shift + 7, position + 1
    length |= data[position] << shift
    end = position + 1 + length
    if data[0] != tag or end > len(data):
        raise CiphertextError("a context in another form")
    return data[position + 1 : end], data[end:]


def _field(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + varint(len(content)) + content
