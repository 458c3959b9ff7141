"""One run of four clinics as facts of a report: ledgers with a real chain, an aborted attempt, results and an
audit, so that every group has something to say."""

import json
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dp import report_facts as shape
from dp.ledger import Charge, PrivacyLedger
from dp.report import MethodResult, ReportFacts, SignedDocument, SignedStatement, build_report
from dp.report_figures import planned_event
from dp.store import canonical

DIGEST, ROOT = "4f" * 32, "9b" * 32
T0 = 1_760_000_000


def manifest() -> dict[str, Any]:
    return {
        "version": 1,
        "task": "icd-chapters",
        "data": "diagnosis texts of four clinics",
        "base_model": {"name": "bert-tiny", "files": [{"path": "model.safetensors", "sha256": "12" * 32}]},
        "adapter": {
            "method": "ffa-lora",
            "rank": 4,
            "alpha": 8,
            "virtual_tokens": 0,
            "target_modules": ["query", "value"],
            "seed": 17,
            "tensors": [{"name": "b", "shape": [128, 4]}, {"name": "head", "shape": [3, 128]}],
            "personal": [],
        },
        "training": {
            "task": "sequence-classification",
            "labels": ["I", "II", "III"],
            "max_length": 32,
            "optimizer": "adam",
            "learning_rate": "0.002",
            "rounds": 4,
            "local_steps": 10,
            "expected_batch": 256,
            "proximal": "0",
            "server": {"optimizer": "fedavg", "learning_rate": "1", "beta1": "0", "beta2": "0", "tau": "0"},
        },
        "privacy": {
            "protocol": "R1",
            "unit": "record",
            "adjacency": "add-or-remove-one",
            "records_per_person": 1,
            "sampling_numerator": 1,
            "sampling_denominator": 8,
            "scale": 65536,
            "clip_steps": 65536,
            "noise_steps": 98304,
            "epsilon": "8",
            "delta": "0.000001",
            "max_records": 10000,
            "people_in_several_silos": "none",
        },
        "aggregation": {
            "graph": "complete",
            "assurance": "masking",
            "cipher": "aes-256-ctr",
            "num_clients": 4,
            "max_corrupt": 1,
            "max_dropouts": 1,
            "min_cohort": 3,
            "slots_per_word": 2,
            "scale": 65536,
            "bound": 2097152,
            "chunk_words": 4096,
        },
    }


def roster() -> dict[str, Any]:
    def peer(k: int) -> dict[str, Any]:
        return {"name": f"site-{k}", "identity_key": f"{k:064x}", "tls_key_sha256": f"{k + 100:064x}"}

    clients = [{**peer(k), "client_id": k} for k in (1, 2, 3, 4)]
    return {"consortium": "Test clinics", "version": 1, "server": peer(9), "clients": clients}


def statement(client: int, charges: list[Charge]) -> dict[str, Any]:
    with (
        TemporaryDirectory() as folder,
        PrivacyLedger.open(Path(folder, "book", "ledger.db"), silo=f"site-{client}", population="codes") as ledger,
    ):
        for charge in charges:
            ledger.charge(charge)
        rows = ledger.rows()
    return {
        "client_id": client,
        "name": f"site-{client}",
        "manifest_digest": DIGEST,
        "silo": f"site-{client}",
        "population": "codes",
        "seq": rows[-1].seq,
        "head": rows[-1].hash.hex(),
        "rows": [
            {"seq": r.seq, "kind": r.kind, "body": r.value(), "previous": r.previous.hex(), "hash": r.hash.hex()}
            for r in rows
        ],
    }


def charges(*keys: tuple[int, int]) -> list[Charge]:
    return [Charge("icd-chapters", DIGEST, r, a, planned_event(manifest())) for r, a in keys]


def attempt(round_: int, attempt_: int, **changes: Any) -> dict[str, Any]:
    everybody, start = [1, 2, 3, 4], T0 + 100 * round_ + 40 * attempt_
    row = {"seq": round_, "ctx": f"{round_:064x}", "root_u2": "aa" * 32, "hash_u3": "bb" * 32}
    return {
        "round": round_,
        "attempt": attempt_,
        "status": "released",
        "reason": "",
        "ctx": f"{round_:064x}",
        **dict.fromkeys(shape.SETS, everybody),
        "drops": {},
        "ledger_row": {**row, "head": f"{round_ + 7:064x}", "signature": "4c" * 64},
        "aggregate_digest": f"{round_ + 70:064x}",
        "model_digest": f"{round_ + 80:064x}",
        "started": start,
        "ended": start + 31,
        **changes,
    }


def audit() -> dict[str, Any]:
    check = {"found": "ε >= 2.31 at 99.9 %", "bound": "not refuting 4.2", "sees": "no clip", "blind": "noise 1.2x off"}
    measure = {"quantity": "ε", "value": "2.31", "claim": "4.2", "ceiling": "5.13"}
    return {
        "format": "secagg-audit/1",
        "subject": {"task": "icd-chapters", "steps": "200"},
        "passed": True,
        "false_alarm_probability": "at most 1e-06, over all checks",
        "checks": [
            {"name": "canaries: q = 1", "passed": True, **check, "comparisons": 1, "measure": measure},
            {"name": "ledger: a restart forgets nothing", "passed": True, **check, "comparisons": 0},
        ],
    }


def facts(**changes: Any) -> ReportFacts:
    other = Charge("pilot", "77" * 32, 1, 0, planned_event(manifest()))
    both = charges((1, 0), (2, 0), (2, 1))
    aborted = {"status": "aborted", "reason": "too few", "ledger_row": None, "aggregate_digest": ""}
    fields: dict[str, Any] = {
        "run_id": "run-20261007-1",
        "started": T0,
        "ended": T0 + 400,
        "manifest": SignedDocument(manifest(), DIGEST, "a1" * 64),
        "roster": SignedDocument(roster(), ROOT, "c2" * 64),
        "statements": [
            SignedStatement(
                statement(k, [other, *both] if k == 2 else both if k < 4 else charges((1, 0), (2, 0))), "e3" * 64
            )
            for k in (1, 2, 3, 4)
        ],
        "rounds": [
            attempt(1, 0),
            attempt(2, 0, **aborted, masked=[1, 2], checked=[], unmasked=[], drops={"3": "TIMED_OUT"}),
            attempt(
                2,
                1,
                shared=[1, 2, 3],
                masked=[1, 2, 3],
                checked=[1, 2, 3],
                unmasked=[1, 2, 3],
                drops={"4": "TIMED_OUT"},
            ),
        ],
        "utility": [
            MethodResult("federated-dp", ((30, 5, 5), (4, 25, 1), (3, 3, 24)), 20, twice_wins=(4321, 3987, 4000)),
            MethodResult(
                "federated-dp", ((29, 6, 5), (4, 25, 1), (3, 3, 24)), 20, seed=1, twice_wins=(4300, 3900, 3900)
            ),
            *(MethodResult("federated-dp", ((8, 1, k), (1, 8, 1), (1, k, 8)), 20, None, k) for k in (1, 2, 3)),
            MethodResult("federated-no-dp", ((36, 2, 2), (1, 28, 1), (1, 1, 28)), 20),
            *(MethodResult("alone-dp", ((20, 10, 10), (9, 20 - k, 1 + k), (10, 10, 10)), 20, k) for k in (1, 2, 3, 4)),
            MethodResult("majority", ((40, 0, 0), (30, 0, 0), (30, 0, 0)), 0),
        ],
        "evaluation_data": "public code texts; nobody's records",
        "evaluation_people": "outside-the-unit",
        "audit": audit(),
        "governance": {"purpose": "coding of diagnoses, version 3", "region": "EU", "contact": "desk 7"},
        "versions": {"dp-accounting": "0.6.0", "secagg-ffm": "0.1.0"},
    }
    return ReportFacts(**{**fields, **changes})


@lru_cache(maxsize=1)
def built() -> bytes:
    """Canonical bytes of the report of these facts."""
    return canonical(build_report(facts(), prv=False))


def sample_report() -> dict[str, Any]:
    """A fresh copy."""
    value: dict[str, Any] = json.loads(built())
    return value


def group(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(g for g in report["groups"] if g["id"] == name)
