"""`secagg demo pretrain`: a chain of phases, public steps at the server and federations of real processes in turn.

One consortium lives through all federated phases: each is the next manifest for the same keys, on the merged model of
the phase before, with a run folder and a report of its own; each hospital's privacy ledger runs on. The server ends a
phase when the loss on public validation text has stopped falling.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.table import Table

from dp.report_figures import order
from dp.sampling import Csprng
from ffm.chain import next_link
from ffm.cli.demo import model_of, show
from ffm.cli.output import Format, Output, quiet_libraries
from ffm.cli.running import run_until_signal
from ffm.cli.spent import spent_at
from ffm.data import write_records
from ffm.demo import VICTIM, Layout, Play, found
from ffm.learner import Learner, Vector
from ffm.local_setup import Compute
from ffm.plateau import Plateau
from ffm.site import load_site
from ffm.sources import Written
from ffm.start import new_run_id
from ffm.step import parameters_of
from ffm.task import example_settings, load_settings
from ffm.tasks.pretrain import VALIDATION, Perplexities, Phase, PhaseResult, Pretraining, admit, play
from ffm.validation import LOSSES, Validation
from protocol.manifest import Manifest

TURNS: Final = (Phase("public", "public"), Phase("federated", "federated")) * 2


PlayLink = Callable[[Layout, Validation, bool], None]
"""Runs everybody of a link until its server has finished; the last: whether it is the first link of the chain."""


class Wire:
    """Federated phases over gRPC: the `ffm.tasks.pretrain.Rounds` whose sites have folders of their own."""

    def __init__(self, written: Written, folder: Path, plateau: Plateau, play_link: PlayLink) -> None:
        self._written, self._folder, self._plateau, self._play_link = written, folder, plateau, play_link
        self.links: list[Layout] = []

    def admit(self, planned: Sequence[Manifest]) -> None:
        """Nothing is charged yet. Each hospital checks again, before its first round under each manifest."""
        admit(planned, ())

    def train(self, number: int, learner: Learner, base: Path) -> tuple[Vector, list[float]]:
        """One link of the chain."""
        layout = self._next(learner.manifest, self._folder / f"federated-{number}", base)
        self._play_link(layout, Validation(self._validation(learner), self._plateau), not self.links)
        self.links.append(layout)
        losses = json.loads((layout.run / LOSSES).read_bytes())["losses"]
        return parameters_of(model_of(layout), learner.manifest), list(losses.values())

    def spent(self) -> str | None:
        """By the ledger of the hospital that has spent most."""
        return None if (found := self.most_spent()) is None else found[1]

    def most_spent(self) -> tuple[Path, str] | None:
        """The folder of the hospital that has spent most, and the ε of its ledger; None without DP."""
        folders = self.links[-1].consortium.clients.values() if self.links else ()
        spent = [(folder, found.epsilon) for folder in folders if (found := spent_at(load_site(folder))) is not None]
        told = [entry for entry in spent if entry[1] != "none"]
        return max(told, key=lambda entry: order(entry[1]), default=None)

    def _next(self, manifest: Manifest, run: Path, base: Path) -> Layout:
        local = {"base_model": str(base.resolve())}
        if self.links:
            return next_link(self.links[-1], run, manifest, local)
        run.mkdir()
        return replace(found(self._folder, self._written, manifest, local), run=run)

    def _validation(self, learner: Learner) -> Path:
        """The same texts as in the public phases, in a file for the server."""
        path = self._folder / "validation.csv"
        if not path.exists():
            assert self._written.validation is not None  # noqa: S101 - a chain without one is refused at its start
            records = learner.task.read(self._written.validation, learner.manifest.training)
            write_records(path, records[:VALIDATION])
        return path


def run(settings_path: Path | None, folder: Path, device: str, out: Output) -> None:
    """Play all phases; perplexities and ε are printed as they fall."""
    quiet_libraries()
    began = time.monotonic()
    settings = load_settings(settings_path or example_settings("hospital").with_name("pretrain-demo.toml"))
    folder = folder / new_run_id(datetime.now(UTC))
    folder.mkdir(parents=True)
    out.say(f"run folder {folder}")
    plan = Pretraining(settings, TURNS, compute=Compute(device))
    written = settings.data.write(folder / "texts")

    def play_link(layout: Layout, validation: Validation, first: bool) -> None:
        plateau = validation.plateau
        rule = ["--patience", str(plateau.patience), "--least", str(plateau.least)]
        server = ["--validation", str(validation.data), *rule]
        victim = VICTIM if first else None  # killed in the middle of an upload
        run_until_signal(Play(layout, device, lambda name, event: show(out, name, event), victim, server).run())

    wire = Wire(written, folder, plan.plateau, play_link)
    results = []
    for done in play(plan, written, wire, folder, Csprng.from_os()):
        results.append(done)
        _print(done, out)
    _end(results, wire, time.monotonic() - began, out)


def _print(done: PhaseResult, out: Output) -> None:
    value = {
        "phase": done.number,
        "kind": done.kind,
        "rounds": done.rounds,
        "rounds_planned": done.manifest.training.rounds,
        "losses": done.losses,
        "before": _figures(done.before),
        "after": _figures(done.after),
        "epsilon": done.epsilon,
        "model": str(done.model),
        "seconds": round(done.seconds),
    }
    if out.format is Format.json:
        out.result(value, "")
        return
    how = "plateau" if done.stopped else "to the last"
    spent = "" if done.epsilon is None else f", ε = {done.epsilon} so far"
    title = f"phase {done.number}, {done.kind}: {done.rounds} rounds ({how}), {done.seconds:.0f} s{spent}"
    table = Table("perplexity", "before", "after", title=title)
    after = _figures(done.after)
    for name, figure in _figures(done.before).items():
        table.add_row(name.replace("_", "-"), f"{figure:.1f}", f"{after[name]:.1f}")
    out.result(value, table)


def _figures(judged: Perplexities) -> dict[str, float]:
    return {"public": judged.public, "held_out": judged.held_out, **judged.clients}


def _end(results: Sequence[PhaseResult], wire: Wire, seconds: float, out: Output) -> None:
    last, privacy, spent = results[-1], wire.links[-1].manifest.privacy, wire.most_spent()
    reports = [str(link.run / "report.json") for link in wire.links if (link.run / "report.json").exists()]
    value = {
        "result": "finished",
        "model": str(last.model),
        "reports": reports,
        "epsilon": last.epsilon,
        "delta": privacy.delta,
        "site": None if spent is None else str(spent[0]),
        "seconds": round(seconds),
    }
    cost, look = "without DP", []
    if spent is not None:
        whose = f"by the ledger of {spent[0].name}, which has spent most"
        cost = f"ε = {spent[1]} of {privacy.epsilon} at δ = {privacy.delta}, {whose}"
        look = [f"next: secagg privacy spent {spent[0]}"]
    rows = [
        f"all phases together: {cost}",
        f"held-out perplexity {results[0].before.held_out:.1f} -> {last.after.held_out:.1f}",
        f"{seconds:.0f} s; the model is in {last.model}",
        *(f"next: secagg report verify {report}" for report in reports),
        *look,
    ]
    out.result(value, "\n".join(rows))
