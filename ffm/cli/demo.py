"""`secagg demo hospital`: prepare, play, compare, report."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from dp.report import MethodResult
from dp.report_facts import Method
from ffm.baselines import Bench, Comparison
from ffm.cli.output import Format, Output, describe, quiet_libraries
from ffm.cli.running import run_until_signal
from ffm.demo import VICTIM, Layout, Play, prepare
from ffm.report_files import gather, write_report
from ffm.run_folder import MODEL, load_state, load_statements, write_atomic
from ffm.site import load_site
from ffm.start import documents_of, new_run_id
from ffm.step import Model, floats
from ffm.task import example_settings, load_settings, with_assurance
from ffm.tasks.finetune import accuracy, macro_f1

EVALUATION = (
    "Test split of the public ICD-10-CM code descriptions, disjoint from training by 3-character code; it describes "
    "codes, no persons, so it lies outside the unit of protection."
)


_TOLD = ("round-ended", "drop", "aborted", "withdraw", "validated", "validation-failed", "plateau")


def hospital(
    chosen: tuple[str, str | None], folder: Path, device: str, settings_path: Path | None, out: Output
) -> None:
    """Run the whole example and print its table. `chosen`: model, and the assurance if not that of the settings."""
    quiet_libraries()
    began = time.monotonic()
    model, assurance = chosen
    settings = load_settings(settings_path or example_settings("hospital"))
    if assurance is not None:
        settings = with_assurance(settings, assurance)
    run = folder / new_run_id(datetime.now(UTC))
    run.mkdir(parents=True)
    out.say(f"run folder {run}")
    out.say("preparing data, keys, signed roster and manifest")
    layout = prepare(run, settings, model)
    out.say(
        f"{len(layout.site_files)} hospitals, {layout.manifest.adapter.size} trainable parameters; starting processes"
    )
    play = Play(layout, device, lambda name, event: show(out, name, event))
    run_until_signal(play.run())
    out.say("comparing: federated without DP, each hospital alone with DP, majority class")
    rows = _compare(layout, device)
    report = _finish(layout, rows)
    _print(layout, rows, report, time.monotonic() - began, out)


def show(out: Output, name: str, event: dict[str, Any]) -> None:
    """The server's story, and what only a client can tell: kills and refusals."""
    if out.is_json:
        print(json.dumps({"from": name, **event}), flush=True)
    elif event["event"] == "killed":
        out.say(f"round {event['round']}: {name} killed (SIGKILL) after chunk {event['chunk']} of {event['of']}")
    elif name == "server" and event["event"] in _TOLD:
        out.say(describe(event))


def _compare(layout: Layout, device: str) -> list[tuple[MethodResult, Comparison]]:
    """Confusion matrices of every method on the public test file."""
    manifest = layout.manifest
    steps = manifest.training.rounds * manifest.training.local_steps
    bench = Bench(manifest, layout.base_model, layout.site_files, layout.test_file)
    # The expected number: what the hospitals really drew stays with them.
    expected = round(steps * float(manifest.privacy.sampling_probability) * sum(len(s["labels"]) for s in bench.sites))
    ours = bench.compare("federated, DP", model_of(layout), expected)
    rows = [(_result("federated-dp", ours, steps), ours)]
    hospital_id = 0
    for other in bench.all():
        if other.name.startswith("majority"):
            rows.append((_result("majority", other, 0), other))
        elif other.name.startswith("federated"):
            rows.append((_result("federated-no-dp", other, steps), other))
        else:
            hospital_id += 1
            rows.append((_result("alone-dp", other, steps, hospital_id), other))
    return rows


def _result(method: Method, row: Comparison, steps: int, client: int | None = None) -> MethodResult:
    counts = tuple(tuple(int(n) for n in line) for line in row.confusion)
    return MethodResult(method, counts, steps, client, twice_wins=row.twice_wins)


def _finish(layout: Layout, rows: list[tuple[MethodResult, Comparison]]) -> dict[str, Any]:
    """metrics.json, and the report with utility in it, signed by the demo's server."""
    metrics = {
        "test_records": int(rows[0][1].confusion.sum()),
        "methods": [
            {
                "name": row.name,
                "client_id": result.client_id,
                "accuracy": round(accuracy(row.confusion), 4),
                "macro_f1": round(macro_f1(row.confusion), 4),
                "samples_seen": row.samples_seen,
                "steps_per_client": result.steps_per_client,
            }
            for result, row in rows
        ],
    }
    write_atomic(layout.run / "metrics.json", json.dumps(metrics, indent=1).encode() + b"\n")
    server = load_site(layout.consortium.server)
    facts = gather(
        documents_of(server),
        load_state(layout.run),
        load_statements(layout.run),
        [result for result, _ in rows],
        EVALUATION,
    )
    facts = replace(facts, evaluation_people="outside-the-unit")
    return write_report(layout.run, facts, server.identity, server.owner)


def model_of(layout: Layout) -> Model:
    """The last model of the run."""
    return floats((layout.run / MODEL).read_bytes())


def _print(
    layout: Layout, rows: list[tuple[MethodResult, Comparison]], report: dict[str, Any], seconds: float, out: Output
) -> None:
    privacy = layout.manifest.privacy
    spent = report["groups"][3]["headline"]["epsilon"]
    claim = f"ε = {spent} at δ = {privacy.delta}, record, add/remove, {layout.manifest.training.rounds} rounds"
    table = Table("method", "accuracy", "macro F1", "samples seen", title=f"{layout.manifest.task}: {claim}")
    for _, row in rows:
        table.add_row(
            row.name, f"{accuracy(row.confusion):.3f}", f"{macro_f1(row.confusion):.3f}", str(row.samples_seen)
        )
    value = {"result": "finished", "run": str(layout.run), "claim": claim, "seconds": round(seconds)}
    if out.format is Format.json:
        out.result(value, "")
        return
    out.result(value, table)
    alone = sorted(accuracy(row.confusion) for result, row in rows if result.method == "alone-dp")
    ours = accuracy(rows[0][1].confusion)
    majority = next(accuracy(row.confusion) for result, row in rows if result.method == "majority")
    median = alone[len(alone) // 2]
    verdict = "beats" if ours > max(majority, median) else "does NOT beat"
    name = list(layout.consortium.clients)[VICTIM - 1]
    out.result(
        value,
        f"the federation with DP {verdict} the majority class ({majority:.3f}) "
        f"and the median hospital alone ({median:.3f})\n"
        f"{name} was killed in the middle of an upload; its round ended with the exact sum over the others\n"
        f"{seconds:.0f} s; everything is in {layout.run}\n"
        f"next: secagg report verify {layout.run}/report.json",
    )
