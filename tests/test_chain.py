"""A consortium that goes on with another manifest: what stays at a site, and what belongs to one manifest alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from small_models import language_settings, save_tiny_masked_bert

from ffm import start
from ffm.chain import next_link
from ffm.cli.arrive import run as arrive
from ffm.cli.output import Format, Output
from ffm.demo import Layout, found, local_settings
from ffm.site import change_settings, load_site
from ffm.sources import Written
from ffm.task import TaskSettings, build_manifest
from protocol.errors import DocumentError

NAMES = ("north", "east", "south", "west")


def settings(folder: Path, seed: int = 7, clients: int = 4) -> TaskSettings:
    method = {"method": "lora", "virtual_tokens": 0, "rank": 2, "alpha": 4, "target_modules": ("query",)}
    made = language_settings(folder, "masked-lm", **method).model_copy(update={"adapter_seed": seed})
    return made.model_copy(update={"aggregation": made.aggregation.model_copy(update={"num_clients": clients})})


@dataclass(frozen=True)
class Trial:
    first: Layout
    second: Layout
    bases: tuple[Path, Path]
    started: tuple[start.Model, start.Model]  # the server's first models
    kept: tuple[dict[str, bytes], dict[str, bytes]]


def texts(folder: Path, word: str, names: tuple[str, ...] = NAMES) -> dict[str, Path]:
    folder.mkdir()
    for name in names:
        (folder / f"{name}.csv").write_text(f"text\n{word} of {name}\n")
    return {name: folder / f"{name}.csv" for name in names}


def kept(site: Path) -> dict[str, bytes]:
    """What no manifest may change."""
    names = ("identity.key", "tls.key", "tls.pem", "ca.pem", "owner.pub", "roster.json", "roster.json.sig")
    return {name: (site / name).read_bytes() for name in (*names, "state/ledger/records.sqlite")}


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    root = tmp_path_factory.mktemp("trial")
    bases = tuple(save_tiny_masked_bert(root / name) for name in ("bert", "merged"))
    made = [settings(base, seed) for base, seed in zip(bases, (7, 8), strict=True)]
    written = Written(texts(root / "one", "fever"), root / "test.csv")
    first = found(root, written, build_manifest(made[0], "small"), local_settings(made[0], "small"))
    north = first.consortium.clients["north"]
    (north / "state" / "ledger").mkdir(parents=True, mode=0o700)
    (north / "state" / "ledger" / "records.sqlite").write_bytes(b"the book")
    toml = north / "client.toml"
    toml.write_text(toml.read_text().replace('device = "cpu"', 'device = "cuda:1"'))  # the site's own choice
    before, model = kept(north), start._first_model(load_site(first.consortium.server))
    records = texts(root / "two", "cough", ("east",))
    second = next_link(
        first, root / "two-run", build_manifest(made[1], "small"), local_settings(made[1], "small"), records
    )
    models = model, start._first_model(load_site(second.consortium.server))
    return Trial(first, second, (bases[0], bases[1]), models, (before, kept(north)))


def test_every_site_has_the_next_manifest_and_its_own_keys_and_ledger(trial: Trial) -> None:
    assert trial.first.manifest.digest() != trial.second.manifest.digest()
    for path in (trial.second.consortium.server, *trial.second.consortium.clients.values()):
        site = load_site(path)
        assert site.manifest == trial.second.manifest
        assert site.settings.base_model == str(trial.bases[1])
    assert trial.kept[0] == trial.kept[1]
    assert trial.second.base_model == trial.bases[1] and trial.second.run.is_dir()


def test_a_sites_own_choices_stay_and_new_records_go_where_they_are_meant_for(trial: Trial) -> None:
    north, east = (load_site(trial.second.consortium.clients[name]) for name in ("north", "east"))
    assert (north.settings.device, east.settings.device) == ("cuda:1", "cpu")
    assert north.data.read_text() == "text\nfever of north\n"
    assert east.data.read_text() == "text\ncough of east\n" and east.data.stat().st_mode & 0o777 == 0o600


def test_the_servers_first_model_is_that_of_its_manifest(trial: Trial) -> None:
    """Of the same length, so only the manifest tells them apart."""
    first, second = trial.started
    assert len(first) == len(second) == trial.second.manifest.adapter.size and not np.array_equal(first, second)
    site = load_site(trial.second.consortium.server)
    assert np.array_equal(start._first_model(site), second)
    assert np.array_equal(start._learner(site).initial(), second)


def test_a_run_folder_is_of_one_manifest(trial: Trial) -> None:
    first, second = trial.first, load_site(trial.second.consortium.server)
    state = start.private_state(second)
    (state / "run-0123456789abcdef").write_text(str(first.run.resolve()))  # as the first manifest's server left it
    with pytest.raises(DocumentError) as refused:
        start._run_folder(state, second, first.run)
    assert refused.value.code == "E423" and refused.value.found == first.run.resolve()
    assert start._run_folder(state, second, trial.second.run) == trial.second.run.resolve()
    assert start._run_folder(state, second, None) == trial.second.run.resolve()


def test_a_run_of_another_server_is_not_written_over(trial: Trial, tmp_path: Path) -> None:
    """No note says so, only the manifest that lies in the folder."""
    site, run = load_site(trial.second.consortium.server), tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_bytes(trial.first.manifest.to_bytes())
    (tmp_path / "state").mkdir()
    with pytest.raises(DocumentError, match="another task was begun") as refused:
        start._run_folder(tmp_path / "state", site, run)
    assert refused.value.code == "E423" and not list((tmp_path / "state").iterdir())
    (run / "manifest.json").write_bytes(trial.second.manifest.to_bytes())
    assert start._run_folder(tmp_path / "state", site, run) == run.resolve()


def test_records_arrive_at_clients_alone(trial: Trial, tmp_path: Path) -> None:
    new = tmp_path / "new.csv"
    new.write_text("text\na new fever\n")
    server = trial.second.consortium.server
    before = sorted(path.name for path in server.rglob("*"))
    with pytest.raises(DocumentError) as refused:
        arrive(server, new, "0", Output(Format.json))
    assert refused.value.code == "E354" and sorted(path.name for path in server.rglob("*")) == before


def test_a_manifest_for_other_clients_is_refused_and_nothing_changes(trial: Trial, tmp_path: Path) -> None:
    made = settings(trial.bases[0], clients=5)
    with pytest.raises(DocumentError) as refused:
        next_link(trial.second, tmp_path / "run", build_manifest(made, "small"), local_settings(made, "small"))
    assert refused.value.code == "E354"
    assert load_site(trial.second.consortium.server).manifest == trial.second.manifest


def test_settings_that_make_no_sense_leave_the_file_as_it_was(trial: Trial) -> None:
    site = trial.second.consortium.clients["west"]
    before = (site / "client.toml").read_bytes()
    for changes in ({"base": "x"}, {"device": "tpu"}):
        with pytest.raises(DocumentError) as refused:
            change_settings(site, changes)
        assert refused.value.code == "E305" and (site / "client.toml").read_bytes() == before
    change_settings(site, {"base_model": ""})
    assert load_site(site).settings.base_model == ""
