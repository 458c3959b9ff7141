"""Audit checks that need the manifest's own model: its loop on public records, its generators, and a membership attack.

All records are random tokens, drawn from a public seed: nothing that is measured says anything about a site's records.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dp.audit import Finding, Reals
from dp.audit_canaries import Game, check_guesses, curve_wrong
from dp.audit_neighbours import check_neighbours
from dp.audit_noise import NoiseTally
from dp.audit_planted import Claimed, claimed_curve
from dp.sampling import Csprng
from dp.training import DpSgdPlan, train
from ffm.adapters import find
from ffm.audit_pipeline import Dataset, ModelPipeline, handed_gradients, slices
from ffm.data import Record, write_records
from ffm.learner import Learner, plan_of
from ffm.local_setup import LocalSetup
from ffm.seeded import SeededStream
from ffm.worker import LocalTraining
from protocol.manifest import Manifest

_TOKENS = 12  # of a planted record, at most
_RECORDS = 400  # of the membership attack
_BACKGROUND, _JOINERS = range(12), range(12, 18)
_STREAM = bytes([5] * 32)  # the same randomness for two runs that are compared: any constant will do


@dataclass(frozen=True, slots=True)
class Planted:
    """The manifest's model over public records."""

    model: nn.Module = field(repr=False)
    dataset: Dataset = field(repr=False)
    plan: DpSgdPlan
    sizes: dict[str, int] = field(repr=False)

    @classmethod
    def of(cls, manifest: Manifest, base_model: Path) -> "Planted":
        """As a client builds it, with the plan of a round."""
        labels = manifest.training.labels
        model = Learner.load(manifest, base_model).model
        embeddings: Any = model.get_input_embeddings
        words = int(embeddings().num_embeddings)
        width = min(_TOKENS, manifest.training.max_length)
        sizes = {tensor.name: prod(tensor.shape) for tensor in manifest.adapter.tensors}
        return cls(model, public_records(words, len(labels), width), plan_of(manifest), sizes)

    @property
    def pipeline(self) -> ModelPipeline:
        """For the checks of one step."""
        return ModelPipeline(self.model, self.dataset, self.plan, slices(self.sizes))


def public_records(words: int, labels: int, width: int, count: int = _RECORDS) -> Dataset:
    """Random tokens and labels, of 2 to `width` tokens: public, and hard to learn but by heart."""
    stream = SeededStream(0, "audit/records")
    ids = torch.from_numpy((stream.words(count * width) % np.uint64(words)).astype(np.int64)).reshape(count, width)
    lengths = torch.from_numpy((stream.words(count) % np.uint64(max(1, width - 1))).astype(np.int64)) + 2
    mask = (torch.arange(width) < lengths[:, None]).long()
    classes = torch.from_numpy((stream.words(count) % np.uint64(labels)).astype(np.int64))
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": classes}


def check_model(planted: Planted, claimed: Claimed) -> list[Finding]:
    """One record more or less in the real model's step; and that the noise of its steps is the claimed one."""
    pipeline, claim = planted.pipeline, claimed.mechanism
    size = sum(planted.sizes.values())
    # Kernels of another shape: two grid steps a coordinate at most, as tests/test_training.py keeps it.
    slack = 2 * math.sqrt(size)
    findings = check_neighbours(pipeline, claim, (_BACKGROUND, _JOINERS), "model", slack)
    tally = NoiseTally(claimed.deviation, {"the model's gradient": slice(0, size)})
    tally.add(pipeline.run(_BACKGROUND, 6, True, Csprng(_STREAM)))
    return findings + [replace(f, name=f.name.replace("noise:", "model's noise:")) for f in tally.findings()]


def check_generator(planted: Planted) -> Finding:
    """torch's generator decides nothing: another state of it changes nothing, and it is left as it was."""
    before = torch.random.get_rng_state()
    try:
        first = planted.pipeline.run(_BACKGROUND, 3, True, Csprng(_STREAM))
        untouched = torch.equal(before, torch.random.get_rng_state())
        torch.random.set_rng_state(torch.Generator().manual_seed(1).get_state())
        second = planted.pipeline.run(_BACKGROUND, 3, True, Csprng(_STREAM))
    finally:
        torch.random.set_rng_state(before)
    same = first.handed.tolist() == second.handed.tolist() and first.whole
    return Finding(
        "randomness: torch's generator decides nothing",
        f"{'the same' if same else 'other'} steps at another state, which was {'left alone' if untouched else 'used'}",
        "the same steps, left alone",
        same and untouched,
        "sampling or noise drawn by torch, dropout",
        "generators of other libraries",
    )


def check_processes(manifest: Manifest, base_model: Path, folder: Path) -> list[Finding]:
    """Two clients, or one that starts again, over the same public records: what runs, and that it is drawn afresh."""
    labels = manifest.training.labels
    data = folder / "public.csv"
    write_records(data, [Record(f"public record {n}", labels[n % len(labels)]) for n in range(24)])
    seen: list[list[Reals]] = []
    method, adapter = find(manifest.adapter.method), manifest.adapter
    names = [tensor.name for tensor in (*adapter.tensors, *adapter.personal)]
    alike = 2 if all(method.moves(name, 1) == method.moves(name, 2) for name in names) else 3  # in what moves
    for _ in range(2):
        training = LocalTraining.load(manifest, LocalSetup(base_model, data))
        start = np.zeros(manifest.adapter.size, dtype=np.float32)
        for round_ in (1, alike):
            with handed_gradients(training.model, hold=False) as handed:
                update = training.update(start, round_)
            # Under R2 there is no optimizer at the client: its update is the noised sum itself.
            seen.append(handed or [update.astype(np.float64)])
    firsts = [np.concatenate(steps) for steps in seen]
    pairs = [(a, b) for a in range(len(firsts)) for b in range(a)]
    equal = max(_agreement(firsts[a], firsts[b]) for a, b in pairs if firsts[a].shape == firsts[b].shape)
    return [
        Finding(
            "randomness: every process and every round draws afresh",
            f"two of {len(seen)} rounds agree in {equal:.2%} of their coordinates",
            "below 10 %",
            equal < 0.1,
            "a fixed or shared seed, a round that is trained again with the same sample and noise",
            "dependence that leaves no coordinate equal",
        ),
        Finding(
            "accountant: steps of a round",
            ", ".join(str(len(steps)) for steps in seen),
            f"{manifest.training.local_steps} each",
            all(len(steps) == manifest.training.local_steps for steps in seen),
            "steps that the ledger does not count",
            "steps outside the training process",
        ),
    ]


def _agreement(one: Reals, other: Reals) -> float:
    """Share of equal coordinates among those that move; what stands still in a round has no noise, in every round."""
    moved = (one != 0) | (other != 0)
    return float(np.mean(one[moved] == other[moved])) if moved.any() else 1.0


def check_membership(planted: Planted, claimed: Claimed, steps: int, rng: Csprng) -> Finding:
    """Black box: who sees the trained model alone and asks it for the loss of each record."""
    count = len(planted.dataset["labels"])
    members = np.unpackbits(np.frombuffer(rng.take(-(-count // 8)), dtype=np.uint8))[:count].astype(np.bool_)
    chosen = {name: tensor[torch.from_numpy(np.flatnonzero(members))] for name, tensor in planted.dataset.items()}
    start = [p.detach().clone() for p in planted.model.parameters() if p.requires_grad]
    whole = replace(claimed.mechanism, shares=1)  # of R2: with all the noise of a sum
    try:
        train(planted.model, chosen, replace(planted.plan, steps=steps, mechanism=whole), rng)
        scores = -_losses(planted.model, planted.dataset)
    finally:
        with torch.no_grad():
            for p, value in zip((p for p in planted.model.parameters() if p.requires_grad), start, strict=True):
                p.copy_(value)
    epsilons, deltas, spent = claimed_curve(replace(claimed, mechanism=whole), steps)
    told = spent, f"{steps} steps, δ = {claimed.delta:f}"
    found = check_guesses("", Game(scores, members), curve_wrong(epsilons, deltas), told, float(claimed.delta))
    return replace(
        found,
        name="membership: losses of the trained model",
        sees="a model that knows its records by heart",
        blind="stronger attacks: this one is weak, and a pass says little",
    )


def _losses(model: nn.Module, dataset: Dataset) -> Reals:
    mode = model.training
    model.eval()
    parts: list[Reals] = []
    with torch.inference_mode():
        for rows in _batches(len(dataset["labels"])):
            logits = model(input_ids=dataset["input_ids"][rows], attention_mask=dataset["attention_mask"][rows]).logits
            loss = nn.functional.cross_entropy(logits, dataset["labels"][rows], reduction="none")
            parts.append(np.asarray(loss.double().numpy(), dtype=np.float64))
    model.train(mode)
    return np.concatenate(parts)


def _batches(count: int, size: int = 64) -> Sequence[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]
