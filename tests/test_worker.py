"""The training process: frames, requests, errors, and how it ends. One real process does most of it."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffm import frames, task
from ffm.adapters import flatten, load_flat
from ffm.data import Record, write_records
from ffm.errors import TrainingProcessError
from ffm.learner import plan_of
from ffm.local_setup import LocalSetup
from ffm.models import locate
from ffm.training_process import TrainingProcess
from ffm.worker import LocalTraining, Worker, refuse_grpc
from protocol.manifest import Manifest

ROOT = Path(__file__).parent.parent
LABELS = ("heart", "lung")


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    settings = task.load_settings(ROOT / "examples" / "hospital" / "settings.toml")
    whole = task.build_manifest(settings.model_copy(update={"labels": LABELS}), "bert-tiny")
    training = whole.training.model_copy(update={"local_steps": 2, "expected_batch": 20})
    privacy = whole.privacy.model_copy(update={"sampling_numerator": 1, "sampling_denominator": 2})
    return whole.model_copy(update={"training": training, "privacy": privacy})


@pytest.fixture(scope="module")
def site_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("site") / "records.csv"
    texts = {"heart": "acute myocardial infarction", "lung": "pneumonia of the lower lobe"}
    write_records(path, [Record(f"{texts[label]} {n}", label) for n in range(20) for label in LABELS])
    return path


def test_records_to_judge_by_may_be_many_and_are_never_trained_on(manifest: Manifest, site_csv: Path) -> None:
    small = manifest.privacy.model_copy(update={"max_records": 39})
    few = manifest.model_copy(update={"privacy": small})
    worker = Worker(lambda: None)
    assert _error(worker.answer(*_load(few, site_csv)))["code"] == "E517"
    ready = frames.read(io.BytesIO(worker.answer(*_load(few, site_csv, judges=True))))
    assert ready is not None and ready[0]["ok"] == "load"
    refused = _error(worker.answer({"op": "train", "round": 1}, ready[1]))
    assert refused["code"] == "E522" and "judged" in refused["what"]
    scored = frames.read(io.BytesIO(worker.answer({"op": "score", "round": 1}, ready[1])))
    assert scored is not None and scored[0]["scores"]["loss"] > 0


# -- frames --------------------------------------------------------------------------------------------------

HEADERS = st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=9) | st.none(), max_size=3)


@settings(max_examples=40)
@given(st.lists(st.tuples(HEADERS, st.binary(max_size=40)), max_size=4))
def test_frames_round_trip(messages: list[tuple[dict[str, object], bytes]]) -> None:
    stream = io.BytesIO(b"".join(frames.pack(header, body) for header, body in messages))
    for header, body in messages:
        assert frames.read(stream) == (header, body)
    assert frames.read(stream) is None


@given(st.binary(max_size=60))
def test_random_bytes_are_a_frame_or_one_error(content: bytes) -> None:
    try:
        frames.read(io.BytesIO(content))
    except TrainingProcessError as error:
        assert error.code == "E522"


@settings(max_examples=40)
@given(HEADERS, st.binary(max_size=20), st.data())
def test_a_truncated_frame_is_an_error(header: dict[str, object], body: bytes, data: st.DataObject) -> None:
    whole = frames.pack(header, body)
    cut = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(TrainingProcessError):
        frames.read(io.BytesIO(whole[:cut]))


@pytest.mark.parametrize("text", [b"[]", b"{}", b'{"body": -1}', b'{"body": true}', b'{"body": 5000000000}', b"nan"])
def test_headers_without_a_sane_body_are_refused(text: bytes) -> None:
    with pytest.raises(TrainingProcessError):
        frames.parse_header(text)


# -- requests, answered in this process ----------------------------------------------------------------------


def _error(answer: bytes) -> dict[str, str]:
    frame = frames.read(io.BytesIO(answer))
    assert frame is not None
    return dict(frame[0]["error"])


def _load(manifest: Manifest, site_csv: Path, **changes: object) -> tuple[dict[str, object], bytes]:
    setup = LocalSetup(locate("bert-tiny"), site_csv)
    return {"op": "load", **setup.header(), **changes}, manifest.to_bytes()


def test_refusals_are_structured_and_leave_the_worker_usable(
    manifest: Manifest, site_csv: Path, tmp_path: Path
) -> None:
    worker = Worker(lambda: None)  # other tests of this process have loaded grpc
    assert _error(worker.answer({"op": "train", "round": 1}, b""))["code"] == "E522"  # before load
    assert _error(worker.answer({"op": "dance"}, b""))["code"] == "E522"
    assert _error(worker.answer({"op": "load"}, manifest.to_bytes()))["code"] == "E522"
    missing = _error(worker.answer(*_load(manifest, tmp_path / "none.csv")))
    assert missing["code"] == "E511"
    assert missing["do"]
    (tmp_path / "wrong.csv").write_text("text,label\nfever,skin\n")
    assert _error(worker.answer(*_load(manifest, tmp_path / "wrong.csv")))["code"] == "E513"
    assert _error(worker.answer(*_load(manifest, site_csv, device="cuda:99")))["code"] == "E524"
    header, body = _load(manifest, site_csv)
    assert _error(worker.answer(header, body[:-1]))["code"] == "E305"  # no manifest
    pinned = manifest.base_model.files[0].model_copy(update={"sha256": "00" * 32})
    base = manifest.base_model.model_copy(update={"files": (pinned, *manifest.base_model.files[1:])})
    changed = _error(worker.answer(header, manifest.model_copy(update={"base_model": base}).to_bytes()))
    assert changed["code"] == "E501"
    assert changed["expected"] == "00" * 32
    adapter = manifest.adapter.model_copy(update={"tensors": manifest.adapter.tensors[:-1]})
    small = manifest.aggregation.model_copy()
    other = manifest.model_copy(update={"adapter": adapter, "aggregation": small})
    assert _error(worker.answer(header, other.to_bytes()))["code"] == "E503"

    ready = frames.read(io.BytesIO(worker.answer(header, body)))
    assert ready is not None
    assert ready[0] == {"ok": "load", "parameters": manifest.adapter.size}
    good = np.zeros(manifest.adapter.size, dtype="<f4")
    for bad, code in ((good[:-1].tobytes(), "E503"), (good.tobytes()[:-1], "E503"), (b"", "E503")):
        assert _error(worker.answer({"op": "train", "round": 1}, bad))["code"] == code
    good[3] = np.nan
    assert _error(worker.answer({"op": "train", "round": 1}, good.tobytes()))["code"] == "E504"
    good[3] = 0.0
    done = frames.read(io.BytesIO(worker.answer({"op": "train", "round": 1}, good.tobytes())))
    assert done is not None
    assert len(done[1]) == 4 * good.size


def test_plan_is_the_manifests(manifest: Manifest) -> None:
    plan = plan_of(manifest)
    assert (plan.steps, plan.expected_batch, plan.optimizer) == (2, 20, "adam")
    assert plan.mechanism is not None
    assert plan.mechanism.noise_steps == manifest.privacy.noise_steps
    none = manifest.privacy.model_copy(update={"protocol": "none", "noise_steps": 0})
    assert plan_of(manifest.model_copy(update={"privacy": none})).mechanism is None


def test_update_is_trained_minus_global(manifest: Manifest, site_csv: Path) -> None:
    local = LocalTraining.load(manifest, LocalSetup(locate("bert-tiny"), site_csv))
    start = flatten(local.model, manifest.adapter)
    change = local.update(start, 1)
    assert np.array_equal(flatten(local.model, manifest.adapter) - start, change)
    assert np.count_nonzero(change) == change.size  # noise reaches every coordinate
    assert not np.array_equal(local.update(start, 1), change)  # and is fresh every time
    assert "keystream" not in repr(local)


def test_grpc_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "grpc" or name.startswith("grpc.")]:
        monkeypatch.delitem(sys.modules, name)
    refuse_grpc()
    monkeypatch.setitem(sys.modules, "grpc.aio", sys)
    with pytest.raises(TrainingProcessError) as caught:
        refuse_grpc()
    assert caught.value.code == "E523"


# -- the real process ----------------------------------------------------------------------------------------


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_a_process_trains_and_ends(manifest: Manifest, site_csv: Path, tmp_path: Path) -> None:
    async def scenario() -> int:
        async with await TrainingProcess.spawn(log=tmp_path / "training.log") as process:
            with pytest.raises(TrainingProcessError) as caught:
                await process.load(manifest.to_bytes(), LocalSetup(locate("bert-tiny"), tmp_path / "none.csv"))
            assert caught.value.code == "E511"
            loaded = await process.load(manifest.to_bytes(), LocalSetup(locate("bert-tiny"), site_csv))
            assert loaded.parameters == len(loaded.initial) == manifest.adapter.size
            os.kill(process.pid, signal.SIGINT)  # Ctrl-C is for the parent to answer
            start = np.zeros(manifest.adapter.size, dtype=np.float32)
            first, second = await process.train(1, start), await process.train(2, start)
            assert first.dtype == np.float32
            assert first.shape == start.shape
            assert np.isfinite(first).all()
            assert not np.array_equal(first, second)
            modules = Path(f"/proc/{process.pid}/maps").read_text()
            assert "torch" in modules
            assert "grpc" not in modules  # its native library was never mapped
            start[0] = np.inf
            with pytest.raises(TrainingProcessError) as caught:
                await process.train(3, start)
            assert caught.value.code == "E504"
            return process.pid

    pid = asyncio.run(scenario())
    assert not _alive(pid)
    assert (tmp_path / "training.log").stat().st_mode & 0o077 == 0


def test_a_killed_process_is_one_clear_error(manifest: Manifest, site_csv: Path) -> None:
    async def scenario() -> None:
        async with await TrainingProcess.spawn() as process:
            os.kill(process.pid, signal.SIGKILL)
            with pytest.raises(TrainingProcessError) as caught:
                await process.load(manifest.to_bytes(), LocalSetup(locate("bert-tiny"), site_csv))
            assert (caught.value.code, caught.value.found) == ("E521", "signal 9")

    asyncio.run(scenario())


def test_a_cancelled_request_ends_the_process(manifest: Manifest, site_csv: Path) -> None:
    """Its late answer must never be taken for the answer to the next request."""

    async def scenario() -> None:
        async with await TrainingProcess.spawn() as process:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(
                    process.load(manifest.to_bytes(), LocalSetup(locate("bert-tiny"), site_csv)), 0.1
                )
            with pytest.raises(TrainingProcessError) as caught:
                await process.load(manifest.to_bytes(), LocalSetup(locate("bert-tiny"), site_csv))
            assert caught.value.code == "E521"

    asyncio.run(scenario())


def test_standard_output_is_frames_alone_and_grpc_stays_out() -> None:
    """What a library prints, in Python or below it, goes to standard error; the end of input ends the process."""
    code = """
        import os, sys
        from ffm import worker
        assert not any(name.split(".")[0] == "grpc" for name in sys.modules), "grpc was imported"
        answer = worker.Worker.answer
        def noisy(self, header, body):
            print("printed by Python")
            os.write(1, b"printed below Python")
            return answer(self, header, body)
        worker.Worker.answer = noisy
        worker.main()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(frames.pack({"op": "train", "round": 1}))
    process.stdin.flush()
    frame = frames.read(process.stdout)  # type: ignore[arg-type]
    assert frame is not None
    assert frame[0]["error"]["code"] == "E522"
    rest, errors = process.communicate(timeout=120)  # closes its input
    assert process.returncode == 0, errors.decode()
    assert rest == b""
    assert b"printed by Python" in errors
    assert b"printed below Python" in errors


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    code = """
        import asyncio, sys
        from ffm.training_process import TrainingProcess
        async def main():
            process = await TrainingProcess.spawn()
            print(process.pid, flush=True)
            await asyncio.sleep(300)
        asyncio.run(main())
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert _alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert _wait(lambda: not _alive(pid), 90.0)


# -- protocol C ----------------------------------------------------------------------------------------------


def test_a_client_level_update_is_the_clipped_difference_and_a_small_share(manifest: Manifest, site_csv: Path) -> None:
    """Plain training (every record in every step, so it can be repeated), then clip, grid and noise of ten steps."""
    claim = {"protocol": "C", "unit": "client", "adjacency": "zero-out", "sampling_denominator": 1}
    numbers = {"scale": 2**20, "clip_steps": 2**18, "noise_steps": 223}
    privacy = manifest.privacy.model_copy(update={**claim, **numbers})
    training = manifest.training.model_copy(update={"optimizer": "sgd", "learning_rate": "0.5"})
    aggregation = manifest.aggregation.model_copy(update={"min_cohort": 500, "max_corrupt": 25})
    made = manifest.model_copy(update={"privacy": privacy, "training": training, "aggregation": aggregation})
    assert plan_of(made).mechanism is None  # nothing per record
    local = LocalTraining.load(made, LocalSetup(locate("bert-tiny"), site_csv))
    start = flatten(local.model, made.adapter)
    update = local.update(start, 1)
    load_flat(local.model, made.adapter, start)
    plain = local.learner.plain_change(start, local.dataset, plan_of(made), local.rng).astype(np.float64)
    norm = float(np.linalg.norm(plain))
    assert update.dtype == np.int64 and norm > 0.25  # so that it is clipped
    assert np.abs(update - plain / norm * 2**18).max() < 80
    broken = made.model_copy(update={"training": training.model_copy(update={"learning_rate": "900000000000000"})})
    lost = LocalTraining.load(broken, LocalSetup(locate("bert-tiny"), site_csv)).update(start, 1)
    assert 0 < np.abs(lost).max() < 80  # zeros and noise; that training broke down cannot be seen
