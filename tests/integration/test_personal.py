"""FedSA-LoRA with personal heads as users run it, one process killed; what stays at a site is nowhere else."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from protocol.manifest import Manifest
from tests.integration.federation import NAMES, Process, make


@pytest.fixture
def started() -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.kill()


def state_of(site: Path, manifest: Manifest) -> Path:
    return site / "state" / f"personal-{manifest.digest().hex()[:16]}.safetensors"


@pytest.mark.slow
def test_personal_tensors_survive_a_kill_and_are_nowhere_else(tmp_path: Path, started: list[Process]) -> None:
    consortium, manifest = make(tmp_path / "consortium", method="fedsa-lora", personal_head=True)
    run = tmp_path / "run"
    server = Process("server", consortium.server, "--run", run, "--grace-seconds", 3)
    clients = {name: Process("client", consortium.clients[name]) for name in NAMES}
    started += [server, *clients.values()]
    server.wait_for(lambda e: e.get("event") == "round-ended" and e["round"] == 1)
    clients["west"].kill()
    west = state_of(consortium.clients["west"], manifest)
    kept = west.read_bytes()  # of round 1, which was paid for
    revived = Process("client", consortium.clients["west"])
    started.append(revived)
    revived.wait_for(lambda e: e.get("event") == "loaded")
    assert server.ended() == 0
    assert [clients[name].ended() for name in NAMES[:3]] == [0, 0, 0]
    revived.ended()

    states = {name: state_of(site, manifest) for name, site in consortium.clients.items()}
    own = {}
    for name, path in states.items():
        assert path.stat().st_mode & 0o777 == 0o600
        own[name] = load(path.read_bytes())
        assert own[name].keys() == {t.name for t in manifest.adapter.personal}
    heads = [tensors["base_model.model.classifier.weight"] for tensors in own.values()]
    assert not any(np.array_equal(a, b) for i, a in enumerate(heads) for b in heads[:i])
    if revived_took_part(revived):
        assert west.read_bytes() != kept

    # Shared values: A of one layer. The server's whole disk and every statement hold nothing of the personal ones.
    assert manifest.adapter.size == 128
    needles = [row.astype("<f4").tobytes() for head in heads for row in head]
    for folder in (run, consortium.server):
        for path in folder.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert not any(needle in content for needle in needles), path
    verified = Process("report", "verify", run / "report.json", "--owner", consortium.owner / "owner.pub")
    assert verified.ended() == 0 and verified.events[0]["result"] == "verified"


def revived_took_part(client: Process) -> bool:
    return any(e.get("event") == "trained" for e in client.events)
