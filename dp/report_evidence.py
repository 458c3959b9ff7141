"""Groups 11, 13 and 14 of the accounting report: the audit, the risk in plain words, pointers for governance."""

from decimal import ROUND_CEILING, Decimal
from typing import Any

from dp import accountant
from dp.report_facts import GOVERNANCE
from dp.report_figures import NOT_MEASURED, Derived, Group, order, plain

NOT_STATED = "not stated by the operator"
RATES = ("0.001", "0.01", "0.1")
_PER_CENT = {"0.001": "0_1", "0.01": "1", "0.1": "10"}

# (framework, reference, topic, groups of this report that speak to it, statement of the operator that belongs here).
# Pointers only: whether a rule applies, and whether it is met, is not for this report to say.
CHECKLIST: tuple[tuple[str, str, str, tuple[int, ...], str | None], ...] = (
    ("GDPR", "article 4(1), recital 26", "whether the model still relates to identifiable people", (4, 11, 13), None),
    (
        "GDPR",
        "article 5(1)(b) and (c)",
        "purpose limitation, data minimisation: what left the sites",
        (2, 8),
        "purpose",
    ),
    ("GDPR", "article 5(1)(e)", "storage limitation", (1,), "retention"),
    ("GDPR", "articles 5(2) and 24", "accountability: who can show what", (1, 6, 15), "contact"),
    ("GDPR", "articles 6 and 9", "legal basis, special categories of data", (3,), "legal_basis"),
    ("GDPR", "article 25", "data protection by design and by default", (2, 5, 10), None),
    ("GDPR", "articles 26 and 28", "joint controllers, processors", (1, 4), "agreements"),
    ("GDPR", "article 32", "security of processing", (9, 10, 11), None),
    ("GDPR", "article 35", "data-protection impact assessment", (4, 8, 11, 13), "impact_assessment"),
    ("GDPR", "article 89", "safeguards for research", (3, 4, 5), "ethics_approval"),
    ("HIPAA", "45 CFR 164.502(b)", "minimum necessary", (2,), "purpose"),
    ("HIPAA", "45 CFR 164.504(e)", "business associate contracts", (1,), "agreements"),
    ("HIPAA", "45 CFR 164.512(i)", "research: IRB or privacy-board waiver", (3,), "ethics_approval"),
    ("HIPAA", "45 CFR 164.514(b)(1)", "expert determination: figures that an expert may weigh", (4, 11, 13), None),
    ("HIPAA", "45 CFR 164.312(b), (c), (e)", "audit controls, integrity, transmission security", (6, 10), None),
    ("HIPAA", "45 CFR 164.530(j)", "retention of documentation", (15,), "retention"),
    ("EU AI Act", "article 10", "data governance, possible biases", (3, 12), None),
    ("EU AI Act", "article 11, annex IV", "technical documentation", (1, 5, 12), "model_risk"),
    ("EU AI Act", "article 12", "record-keeping", (6, 10), None),
    (
        "EU AI Act",
        "article 13",
        "information for deployers: limits of the model and of the guarantee",
        (4, 8, 12),
        None,
    ),
    ("EU AI Act", "article 15", "accuracy, robustness, cybersecurity", (10, 11, 12), None),
    ("EU AI Act", "article 53", "general-purpose models: documentation for providers downstream", (2, 5), "model_risk"),
    ("NIST SP 800-226", "privacy parameters", "ε and δ, total over all releases", (4, 6), None),
    ("NIST SP 800-226", "unit of privacy", "whom the guarantee protects, bounded contributions", (3,), None),
    (
        "NIST SP 800-226",
        "threat and trust model",
        "who is trusted with raw data, noise and keys",
        (4, 10),
        "controllers",
    ),
    ("NIST SP 800-226", "mechanism and algorithm", "proof, sensitivity, composition", (5, 6), None),
    ("NIST SP 800-226", "utility and bias", "error, and for whom it is larger", (12,), None),
    ("NIST SP 800-226", "implementation", "randomness, floating point, side channels", (8, 9), None),
    ("NIST SP 800-226", "testing", "empirical audit and what it cannot see", (11,), None),
    (
        "NIST SP 800-226",
        "data collection and access",
        "what leaves the sites, and who may read it",
        (2, 8),
        "agreements",
    ),
)


def audit(d: Derived) -> Group:
    """Group 11: the audit's findings with what each does not see, and bounds against the claim."""
    stated = d.facts["audit"]
    meaning = "the guarantee rests on the proof and the code, not on an attack that failed; a check sees what it says"
    if stated is None:
        return {
            "status": NOT_MEASURED,
            "format": "",
            "subject": [],
            "checks": [],
            "violations": [],
            "comparisons": 0,
            "false_alarm_probability": "",
            "bounds": [],
            "meaning": meaning,
        }
    checks = stated["checks"]
    return {
        "status": "passed: no violation found"
        if stated["passed"]
        else "FAILED: the pipeline does not do what is claimed",
        "format": stated["format"],
        "subject": [{"name": name, "value": stated["subject"][name]} for name in sorted(stated["subject"])],
        "checks": [{key: check[key] for key in check if key != "measure"} for check in checks],
        "violations": [check["name"] for check in checks if not check["passed"]],
        "comparisons": sum(check["comparisons"] for check in checks),
        "false_alarm_probability": stated["false_alarm_probability"],
        "bounds": [{"name": check["name"], **check["measure"]} for check in checks if "measure" in check],
        "meaning": meaning,
    }


def risk(d: Derived) -> Group:
    """Group 13: what an attacker can gain at most, from the whole privacy-loss distribution."""
    rows = [_risk_of(d, k) for k in sorted(d.names)]
    worst = next(row for row in rows if row["client_id"] == d.worst)
    units = len(d.names) if d.privacy["unit"] == "client" else d.privacy["max_records"]
    right = (1 + Decimal(worst["membership_advantage"])) / 2
    return {
        "per_client": rows,
        "against": next(a.who for a in d.adversaries if a.id == d.worst_row),
        "best_guess_at_even_odds": str(right.quantize(Decimal("0.0001"), ROUND_CEILING)),
        "plain_words": [
            f"Somebody who sees everything that was released tries to tell whether {_question(d)}, "
            f"and knew nothing before: such a guess is right in at most {_of_hundred(right)} of 100 "
            "cases; a coin is right in 50.",
            "The best possible test is right more often than wrong by at most "
            f"{worst['membership_advantage']} (0 is guessing, 1 is certainty).",
            "If that test accuses one person in a hundred wrongly, it finds at most "
            f"{_of_hundred(Decimal(worst['tpr_at_1_percent_fpr']))} of 100 {_people(d)}.",
            f"The guarantee may fail outright with probability at most {d.privacy['delta']} per {d.privacy['unit']}: "
            f"at most {plain(d.delta * units)} {d.privacy['unit']}s expected among {units}.",
        ],
        "source": "the whole privacy-loss distribution, not one pair (ε, δ)",
    }


def _question(d: Derived) -> str:
    if d.privacy["unit"] == "client":
        return "one given client's data were in a sum, or zeros in their place"
    return "one given record was in the training data"


def _people(d: Derived) -> str:
    return (
        "clients whose data really were in it"
        if d.privacy["unit"] == "client"
        else "people who really were in the data"
    )


def _risk_of(d: Derived, client: int) -> dict[str, Any]:
    rates = [f"tpr_at_{_PER_CENT[rate]}_percent_fpr" for rate in RATES]
    row: dict[str, Any] = {"client_id": client, "name": d.names[client]}
    if order(d.trust[d.worst_row][client]).is_infinite():
        return row | dict.fromkeys(["membership_advantage", *rates], "1.0000")
    events = d.against(d.worst_row, client)
    row["membership_advantage"] = accountant.membership_advantage(events)
    for name, rate in zip(rates, RATES, strict=True):
        row[name] = accountant.tpr_at_fpr(events, Decimal(rate))
    return row


def _of_hundred(share: Decimal) -> str:
    return str((100 * share).quantize(Decimal("0.1"), ROUND_CEILING))


def governance(d: Derived) -> Group:
    """Group 14: the operator's statements, and where each framework's questions are spoken to in this report."""
    stated = d.facts["governance"]
    return {
        "statement": "This report is evidence, not a legal determination.",
        "meaning": "Pointers: which part of the report speaks to which question. Whether a rule applies, and whether "
        "it is met, is for the controllers, their counsel and the authorities to decide.",
        "stated": [
            {"key": key, "asks": asks, "statement": stated.get(key, NOT_STATED)} for key, asks in GOVERNANCE.items()
        ],
        "checklist": [
            {
                "framework": framework,
                "reference": reference,
                "topic": topic,
                "groups": list(groups),
                "statement": "" if key is None else stated.get(key, NOT_STATED),
            }
            for framework, reference, topic, groups, key in CHECKLIST
        ],
        "not_stated": [key for key in GOVERNANCE if key not in stated],
    }
