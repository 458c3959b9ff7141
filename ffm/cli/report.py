"""`secagg report`: verify, diff, render, attach, schema."""

import enum
from pathlib import Path
from typing import Any

from rich.table import Table

from dp.errors import ReportError
from ffm.cli.output import Output
from ffm.report_files import attach, read_verified, verify_files
from ffm.run_folder import write_atomic
from ffm.site import load_site
from protocol.rpc.keyfiles import read_verify_key

MOST_ROWS = 60  # of a table on a terminal; JSON has all


class Target(enum.StrEnum):
    """What a report can be rendered as."""

    html = "html"
    markdown = "markdown"
    opendp = "opendp"


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
    for check in failed[:MOST_ROWS]:
        table.add_row(check.name, check.found, check.expected)
    out.result(summary, table)
    raise ReportError(
        "the report does not hold what it says",
        found=f"{len(failed)} of {len(checks)} checks failed, first: {failed[0].name}",
        expected="none",
        do="do not rely on it; ask the server's operator and the clients for their own copies",
        code="E603",
    )


def diff(before: Path, after: Path, out: Output) -> None:
    """What changed, in words and as a table. Figures of both are recomputed first; signatures are not looked at."""
    from dp.report_diff import diff_json

    value = diff_json(read_verified(before), read_verified(after))
    lines = "\n".join(_plain(line) for line in value["words"])
    if out.is_json or not value["changes"]:
        out.result(value, f"{lines}\nno difference in any of the fifteen groups")
        return
    out.result(value, lines)
    changes = value["changes"]
    table = Table("group", "what", "before", "after", "difference", title=f"{len(changes)} differences")
    for change in changes[:MOST_ROWS]:
        table.add_row(str(change["group"]), *(_plain(change[key]) for key in ("path", "before", "after", "difference")))
    out.result(value, table)
    if len(changes) > MOST_ROWS:
        out.result(value, f"and {len(changes) - MOST_ROWS} more: --format json shows all")


def render(path: Path, target: Target, written: Path | None, out: Output) -> None:
    """The report as a page, Markdown or registry entry, to a file or to stdout."""
    text = _rendered(read_verified(path), target)
    if written is None:
        if out.is_json:
            out.result({"result": "rendered", "to": target.value, "text": text}, "")
        else:
            print(text, end="")
        return
    write_atomic(written, text.encode())
    out.result({"result": "rendered", "to": target.value, "path": str(written)}, f"written: {written}")


def attach_files(path: Path, site: Path, files: tuple[Path | None, Path | None], out: Output) -> None:
    """Put an audit or the operator's statements into the report and sign it again with the server's key."""
    server = load_site(site)
    if server.role != "server":
        raise ReportError(
            f"{site} is the folder of a {server.role}",
            found=f"{server.role}.toml",
            expected="server.toml: the server signs the report",
            do="give the server's folder",
            code="E604",
        )
    report = attach(path, server.identity, *files)
    status = report["groups"][10]["status"]
    out.result({"result": "attached", "path": str(path), "audit": status}, f"{path} signed again; audit: {status}")


def schema() -> None:
    """The JSON Schema, to stdout."""
    from dp.report_schema import schema_text

    print(schema_text(), end="")


def _rendered(report: dict[str, Any], target: Target) -> str:
    match target:
        case Target.html:
            from dp.report_html import render_html

            return render_html(report)
        case Target.markdown:
            from dp.report_markdown import render_markdown

            return render_markdown(report)
        case Target.opendp:
            from dp.report_opendp import render_opendp

            return render_opendp(report)


def _plain(text: str) -> str:
    """A text out of a file: no control characters for the terminal, no markup for the table."""
    from rich.markup import escape

    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
