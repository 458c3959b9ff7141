"""The accounting report on disk: facts of a run gathered, signed, written, and checked again from the files alone.

`dp.report` recomputes every figure; this module adds what only the protocol knows: the owner's signatures under
roster and manifest, the server's under the report and under each release-ledger head, each client's under its
statement, and the digests that tie rounds to manifest, roster and model.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dp.errors import PrivacyError, ReportError
from dp.report import (
    Check,
    MethodResult,
    ReportFacts,
    SignedDocument,
    SignedStatement,
    build_report,
    rebuild_report,
    render_html,
    verify_report,
)
from dp.report_checks import statement_checks
from dp.report_markdown import render_markdown
from ffm.client_run import STATEMENT_KIND
from ffm.run_folder import RoundFacts, RunState, write_atomic
from protocol import manifest as manifest_module
from protocol import roster as roster_module
from protocol import signed
from protocol.context import announcement_error, context
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.messages import Announcement, LedgerRow, Statement
from protocol.release import ReleaseLedger, follow
from protocol.roster import Roster, parse_model
from secagg.errors import SecAggError
from secagg.signing import SigningKey, VerifyKey
from secagg.types import ClientId

log = logging.getLogger(__name__)

KIND = "application/vnd.secagg.report.v1+json"
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)  # JSON of another shape
REPORT, OWNER_FILE = "report.json", "owner.pub.hex"
DISTRIBUTIONS = (
    "secagg-ffm",
    "cryptography",
    "dp-accounting",
    "grpcio",
    "numpy",
    "opacus",
    "peft",
    "torch",
    "transformers",
)


@dataclass(frozen=True, slots=True)
class Documents:
    """The owner's two documents with their signatures, and the owner's key."""

    manifest: Manifest
    manifest_signature: bytes
    roster: Roster
    roster_signature: bytes
    owner: VerifyKey


def installed_versions() -> dict[str, str]:
    """Versions of what computed the run; a distribution that is not installed is left out."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def gather(
    documents: Documents,
    state: RunState,
    statements: Mapping[ClientId, Statement],
    utility: Sequence[MethodResult],
    evaluation_data: str,
) -> ReportFacts:
    """The facts of a run. A statement that is not its client's, or contradicts the run, is left out: one client must
    not cancel everybody's report, and the report names whose statement is missing."""
    ended = max([state.started, *(row.ended for row in state.rounds)])
    facts = ReportFacts(
        run_id=state.run_id,
        started=state.started,
        ended=ended,
        manifest=SignedDocument(
            json.loads(documents.manifest.to_bytes()),  # as signed: keys that are left out stay out
            documents.manifest.digest().hex(),
            documents.manifest_signature.hex(),
        ),
        roster=SignedDocument(
            json.loads(documents.roster.to_bytes()), documents.roster.root().hex(), documents.roster_signature.hex()
        ),
        statements=(),
        rounds=[asdict(row) for row in state.rounds],
        utility=utility,
        evaluation_data=evaluation_data,
        versions=installed_versions(),
    )
    plain = json.loads(signed.canonical(facts.to_json()))
    accepted = []
    for client, statement in sorted(statements.items()):
        try:
            body = signed.verify(
                STATEMENT_KIND, statement.body, statement.signature, documents.roster.verify_key(client)
            )
            # The id first and alone: names of checks hold it, and they are logged.
            wrong = [] if isinstance(body, dict) and body.get("client_id") == client else ["client_id"]
            if not wrong:
                entry = {"statement": body, "signature": statement.signature.hex()}
                wrong = [check.name for check in statement_checks(plain, entry) if not check.ok]
        except (*_MALFORMED, ProtocolError, PrivacyError) as error:
            wrong = [type(error).__name__]
        if wrong:
            log.warning("the statement of client %d is left out of the report: %s", client, wrong[0])
        else:
            accepted.append(SignedStatement(body, statement.signature.hex()))
    return replace(facts, statements=accepted)


def write_report(folder: Path, facts: ReportFacts, server: SigningKey, owner: VerifyKey) -> dict[str, Any]:
    """Build, verify, sign and write report.json with its signature, report.html, report.md and the owner's key.

    Raises:
        ReportError: The report that was built does not verify: nothing is written.
    """
    return _write(folder / REPORT, build_report(facts), server, owner)


def update_report(folder: Path, facts: ReportFacts, server: SigningKey, owner: VerifyKey) -> dict[str, Any]:
    """As `write_report`, where there may be a report already: of one over the same rounds all stays but the statements,
    so nothing that was attached to it is lost, and where no statement is new it is not touched.

    Raises:
        ReportError: E603, the report that is there does not verify; and as `write_report`.
    """
    path = folder / REPORT
    if not path.exists():
        return write_report(folder, facts, server, owner)
    report, new = read_verified(path), json.loads(signed.canonical(facts.to_json()))
    there = report["facts"]
    if there["rounds"] != new["rounds"]:
        return write_report(folder, facts, server, owner)
    if there["statements"] == new["statements"]:
        return report
    return _write(path, rebuild_report({**there, "statements": new["statements"]}), server, owner)


def _write(path: Path, report: dict[str, Any], server: SigningKey, owner: VerifyKey) -> dict[str, Any]:
    body = signed.canonical(report)
    failed = [check for check in verify_report(report) if not check.ok]
    if failed:
        raise ReportError(
            f"the report does not verify: {failed[0].name}", found=failed[0].found, expected=failed[0].expected
        )
    write_atomic(path, body)
    write_atomic(path.with_name(path.name + ".sig"), signed.sign(KIND, body, server))
    write_atomic(path.with_suffix(".html"), render_html(report).encode())
    write_atomic(path.with_suffix(".md"), render_markdown(report).encode())
    write_atomic(path.with_name(OWNER_FILE), owner.to_bytes().hex().encode() + b"\n")
    return report


def read_verified(path: Path) -> dict[str, Any]:
    """A report whose figures follow from its facts; signatures are `verify_files`'s to check.

    Raises:
        ReportError: E602, not readable; E603, a figure does not follow. DocumentError: not canonical JSON.
    """
    report = signed.parse("report", _read(path))
    failed = [check for check in verify_report(report, prv=False) if not check.ok]
    if failed:
        raise ReportError(
            f"the figures of {path} do not follow from its facts",
            found=f"{len(failed)} failed checks, first: {failed[0].name}",
            expected="none",
            do=f"secagg report verify {path}",
            code="E603",
        )
    whole: dict[str, Any] = report
    return whole


def attach(path: Path, server: SigningKey, audit: Path | None, governance: Path | None) -> dict[str, Any]:
    """Put an audit's result (group 11) or the operator's statements (group 14) into a finished report; sign it again.

    Args:
        path: report.json of a run; the files beside it are written anew.
        server: The key that signed the report.
        audit: JSON as `secagg audit` writes it.
        governance: A JSON object of texts, with keys of `dp.report_facts.GOVERNANCE`.

    Raises:
        ReportError: E602, a file that cannot be read; E603, the report does not verify; E604, another server's report;
            E601, the new facts contradict the others. DocumentError: not canonical JSON.
    """
    facts = read_verified(path)["facts"]
    key = facts["roster"]["document"]["server"]["identity_key"]
    if server.verify_key.to_bytes().hex() != key:
        raise ReportError(
            "another server's report",
            found=f"this server's key {server.verify_key.fingerprint()}",
            expected=f"{VerifyKey(bytes.fromhex(key)).fingerprint()}, as in the report's roster",
            do="give the folder of the server that ran it",
            code="E604",
        )
    if audit is not None:
        facts["audit"] = _json(audit)
    if governance is not None:
        facts["governance"] = _json(governance)
    owner = VerifyKey(bytes.fromhex(_read(path.with_name(OWNER_FILE)).decode().strip()))
    return _write(path, rebuild_report(facts), server, owner)


def _json(path: Path) -> Any:
    """JSON that people may have written by hand: any layout, but each key once."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    try:
        value = json.loads(_read(path), object_pairs_hook=once)
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise ReportError(
            "a file for the report is not what it should be",
            found=f"{path}: {error}",
            expected="a JSON object, each key once",
            code="E602",
        ) from None
    return value


def verify_files(path: Path, owner: VerifyKey | None) -> list[Check]:
    """All checks of a report file, its signatures included.

    Args:
        path: report.json; its signature is expected beside it as report.json.sig.
        owner: The consortium owner's key, from a source that the auditor trusts; None takes the one beside the report
            and says so, because a forger could have replaced it too.
    """
    body, signature = _read(path), _read(path.with_name(path.name + ".sig"))
    report = signed.parse("report", body)
    checks = verify_report(report)
    if not isinstance(report, dict) or any(check.name == "shape of the report" for check in checks):
        return checks
    pinned = owner is not None
    if owner is None:
        owner = VerifyKey(bytes.fromhex(_read(path.with_name(OWNER_FILE)).decode().strip()))
    checks.append(
        Check(
            "owner's key",
            True,
            f"{owner.fingerprint()} ({'given by the auditor' if pinned else 'from beside the report: compare it'})",
            "a key that the auditor trusts",
        )
    )
    try:
        checks += _signatures(report["facts"], body, signature, owner)
    except (SecAggError, LookupError, TypeError, ValueError, AttributeError) as error:
        checks.append(Check("signed documents", False, str(error), "documents that the owner signed"))
    return checks


def _signatures(facts: Mapping[str, Any], body: bytes, signature: bytes, owner: VerifyKey) -> Iterator[Check]:
    roster = _document(roster_module.KIND, facts["roster"], owner, Roster)
    manifest = _document(manifest_module.KIND, facts["manifest"], owner, Manifest)
    yield Check("owner's signature on roster and manifest", True, "good", "good")
    yield _equal("manifest digest", facts["manifest"]["digest"], manifest.digest().hex())
    yield _equal("roster root", facts["roster"]["digest"], roster.root().hex())
    server = VerifyKey(bytes.fromhex(roster.server.identity_key))
    yield _signed("server's signature on the report", KIND, body, signature, server)
    for entry in facts["statements"]:
        client = ClientId(entry["statement"]["client_id"])
        key = roster.verify_key(client)
        statement = signed.canonical(entry["statement"])
        name = f"client {client}: signature on its privacy-ledger statement"
        yield _signed(name, STATEMENT_KIND, statement, bytes.fromhex(entry["signature"]), key)
    yield from _release_ledger([RoundFacts(**row) for row in facts["rounds"]], manifest, roster, server)


def _release_ledger(
    rounds: Sequence[RoundFacts], manifest: Manifest, roster: Roster, server: VerifyKey
) -> Iterator[Check]:
    """The rows of the report are consecutive, signed by the server, and each belongs to the round it stands in."""
    params = manifest.secagg_params()
    model: bytes | None = None
    ledger: ReleaseLedger | None = ReleaseLedger(manifest.digest())
    for facts in rounds:
        announcement = Announcement(
            facts.round,
            facts.attempt,
            manifest.digest(),
            roster.root(),
            model or bytes(32),
            tuple(ClientId(c) for c in facts.cohort),
            0,  # enters no digest
        )
        problem = announcement_error(announcement, roster, manifest)
        yield Check(f"round {facts.round}: cohort", problem is None, problem or "as signed", "as signed")
        if model is not None:  # the model before the first round is not in the report
            yield _equal(f"round {facts.round}: ctx", facts.ctx, context(announcement, params).hex())
        model = bytes.fromhex(facts.model_digest)
        if facts.ledger_row is None:
            continue
        raw = facts.ledger_row
        hashes = (bytes.fromhex(raw[name]) for name in ("ctx", "root_u2", "hash_u3", "signature"))
        row = LedgerRow(raw["seq"], facts.round, facts.attempt, *hashes)
        yield _equal(f"round {facts.round}: ledger row's ctx", raw["ctx"], facts.ctx)
        if ledger is not None:  # after a break nothing more can be said
            ledger = follow(ledger, (row,), server)
            good = ledger is not None and ledger.head.hex() == raw["head"]
            yield Check(f"round {facts.round}: signed release-ledger row", good, "chain" if good else "broken", "chain")


def _document(kind: str, entry: Mapping[str, Any], owner: VerifyKey, model: type[Any]) -> Any:
    body = signed.canonical(entry["document"])
    signed.verify(kind, body, bytes.fromhex(entry["signature"]), owner)
    return parse_model(model, kind, body)


def _signed(name: str, kind: str, body: bytes, signature: bytes, key: VerifyKey) -> Check:
    try:
        signed.verify(kind, body, signature, key)
    except ProtocolError:
        return Check(name, False, "does not verify", f"good under {key.fingerprint()}")
    return Check(name, True, f"good under {key.fingerprint()}", "good")


def _equal(name: str, found: object, expected: object) -> Check:
    return Check(name, found == expected, str(found), str(expected))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReportError(
            "a file of the report cannot be read",
            found=f"{path}: {type(error).__name__}",
            expected="report.json, report.json.sig and owner.pub.hex beside each other",
            do="give the path of report.json in the run's folder, or --owner with the owner's key",
            code="E602",
        ) from None
