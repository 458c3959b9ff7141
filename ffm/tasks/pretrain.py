"""Pre-training in phases that take turns: self-supervised steps on public text at the server, then federated rounds on
the clients' private texts, and again (Yu, Muñoz and Jannesari 2023, "Federated foundation models").

Each federated phase is a manifest of its own, whose base model is the merged result of the phase before, pinned by the
digests of its files (docs/adr/0061). So clients still recompute every model from the published sums, the protocol knows
nothing of phases, and the privacy ledger of each site runs on through all of them. Public steps need no privacy: a
public phase is planned like a manifest under protocol "none", signed by nobody.

A phase ends when the loss on public validation text has stopped falling (`Plateau`), or with its rounds. The rule reads
released models and public text alone, so it costs no privacy; rounds that are not run are not charged.

In one process, for tables and tests; over the wire the same chain is one consortium per phase.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np

from dp.accountant import epsilon
from dp.budget import check_next
from dp.ledger import PrivacyLedger
from dp.objective import Dataset
from dp.sampling import Csprng
from ffm.adapters import find as find_method
from ffm.adapters import load_flat
from ffm.client_run import budget_of, round_charge
from ffm.data import Record
from ffm.errors import AdapterError, DataError
from ffm.federation import Federation
from ffm.learner import Learner, Vector, plan_of
from ffm.models import loaded_files, locate, verify_base_model
from ffm.sources import Written
from ffm.step import Model, parameters_of
from ffm.task import TaskSettings, build_manifest
from protocol.manifest import Manifest

Kind = Literal["public", "federated"]
_VALIDATION = 500  # texts that are read after each round


@dataclass(frozen=True, slots=True)
class Plateau:
    """The loss has stopped falling: none of the last `patience` ones is below the best before them by the share
    `least`."""

    patience: int = 2
    least: float = 0.005

    def reached(self, losses: Sequence[float]) -> bool:
        """`losses`: the one at the phase's start, and after each of its rounds."""
        if len(losses) <= self.patience:
            return False
        best = min(losses[: -self.patience])
        return min(losses[-self.patience :]) > best * (1 - self.least)


@dataclass(frozen=True, slots=True)
class Phase:
    """Where the steps are taken, and the section of the settings that says how. A public phase reads from it method,
    optimizer, sampling probability, divisor, and `rounds` times `local_steps` steps, validated after each round."""

    kind: Kind
    section: str


@dataclass(frozen=True, slots=True)
class Pretraining:
    """What is done: settings over a source with public text, and the phases in their order."""

    settings: TaskSettings
    phases: tuple[Phase, ...]
    plateau: Plateau = Plateau()

    def seeded(self, seed: int) -> "Pretraining":
        """Another draw of texts and start values."""
        data = self.settings.data.model_copy(update={"seed": seed})
        changes = {"data": data, "adapter_seed": self.settings.adapter_seed + seed}
        return Pretraining(self.settings.model_copy(update=changes), self.phases, self.plateau)

    def manifest(self, number: int, base: str) -> Manifest:
        """The manifest of phase `number`, from 1, on a base model. Raises as `ffm.task.build_manifest`."""
        phase = self.phases[number - 1]
        section = self.settings.model(phase.section).model_copy(update={"base_model": base})
        privacy = self.settings.privacy
        if phase.kind == "public":
            section = section.model_copy(update={"noise_steps": 0})
            privacy = privacy.model_copy(update={"protocol": "none"})
        changes = {"task": f"{self.settings.task}-{number}", "models": {phase.section: section}, "privacy": privacy}
        return build_manifest(self.settings.model_copy(update=changes), phase.section)


@dataclass(frozen=True, slots=True)
class Texts:
    """Who has what."""

    sites: Mapping[str, tuple[Record, ...]] = field(repr=False)
    tests: Mapping[str, tuple[Record, ...]] = field(repr=False)
    held_out: tuple[Record, ...] = field(repr=False)
    public: tuple[Record, ...] = field(repr=False)
    validation: tuple[Record, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Perplexities:
    """Of one model: on public validation text, on held-out text of all sites, and on that of each site."""

    public: float
    held_out: float
    clients: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """One phase, as it fell."""

    number: int
    kind: Kind
    section: str
    manifest: Manifest = field(repr=False)
    rounds: int  # that were run
    stopped: bool  # by the plateau, before its last round
    losses: tuple[float, ...]  # on public validation text, at the start and after each round
    before: Perplexities
    after: Perplexities
    epsilon: str | None  # spent at each site by all phases so far; None: without DP
    model: Path = field(repr=False)  # the merged result, a base model like any other
    seconds: float


def run(plan: Pretraining, seed: int, folder: Path, say: Callable[[str], None] = print) -> tuple[PhaseResult, ...]:
    """All phases, in order; everything is written below `folder`.

    Raises:
        BudgetExceededError: The federated phases together do not fit into the budget. AdapterError E508: a method whose
            adapter cannot be merged. Both, and all that `manifest` raises, before anything is trained or charged.
        DataError: E515 for a source without public text.
    """
    plan = plan.seeded(seed)
    start = plan.settings.model(plan.phases[0].section).base_model
    planned = [plan.manifest(number, start) for number in range(1, len(plan.phases) + 1)]
    for manifest in planned:
        _refuse_unmergeable(manifest)
    texts = _texts(plan.settings, planned[0], plan.settings.data.write(folder / "texts"))
    ledgers = [PrivacyLedger.open(folder / "ledgers" / f"{name}.db", silo=name, population="-") for name in texts.sites]
    try:
        _admit(plan, planned, ledgers)
        chain = _Chain(plan, texts, ledgers, folder, locate(start), seed)
        results: list[PhaseResult] = []
        for number in range(1, len(plan.phases) + 1):
            results.append(chain.live(number, planned[0] if number == 1 else None))
            done = results[-1]
            how = "plateau" if done.stopped else "all its rounds"
            say(
                f"phase {number}, {done.kind} ({done.section}): {done.rounds} rounds ({how}), held-out perplexity "
                f"{done.before.held_out:.1f} -> {done.after.held_out:.1f}"
            )
        return tuple(results)
    finally:
        for ledger in ledgers:
            ledger.close()


def _refuse_unmergeable(manifest: Manifest) -> None:
    adapter = manifest.adapter
    if adapter.virtual_tokens or adapter.personal:
        raise AdapterError(
            "the next phase starts from the merged model, and this adapter cannot be merged for everybody",
            found=f"{adapter.method} with " + ("virtual tokens" if adapter.virtual_tokens else "personal tensors"),
            expected="a method whose tensors are all shared and part of the weights, such as ffa-lora or full",
            do="choose another method for this phase",
            code="E508",
        )


def _texts(settings: TaskSettings, manifest: Manifest, written: Written) -> Texts:
    if written.public is None or written.validation is None:
        raise DataError(
            "this source has no public text at the server",
            found=settings.data.source,
            expected="medical-text",
            do="choose a source with a public corpus and validation text",
            code="E515",
        )
    task, training = settings.find_task(), manifest.training

    def read(path: Path) -> tuple[Record, ...]:
        return task.read(path, training)

    sites, tests = ({name: read(path) for name, path in part.items()} for part in (written.sites, written.tests))
    return Texts(sites, tests, read(written.test), read(written.public), read(written.validation)[:_VALIDATION])


def _admit(plan: Pretraining, planned: Sequence[Manifest], ledgers: Sequence[PrivacyLedger]) -> None:
    """Refuse a chain whose phases together do not fit. A round costs the same on whatever base model it is run."""
    private = [m for phase, m in zip(plan.phases, planned, strict=True) if phase.kind == "federated"]
    charges = [
        round_charge(m, round_, 0)
        for m in private
        if m.privacy.protocol != "none"
        for round_ in range(1, m.training.rounds + 1)
    ]
    for ledger in ledgers if charges else ():
        check_next([*ledger.charges(), *charges[:-1]], charges[-1], budget_of(private[0]))


class _Plateaued(Exception):
    """Ends the rounds of a federated phase."""

    def __init__(self, model: Model) -> None:
        super().__init__("the public validation loss has stopped falling")
        self.model = model


class _Chain:
    """The model as it stands, and what trains it."""

    def __init__(
        self, plan: Pretraining, texts: Texts, ledgers: Sequence[PrivacyLedger], folder: Path, base: Path, seed: int
    ) -> None:
        self._plan, self._texts, self._ledgers, self._folder, self._base = plan, texts, ledgers, folder, base
        # Pinned, so that a table can be made again; a real client seeds from the system.
        self._rng = Csprng(sha256(f"pretrain {seed}".encode()).digest())

    def live(self, number: int, manifest: Manifest | None) -> PhaseResult:
        """One phase. `manifest`: if it is there already."""
        began = time.perf_counter()
        phase = self._plan.phases[number - 1]
        manifest = manifest or self._plan.manifest(number, str(self._base))
        verify_base_model(manifest.base_model, self._base)
        learner = Learner.load(manifest, self._base)
        before = self._judge(learner, learner.initial())
        train = self._public if phase.kind == "public" else self._federated
        vector, losses = train(learner)
        after = self._judge(learner, vector)
        self._base = self._merge(learner, vector, self._folder / f"phase-{number}")
        rounds = len(losses) - 1
        return PhaseResult(
            number=number,
            kind=phase.kind,
            section=phase.section,
            manifest=manifest,
            rounds=rounds,
            stopped=rounds < manifest.training.rounds,
            losses=tuple(losses),
            before=before,
            after=after,
            epsilon=self._spent(),
            model=self._base,
            seconds=time.perf_counter() - began,
        )

    def _public(self, learner: Learner) -> tuple[Vector, list[float]]:
        """The best of the rounds: the server may choose, its text is public."""
        corpus, validation = learner.tensors(self._texts.public), learner.tensors(self._texts.validation)
        plan, rounds = plan_of(learner.manifest), learner.manifest.training.rounds
        vector = best = learner.initial()
        losses = [_loss(learner, vector, validation)]
        for round_ in range(1, rounds + 1):
            vector = (vector + learner.update(vector, corpus, plan, self._rng, round_)).astype(np.float32)
            losses.append(_loss(learner, vector, validation))
            if losses[-1] == min(losses):
                best = vector
            if self._plan.plateau.reached(losses):
                break
        return best, losses

    def _federated(self, learner: Learner) -> tuple[Vector, list[float]]:
        validation = learner.tensors(self._texts.validation)
        federation = Federation.of(learner, list(self._texts.sites.values()))
        rounds = learner.manifest.training.rounds
        losses = [_loss(learner, parameters_of(federation.start, learner.manifest), validation)]

        def on_round(round_: int, model: Model) -> None:
            losses.append(_loss(learner, parameters_of(model, learner.manifest), validation))
            if round_ == rounds:
                return
            if self._plan.plateau.reached(losses):
                raise _Plateaued(model)
            self._charge(learner.manifest, round_ + 1)

        self._charge(learner.manifest, 1)  # before anything is drawn, as every round
        try:
            model = federation.federated(self._rng, on_round=on_round)
        except _Plateaued as reached:
            model = reached.model
        return parameters_of(model, learner.manifest).copy(), losses

    def _charge(self, manifest: Manifest, round_: int) -> None:
        if manifest.privacy.protocol != "none":
            for ledger in self._ledgers:
                ledger.charge(round_charge(manifest, round_, 0))

    def _spent(self) -> str | None:
        """The same at every site: each takes part in every round."""
        charges = self._ledgers[0].charges()
        delta = Decimal(self._plan.settings.privacy.delta)
        return epsilon(charges, delta, prv=False).epsilon if charges else None

    def _judge(self, learner: Learner, vector: Vector) -> Perplexities:
        def perplexity(records: Sequence[Record]) -> float:
            return learner.scores(vector, learner.tensors(records))["perplexity"]

        clients = {name: perplexity(records) for name, records in self._texts.tests.items()}
        return Perplexities(perplexity(self._texts.validation), perplexity(self._texts.held_out), clients)

    def _merge(self, learner: Learner, vector: Vector, folder: Path) -> Path:
        """The result as a base model: weights in safetensors, config, and the tokenizer's files as they were."""
        load_flat(learner.model, learner.manifest.adapter, vector)
        merged = find_method(learner.manifest.adapter.method).merged(learner.model)
        merged.save_pretrained(str(folder))
        for name in loaded_files(self._base):
            if not (folder / name).exists() and not name.startswith("model"):
                shutil.copyfile(self._base / name, folder / name)
        return folder


def _loss(learner: Learner, vector: Vector, validation: Dataset) -> float:
    return learner.scores(vector, validation)["loss"]
