"""Broken pipelines that the audit must see: each is a copy of one function of ours with a few words changed.

The copy is made from the source (`tests.simulation.bugs.edited`), so a fault that no longer fits the code is an error,
not a test that passes. Two faults lie in the data and not in the code. `small_audit` is the audit on small models: the
same checks by the same code as `secagg audit`, on fewer coordinates and draws.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch

import ffm.audit
from dp import accountant, budget, client_level, rotation, training
from dp.audit import AuditResult, Finding, guarded
from dp.audit_ledger import check_accountant, check_ledger, check_persons
from dp.audit_planted import Effort, planted_checks
from dp.ledger import Charge, PrivacyLedger
from dp.mechanism import GaussianMechanism
from dp.objective import Classification
from dp.report_checks import statement_checks
from dp.rotation import RotatedSum
from dp.sampling import Csprng
from ffm import audit_pipeline, client_run, worker
from ffm.audit import claim_of, claim_of_books
from ffm.audit_encoding import check_encoding
from ffm.audit_model import Planted, check_generator, check_processes
from ffm.audit_pipeline import CanaryTraining
from ffm.audit_rounds import check_rounds
from ffm.audit_shares import check_client_level, check_rotated
from ffm.client_run import round_charge
from ffm.learner import plan_of
from ffm.models import locate
from ffm.task import build_manifest, example_settings, load_settings
from ffm.worker import LocalTraining
from protocol.manifest import Manifest
from secagg.encoding import SlotPacker
from tests.simulation.bugs import Edit, edited
from tests.simulator import Federation, make_manifest
from tests.test_training import adapted_model, records

EFFORT = Effort(noise_values=60_000, sampled_steps=32, attempts=8)
TENSORS = [{"name": "query", "shape": [100, 4]}, {"name": "value", "shape": [100, 4]}, {"name": "head", "shape": [400]}]
SILOS = {name: [f"{name} {k}".encode() for k in range(100)] for name in ("north", "south")}
PARTS = ("planted", "model", "books", "statement", "encoding", "records")


@lru_cache(maxsize=1)
def manifest() -> Manifest:
    """A small task under R1."""
    return make_manifest(
        adapter__tensors=TENSORS,
        privacy__noise_steps=50_000,
        privacy__sampling_denominator=8,
        training__optimizer="adam",
        privacy__epsilon="4",
    )


@lru_cache(maxsize=1)
def shared() -> Manifest:
    """A small task under R2: noise in shares inside the masked sum."""
    m = manifest()
    noise = {"protocol": "R2", "max_records": 200}
    sums = {"scale": m.privacy.scale, "bound": 2**26, "slots_per_word": 2}
    return Manifest.model_validate(
        m.model_dump(mode="python")
        | {"training": m.training.model_dump(mode="python") | {"local_steps": 1, "optimizer": "sgd"}}
        | {"privacy": m.privacy.model_dump(mode="python") | noise}
        | {"aggregation": m.aggregation.model_dump(mode="python") | sums}
    )


@lru_cache(maxsize=1)
def narrow() -> Manifest:
    """The same with a rotation, on a coarser grid."""
    body = shared().model_dump(mode="python", exclude_none=True)
    body["aggregation"] |= {"rotation": "hadamard", "scale": 2**10, "bound": 2**22}
    return Manifest.model_validate(body)


@lru_cache(maxsize=1)
def whole_clients() -> Manifest:
    """A small task under C: 520 clients, of whom 475 shares count."""
    body = manifest().model_dump(mode="python", exclude_none=True)
    claim = {"protocol": "C", "unit": "client", "adjacency": "zero-out", "scale": 64, "clip_steps": 4}
    body["privacy"] |= {**claim, "noise_steps": 2000}
    body["aggregation"] |= {"graph": "ring", "num_clients": 520, "max_corrupt": 25, "min_cohort": 500}
    body["aggregation"] |= {"max_dropouts": 10, "scale": 64, "bound": 2**21, "slots_per_word": 2}
    return Manifest.model_validate(body)


def small_audit(seed: int, parts: tuple[str, ...] = PARTS) -> AuditResult:
    """The audit's checks; `parts` of them."""
    torch.set_num_threads(1)
    rng, m, r2 = Csprng(seed.to_bytes(32, "big")), manifest(), shared()
    run: dict[str, Callable[[], list[Finding]]] = {
        "planted": lambda: planted_checks(
            CanaryTraining.of(m.adapter, plan_of(m)), claim_of(m), EFFORT, rng, Csprng.from_os
        ),
        "shares": lambda: planted_checks(
            CanaryTraining.of(r2.adapter, plan_of(r2)), claim_of(r2), EFFORT, rng, Csprng.from_os
        ),
        "rounds": lambda: check_rounds(r2, 200_000, rng),
        "rotated": lambda: check_rotated(narrow(), (200_000, 50_000), rng),
        "clients": lambda: check_client_level(whole_clients(), (200_000, 50_000), rng),
        "model": lambda: [check_generator(_planted())],
        "process": _processes,
        "books": lambda: _books(m),
        "shared books": lambda: check_accountant(claim_of_books(r2)),
        "statement": lambda: _statement(m),
        "encoding": lambda: check_encoding(m.secagg_params(), rng.take),
        "records": lambda: [check_persons(SILOS, m.privacy.records_per_person, False)],
    }
    findings = [finding for part in parts for finding in guarded(part, run[part])]
    return AuditResult({"subject": "small"}, tuple(findings))


def _planted() -> Planted:
    model = adapted_model()
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    return Planted(model, records(), plan_of(manifest()), sizes)


def _processes() -> list[Finding]:
    """The training process on the example's smallest model."""
    with TemporaryDirectory() as folder:
        return check_processes(hospital(), locate("bert-tiny"), Path(folder))


@lru_cache(maxsize=1)
def hospital() -> Manifest:
    """The hospital example's manifest, with three labels."""
    return build_manifest(
        load_settings(example_settings("hospital")).model_copy(update={"labels": ("heart", "lung", "skin")}),
        "bert-tiny",
    )


def _books(m: Manifest) -> list[Finding]:
    with TemporaryDirectory() as folder:
        claim = claim_of_books(m)
        return [
            *guarded("accountant", lambda: check_accountant(claim)),
            *guarded("ledger", lambda: check_ledger(claim, Path(folder))),
        ]


def _statement(m: Manifest) -> list[Finding]:
    """A client's signed account of its ledger, under the checks of `secagg report verify`."""
    federation = Federation.create(m)
    setup = federation.setup(next(iter(federation.client_keys)))
    with (
        TemporaryDirectory() as folder,
        PrivacyLedger.open(Path(folder) / "book" / "ledger.db", silo="client-1", population="records") as ledger,
    ):
        for round_ in (1, 2):
            ledger.charge(round_charge(m, round_, 0))
        statement = client_run.statement_body(setup, ledger)
    masked = [int(client) for client in federation.client_keys]
    facts = {
        "manifest": {"document": m.model_dump(mode="json"), "digest": m.digest().hex()},
        "roster": {"document": federation.roster.model_dump(mode="json")},
        "rounds": [{"round": round_, "attempt": 0, "masked": masked} for round_ in (1, 2)],
    }
    checks = list(statement_checks(facts, {"statement": statement, "signature": ""}))
    return [
        Finding(f"report verify: {check.name}", check.found, check.expected, check.ok, "a forged ledger", "the rest")
        for check in checks
    ]


def _joining(silo: str, record: bytes) -> AbstractContextManager[object]:
    """One record more in the data."""
    return patch.dict(SILOS, {silo: [*SILOS[silo], record]})


_RELEASED = "return (plan.mechanism if plan.rotated is None else plan.rotated).privatize(total, rng)"


@dataclass(frozen=True)
class Fault:
    """A defect, the part of the audit that sees it, and words of the finding's name or of what it found."""

    name: str
    part: str
    seen_as: str
    planted: Callable[[], AbstractContextManager[object]]


def fault(name: str, part: str, seen_as: str, *places: tuple[object, str, *tuple[Edit, ...]]) -> Fault:
    """A fault made of edits."""

    @contextlib.contextmanager
    def planted() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, function, *changes in places:
                stack.enter_context(edited(owner, function, *changes))
            if accountant in [owner for owner, *_ in places]:
                stack.callback(_forget)
                _forget()
            yield

    return Fault(name, part, seen_as, planted)


def _forget() -> None:
    """Figures of another accountant."""
    for function in vars(accountant).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def noise(name: str, seen_as: str, *changes: Edit) -> Fault:
    """In the mechanism's last line."""
    return fault(name, "planted", seen_as, (GaussianMechanism, "privatize", *changes))


def weaker(noise_steps: str) -> Edit:
    """Another deviation in the mechanism's last line."""
    changed = f"self = dataclasses.replace(self, noise_steps={noise_steps})"
    return "return total + ", f"import dataclasses; {changed}; return total + "


def sampler(name: str, seen_as: str, *changes: Edit, part: str = "planted") -> Fault:
    """In the Poisson sampler."""
    return fault(name, part, seen_as, (training, "poisson_sample", *changes))


_WORDS = "words = rng.words(population)"
_CAT = "torch.cat([sample[start : start + block] for sample in samples], dim=1)"

FAULTS = (
    noise("noise off", "variance of all", ("return total + ", "return total + 0 * ")),
    noise("noise 4 times too small", "variance of all", weaker("self.noise_steps // 4")),
    noise("noise 1.2 times too small", "variance of all", weaker("self.noise_steps * 5 // 6")),
    noise(
        "clamp after the noise",
        "variance of all",
        ("return total + ", "return np.clip(total + "),
        ("total.size)", "total.size), -2 * self.noise_steps, 2 * self.noise_steps)"),
    ),
    noise(
        "a tensor un-noised",
        "variance of head",
        ("total.size)", "total.size) * (np.arange(total.size) < total.size - 400)"),
    ),
    noise(
        "no noise on an empty sample",
        "variance of all",
        ("return total + ", "return total if not total.any() else total + "),
    ),
    noise("noise repeated in every step", "between steps", ("gaussian(rng", "gaussian(Csprng(bytes(32))")),
    noise(
        "one draw for two coordinates",
        "between coordinates",
        ("total.size)", "total.size // 2 + 1).repeat(2)[: total.size]"),
    ),
    noise("noise by the size of the sum", "does not look at the data", weaker("max(100, int(abs(total).max()))")),
    fault(
        "mean over the batch (token-mean loss)",
        "planted",
        "depends on the other records",
        (Classification, "losses", ('reduction="none")', 'reduction="none") / len(batch[LABELS])')),
    ),
    fault(
        "clipping off",
        "planted",
        "planted: sensitivity",
        (
            training,
            "bounded_rows",
            ("(mechanism.clip_steps * (", "(2**60 * ("),
            ("if bool(outside.any()):", "if False:"),
        ),
    ),
    fault(
        "clip per layer",
        "planted",
        "planted: sensitivity",
        (
            training,
            "_rows",
            (
                f"bounded_rows({_CAT}, mechanism)",
                "torch.cat([bounded_rows(s[start:][:block] + 0, mechanism) for s in samples], dim=1)",
            ),
        ),
    ),
    fault(
        "clip per batch",
        "planted",
        "do not couple",
        (
            training,
            "_rows",
            (f"bounded_rows({_CAT}, mechanism)", f"{_CAT}.double()"),
        ),
        (
            training,
            "_bounded_sum",
            ("total.to(torch.int64)", "bounded_rows(total.unsqueeze(0), mechanism)[0].to(torch.int64)"),
        ),
    ),
    fault(
        "a NaN record is let through",
        "planted",
        "planted: sensitivity",
        (training, "bounded_rows", ("if bool(broken.any()):", "if False:"), ("factor[broken] = 0.0", "pass")),
    ),
    fault(
        "a block goes round the noise",
        "planted",
        "nothing else leaves",
        (
            audit_pipeline,
            "train",
            ("noised.astype(np.float64)", "np.where(np.arange(noised.size) < 9, total, noised).astype(float)"),
        ),
    ),
    fault(
        "shuffled epochs for Poisson samples",
        "planted",
        "inclusions of each record",
        (
            audit_pipeline,
            "train",
            ("for _ in range(plan.steps):", "for turn in range(plan.steps):"),
            (
                "poisson_sample(rng, len(records), plan.sampling_numerator, plan.sampling_denominator)",
                "np.flatnonzero((np.arange(len(records)) + turn) % plan.sampling_denominator == 0)",
            ),
        ),
    ),
    sampler(
        "batches of one size: replace-one claimed as add/remove",
        "batch sizes",
        (
            "included = words < np.uint64(threshold)",
            "included = np.argsort(np.argsort(words)) < population * numerator // denominator",
        ),
    ),
    sampler("wrong q", "sampler: inclusions", ("numerator << _WORD_BITS", "2 * numerator << _WORD_BITS")),
    sampler(
        "the same sample in every step and attempt",
        "fresh between",
        (_WORDS, "words = Csprng(bytes(32)).words(population)"),
    ),
    sampler(
        "torch-seeded sampling",
        "torch's generator",
        (
            _WORDS,
            "import torch; words = (torch.rand(population).double() * 2.0**63).numpy().astype(np.uint64) * 2",
        ),
        part="model",
    ),
    fault(
        "one seed over all clients",
        "planted",
        "clients and attempts",
        (Csprng, "from_os", ("os.urandom(SEED_BYTES)", "bytes(SEED_BYTES)")),
    ),
    fault(
        "a round retried with the same sample and noise",
        "process",
        "draws afresh",
        (
            LocalTraining,
            "update",
            (
                "plan_of(self.learner.manifest), self.rng",
                "plan_of(self.learner.manifest), Csprng(bytes(32))",
            ),
        ),
    ),
    fault(
        "more steps than the manifest says",
        "process",
        "steps of a round",
        (worker, "plan_of", ("steps=training.local_steps", "steps=training.local_steps + 1")),
    ),
    fault(
        "σ taken for a variance",
        "books",
        "reference figures",
        (accountant, "_deviation", ("math.sqrt(variance)", "variance")),
    ),
    fault(
        "half of the steps accounted",
        "books",
        "reference figures",
        (accountant, "_pld", ("self_compose(event.count)", "self_compose(max(1, event.count // 2))")),
    ),
    fault(
        "wrong δ",
        "books",
        "first attempt too many",
        (
            budget,
            "check_next",
            ("after, budget.unit), budget.delta", 'after, budget.unit), min(100 * budget.delta, Decimal("0.5"))'),
        ),
    ),
    fault(
        "a budget that does not bind",
        "books",
        "first attempt too many",
        (budget, "check_next", ("if not result.within(budget.epsilon):", "if False:")),
    ),
    fault(
        "budget restarted with the process",
        "books",
        "a restart forgets nothing",
        (PrivacyLedger, "__init__", ("store.rows(CHARGE)", "()")),
    ),
    fault(
        "retry not charged",
        "books",
        "ledger: stopped: E203",
        (Charge, "key", ("self.round, self.attempt", "self.round, 0")),
    ),
    fault(
        "a charge is overwritten by a cheaper one",
        "books",
        "never changed",
        (PrivacyLedger, "charge", ("known[0].to_json() != charge.to_json()", "False")),
    ),
    fault(
        "one step charged for a round",
        "books",
        "the charge is what runs",
        (ffm.audit, "round_charge", ("return LedgerCharge(", 'event["count"] = 1; return LedgerCharge(')),
    ),
    fault(
        "ledger cut: the last row is not stated",
        "statement",
        "ledger head",
        (client_run, "statement_body", ("ledger.rows()", "ledger.rows()[:-1]")),
    ),
    fault(
        "ledger forked: an older copy is stated",
        "statement",
        "every upload was charged",
        (
            client_run,
            "statement_body",
            ("ledger.rows()", "ledger.rows()[:-1]"),
            ("seq, head = ledger.head", "seq, head = ledger.rows()[-2].seq, ledger.rows()[-2].hash"),
        ),
    ),
    fault(
        "sums wrap around",
        "encoding",
        "out of range is refused",
        (SlotPacker, "integers", ("if slots.max() > 2 * bound:", "if False:")),
    ),
    fault(
        "clamp before packing",
        "encoding",
        "out of range is refused",
        (
            SlotPacker,
            "round_to_slots",
            (
                "if not (scaled.max() <= limit and scaled.min() >= -limit):",
                "if np.clip(scaled, -limit, limit, out=scaled) is None:",
            ),
        ),
    ),
    fault(
        "shares for all clients, not for the smallest sum",
        "rounds",
        "variance of all",
        (Manifest, "noise_shares", ("self.aggregation.min_cohort - self", "self.aggregation.num_clients - self")),
    ),
    fault(
        "shares that count on corrupt clients",
        "shared books",
        "the charge is what runs",
        (Manifest, "noise_shares", (" - self.aggregation.max_corrupt", "")),
    ),
    fault(
        "no share is added",
        "rounds",
        "variance of all",
        (audit_pipeline, "noised_sum", (_RELEASED, "return total")),
    ),
    fault(
        "whole updates rounded away from zero, and their norm not compared",
        "clients",
        "no update moves the sum too far",
        (
            client_level,
            "conditional_round",
            ("steps = stochastic_round(rng, values)", "steps = np.rint(values + np.sign(values) / 2).astype(np.int64)"),
            ("if float(np.dot(wide, wide)) <= float(most**2):", "if wide is not None:"),
        ),
    ),
    fault(
        "a client-level round that costs a record as little as the client",
        "clients",
        "accounts of their own",
        (accountant, "in_unit", ("clip_steps=2 * e.clip_steps", "clip_steps=e.clip_steps")),
    ),
    fault(
        "clients and records added up in one account",
        "clients",
        "accounts of their own",
        (accountant, "in_unit", ("if any(e.unit != unit for e in events):", "if False:")),
    ),
    fault(
        "a rotation that is no rotation",
        "rotated",
        "no row moves the sum too far",
        (rotation, "_both_sides", ("small @ blocks @ small", "2 * (small @ blocks @ small)")),
    ),
    fault(
        "rotated sums cut off after the noise",
        "rotated",
        "Gaussian law",
        (
            RotatedSum,
            "privatize",
            (
                "return self.noise.privatize(self.released(total, rng), rng)",
                "late = self.noise.noise_steps\n"
                "    return np.clip(self.noise.privatize(self.released(total, rng), rng), -late, late)",
            ),
        ),
    ),
    Fault("one record in two clients", "records", "nobody is in the data", lambda: _joining("south", b"north 7")),
    Fault("two records of one person, K not enforced", "records", "nobody", lambda: _joining("north", b"north 7")),
)
