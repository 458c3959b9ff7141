"""Pre-training in phases that take turns: self-supervised steps on public text at the server, then federated rounds on
the clients' private texts, and again (Yu, Muñoz and Jannesari 2023, "Federated foundation models").

Each federated phase is a manifest of its own, whose base model is the merged result of the phase before, pinned by the
digests of its files (docs/adr/0061). So clients still recompute every model from the published sums, the protocol knows
nothing of phases, and the privacy ledger of each site runs on through all of them. Public steps need no privacy: a
public phase is planned like a manifest under protocol "none", signed by nobody.

A phase ends when the loss on public validation text has stopped falling (`Plateau`), or with its rounds. The rule reads
released models and public text alone, so it costs no privacy; rounds that are not run are not charged.

`run` plays a chain in one process, for tables and tests; `play` with another `Rounds` over the wire, where one
consortium lives through all phases (`secagg demo pretrain`).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal, Protocol

import numpy as np

from dp.accountant import epsilon
from dp.budget import check_next
from dp.ledger import Charge, PrivacyLedger
from dp.objective import Dataset
from dp.sampling import Csprng
from ffm.adapters import merge
from ffm.client_run import budget_of, round_charge
from ffm.data import Record
from ffm.errors import AdapterError, DataError
from ffm.federation import Federation, Who
from ffm.learner import Learner, Vector, plan_of
from ffm.local_setup import CPU, Compute
from ffm.models import locate, verify_base_model
from ffm.plateau import Plateau, comparable
from ffm.sources import Written
from ffm.step import Model, parameters_of
from ffm.task import TaskSettings, build_manifest
from protocol.manifest import Manifest

Kind = Literal["public", "federated"]
VALIDATION: Final = 500  # texts that are read after each round


@dataclass(frozen=True, slots=True)
class Phase:
    """Where the steps are taken, and the section of the settings that says how. A public phase reads from it method,
    optimizer, sampling probability, divisor, and `rounds` times `local_steps` steps, validated after each round."""

    kind: Kind
    section: str


@dataclass(frozen=True, slots=True)
class Pretraining:
    """What is done: settings over a source with public text, the phases in their order, and how the server computes."""

    settings: TaskSettings
    phases: tuple[Phase, ...]
    plateau: Plateau = field(default_factory=Plateau)
    compute: Compute = CPU

    def seeded(self, seed: int) -> "Pretraining":
        """Another draw of texts and start values."""
        data = self.settings.data.model_copy(update={"seed": seed})
        changes = {"data": data, "adapter_seed": self.settings.adapter_seed + seed}
        return replace(self, settings=self.settings.model_copy(update=changes))

    @property
    def start(self) -> str:
        """The base model of the first phase, as the settings name it."""
        return self.settings.model(self.phases[0].section).base_model

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
    """What models are judged on, and what the server trains on. Nothing of what the sites train on."""

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


class Rounds(Protocol):
    """Federated phases: who trains, and where the charges stand."""

    def admit(self, planned: Sequence[Manifest]) -> None:
        """Refuse federated phases that do not fit into the budget together. Raises BudgetExceededError."""
        ...

    def train(self, number: int, learner: Learner, base: Path) -> tuple[Vector, list[float]]:
        """Phase `number` by the learner's manifest on the model in `base`: the parameters at its end, and the loss on
        public validation text at the start and after each round that was run."""
        ...

    def spent(self) -> str | None:
        """The ε of all phases so far at a site; None without DP."""
        ...


def run(
    plan: Pretraining,
    seed: int,
    folder: Path,
    say: Callable[[str], None] = print,
    who: Who = "federated",
    opening: Sequence[PhaseResult] = (),
) -> tuple[PhaseResult, ...]:
    """All phases, in order, in this process; everything is written below `folder`. Raises as `play`.

    `who` learns in the federated phases: for comparisons, all private texts in one place or one site alone. `opening`:
    as in `play`.
    """
    plan = plan.seeded(seed)
    written = plan.settings.data.write(folder / "texts")
    # Pinned, so that a table can be made again; a real client seeds from the system.
    rng = Csprng(sha256(f"pretrain {seed}{'' if who == 'federated' else f' {who}'}".encode()).digest())
    with _InProcess.open(plan, written, folder / "ledgers", rng, who) as rounds:
        results = list(opening)
        for done in play(plan, written, rounds, folder, rng, opening):
            results.append(done)
            how = "plateau" if done.stopped else "all its rounds"
            say(
                f"phase {done.number}, {done.kind} ({done.section}): {done.rounds} rounds ({how}), held-out perplexity "
                f"{done.before.held_out:.1f} -> {done.after.held_out:.1f}"
            )
        return tuple(results)


def play(
    plan: Pretraining,
    written: Written,
    rounds: Rounds,
    folder: Path,
    rng: Csprng,
    opening: Sequence[PhaseResult] = (),
) -> Iterator[PhaseResult]:
    """Each phase, when it has ended; merged models are written below `folder`. `rng`: for the public steps. `opening`:
    public phases that another run of the same plan has played, so that the comparisons need not play them again.

    Raises:
        BudgetExceededError: The federated phases together do not fit into the budget. AdapterError E508: a method whose
            adapter cannot be merged. Both, and all that `manifest` raises, before anything is trained or charged.
        DataError: E515 for a source without public text.
    """
    planned = [plan.manifest(number, plan.start) for number in range(1, len(plan.phases) + 1)]
    for manifest in planned:
        _refuse_unmergeable(manifest)
    texts = read_texts(plan.settings, planned[0], written)
    rounds.admit([m for phase, m in zip(plan.phases, planned, strict=True) if phase.kind == "federated"])
    chain = _Chain(plan, texts, rounds, folder, rng)
    if opening:
        chain.goes_on_from(opening)
    for number in range(len(opening) + 1, len(plan.phases) + 1):
        yield chain.live(number, planned[0] if number == 1 else None)


def admit(planned: Sequence[Manifest], already: Sequence[Charge]) -> None:
    """Refuse phases that together do not fit, after what is charged already. A round costs the same on whatever base
    model it is run. Raises BudgetExceededError."""
    charges = [
        round_charge(m, round_, 0)
        for m in planned
        if m.privacy.protocol != "none"
        for round_ in range(1, m.training.rounds + 1)
    ]
    if charges:
        check_next([*already, *charges[:-1]], charges[-1], budget_of(planned[0]))


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


def read_texts(settings: TaskSettings, manifest: Manifest, written: Written) -> Texts:
    """Raises DataError E515 for a source without public text."""
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

    tests = {name: read(path) for name, path in written.tests.items()}
    return Texts(tests, read(written.test), read(written.public), read(written.validation)[:VALIDATION])


class _Plateaued(Exception):
    """Ends the rounds of a federated phase."""

    def __init__(self, model: Model) -> None:
        super().__init__("the public validation loss has stopped falling")
        self.model = model


class _InProcess:
    """All sites in this process, each with a ledger of its own."""

    def __init__(
        self, plan: Pretraining, written: Written, ledgers: Sequence[PrivacyLedger], rng: Csprng, who: Who
    ) -> None:
        self._plan, self._written, self._ledgers, self._rng, self._who = plan, written, ledgers, rng, who

    @classmethod
    @contextmanager
    def open(cls, plan: Pretraining, written: Written, folder: Path, rng: Csprng, who: Who) -> Iterator["_InProcess"]:
        """With the ledgers in `folder`."""
        with ExitStack() as stack:
            opened = (PrivacyLedger.open(folder / f"{n}.db", silo=n, population="-") for n in written.sites)
            yield cls(plan, written, [stack.enter_context(ledger) for ledger in opened], rng, who)

    def admit(self, planned: Sequence[Manifest]) -> None:
        for ledger in self._ledgers:
            admit(planned, ledger.charges())

    def train(self, number: int, learner: Learner, base: Path) -> tuple[Vector, list[float]]:
        """Ends early by the same rule as the server."""
        read, training = learner.task.read, learner.manifest.training
        assert self._written.validation is not None  # noqa: S101 - `read_texts` has seen it
        validation = learner.tensors(read(self._written.validation, training)[:VALIDATION])
        federation = Federation.of(learner, [read(path, training) for path in self._written.sites.values()])
        losses = [_loss(learner, parameters_of(federation.start, learner.manifest), validation)]

        def on_round(round_: int, model: Model) -> None:
            losses.append(_loss(learner, parameters_of(model, learner.manifest), validation))
            if round_ == training.rounds:
                return
            if self._plan.plateau.reached(losses):
                raise _Plateaued(model)
            self._charge(learner.manifest, round_ + 1)

        self._charge(learner.manifest, 1)  # before anything is drawn, as every round
        try:
            model = federation.learned_by(self._who, self._rng, on_round=on_round)
        except _Plateaued as reached:
            model = reached.model
        return parameters_of(model, learner.manifest).copy(), losses

    def _charge(self, manifest: Manifest, round_: int) -> None:
        if manifest.privacy.protocol != "none":
            for ledger in self._ledgers:
                ledger.charge(round_charge(manifest, round_, 0))

    def spent(self) -> str | None:
        """The same at every site: each takes part in every round."""
        charges = self._ledgers[0].charges()
        delta = Decimal(self._plan.settings.privacy.delta)
        return epsilon(charges, delta, prv=False).epsilon if charges else None


class _Chain:
    """The model as it stands, and what trains it."""

    def __init__(self, plan: Pretraining, texts: Texts, rounds: Rounds, folder: Path, rng: Csprng) -> None:
        self._plan, self._texts, self._rounds, self._folder, self._rng = plan, texts, rounds, folder, rng
        self._base = locate(plan.start)
        self._judged: Perplexities | None = None  # what `_base` is; after merging the same model but for rounding

    def goes_on_from(self, opening: Sequence[PhaseResult]) -> None:
        """Raises ValueError for a phase that charges, or is not the plan's."""
        planned = [(number, phase) for number, phase in enumerate(self._plan.phases, start=1)]
        found = [(done.number, Phase(done.kind, done.section)) for done in opening]
        if found != planned[: len(found)] or any(done.kind != "public" for done in opening):
            raise ValueError(f"phases {found} do not open {planned}")
        self._base, self._judged = opening[-1].model, opening[-1].after

    def live(self, number: int, manifest: Manifest | None) -> PhaseResult:
        """One phase. `manifest`: if it is there already."""
        began = time.perf_counter()
        phase = self._plan.phases[number - 1]
        manifest = manifest or self._plan.manifest(number, str(self._base))
        verify_base_model(manifest.base_model, self._base)
        learner = Learner.load(manifest, self._base, self._plan.compute)
        before = self._judge(learner, learner.initial()) if self._judged is None else self._judged
        if phase.kind == "public":
            vector, losses = self._public(learner)
        else:
            vector, losses = self._rounds.train(number, learner, self._base)
        self._judged = after = self._judge(learner, vector)
        folder = self._folder / f"phase-{number}"
        learner.put(vector)
        merge(learner.model, manifest.adapter, folder, self._base)
        self._base = folder
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
            epsilon=self._rounds.spent(),
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

    def _judge(self, learner: Learner, vector: Vector) -> Perplexities:
        def perplexity(records: Sequence[Record]) -> float:
            return learner.scores(vector, learner.tensors(records))["perplexity"]

        clients = {name: perplexity(records) for name, records in self._texts.tests.items()}
        return Perplexities(perplexity(self._texts.validation), perplexity(self._texts.held_out), clients)


def _loss(learner: Learner, vector: Vector, validation: Dataset) -> float:
    return comparable(learner.scores(vector, validation)["loss"])
