"""`secagg privacy spent`: what a site's own ledger says of its population."""

from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from rich.table import Table

from dp.accountant import epsilon, in_unit
from dp.budget import UNITS
from dp.ledger import Charge, PrivacyLedger
from ffm.cli.output import Format, Output
from ffm.site import Site, load_site
from ffm.start import POPULATION


@dataclass(frozen=True, slots=True)
class Spent:
    """All charges of a site's population, and their ε at the δ of the site's manifest; "none" under a task without DP,
    which has no δ to tell by."""

    charges: tuple[Charge, ...]
    last: Charge
    epsilon: str


def spent_at(site: Site) -> Spent | None:
    """From the site's own ledger; None where nothing was ever charged."""
    p = site.manifest.privacy
    path = site.folder / "state" / "ledger" / f"{POPULATION}.sqlite"
    if not path.exists():
        return None
    with PrivacyLedger.open(path, silo=site.settings.name, population=POPULATION) as ledger:
        charges, last = ledger.charges(), ledger.last_charged
    if not charges or last is None:
        return None
    spent = "none" if p.protocol == "none" else epsilon(in_unit(charges, p.unit), Decimal(p.delta)).epsilon
    return Spent(charges, last, spent)


def show_spent(folder: Path, out: Output) -> None:
    """Charges by task, ε so far at the δ of the site's manifest, and when the population was last charged."""
    site = load_site(folder)
    p, spent = site.manifest.privacy, spent_at(site)
    if spent is None:
        out.result({"silo": site.settings.name, "charges": 0}, "nothing was ever charged here")
        return
    last = spent.last
    value = {
        "silo": site.settings.name,
        "population": POPULATION,
        "charges": len(spent.charges),
        "epsilon": spent.epsilon,
        "delta": p.delta,
        "budget": p.epsilon,
        "last_charged": {"task": last.task, "manifest": last.manifest_digest, "round": last.round},
    }
    if out.format is Format.json:
        out.result(value, "")
        return
    table = Table("task", "manifest", "attempts charged", title=f"{site.settings.name}: {POPULATION}")
    for (task, digest), count in Counter((charge.task, charge.manifest_digest) for charge in spent.charges).items():
        table.add_row(task, digest[:16], str(count))
    out.result(value, table)
    out.result(
        value,
        f"spent ε = {spent.epsilon} of {p.epsilon} at δ = {p.delta}, {UNITS[p.unit]}, over all tasks with DP\n"
        f"last charged: round {last.round} of {last.task}",
    )
