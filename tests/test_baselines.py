"""Comparators: counted by hand where that is possible, and learning something that can be learned."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dp.sampling import Csprng
from ffm import task
from ffm.baselines import Bench
from ffm.data import Record, write_records
from ffm.models import locate
from ffm.tasks.finetune import accuracy, confusion_of, macro_f1, predict

SETTINGS = Path(__file__).parent.parent / "examples" / "hospital" / "settings.toml"
LABELS = ("heart", "lung", "skin")
WORDS = {
    "heart": "acute myocardial infarction of the left ventricle",
    "lung": "pneumonia in the lower lobe",
    "skin": "burn of the right hand with blisters",
}


def _records(counts: dict[str, int]) -> list[Record]:
    return [Record(f"{WORDS[label]}, episode {n}", label) for label, count in counts.items() for n in range(count)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    sites = [folder / "a.csv", folder / "b.csv"]
    write_records(sites[0], _records({"heart": 40, "lung": 4}))
    write_records(sites[1], _records({"skin": 30, "lung": 20}))
    write_records(folder / "test.csv", _records({"heart": 10, "lung": 5, "skin": 7}))
    manifest = task.build_manifest(task.load_settings(SETTINGS).model_copy(update={"labels": LABELS}), "bert-tiny")
    training = manifest.training.model_copy(update={"rounds": 6, "local_steps": 3, "expected_batch": 12})
    privacy = manifest.privacy.model_copy(update={"sampling_numerator": 1, "sampling_denominator": 4})
    manifest = manifest.model_copy(update={"training": training, "privacy": privacy})
    return Bench(manifest, locate("bert-tiny"), sites, folder / "test.csv")


def test_majority_is_the_most_frequent_training_label(bench: Bench) -> None:
    confusion = bench.majority().confusion
    assert confusion.tolist() == [[10, 0, 0], [5, 0, 0], [7, 0, 0]]  # heart: 40 of 94
    assert accuracy(confusion) == 10 / 22
    assert macro_f1(confusion) == pytest.approx((2 * 10 / (22 + 10)) / 3)


def test_scores_by_hand() -> None:
    confusion = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]], dtype=np.int64)
    assert accuracy(confusion) == 0.7
    # The third label is not in the test file: it has no score, not a perfect and not a zero one.
    assert macro_f1(confusion) == pytest.approx((6 / 9 + 8 / 11) / 2)
    assert accuracy(np.zeros((3, 3), dtype=np.int64)) == macro_f1(np.zeros((3, 3), dtype=np.int64)) == 0.0


def test_evaluation_counts_every_record_once_and_as_one_at_a_time(bench: Bench) -> None:
    learner, vector = bench.start()
    model = learner.model
    confusion = confusion_of(predict(model, bench.test), bench.test["labels"].numpy())
    assert confusion.sum(axis=1).tolist() == [10, 5, 7]
    assert np.array_equal(confusion, bench.evaluate(vector))
    single = np.zeros((3, 3), dtype=np.int64)
    with torch.no_grad():
        for ids, mask, label in zip(*(bench.test[k] for k in ("input_ids", "attention_mask", "labels")), strict=True):
            logits = model.eval()(input_ids=ids[None], attention_mask=mask[None]).logits
            single[int(label), int(logits.argmax())] += 1
    assert np.array_equal(single, confusion)


def test_without_dp_the_federation_learns_what_no_hospital_has(bench: Bench) -> None:
    together = bench.federated(Csprng(b"a" * 32), private=False)
    assert together.name == "federated, no DP"
    assert together.confusion.sum() == 22
    assert accuracy(together.confusion) > accuracy(bench.majority().confusion)
    assert (together.confusion.sum(axis=0) > 0).sum() >= 2
    # 6 rounds of 3 steps at q = 1/4 over 94 records: 423 in the mean
    assert abs(together.samples_seen - 423) < 5 * np.sqrt(18 * 94 * 3 / 16)


def test_all_runs_every_comparator_on_the_same_split(bench: Bench) -> None:
    rows = bench.all(threads=2)
    names = ["majority class", "federated, no DP", "hospital 1 alone, DP", "hospital 2 alone, DP"]
    assert [row.name for row in rows] == names
    assert all(row.confusion.sum(axis=1).tolist() == [10, 5, 7] for row in rows)
    assert all(row.samples_seen > 0 for row in rows[1:])
    assert rows[2].samples_seen + rows[3].samples_seen < 1.5 * rows[1].samples_seen


def test_private_runs_are_noised_and_follow_their_generator(bench: Bench) -> None:
    one = bench.federated(Csprng(b"b" * 32), private=True)
    again = bench.federated(Csprng(b"b" * 32), private=True)
    assert np.array_equal(one.confusion, again.confusion)
    assert one.samples_seen == again.samples_seen
    plain = bench.federated(Csprng(b"b" * 32), private=False)
    assert not np.array_equal(plain.confusion, one.confusion)
