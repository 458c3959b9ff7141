"""Checks of the facts behind groups 11, 12 and 14: counts of the evaluation, the audit, what operators state."""

from collections.abc import Iterator, Mapping
from typing import Any

from dp import report_facts as shape
from dp.report_facts import exact_keys
from dp.report_findings import Check, same

_LONGEST = 1000
_AUDIT_COMPARISONS = 100  # more would not keep the false alarms that the audit states (dp.audit)


def utility_checks(facts: Mapping[str, Any]) -> Iterator[Check]:
    """Methods known and each once, whole matrices, the same test records for all, pooled counts as their sum."""
    manifest, roster = facts["manifest"]["document"], facts["roster"]["document"]
    classes, members = len(manifest["training"]["labels"]), {m["client_id"] for m in roster["clients"]}
    most = manifest["training"]["rounds"] * manifest["training"]["local_steps"]
    truths: dict[object, list[int]] = {}
    pooled: dict[tuple[object, ...], dict[object, list[list[int]]]] = {}
    for m in facts["utility"]:
        exact_keys(m, shape.METHOD_KEYS, "utility")
        who, tested, c = _who(m), m["test_client_id"], m["confusion"]
        known = (m["client_id"] in members) if m["method"] in shape.ALONE else m["client_id"] is None
        known = known and m["method"] in shape.METHODS and (tested is None or tested in members)
        seen = pooled.setdefault((m["method"], m["client_id"], m["seed"]), {})
        yield same(f"{who}: a known method, once", known and tested not in seen, True)
        yield same(f"{who}: seed", _count(m["seed"]), True)
        square = len(c) == classes and all(len(row) == classes and all(map(_count, row)) for row in c)
        yield same(f"{who}: confusion matrix of all classes", square, True)
        if not square:
            continue
        seen[tested], truth = c, [sum(row) for row in c]
        same_records = truth == truths.setdefault(tested, truth)
        yield same(f"{who}: the same test records per class as the first method", same_records, True)
        upper = 0 if m["method"] in shape.NOT_TRAINED_IN_STEPS else most
        yield same(f"{who}: steps within the manifest", 0 <= m["steps_per_client"] <= upper, True)
        yield same(f"{who}: wins within the pairs", _wins(m["twice_wins"], truth), True)
    for (method, client, seed), tables in pooled.items():
        parts = [table for tested, table in tables.items() if tested is not None]
        if None in tables and len(parts) == len(members):
            total = [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]
            name = f"{method}{'' if client is None else f' of client {client}'}, seed {seed}"
            yield same(f"{name}: the pooled counts are the sum over hospitals", tables[None] == total, True)
    stated = facts["run"]["evaluation_people"]
    yield same("people of the evaluation: a known statement", stated in shape.EVALUATION_PEOPLE, True)
    yield same("people of the evaluation: stated iff evaluated", stated == "no-evaluation", not facts["utility"])


def _who(m: Mapping[str, Any]) -> str:
    trained = "" if m["client_id"] is None else f" of client {m['client_id']}"
    tested = "" if m["test_client_id"] is None else f" on client {m['test_client_id']}"
    return f"{m['method']}{trained}{tested}"


def _count(value: object) -> bool:
    return type(value) is int and value >= 0


def _wins(wins: Any, truth: list[int]) -> bool:
    """Within [0, 2·pairs]; two classes are each other's complement, so their counts are equal."""
    if wins is None:
        return True
    total = sum(truth)
    whole = len(wins) == len(truth) and all(map(_count, wins))
    within = whole and all(w <= 2 * t * (total - t) for w, t in zip(wins, truth, strict=True))
    return within and (len(wins) != 2 or wins[0] == wins[1])


def audit_checks(facts: Mapping[str, Any]) -> Iterator[Check]:
    """The audit's verdict follows from its checks."""
    audit = facts["audit"]
    if audit is None:
        return
    exact_keys(audit, shape.AUDIT_KEYS, "audit")
    checks = audit["checks"]
    yield same("audit: format", str(audit["format"]).startswith("secagg-audit/"), True)
    texts = [audit["format"], audit["false_alarm_probability"], *audit["subject"], *audit["subject"].values()]
    for check in checks:
        exact_keys({k: v for k, v in check.items() if k != "measure"}, shape.AUDIT_CHECK_KEYS, "check of the audit")
        measure = exact_keys(
            check.get("measure", dict.fromkeys(shape.AUDIT_MEASURE_KEYS, "")), shape.AUDIT_MEASURE_KEYS, "measure"
        )
        texts += [check[name] for name in ("name", "found", "bound", "sees", "blind")] + list(measure.values())
        yield same("audit: each check with a verdict", type(check["passed"]), bool)
        yield same("audit: comparisons counted", _count(check["comparisons"]), True)
    yield same("audit: texts", all(map(_text, texts)), True)
    names = [check["name"] for check in checks]
    yield same("audit: each check once", len(set(names)), len(names))
    verdict = bool(checks) and all(check["passed"] for check in checks)
    yield same("audit: the verdict of its checks", audit["passed"], verdict)
    made = sum(check["comparisons"] for check in checks)
    yield Check("audit: comparisons", made <= _AUDIT_COMPARISONS, str(made), f"at most {_AUDIT_COMPARISONS}")


def governance_checks(facts: Mapping[str, Any]) -> Iterator[Check]:
    """Known keys, short texts."""
    stated = facts["governance"]
    yield same("governance: known statements", sorted(set(stated) - set(shape.GOVERNANCE)), [])
    yield same("governance: texts", all(_text(text) and text for text in stated.values()), True)


def _text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST
