"""One plan with noise in shares over several sections of a settings file: adapters or models side by side.

For every section and seed: as it starts, federated, centralised, every site alone, and the best of them for as many
samples as all see together, each with DP and without. Under R2 a federation without noise sums the gradients of the
union of the records: what is left between it and the centralised model is the draw of samples.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ffm.evaluate.arms import ALONE, MORE, Arms, Split, Wanted, best_alone, seeded
from ffm.evaluate.study import NO_DP, Row, Study
from ffm.task import TaskSettings, load_settings


def prompt(folder: Path, wanted: Wanted) -> Study:
    """Soft prompts of the encoder, beside FFA-LoRA."""
    settings = load_settings(folder / "prompt.toml")
    if wanted.quick:
        settings = smaller(settings, cap_per_class=40, rounds=3)
    title = "Prompt tuning: soft prompts for an encoder that codes diagnoses"
    return _study("prompt", title, "accuracy", settings, _rows(settings, wanted), wanted.quick)


def prompt_lm(folder: Path, wanted: Wanted) -> Study:
    """Soft prompts of SmolLM2-135M that answers with the chapter of a diagnosis."""
    settings = load_settings(folder / "prompt-lm.toml")
    if wanted.quick:
        settings = smaller(settings, cap_per_class=5, rounds=1)
    title = "Prompt tuning: soft prompts for SmolLM2-135M-Instruct that names the chapter of a diagnosis"
    return _study("prompt-lm", title, "perplexity", settings, _rows(settings, wanted), wanted.quick)


def smaller(settings: TaskSettings, cap_per_class: int, rounds: int) -> TaskSettings:
    """For a quick run."""
    data = settings.data.model_copy(update={"cap_per_class": cap_per_class})
    models = {name: model.model_copy(update={"rounds": rounds}) for name, model in settings.models.items()}
    return settings.model_copy(update={"data": data, "models": models})


def _rows(settings: TaskSettings, wanted: Wanted) -> list[Row]:
    rows: list[Row] = []
    for seed in wanted.seeds:
        split: Split | None = None
        for name in settings.models:
            wanted.say(f"seed {seed}: {name}")
            arms = Arms.load(seeded(settings, seed), name, seed, split, wanted.compute)
            split = arms.split
            start = arms.row("start", NO_DP, lambda arms=arms: arms.federation.start, wire=False)  # type: ignore[misc]
            rows.append(replace(start, method=f"{name}, untrained", samples=0, seconds=float("nan")))
            for private in (False, True):
                rows.append(arms.federated(f"{name}, federated", private))
                rows.append(arms.centralised(private, f"{name}, centralised"))
                rows += arms.alone(wanted.alone(len(arms.names)), private, f"{name}, {ALONE}")
    key, lower = arms.federation.learner.task.headline, arms.federation.learner.task.lower_is_better
    for name in settings.models:
        rows += best_alone(rows, key, lower, f"{name}, {ALONE}")
    return rows


def _study(
    task: str, title: str, headline: str, settings: TaskSettings, rows: Sequence[Row], quick: bool, **more: Any
) -> Study:
    first, p = next(iter(settings.models.values())), settings.privacy
    what = (
        f"{settings.data.sentence()}. {first.rounds} rounds, each on a site's records with probability "
        f"{first.sampling}; with DP ε = {p.epsilon} at δ = {p.delta}, {p.protocol}, record, add/remove. {MORE}"
    )
    return Study(task, title, what, headline, tuple(rows), quick=quick, **more)
