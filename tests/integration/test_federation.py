"""Whole federations as their users run them: processes, certificates, kills, and the report at the end."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.federation import NAMES, Process, make


@pytest.fixture
def started() -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.kill()


def test_server_and_client_killed_in_a_round_and_the_ledgers_remember(tmp_path: Path, started: list[Process]) -> None:
    """Server killed -9 in round 1, a client killed -9 in the middle of its upload in round 2: round 2 ends with the sum
    over the others, and every report figure verifies."""
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

    server.wait_for(lambda e: e.get("event") == "round" and e["round"] == 2)  # round 1 is burnt, never repeated
    half = server.wait_for(lambda e: e.get("event") == "upload" and e["client"] == 4)
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
        assert charged[-2:] == [2, 3]  # round 1 too, where its upload had begun before the server died
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
