"""What each field of each message may hold: legal values, legal ones at the limits, and the first illegal ones.

The shape of a message is read from its annotations; only the numbers of SPEC 9.1 stand here. A field without a rule is
an error, so a new field cannot stay untested.
"""

import dataclasses
import enum
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from fuzz.dice import Dice
from hypothesis import strategies as st

from protocol import codec
from protocol.encrypted import MAX_KEY
from protocol.release import MAX_SEGMENT
from protocol.rpc import frames
from secagg.types import ClientId

COUNTER: Final = (1, 2**31 - 1)
FROM_ZERO: Final = (0, 2**31 - 1)
SEQ: Final = (0, 2**53 - 1)

# Lengths of byte fields: (least, most), or an exact set.
HASHES: Final = [
    "encryption_pk",
    "masking_pk",
    "commitment",
    "ledger_head",
    "ctx",
    "root_u1",
    "root_u2",
    "hash_u3",
    "self_hash",
    "key_hash",
    "input_digest",
    "manifest_digest",
    "roster_root",
    "model_digest",
    "aggregate_digest",
    "digest",
    "path",
    "tree_root",
]
LENGTHS: Final[dict[str, range | tuple[int, ...]]] = {
    **{name: (32,) for name in HASHES},
    "signature": (64,),
    "decryptor_signature": (0, 64),
    "decryptor_key": range(0, MAX_KEY + 1),
    "public_key": range(1, MAX_KEY + 1),
    "listed": range(1, codec.MAX_CLIENTS // 8 + 1),
    "digests": range(1, 32 * codec.MAX_CLIENTS + 1),
    "signatures": (64,),
    "ciphertext": (0, 82),
    "self_shares": (33,),
    "key_shares": (33,),
    "shared": range(1, codec.MAX_CLIENTS // 8 + 1),
    "masked": range(1, codec.MAX_CLIENTS // 8 + 1),
    "advertised": range(1, codec.MAX_CLIENTS // 8 + 1),
    "Statement.body": range(1, codec.MAX_STATEMENT + 1),
    "token": (16,),
    "Cursor.server": (0, 16),
    "Delivery.server": (16,),
    "frame": range(0, 300),
    "UploadChunk.data": range(1, frames.MAX_CHUNK + 1),
    "BlobChunk.data": range(0, frames.MAX_CHUNK + 1),
}
OPEN_ENDED: Final = {"frame"}  # bounded by the size of the whole encoding only
RANGES: Final[dict[str, tuple[int, int]]] = {
    "round": COUNTER,
    "rounds": COUNTER,
    "attempt": FROM_ZERO,
    "ledger_seq": SEQ,
    "OpeningRequest.ledger_seq": (1, 2**53 - 1),
    "seq": (1, 2**53 - 1),
    "total_words": (1, 2**40),
    "total_bytes": (1, codec.MAX_BYTES),
    "phase": (0, 7),
    "Waiting.round": FROM_ZERO,
    "Submission.round": FROM_ZERO,
    "InputRequest.round": FROM_ZERO,
    "first": FROM_ZERO,
    "UploadChunk.index": FROM_ZERO,
    "index": (0, 2**53),
    "status": (1, max(frames.Status)),
    "more": FROM_ZERO,
    "received": FROM_ZERO,
    "total": (0, frames.MAX_BLOB),
    "offset": (0, frames.MAX_BLOB),
}
CAPS: Final[dict[str, int]] = {
    "segment": MAX_SEGMENT,
    "rows": MAX_SEGMENT,
    "path": codec.MAX_PATH,
    "Waiting.clients": frames.MAX_NAMED,
    **dict.fromkeys(["entries", "shares", "self_shares", "key_shares"], codec.MAX_NEIGHBORS),
    **dict.fromkeys(["cohort", "complaints", "included", "signatures"], codec.MAX_CLIENTS),
}
TEXT: Final = st.text(st.characters(categories=("L", "N", "P", "S")), max_size=40)
BAD_TEXTS: Final = ("\n", "a\tb", "\x00", "\x1b[2J", "\u2028", "\u202e", "\x7f", "\ue000", "a" * 4097, "é" * 2049)
EDGE_TEXTS: Final = ("", "a" * 4096, "é" * 2048, "日" * 1365)
MEMBER: Final = {"client", "recipient", "dealer"}


def _rule(table: dict[str, Any], owner: type, name: str) -> Any:
    found = table.get(f"{owner.__name__}.{name}", table.get(name))
    if found is None:
        raise KeyError(f"no rule for {owner.__name__}.{name}: add its limits of SPEC 9.1 to tests/fuzz/rules.py")
    return found


@dataclass(frozen=True)
class Shape:
    """One field: its owner, name and annotation, and from these what it may hold."""

    owner: type
    name: str
    kind: Any

    @property
    def element(self) -> Any:
        """Annotation of the items of a tuple; None if the field is no tuple."""
        return typing.get_args(self.kind)[0] if typing.get_origin(self.kind) is tuple else None

    def strategy(self) -> st.SearchStrategy[Any]:
        """Legal values."""
        if self.element is not None:
            return self._tuples()
        if dataclasses.is_dataclass(self.kind):
            return strategy(typing.cast(type, self.kind))
        if self.kind is bytes:
            return _bytes(_rule(LENGTHS, self.owner, self.name))
        if self.kind is str:
            return TEXT
        if isinstance(self.kind, type) and issubclass(self.kind, enum.Enum):
            return st.sampled_from(self.kind)
        if self.name in MEMBER:
            return st.integers(1, 65535).map(ClientId)
        return st.integers(*_rule(RANGES, self.owner, self.name))

    def _tuples(self) -> st.SearchStrategy[Any]:
        ids, element = st.integers(1, 65535).map(ClientId), self.element
        most = min(8, _rule(CAPS, self.owner, self.name))
        if element is bytes:
            return st.lists(_bytes(_rule(LENGTHS, self.owner, self.name)), max_size=most).map(tuple)
        if element is ClientId:
            return st.sets(ids, max_size=most).map(lambda found: tuple(sorted(found)))
        if typing.get_origin(element) is tuple:
            data = _bytes(_rule(LENGTHS, self.owner, self.name))
            return st.dictionaries(ids, data, max_size=most).map(lambda found: tuple(sorted(found.items())))
        items = strategy(element)
        member = member_of(element)
        if member is None:
            return st.lists(items, max_size=most).map(tuple)
        return st.lists(items, max_size=most, unique_by=lambda item: getattr(item, member)).map(
            lambda found: tuple(sorted(found, key=lambda item: getattr(item, member)))
        )

    def edges(self, value: Any) -> Iterator[Any]:
        """Legal values at the limits; `value` is a legal one."""
        if self.kind is bytes:
            yield from (bytes(n) for n in _ends(_rule(LENGTHS, self.owner, self.name)))
        elif self.kind is str:
            yield from EDGE_TEXTS
        elif self.kind is int:
            yield from _rule(RANGES, self.owner, self.name)
        elif self.element is not None:
            cap = _rule(CAPS, self.owner, self.name)
            yield ()
            yield self._many(value, range(1, cap + 1))
            if member_of(self.element) is not None:
                yield self._many(value, range(65536 - cap, 65536))

    def illegal(self, value: Any) -> Iterator[Any]:
        """Values just beyond the limits, of the right Python type; `value` is a legal, non-empty one."""
        if self.kind is bytes and self.name not in OPEN_ENDED:
            lengths = _rule(LENGTHS, self.owner, self.name)
            around = {n + d for n in _ends(lengths) for d in (-1, 1)} | {0, 1, 2 * max(lengths)}
            yield from (bytes(n) for n in sorted(around) if n >= 0 and n not in lengths)
        elif self.kind is str:
            yield from BAD_TEXTS
        elif self.name in MEMBER:
            yield from (0, 65536, 2**31, 2**32 - 1, 2**32, 2**64 - 1)
        elif self.kind is int or (isinstance(self.kind, type) and issubclass(self.kind, enum.IntEnum)):
            low, high = _rule(RANGES, self.owner, self.name)
            beyond = {low - 1, high + 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64 - 1}
            yield from (n for n in sorted(beyond) if n >= 0 and not low <= n <= high)
        elif self.element is not None:
            cap = _rule(CAPS, self.owner, self.name)
            yield self._many(value, range(1, cap + 2))
            if self.element is bytes:
                size = _rule(LENGTHS, self.owner, self.name)[0]
                yield from ((bytes(size), bytes(n)) for n in (0, size - 1, size + 1))
            if member_of(self.element) is not None:
                for ids in ((2, 1), (1, 1), (0, 1), (1, 2, 2), (65535, 65536)):
                    yield self._many(value, ids)
            if typing.get_origin(self.element) is tuple:
                size = _rule(LENGTHS, self.owner, self.name)[0]
                yield from (((ClientId(1), bytes(n)),) for n in (0, size - 1, size + 1))

    def _many(self, value: Any, ids: Any) -> tuple[Any, ...]:
        if self.element is ClientId:
            return tuple(ClientId(i) for i in ids)
        if typing.get_origin(self.element) is tuple:
            return tuple((ClientId(i), value[0][1]) for i in ids)
        member = None if self.element is bytes else member_of(self.element)
        if member is None:
            return tuple(value[0] for _ in ids)
        return tuple(dataclasses.replace(value[0], **{member: ClientId(i)}) for i in ids)


def member_of(element: Any) -> str | None:
    """The name of the id by which a list of these is ascending; "" for bare ids and pairs; None if there is none."""
    if element is ClientId or typing.get_origin(element) is tuple:
        return ""
    if not dataclasses.is_dataclass(element):
        return None
    return next((field.name for field in dataclasses.fields(element) if field.name in MEMBER), None)


def shapes(kind: type) -> tuple[Shape, ...]:
    """The fields of a message."""
    hints = typing.get_type_hints(kind)
    return tuple(Shape(kind, field.name, hints[field.name]) for field in dataclasses.fields(kind))


def strategy(kind: type) -> st.SearchStrategy[Any]:
    """Legal messages of one type."""
    if kind is frames.Receipt:  # only an upload can be half-way
        return st.builds(
            lambda status, reason, n: frames.Receipt(status, reason, n if status is frames.Status.PARTIAL else 0),
            st.sampled_from(frames.Status),
            TEXT,
            st.integers(*FROM_ZERO),
        )
    if kind is frames.BlobChunk:  # the end of a chunk lies within the blob
        sizes = st.tuples(st.integers(0, 2**39), st.binary(max_size=60), st.integers(0, 2**39))
        return sizes.map(lambda s: frames.BlobChunk(s[0] + len(s[1]) + s[2], s[0], s[1]))
    return st.builds(kind, **{shape.name: shape.strategy() for shape in shapes(kind)})


def sample(kind: Any, dice: Dice, most: int = 4) -> Any:
    """A legal message of one type, without Hypothesis: corpora are made of these. Lists have 1..most items."""
    values = {}
    for shape in shapes(kind):
        values[shape.name] = _sampled(shape, dice, most)
    if kind is frames.BlobChunk:
        values["total"] = values["offset"] + len(values["data"])
    if kind is frames.Receipt and values["status"] is not frames.Status.PARTIAL:
        values["received"] = 0
    return kind(**values)


def _sampled(shape: Shape, dice: Dice, most: int) -> Any:
    kind, owner, name = shape.kind, shape.owner, shape.name
    if shape.element is not None:
        count = 1 + dice.below(min(most, _rule(CAPS, owner, name)))
        ids = sorted({ClientId(1 + dice.below(300)) for _ in range(count)})
        if shape.element is ClientId:
            return tuple(ids)
        if shape.element is bytes:
            return tuple(dice.bytes(32) for _ in ids)
        if typing.get_origin(shape.element) is tuple:
            return tuple((i, dice.bytes(_rule(LENGTHS, owner, name)[0])) for i in ids)
        member = member_of(shape.element)
        items = [sample(shape.element, dice, most) for _ in ids]
        return tuple(
            item if member is None else dataclasses.replace(item, **{member: i})
            for item, i in zip(items, ids, strict=True)
        )
    if dataclasses.is_dataclass(kind):
        return sample(kind, dice, most)
    if kind is bytes:
        lengths = _rule(LENGTHS, owner, name)
        return dice.bytes(dice.pick(lengths[: 80 if isinstance(lengths, range) else None]))
    if kind is str:
        return dice.pick(("", "a", "round 1", "é日", "x" * 70))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return dice.pick(tuple(kind))
    if name in MEMBER:
        return ClientId(1 + dice.below(65535))
    low, high = _rule(RANGES, owner, name)
    return low + dice.integer() % (high - low + 1)


def messages_of(union: Any) -> tuple[type, ...]:
    """The members of a union of messages."""
    return typing.get_args(union) if isinstance(union, types.UnionType) else (union,)


def _bytes(lengths: range | tuple[int, ...]) -> st.SearchStrategy[bytes]:
    if isinstance(lengths, range):
        return st.binary(min_size=lengths.start, max_size=min(lengths.stop - 1, lengths.start + 99))
    return st.one_of(*(st.binary(min_size=n, max_size=n) for n in lengths))


def _ends(lengths: range | tuple[int, ...]) -> tuple[int, ...]:
    return (lengths.start, lengths.stop - 1) if isinstance(lengths, range) else lengths
