"""`secagg audit`."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from dp.audit import AuditResult
from dp.audit_planted import Effort
from dp.errors import AuditError
from ffm.audit import audit, open_subject
from ffm.cli.output import Output
from ffm.models import offline
from ffm.run_folder import write_atomic


def run_audit(
    target: str, data: Sequence[Path], model: str, options: tuple[Path | None, int, int], out: Output
) -> None:
    """Print every check and write the JSON; raises AuditError if one does not hold."""
    file, millions, seed = options
    warnings.filterwarnings("ignore", category=FutureWarning)
    offline()
    torch.set_num_threads(1)  # many small steps: threads would wait for each other
    with open_subject(target, data, model) as subject:
        effort = Effort(noise_values=millions * 10**6, round_values=max(millions, 12) * 10**6 // 6)
        result = audit(subject, effort, seed, out.say)
    value = result.to_json()
    if file is not None:
        write_atomic(file, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True).encode() + b"\n")
        out.say(f"written: {file}")
    out.result(value, _table(result))
    if not result.passed:
        first = result.violations[0]
        raise AuditError(
            f"the audit found {len(result.violations)} violation(s), first: {first.name}",
            found=first.found,
            expected=first.bound,
            do="do not train with this pipeline; what each check sees stands beside it",
        )


def _table(result: AuditResult) -> Table:
    title = f"audit of {result.subject['subject']}: {'passed' if result.passed else 'VIOLATED'}"
    table = Table("check", "verdict", "found, bound", "sees, is blind to", title=title, show_lines=True)
    for f in result.findings:
        table.add_row(
            f.name, f.verdict, f"{f.found}\n\\[{f.bound}]", f"sees {f.sees}\nblind to {f.blind}"
        )  # a bracket that opens no style
    return table
