"""A task's settings (TOML, written by the owner) -> the manifest that the owner signs.

Settings are what a person chooses; the manifest adds what follows from it: the digest of every base model file, names
and shapes of the trained tensors, and a check that the planned steps fit the ε budget. Unknown keys are errors.

A section `[models.x]` with `like = "y"` takes from `[models.y]` what it does not say itself.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from dp.accountant import epsilon
from dp.events import SampledGaussian
from ffm.adapters import AdapterSettings, adapter_spec, build, refuse
from ffm.errors import DataError
from ffm.models import base_model_spec, check_context, locate
from ffm.plan import attempt_mechanism
from ffm.sources import Source
from ffm.succession import check_continues, continued, left_by
from ffm.tasks import Task, find
from protocol.manifest import (
    AggregationSpec,
    Count,
    DecimalString,
    Manifest,
    Name,
    Positive,
    PrivacySpec,
    TrainingSpec,
    Word,
)
from protocol.roster import StrictModel
from secagg.he.scheme import LIBRARY, widest_limbs

GENERIC_TARGETS = ("query", "value")  # names of BERT and RoBERTa; another architecture needs a section of its own


class ServerSettings(StrictModel):
    """The server step, in the manifest's words; by default plain averaging."""

    optimizer: Annotated[str, Field(pattern="^(fedavg|fedadam|fedyogi)$")] = "fedavg"
    learning_rate: DecimalString = "1"
    beta1: DecimalString = "0"
    beta2: DecimalString = "0"
    tau: DecimalString = "0"


class ModelSettings(StrictModel):
    """What depends on the base model: adapter, optimizer, sampling, clip and noise. See the manifest for each field."""

    base_model: Name
    method: Word = "ffa-lora"
    rank: Count = 0
    alpha: Count = 0
    virtual_tokens: Count = 0
    target_modules: tuple[Name, ...] = ()
    personal_head: bool = False
    max_length: Positive
    optimizer: Annotated[str, Field(pattern="^(sgd|adam)$")]
    learning_rate: DecimalString
    rounds: Positive
    local_steps: Positive
    expected_batch: Positive
    sampling: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}/[1-9][0-9]{0,8}$")]
    scale: Positive
    clip_steps: Positive
    noise_steps: Annotated[int, Field(ge=0, le=2**40)]
    aggregation_scale: Positive
    aggregation_bound: Positive
    proximal: DecimalString = "0"
    server: ServerSettings = ServerSettings()
    start: str = ""  # run folder of the task that this one continues, beside the settings; empty: from the seed
    consolidation: DecimalString | None = None  # EWC: how strongly what mattered so far is held, see `strength_of`


class PrivacySettings(StrictModel):
    """The budget and what it rests on."""

    protocol: Annotated[str, Field(pattern="^(R1|R2|C|none)$")]
    epsilon: DecimalString
    delta: DecimalString
    max_records: Positive
    spare_rounds: Annotated[int, Field(ge=0, le=1000)]  # rounds that may be tried again within the budget
    records_per_person: Annotated[int, Field(ge=1, le=64)] = 1
    people_in_several_silos: Annotated[str, Field(pattern="^(none|within-bound)$")] = "none"


class AggregationSettings(StrictModel):
    """Secure aggregation, in the manifest's words."""

    graph: Annotated[str, Field(pattern="^(complete|ring)$")] = "complete"  # the ring: from 200 clients on
    num_clients: Annotated[int, Field(ge=3, le=10_000)]
    max_corrupt: Annotated[int, Field(ge=0)]
    max_dropouts: Annotated[int, Field(ge=0)]
    min_cohort: Annotated[int, Field(ge=3)]
    slots_per_word: Annotated[int, Field(ge=2, le=4)]
    chunk_words: Annotated[int, Field(ge=16, le=65536)]
    rotation: Annotated[str, Field(pattern="^hadamard$")] | None = None  # R2 and C: for slots narrower than 32 bits
    assurance: Annotated[str, Field(pattern="^(masking|dual|he)$")] = "masking"
    limb_bits: Annotated[int, Field(ge=16, le=32)] | None = None  # None: the widest that num_clients allows

    def spec(self) -> dict[str, Any]:
        """The same in the manifest's words."""
        plain = self.model_dump(exclude={"limb_bits"}, exclude_none=True)
        if self.assurance == "masking":
            return plain
        bits = widest_limbs(self.num_clients) if self.limb_bits is None else self.limb_bits
        return {**plain, "encryption": {"scheme": "bfv", "limb_bits": bits, "library": LIBRARY}}


class TaskSettings(StrictModel):
    """One file of settings, with one or more base models to choose from."""

    task: Name
    learns: Word = "sequence-classification"  # the manifest's training.task
    task_file: str = ""  # Python file of a task of the consortium's own, beside the settings; empty: a built-in one
    labels: tuple[Name, ...] = ()  # in the classifier's order; empty: those of the source
    adapter_seed: Annotated[int, Field(ge=0, lt=2**53)]
    data: Source
    privacy: PrivacySettings
    aggregation: AggregationSettings
    models: Mapping[str, ModelSettings]

    def find_task(self) -> Task:
        """What is learned. Raises TaskError E531, E532."""
        return find(self.learns, Path(self.task_file) if self.task_file else None)

    def model(self, name: str) -> ModelSettings:
        """Settings of one base model; DataError E515 if the file does not have it.

        A folder or a Hugging Face id (anything with a slash) takes the first section's settings with LoRA on the
        attention's query and value layers.
        """
        if name not in self.models and "/" in name:
            first = next(iter(self.models.values()))
            return first.model_copy(update={"base_model": name, "target_modules": GENERIC_TARGETS})
        if name not in self.models:
            raise DataError(
                f"the settings have no model {name!r}",
                found=name,
                expected=" or ".join(self.models),
                do="choose one of these, or add a section [models.<name>] to the settings",
                code="E515",
            )
        return self.models[name]


def _tuples(value: Any) -> Any:
    """TOML arrays as tuples: strict validation takes nothing for a tuple that is a list."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def example_settings(name: str) -> Path:
    """The settings of an example of this repository; DataError E511 where the examples are not installed beside."""
    path = Path(__file__).parent.parent / "examples" / name / "settings.toml"
    if not path.exists():
        raise DataError(
            f"the example {name!r} is not beside this installation",
            found=f"no file {path}",
            expected="a clone of the repository",
            do="run the demo from a clone, or give --settings",
        )
    return path


def load_settings(path: Path) -> TaskSettings:
    """Read a settings file.

    Raises:
        DataError: E511 missing or no TOML, E515 a key that is unknown, missing or out of range.
    """
    try:
        with path.open("rb") as file:
            raw = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise DataError(
            "the settings file cannot be read",
            found=f"{path}: {type(error).__name__}",
            expected="a TOML file",
            do="give the path of a task's settings, such as examples/hospital/settings.toml",
        ) from error
    if isinstance(sections := raw.get("models"), dict):
        raw["models"] = {name: _inherited(name, sections) for name in sections}
    try:
        settings = TaskSettings.model_validate(_tuples(raw))
    except ValidationError as error:
        raise _invalid(f"{path.name} has an invalid setting", error) from None
    changes: dict[str, Any] = {
        "models": {
            name: model.model_copy(update={"start": _beside(path, model.start)})
            for name, model in settings.models.items()
        }
    }
    return settings.model_copy(update=changes | {"task_file": _beside(path, settings.task_file)})


def _beside(path: Path, named: str) -> str:
    """A path in a settings file is relative to it."""
    return str((path.parent / named).resolve()) if named else ""


def _inherited(name: str, sections: Mapping[str, Any], heirs: tuple[str, ...] = ()) -> Any:
    """One section with what it takes from others. Raises DataError E515 for a name that is not there, or a circle."""
    own = sections[name]
    if not isinstance(own, dict) or "like" not in own:
        return own
    like, heirs = own["like"], (*heirs, name)
    if not isinstance(like, str) or like in heirs or not isinstance(sections.get(like), dict):
        raise DataError(
            f"models.{name} cannot take its settings from {like!r}",
            found=f"models.{name}.like = {like!r}",
            expected="another section of models, and no circle",
            do="correct the key like",
            code="E515",
        )
    return {**_inherited(like, sections, heirs), **{key: value for key, value in own.items() if key != "like"}}


def with_assurance(settings: TaskSettings, assurance: str) -> TaskSettings:
    """The same task under another assurance. Raises DataError E515 for one that there is not."""
    body = {**settings.aggregation.model_dump(), "assurance": assurance}
    try:
        return settings.model_copy(update={"aggregation": AggregationSettings.model_validate(body)})
    except ValidationError as error:
        raise _invalid("the assurance cannot be had", error) from None


def planned_releases(manifest: Manifest, spare_rounds: int) -> SampledGaussian:
    """Everything that a task may release, rounds that are tried again included."""
    attempt = attempt_mechanism(manifest)
    return replace(attempt, count=attempt.count * (manifest.training.rounds + spare_rounds))


def check_budget(privacy: PrivacySpec, planned: SampledGaussian) -> None:
    """Refuse a plan whose gradient steps would cost more than the budget (DataError E516).

    Training would refuse as well, but only in the round that exceeds it.
    """
    if privacy.protocol == "none":
        return
    cost = epsilon([planned], Decimal(privacy.delta), prv=True)  # all cross-checks before anything is released
    if not cost.within(Decimal(privacy.epsilon)):
        raise DataError(
            "the planned steps do not fit the privacy budget",
            found=f"epsilon {cost.epsilon} for {planned.count} steps",
            expected=f"at most {privacy.epsilon} at delta {privacy.delta}",
            do="raise noise_steps (dp.accountant.calibrate finds the smallest), or plan fewer rounds",
            code="E516",
        )


def build_manifest(settings: TaskSettings, model_name: str) -> Manifest:
    """The manifest to sign: pins the base model on this machine and derives the adapter's schema from it.

    Raises:
        DataError: E515 unknown model or a combination that the manifest refuses, E516 budget too small. ModelError and
            AdapterError as in `ffm.models`, `ffm.adapters`; TaskError as in `ffm.tasks`.
    """
    try:
        return _manifest(settings, model_name, settings.find_task())
    except ValidationError as error:
        raise _invalid("the settings make no manifest", error) from None


def _invalid(what: str, error: ValidationError) -> DataError:
    first = error.errors(include_input=False, include_url=False)[0]
    return DataError(
        what,
        found=(".".join(str(part) for part in first["loc"]) + f": {first['msg']}").removeprefix(": "),
        expected="the keys and ranges of ffm.task.TaskSettings and SPEC 2.3",
        do="correct the setting; unknown keys are errors too",
        code="E515",
    )


def _manifest(settings: TaskSettings, model_name: str, task: Task) -> Manifest:
    chosen = settings.model(model_name)
    folder = locate(chosen.base_model)
    training = TrainingSpec.model_validate(
        {
            "task": task.name,
            "labels": settings.labels or settings.data.labels(),
            **{key: getattr(chosen, key) for key in _TRAINING_KEYS},
            "server": chosen.server.model_dump(),
        }
    )
    adapter = AdapterSettings(
        chosen.rank,
        chosen.alpha,
        chosen.target_modules,
        settings.adapter_seed,
        chosen.method,
        chosen.virtual_tokens,
        chosen.personal_head,
    )
    base = task.load(folder, training, settings.adapter_seed)
    check_context(base, chosen.max_length + chosen.virtual_tokens)
    model = build(base, adapter, task.peft_type)
    rate = Fraction(chosen.sampling)
    privacy = PrivacySpec.model_validate(
        {
            "protocol": settings.privacy.protocol,
            "unit": "client" if settings.privacy.protocol == "C" else "record",
            "adjacency": "zero-out" if settings.privacy.protocol == "C" else "add-or-remove-one",
            "records_per_person": settings.privacy.records_per_person,
            "sampling_numerator": rate.numerator,
            "sampling_denominator": rate.denominator,
            "scale": chosen.scale,
            "clip_steps": chosen.clip_steps,
            "noise_steps": chosen.noise_steps,
            "epsilon": settings.privacy.epsilon,
            "delta": settings.privacy.delta,
            "max_records": settings.privacy.max_records,
            "people_in_several_silos": settings.privacy.people_in_several_silos,
        }
    )
    aggregation = AggregationSpec.model_validate(
        {
            "cipher": "aes-256-ctr",
            "scale": chosen.aggregation_scale,
            "bound": chosen.aggregation_bound,
            **settings.aggregation.spec(),
        }
    )
    manifest = Manifest(
        version=1,
        task=settings.task,
        data=settings.data.sentence(),
        base_model=base_model_spec(chosen.base_model),
        adapter=adapter_spec(model, adapter),
        training=training,
        privacy=privacy,
        aggregation=aggregation,
    )
    refuse(manifest)
    manifest = _continuing(manifest, chosen)
    check_budget(privacy, planned_releases(manifest, settings.privacy.spare_rounds))
    return manifest


def _continuing(manifest: Manifest, chosen: ModelSettings) -> Manifest:
    """The manifest with what it takes over from the task before and leaves to the next. Raises TaskError E533, E534."""
    past = None
    if chosen.start:
        before, past = left_by(Path(chosen.start))
        check_continues(manifest, before)
    strength = None if chosen.consolidation is None else Decimal(chosen.consolidation)
    return continued(manifest, past, strength)


_TRAINING_KEYS = ("max_length", "optimizer", "learning_rate", "rounds", "local_steps", "expected_batch", "proximal")
