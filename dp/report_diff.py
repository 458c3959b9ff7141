"""What changed between two runs: every leaf of the groups that differs, rows matched by what they are about.

Rows of a list belong together if they are about the same client, round, method or check, whatever their position; what
has no such name is compared by position.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from dp.report_labels import label, plain_cell

_ABOUT = (
    *("id", "client_id", "test_client_id", "round", "attempt", "seq", "method", "seed", "key", "framework"),
    *("reference", "topic", "quantity", "role", "path", "name"),
)
ABSENT = "absent"
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")  # shorter than any digest


@dataclass(frozen=True, slots=True)
class Change:
    """One leaf, or one row that only one report has."""

    group: int
    path: str
    before: str
    after: str
    difference: str  # after - before, where both are numbers; else empty


def diff_reports(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """All changes, in the order of the groups. Expects two verified reports."""
    changes = []
    for a, b in zip(before["groups"], after["groups"], strict=True):
        qualifiers = tuple(r["groups"][3]["headline"]["qualifier"] for r in (before, after))
        changes += [
            Change(a["number"], path, plain_cell(x, qualifiers[0]), plain_cell(y, qualifiers[1]), _difference(x, y))
            for path, x, y in _walk("", a, b)
        ]
    return changes


def diff_json(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The same for programs: words first, then every change."""
    changes = diff_reports(before, after)
    return {
        "result": "differ" if changes else "same",
        "words": diff_words(before, after),
        "changes": [asdict(change) for change in changes],
    }


def diff_words(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What a reader wants to know first: guarantee, mechanism, people, spending, results."""
    a, b = ({group["id"]: group for group in report["groups"]} for report in (before, after))
    words = [_guarantee(a["guarantee"]["headline"], b["guarantee"]["headline"])]
    for key, what in (("noise_multiplier", "noise multiplier"), ("sampling_probability", "sampling probability")):
        words += _moved(what, a["mechanism"]["real_units"][key], b["mechanism"]["real_units"][key])
    words += _moved("protocol", a["mechanism"]["protocol"], b["mechanism"]["protocol"])
    words += _moved(
        "budget ε (per silo and population)", a["accounting"]["budget"]["epsilon"], b["accounting"]["budget"]["epsilon"]
    )
    words += _moved("released rounds", a["release"]["released_rounds"], b["release"]["released_rounds"])
    words += _moved("attempts", a["release"]["attempts"], b["release"]["attempts"])
    words += _moved("trained values", a["release"]["vector_length"], b["release"]["vector_length"])
    members = ({m["name"] for m in g["identity"]["members"]} for g in (a, b))
    left, joined = next(members), next(members)
    words += [f"{name} is no longer a member" for name in sorted(left - joined)]
    words += [f"{name} is a new member" for name in sorted(joined - left)]
    words += _moved("audit", a["audit"]["status"], b["audit"]["status"])
    for method in dict.fromkeys(row["method"] for g in (a, b) for row in g["utility"]["summary"]):
        rows = [{r["method"]: r for r in g["utility"]["summary"]}.get(method) for g in (a, b)]
        for key in ("accuracy", "auc"):
            words += _moved(f"{label(key, '')} of {method}", *(ABSENT if row is None else row[key] for row in rows))
    manifests = [g["identity"]["manifest_digest"] for g in (a, b)]
    words.append(
        "both ran under the same manifest" if manifests[0] == manifests[1] else "they ran under different manifests"
    )
    return words


def _guarantee(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    claims = [f"ε {'' if h['epsilon'].startswith('>') else '= '}{h['epsilon']} {h['qualifier']}" for h in (a, b)]
    if claims[0] == claims[1]:
        return f"guarantee: {claims[0]} in both"
    told = f"guarantee: {claims[0]}, then {claims[1]}"
    if a["qualifier"] != b["qualifier"]:
        return f"{told}: not comparable by ε alone"
    change = _difference(a["epsilon"], b["epsilon"])
    return f"{told}: {'weaker' if change.startswith('+') else 'stronger'} by {change[1:]}" if change else told


def _moved(what: str, before: Any, after: Any) -> list[str]:
    if before == after:
        return []
    change = _difference(before, after)
    return [f"{what}: {before}, then {after}" + (f" ({change})" if change else "")]


def _walk(path: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            if key not in ("number", "id", "title"):
                yield from _walk(f"{path}.{key}".lstrip("."), a.get(key, ABSENT), b.get(key, ABSENT))
    elif isinstance(a, list) and isinstance(b, list) and _rows(a) and _rows(b):
        left, right = _by_name(a), _by_name(b)
        for name in dict.fromkeys([*left, *right]):
            yield from _walk(f"{path}[{name}]", left.get(name, ABSENT), right.get(name, ABSENT))
    elif a != b or type(a) is not type(b):
        yield path, a, b


def _rows(value: Sequence[Any]) -> bool:
    return all(isinstance(item, Mapping) for item in value)


def _by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    named: dict[str, Mapping[str, Any]] = {}
    for index, row in enumerate(rows):
        about = [f"{label(key, '')} {row[key]}" for key in _ABOUT if key in row and isinstance(row[key], str | int)]
        name = ", ".join(about) or str(index)
        named[name if name not in named else f"{name}, {index}"] = row
    return named


def _difference(a: Any, b: Any) -> str:
    texts = [str(x) for x in (a, b) if isinstance(x, int | str) and not isinstance(x, bool)]
    if len(texts) != 2 or not all(_NUMBER.fullmatch(text) for text in texts):
        return ""
    return f"{Decimal(texts[1]) - Decimal(texts[0]):+f}"
