"""`secagg evaluate --task pretrain`: a masked language model learns medical text, at the server and at five hospitals.

The public phase is the same for all. From its result the hospitals go on together, each by itself, or with all texts in
one place, with DP and without; and a chain of phases alternates under one budget. Perplexity per hidden token on
held-out texts of all hospitals, and at the hospital where it is worst.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from ffm.evaluate.arms import Arms, Say, download_bytes, seeded, upload_bytes, without_dp
from ffm.evaluate.study import NO_DP, Claim, Row, Study
from ffm.task import TaskSettings, load_settings
from ffm.tasks.pretrain import Perplexities, Phase, PhaseResult, Pretraining, run_seeded

PUBLIC, FEDERATED = Phase("public", "public"), Phase("federated", "federated")
_KEY: Final = "perplexity"
ONCE, CHAIN = "public, then federated", "alternating, two phases each"


def run(folder: Path, seeds: Sequence[int], quick: bool, say: Say) -> Study:
    """All arms for every seed. `folder`: of the example, with `pretrain.toml`."""
    settings = load_settings(folder / "pretrain.toml")
    if quick:
        settings = _smaller(settings)
    rows: list[Row] = []
    phases: list[dict[str, Any]] = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as work:
            rows += _seed(seeded(settings, seed), seed, Path(work), say, phases)
    public, federated, p = settings.models["public"], settings.models["federated"], settings.privacy
    private = f"{p.protocol}, ε = {p.epsilon}"
    study = Study(
        task="pretrain",
        title="Pre-training: medical text at a server and at five hospitals",
        what=f"{settings.data.sentence()}. BERT-tiny, masked tokens. Public phase: all parameters, at most "
        f"{public.rounds} times {public.local_steps} steps, until the loss on public validation text stops falling. "
        f"Federated phase: FFA-LoRA, merged at its end, {federated.rounds} rounds of {federated.local_steps} steps, "
        f"each on a hospital's texts with probability {federated.sampling}; with DP (R2) ε = {p.epsilon} at "
        f"δ = {p.delta} for both federated phases of the chain together, so one phase alone spends less. Codes' "
        "descriptions, not notes about patients.",
        headline=_KEY,
        rows=tuple(rows),
        quick=quick,
        extra={"phases": phases},
    )
    return study.with_claims(
        [
            Claim(f"perplexity that {method} gain on public only, {privacy}", _gain(study, method, privacy), 0.0, True)
            for privacy in (NO_DP, private)
            for method in (ONCE, CHAIN)
        ]
    )


def _gain(study: Study, method: str, privacy: str) -> float:
    return study.mean("public only", NO_DP) - study.mean(method, privacy)


def _smaller(settings: TaskSettings) -> TaskSettings:
    data = settings.data.model_copy(update={"cap_per_chapter": 30})
    models = {name: model.model_copy(update={"rounds": 3}) for name, model in settings.models.items()}
    return settings.model_copy(update={"data": data, "models": models})


def _seed(settings: TaskSettings, seed: int, work: Path, say: Say, phases: list[dict[str, Any]]) -> list[Row]:
    def chain(name: str, plan: TaskSettings, *order: Phase) -> tuple[PhaseResult, ...]:
        results = run_seeded(Pretraining(plan, order), seed, work / name, lambda line: say(f"seed {seed}: {line}"))
        phases.extend(_of_phase(result, name, seed) for result in results)
        return results

    plain, p = without_dp(settings), settings.privacy
    private = f"{p.protocol}, ε = {p.epsilon}"
    (public,) = chain("public", settings, PUBLIC)
    rows = [_row("no training", NO_DP, seed, public.before), _row("public only", NO_DP, seed, public.after)]
    for made, dp in ((plain, False), (settings, True)):
        section = made.models["federated"].model_copy(update={"base_model": str(public.model)})
        arms = Arms.load(made.model_copy(update={"models": {"federated": section}}), "federated", seed)
        say(f"seed {seed}: from the public model, {'with' if dp else 'without'} DP")
        rows.append(arms.federated(ONCE, dp))
        rows.append(arms.centralised(dp, "public, then centralised"))
        rows += [arms.alone(site, dp) for site in range(len(arms.names))]
        last = chain(f"alternating, {'R2' if dp else 'no DP'}", made, PUBLIC, FEDERATED, PUBLIC, FEDERATED)[-1]
        rows.append(_row(CHAIN, private if dp else NO_DP, seed, last.after, last))
    return rows


def _row(method: str, privacy: str, seed: int, found: Perplexities, phase: PhaseResult | None = None) -> Row:
    return Row(
        method=method,
        privacy=privacy,
        seed=seed,
        scores={_KEY: found.held_out, "public validation": found.public},
        worst=max(found.clients.values()),
        bytes_up=upload_bytes(phase.manifest) if phase else 0,
        bytes_down=download_bytes(phase.manifest) if phase else 0,
    )


def _of_phase(result: PhaseResult, chain: str, seed: int) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "chain": chain,
        "seed": seed,
        "phase": result.number,
        "kind": result.kind,
        "rounds": result.rounds,
        "ended by the plateau": result.stopped,
        "epsilon so far": result.epsilon,
        "validation loss": [round(loss, 4) for loss in result.losses],
        "before": _rounded(result.before),
        "after": _rounded(result.after),
        "seconds": round(result.seconds, 1),
    }


def _rounded(found: Perplexities) -> dict[str, Any]:
    body = asdict(found)
    clients = {name: round(value, 2) for name, value in found.clients.items()}
    return {**{name: round(body[name], 2) for name in ("public", "held_out")}, "clients": clients}
