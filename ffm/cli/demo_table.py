"""`secagg demo heart`, `secagg demo bank`: a table's sites under protocol R2, beside all that one would try instead."""

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from dp.report import MethodResult
from ffm.cli.demo import model_of, show
from ffm.cli.output import Format, Output, quiet_libraries
from ffm.cli.running import run_until_signal
from ffm.demo import Layout, Play, prepare
from ffm.errors import DataError
from ffm.report_files import gather, write_report
from ffm.run_folder import load_state, load_statements
from ffm.scores import interval
from ffm.site import load_site
from ffm.sources import TableSource
from ffm.start import documents_of, new_run_id
from ffm.table_arms import ACCURACY, ALL, Arms, Figures
from ffm.task import example_settings, load_settings


def run(chosen: tuple[str, Path | None], folder: Path, device: str, seeds: int, out: Output) -> None:
    """The federation, the comparison over `seeds` repetitions on its split, the report and the table.

    `chosen`: the example, and other settings than its own.
    """
    quiet_libraries()
    began = time.monotonic()
    example, settings_path = chosen
    settings = load_settings(settings_path or example_settings(example))
    source = settings.data
    if not isinstance(source, TableSource) or source.source != example:
        raise DataError(
            f"these are not settings of the {example} example", expected=f'data.source = "{example}"', code="E515"
        )
    folder = folder / new_run_id(datetime.now(UTC))
    folder.mkdir(parents=True)
    out.say(f"run folder {folder}")
    layout = prepare(folder, settings, next(iter(settings.models)))
    names = ", ".join(layout.consortium.clients)
    out.say(f"{names}: {layout.manifest.adapter.size} trainable parameters; starting processes")
    run_until_signal(Play(layout, device, lambda name, event: show(out, name, event)).run())
    out.say("comparing: R1, centralised, each site alone, no DP, logistic regression")
    arms = Arms.load(source.table, layout.manifest, layout.base_model, source.seed)
    results, figures = compare(arms, layout, seeds)
    server = load_site(layout.consortium.server)
    facts = gather(documents_of(server), load_state(layout.run), load_statements(layout.run), results, _judged(arms))
    facts = replace(facts, evaluation_people="outside-the-unit")
    report = write_report(layout.run, facts, server.identity, server.owner)
    _print(layout, figures, report, time.monotonic() - began, out)


def compare(arms: Arms, layout: Layout, seeds: int) -> tuple[list[MethodResult], Figures]:
    """Results for the report, and figures by method and place over the repetitions; the first is the run itself."""
    results: list[MethodResult] = []
    figures: Figures = {}
    for seed in range(seeds):
        ours = arms.federated() if seed else arms.arm("federated-dp", model_of(layout))
        for arm in (ours, *arms.others(), *(() if seed else (arms.baseline(),))):
            arms.judge(arm, figures)
            results += arms.results(arm, seed)
    return results, figures


def _judged(arms: Arms) -> str:
    share = f"{100 * arms.table.flagged:.0f} %"
    called = f"The threshold calls the highest {share} of the scores {arms.table.labels[-1]}, a public figure."
    return f"One record in four of each site, in no training set. {called}"


def _print(layout: Layout, figures: Figures, report: dict[str, Any], seconds: float, out: Output) -> None:
    privacy = layout.manifest.privacy
    spent = report["groups"][3]["headline"]["epsilon"]
    claim = f"ε = {spent} at δ = {privacy.delta}, record, add/remove, {layout.manifest.training.rounds} rounds"
    value = {
        "result": "finished",
        "run": str(layout.run),
        "claim": claim,
        "auc": {f"{name} | {where}": values for (name, where), values in figures.items()},
        "seconds": round(seconds),
    }
    if out.format is Format.json:
        out.result(value, "")
        return
    columns = [ALL, *layout.consortium.clients, ACCURACY]
    table = Table("AUC", *columns, title=f"{layout.manifest.task}: {claim}")
    for name in dict.fromkeys(name for name, _ in figures):
        table.add_row(name, *map(partial(_shown, figures, name), columns))
    out.result(value, table)
    out.result(
        value,
        "± half of the 95 % interval of the mean, with several seeds; accuracy: at a public share of the scores\n"
        f"{seconds:.0f} s; everything is in {layout.run}\nnext: secagg report verify {layout.run}/report.json",
    )


def _shown(figures: Mapping[tuple[str, str], list[float]], name: str, where: str) -> str:
    mean, half = interval(figures[name, where])
    return f"{mean:.3f}" if np.isnan(half) else f"{mean:.3f} ± {half:.3f}"
