"""Mutations of one encoded message: of its tree of fields, of single values in it, and of the bytes they give."""

from collections.abc import Callable, Sequence
from typing import Final

from fuzz.dice import Dice
from fuzz.wire import BYTES, END_GROUP, FIXED32, FIXED64, GROUP, VARINT, Node, parse, serialise
from google.protobuf.descriptor import Descriptor, FieldDescriptor

Place = tuple[list[Node], int]  # a field, by the list that holds it

_LENGTHS: Final = (0, 1, 2**21, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
_TAGS: Final = (0, 1, 2, 15, 16, 2047, 2048, 18999, 19000, 19999, 20000, 2**29 - 1, 2**29, 2**32, 2**61 - 1)
_BAD_TEXT: Final = (
    b"\x00", b"\n", b"\x1b[2J", b"\x7f", b"\xc0\xaf", b"\xed\xa0\x80", b"\xff", b"\xe2\x80\xae", b"\xf4\x90\x80\x80",
    b"\xc2\x85", b"\xe2\x80\xa8", b"\xef\xbb\xbf",
)  # fmt: skip
DEEP: Final = 210  # protobuf reads 100 levels


def places(nodes: list[Node]) -> list[Place]:
    """Every field at every depth."""
    found: list[Place] = []
    for index, node in enumerate(nodes):
        found.append((nodes, index))
        if node.children is not None:
            found += places(node.children)
    return found


class Mutator:
    """Mutates members of a corpus of valid encodings of one message type; the other members are material to splice."""

    def __init__(self, kind: Descriptor, corpus: Sequence[bytes], limit: int) -> None:
        """`limit` is the size limit of the encoding: repetition may go a little beyond it, and only there."""
        self.kind = kind
        self.limit = limit
        self.corpus = tuple(corpus)
        self._trees = [parse(data, kind) for data in corpus]
        for data, tree in zip(corpus, self._trees, strict=True):
            if serialise(tree) != data:
                raise ValueError("the corpus holds bytes that our own writer would not write")

    def __call__(self, dice: Dice) -> tuple[bytes, str]:
        """Mutated bytes, and the names of the mutations."""
        tree = [node.copy() for node in dice.pick(self._trees)]
        names = []
        for _ in range(1 + (0 if dice.chance(2) else dice.below(3))):
            operation = dice.pick(_OPERATIONS)
            operation(self, tree, dice)
            names.append(operation.__name__.strip("_"))
        data = serialise(tree)
        if dice.chance(5):
            data = dice.pick(_ON_BYTES)(data, dice)
            names.append("bytes")
        return data, "+".join(names)

    # -- fields ------------------------------------------------------------------------------------------------------

    def _drop(self, tree: list[Node], dice: Dice) -> None:
        for nodes, index in _one(tree, dice):
            del nodes[index]

    def _double(self, tree: list[Node], dice: Dice) -> None:
        for nodes, index in _one(tree, dice):
            nodes.insert(dice.below(len(nodes) + 1), nodes[index].copy())

    def _swap(self, tree: list[Node], dice: Dice) -> None:
        for nodes, index in _one(tree, dice):
            other = dice.below(len(nodes))
            nodes[index], nodes[other] = nodes[other], nodes[index]

    def _move(self, tree: list[Node], dice: Dice) -> None:
        for nodes, index in _one(tree, dice):
            node = nodes.pop(index)
            for target, at in _one(tree, dice):
                target.insert(at, node)

    def _wire_type(self, tree: list[Node], dice: Dice) -> None:
        for nodes, index in _one(tree, dice):
            node = nodes[index]
            before, node.wire = node.wire, dice.pick((VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32, 6, 7))
            if before == BYTES and node.wire in (VARINT, FIXED32, FIXED64):
                node.value = dice.integer()

    def _group(self, tree: list[Node], dice: Dice) -> None:
        for nodes, index in _one(tree, dice):
            nodes[index].wire = GROUP
            if not dice.chance(4):
                nodes.insert(index + 1, Node(nodes[index].tag, END_GROUP))

    def _pad(self, tree: list[Node], dice: Dice) -> None:
        for nodes, index in _one(tree, dice):
            pad = 1 + dice.below(10)
            nodes[index].pads = (pad, 0) if dice.chance(2) else (0, pad)

    def _skew(self, tree: list[Node], dice: Dice) -> None:
        for node in _one_of(tree, dice, lambda node: node.wire == BYTES):
            node.skew = dice.pick((-1, 1, -2, 2, -32, 32, 127, 128))

    def _length(self, tree: list[Node], dice: Dice) -> None:
        for node in _one_of(tree, dice, lambda node: node.wire == BYTES):
            node.length = dice.pick(_LENGTHS)

    def _tag(self, tree: list[Node], dice: Dice) -> None:
        for nodes, index in _one(tree, dice):
            nodes[index].tag = dice.pick(_TAGS) if dice.chance(2) else 1 + dice.below(12)

    def _unknown(self, tree: list[Node], dice: Dice) -> None:
        node = Node(dice.pick(_TAGS), dice.pick((VARINT, FIXED64, BYTES, FIXED32)), value=dice.integer())
        node.data = dice.bytes(dice.below(70))
        inside = [n.children for nodes, at in places(tree) for n in (nodes[at],) if n.children is not None]
        target = dice.pick([tree, *inside])
        target.insert(dice.below(len(target) + 1), node)

    def _default(self, tree: list[Node], dice: Dice) -> None:
        """A field's default written out, in its canonical place."""
        target, kind = dice.pick(_messages(tree, self.kind))
        known = dice.pick(kind.fields)
        node = Node(known.number, VARINT if _is_number(known) and not known.is_repeated else BYTES, known)
        for old in [n for n in target if n.tag == known.number and not known.is_repeated]:
            target.remove(old)
        target.insert(sum(n.tag < known.number for n in target), node)

    def _split(self, tree: list[Node], dice: Dice) -> None:
        """One sub-message as two: readers merge them."""
        for nodes, index in _one(tree, dice, lambda node: bool(node.children)):
            whole = nodes[index]
            second = whole.copy()
            cut = dice.below(len(whole.children or ()) + 1)
            whole.children, second.children = (whole.children or [])[:cut], (second.children or [])[cut:]
            nodes.insert(index + 1, second)

    def _nest(self, tree: list[Node], dice: Dice) -> None:
        """The content of a field inside itself, again and again."""
        for node in _one_of(tree, dice, lambda node: node.wire == BYTES):
            inner = node.copy()
            for _ in range(dice.pick((1, 2, 98, 99, 100, 101, DEEP))):
                inner = Node(node.tag, BYTES, node.kind, children=[inner])
            node.children, node.packed = [inner], None

    def _splice(self, tree: list[Node], dice: Dice) -> None:
        """A field of another message, with the same number if there is one."""
        donors = places(dice.pick(self._trees))
        for nodes, index in _one(tree, dice):
            same = [place for place in donors if place[0][place[1]].tag == nodes[index].tag]
            donor, at = dice.pick(same if same and not dice.chance(4) else donors or places(tree))
            nodes[index] = donor[at].copy()

    def _amplify(self, tree: list[Node], dice: Dice) -> None:
        """One field over and over: a few times, to a cap's neighbourhood, or (rarely) up to the size limit."""
        for nodes, index in _one(tree, dice):
            node = nodes[index]
            if dice.chance(3) and node.wire == BYTES:
                node.children, node.packed, node.data = None, None, b""
            times = dice.pick((2, 8, 9, 14, 15, 255, 256, 257)) if not dice.chance(10) else self.limit
            size = max(1, len(serialise([node])))
            node.times = max(1, min(times, (self.limit + 64) // size))

    # -- values ------------------------------------------------------------------------------------------------------

    def _number(self, tree: list[Node], dice: Dice) -> None:
        for node in _one_of(tree, dice, lambda node: node.wire == VARINT or bool(node.packed)):
            value = dice.integer()
            if node.packed:
                at = dice.below(len(node.packed))
                node.packed[at] = value if dice.chance(2) else max(0, node.packed[at] + dice.pick((-1, 1)))
            else:
                node.value = value if not dice.chance(4) else node.value ^ 1 << dice.below(64)

    def _packed(self, tree: list[Node], dice: Dice) -> None:
        """Lists of integers: out of order, doubled, longer, or one field each."""
        for nodes, index in _one(tree, dice, lambda node: bool(node.packed)):
            node = nodes[index]
            numbers = list(node.packed or ())
            way = dice.below(5)
            if way == 0:
                numbers.reverse()
            elif way == 1:
                numbers.insert(dice.below(len(numbers)), dice.pick(numbers))
            elif way == 2:
                numbers = list(range(1, 1 + dice.pick((31, 32, 33, 255, 256, 257, 10000 + dice.below(2)))))
            elif way == 3:
                del numbers[dice.below(len(numbers))]
            else:
                nodes[index : index + 1] = [Node(node.tag, VARINT, node.kind, value=number) for number in numbers]
                return
            node.packed = numbers

    def _content(self, tree: list[Node], dice: Dice) -> None:
        """Bytes and texts: flipped, fresh, longer, shorter, or not text."""
        for node in _one_of(tree, dice, lambda node: node.wire == BYTES and node.packed is None and not node.children):
            way, data = dice.below(6), bytearray(node.data)
            if way == 0 and data:
                data[dice.below(len(data))] ^= 1 << dice.below(8)
            elif way == 1:
                data = bytearray(dice.bytes(len(data)))
            elif way == 2:
                data += dice.bytes(dice.pick((1, 2, 32, 300)))
            elif way == 3:
                del data[dice.below(len(data) + 1) :]
            elif way == 4:
                at = dice.below(len(data) + 1)
                data[at:at] = dice.pick(_BAD_TEXT)
            else:
                data = bytearray(dice.pick((4095, 4096, 4097, 2**12, 2**16, self.limit)) * b"a")
            node.data = bytes(data)


def _one(tree: list[Node], dice: Dice, accept: Callable[[Node], bool] | None = None) -> list[Place]:
    """At most one place, of those that `accept` likes: so that every operation is a loop and none can fail."""
    found = [place for place in places(tree) if accept is None or accept(place[0][place[1]])]
    return [dice.pick(found)] if found else []


def _one_of(tree: list[Node], dice: Dice, accept: Callable[[Node], bool]) -> list[Node]:
    return [nodes[index] for nodes, index in _one(tree, dice, accept)]


def _is_number(kind: FieldDescriptor) -> bool:
    return kind.type not in (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE)


def _messages(tree: list[Node], kind: Descriptor) -> list[tuple[list[Node], Descriptor]]:
    found = [(tree, kind)]
    for node in tree:
        if node.children is not None and node.kind is not None and node.kind.message_type is not None:
            found += _messages(node.children, node.kind.message_type)
    return found


def _flip(data: bytes, dice: Dice) -> bytes:
    out = bytearray(data)
    for _ in range(1 + dice.below(3)):
        if out:
            out[dice.below(len(out))] ^= 1 << dice.below(8)
    return bytes(out)


def _truncate(data: bytes, dice: Dice) -> bytes:
    return data[: dice.below(len(data) + 1)]


def _extend(data: bytes, dice: Dice) -> bytes:
    return data + dice.bytes(1 + dice.below(40))


def _insert(data: bytes, dice: Dice) -> bytes:
    at = dice.below(len(data) + 1)
    return data[:at] + dice.bytes(1 + dice.below(12)) + data[at:]


def _cut(data: bytes, dice: Dice) -> bytes:
    at = dice.below(len(data) + 1)
    return data[:at] + data[at + 1 + dice.below(70) :]


def _repeat(data: bytes, dice: Dice) -> bytes:
    at = dice.below(len(data) + 1)
    return data[:at] + data[at : at + 1 + dice.below(70)] + data[at:]


_ON_BYTES: Final = (_flip, _truncate, _extend, _insert, _cut, _repeat)
_OPERATIONS: Final[tuple[Callable[[Mutator, list[Node], Dice], None], ...]] = (
    Mutator._number, Mutator._content, Mutator._packed, Mutator._splice, Mutator._drop, Mutator._double,
    Mutator._swap, Mutator._move, Mutator._wire_type, Mutator._group, Mutator._pad, Mutator._skew, Mutator._length,
    Mutator._tag, Mutator._unknown, Mutator._default, Mutator._split, Mutator._nest, Mutator._amplify,
)  # fmt: skip
OPERATIONS: Final = tuple(operation.__name__.strip("_") for operation in _OPERATIONS)
