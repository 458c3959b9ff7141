"""A consortium with a decryptor: its folder, its place in the roster, and what its command refuses."""

import asyncio
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from simulator import encrypted, make_manifest

from ffm import consortium, joining
from ffm.consortium import ConsortiumConfig, ConsortiumFile, ServerConfig, create_consortium, read_config
from ffm.site import load_site
from ffm.start import ClientOptions, ServerOptions, _check_library, _scheme, decrypt, participate, serve
from ffm.task import AggregationSettings
from protocol.errors import DocumentError
from protocol.manifest import Manifest
from protocol.rpc import pki
from secagg.he.scheme import LIBRARY

SERVER = ServerConfig(host="127.0.0.1", port=7444)
CLIENTS = ("north", "south", "west")
CONFIG = ConsortiumConfig(consortium="a trial", task="task.toml", server=SERVER, decryptor="auditor", clients=CLIENTS)


def manifest(assurance: str = "dual") -> Manifest:
    changes = {} if assurance == "masking" else encrypted(assurance)
    return make_manifest(3, c=0, dropouts=0, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consortium that is only read."""
    folder = tmp_path_factory.mktemp("trial")
    create_consortium(CONFIG, folder, manifest())
    return folder


def refused(code: str, call: object) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.code == code, str(caught.value)
    return caught.value


def test_the_decryptor_has_a_folder_a_role_and_an_entry_of_its_own(trial: Path) -> None:
    site = load_site(trial / "sites" / "auditor")
    assert site.role == "decryptor" and site.check_certificate(datetime.now(UTC)).name == "auditor"
    roster = site.roster
    assert roster.decryptor is not None and roster.decryptor.name == "auditor"
    assert [peer.name for peer in roster.peers] == ["server", "auditor", *CLIENTS]
    assert [member.client_id for member in roster.clients] == [1, 2, 3]
    assert roster.decryptor.tls_key_sha256 == pki.spki_sha256(site.tls.certificate)
    assert roster.decryptor_key.to_bytes() == site.identity.verify_key.to_bytes()
    refused("E304", lambda: site.client_id)
    for name, role in (("server", "server"), ("north", "client")):
        assert load_site(trial / "sites" / name).role == role
    assert not (trial / "sites" / "auditor" / "client.toml").exists()


def test_a_masking_consortium_has_none_and_its_roster_does_not_mention_one(tmp_path: Path) -> None:
    plain = CONFIG.model_copy(update={"decryptor": None})
    made = create_consortium(plain, tmp_path, manifest("masking"))
    site = load_site(made.server)
    assert made.decryptor is None and site.roster.decryptor is None
    assert b"decryptor" not in site.roster.to_bytes() and b"encryption" not in site.manifest.to_bytes()


def test_a_task_that_encrypts_needs_somebody_to_decrypt(tmp_path: Path) -> None:
    plain = CONFIG.model_copy(update={"decryptor": None})
    refused("E355", lambda: create_consortium(plain, tmp_path / "a", manifest("he")))
    owner = consortium.create_owner(
        tmp_path / "b", ConsortiumFile(consortium="a trial", server=SERVER), datetime(2030, 1, 1, tzinfo=UTC)
    )
    for name in ("server", *CLIENTS):
        joining.create_site(tmp_path / name, name)
        request = joining.verify_request(*joining.read_request(tmp_path / name))
        consortium.approve(owner, request, datetime(2030, 1, 1, tzinfo=UTC))
    refused("E354", lambda: consortium.publish(owner, manifest("dual")))


def test_a_decryptor_may_not_be_called_like_a_member(tmp_path: Path) -> None:
    path = tmp_path / "consortium.toml"
    text = 'consortium = "c"\ntask = "t"\ndecryptor = "{}"\nclients = ["a", "b", "c"]\n[server]\nhost = "h"\nport = 1\n'
    path.write_text(text.format("auditor"))
    assert read_config(path).decryptor == "auditor"
    for name in ("server", "b"):
        path.write_text(text.format(name))
        refused("E355", lambda: read_config(path))


def test_each_command_wants_its_own_folder(trial: Path) -> None:
    sites = {name: load_site(trial / "sites" / name) for name in ("server", "auditor", "north")}
    for name, others in (
        ("server", (_decrypt, _participate)),
        ("auditor", (_serve, _participate)),
        ("north", (_decrypt, _serve)),
    ):
        for command in others:
            assert "is the folder of a" in refused("E354", lambda c=command, n=name: c(sites[n])).what  # type: ignore[misc]


def _decrypt(site: object) -> None:
    asyncio.run(decrypt(site, print))  # type: ignore[arg-type]


def _serve(site: object) -> None:
    asyncio.run(serve(site, ServerOptions(), print))  # type: ignore[arg-type]


def _participate(site: object) -> None:
    asyncio.run(participate(site, ClientOptions(), print))  # type: ignore[arg-type]


def test_a_decryptor_of_a_task_that_encrypts_nothing_need_not_run(tmp_path: Path) -> None:
    made = create_consortium(CONFIG, tmp_path, manifest("masking"))
    assert made.decryptor is not None
    site = load_site(made.decryptor)
    assert _scheme(load_site(made.clients["north"])) is None
    error = refused("E357", lambda: _decrypt(site))
    assert "encrypts nothing" in error.what


def test_another_library_than_the_signed_one_is_refused(trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = load_site(trial / "sites" / "north")
    assert _scheme(site) is not None
    monkeypatch.setattr("ffm.start.LIBRARY", "tenseal 9.9.9")
    assert LIBRARY in str(refused("E357", lambda: _check_library(site)).found)


def test_settings_of_a_task_become_the_manifests_words() -> None:
    base = {
        "num_clients": 5,
        "max_corrupt": 1,
        "max_dropouts": 1,
        "min_cohort": 4,
        "slots_per_word": 3,
        "chunk_words": 16,
    }
    assert "encryption" not in AggregationSettings.model_validate(base).spec()
    dual = AggregationSettings.model_validate({**base, "assurance": "dual"}).spec()
    assert dual["encryption"] == {"scheme": "bfv", "limb_bits": 32, "library": LIBRARY}
    many = AggregationSettings.model_validate({**base, "assurance": "he", "num_clients": 200}).spec()
    assert many["encryption"]["limb_bits"] == 22


def test_a_changed_assurance_is_not_what_the_owner_signed(trial: Path, tmp_path: Path) -> None:
    shutil.copytree(trial / "sites" / "north", tmp_path / "north")
    path = tmp_path / "north" / "manifest.json"
    body = json.loads(path.read_bytes())
    body["aggregation"]["assurance"] = "he"
    path.write_bytes(json.dumps(body, separators=(",", ":"), sort_keys=True).encode())
    refused("E302", lambda: load_site(tmp_path / "north"))
