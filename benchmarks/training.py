"""What DP costs in a training step: the same step with and without it, side by side.

    python -m benchmarks.training [--json] [--repetitions 7] [--batch 128] [--steps 4]

A step is `dp.training.train` as a client runs it: forward, backward, optimizer; with DP also the gradient of each
record, clip, integer grid, exact bound, discrete Gaussian noise. Without DP it is the same loop under protocol "none".
The classifiers are the hospital example's, on as many ICD-10 texts as `--batch` says; the causal language model has the
shape of SmolLM2-135M and random weights, which take as long as trained ones. One thread on the CPU; on CUDA, where
there is one, the same besides, with the peak of allocated memory.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.bench import Bar, Report, Timing, parser, publish, side_by_side
from dp.mechanism import GaussianMechanism
from dp.objective import FIELDS, IDS, LABELS, MASK, Dataset, Objective
from dp.sampling import Csprng
from dp.training import DpSgdPlan, train
from ffm.adapters import AdapterSettings, build
from ffm.data import read_records
from ffm.learner import Learner, plan_of
from ffm.local_setup import Compute
from ffm.models import locate, offline
from ffm.task import build_manifest, example_settings, load_settings
from ffm.tasks import BUILT_IN

BAR_MODEL, LIMIT = "minilm", 1.3
EVERY_LINEAR = ("query", "key", "value", "dense")
CLASSIFIERS = [(model, layers) for model in (BAR_MODEL, "bert-tiny") for layers in ("last layer", "every layer")]
LLAMA = {
    **{"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
    **{"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
}
LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NO_CUDA = "skipped: no CUDA device"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model on a device with one batch, every record of which is in every step."""

    model: nn.Module = field(repr=False)
    objective: Objective = field(repr=False)
    dataset: Dataset = field(repr=False)
    plan: DpSgdPlan

    @classmethod
    def classifier(cls, model: str, layers: str, batch: tuple[int, int], device: str) -> "Subject":
        """The hospital example's model on its texts. `batch`: records and steps."""
        settings = load_settings(example_settings("hospital"))
        if layers == "every layer":
            chosen = settings.model(model).model_copy(update={"target_modules": EVERY_LINEAR})
            settings = settings.model_copy(update={"models": {model: chosen}})
        manifest = build_manifest(settings, model)
        with tempfile.TemporaryDirectory() as folder:
            sites = settings.data.write(Path(folder)).sites
            records = [r for path in sites.values() for r in read_records(path, manifest.training.labels)][: batch[0]]
        learner = Learner.load(manifest, locate(settings.model(model).base_model), Compute(device))
        plan = replace(plan_of(manifest), steps=batch[1], sampling_numerator=1, sampling_denominator=1)
        return cls(learner.model, learner.task, learner.tensors(records), plan)

    @classmethod
    def causal(cls, shape: Mapping[str, Any], batch: tuple[int, int, int], device: str) -> "Subject":
        """A Llama of this shape. `batch`: records, tokens of each, steps."""
        records, tokens, steps = batch
        base = LlamaForCausalLM(LlamaConfig(**shape))
        model = build(base, AdapterSettings(4, 8, LLAMA_TARGETS, 1), "CAUSAL_LM").to(torch.device(device))
        ids = torch.arange(records * tokens).reshape(records, tokens) * 7919 % shape["vocab_size"]
        dataset = dict(zip(FIELDS, (ids, torch.ones_like(ids), ids), strict=True))
        mechanism = GaussianMechanism(2**16, 2**16, 2**16)
        plan = DpSgdPlan(steps, 1, 1, mechanism, records, "sgd", 0.01, max_physical_batch=records)
        return cls(model, BUILT_IN["causal-lm"], {IDS: dataset[IDS], MASK: dataset[MASK], LABELS: ids}, plan)

    def run(self, mechanism: GaussianMechanism | None) -> None:
        """The steps of one repetition; the noise is drawn from a stream of its own, as in a real process."""
        train(self.model, self.dataset, replace(self.plan, mechanism=mechanism), Csprng.from_os(), self.objective)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    @property
    def contenders(self) -> dict[str, Callable[[], None]]:
        """With and without DP."""
        return {"DP": partial(self.run, self.plan.mechanism), "no DP": partial(self.run, None)}

    def row(self, names: tuple[str, str], device: str, times: Mapping[str, Timing]) -> dict[str, Any]:
        """One line of the table; seconds of one step."""
        tokens = int(self.dataset[MASK].sum())
        dp, plain = (times[key].best / self.plan.steps for key in ("DP", "no DP"))
        on_gpu = device != "cpu"
        return {
            "model": f"{names[0]}, {sum(p.numel() for p in self.model.parameters()) / 1e6:.0f}M",
            "adapter on": names[1],
            "device": torch.cuda.get_device_name() if on_gpu else "cpu, 1 thread",
            "trained values": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "records": len(self.dataset[IDS]),
            "tokens": tokens,
            "DP s/step": dp,
            "no DP s/step": plain,
            "ratio": dp / plain,
            "ratio of medians": times["DP"].median / times["no DP"].median,
            "DP tokens/s": tokens / dp,
            "no DP tokens/s": tokens / plain,
            **{f"{name} peak MiB": _peak(run) if on_gpu else "" for name, run in self.contenders.items()},
        }


def _peak(run: Callable[[], None]) -> float:
    torch.cuda.reset_peak_memory_stats()
    run()
    return float(torch.cuda.max_memory_allocated() / 2**20)


def rows_on(device: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All models on one device; the language model with a batch that fits it."""
    makers: list[tuple[tuple[str, str], Callable[[], Subject]]] = [
        (case, partial(Subject.classifier, *case, (options.batch, options.steps), device)) for case in CLASSIFIERS
    ]
    size = (max(1, options.batch // 32), 64, 1) if device == "cpu" else (max(1, options.batch // 4), 128, options.steps)
    shape = LLAMA if options.batch >= 32 else {**LLAMA, "num_hidden_layers": 2}
    makers.append((("causal LM", "every layer"), partial(Subject.causal, shape, size, device)))
    rows = []
    for names, make in makers:
        subject = make()
        rows.append(subject.row(names, device, side_by_side(subject.contenders, options.repetitions)))
    return rows


def measure(options: argparse.Namespace) -> Report:
    """All rows; the bars are MiniLM's on the CPU."""
    torch.set_num_threads(1)
    offline()
    rows = rows_on("cpu", options)
    gpu = rows_on("cuda", options) if torch.cuda.is_available() else []
    named = f"{BAR_MODEL}, {{}}, batch {options.batch}, CPU: step with DP over step without"
    return Report(
        benchmark="training",
        title="A training step with and without DP",
        what="FFA-LoRA of rank 4. The hospital example's classifiers: on the linear parts of the last layer, or of "
        f"every layer, and the head; {options.batch} records of at most 32 tokens. The causal language model: random "
        f"weights, fewer records of more tokens. The best of {options.repetitions} repetitions of {options.steps} "
        "steps each (the language model on the CPU: one), in turn. DP: the gradient of each record, clipped, on the "
        "integer grid, the bound compared exactly, discrete Gaussian noise.",
        repetitions=options.repetitions,
        rows=rows + gpu,
        bars=[
            Bar(named.format(row["adapter on"]), row["ratio"], LIMIT)
            for row in rows
            if row["model"].startswith(BAR_MODEL)
        ],
        packages=("torch", "opacus", "peft", "transformers", "numpy"),
        extra={"gpu": "measured" if gpu else NO_CUDA},
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
