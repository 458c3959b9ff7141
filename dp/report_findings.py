"""One finding of a report's verification, and the comparisons that make findings."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Check:
    """One finding of the verification; `found` and `expected` are short texts for people."""

    name: str
    ok: bool
    found: str
    expected: str


def same(name: str, found: object, expected: object) -> Check:
    """Equal in value and in type."""
    return Check(name, type(found) is type(expected) and found == expected, _short(found), _short(expected))


def at_least(name: str, found: int, bound: int) -> Check:
    """`found` >= `bound`."""
    return Check(name, found >= bound, str(found), f"at least {bound}")


def compare(path: str, found: Any, expected: Any) -> Iterator[Check]:
    """One failed check per leaf that differs; types count (1 is not true)."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping) and set(found) == set(expected):
        for key in expected:
            yield from compare(f"{path}.{key}", found[key], expected[key])
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for index, (f, e) in enumerate(zip(found, expected, strict=True)):
            name = e.get("id", index) if isinstance(e, Mapping) else index
            yield from compare(f"{path}.{name}", f, e)
    elif type(found) is not type(expected) or found != expected:
        yield Check(path, False, _short(found), _short(expected))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
