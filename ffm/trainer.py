"""An existing script with Hugging Face's `Trainer` joins a federation with three lines.

    from ffm.trainer import SecAggCallback

    federation = SecAggCallback("sites/north")
    trainer = Trainer(model=federation.model, ..., callbacks=[federation])

The model is the one of the site's signed manifest, base model and adapter, checked and built as a client does it. Data,
collator, optimizer and schedule stay the script's. A round is `local_steps` optimizer steps of the Trainer: before the
first of them the callback loads the round's global parameters and waits for the round to begin, after the last one it
hands in the difference, under the same masks as any client's. When the federation ends, so does the training, and the
model holds the last global parameters. A process that lives on after its Trainer has failed, as a notebook does, leaves
the federation by `federation.close()`, or writes the three lines under `with SecAggCallback(...) as federation:`.

The Trainer decides what a step is, so nothing can be promised about a record: manifests of protocols R1 and R2 are
refused (docs/adr/0065). Under "none" nothing is promised; under C the whole difference is bounded and noised after the
Trainer is done with it, whatever it did.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dp.sampling import Csprng
from ffm.adapters import find, only_moving
from ffm.errors import AdapterError, TrainingProcessError
from ffm.learner import Learner, Update, Vector, as_share, plan_of
from ffm.local_setup import personal_file
from ffm.models import locate, verify_base_model
from ffm.personal import PersonalState
from ffm.round_update import Trainer
from ffm.site import load_site
from ffm.start import Event, participate_with, private_state
from ffm.step import Model, parameters_of
from ffm.team import Team
from protocol.manifest import Manifest

Join = Callable[[Trainer, Model], Coroutine[Any, Any, tuple[int, Model | None]]]
_CODE = "E541"
_BEGIN, _END, _FAILED, _WAITING = range(4)  # what the first of a client's processes tells the others
_SIGN_OF_LIFE_S = 60.0  # the others wait in a collective operation, which must not take as long as a round may


@dataclass(frozen=True, slots=True)
class _Round:
    """The network's side waits for the update of a round that starts at `vector`."""

    number: int
    vector: Vector = field(repr=False)
    update: "Future[Update]" = field(repr=False)

    def answer(self, update: Update | BaseException) -> None:
        """Hand in; nothing happens where the round went on without us."""
        try:
            if isinstance(update, BaseException):
                self.update.set_exception(update)
            else:
                self.update.set_result(update)
        except InvalidStateError:
            pass  # cancelled

    def refuse(self) -> None:
        """The client leaves the federation, which is told."""
        self.answer(TrainingProcessError("the Trainer ended before the federation did", code=_CODE))


@dataclass(frozen=True, slots=True)
class _Ended:
    """The network's side is done: with the last model, if it knows it, or with an error."""

    model: Model | None = field(repr=False)
    error: BaseException | None = None


class _Line:
    """Between the thread that speaks to the server and the one that trains. Implements `round_update.Trainer`."""

    def __init__(self, keep: Callable[[int], None]) -> None:
        self.news: queue.Queue[_Round | _Ended] = queue.Queue()
        self._keep = keep
        self._closed = threading.Event()

    @property
    def closed(self) -> bool:
        """Whether nobody trains any more."""
        return self._closed.is_set()

    async def train(self, round_: int, parameters: Model) -> Update:
        """Ask the training thread, and wait for it. Raises TrainingProcessError E541 when there is none any more."""
        wanted = _Round(round_, parameters, Future())
        self.news.put(wanted)
        if self.closed:
            wanted.refuse()
        return await asyncio.wrap_future(wanted.update)

    def close(self) -> None:
        """What was asked, or will be, is refused."""
        self._closed.set()
        while True:
            try:
                news = self.news.get_nowait()
            except queue.Empty:
                return
            if isinstance(news, _Ended):  # the last there is
                self.news.put(news)
                return
            news.refuse()

    async def keep(self, round_: int) -> None:
        """As `PersonalState.keep`."""
        await asyncio.to_thread(self._keep, round_)

    def run(self, join: Join, initial: Model) -> None:
        """The other thread's whole life."""
        try:
            _, model = asyncio.run(join(self, initial))
            self.news.put(_Ended(model))
        except BaseException as error:  # whatever it is: the training thread must not wait for ever, and raises it
            self.news.put(_Ended(None, error))


class SecAggCallback(TrainerCallback):
    """A client of a federation inside somebody else's Trainer. One training only."""

    def __init__(self, site: str | Path, on_event: Event = lambda event: None) -> None:
        """Load and check the site's folder, its base model, and build the manifest's adapter.

        Raises the errors of `ffm.site`, `ffm.models` and `ffm.adapters`; TrainingProcessError E541 for a manifest whose
        promise the Trainer cannot keep.
        """
        loaded = load_site(Path(site))
        refuse_protocol(loaded.manifest)
        base = locate(loaded.settings.base_model or loaded.manifest.base_model.name)
        verify_base_model(loaded.manifest.base_model, base)
        learner = Learner.load(loaded.manifest, base, task_file=loaded.task_file)
        path = personal_file(private_state(loaded), loaded.manifest)
        self._set(
            learner,
            PersonalState.open(loaded.manifest, path, learner.personal()),
            lambda trainer, initial: participate_with(loaded, trainer, initial, on_event),
        )

    @classmethod
    def of(cls, learner: Learner, join: Join) -> "SecAggCallback":
        """Over another connection than a site's. Raises TrainingProcessError E541."""
        refuse_protocol(learner.manifest)
        made = cls.__new__(cls)
        made._set(learner, PersonalState.open(learner.manifest, None, learner.personal()), join)
        return made

    def _set(self, learner: Learner, personal: PersonalState, join: Join) -> None:
        self._learner, self._personal, self._join = learner, personal, join
        self._line = _Line(personal.keep)
        self._round: _Round | None = None
        self._moving: tuple[ExitStack, Any] | None = None
        self._steps = 0
        self._started = False
        self._team = Team(torch.device("cpu"))

    @property
    def model(self) -> nn.Module:
        """Base model and adapter of the manifest: what the Trainer has to train."""
        return self._learner.model

    @property
    def tokenizer(self) -> Any:
        """Of the base model."""
        return self._learner.tokenizer

    @property
    def manifest(self) -> Manifest:
        """What the owner signed; `training.labels` in the order of the classifier."""
        return self._learner.manifest

    # -- what the Trainer calls ------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Join, and wait for the first round."""
        self._check(args, state, kwargs.get("model"))
        self._started = True
        self._team = Team(args.device)
        if self._team.first:
            initial = self._learner.initial()
            threading.Thread(target=self._line.run, args=(self._join, initial), name="secagg", daemon=True).start()
        self._next(control)
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """After the last step of a round: hand in, and wait for the next one."""
        self._steps += 1
        if self._round is not None and self._steps == self.manifest.training.local_steps:
            self._hand_in(self._round)
            self._next(control)
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """A Trainer that ends in the middle of a round leaves the federation, which is told."""
        self.close()
        return control

    def close(self) -> None:
        """Leave the federation if it has not ended: after a Trainer that failed. It may be called again."""
        self._let_go()
        if self._round is not None:
            self._round.refuse()
            self._round = None
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- rounds ----------------------------------------------------------------------------------------------------

    def _next(self, control: TrainerControl) -> None:
        """Wait for what comes, in all processes of the client: a round, which is begun, or the end."""
        none = np.empty(0, np.float32)
        news = self._heard() if self._team.first else None
        own = self._personal.kept
        match news:
            case _Round(number, vector):
                told, values = self._team.tell((_BEGIN, number), np.concatenate([vector, own]))
            case _Ended(model, None) if model is not None:
                told, values = self._team.tell((_END, 0), parameters_of(model, self.manifest))
            case _Ended(_, None):
                told, values = self._team.tell((_END, 0), none)
            case _:
                told, values = self._team.tell((_FAILED, 0), none)
        kind, number = told
        while kind == _WAITING:  # in all but the first, which tells it
            (kind, number), values = self._team.tell((_WAITING, 0), none)
        if kind == _BEGIN:
            self._begin(news if isinstance(news, _Round) else _Round(number, none, Future()), values)
            return
        self._round = None
        control.should_training_stop = True
        if isinstance(news, _Ended) and news.error is not None:
            raise news.error
        if kind == _FAILED:
            raise TrainingProcessError("the federation failed; the first process says why", code=_CODE)
        if len(values):
            self._learner.put(values)

    def _heard(self) -> _Round | _Ended:
        """What comes; until it does, the other processes are told that there is nothing yet."""
        while True:
            try:
                return self._line.news.get(timeout=None if self._team.alone else _SIGN_OF_LIFE_S)
            except queue.Empty:
                self._team.tell((_WAITING, 0), np.empty(0, np.float32))

    def _begin(self, round_: _Round, values: Vector) -> None:
        learner, spec = self._learner, self.manifest.adapter
        learner.put(values[: spec.size])
        learner.put_personal(values[spec.size :])
        stack = ExitStack()
        self._moving = stack, stack.enter_context(only_moving(learner.model, spec, round_.number))
        self._round, self._steps = round_, 0

    def _hand_in(self, round_: _Round) -> None:
        if not self._team.first:  # an equal copy, of which one is handed in
            self._let_go()
            return
        try:
            update = self._update(round_)
        except AdapterError as error:  # not finite: the network's side withdraws with its code
            round_.answer(error)
            return
        round_.answer(update)

    def _update(self, round_: _Round) -> Update:
        moving = self._let_go()
        client = plan_of(self.manifest).client
        try:
            change: Vector = self._learner.initial() - round_.vector
            self._personal.propose(round_.number, self._learner.personal())
        except AdapterError:
            if client is None:
                raise
            change = np.full_like(round_.vector, np.nan)  # counts as zero; that training broke down is seen by nobody
            self._personal.propose(round_.number, self._personal.kept)
        return change if client is None else as_share(change, client, moving, Csprng.from_os())

    def _let_go(self) -> Any:
        if self._moving is None:
            return None
        stack, moving = self._moving
        stack.close()
        self._moving = None
        return moving

    def _check(self, args: TrainingArguments, state: TrainerState, model: object) -> None:
        training = self.manifest.training
        steps = training.rounds * training.local_steps
        workers, method = args.dataloader_num_workers, find(self.manifest.adapter.method)
        halves = any(not method.moves(t.name, round_) for t in self.manifest.adapter.tensors for round_ in (1, 2))
        for wrong, what, found, do in (
            (self._started, "a federation is joined once", "a second training", "make a new SecAggCallback"),
            (self._line.closed, "this callback has left the federation", "close()", "make a new SecAggCallback"),
            (
                model is not self.model,
                "the Trainer trains another model than the manifest's",
                type(model).__name__,
                "Trainer(model=callback.model, ...)",
            ),
            (
                args.n_gpu > 1,
                "several GPUs take several processes",
                f"{args.n_gpu} GPUs in one process",
                "accelerate launch --num_processes N, or CUDA_VISIBLE_DEVICES=0",
            ),
            (
                bool(args.fsdp or args.deepspeed),
                "a client's model cannot be sharded: its flat vector is of whole tensors",
                "FSDP or DeepSpeed",
                "leave it away: an adapter is small, and processes may hold a copy each",
            ),
            (
                halves and args.world_size > 1,
                "processes that train together train the same tensors in every round",
                self.manifest.adapter.method,
                "start it without a launcher, and with CUDA_VISIBLE_DEVICES=0",
            ),
            (bool(workers), "gRPC does not survive a fork", f"{workers} workers", "set dataloader_num_workers=0"),
            (
                state.max_steps < steps,
                "the Trainer would end before the federation",
                f"{state.max_steps} steps",
                f"set max_steps={steps}",
            ),
        ):
            if wrong:
                raise TrainingProcessError(what, found=found, do=do, code=_CODE)


def refuse_protocol(manifest: Manifest) -> None:
    """Raise TrainingProcessError E541 for a protocol whose promise is about records."""
    if manifest.privacy.protocol in ("R1", "R2"):
        raise TrainingProcessError(
            "the manifest promises something about every record, which a Trainer's own steps cannot keep: they draw "
            "their batches without a cryptographic generator, do not clip each record, and add no noise",
            found=f"protocol {manifest.privacy.protocol}",
            expected="none or C",
            do="secagg client SITE: it trains the same manifest by our own loop",
            code=_CODE,
        )
