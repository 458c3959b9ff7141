"""`secagg demo heart`: four real hospitals under protocol R2, beside everything that one would try instead."""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from dp.report import MethodResult
from dp.report_facts import Method
from dp.sampling import Csprng
from ffm import heart
from ffm.cli.demo import model_of, show
from ffm.cli.output import Format, Output
from ffm.cli.running import run_until_signal
from ffm.demo import Layout, Play, prepare
from ffm.errors import DataError
from ffm.federation import Federation
from ffm.ranking import twice_wins
from ffm.report_files import gather, write_report
from ffm.scores import Reals, accuracy_at_share, auc, called_at_share, interval, logistic_regression
from ffm.server_run import load_state
from ffm.site import load_site
from ffm.sources import HeartSource
from ffm.start import documents_of, load_statements, new_run_id
from ffm.task import example_settings, load_settings

SHARE_ILL = 0.55  # of the patients that are sent to these clinics; public, so no test label chooses the threshold
EVALUATION = (
    "One patient in four of each hospital, in no training set. The threshold calls the highest 55 % of the scores ill, "
    "a public figure."
)
NAMES: Mapping[Method, str] = {
    "federated-dp": "R2, this federation",
    "federated-dp-other-protocol": "R1, every hospital noises alone",
    "centralised-dp": "centralised, DP",
    "centralised-no-dp": "centralised, no DP",
    "alone-dp": "alone, DP",
    "logistic-regression": "logistic regression, no DP",
}

Aucs = dict[tuple[str, str], list[float]]
Patients = Mapping[str, Sequence[heart.Row]]


def run(folder: Path, device: str, settings_path: Path | None, seeds: int, out: Output) -> None:
    """The federation, the comparison over `seeds` repetitions on its split, the report and the table."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    began = time.monotonic()
    settings = load_settings(settings_path or example_settings("heart"))
    if not isinstance(settings.data, HeartSource):
        raise DataError("these are not settings of the heart example", expected='data.source = "heart"', code="E515")
    folder = folder / new_run_id(datetime.now(UTC))
    folder.mkdir(parents=True)
    out.say(f"run folder {folder}")
    layout = prepare(folder, settings, next(iter(settings.models)))
    names = ", ".join(layout.consortium.clients)
    out.say(f"{names}: {layout.manifest.adapter.size} trainable parameters; starting processes")
    run_until_signal(Play(layout, device, lambda name, event: show(out, name, event)).run())
    out.say("comparing: R1, centralised, each hospital alone, no DP, logistic regression")
    results, aucs = compare(layout, settings.data.seed, seeds)
    server = load_site(layout.consortium.server)
    facts = gather(documents_of(server), load_state(layout.run), load_statements(layout.run), results, EVALUATION)
    facts = replace(facts, evaluation_people="outside-the-unit")
    report = write_report(layout.run, facts, server.identity, server.owner)
    _print(layout, aucs, report, time.monotonic() - began, out)


def compare(layout: Layout, split_seed: int, seeds: int) -> tuple[list[MethodResult], Aucs]:
    """Results for the report, and AUC by (method, whose test patients) over the repetitions; "" is all of them."""
    train, test = heart.split(split_seed)
    arms = Federation.load(layout.manifest, layout.base_model, [heart.records(rows) for rows in train.values()])
    records = heart.records([row for rows in test.values() for row in rows])
    steps = layout.manifest.training.rounds
    results: list[MethodResult] = []
    aucs: Aucs = {}

    def add(method: Method, scores: Reals, client: int | None, seed: int) -> None:
        trained = 0 if method == "logistic-regression" else steps
        name = NAMES[method] if client is None else f"{list(train)[client - 1]} {NAMES[method]}"
        for where, part, labels in _parts(test):
            counts, wins = _counts(scores[part], labels), twice_wins(np.stack([-scores[part], scores[part]], 1), labels)
            aucs.setdefault((name, where), []).append(auc(scores[part], labels))
            target = list(test).index(where) + 1 if where else None
            results.append(MethodResult(method, counts, trained, client, target, seed, wins))
        labels = np.concatenate([labels for where, _, labels in _parts(test) if where])
        aucs.setdefault((name, "accuracy"), []).append(accuracy_at_share(scores, labels, SHARE_ILL))

    add("federated-dp", arms.odds(model_of(layout), records), None, 0)
    for seed in range(seeds):
        if seed:
            add("federated-dp", arms.odds(arms.federated(Csprng.from_os()), records), None, seed)
        add("federated-dp-other-protocol", arms.odds(arms.local_noise(Csprng.from_os()), records), None, seed)
        add("centralised-dp", arms.odds(arms.centralised(Csprng.from_os()), records), None, seed)
        add("centralised-no-dp", arms.odds(arms.centralised(Csprng.from_os(), private=False), records), None, seed)
        for site in range(len(train)):
            add("alone-dp", arms.odds(arms.alone(site, Csprng.from_os()), records), site + 1, seed)
    fitted = logistic_regression(*heart.table([row for rows in train.values() for row in rows]))
    add("logistic-regression", fitted.scores(heart.table([row for rows in test.values() for row in rows])[0]), None, 0)
    return results, aucs


def _parts(test: Patients) -> list[tuple[str, slice, Any]]:
    """(hospital or "", its place among the pooled test patients, labels)."""
    parts, start = [], 0
    for site, rows in test.items():
        parts.append((site, slice(start, start + len(rows)), heart.labels(rows)))
        start += len(rows)
    return [("", slice(0, start), np.concatenate([labels for _, _, labels in parts])), *parts]


def _counts(scores: Reals, labels: Any) -> tuple[tuple[int, ...], ...]:
    called = called_at_share(scores, SHARE_ILL)
    return tuple(tuple(int(((labels == i) & (called == j)).sum()) for j in (0, 1)) for i in (0, 1))


def _print(
    layout: Layout, aucs: Mapping[tuple[str, str], list[float]], report: dict[str, Any], seconds: float, out: Output
) -> None:
    privacy = layout.manifest.privacy
    spent = report["groups"][3]["headline"]["epsilon"]
    claim = f"ε = {spent} at δ = {privacy.delta}, record, add/remove, {layout.manifest.training.rounds} rounds"
    value = {
        "result": "finished",
        "run": str(layout.run),
        "claim": claim,
        "auc": {f"{name} | {where or 'all'}": values for (name, where), values in aucs.items()},
        "seconds": round(seconds),
    }
    if out.format is Format.json:
        out.result(value, "")
        return
    columns = ["", *layout.consortium.clients, "accuracy"]
    table = Table("AUC", *(where or "all" for where in columns), title=f"{layout.manifest.task}: {claim}")
    for name in dict.fromkeys(name for name, _ in aucs):
        table.add_row(name, *map(partial(_shown, aucs, name), columns))
    out.result(value, table)
    out.result(
        value,
        "± half of the 95 % interval of the mean, with several seeds; accuracy: the highest 55 % called ill\n"
        f"{seconds:.0f} s; everything is in {layout.run}\nnext: secagg report verify {layout.run}/report.json",
    )


def _shown(aucs: Mapping[tuple[str, str], list[float]], name: str, where: str) -> str:
    mean, half = interval(aucs[name, where])
    return f"{mean:.3f}" if np.isnan(half) else f"{mean:.3f} ± {half:.3f}"
