"""The fifteen groups of the accounting report, each a pure function of the facts.

Verification calls the same functions on the facts and compares every leaf. Texts carry no figure that is not derived
here; what is not measured says so. Figures are integers or decimal strings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from math import prod
from statistics import median_low
from typing import Any

from dp import accountant
from dp.accountant import ABOVE_CEILING, Accounting
from dp.events import SampledGaussian, step_event
from dp.ledger import CHARGE, Charge
from dp.report_facts import SETS

Facts = Mapping[str, Any]
Group = dict[str, Any]

NOT_MEASURED = "not measured in this version"
PHASES = {
    "advertised": "advertise-keys",
    "shared": "share-keys",
    "masked": "masked-input-collection",
    "checked": "consistency-check",
    "unmasked": "unmasking",
}
CURVE_POINTS = tuple(Decimal(k) / 2 for k in range(0, 21))
_FOUR = Decimal("0.0001")


class Derived:
    """Facts parsed once, and the figures that several groups need."""

    def __init__(self, facts: Facts, prv: bool = True) -> None:
        self.facts = facts
        self.manifest: Mapping[str, Any] = facts["manifest"]["document"]
        self.roster: Mapping[str, Any] = facts["roster"]["document"]
        self.privacy: Mapping[str, Any] = self.manifest["privacy"]
        self.training: Mapping[str, Any] = self.manifest["training"]
        self.aggregation: Mapping[str, Any] = self.manifest["aggregation"]
        self.delta = Decimal(self.privacy["delta"])
        self.names: dict[int, str] = {m["client_id"]: m["name"] for m in self.roster["clients"]}
        self.statements: dict[int, Mapping[str, Any]] = {
            s["statement"]["client_id"]: s["statement"] for s in facts["statements"]
        }
        self.rows: dict[int, tuple[tuple[int, Charge], ...]] = {
            k: tuple((r["seq"], Charge.from_json(r["body"])) for r in s["rows"] if r["kind"] == CHARGE)
            for k, s in self.statements.items()
        }
        self.charges = {k: tuple(charge for _, charge in rows) for k, rows in self.rows.items()}
        self.mechanisms = {k: self._mechanisms(k) for k in self.names}
        self.accounting: dict[int, Accounting] = {
            k: accountant.epsilon(m, self.delta, prv=prv) for k, m in self.mechanisms.items()
        }
        self.worst = max(self.names, key=lambda k: (_order(self.accounting[k].epsilon), -k))

    def _mechanisms(self, client: int) -> tuple[SampledGaussian, ...]:
        if client in self.charges:
            return accountant.mechanisms(self.charges[client])
        event = planned_event(self.manifest)
        attempts = sum(client in r["shared"] for r in self.facts["rounds"])
        charge = Charge(self.manifest["task"], self.facts["manifest"]["digest"], 0, 0, event)
        return accountant.mechanisms([charge.mechanism] * attempts)

    @property
    def complete(self) -> bool:
        """Whether every client of the roster stated its ledger."""
        return set(self.names) <= set(self.statements)

    def own_charges(self, client: int) -> tuple[Charge, ...]:
        """A client's charges under this manifest."""
        digest = self.facts["manifest"]["digest"]
        return tuple(c for c in self.charges.get(client, ()) if c.manifest_digest == digest)


def planned_event(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The event tree that one attempt under this manifest must be charged as."""
    p = manifest["privacy"]
    return step_event(
        manifest["training"]["local_steps"],
        (p["sampling_numerator"], p["sampling_denominator"]),
        p["noise_steps"],
        p["clip_steps"],
    )


def derive(facts: Facts, prv: bool = True) -> list[Group]:
    """All groups, in order. Raises PrivacyError where an ε cannot be certified."""
    d = Derived(facts, prv)
    makers = (
        ("identity", "Who, what and when", _identity),
        ("release", "What is released, and to whom", _release),
        ("unit", "Whom the guarantee protects", _unit),
        ("guarantee", "The guarantee, per adversary", _guarantee),
        ("mechanism", "The mechanism, in real and integer units", _mechanism),
        ("accounting", "Accounting", _accounting),
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


def _identity(d: Derived) -> Group:
    run, manifest, roster = d.facts["run"], d.facts["manifest"], d.facts["roster"]
    return {
        "run_id": run["id"],
        "consortium": d.roster["consortium"],
        "roster_version": d.roster["version"],
        "task": d.manifest["task"],
        "base_model": d.manifest["base_model"]["name"],
        "started": iso(run["started"]),
        "ended": iso(run["ended"]),
        "duration_seconds": run["ended"] - run["started"],
        "manifest_digest": manifest["digest"],
        "manifest_sha256": manifest["sha256"],
        "roster_root": roster["digest"],
        "roster_sha256": roster["sha256"],
        "signed_by_owner": ["manifest", "roster"],
        "signed_by_clients": sorted(d.statements),
        "signed_by_server": ["this report", "every row of the release ledger"],
    }


def _release(d: Derived) -> Group:
    released = [r for r in d.facts["rounds"] if r["status"] == "released"]
    return {
        "per_round": "the sum of the noised adapter updates over one agreed set of clients, and nothing else numeric",
        "recipients": ["the server", "every client of the roster", "whoever is given the final adapter"],
        "final": "the adapter after the last released round",
        "final_model_digest": released[-1]["model_digest"] if released else "",
        "attempts": len(d.facts["rounds"]),
        "released_rounds": len(released),
        "vector_length": vector_length(d.manifest),
        "adapter_method": d.manifest["adapter"]["method"],
        "adapter_rank": d.manifest["adapter"]["rank"],
        "not_released": "single updates, losses, sample counts and metrics of a client",
    }


def _unit(d: Derived) -> Group:
    return {
        "unit": d.privacy["unit"],
        "adjacency": d.privacy["adjacency"],
        "records_per_person": d.privacy["records_per_person"],
        "people_in_several_silos": d.privacy["people_in_several_silos"],
        "max_records": d.privacy["max_records"],
        "populations": [
            {
                "client_id": k,
                "name": d.names[k],
                "silo": d.statements[k]["silo"] if k in d.statements else "not stated",
                "population": d.statements[k]["population"] if k in d.statements else "not stated",
            }
            for k in sorted(d.names)
        ],
        "meaning": "one record more or less in one silo; replacing a record costs more and is not what is stated",
        "if_wrong": "a person with records in several silos, or with several records, has the sum of what they spend",
    }


def _guarantee(d: Derived) -> Group:
    corrupt = d.aggregation["max_corrupt"]
    every, others = "the records of every silo", "the records of every silo but its own"
    outside = (
        ("recipient of the final adapter", every),
        ("honest-but-curious server", every),
        (f"malicious server; clients that collude with it: up to {corrupt}", f"{every} that does not collude"),
        ("one other client", others),
        ("any of these if secure aggregation fails, every upload seen", others),
    )
    per_client = [
        {
            "client_id": k,
            "name": d.names[k],
            "epsilon": d.accounting[k].epsilon,
            "delta": d.accounting[k].delta,
            "basis": "every row of the client's signed privacy ledger"
            if k in d.statements
            else "no statement received: attempts of this run that the server saw; what else was spent is unknown",
            "steps": d.accounting[k].releases,
        }
        for k in sorted(d.names)
    ]
    epsilons = {str(k): d.accounting[k].epsilon for k in sorted(d.names)}
    return {
        "headline": _headline(d),
        "per_client": per_client,
        "per_adversary": [
            *({"adversary": a, "against": against, "epsilon": epsilons} for a, against in outside),
            {
                "adversary": "the silo's own operator",
                "against": "the records of its own silo",
                "epsilon": "none: the operator holds the data",
            },
        ],
        "why_equal": "each client adds the whole noise alone, so no row depends on secure aggregation or on others",
    }


def _headline(d: Derived) -> Group:
    figure = d.accounting[d.worst]
    rounds = len({(c.manifest_digest, c.round) for c in d.own_charges(d.worst)})
    if d.worst not in d.statements:
        rounds = sum(d.worst in r["shared"] for r in d.facts["rounds"])
    sign = "" if figure.epsilon == ABOVE_CEILING else "= "
    whole = "" if d.complete else "; not every client has stated its ledger"
    return {
        "client_id": d.worst,
        "name": d.names[d.worst],
        "epsilon": figure.epsilon,
        "delta": figure.delta,
        "unit": d.privacy["unit"],
        "adjacency": d.privacy["adjacency"],
        "rounds": rounds,
        "steps": figure.releases,
        "complete": d.complete,
        "sentence": (
            f"ε {sign}{figure.epsilon} at δ = {figure.delta}, {d.privacy['unit']}, add/remove, "
            f"{rounds} rounds of this task and {figure.releases} noised steps in all, "
            f"worst silo ({d.names[d.worst]}){whole}"
        ),
    }


def _mechanism(d: Derived) -> Group:
    p, scale = d.privacy, d.privacy["scale"]
    return {
        "protocol": p["protocol"],
        "name": "local DP-SGD: Poisson sample, clip each record, sum on an integer grid, discrete Gaussian noise",
        "real_units": {
            "clip_norm": decimal(Fraction(p["clip_steps"], scale)),
            "noise_standard_deviation": decimal(Fraction(p["noise_steps"], scale)),
            "noise_multiplier": decimal(Fraction(p["noise_steps"], p["clip_steps"])),
            "sampling_probability": decimal(Fraction(p["sampling_numerator"], p["sampling_denominator"])),
            "grid_step": decimal(Fraction(1, scale)),
            "learning_rate": d.training["learning_rate"],
        },
        "integer_units": {
            "scale": scale,
            "clip_steps": p["clip_steps"],
            "sensitivity_steps": p["clip_steps"],
            "noise_steps": p["noise_steps"],
            "sampling_numerator": p["sampling_numerator"],
            "sampling_denominator": p["sampling_denominator"],
        },
        "local_steps_per_round": d.training["local_steps"],
        "rounds_planned": d.training["rounds"],
        "public_divisor": d.training["expected_batch"],
        "after_the_noise": "optimiser, difference to the global adapter, encoding and masking: post-processing only",
        "event_per_attempt": planned_event(d.manifest),
    }


def _accounting(d: Derived) -> Group:
    capped = min(Decimal("0.00001"), Decimal(1) / (100 * d.privacy["max_records"]))
    return {
        "accountant": "privacy-loss distribution, pessimistic, add and remove; certificate derived for this project",
        "rounding": "ε up to four decimal places",
        "delta": {
            "delta": d.privacy["delta"],
            "max_records": d.privacy["max_records"],
            "delta_times_max_records": plain(d.delta * d.privacy["max_records"]),
            "default_upper_bound": decimal(Fraction(capped)),
            "within_default": d.delta <= capped,
            "justification": "within the default min(1e-5, 1/(100·N))"
            if d.delta <= capped
            else "the owner signed a larger δ than the default min(1e-5, 1/(100·N)); at most 1/(10·N)",
        },
        "budget": {"epsilon": d.privacy["epsilon"], "delta": d.privacy["delta"], "per": "silo and population"},
        "per_client": [
            {
                "client_id": k,
                "figures": asdict(d.accounting[k]),
                "composed": [_mechanism_json(m) for m in d.mechanisms[k]],
                "charges": len(d.charges.get(k, ())),
            }
            for k in sorted(d.names)
        ],
        "budget_curve": [
            {
                "client_id": k,
                "points": [
                    {"seq": seq, "task": c.task, "round": c.round, "attempt": c.attempt, "epsilon": e}
                    for (seq, c), e in zip(d.rows[k], accountant.curve(d.charges[k], d.delta), strict=True)
                ],
            }
            for k in sorted(d.statements)
        ],
        "delta_curve": {
            "client_id": d.worst,
            "points": []
            if d.accounting[d.worst].epsilon == ABOVE_CEILING
            else [
                {"epsilon": str(e), "delta": v}
                for e, v in zip(CURVE_POINTS, accountant.delta_at(d.mechanisms[d.worst], CURVE_POINTS), strict=True)
            ],
        },
        "enforced": [
            "every attempt charged durably before its masked upload; never refunded",
            "the round that would exceed the budget refused before it starts",
            "charges of all runs and manifests over the same population composed",
        ],
        "tested": ["sampler, clipping and noise on the integer grid", "accountant against published reference points"],
        "assumed": [
            "each person has at most the stated number of records, in one silo",
            "the client's machine and its random generator are honest",
        ],
    }


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
        "accuracy": _ratio(Fraction(right, max(total, 1))),
        "macro_f1": _ratio(macro_f1(confusion)),
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


def iso(unix: int) -> str:
    """Unix seconds as ISO 8601 in UTC."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def vector_length(manifest: Mapping[str, Any]) -> int:
    """Number of trained values."""
    return sum(prod(tensor["shape"]) for tensor in manifest["adapter"]["tensors"])


def decimal(value: Fraction) -> str:
    """Twelve significant digits, half even, no exponent."""
    quotient = Context(prec=12, rounding=ROUND_HALF_EVEN).divide(Decimal(value.numerator), Decimal(value.denominator))
    return plain(quotient)


def plain(value: Decimal) -> str:
    """A decimal without exponent and without trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _ratio(value: Fraction) -> str:
    exact = Context(prec=40).divide(Decimal(value.numerator), Decimal(value.denominator))
    return str(exact.quantize(_FOUR, ROUND_HALF_EVEN))


def _mechanism_json(m: SampledGaussian) -> Group:
    q = m.sampling_probability
    return {
        "steps": m.count,
        "sampling_numerator": q.numerator,
        "sampling_denominator": q.denominator,
        "noise_steps": m.noise_steps,
        "clip_steps": m.clip_steps,
    }


def _order(epsilon: str) -> Decimal:
    return Decimal("Infinity") if epsilon == ABOVE_CEILING else Decimal(epsilon)
