"""`secagg evaluate --task pretrain`: a masked language model learns medical language, in public and federated phases.

Ways on the same texts: public phases alone; federated phases alone; both in turn; with DP and without. Every phase is a
manifest of its own on the merged model before it (`ffm.tasks.pretrain`).
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

from ffm.evaluate.arms import Wanted, download_bytes, upload_bytes, without_dp
from ffm.evaluate.study import NO_DP, Claim, Row, Study
from ffm.task import TaskSettings, load_settings
from ffm.tasks.pretrain import Kind, Perplexities, Phase, PhaseResult, Pretraining
from ffm.tasks.pretrain import run as live

_TURNS: Final[Mapping[str, tuple[Kind, ...]]] = {
    "public alone": ("public", "public"),
    "federated alone": ("federated", "federated"),
    "in turn": ("public", "federated", "public", "federated"),
}


def run(folder: Path, wanted: Wanted) -> Study:
    """All ways for every seed. `folder`: of the example, with `pretrain.toml`."""
    settings = load_settings(folder / "pretrain.toml")
    if wanted.quick:
        settings = _smaller(settings)
    rows: list[Row] = []
    notes: list[str] = []
    for seed in wanted.seeds:
        for way, kinds in _TURNS.items():
            for private in (True, False) if "federated" in kinds else (False,):
                wanted.say(f"seed {seed}: {way}{', DP' if private else ''}")
                turns = tuple(Phase(kind, kind) for kind in kinds)
                plan = Pretraining(settings if private else without_dp(settings), turns, compute=wanted.compute)
                with tempfile.TemporaryDirectory() as place:
                    phases = live(plan, seed, Path(place), wanted.say)
                if way == "public alone":
                    rows.append(_row("before", NO_DP, seed, phases[0].before, ()))
                rows.append(_row(way, _privacy(settings, private), seed, phases[-1].after, phases))
                notes += [_told(seed, way, private, phase) for phase in phases]
    federated, p = settings.models["federated"], settings.privacy
    study = Study(
        task="pretrain",
        title="Pre-training: a masked language model, public and federated phases in turn",
        what=f"{settings.data.sentence()}. BERT-tiny with its masked-language head. Public phases train all parameters "
        f"at the server until public validation text stops improving; federated ones {federated.rounds} rounds of "
        f"FFA-LoRA, merged back at the end; ε = {p.epsilon} at δ = {p.delta} for all of them together, {p.protocol}, "
        "record, add/remove. Perplexity of masked tokens on held-out private text; public: on public validation text.",
        headline="perplexity",
        rows=tuple(rows),
        quick=wanted.quick,
        notes=tuple(notes),
    )
    gain = study.mean("public alone", NO_DP) - study.mean("in turn", _privacy(settings, True))
    return study.with_claims([Claim("in turn with DP below public text alone, in perplexity", gain, 0.0, True)])


def _privacy(settings: TaskSettings, private: bool) -> str:
    return f"{settings.privacy.protocol}, ε = {settings.privacy.epsilon}" if private else NO_DP


def _row(method: str, privacy: str, seed: int, found: Perplexities, phases: Sequence[PhaseResult]) -> Row:
    federated = [phase for phase in phases if phase.kind == "federated"]
    clients = tuple(found.clients.values())
    return Row(
        method=method,
        privacy=privacy,
        seed=seed,
        scores={"perplexity": found.held_out, "public": found.public, "clients' mean": fmean(clients)},
        worst=max(clients),
        bytes_up=upload_bytes(federated[0].manifest) if federated else 0,
        bytes_down=download_bytes(federated[0].manifest) if federated else 0,
        seconds=sum(phase.seconds for phase in phases) if phases else float("nan"),
    )


def _told(seed: int, way: str, private: bool, phase: PhaseResult) -> str:
    spent = f", ε = {phase.epsilon} spent so far" if phase.epsilon else ""
    ended = "the plateau" if phase.stopped else "all its rounds"
    return (
        f"Seed {seed}, {way}{', DP' if private else ''}, phase {phase.number} ({phase.kind}): {phase.rounds} rounds "
        f"until {ended}, held-out perplexity {phase.before.held_out:.2f} to {phase.after.held_out:.2f}{spent}."
    )


def _smaller(settings: TaskSettings) -> TaskSettings:
    data = settings.data.model_copy(update={"cap_per_chapter": 40})
    models = {
        name: model.model_copy(update={"rounds": 2, "local_steps": min(model.local_steps, 3)})
        for name, model in settings.models.items()
    }
    return settings.model_copy(update={"data": data, "models": models})
