"""`secagg report verify`."""

from pathlib import Path

from rich.table import Table

from dp.errors import ReportError
from ffm.cli.output import Output
from ffm.report_files import verify_files
from protocol.rpc.keyfiles import read_verify_key


def verify(path: Path, owner: Path | None, out: Output) -> None:
    """Print every failed check, or one line; raises ReportError if any failed."""
    checks = verify_files(path, None if owner is None else read_verify_key(owner))
    failed = [check for check in checks if not check.ok]
    summary = {
        "result": "failed" if failed else "verified",
        "checks": len(checks),
        "failed": [{"check": check.name, "found": check.found, "expected": check.expected} for check in failed],
    }
    if not failed:
        key = next((check.found for check in checks if check.name == "owner's key"), "")
        out.result(summary, f"verified: {len(checks)} checks, all figures recomputed; owner's key {key}")
        return
    table = Table("check", "found", "expected", title="failed checks")
    for check in failed[:40]:
        table.add_row(check.name, check.found, check.expected)
    out.result(summary, table)
    raise ReportError(
        "the report does not hold what it says",
        found=f"{len(failed)} of {len(checks)} checks failed, first: {failed[0].name}",
        expected="none",
        do="do not rely on it; ask the server's operator and the clients for their own copies",
        code="E603",
    )
