"""`secagg demo run SETTINGS`: any task, also one of the consortium's own, judged by the task's own scores."""

import time
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table

from dp.sampling import Csprng
from ffm.cli.demo import model_of, show
from ffm.cli.output import Format, Output, quiet_libraries
from ffm.cli.running import run_until_signal
from ffm.demo import Layout, Play, prepare
from ffm.federation import Federation
from ffm.local_setup import personal_file
from ffm.personal import PersonalState
from ffm.site import load_site
from ffm.start import new_run_id, private_state
from ffm.task import TaskSettings, load_settings
from ffm.tasks import Scores


def run(settings_path: Path, model: str | None, folder: Path, device: str, out: Output) -> None:
    """Play the federation, then judge it beside the same one without DP, and each site alone or with what it keeps."""
    quiet_libraries()
    began = time.monotonic()
    settings = load_settings(settings_path)
    target = folder / new_run_id(datetime.now(UTC))
    target.mkdir(parents=True)
    out.say(f"run folder {target}")
    layout = prepare(target, settings, model or next(iter(settings.models)))
    names = ", ".join(layout.consortium.clients)
    out.say(f"{names}: {layout.manifest.adapter.size} trainable parameters; starting processes")
    run_until_signal(Play(layout, device, lambda name, event: show(out, name, event)).run())
    out.say("comparing: the same without DP, each site alone or with what it keeps for itself")
    rows = compare(settings, layout)
    seconds = time.monotonic() - began
    value = {"result": "finished", "run": str(layout.run), "scores": rows, "seconds": round(seconds)}
    if out.format is Format.json:
        out.result(value, "")
        return
    columns = list(rows["federated"])
    table = Table(layout.manifest.training.task, *columns, title=layout.manifest.task)
    for name, scores in rows.items():
        table.add_row(name, *(f"{scores[column]:.3f}" for column in columns))
    out.result(value, table)
    private = layout.manifest.privacy.protocol != "none"
    report = f"\nnext: secagg report verify {layout.run}/report.json" if private else ""
    out.result(value, f"{seconds:.0f} s; everything is in {layout.run}{report}")


def compare(settings: TaskSettings, layout: Layout) -> dict[str, Scores]:
    """Scores of each way of training on the public test file."""
    task, manifest = settings.find_task(), layout.manifest
    sites = [task.read(path, manifest.training) for path in layout.site_files]
    task_file = Path(settings.task_file) if settings.task_file else None
    arms = Federation.load(manifest, layout.base_model, sites, task_file)
    test = arms.learner.tensors(task.read(layout.test_file, manifest.training))
    rows = {"federated": arms.scores(model_of(layout), test)}
    if manifest.privacy.protocol != "none":
        rows["federated, no DP"] = arms.scores(arms.federated(Csprng.from_os(), private=False), test)
    for number, (name, folder) in enumerate(layout.consortium.clients.items()):
        if manifest.adapter.personal:  # one party alone has none; what each site keeps stands beside the common model
            path = personal_file(private_state(load_site(folder)), manifest)
            kept = PersonalState.open(manifest, path, arms.personal_start)
            rows[f"{name}, own model"] = arms.scores(model_of(layout), test, kept.kept)
        else:
            rows[f"{name} alone"] = arms.scores(arms.alone(number, Csprng.from_os()), test)
    rows["before training"] = arms.scores(arms.start, test)
    return rows
