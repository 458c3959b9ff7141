"""Pre-training: a chain of phases, each a manifest on the merged model before it, under one budget."""

import hashlib
import math
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import language_settings, save_tiny_llama, save_tiny_masked_bert
from transformers import AutoModelForMaskedLM

from dp.accountant import epsilon
from dp.errors import BudgetExceededError
from dp.ledger import PrivacyLedger
from ffm.corpus import share_out, tabular_texts
from ffm.errors import AdapterError, DataError
from ffm.federation import Who
from ffm.models import load_causal_lm, load_masked_lm, load_tokenizer, locate
from ffm.plateau import Plateau, comparable
from ffm.task import TaskSettings, example_settings, load_settings
from ffm.tasks.pretrain import Phase, PhaseResult, Pretraining, run

PUBLIC, FEDERATED = Phase("public", "public"), Phase("federated", "federated")
NEVER = Plateau(patience=100)


def settings(base: str = "bert-tiny", learns: str = "masked-lm", **federated: Any) -> TaskSettings:
    """Few texts of three hospitals; "public" trains everything, "federated" an adapter under R2."""
    small = language_settings(Path(base), learns).model_dump()
    targets = ("layer.1.attention.self.query", "layer.1.output.dense") if learns == "masked-lm" else ("down_proj",)
    section = {**small["models"]["small"], "max_length": 24, "virtual_tokens": 0}
    public = {"method": "full", "optimizer": "adam", "learning_rate": "0.01", "local_steps": 2, "rounds": 3}
    adapter = {"method": "ffa-lora", "rank": 2, "alpha": 4, "target_modules": targets}
    private = {"rounds": 3, "local_steps": 1, "learning_rate": "1", "sampling": "1/4", "aggregation_bound": 40_000_000}
    body = {
        **small,
        "task": "small-pretraining",
        "data": {
            "source": "medical-text",
            "description": "a few texts",
            "sites": 4,
            "dirichlet": "1/1",
            "cap_per_chapter": 4,
            "seed": 1,
        },
        "privacy": {**small["privacy"], "protocol": "R2"},
        "aggregation": {**small["aggregation"], "slots_per_word": 2},
        "models": {
            "public": {**section, **public, "sampling": "1/8", "expected_batch": 8},
            "federated": {**section, **adapter, **private, "expected_batch": 50, **federated},
        },
    }
    return TaskSettings.model_validate(body)


def pretraining(*phases: Phase, plateau: Plateau = NEVER, **options: Any) -> Pretraining:
    return Pretraining(settings(**options), phases, plateau)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[PhaseResult, ...]]:
    folder = tmp_path_factory.mktemp("chain")
    bert = str(save_tiny_masked_bert(folder / "bert"))
    return folder, run(pretraining(PUBLIC, FEDERATED, PUBLIC, FEDERATED, base=bert), 1, folder)


Chain = tuple[Path, tuple[PhaseResult, ...]]


def test_each_phase_starts_from_the_merged_model_before(chain: Chain) -> None:
    _, results = chain
    assert [r.kind for r in results] == ["public", "federated", "public", "federated"]
    for before, after in pairwise(results):
        pinned = {file.path: file.sha256 for file in after.manifest.base_model.files}
        found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in before.model.iterdir()}
        assert pinned.items() <= found.items() and "model.safetensors" in pinned and "tokenizer.json" in pinned
        kept = min(before.losses) if before.kind == "public" else before.losses[-1]
        assert after.losses[0] == pytest.approx(kept, rel=1e-3)  # merged, written, loaded and judged again
        assert after.before is before.after
    assert len({r.manifest.digest() for r in results}) == 4


def test_public_steps_lower_the_perplexity_and_a_phase_says_what_it_did(chain: Chain) -> None:
    _, results = chain
    first = results[0]
    assert first.after.held_out < first.before.held_out
    assert first.after.public < first.before.public
    assert len(first.losses) == 1 + first.rounds == 4 and not first.stopped
    assert set(first.after.clients) <= {f"hospital-{i}" for i in range(1, 5)} and first.after.clients


def test_one_ledger_runs_through_all_phases(chain: Chain) -> None:
    folder, results = chain
    for site in (folder / "ledgers").glob("*.db"):
        with PrivacyLedger.open(site, silo=site.stem, population="-") as ledger:
            charges = ledger.charges()
        private = [r.manifest for r in results if r.kind == "federated"]
        assert [(c.manifest_digest, c.round) for c in charges] == [
            (m.digest().hex(), round_) for m in private for round_ in (1, 2, 3)
        ]
        assert results[3].epsilon == epsilon(charges, Decimal("0.00001"), prv=False).epsilon
    assert results[0].epsilon is None
    assert float(str(results[1].epsilon)) < float(str(results[3].epsilon)) <= 8


def test_a_merged_model_loads_in_plain_transformers_and_names_no_path(chain: Chain) -> None:
    folder, results = chain
    last = results[-1].model
    plain = AutoModelForMaskedLM.from_pretrained(last, local_files_only=True)
    ours = load_masked_lm(last)
    ids = load_tokenizer(last)("acute [MASK] of the lung", return_tensors="pt")["input_ids"]
    plain.eval()
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, ours.eval()(input_ids=ids).logits)
    for file in last.glob("*.json"):
        assert str(folder) not in file.read_text() and str(locate("bert-tiny").parent) not in file.read_text()


@pytest.mark.slow
def test_everything_on_a_causal_model_without_dp(tmp_path: Path) -> None:
    """Both phases full-parameter, then adapters in both; the model is a random one, so only the path is shown."""
    llama = str(save_tiny_llama(tmp_path / "llama"))
    made = settings(llama, "causal-lm")
    privacy = made.privacy.model_copy(update={"protocol": "none"})
    federated = made.models["federated"].model_copy(update={"noise_steps": 0, "learning_rate": "0.1"})
    whole = made.models["public"].model_copy(update={"noise_steps": 0, "expected_batch": 2})
    models = {"public": made.models["public"], "federated": federated, "whole": whole}
    models = {name: model.model_copy(update={"rounds": 1, "max_length": 12}) for name, model in models.items()}
    data = made.data.model_copy(update={"cap_per_chapter": 2})
    made = made.model_copy(update={"privacy": privacy, "models": models, "data": data})
    phases = (PUBLIC, Phase("federated", "whole"), Phase("public", "federated"), FEDERATED)
    results = run(Pretraining(made, phases, NEVER), 1, tmp_path / "chain", lambda line: None)
    assert results[1].after.held_out < results[0].before.held_out
    assert all(r.epsilon is None for r in results)
    load_causal_lm(results[-1].model)


# The switch


@pytest.mark.parametrize(
    "losses, reached",
    [
        ([3.0], False),
        ([3.0, 3.0], False),
        ([3.0, 3.0, 3.0], True),
        ([3.0, 2.0, 1.0], False),
        ([3.0, 2.0, 1.999, 1.995], True),  # less than 1 % better
        ([3.0, 2.0, 2.1, 1.9], False),
        ([3.0, 1.0, 2.0, 1.5], True),
        ([-3.0, -2.99, -2.98], True),  # a task of one's own may score below zero: this is worse
        ([-3.0, -3.0, -3.02], True),
        ([-3.0, -3.0, -3.1], False),
        ([0.5, 0.0, 0.0, 0.0], True),  # nothing is better than a loss of 0
        ([comparable(math.nan), 3.0, 2.0], False),
        ([3.0, comparable(math.nan), comparable(math.inf)], True),
    ],
)
def test_the_plateau_rule(losses: list[float], reached: bool) -> None:
    assert Plateau(patience=2, least=0.01).reached(losses) is reached


def test_a_plateau_ends_a_phase_and_rounds_that_are_not_run_are_not_charged(tmp_path: Path) -> None:
    bert = str(save_tiny_masked_bert(tmp_path / "bert"))
    plan = pretraining(PUBLIC, FEDERATED, plateau=Plateau(patience=1, least=0.9), rounds=3, base=bert)
    results = run(plan, 1, tmp_path, lambda line: None)
    assert [(r.rounds, r.stopped) for r in results] == [(1, True), (1, True)]
    with PrivacyLedger.open(tmp_path / "ledgers" / "hospital-1.db", silo="hospital-1", population="-") as ledger:
        assert [c.round for c in ledger.charges()] == [1]


# Comparisons


@pytest.mark.parametrize("who", ["centralised", 2])
def test_others_go_on_from_a_public_phase_that_is_played(who: Who, chain: Chain, tmp_path: Path) -> None:
    folder, results = chain
    plan = pretraining(PUBLIC, FEDERATED, base=str(folder / "bert"))
    said: list[str] = []
    found = run(plan, 1, tmp_path, said.append, who, results[:1])
    assert found[0] is results[0] and len(found) == 2 and len(said) == 1
    assert found[1].manifest == results[1].manifest  # so the same base model, plan and noise
    assert found[1].after != results[1].after and found[1].epsilon == results[1].epsilon


def test_a_phase_that_charges_opens_nothing(chain: Chain, tmp_path: Path) -> None:
    folder, results = chain
    plan = pretraining(PUBLIC, FEDERATED, PUBLIC, base=str(folder / "bert"))
    for opening in (results[:2], results[2:3]):
        with pytest.raises(ValueError, match="do not open"):
            run(plan, 1, tmp_path / str(len(opening)), lambda line: None, opening=opening)


# Refusals, before anything is trained or charged


def refused(plan: Pretraining, folder: Path, error: type[Exception]) -> Any:
    with pytest.raises(error) as caught:
        run(plan, 1, folder, lambda line: None)
    assert not list(folder.glob("phase-*"))
    for path in folder.glob("ledgers/*.db"):
        with PrivacyLedger.open(path, silo=path.stem, population="-") as ledger:
            assert not ledger.charges()
    return caught.value


def test_phases_that_fit_alone_but_not_together_are_refused(tmp_path: Path) -> None:
    body = settings(rounds=3, noise_steps=55_000)
    refused(Pretraining(body, (FEDERATED,) * 4, NEVER), tmp_path, BudgetExceededError)


@pytest.mark.parametrize(
    "method", [{"method": "prompt", "virtual_tokens": 4}, {"method": "prefix", "virtual_tokens": 4}]
)
def test_a_method_that_cannot_be_merged_is_refused(method: dict[str, Any], tmp_path: Path) -> None:
    plan = pretraining(PUBLIC, FEDERATED, rank=0, alpha=0, target_modules=(), **method)
    assert refused(plan, tmp_path, AdapterError).code == "E508"


def test_a_source_without_public_text_is_refused(tmp_path: Path) -> None:
    plan = pretraining(PUBLIC)
    data = {"description": "x", "sites": 4, "dirichlet": "1/1", "cap_per_class": 20, "seed": 1}
    body = TaskSettings.model_validate({**plan.settings.model_dump(), "data": data})
    assert refused(replace(plan, settings=body), tmp_path, DataError).code == "E515"


# The corpus


def test_texts_are_shared_out_by_three_character_code() -> None:
    corpus = share_out(tabular_texts(), 100, 3)
    parts = [{r.code[:3] for r in part} for part in (corpus.private, corpus.public, corpus.validation, corpus.held_out)]
    assert all(a.isdisjoint(b) for i, a in enumerate(parts) for b in parts[i + 1 :])
    assert all(len(part) > 20 for part in parts)
    for part, most in ((corpus.private, 100), (corpus.public, 75), (corpus.validation, 25), (corpus.held_out, 50)):
        assert max(sum(r.label == chapter for r in part) for chapter in {r.label for r in part}) == most
    assert share_out(tabular_texts(), 100, 3) == corpus != share_out(tabular_texts(), 100, 4)
    assert len({r.text for r in tabular_texts()}) == len(tabular_texts()) > 46_000


def test_hospitals_differ(tmp_path: Path) -> None:
    made = settings()
    written = made.data.model_copy(update={"dirichlet": "1/10", "cap_per_chapter": 60}).write(tmp_path)
    lines = {name: path.read_text().splitlines()[1:] for name, path in written.sites.items()}

    def most(own: list[str]) -> float:
        return max(sum(line.endswith(f'"{chapter:02d}"') for line in own) / len(own) for chapter in range(1, 23))

    assert len(lines) == 4 and max(most(own) for own in lines.values()) > 0.15  # 1/22 each if all were alike
    assert written.public is not None and written.validation is not None


def test_the_example_is_within_its_budget_and_makes_manifests() -> None:
    made = load_settings(example_settings("hospital").parent / "pretrain.toml")
    plan = Pretraining(made, (PUBLIC, FEDERATED, PUBLIC, FEDERATED))
    manifests = [plan.manifest(number, "bert-tiny") for number in (1, 2)]
    assert [m.privacy.protocol for m in manifests] == ["none", "R2"]
    assert manifests[0].adapter.method == "full" and manifests[1].adapter.size < manifests[0].adapter.size / 20
