"""What a site gives its training process: where things are, and how to compute. Nothing of it is in the manifest.

A site chooses what its machine is good at. None of it changes what is sampled, clipped or noised, or the law of the
result; what would is refused (docs/adr/0068).

| setting | without DP | with DP |
|---|---|---|
| `device` | cpu, cuda, cuda:1 | the same |
| `precision` | `bfloat16`: autocast of the forward pass; parameters stay float32 | the same, one record a pass |
| `checkpointing` | layers computed twice instead of kept | the same: exact gradients of each record |
| `physical_batch` | records a pass; 0: chosen by the size of the adapter | the same, and by the expected sample |
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ffm.errors import TrainingProcessError
from protocol.manifest import Manifest

PRECISIONS: Final = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Compute:
    """How to compute. Raises TrainingProcessError E525 for values that make no sense."""

    device: str = "cpu"
    threads: int = 1
    precision: str = "float32"
    checkpointing: bool = False
    physical_batch: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            expected = " or ".join(PRECISIONS)
            raise TrainingProcessError("unknown precision", found=self.precision, expected=expected, code="E525")
        if not 0 <= self.physical_batch <= 4096:
            found = self.physical_batch
            raise TrainingProcessError("records of a pass", found=found, expected="0 to 4096", code="E525")


CPU: Final = Compute()


@dataclass(frozen=True, slots=True)
class LocalSetup:
    """A site's files and how it computes. `personal`: the file of its personal tensors, where the manifest has some.
    `judges`: models are judged on the records, which are public, and nothing is trained."""

    base_model: Path
    data: Path
    task_file: Path | None = None
    personal: Path | None = None
    compute: Compute = CPU
    judges: bool = False

    def header(self) -> dict[str, Any]:
        """As the training process is told."""
        paths = {"base_model": self.base_model, "data": self.data, "task_file": self.task_file}
        paths["personal"] = self.personal
        texts = {name: "" if path is None else str(path) for name, path in paths.items()}
        return {**texts, "judges": self.judges, **asdict(self.compute)}

    @classmethod
    def parse(cls, header: Mapping[str, Any]) -> "LocalSetup":
        """What `header` wrote. Raises TrainingProcessError E522, E525."""
        wanted: dict[str, type] = dict.fromkeys(("base_model", "data", "task_file", "personal"), str)
        wanted |= {"device": str, "threads": int, "precision": str, "checkpointing": bool, "physical_batch": int}
        wanted["judges"] = bool
        if any(type(header.get(name)) is not kind for name, kind in wanted.items()):
            raise TrainingProcessError("an incomplete request", expected=", ".join(wanted), code="E522")
        compute = Compute(**{name: header[name] for name in Compute.__dataclass_fields__})
        task_file, personal = (Path(header[name]) if header[name] else None for name in ("task_file", "personal"))
        return cls(Path(header["base_model"]), Path(header["data"]), task_file, personal, compute, header["judges"])


def personal_file(state: Path, manifest: Manifest) -> Path | None:
    """Where a site keeps them: one file per manifest in its state folder; None where the manifest has none."""
    return state / f"personal-{manifest.digest().hex()[:16]}.safetensors" if manifest.adapter.personal else None
