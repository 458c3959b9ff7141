"""What a task takes over from the one before: pinned by the owner, held by the server, compared by every client."""

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from simulator import make_manifest

from ffm.errors import TaskError
from ffm.step import model_bytes, vector_digest
from ffm.succession import IMPORTANCE, MODEL, Past, check_continues, continued, fetch, find, left_by, pinned
from ffm.task import build_manifest, example_settings, load_settings
from protocol.errors import DocumentError, RemoteProtocolError
from protocol.manifest import Manifest

SIZE = 40
START = np.linspace(-1, 1, SIZE).astype(np.float32)
IMPORTANT = np.abs(START)
SEEDED = np.zeros(SIZE, dtype=np.float32)


def plain(**training: Any) -> Manifest:
    body = make_manifest(5, length=SIZE).model_dump()
    body["training"] |= {"optimizer": "sgd", **training}
    return Manifest.model_validate(body)


def later(strength: str | None = "10") -> Manifest:
    past = Past(START, None if strength is None else IMPORTANT)
    return continued(plain(), past, None if strength is None else Decimal(strength))


def run_folder(folder: Path, manifest: Manifest) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    (folder / MODEL).write_bytes(model_bytes(np.r_[START, SEEDED, SEEDED]))  # moments behind the parameters
    (folder / IMPORTANCE).write_bytes(model_bytes(IMPORTANT))
    return folder


def test_a_manifest_without_a_past_is_what_it_always_was() -> None:
    """No key, so no other digest: what was signed before stays what it is."""
    body = json.loads(plain().to_bytes())
    assert "start" not in body["adapter"] and "consolidation" not in body["training"]
    assert continued(plain(), None, None) == plain() and pinned(plain()) == ()


def test_what_is_taken_over_is_pinned() -> None:
    first = continued(plain(), None, Decimal(10))
    held = first.training.consolidation
    assert held is not None and (held.strength, held.importance) == ("0", None)  # tallied, and nothing held yet
    second = later()
    assert second.adapter.start == vector_digest(START) and pinned(second) == (
        vector_digest(START),
        vector_digest(IMPORTANT),
    )
    assert second.training.consolidation is not None
    strength = float(second.training.consolidation.strength)
    assert strength * IMPORTANT.mean(dtype=float) == pytest.approx(10, rel=1e-5)
    assert len({m.digest() for m in (plain(), first, second, later(None), later("9"))}) == 5


def test_nothing_is_held_silently_of_a_task_that_tallied_nothing() -> None:
    with pytest.raises(TaskError, match="nobody tallied") as refused:
        continued(plain(), Past(START), Decimal(10))
    assert refused.value.code == "E534"
    assert continued(plain(), Past(START), None).adapter.start == vector_digest(START)


@pytest.mark.parametrize(
    ("adapter", "consolidation", "why"),
    [
        ({"start": "00" * 32}, {"strength": "1"}, "needs the importance"),
        ({"start": "00" * 32}, {"strength": "0", "importance": "00" * 32}, "needs the importance"),
        ({}, {"strength": "1", "importance": "00" * 32}, "near adapter.start"),
        ({"start": "00" * 31}, None, "start"),
        ({"start": "0G" * 32}, None, "start"),
    ],
)
def test_what_contradicts_itself_is_no_manifest(adapter: Any, consolidation: Any, why: str) -> None:
    body = plain().model_dump()
    body["adapter"] |= adapter
    body["training"]["consolidation"] = consolidation
    with pytest.raises(ValidationError, match=why):
        Manifest.model_validate(body)


def test_the_owner_goes_on_from_a_run(tmp_path: Path) -> None:
    before, past = left_by(run_folder(tmp_path / "run", plain()))
    assert before == plain() and np.array_equal(past.start, START)
    assert past.importance is not None and np.array_equal(past.importance, IMPORTANT)
    check_continues(later(), before)
    for part, change in {
        "adapter": {"adapter": {"seed": 8}},
        "base model": {"base_model": {"files": [{"path": "model.safetensors", "sha256": "11" * 32}]}},
        "labels": {"training": {"labels": ["yes", "no"]}},
        "training task": {"training": {"task": "masked-lm"}},
    }.items():
        body = json.loads(plain().to_bytes())
        for section, keys in change.items():
            body[section] |= keys
        other = Manifest.model_validate_json(json.dumps(body))
        with pytest.raises(TaskError, match=f"another {part}") as refused:
            check_continues(other, before)
        assert refused.value.code == "E534"
    for gone in ("model.f32", "manifest.json"):
        (tmp_path / "run" / gone).unlink()
        with pytest.raises(TaskError, match="no run to go on from"):
            left_by(tmp_path / "run")


def test_the_server_finds_the_vector_by_its_digest_alone(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(DocumentError, match="does not have") as missing:
        find(tmp_path, vector_digest(START), SIZE)
    assert missing.value.code == "E358"
    (tmp_path / "state" / "run-0123").write_text(str(run_folder(tmp_path / "elsewhere" / "run", plain())))
    for vector in (START, IMPORTANT):
        assert np.array_equal(find(tmp_path, vector_digest(vector), SIZE), vector)
    (tmp_path / "elsewhere" / "run" / MODEL).unlink()
    with pytest.raises(DocumentError):
        find(tmp_path, vector_digest(START), SIZE)
    copied = tmp_path / f"{vector_digest(START)}.f32"
    copied.write_bytes(model_bytes(START))
    assert np.array_equal(find(tmp_path, vector_digest(START), SIZE), START)
    copied.write_bytes(model_bytes(START + np.float32(1)))  # the name says what it is not
    with pytest.raises(DocumentError):
        find(tmp_path, vector_digest(START), SIZE)


# -- the client distrusts the server ----------------------------------------------------------------------------------


def fetched(manifest: Manifest, blobs: dict[str, bytes]) -> Any:
    asked: list[str] = []

    async def download(digest: bytes, size: int) -> bytes:
        assert size == 4 * SIZE
        asked.append(digest.hex())
        return blobs[digest.hex()]

    found = asyncio.run(fetch(manifest, download, SEEDED))
    assert asked == list(pinned(manifest))
    return found


def test_a_client_starts_where_the_owner_said() -> None:
    blobs = {vector_digest(v): model_bytes(v) for v in (START, IMPORTANT)}
    start, pull = fetched(later(), blobs)
    assert np.array_equal(start, START) and np.array_equal(pull.anchor, START)
    assert np.array_equal(pull.importance, IMPORTANT)
    assert fetched(plain(), {}) == (pytest.approx(SEEDED), None)
    start, pull = fetched(later(None), blobs)
    assert np.array_equal(start, START) and pull is None


NAN = np.r_[np.float32("nan"), START[1:]].astype(np.float32)


@pytest.mark.parametrize("lie", [START + np.float32(2**-20), START[:-1], np.r_[START, START], NAN])
def test_another_vector_than_the_pinned_one_is_refused(lie: np.ndarray) -> None:
    for vector in (START, IMPORTANT):
        blobs = {vector_digest(v): model_bytes(v) for v in (START, IMPORTANT)}
        blobs[vector_digest(vector)] = model_bytes(lie.astype(np.float32))
        with pytest.raises(RemoteProtocolError, match="another vector") as refused:
            fetched(later(), blobs)
        assert refused.value.code == "E437"


def test_what_an_owner_must_not_pin_is_refused_too() -> None:
    """A start that is not finite, an importance that pushes away: their digests fit, and they are refused."""
    cases = ((NAN, IMPORTANT, "another vector"), (START, -IMPORTANT, "below zero"))
    for start, importance, why in cases:
        body = later().model_dump()
        body["adapter"]["start"] = vector_digest(start)
        body["training"]["consolidation"]["importance"] = vector_digest(importance)
        blobs = {vector_digest(v): model_bytes(v) for v in (start, importance)}
        with pytest.raises(RemoteProtocolError, match=why):
            fetched(Manifest.model_validate(body), blobs)


def test_settings_name_a_run_beside_them(tmp_path: Path) -> None:
    """From TOML to the manifest: `start` is relative to the settings, and what does not fit is refused."""
    text = example_settings("hospital").with_name("continual.toml").read_text()
    first = tmp_path / "first.toml"
    first.write_text(text.replace("max_length = 32", 'max_length = 32\nconsolidation = "10"'))
    manifest = build_manifest(load_settings(first), "bert-tiny")
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "manifest.json").write_bytes(manifest.to_bytes())
    vector = np.linspace(-1, 1, manifest.adapter.size).astype(np.float32)
    (run / MODEL).write_bytes(model_bytes(vector))
    (run / IMPORTANCE).write_bytes(model_bytes(np.abs(vector)))
    second = tmp_path / "second.toml"
    changed = first.read_text().replace("max_length = 32", 'max_length = 32\nstart = "runs/one"')
    second.write_text(changed)
    made = build_manifest(load_settings(second), "bert-tiny")
    assert made == continued(manifest, Past(vector, np.abs(vector)), Decimal(10))
    second.write_text(changed.replace("adapter_seed = 2026", "adapter_seed = 2027"))
    with pytest.raises(TaskError, match="another adapter"):
        build_manifest(load_settings(second), "bert-tiny")
