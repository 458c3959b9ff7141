"""Where an example's records come from: each source lays out one CSV per site and a public test CSV.

A source is a section `[data]` of a task's settings, told apart by its key `source`. A real consortium writes
`source = "sites"`: the records lie at the sites already, and only the sentence for the manifest is needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from ffm.bank import BANK
from ffm.corpus import share_out, tabular_texts
from ffm.data import (
    Partition,
    icd10_records,
    label_names,
    partition,
    read_records,
    split_like,
    write_hospitals,
    write_records,
)
from ffm.errors import DataError
from ffm.heart import HEART, SEVERITY
from ffm.tables import SiteTable, pooled
from protocol.manifest import Name, Positive
from protocol.roster import StrictModel

TABLES: Final[Mapping[str, SiteTable]] = {"heart": HEART, "heart-severity": SEVERITY, "bank": BANK}
HOSPITALS = ("riverside", "hillcrest", "st-anna", "lakeview", "northgate")
Seed = Annotated[int, Field(ge=0, lt=2**53)]
FractionText = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}/[1-9][0-9]{0,5}$")]


@dataclass(frozen=True, slots=True)
class Written:
    """What a source wrote: CSV of each site by its name, the public test CSV, and a part of it for each site: held-out
    records of the same kind as the site's own, where the source has them; and what the server has, for pre-training."""

    sites: Mapping[str, Path]
    test: Path
    tests: Mapping[str, Path] = field(default_factory=dict)
    public: Path | None = None
    validation: Path | None = None


class Icd10Source(StrictModel):
    """The hospital example's partition; `dirichlet` is a fraction such as "3/10"."""

    source: Literal["icd10"] = "icd10"
    description: Name
    sites: Annotated[int, Field(ge=1, le=256)]
    dirichlet: FractionText
    cap_per_class: Positive
    seed: Seed

    def sentence(self) -> str:
        """What the manifest says of the data, for people."""
        return (
            f"{self.description}; {self.sites} sites by a Dirichlet({self.dirichlet}) draw per label, "
            f"at most {self.cap_per_class} training records per label, seed {self.seed}"
        )

    def labels(self) -> tuple[str, ...]:
        """The 18 chapters."""
        return label_names(icd10_records())

    def partition(self) -> Partition:
        """The plan that `ffm.data.write_hospitals` takes."""
        alpha = Fraction(self.dirichlet)
        return Partition(self.sites, alpha.numerator, alpha.denominator, self.cap_per_class, self.seed)

    def write(self, folder: Path) -> Written:
        """Draw and write. Raises DataError E514, ModelError E502."""
        files = {name: folder / f"{name}.csv" for name in site_names(self.sites)}
        test = folder / "test.csv"
        write_hospitals(tuple(files.values()), test, self.partition())
        labels = self.labels()
        parts = split_like(read_records(test, labels), [read_records(f, labels) for f in files.values()], self.seed)
        tests = {name: folder / f"{name}-test.csv" for name, part in zip(files, parts, strict=True) if part}
        for name, part in zip(files, parts, strict=True):
            if part:
                write_records(tests[name], part)
        return Written(files, test, tests)


class MedicalTextSource(StrictModel):
    """Texts of ICD-10-CM's tabular list for pre-training: hospitals by chapter, and a public corpus at the server."""

    source: Literal["medical-text"]
    description: Name
    sites: Annotated[int, Field(ge=1, le=256)]
    dirichlet: FractionText
    cap_per_chapter: Positive
    seed: Seed

    def sentence(self) -> str:
        """What the manifest says of the data, for people."""
        return (
            f"{self.description}; {self.sites} sites by a Dirichlet({self.dirichlet}) draw per chapter, "
            f"at most {self.cap_per_chapter} texts per chapter, seed {self.seed}"
        )

    def labels(self) -> tuple[str, ...]:
        """None: texts alone."""
        return ()

    def write(self, folder: Path) -> Written:
        """Share out and write. Raises DataError E514, ModelError E502."""
        corpus = share_out(tabular_texts(), self.cap_per_chapter, self.seed)
        alpha = Fraction(self.dirichlet)
        plan = Partition(self.sites, alpha.numerator, alpha.denominator, self.cap_per_chapter, self.seed)
        names, parts = site_names(self.sites), partition(corpus.private, plan)
        if not all(parts):
            raise DataError(
                "a hospital got no text in this draw",
                found=0,
                expected="at least one text per hospital",
                do="choose another seed or a larger alpha",
                code="E514",
            )
        held_out = dict(zip(names, split_like(corpus.held_out, parts, self.seed), strict=True))
        server = {"test": corpus.held_out, "public": corpus.public, "validation": corpus.validation}
        own = {f"{name}-test": part for name, part in held_out.items() if part}
        everything = {**dict(zip(names, parts, strict=True)), **own, **server}
        files = {name: folder / f"{name}.csv" for name in everything}
        for name, records in everything.items():
            write_records(files[name], records)
        return Written(
            {name: files[name] for name in names},
            files["test"],
            {name: files[f"{name}-test"] for name in names if f"{name}-test" in files},
            files["public"],
            files["validation"],
        )


class TableSource(StrictModel):
    """A table of persons at several sites: they are as they are; only the split is drawn."""

    source: Literal["heart", "heart-severity", "bank"]
    description: Name
    seed: Seed

    @property
    def table(self) -> SiteTable:
        """Rows, columns and labels."""
        return TABLES[self.source]

    def sentence(self) -> str:
        """What the manifest says of the data, for people."""
        return f"{self.description}, split seed {self.seed}"

    def labels(self) -> tuple[str, ...]:
        """Those of the table."""
        return self.table.labels

    def write(self, folder: Path) -> Written:
        """Split and write. Raises ModelError E502, DataError E511, E512."""
        train, test = self.table.split(self.seed)
        written = Written(
            {site: folder / f"{site}.csv" for site in train},
            folder / "test.csv",
            {site: folder / f"{site}-test.csv" for site in test},
        )
        for site, rows in train.items():
            write_records(written.sites[site], self.table.records(rows))
            write_records(written.tests[site], self.table.records(test[site]))
        write_records(written.test, self.table.records(pooled(test)))
        return written


class SiteSource(StrictModel):
    """Records that lie at the sites; nothing is written, and the settings give the labels."""

    source: Literal["sites"]
    description: Name

    def sentence(self) -> str:
        """What the manifest says of the data, for people."""
        return self.description

    def labels(self) -> tuple[str, ...]:
        """None: the settings have them."""
        return ()

    def write(self, folder: Path) -> Written:
        """Raises DataError E515: there is nothing to write."""
        raise DataError(
            "these settings describe records that lie at the sites",
            found='data.source = "sites"',
            expected="the source of an example",
            do="start a consortium of real sites: secagg init",
            code="E515",
        )


Source = Icd10Source | MedicalTextSource | TableSource | SiteSource


def site_names(count: int) -> tuple[str, ...]:
    """Names of an example's hospitals."""
    return HOSPITALS if count == len(HOSPITALS) else tuple(f"hospital-{i}" for i in range(1, count + 1))
