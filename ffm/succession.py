"""What a task takes over from the one before: the vector that it starts from, and what must not be forgotten.

The owner pins both by their SHA-256 in the next manifest (`adapter.start`, `training.consolidation`; SPEC 2.3, 7.7).
The server holds the files, in its run folders, and offers them under these digests; clients download and compare. So no
file travels between people, and a server cannot slip in another start.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from ffm.consolidation import IMPORTANCE, refuse, strength_of
from ffm.errors import TaskError
from ffm.run_folder import MANIFEST, MODEL
from ffm.step import Model, Pull, floats, vector_digest
from protocol.errors import DocumentError, RemoteProtocolError
from protocol.manifest import ConsolidationSpec, Manifest
from protocol.roster import parse_model

Download = Callable[[bytes, int], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Past:
    """What a finished task leaves: its last parameters, and what mattered in it and before, where that was tallied."""

    start: Model = field(repr=False)
    importance: Model | None = field(default=None, repr=False)


def left_by(run: Path) -> tuple[Manifest, Past]:
    """What the run in this folder leaves: of one that goes on still, what it has so far, which its server will not have
    any more. Raises TaskError E534 where there is no run."""
    try:
        manifest = parse_model(Manifest, MANIFEST, (run / MANIFEST).read_bytes())
        start = floats((run / MODEL).read_bytes())[: manifest.adapter.size]
        importance = floats((run / IMPORTANCE).read_bytes()) if (run / IMPORTANCE).exists() else None
    except (OSError, DocumentError) as error:
        raise TaskError(
            "there is no run to go on from",
            found=f"{run}: {type(error).__name__}",
            expected=f"the folder of a finished run, with {MANIFEST} and {MODEL}",
            do="give the run folder of the task that this one continues",
            code="E534",
        ) from None
    return manifest, Past(start, importance)


def continued(manifest: Manifest, past: Past | None, strength: Decimal | None) -> Manifest:
    """The manifest of a task that goes on.

    Args:
        manifest: As it would begin anew.
        past: What the task before left; None: the first one of a life.
        strength: Of consolidation, relative (`strength_of`); None: without it.

    Raises:
        TaskError: E533, sums that EWC cannot read; E534, a past that tallied nothing, of which nothing can be held.
    """
    body: dict[str, Any] = manifest.model_dump()
    if past is not None:
        body["adapter"]["start"] = vector_digest(past.start)
    if strength is not None:
        refuse(manifest)
        held = ConsolidationSpec(strength="0")
        if past is not None:
            if past.importance is None:
                raise TaskError(
                    "nobody tallied what mattered in the task that this one continues",
                    found=f"no {IMPORTANCE} in its run folder",
                    expected="a finished run whose manifest had consolidation, too",
                    do="leave consolidation away in this task, or continue another run",
                    code="E534",
                )
            absolute = strength_of(strength, past.importance)
            if absolute != "0":
                held = ConsolidationSpec(strength=absolute, importance=vector_digest(past.importance))
        body["training"]["consolidation"] = held.model_dump()
    return Manifest.model_validate(body)


def check_continues(manifest: Manifest, before: Manifest) -> None:
    """Raises TaskError E534 unless a vector of `before` means the same under `manifest`; and where the one promises DP
    that the other had not, since the model holds what no ledger has."""
    if before.privacy.protocol == "none" != manifest.privacy.protocol:
        raise TaskError(
            "a task with DP cannot continue one without: the model holds records whose use nothing has charged",
            found=f'{before.task!r} under "none", {manifest.task!r} under {manifest.privacy.protocol}',
            expected="DP in both, or in neither",
            do="start from the seed",
            code="E534",
        )
    for part, one, other in (
        ("base model", manifest.base_model.files, before.base_model.files),
        ("adapter", _shape(manifest), _shape(before)),
        ("labels", manifest.training.labels, before.training.labels),
        ("training task", manifest.training.task, before.training.task),
    ):
        if one != other:
            raise TaskError(
                f"the task that this one continues has another {part}",
                found=f"{part} of {before.task!r}",
                expected=f"the same as that of {manifest.task!r}",
                do="give both the same settings, adapter_seed included; or merge and start from the merged model",
                code="E534",
            )


def _shape(manifest: Manifest) -> dict[str, Any]:
    return manifest.adapter.model_dump(exclude={"start"})


# -- at the server --------------------------------------------------------------------------------------------------


def pinned(manifest: Manifest) -> tuple[str, ...]:
    """Digests of what a task takes over."""
    held = manifest.training.consolidation
    wanted = (manifest.adapter.start, None if held is None else held.importance)
    return tuple(digest for digest in wanted if digest is not None)


def find(folder: Path, digest: str, size: int) -> Model:
    """The vector with this digest, of `size` values: from the run folders of the server of `folder`, or from a file
    `DIGEST.f32` in its own folder. Raises DocumentError E358."""
    for path in _candidates(folder, digest):
        vector = floats(path.read_bytes())[:size] if path.is_file() else np.zeros(0, dtype=np.float32)
        if vector_digest(vector) == digest:
            return vector
    raise DocumentError(
        "the manifest starts from a vector that this server does not have",
        found=f"nothing with SHA-256 {digest[:16]}... in the run folders of {folder.name}",
        expected=f"{MODEL} or {IMPORTANCE} of the run that this task continues",
        do=f"copy the vector to {folder / (digest + '.f32')}",
        code="E358",
    )


def _candidates(folder: Path, digest: str) -> Iterator[Path]:
    yield folder / f"{digest}.f32"
    for note in sorted((folder / "state").glob("run-*")):
        run = Path(note.read_text())
        yield from (run / MODEL, run / IMPORTANCE)


# -- at a client ----------------------------------------------------------------------------------------------------


async def fetch(manifest: Manifest, download: Download, seeded: Model) -> tuple[Model, Pull | None]:
    """The parameters that round 1 starts from, and what is held near them.

    Args:
        manifest: Of the task.
        download: Asks the server for the bytes with a digest, at most so many.
        seeded: The parameters that the manifest's seed gives.

    Raises:
        RemoteProtocolError: E437, the server sends something else than the owner pinned. And what `download` raises.
    """
    start = seeded if manifest.adapter.start is None else await _vector(manifest, download, manifest.adapter.start)
    held = manifest.training.consolidation
    if held is None or held.importance is None:
        return start, None
    return start, pull_of(start, await _vector(manifest, download, held.importance))


async def _vector(manifest: Manifest, download: Download, digest: str) -> Model:
    vector = floats(await download(bytes.fromhex(digest), 4 * manifest.adapter.size))
    if vector_digest(vector) != digest or len(vector) != manifest.adapter.size or not np.isfinite(vector).all():
        raise RemoteProtocolError(
            "the server sends another vector than the owner pinned",
            found=f"{len(vector)} values with SHA-256 {vector_digest(vector)[:16]}...",
            expected=f"{manifest.adapter.size} finite values with {digest[:16]}...",
            do="do not take part; ask the owner and the server's operator",
            code="E437",
        )
    return vector


def pull_of(start: Model, importance: Model) -> Pull:
    """Raises RemoteProtocolError E437 for an importance that pushes away."""
    if importance.min() < 0:
        raise RemoteProtocolError("an importance below zero", expected="squares", code="E437")
    return Pull(start, importance)
