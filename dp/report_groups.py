"""The fifteen groups of the accounting report, each a pure function of the facts; here the list and groups 7 to 15.

Verification calls the same functions on the facts and compares every leaf. Texts carry no figure that is not derived
here; what is not measured says so. Figures are integers or decimal strings.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from statistics import median_low
from typing import Any

from dp import accountant
from dp import report_claims as claims
from dp.accountant import ABOVE_CEILING
from dp.report_facts import SETS
from dp.report_figures import NOT_MEASURED, Derived, Facts, Group, iso, plain, ratio

PHASES = {
    "advertised": "advertise-keys",
    "shared": "share-keys",
    "masked": "masked-input-collection",
    "checked": "consistency-check",
    "unmasked": "unmasking",
}


def derive(facts: Facts, prv: bool = True) -> list[Group]:
    """All groups, in order. Raises PrivacyError where an ε cannot be certified."""
    d = Derived(facts, prv)
    makers = (
        ("identity", "Who, what and when", claims.identity),
        ("release", "What is released, and to whom", claims.release),
        ("unit", "Whom the guarantee protects", claims.unit),
        ("guarantee", "The guarantee, per adversary", claims.guarantee),
        ("mechanism", "The mechanism, in real and integer units", claims.mechanism),
        ("accounting", "Accounting", claims.accounting),
        ("participation", "Participation and realised noise", _participation),
        ("unprotected", "What is not protected, and the cost of tuning", _unprotected),
        ("randomness", "Randomness and numerics", _randomness),
        ("secure_aggregation", "Secure-aggregation transcript", _secure_aggregation),
        ("audit", "Empirical audit", _audit),
        ("utility", "Utility", _utility),
        ("risk", "Risk in plain words", _risk),
        ("governance", "Governance", _governance),
        ("recompute", "How to recompute this report", _recompute),
    )
    return [
        {"number": number, "id": name, "title": title, **make(d)}
        for number, (name, title, make) in enumerate(makers, start=1)
    ]


def _participation(d: Derived) -> Group:
    rows = []
    for k in sorted(d.names):
        charged = {(c.round, c.attempt) for c in d.own_charges(k)}
        released = {
            (r["round"], r["attempt"]) for r in d.facts["rounds"] if r["status"] == "released" and k in r["masked"]
        }
        rows.append(
            {
                "client_id": k,
                "name": d.names[k],
                "in_released_sums": len(released),
                "attempts_charged": len(charged),
                "charged_but_not_in_a_sum": len(charged - released),
                "stated": k in d.statements,
            }
        )
    return {
        "clients": rows,
        "noise": "each client adds the full noise of group 5 in every step; others' noise is not counted on",
        "realised_sample_sizes": "private: they never leave a client",
    }


def _unprotected(d: Derived) -> Group:
    others = {str(k): len(d.charges[k]) - len(d.own_charges(k)) for k in sorted(d.statements)}
    return {
        "public": [
            "who took part in which round, timing and size of uploads",
            "manifest, roster, drop reasons, number of clients in each sum",
            "the privacy ledgers' rows: tasks, rounds, attempts and mechanisms",
        ],
        "evaluation_data": d.facts["run"]["evaluation_data"],
        "not_promised": ["poisoning by a client", "inference about groups or about the population as a whole"],
        "charges_of_other_tasks_and_runs": others,
        "tuning": "runs over the same population stand in the same ledger and are composed in full",
    }


def _randomness(d: Derived) -> Group:
    return {
        "generator": "AES-256-CTR, seeded from the operating system in each client, never logged",
        "draws": ["Poisson sample", "discrete Gaussian noise"],
        "noise": "exact discrete Gaussian, the last step before the optimiser; no clamp and no rounding after it",
        "torch_generator": "used for nothing in a privacy claim",
        "floating_point": "per-record gradients are floats; the clip norm is checked again in integers",
        "versions": dict(d.facts["versions"]),
    }


def _secure_aggregation(d: Derived) -> Group:
    a = d.aggregation
    quorum = (a["num_clients"] + a["max_corrupt"]) // 2 + 1
    return {
        "graph": a["graph"],
        "assurance": a["assurance"],
        "num_clients": a["num_clients"],
        "max_corrupt": a["max_corrupt"],
        "threshold": quorum,
        "quorum": quorum,
        "min_cohort": a["min_cohort"],
        "max_dropouts": a["max_dropouts"],
        "slots_per_word": a["slots_per_word"],
        "rounds": [_round(r) for r in d.facts["rounds"]],
    }


def _round(r: Mapping[str, Any]) -> Group:
    row = r["ledger_row"]
    return {
        "round": r["round"],
        "attempt": r["attempt"],
        "status": r["status"],
        "reason": r["reason"],
        "started": iso(r["started"]),
        "ended": iso(r["ended"]),
        "seconds": r["ended"] - r["started"],
        **{f"{name}_count": len(r[name]) for name in SETS},
        "in_the_sum": list(r["masked"]) if r["status"] == "released" else [],
        "dropped": [_drop(r, k) for k in r["cohort"] if k not in r["unmasked"]],
        "reported_faults": dict(sorted(r["drops"].items())),
        "ctx": r["ctx"],
        "release_seq": None if row is None else row["seq"],
        "release_head": None if row is None else row["head"],
        "root_u2": None if row is None else row["root_u2"],
        "hash_u3": None if row is None else row["hash_u3"],
        "aggregate_digest": r["aggregate_digest"],
        "model_digest": r["model_digest"],
    }


def _drop(r: Mapping[str, Any], client: int) -> Group:
    phase = next(label for name, label in PHASES.items() if client not in r[name])
    return {
        "client_id": client,
        "first_missing_in": phase,
        "reason": r["drops"].get(str(client), "none recorded"),
        "in_the_sum": r["status"] == "released" and client in r["masked"],
    }


def _audit(_: Derived) -> Group:
    return {
        "status": NOT_MEASURED,
        "meaning": "the guarantee rests on the proof and the code, not on an attack that failed",
    }


def _utility(d: Derived) -> Group:
    methods = [_method(d, m) for m in d.facts["utility"]]
    trained = {m["samples_per_client"] for m in methods if m["method"] != "majority"}
    by_name = {name: [m for m in methods if m["method"] == name] for name in {m["method"] for m in methods}}
    alone = [Decimal(m["accuracy"]) for m in by_name.get("alone-dp", [])]
    federated = [Decimal(m["accuracy"]) for m in by_name.get("federated-dp", [])][:1]
    majority = [Decimal(m["accuracy"]) for m in by_name.get("majority", [])][:1]
    return {
        "status": "measured on one common test split" if methods else NOT_MEASURED,
        "methods": methods,
        "labels": list(d.training["labels"]),
        "same_number_of_samples_seen": len(trained) <= 1,
        "median_alone_accuracy": str(median_low(alone)) if alone else NOT_MEASURED,
        "federated_dp_minus_majority": str(federated[0] - majority[0]) if federated and majority else NOT_MEASURED,
        "federated_dp_minus_median_alone": str(federated[0] - median_low(alone))
        if federated and alone
        else NOT_MEASURED,
        "fairness_between_hospitals_and_groups": NOT_MEASURED,
    }


def _method(d: Derived, m: Mapping[str, Any]) -> Group:
    confusion = m["confusion"]
    right, total = sum(row[i] for i, row in enumerate(confusion)), sum(map(sum, confusion))
    return {
        "method": m["method"],
        "client_id": m["client_id"],
        "name": "" if m["client_id"] is None else d.names[m["client_id"]],
        "samples_per_client": m["steps_per_client"] * d.training["expected_batch"],
        "test_records": total,
        "correct": right,
        "accuracy": ratio(Fraction(right, max(total, 1))),
        "macro_f1": ratio(macro_f1(confusion)),
    }


def macro_f1(confusion: Sequence[Sequence[int]]) -> Fraction:
    """Mean of the classes' F1 (2·tp / (true + predicted)); a class that is neither true nor predicted counts 0."""
    columns = [sum(column) for column in zip(*confusion, strict=True)]
    scores = [Fraction(2 * row[i], max(sum(row) + columns[i], 1)) for i, row in enumerate(confusion)]
    return sum(scores, Fraction(0)) / max(len(scores), 1)


def _risk(d: Derived) -> Group:
    rows = []
    for k in sorted(d.names):
        if d.accounting[k].epsilon == ABOVE_CEILING:
            advantage, tpr = "1.0000", "1.0000"
        else:
            advantage = accountant.membership_advantage(d.mechanisms[k])
            tpr = accountant.tpr_at_fpr(d.mechanisms[k])
        rows.append({"client_id": k, "membership_advantage": advantage, "tpr_at_1_percent_fpr": tpr})
    worst = next(row for row in rows if row["client_id"] == d.worst)
    return {
        "per_client": rows,
        "plain_words": [
            "Somebody who sees everything that was released tries to tell whether one given record was in the "
            "training data: the best possible test is right more often than wrong by at most "
            f"{worst['membership_advantage']} (0 is guessing, 1 is certainty).",
            "If that test accuses one person in a hundred wrongly, it finds at most "
            f"{worst['tpr_at_1_percent_fpr']} of the people who really were in the data.",
            f"The guarantee may fail outright with probability at most {d.privacy['delta']} per record: at most "
            f"{plain(d.delta * d.privacy['max_records'])} records expected among {d.privacy['max_records']}.",
        ],
        "source": "the whole privacy-loss distribution, not one pair (ε, δ)",
    }


def _governance(_: Derived) -> Group:
    return {
        "statement": "This report is evidence, not a legal determination.",
        "pointers": "legal basis, ethics vote and data-protection assessment: not part of this version of the report",
    }


def _recompute(_: Derived) -> Group:
    return {
        "command": "secagg report verify report.json",
        "result": "not stored: a report cannot vouch for itself; run the command",
        "recomputed": [
            "hash chain, head and charges of every privacy ledger",
            "every ε, the budget curves, the δ(ε) curve and the risk figures, from the event trees",
            "units, thresholds, sizes, participation, accuracy and macro-F1, every sentence with a figure",
        ],
        "bound_by_signatures": [
            "manifest and roster: the owner's; ledgers: each client's; release-ledger rows and the whole: the server's",
        ],
        "not_recomputable": [
            "the server's word alone: times, drop reasons, adapter and sum digests, confusion matrices, "
            "evaluation data, versions",
            "the PRV cross-check, where Opacus is not installed",
        ],
    }
