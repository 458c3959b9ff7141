"""What the accounting report is built from: facts that somebody states and signs, and nothing derived.

Everything in the report that is not a fact is recomputed from the facts by `dp.report_claims` and `dp.report_groups`.
A fact is bound by what others signed (manifest, roster, privacy-ledger statements, release-ledger rows) or is the
server's own word (times, drop reasons, confusion matrices, versions); the report says which is which in group 15.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dp.errors import ReportError
from dp.store import canonical

SCHEMA = "secagg-report/2"

Method = Literal[
    "federated-dp",
    "federated-dp-other-protocol",
    "federated-no-dp",
    "centralised-dp",
    "centralised-no-dp",
    "alone-dp",
    "alone-no-dp",
    "logistic-regression",
    "majority",
]
METHODS: dict[str, str] = {
    "federated-dp": "this federation, with differential privacy",
    "federated-dp-other-protocol": "the same federation under the other protocol, at the same ε and δ",
    "federated-no-dp": "the same federation without clip and noise: not private",
    "centralised-dp": "all records in one place, with differential privacy at the same ε and δ",
    "centralised-no-dp": "all records in one place: not private",
    "alone-dp": "one hospital by itself, with differential privacy at the same ε and δ",
    "alone-no-dp": "one hospital by itself: not private",
    "logistic-regression": "plain logistic regression on all records: not private",
    "majority": "the most frequent class, always",
}
ALONE: tuple[Method, ...] = ("alone-dp", "alone-no-dp")
NOT_TRAINED_IN_STEPS: tuple[Method, ...] = ("majority", "logistic-regression")

EvaluationPeople = Literal["outside-the-unit", "inside-the-unit", "no-evaluation"]
EVALUATION_PEOPLE: dict[str, str] = {
    "outside-the-unit": "public data, or held-out records whose people are in no training set: outside the unit",
    "inside-the-unit": "people of the unit: the results below are released without noise, and ε does not cover them",
    "no-evaluation": "nothing was evaluated",
}

# What the operator may state for group 14 and for the registry entry; each a sentence or two.
GOVERNANCE: dict[str, str] = {
    "controllers": "who decides on purposes and means (GDPR article 4(7), or covered entity under HIPAA)",
    "contact": "where questions about this report go",
    "purpose": "what the model is for",
    "region": "region that the data describe, or whose law applies",
    "legal_basis": "legal basis of the training (GDPR articles 6 and 9), or permission under 45 CFR 164.512(i)",
    "impact_assessment": "data-protection impact assessment (GDPR article 35): reference and date",
    "ethics_approval": "vote of an ethics committee or IRB: reference and date",
    "agreements": "contracts between the organisations (GDPR articles 26 and 28, BAA): reference",
    "retention": "how long model, report and ledgers are kept",
    "model_risk": "risk class and documentation of the system that uses the model (EU AI Act)",
}

FACTS_KEYS = frozenset(
    {"run", "manifest", "roster", "statements", "rounds", "utility", "audit", "governance", "versions"}
)
RUN_KEYS = frozenset({"id", "started", "ended", "evaluation_data", "evaluation_people"})
DOCUMENT_KEYS = frozenset({"document", "sha256", "digest", "signature"})
STATEMENT_KEYS = frozenset({"statement", "signature"})
STATEMENT_BODY_KEYS = frozenset({"client_id", "name", "manifest_digest", "silo", "population", "seq", "head", "rows"})
ROW_KEYS = frozenset({"seq", "kind", "body", "previous", "hash"})
ROUND_KEYS = frozenset(
    {
        "round",
        "attempt",
        "status",
        "reason",
        "ctx",
        "cohort",
        "advertised",
        "shared",
        "masked",
        "checked",
        "unmasked",
        "drops",
        "ledger_row",
        "aggregate_digest",
        "model_digest",
        "started",
        "ended",
    }
)
LEDGER_ROW_KEYS = frozenset({"seq", "ctx", "root_u2", "hash_u3", "head", "signature"})
METHOD_KEYS = frozenset(
    {"method", "client_id", "test_client_id", "seed", "steps_per_client", "confusion", "twice_wins"}
)
AUDIT_KEYS = frozenset({"format", "subject", "passed", "false_alarm_probability", "checks"})
AUDIT_CHECK_KEYS = frozenset({"name", "passed", "found", "bound", "sees", "blind", "comparisons"})
AUDIT_MEASURE_KEYS = frozenset({"quantity", "value", "claim", "ceiling"})
SETS = ("cohort", "advertised", "shared", "masked", "checked", "unmasked")


@dataclass(frozen=True, slots=True)
class SignedDocument:
    """An owner-signed document as parsed JSON, its protocol digest (hex) and its detached signature (hex)."""

    document: Mapping[str, Any]
    digest: str
    signature: str

    def to_json(self) -> dict[str, Any]:
        """Adds SHA-256 of the canonical bytes, which `dp` can recompute without knowing the protocol's labels."""
        return {
            "document": self.document,
            "sha256": hashlib.sha256(canonical(self.document)).hexdigest(),
            "digest": self.digest,
            "signature": self.signature,
        }


@dataclass(frozen=True, slots=True)
class SignedStatement:
    """A client's own account of its privacy ledger and its signature (hex) over the canonical bytes.

    `statement`: client_id, name, manifest_digest, silo, population, seq and head of the ledger, and `rows`: every row
    of the ledger as {seq, kind, body, previous, hash}; the genesis row first.
    """

    statement: Mapping[str, Any]
    signature: str


@dataclass(frozen=True, slots=True)
class MethodResult:
    """One comparator, trained once, on one set of test records.

    Attributes:
        method: Which comparator.
        confusion: Integer counts, row = true class, column = predicted class.
        steps_per_client: Gradient steps of one client; 0 for what is not trained in steps.
        client_id: The hospital that trained, for ``alone-dp`` and ``alone-no-dp``; None otherwise.
        test_client_id: Whose test records; None: the common test split, or all hospitals' test records together.
        seed: Which repetition.
        twice_wins: For each class twice the number of pairs (record of the class, record of another class) in which
            the former has the higher score for the class, a tie counted once: from this AUC follows exactly.
    """

    method: Method
    confusion: tuple[tuple[int, ...], ...]
    steps_per_client: int
    client_id: int | None = None
    test_client_id: int | None = None
    seed: int = 0
    twice_wins: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """Everything that the caller states. Times are Unix seconds; digests and signatures lowercase hex.

    Attributes:
        run_id: Name of the run.
        started: First second of the run.
        ended: Last second of the run.
        manifest: digest is the protocol's manifest digest.
        roster: Membership; digest is the protocol's roster root.
        statements: One per client that sent one; a client without is named in the report.
        rounds: One mapping per attempt, with exactly the keys `ROUND_KEYS`; sets are ascending client ids.
        utility: Comparators on one split; may be empty ("not measured").
        evaluation_data: One sentence: what the test split is.
        versions: Distribution name -> version, as text.
        evaluation_people: Whether the people in it are outside the unit of protection.
        audit: Result of the empirical audit, as `dp.audit` writes it, or None.
        governance: Statements of the operator, keys of `GOVERNANCE`.
    """

    run_id: str
    started: int
    ended: int
    manifest: SignedDocument
    roster: SignedDocument
    statements: Sequence[SignedStatement]
    rounds: Sequence[Mapping[str, Any]]
    utility: Sequence[MethodResult]
    evaluation_data: str
    versions: Mapping[str, str]
    evaluation_people: EvaluationPeople = "no-evaluation"
    audit: Mapping[str, Any] | None = None
    governance: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON of integers, text, true, false and null."""
        return {
            "run": {
                "id": self.run_id,
                "started": self.started,
                "ended": self.ended,
                "evaluation_data": self.evaluation_data,
                "evaluation_people": self.evaluation_people,
            },
            "manifest": self.manifest.to_json(),
            "roster": self.roster.to_json(),
            "statements": [
                {"statement": s.statement, "signature": s.signature}
                for s in sorted(self.statements, key=lambda s: int(s.statement["client_id"]))
            ],
            "rounds": list(self.rounds),
            "utility": [
                {
                    "method": m.method,
                    "client_id": m.client_id,
                    "test_client_id": m.test_client_id,
                    "seed": m.seed,
                    "steps_per_client": m.steps_per_client,
                    "confusion": [list(row) for row in m.confusion],
                    "twice_wins": None if m.twice_wins is None else list(m.twice_wins),
                }
                for m in self.utility
            ],
            "audit": None if self.audit is None else dict(self.audit),
            "governance": dict(sorted(self.governance.items())),
            "versions": dict(sorted(self.versions.items())),
        }


def exact_keys(value: Any, keys: frozenset[str], where: str) -> Mapping[str, Any]:
    """The mapping, if it has exactly these keys; ReportError otherwise (an unknown key is never ignored)."""
    if not isinstance(value, Mapping) or set(value) != keys:
        found = ", ".join(sorted(map(str, value))) if isinstance(value, Mapping) else type(value).__name__
        raise ReportError(f"{where} has another shape", found=found, expected=", ".join(sorted(keys)))
    return value
