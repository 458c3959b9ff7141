"""`secagg audit`: a pipeline as configured goes through every check, and comes out with a table and a JSON file.

What is audited is a manifest and a base model, and the files of records that this auditor holds. Training is audited on
planted records alone, so an audit spends nothing of anybody's privacy budget, and its result can be published.

| code | meaning |
|---|---|
| E701 | the audit found a violation, or a control was not seen |
| E702 | there is nothing to audit: protocol "none", or no such subject |
"""

import csv
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from dp.audit import AuditResult, Finding, guarded
from dp.audit_ledger import Claim, check_accountant, check_ledger, check_persons
from dp.audit_planted import Claimed, Effort, controls, planted_checks
from dp.errors import AuditError
from dp.events import SampledGaussian
from dp.mechanism import GaussianMechanism
from dp.sampling import SEED_BYTES, Csprng
from ffm.audit_encoding import check_encoding
from ffm.audit_leakage import check_leakage
from ffm.audit_model import Planted, check_generator, check_membership, check_model, check_processes
from ffm.audit_pipeline import CanaryTraining
from ffm.audit_rounds import check_rounds, honest_shares
from ffm.audit_shares import check_client_level, check_rotated
from ffm.client_run import budget_of, round_charge
from ffm.data import read_records
from ffm.demo import prepare
from ffm.learner import plan_of
from ffm.models import locate
from ffm.plan import client_mechanism
from ffm.site import MANIFEST, Site, load_site
from ffm.task import example_settings, load_settings
from ffm.tasks.finetune import SequenceClassification
from protocol.manifest import Manifest
from protocol.roster import parse_model
from secagg import __version__
from secagg.errors import SecAggError

PERSON = "person"
EXAMPLES = ("hospital", "heart", "bank")
AUDITED = SequenceClassification.name
_PACKAGES = ("torch", "opacus", "peft", "transformers", "numpy")
_SITES = ("*/client.toml", "sites/*/client.toml", "consortium/sites/*/client.toml")  # several sites at once
_MEMBERSHIP_STEPS = 60  # of the black-box row, at most


@dataclass(frozen=True, slots=True)
class Subject:
    """What is audited. `data` are files of records of different sites, of which only equal records are counted."""

    name: str
    manifest: Manifest
    base_model: Path
    data: tuple[Path, ...] = field(default=(), repr=False)


def audit(subject: Subject, effort: Effort, seed: int, say: Callable[[str], None] = print) -> AuditResult:
    """Every check. `seed` pins the planted runs; processes and attempts draw from the operating system as always.

    Raises:
        AuditError: E702, the manifest adds no noise, or learns what no planted record here is one of. ModelError,
            DataError: the subject cannot be loaded.
    """
    manifest = subject.manifest
    if manifest.privacy.protocol == "none":
        raise AuditError(
            "a task without differential privacy has no privacy claim to audit",
            found=f"protocol {manifest.privacy.protocol}",
            expected="R1, R2 or C",
            do="set privacy.protocol in the task's settings",
            code="E702",
        )
    if manifest.training.task != AUDITED and (manifest.privacy.protocol != "C" or subject.data):
        raise AuditError(
            "the audit plants texts with labels, and this task learns something else: it cannot tell right from wrong",
            found=f"training.task {manifest.training.task!r}",
            expected=AUDITED,
            do="audit a classifier with the same adapter and privacy: clip, noise and sums are the same code",
            code="E702",
        )
    rng = Csprng(seed.to_bytes(SEED_BYTES, "big"))
    if manifest.privacy.protocol == "C":
        say("planted updates through clip, grid and noise, and sums of the smallest cohort")
        draws = (effort.noise_values, effort.round_values)
        findings = guarded("client", lambda: check_client_level(manifest, draws, rng))
        say("ledger, budget and accountant")
        findings += guarded("books", lambda: _books(subject))
        return AuditResult(describe(subject, seed), (*findings, *check_encoding(manifest.secagg_params(), rng.take)))
    claimed = claim_of(manifest)
    canaries = CanaryTraining.of(manifest.adapter, plan_of(manifest))
    say("planted records through the training loop")
    findings = planted_checks(canaries, claimed, effort, rng, Csprng.from_os)
    say("the base model, its loop and its training process")
    findings += guarded("model", lambda: _model(subject, claimed, rng))
    say("ledger, budget and accountant")
    findings += guarded("books", lambda: _books(subject))
    findings += check_encoding(manifest.secagg_params(), rng.take)
    if manifest.privacy.protocol == "R2":
        say("rounds of the smallest sum, through encoding and masks")
        draws = (effort.noise_values, effort.round_values)
        findings += guarded(
            "rounds",
            lambda: check_rotated(manifest, draws, rng) or check_rounds(manifest, effort.round_values, rng),
        )
    say("negative controls")
    findings += controls(canaries, claimed, rng)
    say("leakage of one update")
    findings += guarded(
        "leakage", lambda: check_leakage(subject.base_model, manifest.training.labels, plan_of(manifest), rng)
    )
    return AuditResult(describe(subject, seed), tuple(findings))


def claim_of(manifest: Manifest) -> Claimed:
    """What the signed manifest says of every step."""
    p = manifest.privacy
    mechanism = GaussianMechanism(p.scale, p.clip_steps, p.noise_steps, honest_shares(manifest))
    return Claimed(mechanism, (p.sampling_numerator, p.sampling_denominator), Decimal(p.delta))


def describe(subject: Subject, seed: int) -> dict[str, str]:
    """What was audited, with which versions."""
    packages = {f"version of {name}": version(name) for name in _PACKAGES}
    return {
        "subject": subject.name,
        "task": subject.manifest.task,
        "manifest_digest": subject.manifest.digest().hex(),
        "base_model": subject.manifest.base_model.name,
        "protocol": subject.manifest.privacy.protocol,
        "seed of the planted runs": str(seed),
        "version of secagg-ffm": __version__,
        "version of python": platform.python_version(),
        **packages,
    }


def _model(subject: Subject, claimed: Claimed, rng: Csprng) -> list[Finding]:
    manifest = subject.manifest
    planted = Planted.of(manifest, subject.base_model)
    steps = min(_MEMBERSHIP_STEPS, manifest.training.rounds * manifest.training.local_steps)
    with TemporaryDirectory() as folder:
        processes = check_processes(manifest, subject.base_model, Path(folder))
    return [
        *check_model(planted, claimed),
        check_generator(planted),
        *processes,
        check_membership(planted, claimed, steps, rng),
    ]


def claim_of_books(manifest: Manifest) -> Claim:
    """What a client charges, and what its training process runs, both by the code that does it."""
    if manifest.privacy.protocol == "C":
        c = client_mechanism(manifest)
        running = SampledGaussian(1, Fraction(1), c.noise_steps, c.sensitivity, honest_shares(manifest), unit="client")
        return Claim(partial(round_charge, manifest), budget_of(manifest), running, manifest.privacy.max_records)
    plan = plan_of(manifest)
    m = claim_of(manifest).mechanism if plan.mechanism is None else plan.mechanism
    m = m if plan.rotated is None else plan.rotated.noise  # what is noised has a grid of its own
    q, person = Fraction(plan.sampling_numerator, plan.sampling_denominator), manifest.privacy.records_per_person
    running = SampledGaussian(plan.steps, q, m.noise_steps, m.clip_steps, honest_shares(manifest), person)
    return Claim(partial(round_charge, manifest), budget_of(manifest), running, manifest.privacy.max_records)


def _books(subject: Subject) -> list[Finding]:
    claim = claim_of_books(subject.manifest)
    with TemporaryDirectory() as folder:
        findings = guarded("accountant", lambda: check_accountant(claim))
        findings += guarded("ledger", lambda: check_ledger(claim, Path(folder)))
    if subject.data:
        findings.append(persons(subject))
    return findings


def persons(subject: Subject) -> Finding:
    """Records of one person over the subject's files: by their column `person` where all have it, else by equality."""
    labels = subject.manifest.training.labels
    silos = {str(path): [repr(record).encode() for record in read_records(path, labels)] for path in subject.data}
    keys = {str(path): read_persons(path) for path in subject.data}
    known = {name: key for name, key in keys.items() if key is not None}
    named = len(known) == len(keys)
    return check_persons(known if named else silos, subject.manifest.privacy.records_per_person, named)


def read_persons(path: Path) -> list[bytes] | None:
    """The column `person` of a file of records: any key that is the same at all sites; None without that column."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        if PERSON not in (rows.fieldnames or ()):
            return None
        return [row[PERSON].encode() for row in rows]


# -- what to audit --------------------------------------------------------------------------------------------------


@contextmanager
def open_subject(target: str, data: Sequence[Path], model: str) -> Iterator[Subject]:
    """A site's folder, a folder of several sites (a demo's run folder), a manifest with `data`, or an example's name.

    Raises:
        AuditError: E702, `target` is none of these. DocumentError, DataError, ModelError: as the loaders say.
    """
    path = Path(target)
    if path.is_dir():
        yield _sites(path, data)
    elif path.is_file():
        manifest = parse_model(Manifest, path.name, path.read_bytes())
        yield Subject(path.name, manifest, locate(manifest.base_model.name), tuple(data))
    elif target in EXAMPLES:
        with TemporaryDirectory() as folder:
            layout = prepare(Path(folder), load_settings(example_settings(target)), model)
            yield Subject(f"{target} example", layout.manifest, layout.base_model, layout.site_files)
    else:
        raise _no_subject(target)


def _sites(path: Path, data: Sequence[Path]) -> Subject:
    alone = any((path / name).exists() for name in ("client.toml", "server.toml"))
    below = [file for pattern in _SITES for file in path.glob(pattern)]
    folders = [path] if alone else sorted(file.parent for file in below)
    if not folders:
        raise _no_subject(str(path))
    sites: list[Site] = [load_site(folder) for folder in folders]
    if len({site.manifest.digest() for site in sites}) != 1:
        raise AuditError(
            f"the sites below {path} do not share one {MANIFEST}",
            found=f"{len({site.manifest.digest() for site in sites})} manifests",
            expected="one",
            do="audit each site by itself",
            code="E702",
        )
    first = sites[0]
    files = tuple(data) or tuple(site.data for site in sites if site.role == "client" and site.data.exists())
    base_model = locate(first.settings.base_model or first.manifest.base_model.name)
    return Subject(path.resolve().name, first.manifest, base_model, files)


def _no_subject(target: str) -> SecAggError | AuditError:
    return AuditError(
        "there is nothing to audit here",
        found=target,
        expected="a site's folder, a run folder of a demo, a manifest.json, or an example: hospital, heart, bank",
        do="secagg audit hospital",
        code="E702",
    )
