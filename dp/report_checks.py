"""Checks of the facts against each other: what must hold before any figure is derived from them.

Each check compares what stands in the report with what follows from another part of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Any

from dp import report_facts as shape
from dp.client_level import LEAST_CLIENTS
from dp.ledger import CHARGE, Charge, genesis
from dp.report_evidence_checks import audit_checks, governance_checks, utility_checks
from dp.report_facts import SETS, exact_keys
from dp.report_figures import IN_SHARES, planned_event
from dp.report_findings import Check, at_least, same
from dp.store import GENESIS, Row, broken_link, canonical

MAX_YEAR_9999 = 253402300799
PROTOCOLS = ("R1", "R2", "C")  # for which the accountant has a certificate


def check_facts(facts: Mapping[str, Any]) -> list[Check]:
    """All checks of the facts. A fact of the wrong shape raises (KeyError, TypeError, ValueError, PrivacyError)."""
    exact_keys(facts, shape.FACTS_KEYS, "facts")
    exact_keys(facts["run"], shape.RUN_KEYS, "run")
    checks: list[Check] = []
    for maker in _MAKERS:
        checks.extend(maker(facts))
    return checks


def _documents(facts: Mapping[str, Any]) -> Iterator[Check]:
    for name in ("manifest", "roster"):
        entry = exact_keys(facts[name], shape.DOCUMENT_KEYS, name)
        recomputed = sha256(canonical(entry["document"])).hexdigest()
        yield same(f"SHA-256 of the {name}", entry["sha256"], recomputed)
    privacy = facts["manifest"]["document"]["privacy"]
    protocol, a = privacy["protocol"], facts["manifest"]["document"]["aggregation"]
    yield Check("protocol of the manifest", protocol in PROTOCOLS, str(protocol), PROTOCOLS[0])
    claim = ("client", "zero-out") if protocol == "C" else ("record", "add-or-remove-one")
    yield same("unit and adjacency of the protocol", (privacy["unit"], privacy["adjacency"]), claim)
    if protocol == "C":
        yield at_least("clients behind every sum of protocol C", a["min_cohort"], LEAST_CLIENTS)
    if protocol in IN_SHARES:  # SPEC 10.8: each client knows its own share
        yield at_least("clients whose shares of the noise do not count", a["max_corrupt"], 1)


def _times(facts: Mapping[str, Any]) -> Iterator[Check]:
    last = facts["run"]["started"]
    ordered = 0 <= last <= facts["run"]["ended"] <= MAX_YEAR_9999
    for r in facts["rounds"]:
        ordered = ordered and last <= r["started"] <= r["ended"] <= facts["run"]["ended"]
        last = r["ended"]
    yield Check("times run forward", ordered, "in order" if ordered else "out of order", "in order")


def _ledgers(facts: Mapping[str, Any]) -> Iterator[Check]:
    seen: set[int] = set()
    for entry in facts["statements"]:
        yield from statement_checks(facts, entry)
        client = entry["statement"]["client_id"]
        yield same(f"client {client}: one statement", client not in seen, True)
        seen.add(client)


def statement_checks(facts: Mapping[str, Any], entry: Mapping[str, Any]) -> Iterator[Check]:
    """One client's statement against manifest, roster and rounds of `facts`. Raises on other shapes, see there."""
    members = {m["client_id"]: m["name"] for m in facts["roster"]["document"]["clients"]}
    statement = exact_keys(entry, shape.STATEMENT_KEYS, "statement")["statement"]
    exact_keys(statement, shape.STATEMENT_BODY_KEYS, "statement body")
    client = statement["client_id"]
    who = f"client {client}"
    yield same(f"{who}: statement of a roster member", client in members, True)
    yield same(f"{who}: name", statement["name"], members.get(client))
    yield same(f"{who}: manifest of the statement", statement["manifest_digest"], facts["manifest"]["digest"])
    rows = [_row(row) for row in statement["rows"]]
    broken = broken_link(rows)
    state = "whole" if broken is None else f"broken at row {broken}"
    yield same(f"{who}: hash chain of the privacy ledger", state, "whole")
    yield same(f"{who}: rows", bool(rows) and all(r.kind in (GENESIS, CHARGE) for r in rows), True)
    yield same(f"{who}: ledger head", (statement["seq"], statement["head"]), (rows[-1].seq, rows[-1].hash.hex()))
    first = canonical(genesis(statement["silo"], statement["population"]))
    yield same(f"{who}: genesis row", rows[0].body == first, True)
    yield from _charges(who, facts, [Charge.from_json(r.value()) for r in rows if r.kind == CHARGE], client)


def _charges(who: str, facts: Mapping[str, Any], charges: Sequence[Charge], client: int) -> Iterator[Check]:
    manifest = facts["manifest"]["document"]
    yield same(f"{who}: each attempt charged once", len({c.key for c in charges}), len(charges))
    own = [c for c in charges if c.manifest_digest == facts["manifest"]["digest"]]
    event, task = planned_event(manifest), manifest["task"]
    strangers = [(c.round, c.attempt) for c in own if c.event != event or c.task != task]
    yield same(f"{who}: charges equal the manifest's event", _pairs(strangers), "none differs")
    late = [(c.round, c.attempt) for c in own if not 1 <= c.round <= manifest["training"]["rounds"]]
    yield same(f"{who}: rounds of the charges", _pairs(late, "none outside"), "none outside")
    # SPEC 10.5: a further attempt of a round with the same values stands under the charge of an earlier one
    unpaid = [
        (r["round"], r["attempt"])
        for r in facts["rounds"]
        if client in r["masked"] and not any(c.round == r["round"] and c.attempt <= r["attempt"] for c in own)
    ]
    yield same(f"{who}: every upload was charged", _pairs(unpaid, "none missing"), "none missing")


def _rounds(facts: Mapping[str, Any]) -> Iterator[Check]:
    manifest = facts["manifest"]["document"]
    a, members = manifest["aggregation"], {m["client_id"] for m in facts["roster"]["document"]["clients"]}
    keys = [(r["round"], r["attempt"]) for r in facts["rounds"]]
    yield same("attempts in ascending order, each once", keys == sorted(set(keys)), True)
    yield same("rounds of the manifest", all(1 <= k[0] <= manifest["training"]["rounds"] for k in keys), True)
    quorum = (a["num_clients"] + a["max_corrupt"]) // 2 + 1
    released_rounds: set[int] = set()
    seqs: list[int] = []
    for r in facts["rounds"]:
        exact_keys(r, shape.ROUND_KEYS, "round")
        where = f"round {r['round']}, attempt {r['attempt']}"
        sets = [r[name] for name in SETS]
        yield same(f"{where}: sets ascending", all(s == sorted(set(s)) for s in sets), True)
        nested = all(set(inner) <= set(outer) for outer, inner in pairwise(sets))
        yield same(f"{where}: sets nested", nested, True)
        yield same(f"{where}: cohort", set(r["cohort"]) <= members and len(r["cohort"]) == a["num_clients"], True)
        yield same(f"{where}: drops are members of the cohort", set(r["drops"]) <= {str(k) for k in r["cohort"]}, True)
        yield same(f"{where}: status", r["status"] in ("released", "aborted"), True)
        if r["status"] == "released":
            yield at_least(f"{where}: clients in the sum", len(r["masked"]), max(a["min_cohort"], quorum))
            yield at_least(f"{where}: signers of one set", len(r["checked"]), quorum)
            yield at_least(f"{where}: clients that unmasked", len(r["unmasked"]), quorum)
            yield same(f"{where}: round released once", r["round"] in released_rounds, False)
            yield same(f"{where}: no abort reason", r["reason"], "")
            released_rounds.add(r["round"])
        yield same(f"{where}: sum digest", bool(r["aggregate_digest"]), r["status"] == "released")
        row = r["ledger_row"]
        yield same(f"{where}: release-ledger row", row is not None or r["status"] == "aborted", True)
        if row is not None:
            exact_keys(row, shape.LEDGER_ROW_KEYS, "release-ledger row")
            yield same(f"{where}: ctx of the release-ledger row", row["ctx"], r["ctx"])
            seqs.append(row["seq"])
    yield same("release ledger ascending", seqs == sorted(set(seqs)) and all(s >= 1 for s in seqs), True)


_MAKERS: tuple[Callable[[Mapping[str, Any]], Iterator[Check]], ...] = (
    _documents,
    _rounds,
    _times,
    _ledgers,
    utility_checks,
    audit_checks,
    governance_checks,
)


def _row(row: Any) -> Row:
    fields = exact_keys(row, shape.ROW_KEYS, "ledger row")
    body, kind = canonical(fields["body"]), fields["kind"]
    if type(fields["seq"]) is not int or not 0 <= fields["seq"] < 2**53 or not isinstance(kind, str):
        raise ValueError("a ledger row's seq is a non-negative integer and its kind is text")
    return Row(fields["seq"], kind, body, bytes.fromhex(fields["previous"]), bytes.fromhex(fields["hash"]))


def _pairs(pairs: Sequence[tuple[int, int]], none: str = "none differs") -> str:
    return "; ".join(f"round {r}, attempt {a}" for r, a in pairs) or none
