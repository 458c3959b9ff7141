"""The accounting report as Markdown, for a repository or a model card; every group, from the JSON alone.

Texts come from people whom the reader need not trust: everything that Markdown or HTML would read as markup is escaped.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from dp.report_labels import label, ordered, plain_cell

_MARKUP = re.compile(r"([\\`*_\[\]<>|~#&!])")
_BREAKS = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029]+")
_DIGEST = re.compile(r"[0-9a-f]{32,}")


def render_markdown(report: Mapping[str, Any]) -> str:
    """Deterministic; expects a verified report."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    groups = {group["id"]: group for group in report["groups"]}
    headline, identity = groups["guarantee"]["headline"], groups["identity"]
    qualifier = headline["qualifier"]
    yield "# Privacy accounting report"
    yield ""
    yield escape(
        f"{identity['consortium']}, task “{identity['task']}”, run {identity['run_id']}, "
        f"{identity['started']} to {identity['ended']}"
    )
    yield ""
    yield f"**{escape(headline['sentence'])}**"
    yield ""
    for line in (*groups["risk"]["plain_words"], groups["governance"]["statement"]):
        yield f"- {escape(line)}"
    if not groups["unprotected"]["evaluation_covered"]:
        yield f"- **ε does not cover the evaluation:** {escape(groups['unprotected']['evaluation_people'])}"
    if groups["audit"]["violations"]:
        yield f"- **The audit failed:** {escape('; '.join(groups['audit']['violations']))}"
    yield ""
    for group in report["groups"]:
        yield f"## {group['number']} {escape(group['title'])}"
        yield ""
        for key in ordered(group):
            yield from _block(label(key, qualifier), group[key], qualifier)
    yield escape(f"{report['schema']}. The JSON file is normative; this text is made from it. ") + (
        f"Manifest {_cell(identity['manifest_digest'], qualifier)}."
    )


def _block(name: str, value: Any, qualifier: str) -> Iterator[str]:
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        columns = ordered(value[0])
        if any(_nested(item[key]) for item in value for key in columns):
            for item in value:
                yield from _block(f"{name}: {label(columns[0], qualifier)} {item[columns[0]]}", item, qualifier)
            return
        yield from _table(
            name,
            [label(key, qualifier) for key in columns],
            [[_cell(item[key], qualifier) for key in columns] for item in value],
        )
    elif isinstance(value, Mapping) and value:
        rows = [
            [escape(label(key, qualifier)), _cell(value[key], qualifier)]
            for key in ordered(value)
            if not _nested(value[key])
        ]
        yield from _table(name, ["", ""], rows)
        for key in ordered(value):
            if _nested(value[key]):
                yield ""
                yield from _block(f"{name}, {label(key, qualifier)}", value[key], qualifier)
    elif isinstance(value, list) and len(value) > 1:
        yield f"{escape(name)}:"
        yield ""
        for item in value:
            yield f"- {_cell(item, qualifier)}"
    else:
        yield f"{escape(name)}: {_cell(value, qualifier)}"
    yield ""


def _nested(value: Any) -> bool:
    """What gets a table of its own."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _table(name: str, head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"**{escape(name)}**"
    yield ""
    yield f"| {' | '.join(escape(cell) for cell in head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _cell(value: Any, qualifier: str) -> str:
    text = plain_cell(value, qualifier)
    return f"`{text}`" if _DIGEST.fullmatch(text) else escape(text)


def escape(text: str) -> str:
    """One line in which nothing is markup."""
    return _MARKUP.sub(r"\\\1", _BREAKS.sub(" ", text))
