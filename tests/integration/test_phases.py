"""Pre-training in turns over the wire: one consortium, one privacy ledger at each site, a report of each federation."""

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import save_tiny_masked_bert
from test_pretrain import NEVER, settings

from dp.ledger import PrivacyLedger
from dp.sampling import Csprng
from ffm.cli.demo_pretrain import TURNS, Wire
from ffm.cli.spent import spent_at
from ffm.demo import Layout
from ffm.learner import Vector
from ffm.local_setup import LocalSetup
from ffm.plateau import Plateau
from ffm.report_files import verify_files
from ffm.round_update import Update
from ffm.site import load_site
from ffm.start import POPULATION, ServerOptions, participate_with, serve
from ffm.tasks.pretrain import PhaseResult, Pretraining, play
from ffm.validation import Validation
from ffm.worker import LocalTraining

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@dataclass
class Thread:
    """A trainer without a process of its own: everything else of a client is real."""

    training: LocalTraining
    turn: asyncio.Lock = field(repr=False)  # the hooks of several models at once are not for threads

    async def train(self, round: int, vector: Vector) -> Update:
        async with self.turn:
            return await asyncio.to_thread(self.training.update, vector, round)

    async def keep(self, round: int) -> None:
        self.training.personal.keep(round)


def federate(layout: Layout, validation: Validation, first: bool) -> None:
    """Server and clients of one link over loopback."""

    async def main() -> None:
        turn, server = asyncio.Lock(), load_site(layout.consortium.server)
        clients = []
        for folder in layout.consortium.clients.values():
            site = load_site(folder)
            training = LocalTraining.load(site.manifest, LocalSetup(layout.base_model, site.data))
            trainer = Thread(training, turn)
            clients.append(participate_with(site, trainer, training.learner.initial(), lambda event: None))
        options = ServerOptions(layout.run, validation=validation)
        await asyncio.gather(serve(server, options, lambda event: None), *clients)

    asyncio.run(main())


@dataclass(frozen=True)
class Chain:
    folder: Path
    results: tuple[PhaseResult, ...]
    links: list[Layout]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The first federation runs all its rounds, the second ends on a plateau after one."""
    folder = tmp_path_factory.mktemp("phases")
    base = save_tiny_masked_bert(folder / "bert")
    plan = Pretraining(settings(str(base), rounds=2), TURNS, NEVER)
    written = plan.settings.data.write(folder / "texts")
    strict = Plateau(patience=1, least=0.9)

    def play_link(layout: Layout, validation: Validation, first: bool) -> None:
        federate(layout, validation if first else replace(validation, plateau=strict), first)

    wire = Wire(written, folder, plan.plateau, play_link)
    results = tuple(play(plan, written, wire, folder, Csprng(bytes(32))))
    return Chain(folder, results, wire.links)


def charged(layout: Layout, name: str) -> list[tuple[str, int]]:
    path = layout.consortium.clients[name] / "state" / "ledger" / f"{POPULATION}.sqlite"
    with PrivacyLedger.open(path, silo=name, population=POPULATION) as ledger:
        return [(charge.manifest_digest, charge.round) for charge in ledger.charges()]


def test_each_phase_starts_from_the_merged_model_before_and_the_loss_goes_on(chain: Chain) -> None:
    assert [(r.kind, r.rounds, r.stopped) for r in chain.results] == [
        ("public", 3, False),
        ("federated", 2, False),
        ("public", 3, False),
        ("federated", 1, True),
    ]
    for before, after in pairwise(chain.results):
        assert after.before.held_out == pytest.approx(before.after.held_out, rel=1e-3)
        assert after.losses[0] == pytest.approx(
            min(before.losses) if before.kind == "public" else before.losses[-1], rel=1e-3
        )
    first, second = chain.links
    assert first.consortium == second.consortium
    assert [layout.base_model.name for layout in chain.links] == ["phase-1", "phase-3"]
    model = np.frombuffer((second.run / "model.f32").read_bytes(), dtype="<f4")
    assert np.isfinite(model).all() and model.any()


def test_one_ledger_runs_through_all_phases_and_rounds_not_run_are_not_in_it(chain: Chain) -> None:
    first, second = (layout.manifest.digest().hex() for layout in chain.links)
    for name in chain.links[0].consortium.clients:
        assert charged(chain.links[1], name) == [(first, 1), (first, 2), (second, 1)]
    for folder in chain.links[1].consortium.clients.values():
        spent = spent_at(load_site(folder))
        assert spent is not None and spent.epsilon == chain.results[3].epsilon
    assert chain.results[0].epsilon is None
    assert float(str(chain.results[1].epsilon)) < float(str(chain.results[3].epsilon)) < 8


def test_every_federation_has_a_report_that_verifies_and_shows_what_came_before(chain: Chain) -> None:
    before = 0
    for layout, rounds in zip(chain.links, (2, 1), strict=True):
        checks = verify_files(layout.run / "report.json", load_site(layout.consortium.server).owner)
        assert checks and all(check.ok for check in checks)
        facts = json.loads((layout.run / "report.json").read_bytes())["facts"]
        assert len(facts["rounds"]) == rounds and facts["manifest"]["document"]["training"]["rounds"] == 2
        assert len(facts["statements"]) == 4
        for entry in facts["statements"]:
            rows = [row for row in entry["statement"]["rows"] if row["kind"] == "charge"]
            assert len(rows) == before + rounds
        before += rounds


def test_the_demo_plays_a_chain_of_real_processes(tmp_path: Path) -> None:
    """`secagg demo pretrain` on few texts and a random model; reports and ε as the other commands have them."""
    base = save_tiny_masked_bert(tmp_path / "bert")
    text = (ROOT / "examples" / "hospital" / "pretrain-demo.toml").read_text()
    for before, after in {
        'base_model = "bert-tiny"': f'base_model = "{base}"',
        "cap_per_chapter = 150": "cap_per_chapter = 12",
        "rounds = 3 ": "rounds = 2 ",
        "local_steps = 20": "local_steps = 2",
        "rounds = 6 ": "rounds = 2 ",
        "expected_batch = 600": "expected_batch = 50",
        "chunk_words = 4096": "chunk_words = 64",  # so that an upload of so small an adapter has several
    }.items():
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "small.toml").write_text(text)
    command = [sys.executable, "-m", "secagg"]

    def said(*arguments: str) -> list[dict[str, Any]]:
        whole = [*command, *arguments, "--format", "json"]
        lines = subprocess.run(whole, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        return [json.loads(line) for line in lines.splitlines()]

    events = said("demo", "pretrain", "--settings", str(tmp_path / "small.toml"), "--out", str(tmp_path / "runs"))
    phases, end = [e for e in events if "phase" in e and "kind" in e], events[-1]
    assert [phase["kind"] for phase in phases] == ["public", "federated"] * 2 and end["result"] == "finished"
    for phase in phases:
        assert {"public", "held_out"} < set(phase["before"]) and phase["rounds"] == len(phase["losses"]) - 1
    judged = [e["loss"] for e in events if e.get("event") == "validated"]
    assert judged == [loss for phase in phases if phase["kind"] == "federated" for loss in phase["losses"]]
    assert sum(e.get("event") == "killed" for e in events) == 1
    assert len(end["reports"]) == 2
    for report in end["reports"]:
        assert said("report", "verify", report)[0]["result"] == "verified"
    (spent,) = said("privacy", "spent", end["site"])
    assert spent["epsilon"] == end["epsilon"] == phases[-1]["epsilon"] and float(spent["epsilon"]) <= 8
