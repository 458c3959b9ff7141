"""The accounting report of a run: built from facts, verified from its JSON alone, rendered as HTML.

``report = {"schema": "secagg-report/2", "facts": {...}, "groups": [15 groups]}``: JSON without floats. The groups are
a pure function of the facts, so verification recomputes each of their figures and compares every leaf; the facts are
checked against each other, and against what others signed by the caller (signatures, protocol digests and
release-ledger heads belong to the protocol, which this package does not know).
"""

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from dp.accountant import PRV_ERROR, SKIPPED
from dp.errors import PrivacyError, ReportError
from dp.report_checks import check_facts
from dp.report_claims import PRV_ROW
from dp.report_facts import SCHEMA, MethodResult, ReportFacts, SignedDocument, SignedStatement, exact_keys
from dp.report_findings import Check, compare
from dp.report_groups import derive
from dp.report_html import render_html
from dp.store import canonical

__all__ = [
    "SCHEMA",
    "Check",
    "MethodResult",
    "ReportFacts",
    "SignedDocument",
    "SignedStatement",
    "build_report",
    "rebuild_report",
    "render_html",
    "verify_report",
]


def build_report(facts: ReportFacts, *, prv: bool = True) -> dict[str, Any]:
    """The report as JSON-able value without floats; the caller signs its canonical bytes.

    Args:
        facts: What happened, as stated and signed.
        prv: Run the PRV cross-check (imports Opacus; named as skipped if it is missing).

    Raises:
        ReportError: The facts contradict each other. AccountingError, UnsupportedMechanismError: no certified ε.
    """
    return rebuild_report(facts.to_json(), prv=prv)


def rebuild_report(facts: Mapping[str, Any], *, prv: bool = True) -> dict[str, Any]:
    """The same from facts as they stand in a report. Raises as `build_report`."""
    plain: dict[str, Any] = json.loads(canonical(facts))
    try:
        failed = [check for check in check_facts(plain) if not check.ok]
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ReportError(
            "the facts have another shape", found=type(error).__name__, expected=f"facts of {SCHEMA}"
        ) from None
    if failed:
        raise ReportError(
            f"the facts contradict each other: {failed[0].name}",
            found=failed[0].found,
            expected=failed[0].expected,
            do="no report is written; look at the run's records",
        )
    report = {"schema": SCHEMA, "facts": plain, "groups": derive(plain, prv)}
    copy: dict[str, Any] = json.loads(canonical(report))
    return copy


def verify_report(report: Mapping[str, Any], *, prv: bool = True) -> list[Check]:
    """Recompute everything from the JSON alone. Empty of failures means: every figure follows from the facts.

    Never raises on any JSON value. Figures are recomputed only from facts that hold together; if they do not, that is
    said instead. Signatures are the caller's to check.
    """
    try:
        exact_keys(report, frozenset({"schema", "facts", "groups"}), "report")
        checks = [Check("schema", report["schema"] == SCHEMA, str(report["schema"]), SCHEMA)]
        checks += check_facts(report["facts"])
        if not all(check.ok for check in checks):
            return [*checks, Check("recomputed figures", False, "not recomputed", "facts that hold together")]
        expected = json.loads(canonical(derive(report["facts"], prv)))
        checks += _budget(expected)
        checks.append(_take_over_prv(report["groups"], expected))
        differing = list(compare("groups", report["groups"], expected))
        return [*checks, *(differing or [Check("recomputed figures", True, "all equal", "all equal")])]
    except (PrivacyError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        # Whatever the file holds instead of a report, this is the finding; the texts of our errors carry no data.
        found = str(error) if isinstance(error, PrivacyError) else type(error).__name__
        return [Check("shape of the report", False, found, f"a whole {SCHEMA}")]


def _budget(groups: list[dict[str, Any]]) -> list[Check]:
    """Each client's certified ε within the budget that the owner signed."""
    accounting = groups[5]
    limit = Decimal(accounting["budget"]["epsilon"])
    checks = []
    for entry in accounting["per_client"]:
        spent = entry["figures"]["epsilon"]
        ok = not spent.startswith(">") and Decimal(spent) <= limit
        checks.append(Check(f"client {entry['client_id']}: within the budget", ok, f"ε = {spent}", f"at most {limit}"))
    return checks


def _take_over_prv(found: Any, expected: list[dict[str, Any]]) -> Check:
    """Where PRV ran on one side only, its figure is held against PLD within PRV's own error instead of recomputed."""
    name, skipped, ok = "PRV cross-check", 0, True
    for theirs, ours in zip(found[5]["per_client"], expected[5]["per_client"], strict=True):
        stated, here = theirs["figures"]["prv"], ours["figures"]["prv"]
        if _number(stated) is None or _number(here) is None:
            value, pld = _number(stated), _number(ours["figures"]["epsilon"])
            if value is not None and pld is not None:
                tolerance = PRV_ERROR + Decimal("0.001") + Decimal("0.002") * pld
                ok = ok and abs(value - pld) <= tolerance
            elif value is None:
                ok = ok and stated in (here, SKIPPED, "not run")
            skipped += stated != here
            ours["figures"]["prv"] = stated
    checks = expected[5]["cross_checks"]  # the same figure stands there once more
    own = next(entry for entry in expected[5]["per_client"] if entry["client_id"] == checks["client_id"])
    for row in checks["accountants"]:
        if row["name"] == PRV_ROW:
            row["epsilon"] = own["figures"]["prv"]
    text = f"not recomputed for {skipped} clients ({SKIPPED})" if skipped else "recomputed"
    return Check(name, ok, text, "agreement within PRV's error")


def _number(text: Any) -> Decimal | None:
    try:
        value = Decimal(text)
    except (InvalidOperation, TypeError, ValueError):
        return None
    return value if value.is_finite() else None
