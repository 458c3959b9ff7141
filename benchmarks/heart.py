"""Four real hospitals at ε = 3: noise shares inside the masked sum (R2) beside everything that one would try instead.

    python -m benchmarks.heart [--json] [--out FILE.json] [--seeds 5] [--rounds 30]

Each seed draws another split (one patient in four is tested), other samples and other noise. AUC is pooled over the
test patients of all hospitals and for each hospital; accuracy is at a threshold that no test label chose: the highest
55 % of the scores are called ill, a public figure. All private methods have the same sampling, steps and ε, and see as
many samples; masks are left out, they cancel. Plain baseline: ridge logistic regression on the table, without DP.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench import ROOT, Bar, Report, parser, publish
from dp.sampling import Csprng
from ffm import heart
from ffm.federation import Federation
from ffm.models import locate
from ffm.scores import Reals, accuracy_at_share, auc, interval, logistic_regression
from ffm.task import build_manifest, load_settings
from protocol.manifest import Manifest

SHARE_ILL = 0.55
WITHIN = 0.02
POOLED, ACCURACY = "all", "accuracy"
R2, R1, CENTRAL, NO_DP, TABLE = "R2", "R1", "centralised DP-SGD", "no DP, centralised", "logistic regression, no DP"


@dataclass
class Figures:
    """AUC by method and hospital, and accuracy by method; one value per seed."""

    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, method: str, scores: Reals, patients: dict[str, tuple[heart.Row, ...]]) -> None:
        """Scores in the order of the hospitals' test patients."""
        labels = heart.labels([row for rows in patients.values() for row in rows])
        self._put(method, POOLED, auc(scores, labels))
        self._put(method, ACCURACY, accuracy_at_share(scores, labels, SHARE_ILL))
        start = 0
        for site, rows in patients.items():
            part = slice(start, start + len(rows))
            self._put(method, site, auc(scores[part], labels[part]))
            start += len(rows)

    def mean(self, method: str, where: str = POOLED) -> float:
        """Over the seeds."""
        return float(np.mean(self.values[method, where]))

    def methods(self) -> list[str]:
        """In the order of arrival."""
        return list(dict.fromkeys(method for method, _ in self.values))

    def _put(self, method: str, where: str, value: float) -> None:
        self.values.setdefault((method, where), []).append(value)


def one_seed(manifest: Manifest, base_model: Path, seed: int, figures: Figures) -> None:
    """Train everything once."""
    train, test = heart.split(seed)
    patients = dict(test)
    records = heart.records([row for rows in patients.values() for row in rows])
    arms = Federation.load(manifest, base_model, [heart.records(rows) for rows in train.values()])
    for method, learn in (
        (R2, arms.federated),
        (CENTRAL, arms.centralised),
        (R1, arms.local_noise),
        (NO_DP, partial(arms.centralised, private=False)),
    ):
        figures.add(method, arms.odds(learn(Csprng.from_os()), records), patients)
    for number, site in enumerate(train):
        model = arms.alone(number, Csprng.from_os())
        figures.add(f"{site} alone, DP", arms.odds(model, records), patients)
    fitted = logistic_regression(*heart.table([row for rows in train.values() for row in rows]))
    features, _ = heart.table([row for rows in patients.values() for row in rows])
    figures.add(TABLE, fitted.scores(features), patients)


def run(seeds: Sequence[int], rounds: int | None) -> Report:
    """All seeds; the bars are those of R2."""
    torch.set_num_threads(1)
    settings = load_settings(ROOT / "examples" / "heart" / "settings.toml")
    model = settings.model("bert-tiny")
    if rounds is not None:
        settings = settings.model_copy(update={"models": {"bert-tiny": model.model_copy(update={"rounds": rounds})}})
    manifest, figures = build_manifest(settings, "bert-tiny"), Figures()
    for seed in seeds:
        one_seed(manifest, locate("bert-tiny"), seed, figures)
    sites = list(heart.HOSPITALS)
    rows = [
        {"method": method} | {where: _shown(figures.values[method, where]) for where in (POOLED, *sites, ACCURACY)}
        for method in figures.methods()
    ]
    best_alone = max(figures.mean(f"{site} alone, DP") for site in sites)
    p = manifest.privacy
    return Report(
        benchmark="heart",
        title="Four hospitals, heart disease, R2",
        what=f"Protocol R2 at ε = {p.epsilon}, δ = {p.delta} (record, add/remove, {manifest.training.rounds} rounds, "
        f"q = {p.sampling_numerator}/{p.sampling_denominator}), BERT-tiny with FFA-LoRA on all linear layers and a "
        f"head ({manifest.adapter.size} values); {len(seeds)} seeds, mean ± half of the 95 % interval of the mean "
        "(Student's t). AUC for all test patients and for each hospital; accuracy with the highest 55 % called ill.",
        repetitions=len(seeds),
        rows=rows,
        bars=[
            Bar("mean AUC of R2 below centralised DP-SGD", figures.mean(CENTRAL) - figures.mean(R2), WITHIN),
            Bar("mean AUC of R2 above the best hospital alone", figures.mean(R2) - best_alone, 0.0, at_least=True),
        ],
        packages=("numpy", "torch", "transformers", "peft", "opacus"),
        extra={
            "auc": {f"{method} | {where}": v for (method, where), v in figures.values.items()},
            "seeds": list(seeds),
        },
    )


def _shown(values: list[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.3f} ± {half:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options: Any = parser(__doc__, 1)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--rounds", type=int, help="fewer rounds: everything runs, and no figure means anything")
    chosen = options.parse_args(arguments)
    publish(run(range(1, chosen.seeds + 1), chosen.rounds), chosen)


if __name__ == "__main__":
    main()
