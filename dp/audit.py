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
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dp.errors import PrivacyError
from dp.mechanism import GaussianMechanism
from dp.sampling import Csprng

FORMAT: Final = "secagg-audit/1"
ALARM: Final = 1e-6  # probability of any false alarm of one audit, at most
COMPARISONS: Final = 100  # statistical comparisons of one audit, at most
LEVEL: Final = ALARM / COMPARISONS
AT_THE_SITE: Final = "known at the site"  # what the report says in place of a private figure

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]
R = TypeVar("R", contravariant=True)


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure that a report draws beside its claim: decimal strings. `ceiling`: the most that could be shown."""

    quantity: str
    value: str
    claim: str
    ceiling: str


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
        measure: For a plot of bounds against claims.
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
    measure: Measure | None = None
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
        names = [finding.name for finding in self.findings]
        if len(set(names)) != len(names):
            raise PrivacyError("two findings of an audit have one name", expected="a stable name for each check")

    @property
    def passed(self) -> bool:
        """Whether there is at least one check and all of them hold."""
        return bool(self.findings) and all(finding.passed for finding in self.findings)

    @property
    def violations(self) -> tuple[Finding, ...]:
        """The checks that do not hold, and the controls that were not seen."""
        return tuple(finding for finding in self.findings if not finding.passed)

    def to_json(self) -> dict[str, Any]:
        """Text, booleans and integers only; without what is private. What group 11 of the report is made from."""
        return {
            "format": FORMAT,
            "subject": dict(self.subject),
            "passed": self.passed,
            "false_alarm_probability": f"at most {ALARM:g} over all checks",
            "checks": [_check_json(finding) for finding in self.findings],
        }


def _check_json(finding: Finding) -> dict[str, Any]:
    names = ("name", "found", "bound", "sees", "blind", "passed", "comparisons")
    check = {name: getattr(finding, name) for name in names}
    if finding.private:
        check["found"] = AT_THE_SITE
    if finding.measure is not None:
        m = finding.measure
        check["measure"] = {"quantity": m.quantity, "value": m.value, "claim": m.claim, "ceiling": m.ceiling}
    return check


def guarded(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of `check`; where the code under audit stops with an error instead, that is the finding."""
    try:
        return list(check())
    except (PrivacyError, ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        # Only our own texts are known to carry no data.
        what = f"{error.code} {error.what}" if isinstance(error, PrivacyError) else type(error).__name__
        return [Finding(name, f"stopped: {what}", "an answer", False, "code that does not run", "what lies behind it")]


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
