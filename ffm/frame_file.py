"""The columns of a pandas data frame that lies in a pickle, read without unpickling: no foreign byte becomes code.

A pickle is a program, and `pickle.load` runs it. Here the opcodes are only taken apart (`pickletools.genops`, which
executes nothing) and replayed on values that can do nothing: a global becomes its name, a call a `Call` that nobody
makes. What is left is a tree of text, numbers and bytes, in which the three kinds of blocks that such a frame has are
looked up by name. An opcode, a global or a shape that is not among these is an error, so the worst that a file can do
is to be refused. The caller pins the file's digest besides.
"""

import lzma
import pickletools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from ffm.errors import DataError

MAX_BYTES: Final = 2**26  # of the unpacked file
_MARK: Final = object()
_CONSTANTS: Final[Mapping[str, Any]] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS: Final = frozenset(
    {"BININT", "BININT1", "BININT2", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BYTEARRAY8"}
)
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_FORMS: Final = {"f8": np.dtype("<f8"), "i8": np.dtype("<i8")}


@dataclass(slots=True)
class Call:
    """What the pickle would call, by name, with what. Nobody does."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


def columns(path: Path) -> Mapping[str, tuple[Any, ...]]:
    """The frame's columns by name: tuples of float, int, or text and None. Raises DataError E511."""
    try:
        unpacker = lzma.LZMADecompressor()
        data = unpacker.decompress(path.read_bytes(), MAX_BYTES)
        if not unpacker.eof:
            raise ValueError("too large, or cut off")
        return _columns(_replay(data))
    except (OSError, lzma.LZMAError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise DataError(
            f"{path.name} does not hold a data frame of numbers and text",
            found=type(error).__name__,
            expected="an xz file with one pandas data frame, as the pinned package ships it",
            do="install the pinned version of the data package again",
        ) from error


def _replay(data: bytes) -> Any:
    """The tree that the opcodes describe. Raises ValueError for an opcode that no data frame needs."""
    stack: list[Any] = []
    memo: list[Any] = []

    def since_mark() -> list[Any]:
        at = max(i for i, item in enumerate(stack) if item is _MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "MEMOIZE":
            memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET") and isinstance(argument, int):
            stack.append(memo[argument])
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name == "APPENDS":
            items = since_mark()
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Global(f"{module}.{attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, called = stack.pop(), stack.pop()
            stack.append(Call(called.name, tuple(arguments)))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        elif name == "STOP":
            return stack.pop()
        else:
            raise ValueError(name)
    raise ValueError("no end")


def _columns(frame: Any) -> Mapping[str, tuple[Any, ...]]:
    """Blocks of the manager inside a frame, by their places among its columns."""
    manager = _made(frame, "pandas.core.frame.DataFrame").state["_mgr"]
    blocks, axes = _made(manager, "pandas.core.internals.managers.BlockManager").arguments[:2]
    names = _texts(axes[0])
    found: dict[int, tuple[Any, ...]] = {}
    for block in blocks:
        values, places, _ = _made(block, "pandas._libs.internals._unpickle_block").arguments
        rows = _rows(values)
        for place, row in zip(_places(places), rows, strict=True):
            found[place] = row
    if sorted(found) != list(range(len(names))) or any(len(a) != len(b) for a, b in pairwise(found.values())):
        raise ValueError("columns are missing, or of several lengths")
    return {name: found[place] for place, name in enumerate(names)}


def _made(value: Any, name: str) -> Call:
    if not isinstance(value, Call) or value.name != name:
        raise ValueError(f"not a {name}")
    return value


def _rows(values: Any) -> Sequence[tuple[Any, ...]]:
    """One tuple per column of a block."""
    if isinstance(values, Call) and values.name == "numpy.core.numeric._frombuffer":
        rows: Sequence[tuple[Any, ...]] = [tuple(row) for row in _numbers(values).tolist()]
        return rows
    _, shape, form, fortran, items = _made(values, "numpy.core.multiarray._reconstruct").state
    height, width = shape
    if form.arguments[0] != "O8" or len(items) != height * width:
        raise ValueError("not a block of text")
    if any(item is not None and not isinstance(item, str | float) for item in items):
        raise ValueError("neither text nor a gap")
    text = [item if isinstance(item, str) else None for item in items]  # pandas writes NaN for a gap in text
    if fortran:
        return [tuple(text[start::height]) for start in range(height)]
    return [tuple(text[start : start + width]) for start in range(0, len(text), width)]


def _numbers(values: Any) -> Any:
    data, form, shape, order = _made(values, "numpy.core.numeric._frombuffer").arguments
    if form.arguments[0] not in _FORMS or form.state[1] != "<" or order not in ("C", "F"):
        raise ValueError("neither float64 nor int64, little-endian")
    if not isinstance(data, bytes | bytearray):  # of a number `bytes` would make as many zeros
        raise ValueError("numbers that are not there")
    return np.frombuffer(bytes(data), dtype=_FORMS[form.arguments[0]]).reshape(shape, order=order)


def _places(value: Any) -> Sequence[int]:
    if isinstance(value, Call) and value.name == "builtins.slice":
        return range(*value.arguments)
    places: Sequence[int] = _numbers(value).tolist()
    return places


def _texts(index: Any) -> Sequence[str]:
    """Names of an index of text."""
    _, state = _made(index, "pandas.core.indexes.base._new_Index").arguments
    items = _made(state["data"], "numpy.core.multiarray._reconstruct").state[4]
    if not all(isinstance(item, str) for item in items):
        raise ValueError("names that are not text")
    names: Sequence[str] = items
    return names
