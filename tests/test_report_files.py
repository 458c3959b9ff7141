"""Reports on disk: real signatures, real ledgers, and forgers who hold valid keys."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulator import Federation, Simulation, insecure_rng, make_manifest, random_values

from dp.ledger import PrivacyLedger
from dp.report_facts import ReportFacts
from dp.store import next_row
from ffm.client_run import STATEMENT_KIND, round_charge, statement_body
from ffm.report_files import KIND, Documents, attach, gather, update_report, verify_files, write_report
from ffm.run_folder import RoundFacts, RunState
from protocol import signed
from protocol.effects import Released
from protocol.manifest import sign_manifest
from protocol.messages import Statement
from protocol.roster import sign_roster
from secagg.signing import SigningKey
from secagg.types import ClientId, Phase

OWNER = SigningKey.generate(insecure_rng("owner"))
ROUNDS = 3


def _facts(simulation: Simulation) -> RoundFacts:
    session, outcome = simulation.server, simulation.outcome
    assert isinstance(outcome, Released)
    row = session.ledger.rows[-1]
    fields = ("ctx", "root_u2", "hash_u3", "signature")
    return RoundFacts(
        round=simulation.round,
        attempt=0,
        status="released",
        reason="",
        ctx=session.ctx.hex(),
        cohort=list(session.announcement.cohort),
        advertised=list(session.advertised),
        shared=list(session.shared),
        masked=list(session.masked),
        checked=list(session.checked),
        unmasked=list(session.unmasked),
        drops={str(client): reason.name for client, reason in sorted(session.drops.items())},
        ledger_row={
            "seq": row.seq,
            "head": session.ledger.head.hex(),
            **{name: getattr(row, name).hex() for name in fields},
        },
        aggregate_digest=bytes(32).hex(),
        model_digest=bytes(32).hex(),  # that every simulated round starts from
        started=1_700_000_000 + simulation.round,
        ended=1_700_000_000 + simulation.round + 1,
    )


@pytest.fixture(scope="module")
def run(whole: tuple[Path, Federation, ReportFacts]) -> tuple[Path, Federation]:
    return whole[:2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Federation, ReportFacts]:
    """Three real rounds, client 2 lost in the second; every client's real ledger; the report in a folder."""
    folder = tmp_path_factory.mktemp("run")
    federation = Federation.create(make_manifest())
    manifest = federation.manifest
    state = RunState("test-run", 1_700_000_000)
    ledger, memories = None, {}
    charged: dict[ClientId, list[int]] = {client: [] for client in federation.client_keys}
    for round_ in range(1, ROUNDS + 1):
        lost = {ClientId(2): Phase.SHARE_KEYS} if round_ == 2 else {}
        values = random_values(manifest, federation.client_keys)
        simulation = Simulation(federation, values, lost, ledger=ledger, memories=memories, round=round_)
        simulation.run()
        ledger, memories = simulation.server.ledger, simulation.memories
        for client in simulation.charged:
            charged[client].append(round_)
        state.rounds.append(_facts(simulation))
    statements = {}
    for client, key in federation.client_keys.items():
        name = federation.roster.member(client).name  # type: ignore[union-attr]
        with PrivacyLedger.open(folder / name / "ledger", silo=name, population="records") as book:
            for round_ in charged[client]:
                book.charge(round_charge(manifest, round_, 0))
            body = signed.canonical(statement_body(federation.setup(client), book))
        statements[client] = Statement(body, signed.sign(STATEMENT_KIND, body, key))
    documents = Documents(
        manifest,
        sign_manifest(manifest, OWNER)[1],
        federation.roster,
        sign_roster(federation.roster, OWNER)[1],
        OWNER.verify_key,
    )
    facts = gather(documents, state, statements, (), "not measured")
    write_report(folder, facts, federation.server_key, OWNER.verify_key)
    return folder, federation, facts


def _failed(path: Path) -> list[str]:
    return [check.name for check in verify_files(path, OWNER.verify_key) if not check.ok]


def test_an_honest_report_verifies(run: tuple[Path, Federation]) -> None:
    assert _failed(run[0] / "report.json") == []
    assert all(check.ok for check in verify_files(run[0] / "report.json", None))


def test_a_statement_that_comes_late_leaves_what_was_attached(
    whole: tuple[Path, Federation, ReportFacts], tmp_path: Path
) -> None:
    folder, federation, facts = whole
    late = tmp_path / "report.json"
    write_report(tmp_path, replace(facts, statements=facts.statements[1:]), federation.server_key, OWNER.verify_key)
    note = tmp_path / "governance.json"
    note.write_text('{"contact": "the desk on the second floor"}')
    attach(late, federation.server_key, None, note)
    update_report(tmp_path, facts, federation.server_key, OWNER.verify_key)
    assert _failed(late) == []
    found, there = (json.loads((f / "report.json").read_bytes())["facts"] for f in (tmp_path, folder))
    assert found == {**there, "governance": {"contact": "the desk on the second floor"}}
    written = late.read_bytes()
    update_report(tmp_path, facts, federation.server_key, OWNER.verify_key)
    assert late.read_bytes() == written  # nothing is new


def test_a_report_over_fewer_rounds_is_written_anew(
    whole: tuple[Path, Federation, ReportFacts], tmp_path: Path
) -> None:
    """The server went on after it had reported, and was killed before it reported again."""
    _, federation, facts = whole
    shorter = replace(facts, rounds=facts.rounds[:2], statements=())
    update_report(tmp_path, shorter, federation.server_key, OWNER.verify_key)
    update_report(tmp_path, facts, federation.server_key, OWNER.verify_key)
    assert _failed(tmp_path / "report.json") == []
    assert len(json.loads((tmp_path / "report.json").read_bytes())["facts"]["rounds"]) == ROUNDS


def test_another_owner_is_noticed(run: tuple[Path, Federation]) -> None:
    other = SigningKey.generate(insecure_rng("somebody")).verify_key
    assert [check for check in verify_files(run[0] / "report.json", other) if not check.ok]


def _forge(run: tuple[Path, Federation], tmp_path: Path, change: Callable[[Any, Federation], None]) -> list[str]:
    """Change a copy of the report and sign it again with the server's own, valid key."""
    folder, federation = run
    report = json.loads((folder / "report.json").read_bytes())
    before = copy.deepcopy(report)
    change(report, federation)
    assert report != before
    body = signed.canonical(report)
    (tmp_path / "report.json").write_bytes(body)
    (tmp_path / "report.json.sig").write_bytes(signed.sign(KIND, body, federation.server_key))
    return _failed(tmp_path / "report.json")


def _digit(text: str) -> str:
    index = max(i for i, c in enumerate(text) if c.isdigit())
    return text[:index] + ("7" if text[index] != "7" else "3") + text[index + 1 :]


def _epsilon(report: Any, federation: Federation) -> None:
    headline = report["groups"][3]["headline"]
    headline["epsilon"] = _digit(headline["epsilon"])


def _every_epsilon(report: Any, federation: Federation) -> None:
    """All of them, consistently: one lower in front of the point."""
    spent = report["groups"][3]["headline"]["epsilon"]
    lower = str(int(spent.split(".")[0]) - 1) + "." + spent.split(".")[1]
    text = json.dumps(report, ensure_ascii=False).replace(spent, lower)
    report.clear()
    report.update(json.loads(text))


def _resign_statement(report: Any, federation: Federation, client: int) -> None:
    entry = report["facts"]["statements"][client - 1]
    key = federation.client_keys[ClientId(client)]
    entry["signature"] = signed.sign(STATEMENT_KIND, signed.canonical(entry["statement"]), key).hex()


def _rechained(statement: Any, rows: list[Any]) -> None:
    """Rows with their chain and head made good again."""
    head, out = None, []
    for row in rows:
        made = next_row(head, row["kind"], row["body"])
        head = (made.seq, made.hash)
        out.append({**row, "seq": made.seq, "previous": made.previous.hex(), "hash": made.hash.hex()})
    assert head is not None
    statement["rows"], statement["seq"], statement["head"] = out, head[0], head[1].hex()


def _charge_left_out(report: Any, federation: Federation) -> None:
    """A client colludes: it drops its last charge, repairs its chain, and signs again."""
    statement = report["facts"]["statements"][0]["statement"]
    _rechained(statement, statement["rows"][:-1])
    _resign_statement(report, federation, 1)


def _smaller_charge(report: Any, federation: Federation) -> None:
    """More noise than the manifest has, in every charge of one client, chained and signed again."""
    statement = report["facts"]["statements"][0]["statement"]
    for row in statement["rows"][1:]:
        row["body"]["event"]["event"]["event"]["noise_steps"] *= 2
    _rechained(statement, statement["rows"])
    _resign_statement(report, federation, 1)


def _noisier_manifest(report: Any, federation: Federation) -> None:
    report["facts"]["manifest"]["document"]["privacy"]["noise_steps"] *= 2


def _smaller_sum(report: Any, federation: Federation) -> None:
    report["facts"]["rounds"][0]["masked"].pop()


def _other_ledger_row(report: Any, federation: Federation) -> None:
    row = report["facts"]["rounds"][1]["ledger_row"]
    row["hash_u3"] = _digit(row["hash_u3"])


def _round_left_out(report: Any, federation: Federation) -> None:
    del report["facts"]["rounds"][1]


@pytest.mark.parametrize(
    "change",
    [
        _epsilon,
        _every_epsilon,
        _charge_left_out,
        _smaller_charge,
        _noisier_manifest,
        _smaller_sum,
        _other_ledger_row,
        _round_left_out,
    ],
)
def test_a_forger_with_the_servers_key_is_found(
    change: Callable[[Any, Federation], None], run: tuple[Path, Federation], tmp_path: Path
) -> None:
    assert _forge(run, tmp_path, change)


def test_without_the_servers_key_no_byte_can_change(run: tuple[Path, Federation], tmp_path: Path) -> None:
    body = (run[0] / "report.json").read_bytes()
    (tmp_path / "report.json").write_bytes(body.replace(b'"id":"test-run"', b'"id":"test-rum"'))
    (tmp_path / "report.json.sig").write_bytes((run[0] / "report.json.sig").read_bytes())
    assert "server's signature on the report" in _failed(tmp_path / "report.json")
