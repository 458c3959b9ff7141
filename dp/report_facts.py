"""What the accounting report is built from: facts that somebody states and signs, and nothing derived.

Everything in the report that is not a fact is recomputed from the facts by `dp.report_claims` and `dp.report_groups`.
A fact is bound by what others signed (manifest, roster, privacy-ledger statements, release-ledger rows) or is the
server's own word (times, drop reasons, confusion matrices, versions); the report says which is which in group 15.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dp.errors import ReportError
from dp.store import canonical

SCHEMA = "secagg-report/1"

Method = Literal["federated-dp", "federated-no-dp", "alone-dp", "majority"]
METHODS: tuple[Method, ...] = ("federated-dp", "federated-no-dp", "alone-dp", "majority")

FACTS_KEYS = frozenset({"run", "manifest", "roster", "statements", "rounds", "utility", "versions"})
RUN_KEYS = frozenset({"id", "started", "ended", "evaluation_data"})
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
METHOD_KEYS = frozenset({"method", "client_id", "steps_per_client", "confusion"})
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
    """One comparator on the common test split.

    Attributes:
        method: Which comparator.
        confusion: Integer counts, row = true class, column = predicted class.
        steps_per_client: Gradient steps of one client; 0 for the majority class.
        client_id: The hospital for ``alone-dp``; None otherwise.
    """

    method: Method
    confusion: tuple[tuple[int, ...], ...]
    steps_per_client: int
    client_id: int | None = None


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """Everything that the caller states. Times are Unix seconds; digests and signatures lowercase hex.

    Attributes:
        run_id: Name of the run.
        started: First second of the run.
        ended: Last second of the run.
        manifest: Protocol R1; digest is the protocol's manifest digest.
        roster: Membership; digest is the protocol's roster root.
        statements: One per client that sent one; a client without is named in the report.
        rounds: One mapping per attempt, with exactly the keys `ROUND_KEYS`; sets are ascending client ids.
        utility: Comparators on one split; may be empty ("not measured").
        evaluation_data: One sentence: what the test split is and whether its people are outside the unit.
        versions: Distribution name -> version, as text.
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

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON of integers, text, true, false and null."""
        return {
            "run": {
                "id": self.run_id,
                "started": self.started,
                "ended": self.ended,
                "evaluation_data": self.evaluation_data,
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
                    "steps_per_client": m.steps_per_client,
                    "confusion": [list(row) for row in m.confusion],
                }
                for m in self.utility
            ],
            "versions": dict(sorted(self.versions.items())),
        }


def exact_keys(value: Any, keys: frozenset[str], where: str) -> Mapping[str, Any]:
    """The mapping, if it has exactly these keys; ReportError otherwise (an unknown key is never ignored)."""
    if not isinstance(value, Mapping) or set(value) != keys:
        found = ", ".join(sorted(map(str, value))) if isinstance(value, Mapping) else type(value).__name__
        raise ReportError(f"{where} has another shape", found=found, expected=", ".join(sorted(keys)))
    return value
