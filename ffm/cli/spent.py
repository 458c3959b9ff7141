"""`secagg privacy spent`: what a site's own ledger says of its population."""

from collections import Counter
from decimal import Decimal
from pathlib import Path

from rich.table import Table

from dp.accountant import epsilon, in_unit
from dp.budget import UNITS
from dp.ledger import Charge, PrivacyLedger
from ffm.cli.output import Format, Output
from ffm.site import load_site
from ffm.start import POPULATION


def show_spent(folder: Path, out: Output) -> None:
    """Charges by task, ε so far at the δ of the site's manifest, and when the population was last charged."""
    site = load_site(folder)
    p = site.manifest.privacy
    path = folder / "state" / "ledger" / f"{POPULATION}.sqlite"
    charges: tuple[Charge, ...] = ()
    if path.exists():
        with PrivacyLedger.open(path, silo=site.settings.name, population=POPULATION) as ledger:
            charges = ledger.charges()
            last = ledger.last_charged
    if not charges or last is None:
        out.result({"silo": site.settings.name, "charges": 0}, "nothing was ever charged here")
        return
    # A task without DP has no δ to tell by; what others charged stands in the table.
    spent = "none" if p.protocol == "none" else epsilon(in_unit(charges, p.unit), Decimal(p.delta)).epsilon
    value = {
        "silo": site.settings.name,
        "population": POPULATION,
        "charges": len(charges),
        "epsilon": spent,
        "delta": p.delta,
        "budget": p.epsilon,
        "last_charged": {"task": last.task, "manifest": last.manifest_digest, "round": last.round},
    }
    if out.format is Format.json:
        out.result(value, "")
        return
    table = Table("task", "manifest", "attempts charged", title=f"{site.settings.name}: {POPULATION}")
    for (task, digest), count in Counter((charge.task, charge.manifest_digest) for charge in charges).items():
        table.add_row(task, digest[:16], str(count))
    out.result(value, table)
    out.result(
        value,
        f"spent ε = {spent} of {p.epsilon} at δ = {p.delta}, {UNITS[p.unit]}, over all tasks\n"
        f"last charged: round {last.round} of {last.task}",
    )
