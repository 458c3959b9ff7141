"""Groups 1 to 6 of the accounting report: who, what, for whom, the guarantee, the mechanism, the accounting.

Each is a pure function of the facts. Texts carry no figure that is not derived here.
"""

from dataclasses import asdict
from decimal import Decimal
from fractions import Fraction

from dp import accountant
from dp.events import SampledGaussian, parse
from dp.report_figures import (
    Derived,
    Group,
    decimal,
    iso,
    noise_steps,
    noised_scale,
    order,
    plain,
    planned_event,
    rotated,
    sensitivity_steps,
    vector_length,
)
from dp.report_trust import Adversary
from dp.rotation import block_root, rotated_length

WHY = {
    "R1": "each client adds the whole noise alone, so no row depends on secure aggregation or on others",
    "R2": "each client adds a share of the noise inside the masked sum: who knows shares, or sees one upload alone, "
    "sees less of it",
    "C": "each client adds a share of the noise inside the masked sum: who knows shares, or sees one upload alone, "
    "sees less of it; nobody is sampled, so q = 1 for every adversary",
}
NAMES = {
    "R1": "local DP-SGD: Poisson sample, clip each record, sum on an integer grid, discrete Gaussian noise",
    "R2": "distributed DP-SGD: one Poisson sample at every silo, clip each record, sum on an integer grid, a share of "
    "discrete Gaussian noise by every client, secure aggregation of the integers",
    "C": "client-level: any local training, clip the whole update, conditional stochastic rounding to an integer grid, "
    "a share of discrete Gaussian noise by every client, secure aggregation of the integers",
}
AFTER = {
    "R1": "optimiser, difference to the global adapter, encoding and masking: post-processing only",
    "R2": "masking and aggregation of the integers as they are, then the server step: post-processing only",
    "C": "masking and aggregation of the integers as they are, then their mean over the public number of clients in "
    "the sum and the server step: post-processing only",
}
PRV_ROW = "PRV (Opacus)"
CURVE_POINTS = tuple(Decimal(k) / 2 for k in range(0, 21))


def identity(d: Derived) -> Group:
    """Group 1: identity, hashes, signatures."""
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
        "data": d.manifest["data"],
        "base_model_files": [dict(file) for file in d.manifest["base_model"]["files"]],
        "members": [
            {"role": "server", "name": d.roster["server"]["name"], "identity_key": d.roster["server"]["identity_key"]},
            *(
                {"role": role, "name": d.roster[role]["name"], "identity_key": d.roster[role]["identity_key"]}
                for role in ("decryptor",)
                if d.roster.get(role)
            ),
            *(
                {"role": f"client {m['client_id']}", "name": m["name"], "identity_key": m["identity_key"]}
                for m in d.roster["clients"]
            ),
        ],
        "manifest_digest": manifest["digest"],
        "manifest_sha256": manifest["sha256"],
        "roster_root": roster["digest"],
        "roster_sha256": roster["sha256"],
        "signed_by_owner": ["manifest", "roster"],
        "signed_by_clients": sorted(d.statements),
        "signed_by_server": ["this report", "every row of the release ledger"],
    }


def release(d: Derived) -> Group:
    """Group 2: what is released, to whom."""
    released = [r for r in d.facts["rounds"] if r["status"] == "released"]
    return {
        "per_round": "the sum of the noised adapter updates over one agreed set of clients, and nothing else numeric",
        "recipients": ["the server", "every client of the roster", "whoever is given the final adapter"],
        "final": "the adapter after the last released round",
        "final_model_digest": released[-1]["model_digest"] if released else "",
        "attempts": len(d.facts["rounds"]),
        "released_rounds": len(released),
        "vector_length": vector_length(d.manifest),
        "starts_from": _origin(d.manifest["adapter"].get("start")),
        "adapter_method": d.manifest["adapter"]["method"],
        "adapter_rank": d.manifest["adapter"]["rank"],
        "tensors": len(d.manifest["adapter"]["tensors"]),
        "values_released": len(released) * vector_length(d.manifest),
        "not_released": "single updates, losses, sample counts and metrics of a client",
    }


def _origin(start: str | None) -> str:
    if start is None:
        return "the adapter that the manifest's seed gives"
    return (
        f"the vector with SHA-256 {start}, left by an earlier task: what that task spent stands in the same ledgers, "
        "and in a report of its own"
    )


def _meaning(d: Derived) -> tuple[str, str]:
    """What the unit means, and what holds if the declaration is wrong."""
    most = d.privacy["records_per_person"]
    if d.privacy["unit"] == "client":
        return (
            "all that one client contributes, against zeros in its place: that it takes part is public, what its data "
            "say is protected; exchanging one client's data for others moves twice as much and is not what is stated",
            "a person with records at several clients has the sum of what they spend",
        )
    if most == 1:
        return (
            "one record more or less in one silo; replacing a record costs more and is not what is stated",
            "a person with records in several silos, or with several records, has the sum of what they spend",
        )
    return (
        f"all records of one person, up to {most}, more or less; replacing records costs more and is not what is "
        "stated",
        "a person with more records than that, or in more silos than declared, is protected less",
    )


def unit(d: Derived) -> Group:
    """Group 3: unit, adjacency, overlap."""
    meaning, if_wrong = _meaning(d)
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
        "meaning": meaning,
        "if_wrong": if_wrong,
    }


def guarantee(d: Derived) -> Group:
    """Group 4: the guarantee per adversary; the headline is the worst row within the declared threat model."""
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
    return {
        "headline": _headline(d),
        "per_client": per_client,
        "per_adversary": [_row(d, a) for a in d.adversaries],
        "threat_model": "the headline is the worst row that the declared threat model includes",
        "why": WHY[d.privacy["protocol"]],
    }


def _row(d: Derived, adversary: Adversary) -> Group:
    row: Group = {
        "id": adversary.id,
        "adversary": adversary.who,
        "against": adversary.against,
        "knows": adversary.knows,
        "within_threat_model": adversary.declared,
        "noise": None,
        "worst": None,
        "per_client": [],
        "epsilon": "none: the operator holds the data",
    }
    if adversary.shares is None:
        return row
    figures = d.trust[adversary.id]
    worst = max(figures, key=lambda k: (order(figures[k]), -k))
    unknown, counted = adversary.shares
    left = adversary.sees(parse(planned_event(d.manifest)), True)
    return row | {
        "noise": {
            "shares_unknown_to_it": unknown,
            "shares_charged": counted,
            "noise_steps": left.noise_steps,
            "noise_multiplier": decimal(Fraction(left.noise_steps, left.clip_steps)),
        },
        "worst": {"client_id": worst, "name": d.names[worst]},
        "per_client": [{"client_id": k, "epsilon": e} for k, e in figures.items()],
        "epsilon": figures[worst],
    }


def _headline(d: Derived) -> Group:
    figure, epsilon = d.accounting[d.worst], d.trust[d.worst_row][d.worst]
    rounds = len({(c.manifest_digest, c.round) for c in d.own_charges(d.worst)})
    if d.worst not in d.statements:
        rounds = sum(d.worst in r["shared"] for r in d.facts["rounds"])
    sign = "" if order(epsilon).is_infinite() else "= "
    row = next(a for a in d.adversaries if a.id == d.worst_row)
    whole = "" if d.complete else "; not every client has stated its ledger"
    return {
        "client_id": d.worst,
        "name": d.names[d.worst],
        "epsilon": epsilon,
        "delta": figure.delta,
        "unit": d.privacy["unit"],
        "adjacency": d.privacy["adjacency"],
        "row": row.id,
        "against": row.who,
        "qualifier": f"at δ = {figure.delta}, {d.privacy['unit']}, {d.adjacency}",
        "rounds": rounds,
        "steps": figure.releases,
        "complete": d.complete,
        "sentence": (
            f"ε {sign}{epsilon} at δ = {figure.delta}, {d.privacy['unit']}, {d.adjacency}, "
            f"{rounds} rounds of this task and {figure.releases} noised "
            f"{'sums' if d.privacy['unit'] == 'client' else 'steps'} in all, worst silo ({d.names[d.worst]}){whole}"
        ),
    }


def mechanism(d: Derived) -> Group:
    """Group 5: the mechanism in real and integer units."""
    p, scale = d.privacy, d.privacy["scale"]
    planned, sensitivity, noise = (
        parse(planned_event(d.manifest)),
        sensitivity_steps(d.manifest),
        noise_steps(d.manifest),
    )
    q = (1, 1) if p["protocol"] == "C" else (p["sampling_numerator"], p["sampling_denominator"])
    return {
        "protocol": p["protocol"],
        "name": NAMES[p["protocol"]],
        "real_units": {
            "clip_norm": decimal(Fraction(p["clip_steps"], scale)),
            "noise_standard_deviation": decimal(Fraction(noise, noised_scale(d.manifest))),
            "noise_multiplier": decimal(Fraction(noise, sensitivity)),
            "sampling_probability": decimal(Fraction(*q)),
            "grid_step": decimal(Fraction(1, scale)),
            "learning_rate": d.training["learning_rate"],
        },
        "integer_units": {
            "scale": scale,
            "clip_steps": p["clip_steps"],
            "sensitivity_steps": sensitivity,
            "noised_scale": noised_scale(d.manifest),
            "noise_steps": noise,
            "noise_shares": planned.shares,
            "variance_of_one_share": decimal(Fraction(noise**2, planned.shares)),
            "sampling_numerator": q[0],
            "sampling_denominator": q[1],
        },
        "local_steps_per_round": d.training["local_steps"],
        "rounds_planned": d.training["rounds"],
        "public_divisor": d.training["expected_batch"],
        "rotation": _rotation(d),
        "after_the_noise": AFTER[p["protocol"]],
        "event_per_attempt": planned_event(d.manifest),
    }


def _rotation(d: Derived) -> str:
    """What is rotated, before the noise and so before anything of the claim."""
    if not rotated(d.manifest):
        return "none"
    size = vector_length(d.manifest)
    block = block_root(size) ** 2
    return (
        f"public signs from the manifest's seed, then a Hadamard matrix on {rotated_length(size) // block} blocks of "
        f"{block} values; what would not fit into a slot is cut off before the noise"
    )


def accounting(d: Derived) -> Group:
    """Group 6: event trees, cross-checks, curves, δ."""
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
            "row": d.worst_row,
            "points": []
            if order(d.trust[d.worst_row][d.worst]).is_infinite()
            else [
                {"epsilon": str(e), "delta": v}
                for e, v in zip(CURVE_POINTS, accountant.delta_at(d.worst_mechanisms, CURVE_POINTS), strict=True)
            ],
        },
        "cross_checks": _cross_checks(d),
        "record_level": _record_level(d),
        "enforced": [
            "every attempt charged durably before its masked upload; never refunded",
            "the round that would exceed the budget refused before it starts",
            "charges of all runs and manifests over the same population composed",
        ],
        "tested": ["sampler, clipping and noise on the integer grid", "accountant against published reference points"],
        "assumed": [
            "each person's records lie at one client"
            if d.privacy["unit"] == "client"
            else "each person has at most the stated number of records, in one silo",
            "the client's machine and its random generator are honest",
        ],
    }


def _record_level(d: Derived) -> Group | None:
    """What the same charges mean for one record, where the unit is a client. Another adjacency, so another account."""
    if d.privacy["unit"] == "record":
        return None
    figures = {
        k: accountant.epsilon(accountant.in_unit([m for m, _ in d.releases[k]], "record"), d.delta, prv=False).epsilon
        for k in sorted(d.names)
    }
    return {
        "unit": "record",
        "adjacency": "add-or-remove-one",
        "sensitivity_steps": 2 * sensitivity_steps(d.manifest),
        "per_client": [{"client_id": k, "name": d.names[k], "epsilon_per_record": e} for k, e in figures.items()],
        "why": "a record more or less at a client exchanges one bounded update for another, so the sum moves by at "
        "most twice the norm bound; what later record-level tasks over the same ledger add to is this",
    }


def _cross_checks(d: Derived) -> Group:
    """What the worst client's figure as charged was held against, before anything was released."""
    worst = max(d.accounting, key=lambda k: (order(d.accounting[k].epsilon), -k))
    f = d.accounting[worst]
    rows = [
        {"name": "privacy-loss distribution", "epsilon": f.epsilon, "role": f"certified by {f.method}; add and remove"},
        {"name": "second grid", "epsilon": f.second_grid, "role": "must agree within .001 + .2 %"},
        {"name": "Rényi DP at integer orders", "epsilon": f.rdp, "role": "independent certificate: an upper bound"},
        {"name": PRV_ROW, "epsilon": f.prv, "role": "must agree within its own error of .01"},
        {"name": "closed form", "epsilon": f.closed_form, "role": "exact, where nothing is sampled"},
        {
            "name": "continuous noise",
            "epsilon": f.continuous,
            "role": "for comparison only: never above the certified one",
        },
    ]
    return {"client_id": worst, "name": d.names[worst], "accountants": rows}


def _mechanism_json(m: SampledGaussian) -> Group:
    q = m.sampling_probability
    return {
        "steps": m.count,
        "sampling_numerator": q.numerator,
        "sampling_denominator": q.denominator,
        "noise_steps": m.noise_steps,
        "clip_steps": m.clip_steps,
        "shares": m.shares,
        "records": m.records,
    }
