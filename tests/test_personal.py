"""Personal tensors: trained beside the shared ones, kept on the site's own disk once they are paid for, never sent."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from dp.sampling import Csprng
from ffm import frames
from ffm.adapters import exact_under_summation
from ffm.cli.demo_run import compare
from ffm.data import Record, write_records
from ffm.demo import found
from ffm.errors import AdapterError
from ffm.federation import Federation
from ffm.learner import Learner, plan_of
from ffm.local_setup import LocalSetup, personal_file
from ffm.personal import PersonalState
from ffm.site import load_site
from ffm.sources import Written
from ffm.start import private_state
from ffm.task import DataError, TaskSettings, build_manifest
from ffm.worker import Worker
from protocol.errors import DocumentError
from protocol.manifest import Manifest
from tests.small_models import save_tiny_bert

LABELS = ("heart", "lung")
SITES = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("base"))


def records(site: int) -> list[Record]:
    """Each site has its own idea of what the labels mean: what only a personal part can learn."""
    texts = ("acute infarction", "lobar pneumonia")
    return [Record(f"{texts[(n + site) % 2]} {n}", LABELS[n % 2]) for n in range(24)]


def manifest_of(base: Path, method: str, protocol: str = "none", **changes: Any) -> Manifest:
    """Under R1 and R2 without asking the accountant, which takes its time: no test here is about ε."""
    manifest = checked_manifest(base, method, "none", **changes)
    if protocol == "none":
        return manifest
    claim = {"protocol": protocol, "noise_steps": 65536}
    return manifest.model_copy(update={"privacy": manifest.privacy.model_copy(update=claim)})


def checked_manifest(base: Path, method: str, protocol: str, **changes: Any) -> Manifest:
    return build_manifest(settings_of(base, method, protocol, **changes), "small")


def settings_of(base: Path, method: str, protocol: str, **changes: Any) -> TaskSettings:
    noise = {"none": 0, "R1": 65536}.get(protocol, 65536)
    lora = {"rank": 2, "alpha": 4, "target_modules": ("query", "value")} if "lora" in method else {}
    model = {
        "base_model": str(base),
        "method": method,
        **lora,
        "max_length": 12,
        "optimizer": "sgd",
        "learning_rate": "0.5",
        "rounds": 3,
        "local_steps": 2,
        "expected_batch": 12,
        "sampling": "1/2",
        "scale": 65536,
        "clip_steps": 65536,
        "noise_steps": noise,
        "aggregation_scale": 65536,
        "aggregation_bound": 2**19,
        **changes,
    }
    return TaskSettings.model_validate(
        {
            "task": "small",
            "labels": LABELS,
            "adapter_seed": 7,
            "data": {"description": "made up", "sites": SITES, "dirichlet": "1/1", "cap_per_class": 100, "seed": 1},
            "privacy": {
                "protocol": protocol,
                "epsilon": "1000",
                "delta": "0.00001",
                "max_records": 90,
                "spare_rounds": 0,
            },
            "aggregation": {
                "num_clients": SITES,
                "max_corrupt": 0,
                "max_dropouts": 0,
                "min_cohort": 3,
                "slots_per_word": 2,
                "chunk_words": 16,
            },
            "models": {"small": model},
        }
    )


class Client:
    """A worker, as its parent drives it."""

    def __init__(self, manifest: Manifest, setup: LocalSetup) -> None:
        self.worker = Worker(lambda: None)
        self.manifest = manifest
        self.initial = self.ask({"op": "load", **setup.header()}, manifest.to_bytes())[1]

    def ask(self, header: dict[str, Any], body: bytes = b"") -> tuple[dict[str, Any], bytes]:
        frame = frames.read(io.BytesIO(self.worker.answer(header, body)))
        assert frame is not None
        return frame

    def train(self, round_: int) -> bytes:
        return self.ask({"op": "train", "round": round_}, self.initial)[1]

    @property
    def state(self) -> np.ndarray:
        assert self.worker._training is not None
        return self.worker._training.personal.kept


@pytest.fixture
def site(base: Path, tmp_path: Path) -> tuple[Manifest, LocalSetup]:
    manifest = manifest_of(base, "fedsa-lora", personal_head=True)
    write_records(tmp_path / "records.csv", records(0))
    (tmp_path / "state").mkdir()
    path = personal_file(tmp_path / "state", manifest)
    return manifest, LocalSetup(base, tmp_path / "records.csv", None, path)


def test_only_shared_tensors_leave_the_training_process(site: tuple[Manifest, LocalSetup]) -> None:
    manifest, setup = site
    client = Client(manifest, setup)
    assert manifest.adapter.size == 4 * 2 * 8  # A of query and value in two layers; B and the head stay
    assert len(client.initial) == 4 * manifest.adapter.size
    assert manifest.secagg_params().vector_length == manifest.adapter.size
    sent = [client.initial, client.train(1), client.ask({"op": "keep", "round": 1})[1], client.train(2)]
    whole = 4 * manifest.adapter.size
    assert [len(body) for body in sent] == [whole, whole, 0, whole]
    assert setup.personal is not None
    own = np.concatenate([t.reshape(-1) for t in load(setup.personal.read_bytes()).values()])
    assert len(own) == 4 * 8 * 2 + 8 * 2 + 2 and np.count_nonzero(own) > 40
    for value in own[own != 0]:
        assert all(value.astype("<f4").tobytes() not in body for body in sent)
    assert "kept" not in repr(client.worker._training)


def test_what_is_not_paid_for_does_not_live_on(site: tuple[Manifest, LocalSetup]) -> None:
    manifest, setup = site
    assert setup.personal is not None
    client = Client(manifest, setup)
    start = client.state.copy()
    client.train(1)
    assert np.array_equal(client.state, start)
    assert not setup.personal.exists()
    client.train(1)  # thrown away and trained again: from the same start
    assert client.ask({"op": "keep", "round": 2})[0]["error"]["code"] == "E509"  # of another round
    assert "error" not in client.ask({"op": "keep", "round": 1})[0]
    kept = client.state.copy()
    assert not np.array_equal(kept, start)
    assert setup.personal.stat().st_mode & 0o777 == 0o600
    client.train(2)
    again = Client(manifest, setup)  # killed before round 2 was paid for
    assert np.array_equal(again.state, kept)
    assert client.ask({"op": "keep", "round": 3})[0]["error"]["code"] == "E509"
    assert again.ask({"op": "keep"})[0]["error"]["code"] == "E522"


def test_a_half_written_state_is_the_old_one(
    site: tuple[Manifest, LocalSetup], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, setup = site
    assert setup.personal is not None
    client = Client(manifest, setup)
    client.train(1)
    client.ask({"op": "keep", "round": 1})
    kept, before = client.state.copy(), setup.personal.read_bytes()

    def killed(*_: object) -> None:
        raise OSError("killed")

    client.train(2)
    with monkeypatch.context() as patch:
        patch.setattr("protocol.rpc.keyfiles.os.replace", killed)
        with pytest.raises(OSError, match="killed"):
            client.ask({"op": "keep", "round": 2})
    assert setup.personal.read_bytes() == before
    assert np.array_equal(client.state, kept)
    assert np.array_equal(Client(manifest, setup).state, kept)
    client.ask({"op": "keep", "round": 2})  # what was left lying there is no obstacle
    assert setup.personal.read_bytes() != before


def test_a_foreign_or_broken_or_open_file_is_refused(site: tuple[Manifest, LocalSetup], base: Path) -> None:
    manifest, setup = site
    assert setup.personal is not None
    client = Client(manifest, setup)
    client.train(1)
    client.ask({"op": "keep", "round": 1})
    good = setup.personal.read_bytes()
    other = manifest_of(base, "fedsa-lora", personal_head=True, rounds=4)
    start = np.zeros(0, np.float32)
    with pytest.raises(AdapterError, match="another manifest"):
        PersonalState.open(other, setup.personal, start)
    setup.personal.write_bytes(good[:-3])
    with pytest.raises(AdapterError, match="cannot be read") as caught:
        PersonalState.open(manifest, setup.personal, start)
    assert caught.value.code == "E509" and caught.value.do
    nan = bytearray(good)
    nan[-4:] = np.float32("nan").tobytes()
    setup.personal.write_bytes(nan)
    with pytest.raises(AdapterError, match="not finite"):
        PersonalState.open(manifest, setup.personal, start)
    setup.personal.write_bytes(good)
    setup.personal.chmod(0o644)
    with pytest.raises(DocumentError) as open_to_all:
        PersonalState.open(manifest, setup.personal, start)
    assert open_to_all.value.code == "E318"


def test_personal_tensors_are_trained_by_the_same_noised_steps(base: Path) -> None:
    """Next to no gradient: what moves them is noise of the size that the manifest says."""
    manifest = manifest_of(base, "fedsa-lora", "R1", learning_rate="1", local_steps=1, expected_batch=1)
    learner = Learner.load(manifest, base)
    dataset = learner.tensors(records(0)[:1])
    moved = []
    for _ in range(20):
        learner.put_personal(np.zeros(4 * 8 * 2, np.float32))
        learner.update(learner.initial(), dataset, plan_of(manifest), Csprng.from_os(), 1)
        moved.append(learner.personal())
    assert 0.8 < np.std(moved) < 1.3  # noise_steps / scale = 1, and a row of norm 1 at most


def test_r2_has_no_personal_tensors(base: Path) -> None:
    with pytest.raises(DataError, match="no personal tensors"):
        checked_manifest(base, "fedsa-lora", "R2", local_steps=1)


def test_each_site_keeps_its_own_and_is_judged_beside_the_global_model(base: Path) -> None:
    """Sites that disagree about the labels: the shared model cannot serve them all, a personal head can."""
    manifest = manifest_of(base, "ffa-lora", personal_head=True, rounds=12, local_steps=8)
    federation = Federation.load(manifest, base, [records(site) for site in range(SITES)])
    trained = federation.personalised(Csprng(bytes(32)))
    assert len(trained.personal) == SITES
    assert not np.array_equal(trained.personal[0], trained.personal[1])
    tests = [federation.sites[site] for site in range(SITES)]
    scores = federation.site_scores(trained, tests)
    assert min(shared["accuracy"] for shared, _ in scores) < 0.2
    assert min(own["accuracy"] for _, own in scores) > 0.9
    assert federation.scores(trained.model, tests[0])["accuracy"] == scores[0][0]["accuracy"]
    for alone in (lambda: federation.alone(0, Csprng(bytes(32))), lambda: federation.centralised(Csprng(bytes(32)))):
        with pytest.raises(AdapterError, match="alone has no personal") as caught:
            alone()
        assert caught.value.code == "E507"


def test_a_demo_of_sites_that_keep_something_ends_with_their_own_models(base: Path, tmp_path: Path) -> None:
    """Not with a refusal of "alone", which has nothing personal, when everything has been played."""
    manifest = manifest_of(base, "ffa-lora", personal_head=True)
    names = ("north", "east", "south")
    for place, name in enumerate((*names, "test")):
        write_records(tmp_path / f"{name}.csv", records(place % SITES))
    files = {name: tmp_path / f"{name}.csv" for name in names}
    local = {"base_model": str(base), "task_file": ""}
    layout = found(tmp_path / "run", Written(files, tmp_path / "test.csv"), manifest, local)
    learner = Learner.load(manifest, base)
    (layout.run / "model.f32").write_bytes(learner.initial().tobytes())
    north = load_site(layout.consortium.clients["north"])
    state = PersonalState.open(manifest, personal_file(private_state(north), manifest), learner.personal())
    state.propose(1, np.sin(np.arange(len(state.kept))).astype(np.float32))
    state.keep(1)
    settings = settings_of(base, "ffa-lora", "none", personal_head=True)
    rows = compare(settings, layout)
    assert list(rows) == ["federated", *(f"{name}, own model" for name in names), "before training"]
    assert rows["north, own model"]["loss"] != rows["federated"]["loss"] == rows["east, own model"]["loss"]


# ---- what averaging does ----


@pytest.mark.parametrize("method", ["ffa-lora", "lora", "rolora", "fedsa-lora", "bitfit"])
def test_the_error_of_averaging_is_measured(base: Path, method: str) -> None:
    manifest = manifest_of(base, method, local_steps=3, rounds=2)
    federation = Federation.load(manifest, base, [records(site) for site in range(SITES)])
    trained, rounds = federation.with_errors(Csprng(bytes(32)))
    assert np.array_equal(trained.model, federation.personalised(Csprng(bytes(32))).model)  # measured, not touched
    exact = exact_under_summation(manifest)
    assert exact == (method in ("ffa-lora", "rolora", "bitfit"))
    assert len(rounds) == 2
    last = rounds[-1]
    assert len(last.layers) == (0 if method == "bitfit" else 4)
    assert last.total.error == pytest.approx(np.sqrt(sum(layer.error**2 for layer in last.layers)))
    if exact:
        assert last.total.relative < 1e-6
    else:
        assert last.total.relative > 1e-3
        assert last.total.error > 1e-5


def test_the_error_of_averaging_is_that_of_the_definition(base: Path) -> None:
    from ffm.adapters import aggregation_error

    manifest = manifest_of(base, "lora")
    learner = Learner.load(manifest, base)
    spec, draw = manifest.adapter, torch.Generator().manual_seed(3)
    vectors = [torch.randn(spec.size, generator=draw).numpy() for _ in range(4)]
    found = aggregation_error(learner.model, spec, [(v, np.zeros(0, np.float32)) for v in vectors])
    cuts = np.cumsum([int(np.prod(t.shape)) for t in spec.tensors])[:-1]
    a, b = (
        [np.split(v, cuts)[place].reshape(spec.tensors[place].shape).astype(float) for v in vectors] for place in (0, 1)
    )
    assert "lora_A" in spec.tensors[0].name and "lora_B" in spec.tensors[1].name
    mean = 2 * np.mean([y @ x for x, y in zip(a, b, strict=True)], axis=0)  # alpha / rank = 2
    error = mean - 2 * np.mean(b, axis=0) @ np.mean(a, axis=0)
    assert found.layers[0].layer == "bert.encoder.layer.0.attention.self.query"
    assert found.layers[0].error == pytest.approx(np.linalg.norm(error), rel=1e-5)
    assert found.layers[0].mean == pytest.approx(np.linalg.norm(mean), rel=1e-5)


def test_under_r2_there_is_nothing_to_average(base: Path) -> None:
    manifest = manifest_of(base, "lora", "R2", local_steps=1)
    assert exact_under_summation(manifest)
    federation = Federation.load(manifest, base, [records(site) for site in range(SITES)])
    with pytest.raises(AdapterError) as caught:
        federation.with_errors(Csprng(bytes(32)))
    assert caught.value.code == "E507"
    rotation = {"rotation": "hadamard"}
    rotated = manifest_of(base, "lora")
    rotated = rotated.model_copy(update={"aggregation": rotated.aggregation.model_copy(update=rotation)})
    with pytest.raises(AdapterError, match="rotate") as caught:
        replace(federation, learner=replace(federation.learner, manifest=rotated)).with_errors(Csprng(bytes(32)))
    assert caught.value.code == "E507"


def test_rolora_moves_one_half_in_each_round_of_every_protocol(base: Path) -> None:
    for protocol, changes in (("none", {}), ("R1", {}), ("R2", {"local_steps": 1})):
        manifest = manifest_of(base, "rolora", protocol, **changes)
        learner = Learner.load(manifest, base)
        dataset, start = learner.tensors(records(0)), learner.initial()
        start = start + np.float32(0.1)
        a = np.concatenate([np.full(int(np.prod(t.shape)), "lora_A" in t.name) for t in manifest.adapter.tensors])
        for round_ in (1, 2):
            update = learner.update(start, dataset, plan_of(manifest), Csprng.from_os(), round_)
            still = a if round_ == 1 else ~a
            assert update.dtype == (np.int64 if protocol == "R2" else np.float32)
            assert not update[still].any()
            assert np.count_nonzero(update[~still]) > 0.9 * np.count_nonzero(~still)
