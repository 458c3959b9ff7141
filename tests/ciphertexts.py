"""Ciphertexts and public keys taken apart and put together again, as somebody would who knows the library's formats."""

import struct
from dataclasses import dataclass, replace

import zstandard

HEADER = struct.Struct("<HBBBBHQ")


@dataclass(frozen=True)
class Sealed:
    """A sealed object: the fields of its header, and what its frame holds."""

    content: bytes
    magic: int = 0xA15E
    size: int = 16
    major: int = 4
    minor: int = 3
    compression: int = 2
    reserved: int = 0
    total: int | None = None  # None: what it is

    @staticmethod
    def read(data: bytes) -> "Sealed":
        """Take apart."""
        fields = HEADER.unpack_from(data)
        content = zstandard.ZstdDecompressor().decompress(data[16:], max_output_size=1 << 24)
        return Sealed(content, *fields[:6])

    def write(self, level: int = 3) -> bytes:
        """Put together."""
        packed = zstandard.ZstdCompressor(level=level).compress(self.content)
        return self.around(packed)

    def around(self, packed: bytes) -> bytes:
        """The header before other bytes."""
        total = 16 + len(packed) if self.total is None else self.total
        fields = (self.magic, self.size, self.major, self.minor, self.compression, self.reserved)
        return HEADER.pack(*fields, total) + packed

    def patched(self, at: int, new: bytes) -> "Sealed":
        """Other bytes at one place of the content."""
        return replace(self, content=self.content[:at] + new + self.content[at + len(new) :])


def varint(number: int) -> bytes:
    out = b""
    while number >= 0x80:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def framed(sealed: bytes) -> bytes:
    """A ciphertext of 4096 slots."""
    return b"\x0a\x02\x80\x20\x12" + varint(len(sealed)) + sealed


def unframed(ciphertext: bytes) -> bytes:
    """The sealed object inside."""
    return ciphertext[ciphertext.index(b"\x5e\xa1") :]
