"""Mutations of JSON: of its tree, with duplicates and any order of keys, of single values, and of the text itself."""

import json
from dataclasses import dataclass
from typing import Any, Final

from fuzz.dice import Dice


@dataclass(slots=True)
class Raw:
    """A value by its text, JSON or not."""

    text: str


@dataclass(slots=True)
class Pairs:
    """An object as a list of (key, value), in any order and with repeats."""

    pairs: list[tuple[str, Any]]


ZOO: Final = (
    "null", "true", "false", "0", "1", "-1", "-0", "1.0", "1e0", "0.1", "1e400", "-1e400", "NaN", "Infinity", "01",
    "+1", "0x10", "1_000", "9007199254740991", "9007199254740992", "9007199254740993", "18446744073709551616",
    "9" * 4200, "9" * 4400,
    '""', '"0"', '"1"', '"a"', '"\\u0000"', '"\\ud800"', '"\\udfff\\ud800"', '"\\u0061"', '"\\/"', '"\u2028"',
    '"' + "a" * 5000 + '"', '"' + "0" * 64 + '"', '"' + "F" * 64 + '"', '"' + "f" * 63 + '"', '"0.1"', '"1e5"', '"-1"',
    '"00.1"', '"\uff11"', '"1\\n"', "[]", "{}", "[[]]", "[1]", '{"a":1}', "[" * 200 + "]" * 200,
    "[" * 5000 + "]" * 5000, '{"a":' * 1500 + "1" + "}" * 1500, "[" + "0," * 3000 + "0]", "", "nul", "'a'", "/**/1",
)  # fmt: skip
_PARTS: Final = (b" ", b"\n", b"\x00", b"\xef\xbb\xbf", b"\xff", b",", b"{}", b"//", b"\xc0\xaf", b"\xed\xa0\x80")


def tree(value: Any) -> Any:
    """The mutable form of a parsed JSON value."""
    if isinstance(value, dict):
        return Pairs([(key, tree(item)) for key, item in value.items()])
    if isinstance(value, list):
        return [tree(item) for item in value]
    return value


def text(value: Any) -> str:
    """Compact JSON; canonical (RFC 8785) if the tree is, as keys keep their order."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{text(key)}:{text(item)}" for key, item in value.pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(text(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


class JsonMutator:
    """Mutates members of a corpus of documents; each member is material for the others."""

    def __init__(self, corpus: tuple[bytes, ...]) -> None:
        self._values = [json.loads(data) for data in corpus]
        for data, value in zip(corpus, self._values, strict=True):
            if text(tree(value)).encode() != data:
                raise ValueError("the corpus is not canonical")

    def __call__(self, dice: Dice) -> bytes:
        """Mutated bytes."""
        root = [tree(dice.pick(self._values))]
        for _ in range(1 + (0 if dice.chance(2) else dice.below(3))):
            self._mutate(root, dice)
        data = text(root[0] if root else "").encode("utf-8", "surrogatepass")
        return self._bytes(data, dice) if dice.chance(6) else data

    def _mutate(self, root: list[Any], dice: Dice) -> None:
        holder, index = dice.pick(_places(root) or [(root, 0)])
        items: list[Any] = holder.pairs if isinstance(holder, Pairs) else holder
        if not items:
            items.append(Raw(dice.pick(ZOO)))
            return
        way = dice.below(11)
        if way == 0:
            del items[index]
        elif way == 1:
            items.insert(dice.below(len(items) + 1), items[index])
        elif way == 2:
            other = dice.below(len(items))
            items[index], items[other] = items[other], items[index]
        elif way == 3 and isinstance(holder, Pairs):
            key = dice.pick(("", "a", items[index][0] + "x", items[index][0].upper(), "__proto__", "client_id"))
            items.insert(dice.below(len(items) + 1), (key, Raw(dice.pick(ZOO))))
        elif way == 4 and isinstance(holder, list) and dice.chance(4):
            items[index:index] = [items[index]] * dice.pick((2, 255, 256, 257, 2000))
        elif way == 5:
            donor, at = dice.pick(_places([tree(dice.pick(self._values))]))
            picked = donor.pairs[at] if isinstance(donor, Pairs) else donor[at]
            value = picked[1] if isinstance(donor, Pairs) else picked
            items[index] = (items[index][0], value) if isinstance(holder, Pairs) else value
        elif isinstance(holder, Pairs):
            items[index] = (items[index][0], self._value(items[index][1], dice))
        else:
            items[index] = self._value(items[index], dice)

    def _value(self, value: Any, dice: Dice) -> Any:
        way = dice.below(4)
        if isinstance(value, bool) or value is None or way == 0:
            return Raw(dice.pick(ZOO))
        if isinstance(value, int):
            return value + dice.pick((-1, 1)) if way == 1 else dice.integer() * (1 if dice.chance(2) else -1)
        if isinstance(value, str):
            at = dice.below(len(value) + 1)
            piece = dice.pick(("", "a", "0", "\u0000", "A", "é", "\U0001f600", "\n", "../", " "))
            return value[:at] + piece + value[at + (way == 1) :]
        return Raw(dice.pick(ZOO))

    def _bytes(self, data: bytes, dice: Dice) -> bytes:
        way, at = dice.below(6), dice.below(len(data) + 1)
        if way == 0:
            return data[:at] + dice.pick(_PARTS) + data[at:]
        if way == 1:
            return data[:at]
        if way == 2 and data:
            at = dice.below(len(data))
            return data[:at] + bytes([data[at] ^ 1 << dice.below(8)]) + data[at + 1 :]
        if way == 3:
            return data.decode("utf-8", "replace").encode(dice.pick(("utf-16", "utf-16-le", "utf-32", "utf-8-sig")))
        if way == 4:
            return dice.pick((b"", b"null", b"[]", b"{}", b"1", b'""', b"[" * 100_000, b'{"a":' * 100_000))
        return data + dice.pick(_PARTS)


def _places(value: Any) -> list[tuple[Any, int]]:
    found: list[tuple[Any, int]] = []
    items = value.pairs if isinstance(value, Pairs) else value if isinstance(value, list) else []
    for index, item in enumerate(items):
        found.append((value, index))
        found += _places(item[1] if isinstance(value, Pairs) else item)
    return found
