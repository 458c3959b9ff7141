"""A site's personal tensors: trained by the same noised steps as the shared ones, kept on its own disk, never sent.

What a round makes of them is a candidate until that round is paid for. Were it kept at once, a training that is
thrown away, and so never charged, would still be in everything that this site sends from then on; so the order is:
train, charge, keep, upload. A client that is killed in between goes on from what was kept before.

| code | meaning |
|---|---|
| E509 | the file of personal tensors cannot be read, or belongs to another manifest |
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ffm.adapters import Vector
from ffm.errors import AdapterError
from protocol.manifest import Manifest, TensorSpec
from protocol.rpc.keyfiles import read_private, replace_private


@dataclass(slots=True)
class PersonalState:
    """The flat vector of `manifest.adapter.personal` that the next training starts from."""

    manifest: Manifest
    path: Path | None  # None: in memory only
    kept: Vector = field(repr=False)
    _candidate: tuple[int, Vector] | None = field(default=None, repr=False)

    @classmethod
    def open(cls, manifest: Manifest, path: Path | None, start: Vector) -> "PersonalState":
        """What an earlier process kept, or `start`. Raises AdapterError E509, DocumentError E318 (not private)."""
        kept = start if path is None or not path.exists() else _read(path, manifest)
        return cls(manifest, path, kept)

    def propose(self, round_: int, vector: Vector) -> None:
        """What training of round `round_` made of it. Replaces an earlier proposal."""
        self._candidate = round_, vector

    def keep(self, round_: int) -> None:
        """The round is paid for: its proposal becomes the state, on disk first. Raises AdapterError E509."""
        if self._candidate is None or self._candidate[0] != round_:
            raise AdapterError("no personal tensors of this round", found=round_, code="E509")
        vector = self._candidate[1]
        if self.path is not None:
            _write(self.path, self.manifest, vector)
        self.kept, self._candidate = vector, None


def _write(path: Path, manifest: Manifest, vector: Vector) -> None:
    """Whole or not at all: a site that is killed half-way has the old file."""
    tensors = {t.name: part.reshape(t.shape) for t, part in _cut(vector, manifest.adapter.personal)}
    replace_private(path, save(tensors, {"manifest": manifest.digest().hex()}))


def _cut(vector: Vector, tensors: Sequence[TensorSpec]) -> list[tuple[TensorSpec, Vector]]:
    ends = np.cumsum([prod(tensor.shape) for tensor in tensors])
    return list(zip(tensors, np.split(vector, ends[:-1]), strict=True))


def _read(path: Path, manifest: Manifest) -> Vector:
    do = "move the file away to start from the manifest's seed, or restore it from a backup"
    data = read_private(path)
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError) as error:
        raise AdapterError(
            "the file of personal tensors cannot be read", found=type(error).__name__, do=do, code="E509"
        ) from error
    expected, whose = manifest.adapter.personal, header.get("__metadata__", {}).get("manifest")
    fits = tensors.keys() == {t.name for t in expected} and all(tensors[t.name].shape == t.shape for t in expected)
    if whose != manifest.digest().hex() or not fits or any(t.dtype != np.float32 for t in tensors.values()):
        what = "the file of personal tensors belongs to another manifest"
        raise AdapterError(what, found=path.name, do=do, code="E509")
    vector: Vector = np.concatenate([tensors[t.name].reshape(-1) for t in expected])
    if not np.isfinite(vector).all():
        raise AdapterError("the file of personal tensors holds values that are not finite", do=do, code="E509")
    return vector
