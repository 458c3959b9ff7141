"""Ciphertexts and keys of a peer, bent with knowledge of their structure: taken apart, edited, put together again.

What the guard lets through goes the whole way: it is added to an honest ciphertext and the sum is opened by the
library, or a key is loaded and encrypts. A process that this ends by a signal is a finding of the campaign. No input is
kept: a finding is a list of draws.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Final, cast

import numpy as np
import zstandard
from ciphertexts import Sealed, framed, unframed, varint
from fuzz.dice import Dice
from fuzz.harness import Violation

from secagg.he import guard
from secagg.he.bfv import Bfv
from secagg.he.errors import CiphertextError, DisagreementError
from secagg.he.scheme import DEGREE, BfvParams

P: Final = BfvParams(3, 32)
OTHERS: Final = (BfvParams(4, 32), BfvParams(3, 22), BfvParams(3, 16))
WORDS: Final = np.arange(20, dtype=np.uint64)


@cache
def material(params: BfvParams) -> tuple[bytes, Sealed, Sealed]:
    """A public key; its object and that of a ciphertext under it, taken apart."""
    key = Bfv().opening(params, len(WORDS), [1, 2]).public_key
    return key, Sealed.read(key), Sealed.read(unframed(next(Bfv().encryptor(params, key).encrypt(WORDS))))


class _Bender:
    """One object, bent in one to three ways."""

    def __init__(self, dice: Dice, shape: guard.Shape, sealed: Sealed) -> None:
        self.dice, self.shape, self.sealed = dice, shape, sealed
        self.pack: Callable[[bytes], bytes] = zstandard.ZstdCompressor(level=1).compress
        self.names: list[str] = []

    def bend(self) -> bytes:
        for _ in range(1 + self.dice.below(3)):
            way = self.dice.pick(_WAYS)
            self.names.append(way.__name__.strip("_"))
            way(self)
        return self.sealed.around(self.pack(self.sealed.content))

    def _header(self) -> None:
        name = self.dice.pick(("magic", "size", "major", "minor", "compression", "reserved", "total"))
        width = {"magic": 16, "reserved": 16, "total": 64}.get(name, 8)
        self.sealed = replace(self.sealed, **{name: self.dice.integer() % 2**width})

    def _leading(self) -> None:
        at = self.dice.below(len(self.shape.leading))
        self.sealed = self.sealed.patched(at, self.dice.bytes(1 + self.dice.below(8)))

    def _field(self) -> None:
        """One of the numbers before the coefficients: where the library takes its sizes from."""
        at = self.dice.pick((32, 33, 41, 49, 57, 65, 73, 75, 77, 81, 89))
        width = 1 if at == 32 else 8
        self.sealed = self.sealed.patched(at, (self.dice.integer() % 256**width).to_bytes(width, "little"))

    def _inner_header(self) -> None:
        self.sealed = self.sealed.patched(73 + self.dice.below(16), self.dice.bytes(1))

    def _coefficient(self) -> None:
        number = self.dice.pick((0, 1, P.modulus - 1, P.modulus, P.special_modulus, 2**64 - 1, self.dice.integer()))
        self.sealed = self.sealed.patched(self._place(), number.to_bytes(8, "little"))

    def _small_coefficient(self) -> None:
        """Below the modulus: this must pass, and be noticed at the opening at the latest."""
        self.sealed = self.sealed.patched(self._place(), self.dice.below(P.modulus).to_bytes(8, "little"))

    def _polynomial(self) -> None:
        """A whole residue of one value."""
        count = 2 * len(self.shape.moduli)
        number = self.dice.pick((0, 1, P.modulus - 1, P.modulus, self.dice.integer()))
        at = len(self.shape.leading) + 8 * DEGREE * self.dice.below(count)
        self.sealed = self.sealed.patched(at, number.to_bytes(8, "little") * DEGREE)

    def _length(self) -> None:
        content, extra = self.sealed.content, 1 + self.dice.below(9)
        cut = content[: self.dice.below(len(content))] if self.dice.chance(3) else content[:-extra]
        self.sealed = replace(self.sealed, content=self.dice.pick((cut, content + self.dice.bytes(extra))))

    def _other(self) -> None:
        """The content of other parameters, or of the other kind of object."""
        key, ciphertext = material(self.dice.pick((P, *OTHERS)))[1:]
        self.sealed = replace(self.sealed, content=self.dice.pick((key, ciphertext)).content)

    def _frame(self) -> None:
        """Another way to write the frame; some are fine."""
        level, cut = 1 + self.dice.below(6), self.dice.integer()
        noise = self.dice.bytes(1 + self.dice.below(40))
        self.pack = self.dice.pick(
            (
                lambda c: zstandard.compress(c, level),
                lambda c: zstandard.ZstdCompressor(write_content_size=False).compress(c),
                lambda c: zstandard.ZstdCompressor(write_checksum=True).compress(c),
                lambda c: zstandard.compress(c) + noise,
                lambda c: noise + zstandard.compress(c),
                lambda c: zstandard.compress(c[: cut % len(c)] if c else c) + zstandard.compress(c[100:]),
                lambda c: b"\x50\x2a\x4d\x18" + len(noise).to_bytes(4, "little") + noise + zstandard.compress(c),
                lambda c: zstandard.compress(c)[: cut % 70_000],
                lambda c: zstandard.compress(c + bytes(1 << 20)),
                lambda c: c,
            )
        )

    def _packed_bits(self) -> None:
        """Bits of the compressed frame: at its start, where its sizes are, or anywhere."""
        before, draws = self.pack, [(self.dice.integer(), self.dice.below(8)) for _ in range(1 + self.dice.below(4))]
        near = self.dice.chance(2)

        def pack(content: bytes) -> bytes:
            out = bytearray(before(content))
            for at, bit in draws:
                if out:
                    out[at % (min(len(out), 64) if near else len(out))] ^= 1 << bit
            return bytes(out)

        self.pack = pack

    def _place(self) -> int:
        count = 2 * len(self.shape.moduli) * DEGREE
        place = self.dice.pick((0, DEGREE - 1, DEGREE, count - 1, self.dice.below(count)))
        return len(self.shape.leading) + 8 * place


_WAYS: Final = cast(
    "tuple[Callable[[_Bender], None], ...]",
    (
        _Bender._header, _Bender._leading, _Bender._field, _Bender._field, _Bender._inner_header, _Bender._coefficient,
        _Bender._small_coefficient, _Bender._polynomial, _Bender._length, _Bender._other, _Bender._frame,
        _Bender._packed_bits,
    ),
)  # fmt: skip
WAYS: Final = frozenset(way.__name__.strip("_") for way in _WAYS)


def _shell(data: bytes, dice: Dice) -> bytes:
    """The framing of a ciphertext around a sealed object, mostly as it should be."""
    if not dice.chance(6):
        return framed(data)
    sizes = dice.pick((b"\x0a\x02\x80\x20", b"", b"\x0a\x01\x01", b"\x0a\x02\xff\x7f", b"\x08\x80\x20", dice.bytes(5)))
    length = dice.pick((varint(len(data)), varint(len(data) + 1), varint(dice.integer()), b"\x80" * dice.below(12)))
    return sizes + dice.pick((b"\x12", b"\x1a", b"", b"\x12\x00\x12")) + length + data + dice.pick((b"", dice.bytes(3)))


class CiphertextHarness:
    """Ciphertexts into an opening."""

    name = "he/ciphertext"

    def input(self, dice: Dice) -> tuple[bytes, str]:
        """A ciphertext and what was done to it."""
        bender = _Bender(dice, guard.ciphertext_shape(P), material(P)[2])
        return _shell(bender.bend(), dice), "+".join(bender.names)

    def run(self, dice: Dice) -> str:
        data, _ = self.input(dice)
        try:
            numbers = guard.check_ciphertext(data, P)
        except CiphertextError as error:
            return f"refused: {error.what}"
        if numbers.shape != (2, DEGREE) or int(numbers.max()) >= P.modulus or not numbers[1].any():
            raise Violation("numbers that are no ciphertext were accepted")
        if len(data) > guard.max_ciphertext_bytes(P):
            raise Violation("more bytes than announced were accepted")
        opening = Bfv().opening(P, len(WORDS), [1, 2])
        opening.add(1, 0, next(Bfv().encryptor(P, opening.public_key).encrypt(WORDS)))
        opening.add(2, 0, data)
        try:
            words = opening.open_()
        except DisagreementError:
            return "accepted, opening refused"  # it is under another key anyway
        original = np.frombuffer(material(P)[2].content[-8 * DEGREE :], "<u8")
        if words.shape != WORDS.shape or (numbers[1] == original).mean() > 0.5:
            raise Violation("a ciphertext under another key was opened")
        return "accepted, opened"  # its second part is short: it decrypts under any key, which harms its sender only

    def explain(self, dice: Dice) -> str:
        data, names = self.input(dice)
        return f"{names}; {len(data)} bytes, beginning {data[:64].hex()}"


class PublicKeyHarness:
    """Public keys into an encryptor."""

    name = "he/public key"

    def input(self, dice: Dice) -> tuple[bytes, str]:
        """A key and what was done to it."""
        bender = _Bender(dice, guard.public_key_shape(P), material(P)[1])
        return bender.bend(), "+".join(bender.names)

    def run(self, dice: Dice) -> str:
        data, _ = self.input(dice)
        try:
            encryptor = Bfv().encryptor(P, data)
        except CiphertextError as error:
            return f"refused: {error.what}"
        try:
            guard.check_ciphertext(next(encryptor.encrypt(WORDS)), P)
        except CiphertextError as error:
            # A key whose second part is short hides nothing: no more than if the decryptor gave its secret key away.
            if error.what != "a second polynomial of zeros" or not self._short(data):
                raise
            return "accepted, hides nothing"
        return "accepted"

    @staticmethod
    def _short(data: bytes) -> bool:
        """Whether a whole residue of the second part is one number, repeated."""
        numbers = np.frombuffer(Sealed.read(data).content[-4 * 8 * DEGREE :], "<u8").reshape(4, DEGREE)
        return any(len(set(residue.tolist())) < 10 for residue in numbers[2:])

    def explain(self, dice: Dice) -> str:
        data, names = self.input(dice)
        return f"{names}; {len(data)} bytes, beginning {data[:64].hex()}"


def harnesses() -> tuple[CiphertextHarness, PublicKeyHarness]:
    """Both."""
    return CiphertextHarness(), PublicKeyHarness()
