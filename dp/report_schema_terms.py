"""The few terms in which the report's JSON Schema is written: closed objects, described leaves, no floats."""

from collections.abc import Iterable
from typing import Any

Schema = dict[str, Any]


def obj(description: str, /, **fields: Schema) -> Schema:
    """A closed object: exactly these keys."""
    return {
        "type": "object",
        "description": description,
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


def mapping(keys: str, values: Schema, description: str) -> Schema:
    """An object whose keys match a pattern."""
    return {
        "type": "object",
        "description": description,
        "patternProperties": {keys: values},
        "additionalProperties": False,
    }


def array(items: Schema, description: str) -> Schema:
    """A list of one kind."""
    return {"type": "array", "description": description, "items": items}


def text(description: str) -> Schema:
    """Any text."""
    return {"type": "string", "description": description}


def choice(description: str, values: Iterable[str]) -> Schema:
    """One of these words."""
    return {"type": "string", "description": description, "enum": list(values)}


def integer(description: str, minimum: int) -> Schema:
    """An integer from `minimum` on."""
    return {"type": "integer", "description": description, "minimum": minimum}


def count(description: str) -> Schema:
    """An integer >= 0."""
    return integer(description, 0)


def boolean(description: str) -> Schema:
    """true or false."""
    return {"type": "boolean", "description": description}


def decimal(description: str) -> Schema:
    """An exact decimal number as text."""
    return {"type": "string", "description": description, "pattern": r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$"}


def figure(description: str) -> Schema:
    """A decimal, or in words why there is none: an ε above the ceiling, a value that was not measured."""
    return {
        "type": "string",
        "description": description,
        "pattern": r"^(-?(0|[1-9][0-9]*)(\.[0-9]+)?|>50|[a-z][^0-9]*)$",
    }


def hexadecimal(description: str, length: int | None) -> Schema:
    """Lowercase hex digits; of any length for None."""
    return {
        "type": "string",
        "description": description,
        "pattern": f"^[0-9a-f]{'*' if length is None else f'{{{length}}}'}$",
    }


def either(*schemas: Schema) -> Schema:
    """One of these."""
    return {"anyOf": list(schemas)}
