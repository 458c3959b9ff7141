"""`secagg evaluate --task adapters`: every method of adaptation on one split, and what a site gains by keeping a part.

The settings have a section for each row. One without noise is trained without DP, by federated averaging of several
local steps; one with noise under the settings' protocol, and where that refuses it, its words are a note.

The error of averaging is ‖mean(B A) − mean(B) mean(A)‖ over all adapted layers (Frobenius) in the last round, relative
to ‖mean(B A)‖: from the sites' single adapters, which no real server ever sees. Methods that multiply nothing have
none, nor has R2, whose sites sum gradients.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from ffm.adapters import AggregationError, exact_under_summation
from ffm.errors import AdapterError, DataError
from ffm.evaluate.arms import Arms, Say, Split, Wanted, seeded, without_dp
from ffm.evaluate.sections import smaller
from ffm.evaluate.study import NO_DP, Claim, Row, Study
from ffm.federation import Personalised
from ffm.local_setup import CPU, Compute
from ffm.step import Model
from ffm.task import ModelSettings, TaskSettings, load_settings

COMMON: Final = "on own records"  # the common model
OWN: Final = "own model"  # what a site keeps beside it, on the same records
ERROR: Final = "error of averaging"
HEAD: Final = ", personal head"
EXACT: Final = 1e-6  # a relative error that rounding explains
_REFUSALS: Final = ("E507", "E515")  # of a method, and of a manifest


@dataclass(frozen=True, slots=True)
class Bench:
    """The settings and what is gathered beside the rows."""

    settings: TaskSettings
    compute: Compute = CPU
    refused: dict[str, str] = field(default_factory=dict)  # by row, in the words of what refuses it
    layers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by row: errors of the last round

    def rows(self, seed: int, say: Say) -> list[Row]:
        """All sections on one split."""
        rows: list[Row] = []
        split: Split | None = None
        for name in self.settings.models:
            say(f"seed {seed}: {name}")
            arms = self.load(name, seed, split)
            if arms is not None:
                split = arms.split
                rows.append(self.judged(arms, self.settings.models[name]))
        return rows

    def load(self, name: str, seed: int, split: Split | None = None) -> Arms | None:
        """A section's model and records; None where its protocol refuses it."""
        model, private = self.settings.models[name], _private(self.settings.models[name])
        settings = seeded(self.settings if private else without_dp(self.settings), seed)
        try:
            return Arms.load(settings, name, seed, split, self.compute)
        except (AdapterError, DataError) as error:
            if not private or error.code not in _REFUSALS:
                raise
            plan = f"{settings.privacy.protocol} with {model.server.optimizer}"
            self.refused[f"{label(model)}, {plan}"] = f"{error.code}, {error}"
            return None

    def judged(self, arms: Arms, model: ModelSettings) -> Row:
        """Train; judge the common model on all records and on each site's, and what each site keeps on its own."""
        private, federation, key = _private(model), arms.federation, arms.federation.learner.task.headline
        kept: list[Personalised] = []
        errors: list[AggregationError] = []

        def learn() -> Model:
            rng = arms.rng("federated", private)
            if arms.manifest.privacy.protocol == "R2":
                kept.append(federation.personalised(rng, private))
            else:
                trained, rounds = federation.with_errors(rng, private)
                kept.append(trained)
                errors.append(rounds[-1])
            return kept[0].model

        row = arms.row(label(model), arms.privacy(private), learn)
        places = [place for place, name in enumerate(arms.names) if name in arms.tests]
        here = replace(kept[0], personal=tuple(kept[0].personal[place] for place in places))
        both = federation.site_scores(here, [arms.tests[arms.names[place]] for place in places])
        scores = {key: row.scores[key], COMMON: fmean(common[key] for common, _ in both)}
        if arms.manifest.adapter.personal:
            scores[OWN] = fmean(own[key] for _, own in both)
        if errors and errors[0].layers:
            scores[ERROR] = errors[0].total.relative
            self.layers[f"{row.method}, seed {row.seed}"] = [
                {**asdict(layer), "relative": layer.relative} for layer in errors[0].layers
            ]
        facts: dict[str, str | int] = {
            "shared": arms.manifest.adapter.size,
            "personal": len(kept[0].personal[0]),
            "exact": "yes" if exact_under_summation(arms.manifest) else "no",
        }
        return replace(row, scores=scores, facts=facts)


def run(folder: Path, wanted: Wanted) -> Study:
    """All sections for every seed. `folder`: of the example, with `adapters.toml`."""
    settings = load_settings(folder / "adapters.toml")
    if wanted.quick:
        settings = _smaller(settings)
    bench = Bench(settings, wanted.compute)
    rows = [row for seed in wanted.seeds for row in bench.rows(seed, wanted.say)]
    study = Study(
        task="adapters",
        title="Methods of adaptation: what is shared, what stays, and what averaging does",
        what=_what(settings),
        headline="accuracy",
        rows=tuple(rows),
        quick=wanted.quick,
        notes=tuple(f"Refused: {name}: {reason}." for name, reason in bench.refused.items()),
        extra={"refused": bench.refused, "error of averaging by layer, last round": bench.layers},
    )
    return study.with_claims(claims(study))


def claims(study: Study) -> list[Claim]:
    """What averaging does is what a method says of itself; what is kept pays where it is kept."""
    errors: dict[str, list[float]] = {"yes": [], "no": []}
    for row in study.rows:
        if ERROR in row.scores:
            errors[str(row.facts["exact"])].append(row.scores[ERROR])
    nothing = float("nan")
    found = [
        Claim("largest error of a method that calls itself exact", max(errors["yes"], default=nothing), EXACT, False),
        Claim("smallest error of a method that calls itself inexact", min(errors["no"], default=nothing), EXACT, True),
    ]
    for method, common in (("ffa-lora" + HEAD, "ffa-lora"), ("fedsa-lora", "lora"), ("fedsa-lora" + HEAD, "lora")):
        gain = study.mean(method, NO_DP, OWN) - study.mean(common, NO_DP, COMMON)
        found.append(Claim(f"{method}: own models above the common one of {common}, on own records", gain, 0.0, True))
    return found


def label(model: ModelSettings) -> str:
    """As rows name it."""
    return model.method + (HEAD if model.personal_head else "")


def _private(model: ModelSettings) -> bool:
    return model.noise_steps > 0


def _what(settings: TaskSettings) -> str:
    p = settings.privacy
    plain, private = (_plans([m for m in settings.models.values() if _private(m) is dp]) for dp in (False, True))
    return (
        f"{settings.data.sentence()}. BERT-tiny. Without DP {plain}. With DP ({p.protocol}, ε = {p.epsilon} at "
        f"δ = {p.delta}, record, add/remove) {private}. "
        f"Accuracy over 18 chapters. '{COMMON}': the common model on each hospital's own test records, in the mean; "
        f"'{OWN}': with what each hospital kept; what is personal is at its start in the common model. "
        f"'shared', 'personal': trained values. '{ERROR}': ‖mean(B A) − mean(B) mean(A)‖ relative to "
        "‖mean(B A)‖ in the last round; 'exact': under summation."
    )


def _plans(models: Sequence[ModelSettings]) -> str:
    """The first section's plan, and that of those that differ from it."""
    plans: dict[str, list[str]] = {}
    for m in models:
        steps = f"{m.rounds} rounds of {m.local_steps} local step{'s' if m.local_steps > 1 else ''}"
        plan = f"{steps}, each on a site's records with probability {m.sampling}, server step {m.server.optimizer}"
        plans.setdefault(plan, []).append(label(m))
    first, *others = plans.items()
    return "; ".join([first[0], *(f"{', '.join(names)}: {plan}" for plan, names in others)])


def _smaller(settings: TaskSettings) -> TaskSettings:
    settings = smaller(settings, cap_per_class=40, rounds=2)
    models = {
        name: model.model_copy(update={"local_steps": min(3, model.local_steps)})
        for name, model in settings.models.items()
    }
    return settings.model_copy(update={"models": models})
