"""What privacy costs and what the federation gains: the hospital example over several seeds.

`python -m benchmarks.utility [--json] [--seeds 3] [--model bert-tiny]`

A seed draws another split, partition, adapter start and noise. Every method sees the same split and, in the mean, the
same number of samples. The federation runs inside this process (`ffm.baselines`): masks cancel and change no figure.
"""

import argparse
import hashlib
import json
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dp.sampling import Csprng
from ffm.baselines import Bench
from ffm.models import locate, offline
from ffm.task import TaskSettings, build_manifest, load_settings
from ffm.tasks.finetune import accuracy, macro_f1

SETTINGS = Path(__file__).parent.parent / "examples" / "hospital" / "settings.toml"


def _rng(*parts: object) -> Csprng:
    """Pinned, so that a row can be repeated; a real run seeds from the operating system."""
    return Csprng(hashlib.sha256(repr(parts).encode()).digest())


def run_seed(settings: TaskSettings, model: str, seed: int) -> dict[str, Any]:
    """Accuracy and macro-F1 of every method for one seed."""
    data = settings.data.model_copy(update={"seed": seed})
    settings = settings.model_copy(update={"adapter_seed": settings.adapter_seed + seed, "data": data})
    with tempfile.TemporaryDirectory() as folder:
        written = data.write(Path(folder))
        manifest = build_manifest(settings, model)
        bench = Bench(manifest, locate(settings.model(model).base_model), tuple(written.sites.values()), written.test)
    jobs = [partial(bench.federated, _rng("dp", seed), private=True)]
    jobs.append(partial(bench.federated, _rng("plain", seed), private=False))
    jobs += [partial(bench.alone_with_dp, site, _rng("alone", seed, site)) for site in range(len(bench.sites))]
    started = time.monotonic()
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rows = [bench.majority(), *(future.result() for future in [pool.submit(job) for job in jobs])]
    score = {
        row.name: {
            "accuracy": round(accuracy(row.confusion), 4),
            "macro_f1": round(macro_f1(row.confusion), 4),
            "samples_seen": row.samples_seen,
        }
        for row in rows
    }
    alone = sorted(value["accuracy"] for name, value in score.items() if "alone" in name)
    return {
        "seed": seed,
        "records": [len(site["labels"]) for site in bench.sites],
        "methods": score,
        "median_alone": statistics.median(alone),
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    """Run the seeds and print a table, or with --json one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="bert-tiny")
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    options = parser.parse_args()
    offline()
    settings = load_settings(options.settings)
    rows = []
    for seed in range(1, options.seeds + 1):
        rows.append(run_seed(settings, options.model, seed))
        if not options.json:
            best = {name: value["accuracy"] for name, value in rows[-1]["methods"].items()}
            print(f"seed {seed}: median alone {rows[-1]['median_alone']:.3f}  {best}", flush=True)

    def mean(name: str) -> float:
        return float(statistics.mean(row["methods"][name]["accuracy"] for row in rows))

    private, alone = mean("federated, DP"), statistics.mean(row["median_alone"] for row in rows)
    gaps = {
        "federated DP above the majority class (accuracy, mean over seeds)": private - mean("majority class"),
        "federated DP above the median hospital alone with DP": private - alone,
    }
    bars = [{"name": name, "value": round(gap, 4), "limit": 0, "holds": gap > 0} for name, gap in gaps.items()]
    if options.json:
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        print(
            json.dumps(
                {
                    "benchmark": "utility",
                    "model": options.model,
                    "versions": versions,
                    "machine": platform.machine(),
                    "repetitions": len(rows),
                    "rows": rows,
                    "bars": bars,
                }
            )
        )
    else:
        for bar in bars:
            print(f"{'holds' if bar['holds'] else 'MISSED'}  {bar['name']}: {bar['value']:+.4f}")


if __name__ == "__main__":
    main()
