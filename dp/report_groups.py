"""The fifteen groups of the accounting report, each a pure function of the facts; here the list, 7 to 10 and 15.

Verification calls the same functions on the facts and compares every leaf. Texts carry no figure that is not derived
here; what is not measured says so. Figures are integers or decimal strings.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from dp import accountant
from dp import report_claims as claims
from dp import report_evidence as evidence
from dp.report_facts import EVALUATION_PEOPLE, SCHEMA, SETS
from dp.report_figures import Derived, Facts, Group, decimal, iso, rotated
from dp.report_utility import utility

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
        ("audit", "Empirical audit", evidence.audit),
        ("utility", "Utility and fairness", utility),
        ("risk", "Risk in plain words", evidence.risk),
        ("governance", "Governance pointers", evidence.governance),
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
    counted = next(a.shares for a in d.adversaries if a.id == "malicious-server") or (1, 1)
    return {
        "clients": rows,
        "realised_noise": [
            {
                "round": r["round"],
                "attempt": r["attempt"],
                "clients_in_the_sum": len(r["masked"]),
                "shares_charged": counted[1],
                "variance_over_charged": decimal(Fraction(len(r["masked"]), counted[1])),
            }
            for r in d.facts["rounds"]
            if r["status"] == "released"
        ],
        "noise": "more noise than was charged lies in every sum with more shares; it is never counted on",
        "realised_sample_sizes": "private: they never leave a client",
    }


def _unprotected(d: Derived) -> Group:
    anybody, server = "everybody who sees the run", "the server and whoever watches the network"
    items = (
        ("membership of the consortium and of each cohort", anybody, "roster and rounds are public"),
        ("who took part in which round, who dropped out and why", anybody, "drop reasons stand in this report"),
        ("timing and size of uploads", server, "the size is the same for all; the time depends on the machine"),
        ("number of clients in each sum", anybody, "the noise is stated against it"),
        ("the privacy ledgers' rows: tasks, rounds, attempts, mechanisms", anybody, "so that ε can be recomputed"),
        ("manifest: model, adapter, q, clip, noise, upper bound on records", anybody, "constants, not taken from data"),
    )
    return {
        "public": [{"quantity": what, "seen_by": who, "why": why} for what, who, why in items],
        "evaluation_data": d.facts["run"]["evaluation_data"],
        "evaluation_people": EVALUATION_PEOPLE[d.facts["run"]["evaluation_people"]],
        "evaluation_covered": d.facts["run"]["evaluation_people"] != "inside-the-unit",
        "not_promised": [
            "protection against poisoning by a client",
            "protection against inference about groups or about the population as a whole",
        ],
        "tuning": "runs over the same population stand in the same ledger and are composed in full",
        "tuning_cost": [_tuning(d, k) for k in sorted(d.statements)],
    }


def _tuning(d: Derived, client: int) -> Group:
    own = d.own_charges(client)
    other = [c for c in d.charges[client] if c not in own]
    return {
        "client_id": client,
        "name": d.names[client],
        "charges_of_this_task": len(own),
        "charges_of_other_tasks_and_runs": len(other),
        "epsilon_of_this_task_alone": accountant.epsilon(own, d.delta, prv=False).epsilon,
        "epsilon_of_everything": d.accounting[client].epsilon,
    }


def _randomness(d: Derived) -> Group:
    a = d.aggregation
    bits = 64 // a["slots_per_word"]
    return {
        "generator": "AES-256-CTR, seeded from the operating system in each client, never logged",
        "draws": ["conditional stochastic rounding", "discrete Gaussian noise"]
        if d.privacy["protocol"] == "C"
        else [
            "Poisson sample",
            *(["dither of rotated sums"] if rotated(d.manifest) else []),
            "discrete Gaussian noise",
        ],
        "noise": "exact discrete Gaussian, the last step before the optimiser; no clamp and no rounding after it"
        if d.privacy["protocol"] == "R1"
        else "exact discrete Gaussian shares, the last step before packing; no clamp and no rounding after it",
        "torch_generator": "used for nothing in a privacy claim",
        "floating_point": "the update is floats; its norm is checked again in integers after rounding"
        if d.privacy["protocol"] == "C"
        else "per-record gradients are floats; the clip norm is checked again in integers",
        "headroom": {
            "slot_bits": bits,
            "largest_value_of_one_client": a["bound"],
            "largest_slot_sum": 2 * a["bound"] * a["num_clients"],
            "slot_holds": 2**bits - 1,
            "fits": 2 * a["bound"] * a["num_clients"] <= 2**bits - 1,
        },
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


def _recompute(_: Derived) -> Group:
    return {
        "command": "secagg report verify report.json --owner owner.pub",
        "schema": f"secagg report schema; {SCHEMA}",
        "result": "not stored: a report cannot vouch for itself; run the command",
        "recomputed": [
            "hash chain, head and charges of every privacy ledger",
            "every ε, the budget curves, the δ(ε) curve and the risk figures, from the event trees",
            "the trust table, units, thresholds, headroom, sizes, participation, every sentence with a figure",
            "accuracy, macro-F1, AUC and the gaps between hospitals, from integer counts",
        ],
        "bound_by_signatures": [
            "manifest and roster: the owner's; ledgers: each client's; release-ledger rows and the whole: the server's",
        ],
        "not_recomputable": [
            "the server's word alone: times, drop reasons, adapter and sum digests, counts of the evaluation, "
            "evaluation data, the audit's findings, governance statements, versions",
            "the PRV cross-check, where Opacus is not installed",
        ],
    }
