"""Wrong inputs as a user meets them: one clear error with found, expected and what to do; never a traceback."""

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ffm.consortium import Consortium
from tests.integration.federation import Process, make


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Consortium, Consortium]:
    """Two consortia: the second supplies wrong certificates and documents."""
    folder = tmp_path_factory.mktemp("consortia")
    return make(folder / "one")[0], make(folder / "two")[0]


def _copy(source: str) -> Callable[[Path, Path], None]:
    """Take a file of the same name from another site's folder."""

    def spoil(site: Path, other: Path) -> None:
        for name in source.split():
            shutil.copy(other / name, site / name)

    return spoil


def _replace(name: str, old: bytes, new: bytes) -> Callable[[Path, Path], None]:
    def spoil(site: Path, other: Path) -> None:
        data = (site / name).read_bytes()
        assert old in data
        (site / name).write_bytes(data.replace(old, new, 1))

    return spoil


def _remove(name: str) -> Callable[[Path, Path], None]:
    return lambda site, other: (site / name).unlink()


def _loosen(site: Path, other: Path) -> None:
    (site / "identity.key").chmod(0o644)


CASES: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "changed manifest": ("E302", _replace("manifest.json", b'"local_steps":2', b'"local_steps":9')),
    "changed roster": ("E302", _replace("roster.json", b'"version":1', b'"version":2')),
    "roster of another owner": ("E302", _copy("roster.json roster.json.sig")),
    "key file that others can read": ("E318", _loosen),
    "missing settings": ("E354", _remove("client.toml")),
    "identity key of another consortium": ("E353", _copy("identity.key")),
    "data file missing": ("E511", _remove("records.csv")),
    "data without a label column": ("E512", _replace("records.csv", b"text,label", b"text,lable")),
    "base model unknown on this machine": (
        "E502",
        _replace("client.toml", b'device = "cpu"', b'device = "cpu"\nbase_model = "nobody/none"'),
    ),
}


PASSED_ON = ("E502", "E512")  # as E511, by the training process, which takes its time to load


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (CASES[name][0] in PASSED_ON)) for name in CASES]
)
def test_client_refuses(name: str, pristine: tuple[Consortium, Consortium], tmp_path: Path) -> None:
    code, spoil = CASES[name]
    site = tmp_path / "north"
    shutil.copytree(pristine[0].clients["north"], site)
    site.chmod(0o700)
    spoil(site, pristine[1].clients["north"])
    client = Process("client", site)
    status = client.ended()
    assert client.error["error"] == code, client.error
    assert status == {"3": 30, "5": 50}[code[1]]
    assert client.error["found"] and client.error["expected"] and client.error["do"]
    assert "Traceback" not in client.stderr


def test_busy_port(pristine: tuple[Consortium, Consortium]) -> None:
    with socket.socket() as taken:
        settings = (pristine[0].server / "server.toml").read_text()
        port = int(settings.split("server_port = ")[1].split()[0])
        taken.bind(("127.0.0.1", port))
        taken.listen()
        server = Process("server", pristine[0].server)
        assert server.ended() == 30
        assert server.error["error"] == "E340" and str(port) in server.error["what"]
        assert "Traceback" not in server.stderr


def test_role_of_the_folder(pristine: tuple[Consortium, Consortium]) -> None:
    client = Process("client", pristine[0].server)
    assert client.ended() == 30 and client.error["error"] == "E354"
