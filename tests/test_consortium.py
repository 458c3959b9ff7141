"""Joining, signing and loading: what a good consortium looks like, and one error for each way to tamper with it."""

import json
import shutil
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from simulator import insecure_rng, make_manifest

from ffm import consortium, joining
from ffm.consortium import ConsortiumConfig, ConsortiumFile, Owner, ServerConfig, create_consortium, read_config
from ffm.site import Site, load_site
from protocol import signed
from protocol.errors import DocumentError
from protocol.manifest import Manifest, sign_manifest
from protocol.roster import Roster, parse_model, sign_roster
from protocol.rpc import pki
from secagg.signing import SigningKey

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SERVER = ServerConfig(host="127.0.0.1", port=7443, also_known_as=("localhost",))
CLIENTS = ("north", "south", "west")
CONFIG = ConsortiumConfig(consortium="a trial", task="task.toml", server=SERVER, clients=CLIENTS)
FILE = ConsortiumFile(consortium="a trial", server=SERVER)


def manifest(n: int = 3, **changes: object) -> Manifest:
    return make_manifest(n, c=0, dropouts=0, **changes)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consortium that is only read."""
    folder = tmp_path_factory.mktemp("trial")
    create_consortium(CONFIG, folder, manifest())
    return folder


@pytest.fixture
def copy(trial: Path, tmp_path: Path) -> Path:
    """The same for tampering."""
    shutil.copytree(trial, tmp_path / "trial")
    return tmp_path / "trial"


def refused(code: str, call: Callable[[], object]) -> DocumentError:
    with pytest.raises(DocumentError) as caught:
        call()
    assert caught.value.code == code, str(caught.value)
    return caught.value


def join(owner: Owner, folder: Path, name: str, now: datetime = NOW) -> None:
    joining.create_site(folder, name)
    consortium.approve(owner, joining.verify_request(*joining.read_request(folder)), now)


# -- a good one -----------------------------------------------------------------------------------------------------


def test_every_site_loads(trial: Path) -> None:
    sites = {name: load_site(trial / "sites" / name) for name in ("server", *CLIENTS)}
    now = datetime.now(UTC)
    for name, site in sites.items():
        assert site.check_certificate(now).name == name
        assert site.manifest == manifest()
        assert site.roster == sites["server"].roster and site.roster.version == 1
        assert site.address == ("127.0.0.1", 7443)
        assert signed.verify(
            "application/vnd.secagg.roster.v1+json", site.roster.to_bytes(), site.roster_signature, site.owner
        )
    assert [sites[name].client_id for name in CLIENTS] == [1, 2, 3]
    assert [sites[name].role for name in ("server", *CLIENTS)] == ["server", "client", "client", "client"]
    assert sites["north"].data == trial / "sites" / "north" / "records.csv"
    refused("E304", lambda: sites["server"].client_id)


def test_private_files_are_private_and_stay_at_home(trial: Path) -> None:
    private = {}
    for path in trial.rglob("*"):
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
        elif b"PRIVATE" in path.read_bytes():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
            private[path.relative_to(trial).as_posix()] = path.read_bytes()
    sites = [f"sites/{name}/{key}" for name in ("server", *CLIENTS) for key in ("identity.key", "tls.key")]
    assert sorted(private) == sorted([*sites, "owner/owner.key", "owner/ca.key"])
    assert len(set(private.values())) == len(private)


def test_no_repr_shows_a_secret(trial: Path) -> None:
    site = load_site(trial / "sites" / "north")
    owner = consortium.load_owner(trial / "owner")
    for thing in (site, owner):
        text = repr(thing)
        assert "PRIVATE" not in text
        assert site.identity.to_bytes().hex() not in text and owner.key.to_bytes().hex() not in text


def test_a_used_folder_is_refused(copy: Path) -> None:
    refused("E320", lambda: create_consortium(CONFIG, copy, manifest()))
    assert load_site(copy / "sites" / "north").roster.version == 1


def test_a_manifest_for_another_number(tmp_path: Path) -> None:
    error = refused("E355", lambda: create_consortium(CONFIG, tmp_path / "x", manifest(4)))
    assert "3 clients" in str(error) and "4" in str(error)
    assert not (tmp_path / "x").exists()


def test_a_passphrase_protects_the_owner(tmp_path: Path) -> None:
    create_consortium(CONFIG, tmp_path / "x", manifest(), b"correct horse")
    refused("E321", lambda: consortium.load_owner(tmp_path / "x" / "owner"))
    refused("E321", lambda: consortium.load_owner(tmp_path / "x" / "owner", b"wrong"))
    assert consortium.load_owner(tmp_path / "x" / "owner", b"correct horse").file == FILE
    load_site(tmp_path / "x" / "sites" / "north")


# -- the configuration ----------------------------------------------------------------------------------------------

TOML = """
consortium = "a trial"
task = "task.toml"
clients = ["north", "south", "west"]
[server]
host = "127.0.0.1"
port = 7443
also_known_as = ["localhost"]
"""


def test_configuration(tmp_path: Path) -> None:
    path = tmp_path / "consortium.toml"
    path.write_text(TOML)
    assert read_config(path) == CONFIG


@pytest.mark.parametrize(
    ("old", "new", "code", "says"),
    [
        ("7443", "0", "E305", "server.port"),
        ("7443", '"7443"', "E305", "server.port"),
        ("7443", "1.5", "E305", "server.port"),
        ('"west"', '"West"', "E305", "clients.2"),
        ('"west"', '"../etc"', "E305", "clients.2"),
        (', "west"', "", "E305", "clients"),
        ('"west"', '"north"', "E355", "north"),
        ('"west"', '"server"', "E355", "server"),
        ("task =", "tasks =", "E305", "tasks"),
        ("task =", "insecure = true\ntask =", "E305", "insecure"),
        ("host =", "host", "E354", "line 6"),
        ('"a trial"', "2030-01-01", "E354", "JSON"),
    ],
)
def test_bad_configuration(tmp_path: Path, old: str, new: str, code: str, says: str) -> None:
    path = tmp_path / "consortium.toml"
    assert old in TOML
    path.write_text(TOML.replace(old, new))
    assert says in str(refused(code, lambda: read_config(path)))


def test_missing_configuration(tmp_path: Path) -> None:
    refused("E319", lambda: read_config(tmp_path / "nowhere.toml"))


# -- tampering with a site ------------------------------------------------------------------------------------------


def edit(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) >= 1, f"{old!r} not in {path}"
    path.write_bytes(data.replace(old, new, 1))


def resign(folder: Path, name: str, body: bytes, key: SigningKey, kind: str) -> None:
    (folder / name).write_bytes(body)
    (folder / f"{name}.sig").write_bytes(signed.sign(kind, body, key))


def test_a_changed_manifest(copy: Path) -> None:
    north = copy / "sites" / "north"
    edit(north / "manifest.json", b'"noise_steps":65536', b'"noise_steps":00001')
    error = refused("E302", lambda: load_site(north))
    assert "manifest.json" in str(error) and load_site(copy / "sites" / "south").owner.fingerprint() in str(error)


def test_a_changed_roster(copy: Path) -> None:
    north = copy / "sites" / "north"
    edit(north / "roster.json", b'"version":1', b'"version":2')
    assert "roster.json" in str(refused("E302", lambda: load_site(north)))


def test_documents_that_do_not_fit(copy: Path) -> None:
    """Both signed by the owner, for another number of clients."""
    owner, north = consortium.load_owner(copy / "owner"), copy / "sites" / "north"
    resign(north, "manifest.json", manifest(4).to_bytes(), owner.key, "application/vnd.secagg.manifest.v1+json")
    assert "3 clients" in str(refused("E354", lambda: load_site(north)))


def test_swapped_documents(copy: Path) -> None:
    """The owner's signature under the roster is none under a manifest with the same bytes."""
    north = copy / "sites" / "north"
    for suffix in ("", ".sig"):
        shutil.copy(north / f"roster.json{suffix}", north / f"manifest.json{suffix}")
    refused("E302", lambda: load_site(north))


def test_another_owner(copy: Path) -> None:
    north = copy / "sites" / "north"
    site = load_site(north)
    stranger = SigningKey.generate(insecure_rng("stranger"))
    body, signature = sign_manifest(manifest(), stranger)
    (north / "manifest.json").write_bytes(body)
    (north / "manifest.json.sig").write_bytes(signature)
    assert site.owner.fingerprint() in str(refused("E302", lambda: load_site(north)))


def test_a_replaced_owner_key(copy: Path, tmp_path: Path) -> None:
    create_consortium(CONFIG, tmp_path / "other", manifest())
    shutil.copy(tmp_path / "other" / "owner" / "owner.pub", copy / "sites" / "north" / "owner.pub")
    refused("E302", lambda: load_site(copy / "sites" / "north"))


@pytest.mark.parametrize("name", ["identity.key", "tls.key"])
def test_loose_key_files(copy: Path, name: str) -> None:
    (copy / "sites" / "north" / name).chmod(0o640)
    refused("E318", lambda: load_site(copy / "sites" / "north"))


@pytest.mark.parametrize(
    ("files", "code"),
    [
        (["identity.key"], "E353"),
        (["tls.key"], "E317"),
        (["tls.pem"], "E317"),
    ],
)
def test_files_of_another_client(copy: Path, files: list[str], code: str) -> None:
    for name in files:
        shutil.copy(copy / "sites" / "south" / name, copy / "sites" / "north" / name)
    refused(code, lambda: load_site(copy / "sites" / "north"))


def test_another_clients_certificate(copy: Path) -> None:
    for name in ("tls.key", "tls.pem"):
        shutil.copy(copy / "sites" / "south" / name, copy / "sites" / "north" / name)
    site = load_site(copy / "sites" / "north")
    assert refused("E316", lambda: site.check_certificate(datetime.now(UTC))).found == "the certificate of south"


def test_another_authority(copy: Path, tmp_path: Path) -> None:
    create_consortium(CONFIG, tmp_path / "other", manifest())
    shutil.copy(tmp_path / "other" / "owner" / "ca.pem", copy / "sites" / "north" / "ca.pem")
    site = load_site(copy / "sites" / "north")
    refused("E312", lambda: site.check_certificate(datetime.now(UTC)))


def test_an_expired_certificate(trial: Path) -> None:
    site = load_site(trial / "sites" / "north")
    refused("E311", lambda: site.check_certificate(datetime.now(UTC) + timedelta(days=91)))


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (b'name = "north"', b'name = "south"', "E353"),
        (b'name = "north"', b'name = "east"', "E304"),
        (b"server_port", b"serverport", "E305"),
        (b"device", b"noise_multiplier = 0\ndevice", "E305"),
        (b'"cpu"', b'"tpu"', "E305"),
        (b"server_port = 7443", b"server_port = ", "E354"),
    ],
)
def test_bad_settings(copy: Path, old: bytes, new: bytes, code: str) -> None:
    north = copy / "sites" / "north"
    edit(north / "client.toml", old, new)
    refused(code, lambda: load_site(north))


def test_no_site(copy: Path, tmp_path: Path) -> None:
    refused("E354", lambda: load_site(tmp_path / "nowhere"))
    refused("E354", lambda: load_site(copy / "owner"))
    shutil.copy(copy / "sites" / "server" / "server.toml", copy / "sites" / "north")
    refused("E354", lambda: load_site(copy / "sites" / "north"))
    (copy / "sites" / "west").chmod(0o777)
    refused("E318", lambda: load_site(copy / "sites" / "west"))


@pytest.mark.parametrize("name", ["identity.key", "tls.pem", "ca.pem", "owner.pub", "roster.json", "manifest.json.sig"])
def test_missing_files(copy: Path, name: str) -> None:
    (copy / "sites" / "north" / name).unlink()
    assert name in str(refused("E319", lambda: load_site(copy / "sites" / "north")))


# -- joining step by step -------------------------------------------------------------------------------------------


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    """An owner whose server and three clients have been approved."""
    made = consortium.create_owner(tmp_path / "owner", FILE, NOW)
    for name in ("server", *CLIENTS):
        join(made, tmp_path / name, name)
    return made


def accepted(owner: Owner, folder: Path) -> Site:
    joining.accept(folder, consortium.welcome(owner, folder.name), owner.fingerprint)
    return load_site(folder)


def test_what_travels_is_public(owner: Owner, tmp_path: Path) -> None:
    consortium.publish(owner, manifest())
    secrets = [load.to_bytes() for load in (owner.key, accepted(owner, tmp_path / "north").identity)]
    travels = [*joining.read_request(tmp_path / "north"), consortium.welcome(owner, "north")]
    for data in travels:
        assert b"PRIVATE" not in data
        assert not any(secret in data or secret.hex().encode() in data for secret in secrets)


def test_the_request_must_be_signed_by_its_own_key(tmp_path: Path) -> None:
    joining.create_site(tmp_path / "a", "north")
    joining.create_site(tmp_path / "b", "north")
    body, signature = joining.read_request(tmp_path / "a")
    assert joining.verify_request(body, signature).name == "north"
    refused("E302", lambda: joining.verify_request(body, joining.read_request(tmp_path / "b")[1]))
    refused("E302", lambda: joining.verify_request(body.replace(b"north", b"south"), signature))
    refused("E303", lambda: joining.verify_request(b" " + body, signature))
    refused("E305", lambda: joining.verify_request(signed.canonical({"version": 1}), signature))


def test_a_request_with_somebody_elses_certificate_key(tmp_path: Path) -> None:
    """Signed by the identity key, but the certificate request inside is garbage or edited."""
    key = SigningKey.generate(insecure_rng("mallory"))
    joining.create_site(tmp_path / "a", "north")
    csr = json.loads(joining.read_request(tmp_path / "a")[0])["csr"]
    middle = len(csr) // 2
    edited = csr[:middle] + ("A" if csr[middle] != "A" else "B") + csr[middle + 1 :]
    for text in ("garbage", edited):
        raw = {"version": 1, "name": "north", "identity_key": key.verify_key.to_bytes().hex(), "csr": text}
        body = signed.canonical(raw)
        refused("E322", lambda body=body: joining.verify_request(body, signed.sign(joining.REQUEST_KIND, body, key)))


def test_fingerprints_differ(tmp_path: Path) -> None:
    seen = {joining.create_site(tmp_path / str(i), "north").fingerprint() for i in range(4)}
    assert len(seen) == 4 and all(len(text) == 24 for text in seen)


def test_the_owner_decides_the_usage(owner: Owner, tmp_path: Path) -> None:
    """A client cannot ask its way to a server certificate: only the configured name gets one."""
    consortium.publish(owner, manifest())
    site = accepted(owner, tmp_path / "north")
    refused("E313", lambda: pki.check_own_certificate(site.tls, site.roster, "north", pki.Usage.SERVER, NOW))


def test_the_wrong_fingerprint(owner: Owner, tmp_path: Path) -> None:
    consortium.publish(owner, manifest())
    refused("E351", lambda: joining.accept(tmp_path / "north", consortium.welcome(owner, "north"), "0000-0000"))
    assert not (tmp_path / "north" / "owner.pub").exists()


def test_another_owner_after_pinning(owner: Owner, tmp_path: Path) -> None:
    consortium.publish(owner, manifest())
    before = accepted(owner, tmp_path / "north")
    other = consortium.create_owner(tmp_path / "other", FILE, NOW)
    for name in ("server", *CLIENTS):
        consortium.approve(other, joining.verify_request(*joining.read_request(tmp_path / name)), NOW)
    consortium.publish(other, manifest())
    message = consortium.welcome(other, "north")
    refused("E351", lambda: joining.accept(tmp_path / "north", message, other.fingerprint))
    refused("E351", lambda: joining.accept(tmp_path / "north", message, owner.fingerprint))
    assert load_site(tmp_path / "north").owner == before.owner


def test_somebody_elses_welcome(owner: Owner, tmp_path: Path) -> None:
    consortium.publish(owner, manifest())
    refused("E316", lambda: joining.accept(tmp_path / "north", consortium.welcome(owner, "south"), owner.fingerprint))


def test_a_welcome_that_does_not_fit(owner: Owner, tmp_path: Path) -> None:
    consortium.publish(owner, manifest())
    message = json.loads(consortium.welcome(owner, "north"))
    body, signature = sign_manifest(manifest(4), owner.key)
    unfit = signed.canonical(message | {"manifest": body.decode(), "manifest_signature": signature.hex()})
    refused("E354", lambda: joining.accept(tmp_path / "north", unfit, owner.fingerprint))


def test_a_replaced_tls_key(owner: Owner, tmp_path: Path) -> None:
    consortium.publish(owner, manifest())
    shutil.copy(tmp_path / "south" / "tls.key", tmp_path / "north" / "tls.key")
    refused("E316", lambda: joining.accept(tmp_path / "north", consortium.welcome(owner, "north"), owner.fingerprint))


def test_another_consortium_of_the_same_owner(owner: Owner, tmp_path: Path) -> None:
    consortium.publish(owner, manifest())
    accepted(owner, tmp_path / "north")
    message = json.loads(consortium.welcome(owner, "north"))
    other = parse_model(Roster, "roster", message["roster"].encode()).model_copy(update={"consortium": "another"})
    body, signature = sign_roster(other, owner.key)
    changed = signed.canonical(message | {"roster": body.decode(), "roster_signature": signature.hex()})
    refused("E352", lambda: joining.accept(tmp_path / "north", changed, owner.fingerprint))


def test_an_edited_welcome(owner: Owner, tmp_path: Path) -> None:
    consortium.publish(owner, manifest())
    message = json.loads(consortium.welcome(owner, "north"))
    changes = {
        "manifest": (message["manifest"].replace('"rounds":10', '"rounds":11'), "E302"),
        "roster": (message["roster"].replace('"version":1', '"version":9'), "E302"),
        "authority": (message["certificate"], "E312"),
        "certificate": ("garbage", "E321"),
        "server_port": ("7443", "E305"),
        "extra": (1, "E305"),
    }
    for field, (value, code) in changes.items():
        body = signed.canonical(message | {field: value})
        refused(code, lambda body=body: joining.accept(tmp_path / "north", body, owner.fingerprint))
    assert not (tmp_path / "north" / "client.toml").exists()
    accepted(owner, tmp_path / "north")


def test_renewal_keeps_keys_id_and_roster(owner: Owner, tmp_path: Path) -> None:
    consortium.publish(owner, manifest())
    before = accepted(owner, tmp_path / "north")
    later = NOW + timedelta(days=80)
    consortium.approve(owner, joining.verify_request(*joining.read_request(tmp_path / "north")), later)
    assert consortium.publish(owner, manifest()).version == 1
    after = accepted(owner, tmp_path / "north")
    assert after.client_id == before.client_id and after.roster == before.roster
    assert after.tls.certificate != before.tls.certificate
    assert after.check_certificate(NOW + timedelta(days=100)).name == "north"
    refused("E311", lambda: before.check_certificate(NOW + timedelta(days=100)))


def test_a_name_is_not_taken_over(owner: Owner, tmp_path: Path) -> None:
    joining.create_site(tmp_path / "mallory", "north")
    request = joining.verify_request(*joining.read_request(tmp_path / "mallory"))
    refused("E356", lambda: consortium.approve(owner, request, NOW))
    assert consortium.publish(owner, manifest()).clients[0].identity_key != request.identity_key


def test_growth_and_removal(owner: Owner, tmp_path: Path) -> None:
    """Versions only grow, ids are never given away again, and a site does not go back to an older roster."""
    consortium.publish(owner, manifest())
    accepted(owner, tmp_path / "north")
    old = consortium.welcome(owner, "north")
    join(owner, tmp_path / "east", "east")
    refused("E354", lambda: consortium.publish(owner, manifest(3)))
    assert consortium.publish(owner, manifest(4)).version == 2
    assert accepted(owner, tmp_path / "east").client_id == 4
    assert accepted(owner, tmp_path / "north").roster.version == 2
    refused("E352", lambda: joining.accept(tmp_path / "north", old, owner.fingerprint))
    consortium.remove(owner, "east")
    assert consortium.publish(owner, manifest(3)).version == 3
    refused("E319", lambda: consortium.welcome(owner, "east"))
    join(owner, tmp_path / "again" / "east", "east")
    assert [m.client_id for m in consortium.publish(owner, manifest(4)).clients] == [1, 2, 3, 5]
    refused("E356", lambda: consortium.remove(owner, "server"))
    refused("E356", lambda: consortium.remove(owner, "nobody"))


def test_a_removed_client_is_told(owner: Owner, tmp_path: Path) -> None:
    join(owner, tmp_path / "east", "east")
    consortium.publish(owner, manifest(4))
    site = accepted(owner, tmp_path / "east")
    consortium.remove(owner, "east")
    roster = consortium.publish(owner, manifest(3))
    body, signature = sign_roster(roster, owner.key)
    (site.folder / "roster.json").write_bytes(body)
    (site.folder / "roster.json.sig").write_bytes(signature)
    resign(site.folder, "manifest.json", manifest(3).to_bytes(), owner.key, "application/vnd.secagg.manifest.v1+json")
    assert "north, south, west" in str(refused("E304", lambda: load_site(site.folder)))


def test_nothing_to_publish(tmp_path: Path) -> None:
    owner = consortium.create_owner(tmp_path / "owner", FILE, NOW)
    refused("E356", lambda: consortium.publish(owner, manifest()))
    refused("E319", lambda: consortium.welcome(owner, "north"))


def test_an_owner_with_mixed_files(copy: Path, tmp_path: Path) -> None:
    create_consortium(CONFIG, tmp_path / "other", manifest())
    shutil.copy(tmp_path / "other" / "owner" / "ca.key", copy / "owner" / "ca.key")
    refused("E317", lambda: consortium.load_owner(copy / "owner"))
