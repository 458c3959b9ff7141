"""The published JSON Schema: generated from one source, closed everywhere, and reports are what it says."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from report_sample import facts, sample_report

from dp import report_facts as shape
from dp.report import SignedDocument, build_report
from dp.report_schema import FILE, schema, schema_text

VALIDATOR = Draft202012Validator(schema())
KEYS = {
    "facts": shape.FACTS_KEYS,
    "run": shape.RUN_KEYS,
    "manifest": shape.DOCUMENT_KEYS,
    "statements": shape.STATEMENT_KEYS,
    "rounds": shape.ROUND_KEYS,
    "utility": shape.METHOD_KEYS,
}


def test_the_file_in_the_repository_is_the_generated_one() -> None:
    path = Path(__file__).parent.parent / "dp" / FILE
    assert path.read_text(encoding="utf-8") == schema_text()


def test_the_schema_is_a_schema_and_reports_are_valid() -> None:
    Draft202012Validator.check_schema(schema())
    VALIDATOR.validate(sample_report())


def test_a_report_without_evidence_is_valid() -> None:
    some = facts()
    bare = facts(
        utility=(),
        audit=None,
        governance={},
        evaluation_people="no-evaluation",
        statements=some.statements[:2],
        rounds=(),
    )
    VALIDATOR.validate(build_report(bare, prv=False))


def test_an_endless_epsilon_is_valid() -> None:
    changed: dict[str, Any] = copy.deepcopy(dict(facts().manifest.document))
    changed["privacy"]["noise_steps"] = 1000
    nothing = facts(
        manifest=SignedDocument(changed, "4f" * 32, ""), statements=(), rounds=[r for r in facts().rounds][:1]
    )
    VALIDATOR.validate(build_report(nothing, prv=False))


def test_schema_and_checks_know_the_same_keys() -> None:
    of = schema()["properties"]["facts"]
    assert set(of["required"]) == KEYS["facts"]
    for name, keys in list(KEYS.items())[1:]:
        entry = of["properties"][name]
        assert set(entry.get("items", entry)["required"]) == keys, name


def objects(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict):
        yield path
        for key, item in value.items():
            yield from objects(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from objects(item, (*path, index))


# Documents of other sections of the specification have schemas of their own; maps have keys of their own.
ELSEWHERE = ("document", "body", "event_per_attempt")
MAPS = ("drops", "reported_faults", "versions", "subject", "governance")


def test_every_object_is_closed_and_every_key_required() -> None:
    report, tried, seen = sample_report(), 0, set()
    groups = [VALIDATOR.evolve(schema=part) for part in schema()["properties"]["groups"]["prefixItems"]]
    facts_alone = VALIDATOR.evolve(schema=schema()["properties"]["facts"])

    def valid(path: tuple[str | int, ...]) -> bool:
        """The part that was edited; the whole where it is no part of its own."""
        match path[:2]:
            case ("groups", int(number)):
                return groups[number].is_valid(report["groups"][number])
            case ("facts", _):
                return facts_alone.is_valid(report["facts"])
            case _:
                return VALIDATOR.is_valid(report)

    for path in list(objects(report)):
        shape_of = tuple(key for key in path if isinstance(key, str)) + path[:2]
        if any(key in ELSEWHERE for key in path) or shape_of in seen:
            continue  # one of each kind
        seen.add(shape_of)
        place: Any = report
        for key in path:
            place = place[key]
        place["a_new_key"] = 1
        assert not valid(path), path
        del place["a_new_key"]
        for key in list(place) if path[-1:] not in [(name,) for name in MAPS] else []:
            if key == "measure":
                continue
            kept = place.pop(key)
            assert not valid(path), (*path, key)
            place[key] = kept
            tried += 1
    assert tried > 250 and VALIDATOR.is_valid(report)


@pytest.mark.parametrize("wrong", [1.5, "7,3", "1e5", "Infinity", None, True])
def test_figures_are_integers_or_decimal_strings(wrong: Any) -> None:
    report = sample_report()
    report["groups"][3]["headline"]["epsilon"] = wrong
    assert not VALIDATOR.is_valid(report)
