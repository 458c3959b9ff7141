"""`secagg report diff|render|attach|schema` on files with real signatures: outputs, refusals, exit codes."""

import json
from pathlib import Path

import pytest
from report_sample import audit
from simulator import Federation, insecure_rng
from test_report_files import OWNER, run, whole  # noqa: F401 - fixtures: three real rounds, signed
from typer.testing import CliRunner, Result

from dp.errors import ReportError
from dp.report_schema import schema_text
from ffm.cli.app import app
from ffm.report_files import attach, verify_files
from protocol import signed
from secagg.signing import SigningKey

RUN = CliRunner()


def invoke(*arguments: object) -> Result:
    return RUN.invoke(app, ["report", *map(str, arguments)])


@pytest.fixture
def files(run: tuple[Path, Federation], tmp_path: Path) -> Path:  # noqa: F811
    """A copy of the run's report."""
    for name in ("report.json", "report.json.sig", "owner.pub.hex"):
        (tmp_path / name).write_bytes((run[0] / name).read_bytes())
    return tmp_path


def forged(files: Path) -> Path:
    report = json.loads((files / "report.json").read_bytes())
    report["groups"][1]["vector_length"] += 1
    path = files / "forged.json"
    path.write_bytes(signed.canonical(report))
    return path


def test_a_run_leaves_page_and_markdown(run: tuple[Path, Federation]) -> None:  # noqa: F811
    assert (run[0] / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert (run[0] / "report.md").read_text().startswith("# Privacy accounting report")


@pytest.mark.parametrize(
    ("to", "begins"),
    [("html", "<!DOCTYPE html>"), ("markdown", "# Privacy accounting report"), ("opendp", "url_slug: ")],
)
def test_render_to_stdout_and_to_a_file(files: Path, to: str, begins: str) -> None:
    shown = invoke("render", files / "report.json", "--to", to)
    assert shown.exit_code == 0 and shown.stdout.startswith(begins)
    target = files / "out"
    told = invoke("render", files / "report.json", "--to", to, "--out", target, "--format", "json")
    assert json.loads(told.stdout) == {"result": "rendered", "to": to, "path": str(target)}
    assert target.read_text() == shown.stdout


def test_render_knows_three_targets(files: Path) -> None:
    assert invoke("render", files / "report.json", "--to", "pdf").exit_code == 2


@pytest.mark.parametrize("command", ["render", "diff"])
def test_nothing_is_made_from_figures_that_do_not_follow(files: Path, command: str) -> None:
    other = [forged(files)] * (2 if command == "diff" else 1)
    result = invoke(command, *other, "--format", "json")
    error = json.loads(result.stderr)
    assert (result.exit_code, error["error"], result.stdout) == (60, "E603", "")
    assert "groups.release.vector_length" in error["found"]


def test_diff_in_words_and_as_json(files: Path, run: tuple[Path, Federation]) -> None:  # noqa: F811
    same = invoke("diff", files / "report.json", files / "report.json")
    assert same.exit_code == 0 and "no difference in any of the fifteen groups" in same.stdout
    (files / "audit.json").write_text(json.dumps(audit(), indent=2))
    audited = files / "audited"
    audited.mkdir()
    for name in ("report.json", "report.json.sig", "owner.pub.hex"):
        (audited / name).write_bytes((files / name).read_bytes())
    attach(audited / "report.json", run[1].server_key, files / "audit.json", None)
    told = invoke("diff", files / "report.json", audited / "report.json", "--format", "json")
    value = json.loads(told.stdout)
    assert told.exit_code == 0 and value["result"] == "differ"
    assert "audit: not measured, then passed: no violation found" in value["words"]
    assert {change["group"] for change in value["changes"]} == {11}
    text = invoke("diff", files / "report.json", audited / "report.json").stdout
    assert "differences" in text and "guarantee: ε = " in text and " in both" in text


def test_attached_evidence_is_signed_and_verified(files: Path, run: tuple[Path, Federation]) -> None:  # noqa: F811
    (files / "audit.json").write_text(json.dumps(audit()))
    (files / "governance.json").write_text(json.dumps({"purpose": "coding", "region": "EU"}))
    report = attach(files / "report.json", run[1].server_key, files / "audit.json", files / "governance.json")
    assert report["groups"][10]["status"].startswith("passed")
    assert "purpose" not in report["groups"][13]["not_stated"]
    assert all(check.ok for check in verify_files(files / "report.json", OWNER.verify_key))
    assert "canaries: q = 1" in (files / "report.html").read_text()


@pytest.mark.parametrize(
    ("audit_text", "governance_text", "code"),
    [
        ('{"format": "secagg-audit/1"}', None, "E601"),
        (json.dumps({**audit(), "passed": False}), None, "E601"),
        (json.dumps({**audit(), "extra": 1}), None, "E601"),
        (None, '{"purpos": "coding"}', "E601"),
        (None, '{"purpose": 7}', "E601"),
        (None, '{"purpose": "a", "purpose": "b"}', "E602"),
        ("[]", None, "E602"),
        ("{", None, "E602"),
    ],
)
def test_evidence_that_is_none_changes_nothing(
    files: Path,
    run: tuple[Path, Federation],  # noqa: F811
    audit_text: str | None,
    governance_text: str | None,
    code: str,
) -> None:
    before = (files / "report.json").read_bytes()
    paths: list[Path | None] = []
    for name, text in (("audit.json", audit_text), ("governance.json", governance_text)):
        paths.append(None if text is None else files / name)
        if text is not None:
            (files / name).write_text(text)
    with pytest.raises(ReportError) as caught:
        attach(files / "report.json", run[1].server_key, *paths)
    assert caught.value.code == code
    assert (files / "report.json").read_bytes() == before


def test_only_the_server_of_the_run_signs(files: Path) -> None:
    with pytest.raises(ReportError, match="another server's report") as caught:
        attach(files / "report.json", SigningKey.generate(insecure_rng("somebody")), None, None)
    assert caught.value.code == "E604"


def test_the_schema_is_printed() -> None:
    result = invoke("schema")
    assert result.exit_code == 0 and result.stdout == schema_text()


@pytest.mark.parametrize("command", [["render", "X"], ["diff", "X", "X"]])
def test_a_missing_file_is_three_lines(command: list[str], tmp_path: Path) -> None:
    result = invoke(*(str(tmp_path / "none.json") if word == "X" else word for word in command))
    assert result.exit_code == 60 and result.stderr.startswith("error E602 ")
    assert len(result.stderr.splitlines()) == 3
