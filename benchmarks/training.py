"""What DP costs in a training step: the hospital example's step with and without it, side by side.

    python -m benchmarks.training [--json] [--repetitions 7] [--batch 128] [--steps 4]

A step is `dp.training.train` as a client runs it, on as many ICD-10 texts as `--batch` says: forward, backward,
optimizer; with DP also the gradient of each record, clip, integer grid, exact bound, discrete Gaussian noise. Without
DP it is the same loop under protocol "none". One thread. On CUDA, where there is one, tokens per second and peak memory
besides.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import Bar, Report, Timing, parser, publish, side_by_side
from dp.sampling import Csprng
from dp.training import DpSgdPlan, train
from ffm.data import read_records
from ffm.learner import Learner, plan_of
from ffm.models import locate, offline
from ffm.task import build_manifest, example_settings, load_settings

BAR_MODEL, LIMIT = "minilm", 1.3
MODELS = (BAR_MODEL, "bert-tiny")
NO_CUDA = "skipped: no CUDA device"
NO_CAUSAL = "left out: no causal language model among the tasks of this version"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model on a device with one batch, and the two plans."""

    learner: Learner
    dataset: Mapping[str, torch.Tensor]
    private: DpSgdPlan
    plain: DpSgdPlan

    @classmethod
    def load(cls, model: str, batch: int, steps: int, device: str) -> "Subject":
        """Every record of the batch is in every step."""
        settings = load_settings(example_settings("hospital"))
        manifest = build_manifest(settings, model)
        with tempfile.TemporaryDirectory() as folder:
            sites = settings.data.write(Path(folder)).sites
            records = [r for path in sites.values() for r in read_records(path, manifest.training.labels)][:batch]
        learner = Learner.load(manifest, locate(settings.model(model).base_model), device)
        whole = replace(plan_of(manifest), steps=steps, sampling_numerator=1, sampling_denominator=1)
        return cls(learner, learner.tensors(records), whole, replace(whole, mechanism=None))

    def run(self, plan: DpSgdPlan) -> None:
        """The steps of one repetition; the noise is drawn from a stream of its own, as in a real process."""
        train(self.learner.model, self.dataset, plan, Csprng.from_os(), self.learner.task)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    @property
    def contenders(self) -> dict[str, Callable[[], None]]:
        """With and without DP."""
        return {"DP": partial(self.run, self.private), "no DP": partial(self.run, self.plain)}

    def row(self, model: str, name: str, times: Mapping[str, Timing]) -> dict[str, Any]:
        """One line of the table; seconds of one step."""
        steps, tokens = self.plain.steps, int(self.dataset["attention_mask"].sum())
        dp, plain = (times[key].best / steps for key in ("DP", "no DP"))
        return {
            "model": model,
            "device": name,
            "trained values": self.learner.manifest.adapter.size,
            "records": len(self.dataset["labels"]),
            "tokens": tokens,
            "DP s/step": dp,
            "no DP s/step": plain,
            "ratio": dp / plain,
            "ratio of medians": times["DP"].median / times["no DP"].median,
            "DP tokens/s": tokens / dp,
            "no DP tokens/s": tokens / plain,
        }


def gpu_rows(batch: int, steps: int, repetitions: int) -> list[dict[str, Any]]:
    """On CUDA, with the peak of allocated memory of each; [] without it."""
    rows = []
    for model in MODELS if torch.cuda.is_available() else ():
        subject = Subject.load(model, batch, steps, "cuda")
        row = subject.row(model, torch.cuda.get_device_name(), side_by_side(subject.contenders, repetitions))
        for name, contender in subject.contenders.items():
            torch.cuda.reset_peak_memory_stats()
            contender()
            row[f"{name} peak MiB"] = torch.cuda.max_memory_allocated() / 2**20
        rows.append(row)
    return rows


def measure(options: argparse.Namespace) -> Report:
    """All rows; the bar is MiniLM's on the CPU."""
    torch.set_num_threads(1)
    offline()
    rows = []
    for model in MODELS:
        subject = Subject.load(model, options.batch, options.steps, "cpu")
        rows.append(subject.row(model, "cpu, 1 thread", side_by_side(subject.contenders, options.repetitions)))
    ratio = next(row["ratio"] for row in rows if row["model"] == BAR_MODEL)
    gpu = gpu_rows(options.batch, options.steps, options.repetitions)
    return Report(
        benchmark="training",
        title="A training step with and without DP",
        what=f"FFA-LoRA of the hospital example (rank 4 on the last layer, and the head), {options.batch} records of "
        f"at most 32 tokens, the best of {options.repetitions} repetitions of {options.steps} steps each, in turn. DP: "
        "the gradient of each record, clipped, on the integer grid, the bound compared exactly, integer noise.",
        repetitions=options.repetitions,
        rows=rows + gpu,
        bars=[Bar(f"{BAR_MODEL}, batch {options.batch}, CPU: step with DP over step without", ratio, LIMIT)],
        packages=("torch", "opacus", "peft", "transformers", "numpy"),
        extra={"gpu": "measured" if gpu else NO_CUDA, "causal LM of 135M": NO_CAUSAL},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 0 whatever the bars say, as of every benchmark."""
    made = parser(__doc__, repetitions=7)
    made.add_argument("--batch", type=int, default=128, help="records of a step (default %(default)s)")
    made.add_argument("--steps", type=int, default=4, help="steps of a repetition (default %(default)s)")
    options = made.parse_args(arguments)
    publish(measure(options), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
