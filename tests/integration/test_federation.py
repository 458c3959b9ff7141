"""Whole federations as their users run them: processes, certificates, kills, and the report at the end."""

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from dp.events import SampledGaussian, event_tree
from dp.ledger import Charge, PrivacyLedger
from ffm.data import icd10_records, write_records
from ffm.start import POPULATION
from tests.integration.federation import NAMES, Process, make


@pytest.fixture
def started() -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.kill()


def test_server_and_client_killed_in_a_round_and_the_ledgers_remember(tmp_path: Path, started: list[Process]) -> None:
    """Server killed -9 in round 1, which it finishes with all clients when it is back; a client killed -9 in the middle
    of its upload in round 2, which ends with the sum over the others; and every report figure verifies."""
    consortium, _ = make(tmp_path / "consortium")
    run = tmp_path / "run"
    server = Process("server", consortium.server, "--run", run, "--grace-seconds", 3)
    started.append(server)
    clients = {name: Process("client", consortium.clients[name]) for name in NAMES[:3]}
    clients["west"] = Process("client", consortium.clients["west"], "--upload-limit", 600)
    started += clients.values()

    server.wait_for(lambda e: e.get("event") == "phase" and e["phase"] == "MASKED_INPUT")
    server.kill()
    server = Process("server", consortium.server, "--run", run, "--grace-seconds", 3)
    started.append(server)

    server.wait_for(lambda e: e.get("event") == "resumed" and (e["round"], e["attempt"]) == (1, 0))
    first = server.wait_for(lambda e: e.get("event") == "round-ended" and e["round"] == 1)
    assert (first["status"], first["masked"], first["drops"]) == ("released", [1, 2, 3, 4], {})
    server.wait_for(lambda e: e.get("event") == "phase" and (e["round"], e["phase"]) == (2, "MASKED_INPUT"))
    half = server.wait_for(lambda e: e.get("event") == "upload" and e["client"] == 4 and e["round"] == 2)
    assert half["chunk"] < half["of"]
    clients["west"].kill()
    second = server.wait_for(lambda e: e.get("event") == "round-ended" and e["round"] == 2)
    assert (second["status"], second["masked"]) == ("released", [1, 2, 3])
    assert second["drops"] == {"4": "TIMED_OUT"}

    revived = Process("client", consortium.clients["west"])
    started.append(revived)
    assert server.ended() == 0
    assert [clients[name].ended() for name in NAMES[:3]] == [0, 0, 0]
    assert all(
        event["masked"] in ([1, 2, 3], [1, 2, 3, 4]) for event in server.events if event.get("event") == "round-ended"
    )

    verified = Process("report", "verify", run / "report.json", "--owner", consortium.owner / "owner.pub")
    assert verified.ended() == 0 and verified.events[0]["result"] == "verified"
    report = json.loads((run / "report.json").read_bytes())
    rows = {s["statement"]["client_id"]: s["statement"]["rows"] for s in report["facts"]["statements"]}
    for client in (1, 2, 3):
        charged = [row["body"]["round"] for row in rows[client] if row["kind"] == "charge"]
        assert charged == [1, 2, 3]
    assert (run / "adapter" / "adapter_model.safetensors").exists()
    revived.stop()

    edited = run / "report.json"
    edited.write_bytes(edited.read_bytes().replace(b'"local_steps":2', b'"local_steps":3'))
    forged = Process("report", "verify", edited)
    assert forged.ended() == 60 and forged.error["error"] == "E603"


def test_too_few_clients_end_the_run_with_a_reason(tmp_path: Path, started: list[Process]) -> None:
    consortium, _ = make(tmp_path / "consortium")
    server = Process("server", consortium.server, "--grace-seconds", 1, "--phase-seconds", 2, "--connect-seconds", 1)
    started.append(server)
    assert server.ended() == 40
    assert server.error["error"] == "E420"
    assert "Traceback" not in server.stderr


@pytest.mark.slow
def test_a_server_that_judges_is_killed_and_ends_the_task_where_it_would_have(
    tmp_path: Path, started: list[Process]
) -> None:
    """Killed -9 in round 2: losses before it are not computed again, and the third round is never run or charged."""
    consortium, _ = make(tmp_path / "consortium")
    public, run = tmp_path / "public.csv", tmp_path / "run"
    write_records(public, icd10_records()[400:440])
    rule = ("--validation", public, "--patience", 2, "--least", "0.9")  # nothing gets ten times better in two rounds
    server = Process("server", consortium.server, "--run", run, *rule)
    clients = {name: Process("client", consortium.clients[name]) for name in NAMES}
    started += [server, *clients.values()]
    server.wait_for(lambda e: e.get("event") == "phase" and (e["round"], e["phase"]) == (2, "MASKED_INPUT"))
    server.kill()
    before = [e for e in server.events if e.get("event") == "validated"]
    assert [e["round"] for e in before] == [0, 1]

    server = Process("server", consortium.server, "--run", run, *rule)
    started.append(server)
    assert server.ended() == 0, server.stderr
    assert [client.ended() for client in clients.values()] == [0] * 4
    after = [e for e in server.events if e.get("event") == "validated"]
    assert [e["round"] for e in after] == [2]
    assert [(e["round"], e["rounds"]) for e in server.events if e.get("event") == "plateau"] == [(2, 3)]
    losses = json.loads((run / "validation.json").read_bytes())["losses"]
    assert losses == {str(e["round"]): e["loss"] for e in (*before, *after)}

    verified = Process("report", "verify", run / "report.json", "--owner", consortium.owner / "owner.pub")
    assert verified.ended() == 0 and verified.events[0]["result"] == "verified"
    for name in NAMES:
        book = consortium.clients[name] / "state" / "ledger" / f"{POPULATION}.sqlite"
        with PrivacyLedger.open(book, silo=name, population=POPULATION) as ledger:
            assert sorted({charge.round for charge in ledger.charges()}) == [1, 2]

    # Started once more when all is over and nobody is there: what the clients stated is not thrown away.
    report = (run / "report.json").read_bytes()
    stated = {path.name: path.read_bytes() for path in (run / "statements").iterdir()}
    assert len(stated) == 8 and json.loads(report)["groups"][3]["headline"]["complete"]
    again = Process("server", consortium.server, "--run", run, *rule)  # waits for nobody, as everybody has stated
    started.append(again)
    assert again.ended() == 0, again.stderr
    assert {path.name: path.read_bytes() for path in (run / "statements").iterdir()} == stated
    assert (run / "report.json").read_bytes() == report


@pytest.mark.slow
def test_a_site_without_budget_stays_out_and_the_others_go_on(tmp_path: Path, started: list[Process]) -> None:
    """The refusal comes before the round: nothing is charged, nothing is sent, the federation does not stop."""
    consortium, _ = make(tmp_path / "consortium", rounds=1)
    (consortium.clients["west"] / "state").mkdir(mode=0o700)
    book = consortium.clients["west"] / "state" / "ledger" / f"{POPULATION}.sqlite"
    with PrivacyLedger.open(book, silo="west", population=POPULATION) as ledger:  # an earlier, other task
        ledger.charge(
            Charge("earlier", "ab" * 32, 1, 0, event_tree(SampledGaussian(5000, Fraction(1, 8), 65536, 65536)))
        )
    server = Process("server", consortium.server, "--run", tmp_path / "run", "--grace-seconds", 2)
    clients = {name: Process("client", consortium.clients[name]) for name in NAMES}
    started += [server, *clients.values()]
    assert clients["west"].ended() == 20 and clients["west"].error["error"] == "E201"
    assert server.ended() == 0
    (ended,) = [event for event in server.events if event.get("event") == "round-ended"]
    assert ended["masked"] == [1, 2, 3]
    with PrivacyLedger.open(book, silo="west", population=POPULATION) as ledger:
        assert [charge.task for charge in ledger.charges()] == ["earlier"]


@pytest.mark.slow
def test_an_update_out_of_range_is_refused_by_its_own_client_and_paid_for(
    tmp_path: Path, started: list[Process]
) -> None:
    consortium, manifest = make(tmp_path / "consortium", rounds=1, aggregation_bound=1)
    server = Process("server", consortium.server, "--run", tmp_path / "run", "--grace-seconds", 2)
    clients = {name: Process("client", consortium.clients[name]) for name in NAMES}
    started += [server, *clients.values()]
    for client in clients.values():
        assert client.ended() == 10 and client.error["error"] == "E111"
    assert server.ended() == 0 or server.error["error"] == "E420"
    assert not [event for event in server.events if event.get("event") == "upload"]
    book = consortium.clients["north"] / "state" / "ledger" / f"{POPULATION}.sqlite"
    with PrivacyLedger.open(book, silo="north", population=POPULATION) as ledger:
        assert [(charge.task, charge.round) for charge in ledger.charges()] == [(manifest.task, 1)]
