"""What an audit finds: one `Finding` per check, with its bound and its blind spot; and what it looks at.

The audit runs the code that trains. It calls it through `Pipeline`, which is made where torch may be used, and sees
three things of every step: the integer sum before the noise, the integers that the mechanism returned, and what the
optimizer was handed. Nothing is copied from the code under test. All records are planted and public, so a finding says
nothing about a site's own records; the few that do are marked `private` and stay at the site.

False alarms: a deterministic check has none on a correct pipeline. Every statistical comparison is made at level
`LEVEL` = `ALARM` / `COMPARISONS`, and `AuditResult` refuses more than `COMPARISONS` of them, so that by the union bound
a correct pipeline is called broken with probability at most `ALARM` = 1e-6. A passed audit is no proof: a check sees
what its line says it sees. The proof is the mechanism's argument (SPEC 10).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dp.errors import PrivacyError, ReportError
from dp.mechanism import GaussianMechanism
from dp.sampling import Csprng

FORMAT: Final = "secagg-audit/1"
ALARM: Final = 1e-6  # probability of any false alarm of one audit, at most
COMPARISONS: Final = 1000  # statistical comparisons of one audit, at most
LEVEL: Final = ALARM / COMPARISONS
AT_THE_SITE: Final = "known at the site"  # what the report says in place of a private figure

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]
R = TypeVar("R", contravariant=True)

_TEXTS = ("name", "found", "bound", "sees", "blind")
_CHECK_KEYS = {*_TEXTS, "passed", "comparisons", "control"}
_KEYS = {"format", "subject", "passed", "false_alarm_probability", "checks"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. All fields are text for people and for the report (signed documents hold no floats).

    Attributes:
        name: What is checked; stable, so that a report can be compared with another one.
        found: What was measured.
        bound: What it may be.
        passed: Whether it is. For a negative control: whether the planted fault was seen.
        sees: The faults that this check shows.
        blind: What it does not show.
        comparisons: How many statistical comparisons at `LEVEL` it made; 0 for a deterministic check.
        control: A pipeline that was broken on purpose, to show that the checks can fail.
        private: `found` depends on the site's own records: it never leaves the site.
    """

    name: str
    found: str
    bound: str
    passed: bool
    sees: str
    blind: str
    comparisons: int = 0
    control: bool = False
    private: bool = False

    @property
    def verdict(self) -> str:
        """One word for a table."""
        if self.control:
            return "seen" if self.passed else "NOT SEEN"
        return "holds" if self.passed else "VIOLATED"


@dataclass(frozen=True, slots=True)
class AuditResult:
    """All findings of one audit. `subject` says what was audited. Raises PrivacyError for too many comparisons."""

    subject: Mapping[str, str]
    findings: tuple[Finding, ...]

    def __post_init__(self) -> None:
        made = sum(finding.comparisons for finding in self.findings)
        if made > COMPARISONS:
            raise PrivacyError("too many comparisons for the stated false alarms", found=made, expected=COMPARISONS)

    @property
    def passed(self) -> bool:
        """Whether there is at least one check and all of them hold."""
        return bool(self.findings) and all(finding.passed for finding in self.findings)

    @property
    def violations(self) -> tuple[Finding, ...]:
        """The checks that do not hold, and the controls that were not seen."""
        return tuple(finding for finding in self.findings if not finding.passed)

    def to_json(self) -> dict[str, Any]:
        """Text, booleans and integers only; without what is private."""
        checks = []
        for finding in self.findings:
            check = asdict(finding)
            if check.pop("private"):
                check["found"] = AT_THE_SITE
            checks.append(check)
        return {
            "format": FORMAT,
            "subject": dict(self.subject),
            "passed": self.passed,
            "false_alarm_probability": f"at most {ALARM:g} over all checks",
            "checks": checks,
        }


def guarded(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of `check`; where the code under audit stops with an error instead, that is the finding."""
    try:
        return list(check())
    except (PrivacyError, ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        # Only our own texts are known to carry no data.
        what = f"{error.code} {error.what}" if isinstance(error, PrivacyError) else type(error).__name__
        return [Finding(name, f"stopped: {what}", "an answer", False, "code that does not run", "what lies behind it")]


def audit_group(audit: Mapping[str, Any] | None) -> dict[str, Any]:
    """Group 11 of the accounting report from an audit's JSON (`AuditResult.to_json`); None: no audit was made.

    A pure function: what it counts and summarises is recomputed from the checks, and the verdict must follow from them.

    Raises:
        ReportError: The JSON has another shape, or says "passed" where a check did not hold.
    """
    meaning = "evidence that can fail, no proof: the guarantee rests on the argument of group 5, not on a weak attack"
    if audit is None:
        return {"status": "not measured", "meaning": meaning}
    checks = _checks(audit)
    failed = [check["name"] for check in checks if not check["passed"]]
    if audit["passed"] is not (bool(checks) and not failed):
        raise ReportError("the audit's verdict does not follow from its checks", found=audit["passed"], code="E604")
    return {
        "status": "passed" if audit["passed"] else "violated",
        "meaning": meaning,
        "subject": dict(audit["subject"]),
        "false_alarm_probability": audit["false_alarm_probability"],
        "checks": sum(not check["control"] for check in checks),
        "controls": sum(check["control"] for check in checks),
        "comparisons": sum(check["comparisons"] for check in checks),
        "failed": failed,
        "findings": [{key: check[key] for key in sorted(_CHECK_KEYS)} for check in checks],
    }


def _checks(audit: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The list of checks, after a look at every type."""
    try:
        good = set(audit) == _KEYS and audit["format"] == FORMAT and type(audit["passed"]) is bool
        good = good and type(audit["false_alarm_probability"]) is str
        good = good and all(type(k) is type(v) is str for k, v in audit["subject"].items())
        checks: list[Mapping[str, Any]] = list(audit["checks"])
        for check in checks:
            good = good and set(check) == _CHECK_KEYS and all(type(check[name]) is str for name in _TEXTS)
            good = good and type(check["passed"]) is type(check["control"]) is bool
            good = good and type(check["comparisons"]) is int and check["comparisons"] >= 0
    except (AttributeError, KeyError, TypeError):
        good, checks = False, []
    if not good:
        raise ReportError("this is no audit", expected=f"the JSON of `secagg audit`, {FORMAT}", code="E604")
    return checks


@dataclass(frozen=True, slots=True)
class Trace:
    """What the audit saw of S steps over d coordinates, all in grid steps.

    Attributes:
        sums: (S, d) int64, what went into the mechanism: the sum of the bounded rows.
        released: (S, d) int64, what the mechanism returned.
        handed: (S, d) float64, the gradient that the optimizer was handed, times divisor and scale.
        wanted: Steps that were asked for. A pipeline that leaves some out has fewer rows.
    """

    sums: Integers = field(repr=False)
    released: Integers = field(repr=False)
    handed: Reals = field(repr=False)
    wanted: int

    @property
    def whole(self) -> bool:
        """Whether every step was noised once and handed over once."""
        return len(self.sums) == len(self.released) == len(self.handed) == self.wanted


@dataclass(frozen=True, slots=True)
class Canary:
    """A planted record: its gradient, before the clip, is `sign` times `norm` clip norms along the direction of `row`.

    The directions of different rows have no coordinate in common. `norm` may be 0, NaN or infinite.
    """

    row: int
    norm: float
    sign: int = 1


class Pipeline(Protocol[R]):
    """The training code under audit, over planted records of type R."""

    @property
    def mechanism(self) -> GaussianMechanism:
        """As configured."""

    @property
    def sampling(self) -> tuple[int, int]:
        """Numerator and denominator of the sampling probability, as configured."""

    @property
    def groups(self) -> Mapping[str, slice]:
        """Coordinates of each trained tensor, by name."""

    def run(self, records: Sequence[R], steps: int, sampled: bool, rng: Csprng) -> Trace:
        """`steps` training steps over `records` at unchanged parameters; with `sampled` at the configured q, without
        it with every record in every step."""


class CanaryPipeline(Pipeline[Canary], Protocol):
    """A pipeline over canaries."""

    @property
    def rows(self) -> int:
        """How many canary directions there are."""

    def configured(self, mechanism: GaussianMechanism, sampling: tuple[int, int]) -> "CanaryPipeline":
        """The same loop with another mechanism or sampling probability: for the negative controls."""

    def scores(self, vectors: Reals) -> Reals:
        """(S, d) -> (S, rows): inner products with the canary directions, in clip norms."""
