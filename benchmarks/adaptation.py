"""What averaging does to each method of adaptation, and what a site gains by keeping part of it to itself.

    python -m benchmarks.adaptation [--json] [--out FILE.json] [--rounds 20] [--cap 800] [--seed 1]

Five hospitals code diagnoses (examples/hospital/evaluate.toml, without DP: federated averaging of several local steps).
For every method, the same split, start, steps and learning rate; nothing is tuned for any of them but full training,
which takes a fifth of the rate.

The error of a round is ‖mean(B A) − mean(B) mean(A)‖ over all adapted layers (Frobenius), measured from the hospitals'
single adapters, which no real server ever sees; relative to ‖mean(B A)‖. "global" is the common model on each
hospital's own held-out records, in the mean; "own" the same with what the hospital kept.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.bench import ROOT, Bar, Report, parser, publish
from dp.sampling import Csprng
from ffm.adapters import METHODS, exact_under_summation
from ffm.evaluate.arms import Arms, seeded, without_dp
from ffm.models import offline
from ffm.task import ModelSettings, TaskSettings, load_settings

SECTION = "ffa-lora"
EXACT, FULL_RATE = 1e-6, "0.001"


@dataclass(frozen=True, slots=True)
class Variant:
    """A method, with a personal head or without."""

    method: str
    personal_head: bool = False

    @property
    def name(self) -> str:
        """As in the table."""
        return self.method + (", personal head" if self.personal_head else "")

    def settings(self, like: ModelSettings) -> ModelSettings:
        """The plan of `like` with this adapter."""
        uses = METHODS[self.method].uses
        changes: dict[str, Any] = {"method": self.method, "personal_head": self.personal_head}
        changes |= {"rank": 0, "alpha": 0, "target_modules": ()} if "rank" not in uses else {}
        changes |= {"virtual_tokens": 8} if "virtual_tokens" in uses else {}
        changes |= {"learning_rate": FULL_RATE} if self.method == "full" else {}
        return like.model_copy(update=changes)


VARIANTS = (*(Variant(name) for name in METHODS), Variant("ffa-lora", True), Variant("fedsa-lora", True))


def row_of(variant: Variant, settings: TaskSettings, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train and measure one variant; also the error of each layer in the last round."""
    models = {SECTION: variant.settings(settings.models[SECTION])}
    arms = Arms.load(seeded(settings.model_copy(update={"models": models}), seed), SECTION, seed)
    federation, adapter = arms.federation, arms.manifest.adapter
    trained, errors = federation.with_errors(Csprng(seed.to_bytes(32, "big")), private=False)
    places = [place for place, name in enumerate(arms.names) if name in arms.tests]
    pairs = [
        (federation.scores(trained.model, test), federation.scores(trained.model, test, trained.personal[place]))
        for place, test in ((place, arms.tests[arms.names[place]]) for place in places)
    ]
    first, last = errors[0].total, errors[-1].total
    layers = [{"layer": x.layer, "error": x.error, "relative": x.relative} for x in errors[-1].layers]
    row = {
        "method": variant.name,
        "shared": adapter.size,
        "personal": len(trained.personal[0]),
        "exact": exact_under_summation(arms.manifest),
        "error, round 1": first.error,
        "relative, round 1": first.relative,
        "error, last round": last.error,
        "relative, last round": last.relative,
        "global": sum(shared["accuracy"] for shared, _ in pairs) / len(pairs),
        "own": sum(own["accuracy"] for _, own in pairs) / len(pairs),
    }
    return row, layers


def main(arguments: Sequence[str]) -> None:
    """Measure, print, store."""
    options = _options(arguments)
    offline()
    torch.set_num_threads(1)
    settings = without_dp(load_settings(ROOT / "examples" / "hospital" / "evaluate.toml"))
    like = settings.models[SECTION].model_copy(update={"rounds": options.rounds})
    data = settings.data.model_copy(update={"cap_per_class": options.cap})
    settings = settings.model_copy(update={"data": data, "models": {SECTION: like}})
    wanted = [v for v in VARIANTS if options.only is None or v.name in options.only.split(";")]
    rows, layers = [], {}
    for variant in wanted:
        row, layers[variant.name] = row_of(variant, settings, options.seed)
        rows.append(row)
        print(variant.name, file=sys.stderr, flush=True)
    exact = [row["relative, last round"] for row in rows if row["exact"]]
    about = " ".join((__doc__ or "").split("[--seed 1]")[1].split())
    report = Report(
        benchmark="adaptation",
        title="Methods of adaptation: error of averaging, personal parts",
        what=f"{about} {options.rounds} rounds of {like.local_steps} local steps, at most {options.cap} training "
        f"records of a chapter, seed {options.seed}.",
        repetitions=1,
        rows=rows,
        bars=[Bar("largest relative error of a method that calls itself exact", max(exact, default=0.0), EXACT)],
        packages=("torch", "transformers", "peft", "opacus"),
        extra={"layers, last round": layers},
    )
    publish(report, options)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser(__doc__, 1)
    made.add_argument("--rounds", type=int, default=20)
    made.add_argument("--cap", type=int, default=800, help="training records of a chapter, at most")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--only", help="names of the table, separated by semicolons")
    return made.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
