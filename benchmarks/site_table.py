"""What `benchmarks.heart` and `benchmarks.bank` share: a table's sites under R2 beside everything that one would try.

Each seed draws another split (one row in four is tested), other samples and other noise. AUC is pooled over the test
rows of all sites and for each site; accuracy is at a threshold that no test label chose: the highest public share of
the scores is called positive. All private methods have the same sampling, steps and ε, and see as many samples; masks
are left out, they cancel. Plain baseline: ridge logistic regression on the table, without DP.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.bench import Bar, Report, parser, publish
from ffm.models import locate
from ffm.scores import interval
from ffm.sources import TableSource
from ffm.table_arms import ACCURACY, ALL, NAMES, Arms, Figures
from ffm.task import build_manifest, example_settings, load_settings

WITHIN = 0.02
R2, CENTRAL = NAMES["federated-dp"], NAMES["centralised-dp"]


def run(example: str, title: str, seeds: Sequence[int], rounds: int | None) -> Report:
    """All seeds; the bars are those of R2."""
    torch.set_num_threads(1)
    settings = load_settings(example_settings(example))
    source = settings.data
    assert isinstance(source, TableSource)
    name, model = next(iter(settings.models.items()))
    if rounds is not None:
        settings = settings.model_copy(update={"models": {name: model.model_copy(update={"rounds": rounds})}})
    manifest, figures = build_manifest(settings, name), Figures()
    for seed in seeds:
        arms = Arms.load(source.table, manifest, locate(model.base_model), seed)
        for arm in (arms.federated(), *arms.others(), arms.baseline()):
            arms.judge(arm, figures)
    mean = {key: float(np.mean(values)) for key, values in figures.items()}
    places = (ALL, *source.table.read(), ACCURACY)
    methods = dict.fromkeys(method for method, _ in figures)
    best_alone = max(mean[method, ALL] for method in methods if method.endswith(NAMES["alone-dp"]))
    p = manifest.privacy
    return Report(
        benchmark=example,
        title=title,
        what=f"Protocol R2 at ε = {p.epsilon}, δ = {p.delta} (record, add/remove, {manifest.training.rounds} rounds, "
        f"q = {p.sampling_numerator}/{p.sampling_denominator}), {name} with {manifest.adapter.method} and a "
        f"head ({manifest.adapter.size} values); {len(seeds)} seeds, mean ± half of the 95 % interval of the mean "
        "(Student's t). AUC for all test rows and for each site; accuracy with the highest "
        f"{100 * source.table.flagged:.0f} % called {source.table.labels[-1]}.",
        repetitions=len(seeds),
        rows=[{"method": m} | {where: _shown(figures[m, where]) for where in places} for m in methods],
        bars=[
            Bar("mean AUC of R2 below centralised DP-SGD", mean[CENTRAL, ALL] - mean[R2, ALL], WITHIN),
            Bar("mean AUC of R2 above the best site alone", mean[R2, ALL] - best_alone, 0.0, at_least=True),
        ],
        packages=("numpy", "torch", "transformers", "peft", "opacus"),
        extra={
            "auc": {f"{method} | {where}": v for (method, where), v in figures.items()},
            "seeds": list(seeds),
        },
    )


def _shown(values: list[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.3f} ± {half:.3f}"


def main(example: str, title: str, doc: str | None, arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    options: Any = parser(doc, 1)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--rounds", type=int, help="fewer rounds: everything runs, and no figure means anything")
    chosen = options.parse_args(arguments)
    publish(run(example, title, range(1, chosen.seeds + 1), chosen.rounds), chosen)
