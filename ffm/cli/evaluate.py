"""`secagg evaluate`: one task's table, as text, JSON and a page."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import typer

from ffm.cli.output import Format, Output, quiet_libraries
from ffm.errors import TaskError
from ffm.evaluate import adapters, continual, finetune, pretrain, sections
from ffm.evaluate.arms import Wanted
from ffm.evaluate.page import markdown, render, table, versions
from ffm.evaluate.study import Study
from ffm.local_setup import Compute
from ffm.task import example_settings

Run = Callable[[Path, Wanted], Study]
# task: what runs it, and the example whose settings it takes
STUDIES: Final[Mapping[str, tuple[Run, str]]] = {
    "finetune": (finetune.run, "hospital"),
    "adapters": (adapters.run, "hospital"),
    "continual": (continual.run, "hospital"),
    "pretrain": (pretrain.run, "hospital"),
    "prompt": (sections.prompt, "hospital"),
    "prompt-lm": (sections.prompt_lm, "hospital"),
}


def evaluate(task: str, asked: tuple[int, bool, str], out_folder: Path | None, out: Output) -> None:
    """Run and print; with `out_folder` also TASK.json, TASK.md and TASK.html there. `asked`: number of seeds, whether
    quick, device."""
    seeds, quick, device = asked
    quiet_libraries()
    if task not in STUDIES:
        raise TaskError("no such evaluation", found=task, expected=" or ".join(STUDIES), code="E531")
    run, example = STUDIES[task]
    if quick and out_folder is not None:
        _keep_evidence(out_folder / f"{task}.json")
    folder = example_settings(example).parent
    study = run(folder, Wanted(range(1, (1 if quick else seeds) + 1), quick, out.say, Compute(device)))
    value = {**study.as_json(), "versions": versions()}
    if out_folder is not None:
        out_folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(value, indent=1, ensure_ascii=False)
        (out_folder / f"{task}.json").write_text(text + "\n", encoding="utf-8")
        (out_folder / f"{task}.md").write_text(markdown(study), encoding="utf-8")
        (out_folder / f"{task}.html").write_text(render(study), encoding="utf-8")
    if out.format is Format.json:
        out.result(value, "")
        return
    out.result(value, study.title + ("\nquick: small and few, no figure is evidence" if quick else ""))
    columns, lines = table(study)
    widths = [max(len(line[k]) for line in (columns, *lines)) for k in range(len(columns))]
    for line in (columns, *lines):
        out.result(value, "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for claim in study.claims:
        sense = "at least" if claim.at_least else "at most"
        verdict = "yes" if claim.holds else "no"
        out.result(value, f"{claim.text}: {claim.shown} ({sense} {claim.limit:g}): {verdict}")
    for note in study.notes:
        out.result(value, note)


def _keep_evidence(path: Path) -> None:
    """Refuse, before anything is trained, to let a quick run take the place of figures."""
    try:
        evidence = json.loads(path.read_text("utf-8"))["evidence"] if path.exists() else False
    except (ValueError, LookupError, TypeError):
        return
    if evidence:
        what = f"{path} holds figures that are evidence, and a quick run would take their place: name another folder"
        raise typer.BadParameter(what, param_hint="--out")
