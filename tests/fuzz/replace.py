"""Mutations of message dataclasses: every value is of the right Python type, and may be of another client or phase."""

import dataclasses
import enum
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fuzz.dice import Dice

from protocol.messages import (
    AdvertiseKeys,
    KeyList,
    LedgerRow,
    LedgerRows,
    MaskedInput,
    ShareKeys,
    SurvivorNotice,
    input_body,
    ledger_head_digest,
    shares_body,
)
from protocol.release import ReleaseLedger
from protocol.server import ServerSession
from secagg.signing import SigningKey
from secagg.transcript import merkle_root
from secagg.types import ClientId


class Pool:
    """Values that real messages hold, by where they stand, to swap between clients, phases and fields."""

    def __init__(self, messages: Iterable[Any]) -> None:
        self.messages = tuple(messages)
        self._bytes: dict[int, list[bytes]] = {}
        self._items: dict[type, list[Any]] = {}
        for message in self.messages:
            self._collect(message)

    def _collect(self, value: Any) -> None:
        if isinstance(value, bytes):
            self._bytes.setdefault(len(value), []).append(value)
        elif isinstance(value, tuple):
            for item in value:
                self._collect(item)
        elif dataclasses.is_dataclass(value):
            self._items.setdefault(type(value), []).append(value)
            for part in dataclasses.fields(value):
                self._collect(getattr(value, part.name))

    def mutated(self, message: Any, dice: Dice) -> Any:
        """Another message of the same type: one to three of its values replaced."""
        for _ in range(1 + (dice.below(3) if dice.chance(3) else 0)):
            message = self._value(message, dice)
        return message

    def _value(self, value: Any, dice: Dice) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._message(value, dice)
        if isinstance(value, tuple):
            return self._tuple(value, dice)
        if isinstance(value, bytes):
            return self._data(value, dice)
        if isinstance(value, enum.Enum):
            return dice.pick(tuple(type(value)))
        if isinstance(value, int):
            near = dice.pick((-1, 1, 2))
            return type(value)(max(0, value + near)) if not dice.chance(2) else dice.integer()
        if isinstance(value, str):
            return dice.pick(("", "other", value + "!", "x" * 4096, value[:1]))
        return value

    def _message(self, value: Any, dice: Dice) -> Any:
        donors = self._items.get(type(value), [])
        if donors and dice.chance(8):
            return dice.pick(donors)
        parts = dataclasses.fields(value)
        if not parts:
            return value
        name = dice.pick(parts).name
        if donors and dice.chance(4):
            return replace(value, **{name: getattr(dice.pick(donors), name)})
        return replace(value, **{name: self._value(getattr(value, name), dice)})

    def _tuple(self, value: tuple[Any, ...], dice: Dice) -> tuple[Any, ...]:
        items = list(value)
        if not items:
            return ()
        at, way = dice.below(len(items)), dice.below(8)
        if len({type(item) for item in items}) > 1:  # a pair, no list
            items[at] = self._value(items[at], dice)
        elif way == 0:
            del items[at]
        elif way == 1:
            items.insert(at, items[dice.below(len(items))])
        elif way == 2:
            items.reverse()
        elif way == 3:
            other = dice.below(len(items))
            items[at], items[other] = items[other], items[at]
        elif way == 4:
            del items[at:]
        elif way == 5 and dataclasses.is_dataclass(items[at]):
            items.append(dice.pick(self._items[type(items[at])]))
        else:
            items[at] = self._value(items[at], dice)
        return tuple(items)

    def _data(self, value: bytes, dice: Dice) -> bytes:
        way = dice.below(8)
        if way == 0 and value:
            at = dice.below(len(value))
            return value[:at] + bytes([value[at] ^ 1 << dice.below(8)]) + value[at + 1 :]
        if way == 1:
            return bytes(len(value))
        if way == 2:
            return b"\xff" * len(value)
        if way == 3:
            return dice.bytes(len(value))
        if way == 4:
            return value[: dice.below(len(value) + 1)] if not dice.chance(2) else value + b"\x00"
        if way == 5:
            return dice.pick(LOW_ORDER) if len(value) == 32 else value[::-1]
        return dice.pick(self._bytes.get(len(value), [value]))


# X25519 points of small order, and a second encoding of one point: RFC 7748, section 6.1, and its security notes.
LOW_ORDER = (
    bytes(32),
    (1).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
    (2**255 - 19 + 9).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
)


def by_client(message: Any, sender: ClientId, key: SigningKey, server: ServerSession) -> Any:
    """The message under its sender's own signature where it has one: an abusive client knows its key."""
    if isinstance(message, AdvertiseKeys):
        return replace(message, signature=key.sign(message.body(server.ctx, sender)))
    if isinstance(message, ShareKeys) and message.shares:
        root = merkle_root([share.leaf(sender) for share in message.shares])
        return replace(message, signature=key.sign(shares_body(server.ctx, server._root_u1, sender, root)))
    if isinstance(message, MaskedInput):
        return replace(message, signature=key.sign(input_body(server.ctx, server._root_u2, sender, message)))
    return message


def by_server(message: Any, ledger: ReleaseLedger, key: SigningKey) -> Any:
    """The message with release-ledger rows chained and signed anew: a lying server knows its key."""
    if isinstance(message, SurvivorNotice):
        return replace(message, row=_signed((message.row,), ledger, key)[0])
    if isinstance(message, KeyList):
        return replace(message, segment=_signed(message.segment, ledger, key))
    if isinstance(message, LedgerRows):
        return replace(message, rows=_signed(message.rows, ledger, key))
    return message


def _signed(rows: tuple[LedgerRow, ...], ledger: ReleaseLedger, key: SigningKey) -> tuple[LedgerRow, ...]:
    out: list[LedgerRow] = []
    head = ledger.head_at(min(max(rows[0].seq - 1, 0), ledger.seq)) if rows else b""
    for row in rows:
        head = row.head(head)
        out.append(replace(row, signature=key.sign(ledger_head_digest(ledger.manifest_digest, row.seq, head))))
    return tuple(out)
