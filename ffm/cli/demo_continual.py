"""`secagg demo continual`: five hospitals whose diagnoses arrive in periods; every period is a signed task."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from rich.table import Table

from dp.sampling import Csprng
from ffm.chain import next_link
from ffm.cli.demo import model_of, show
from ffm.cli.output import Format, Output, quiet_libraries
from ffm.cli.running import run_until_signal
from ffm.cli.spent import spent_at
from ffm.data import write_records
from ffm.demo import VICTIM, Layout, Play, found, local_settings
from ffm.evaluate.continual import stream
from ffm.learner import Learner, Vector
from ffm.lifelong import lifelong
from ffm.memory import arrive
from ffm.periods import Period
from ffm.site import load_site
from ffm.sources import Written, site_names
from ffm.start import new_run_id, private_state
from ffm.step import parameters_of
from ffm.succession import left_by
from ffm.task import TaskSettings, build_manifest, example_settings, load_settings
from ffm.tasks.continual import Seen, Way, judged, period_manifest, table_of

_KEY = "accuracy"
_ROUNDS = 8  # of a period, unless asked otherwise: the settings' own take three times as long


def continual(
    chosen: tuple[str, int | None], folder: Path, device: str, settings_path: Path | None, out: Output
) -> None:
    """Play a life over the wire. `chosen`: the way to live, and rounds of a period."""
    quiet_libraries()
    began, way = time.monotonic(), Way(chosen[0])
    settings, name = _shorter(settings_path, chosen[1] or _ROUNDS)
    periods = stream(settings)
    target = folder / new_run_id(datetime.now(UTC))
    target.mkdir(parents=True)
    out.say(f"run folder {target}")
    layout: Layout | None = None
    vectors: list[Vector] = []
    seen: list[Seen] = []
    for number, period in enumerate(periods, start=1):
        layout = _begin((settings, name), way, (number, period), target, layout)
        for line in _arrivals(layout, way):
            out.say(line)
        out.say(f"period {number}, {period.name}: {layout.manifest.training.rounds} rounds; starting processes")
        victim = VICTIM if number == 1 else None
        run_until_signal(Play(layout, device, lambda who, event: show(out, who, event), victim).run())
        learner = Learner.load(layout.manifest, layout.base_model)
        if not seen:
            seen = judged(learner, [learner.initial()] * len(periods), periods, 0)
        vectors.append(parameters_of(model_of(layout), layout.manifest).copy())
        own = way.method == "adapter-per-period"  # else the latest answers for all periods
        answers = [vectors[min(k, number - 1) if own else -1] for k in range(len(periods))]
        seen += judged(learner, answers, periods, number)
        accuracy = table_of(seen, _KEY, 0)[number]
        out.say("accuracy by period: " + ", ".join(f"{value:.3f}" for value in accuracy))
    if layout is not None:
        _print(layout, (way, periods, seen), time.monotonic() - began, out)


def _shorter(path: Path | None, rounds: int) -> tuple[TaskSettings, str]:
    settings = load_settings(path or example_settings("hospital").with_name("continual.toml"))
    name, model = next(iter(settings.models.items()))
    return settings.model_copy(update={"models": {name: model.model_copy(update={"rounds": rounds})}}), name


def _begin(
    plan: tuple[TaskSettings, str], way: Way, arriving: tuple[int, Period], target: Path, last: Layout | None
) -> Layout:
    """What the owner signs for a period, accepted by every site."""
    number, period = arriving
    past = None if last is None or way.method == "adapter-per-period" else left_by(last.run)[1]
    strength = Decimal(way.strength) if way.method == "ewc" else None
    manifest = period_manifest(build_manifest(*plan), number, period.name, past, strength)
    run, local = target / f"period-{number}", local_settings(*plan)
    files = _write(target / f"arrived-{number}", period)
    if last is None:
        return found(run, files, manifest, local)
    return next_link(last, run, manifest, local, files.sites)


def _write(folder: Path, period: Period) -> Written:
    names = site_names(len(period.train))
    sites = {name: folder / f"{name}.csv" for name in names}
    for name, records in zip(names, period.train, strict=True):
        write_records(sites[name], records)
    write_records(folder / "test.csv", [record for site in period.test for record in site])
    return Written(sites, folder / "test.csv")


def _arrivals(layout: Layout, way: Way) -> list[str]:
    """As `secagg arrive` does at each hospital, with what was handed out with the documents."""
    share = way.replay if way.method == "replay" else Fraction(0)
    lines = []
    for name, path in layout.consortium.clients.items():
        site = load_site(path)
        came = arrive(private_state(site), site.data, site.data, share, Csprng.from_os())
        lines.append(f"{name}: {came.arrived} records arrived, {came.kept} of earlier periods stay")
    return lines


def _print(layout: Layout, lived: tuple[Way, Sequence[Period], list[Seen]], seconds: float, out: Output) -> None:
    way, periods, seen = lived
    everywhere = lifelong(table_of(seen, _KEY, 0))
    names = layout.consortium.clients
    by_site = {name: lifelong(table_of(seen, _KEY, k)) for k, name in enumerate(names, start=1)}
    runs = [str(layout.run.with_name(f"period-{k}")) for k in range(1, len(periods) + 1)]
    value: dict[str, Any] = {
        "result": "finished",
        "way": way.method,
        "runs": runs,
        "accuracy": table_of(seen, _KEY, 0),
        "average": everywhere.average,
        "forgetting": everywhere.forgetting,
        "forward": everywhere.forward,
        "by_site": {name: asdict(figures) for name, figures in by_site.items()},
        "spent": _spent(layout),
        "seconds": round(seconds),
    }
    if out.format is Format.json:
        out.result(value, "")
        return
    table = Table("after", *(f"on period {k}" for k in range(1, len(periods) + 1)), title=f"accuracy, {way.method}")
    for after, row in enumerate(table_of(seen, _KEY, 0)):
        table.add_row(f"period {after}" if after else "before any", *(f"{score:.3f}" for score in row))
    out.result(value, table)
    figures = Table("records of", "average", "forgetting", "forward transfer")
    for name, own in {"all": everywhere, **by_site}.items():
        figures.add_row(name, *(f"{value:.3f}" for value in (own.average, own.forgetting, own.forward)))
    out.result(value, figures)
    out.result(
        value,
        f"{next(iter(names))}'s ledger: {value['spent']}\n"
        f"{seconds:.0f} s; next: " + "\n      ".join(f"secagg report verify {run}/report.json" for run in runs),
    )


def _spent(layout: Layout) -> str:
    """Of the first hospital; each is charged alike."""
    site = load_site(next(iter(layout.consortium.clients.values())))
    p, spent = site.manifest.privacy, spent_at(site)
    if spent is None:
        return "nothing charged"
    last = spent.last
    return f"ε = {spent.epsilon} of {p.epsilon} at δ = {p.delta}, last charged in round {last.round} of {last.task}"
