"""The published JSON Schema of the report: this module is its one source.

`make schema` writes `dp/schemas/secagg-report-2.schema.json` from it, `make lint` compares. Every object is closed and
every key required, so a report with a key more or less is no report. The words beside the fields are what readers of
the file, of the page and of the Markdown see.
"""

import json
import sys

from dp.report_facts import EVALUATION_PEOPLE, GOVERNANCE, METHODS, SCHEMA, SETS
from dp.report_schema_groups import GROUPS
from dp.report_schema_terms import (
    Schema,
    array,
    boolean,
    choice,
    count,
    either,
    hexadecimal,
    integer,
    mapping,
    obj,
    text,
)

FILE = "schemas/secagg-report-2.schema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_CLIENT = integer("client id of the roster", 1)
_IDS = array(_CLIENT, "client ids, ascending")
_NOTHING: Schema = {"type": "null"}


def _document(what: str) -> Schema:
    return obj(
        f"{what}, signed by the owner",
        document={"type": "object", "description": f"the {what}, SPEC 2"},
        sha256=hexadecimal("SHA-256 of its canonical bytes", 64),
        digest=hexadecimal("its digest in the protocol", 64),
        signature=hexadecimal("the owner's Ed25519 signature", None),
    )


def _facts() -> Schema:
    return obj(
        "what was stated and signed; everything else follows from it",
        run=obj(
            "the run",
            id=text("name of the run"),
            started=count("Unix seconds"),
            ended=count("Unix seconds"),
            evaluation_data=text("what the test records are"),
            evaluation_people=choice("whether their people are outside the unit", EVALUATION_PEOPLE),
        ),
        manifest=_document("manifest"),
        roster=_document("roster"),
        statements=array(_statement(), "one per client that sent one, ascending by client"),
        rounds=array(_attempt(), "one per attempt, ascending"),
        utility=array(_result(), "results of the evaluation"),
        audit=either(_audit(), _NOTHING),
        governance=mapping(
            "^(" + "|".join(GOVERNANCE) + ")$", text("the operator's statement"), "what operators state"
        ),
        versions=mapping("^.*$", text("version"), "distributions that computed the run"),
    )


def _statement() -> Schema:
    row = obj(
        "one row of the privacy ledger, SPEC 11.1",
        seq=count("number of the row"),
        kind=choice("kind of the row", ("genesis", "charge")),
        body={"type": "object", "description": "genesis: which book; charge: task, manifest, round, attempt, event"},
        previous=hexadecimal("hash of the row before", 64),
        hash=hexadecimal("hash of this row", 64),
    )
    body = obj(
        "a client's own account of its privacy ledger",
        client_id=_CLIENT,
        name=text("the client's name"),
        manifest_digest=hexadecimal("manifest of the task", 64),
        silo=text("the ledger's silo"),
        population=text("the ledger's population"),
        seq=count("last row"),
        head=hexadecimal("hash of the last row", 64),
        rows=array(row, "every row since the ledger began"),
    )
    return obj("statement", statement=body, signature=hexadecimal("the client's Ed25519 signature", None))


def _attempt() -> Schema:
    row = obj(
        "signed row of the release ledger, SPEC 8.1",
        seq=integer("number of the row", 1),
        ctx=hexadecimal("context", 64),
        root_u2=hexadecimal("Merkle root of the sharing clients", 64),
        hash_u3=hexadecimal("hash of the clients in the sum", 64),
        head=hexadecimal("hash of the row", 64),
        signature=hexadecimal("the server's Ed25519 signature", None),
    )
    return obj(
        "one attempt of one round",
        round=integer("training round", 1),
        attempt=count("attempt of the round"),
        status=choice("how it ended", ("released", "aborted")),
        reason=text("why it was aborted; empty otherwise"),
        ctx=hexadecimal("context of the attempt", 64),
        **dict.fromkeys(SETS, _IDS),
        drops=mapping("^[1-9][0-9]*$", text("reason"), "client id -> why the server left it out"),
        ledger_row=either(row, _NOTHING),
        aggregate_digest=hexadecimal("digest of the published sum; empty if aborted", None),
        model_digest=hexadecimal("digest of the model afterwards", 64),
        started=count("Unix seconds"),
        ended=count("Unix seconds"),
    )


def _result() -> Schema:
    return obj(
        "one comparator on one set of test records",
        method=choice("what was trained", METHODS),
        client_id=either(_CLIENT, _NOTHING),
        test_client_id=either(_CLIENT, _NOTHING),
        seed=count("which repetition"),
        steps_per_client=count("gradient steps of one client"),
        confusion=array(array(count("test records"), "one true class"), "row: true class, column: predicted class"),
        twice_wins=either(array(count("2 for a pair in order, 1 for a tie"), "per class; gives AUC"), _NOTHING),
    )


def _audit() -> Schema:
    measure = obj(
        "a figure to draw",
        quantity=text("what is measured"),
        value=text("measured, a decimal where it is a number"),
        claim=text("claimed, likewise"),
        ceiling=text("largest value that the check could have shown; empty if none"),
    )
    check = obj(
        "one check",
        name=text("what is checked"),
        passed=boolean("whether it holds"),
        found=text("what was measured"),
        bound=text("what it may be"),
        sees=text("which faults it shows"),
        blind=text("what it does not show"),
        comparisons=count("statistical comparisons made"),
    )
    check["properties"]["measure"] = measure  # where there is a figure to draw
    return obj(
        "result of the empirical audit",
        format=text("format of the audit"),
        subject=mapping("^.*$", text("value"), "what was audited"),
        passed=boolean("whether every check holds"),
        false_alarm_probability=text("of the whole audit"),
        checks=array(check, "every check"),
    )


def schema() -> Schema:
    """The whole schema."""
    groups: list[Schema] = []
    for number, (name, (meaning, fields)) in enumerate(GROUPS.items(), start=1):
        head: dict[str, Schema] = {"number": {"const": number}, "id": {"const": name}, "title": text("heading")}
        groups.append(obj(meaning, **head, **fields))
    report = obj(
        "Accounting report of a run. Figures are integers or decimal strings; there are no floats. The groups are a "
        "pure function of the facts: `secagg report verify` computes them again and compares every leaf.",
        schema={"const": SCHEMA},
        facts=_facts(),
        groups={
            "type": "array",
            "description": "the fifteen groups, in order",
            "prefixItems": groups,
            "items": False,
            "minItems": len(groups),
        },
    )
    return {"$schema": DIALECT, "$id": f"urn:{SCHEMA.replace('/', ':')}", "title": SCHEMA, **report}


def schema_text() -> str:
    """The file's text."""
    return json.dumps(schema(), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
