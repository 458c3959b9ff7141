"""The facts of a report, parsed once, with the figures that several groups need; and how figures are written."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from math import prod
from typing import Any

from dp import accountant
from dp.accountant import ABOVE_CEILING, Accounting
from dp.errors import UnsupportedMechanismError
from dp.events import SampledGaussian, event_tree, parse
from dp.ledger import CHARGE, Charge
from dp.report_trust import Adversary, adversaries
from dp.rotation import RotatedSum, block_root, rotated_length
from dp.rounding import norm_bound

Facts = Mapping[str, Any]
Group = dict[str, Any]

NOT_MEASURED = "not measured"
NO_CERTIFICATE = "no certificate: too little noise"
ADJACENCY = {"add-or-remove-one": "add/remove", "zero-out": "zero-out"}
IN_SHARES = ("R2", "C")  # protocols whose noise is a sum of many clients' shares
_FOUR = Decimal("0.0001")


class Derived:
    """Facts parsed once, and the figures that several groups need."""

    def __init__(self, facts: Facts, prv: bool = True) -> None:
        self.facts = facts
        self.manifest: Mapping[str, Any] = facts["manifest"]["document"]
        self.roster: Mapping[str, Any] = facts["roster"]["document"]
        self.privacy: Mapping[str, Any] = self.manifest["privacy"]
        self.training: Mapping[str, Any] = self.manifest["training"]
        self.aggregation: Mapping[str, Any] = self.manifest["aggregation"]
        self.delta = Decimal(self.privacy["delta"])
        self.names: dict[int, str] = {m["client_id"]: m["name"] for m in self.roster["clients"]}
        self.statements: dict[int, Mapping[str, Any]] = {
            s["statement"]["client_id"]: s["statement"] for s in facts["statements"]
        }
        self.rows: dict[int, tuple[tuple[int, Charge], ...]] = {
            k: tuple((r["seq"], Charge.from_json(r["body"])) for r in s["rows"] if r["kind"] == CHARGE)
            for k, s in self.statements.items()
        }
        self.charges = {k: tuple(charge for _, charge in rows) for k, rows in self.rows.items()}
        self.releases = {k: self._releases(k) for k in self.names}
        self.mechanisms = {k: self._account([m for m, _ in self.releases[k]]) for k in self.names}
        self.accounting: dict[int, Accounting] = {
            k: accountant.epsilon(m, self.delta, prv=prv) for k, m in self.mechanisms.items()
        }
        self.adversaries = adversaries(self.manifest)
        self.trust: dict[str, dict[int, str]] = {
            a.id: {k: self._epsilon_against(a, k) for k in sorted(self.names)} for a in self.adversaries if a.shares
        }
        # Where rows are equal the claim is told against the strongest adversary.
        self.worst_row, self.worst = max(
            ((a.id, k) for a in self.adversaries if a.declared for k in self.names),
            key=lambda row: (order(self.trust[row[0]][row[1]]), row[0] == "malicious-server", -row[1]),
        )

    def _releases(self, client: int) -> tuple[tuple[SampledGaussian, bool], ...]:
        """What a client's ledger holds, each with whether it is of this task."""
        digest = self.facts["manifest"]["digest"]
        if client in self.charges:
            return tuple((c.mechanism, c.manifest_digest == digest) for c in self.charges[client])
        attempts = sum(client in r["shared"] for r in self.facts["rounds"])
        return ((parse(planned_event(self.manifest)), True),) * attempts

    def _account(self, releases: Sequence[SampledGaussian]) -> tuple[SampledGaussian, ...]:
        return accountant.mechanisms(accountant.in_unit(releases, self.privacy["unit"]))

    def against(self, row: str, client: int) -> tuple[SampledGaussian, ...]:
        """The client's mechanisms with the noise that this adversary does not know."""
        adversary = next(a for a in self.adversaries if a.id == row)
        return self._account([adversary.sees(m, own) for m, own in self.releases[client]])

    def _epsilon_against(self, adversary: Adversary, client: int) -> str:
        """ε of a client's records against an adversary, or why there is none."""
        seen = self.against(adversary.id, client)
        if seen == self.mechanisms[client]:
            return self.accounting[client].epsilon
        try:
            return accountant.epsilon(seen, self.delta, prv=False).epsilon
        except UnsupportedMechanismError:
            return NO_CERTIFICATE

    @property
    def worst_mechanisms(self) -> tuple[SampledGaussian, ...]:
        """What the headline is computed from."""
        return self.against(self.worst_row, self.worst)

    @property
    def adjacency(self) -> str:
        """The short word that stands beside every ε."""
        return ADJACENCY[self.privacy["adjacency"]]

    @property
    def complete(self) -> bool:
        """Whether every client of the roster stated its ledger."""
        return set(self.names) <= set(self.statements)

    def own_charges(self, client: int) -> tuple[Charge, ...]:
        """A client's charges under this manifest."""
        digest = self.facts["manifest"]["digest"]
        return tuple(c for c in self.charges.get(client, ()) if c.manifest_digest == digest)


def planned_event(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The event tree that one attempt under this manifest must be charged as."""
    p, aggregation = manifest["privacy"], manifest["aggregation"]
    shares = aggregation["min_cohort"] - aggregation["max_corrupt"] if p["protocol"] in IN_SHARES else 1
    if p["protocol"] == "C":
        return event_tree(
            SampledGaussian(1, Fraction(1), noise_steps(manifest), sensitivity_steps(manifest), shares, unit="client")
        )
    probability = Fraction(p["sampling_numerator"], p["sampling_denominator"])
    steps = manifest["training"]["local_steps"]
    return event_tree(
        SampledGaussian(
            steps, probability, noise_steps(manifest), sensitivity_steps(manifest), shares, p["records_per_person"]
        )
    )


def sensitivity_steps(manifest: Mapping[str, Any]) -> int:
    """L2 norm by which one unit moves what is noised, at most: in steps of the grid that is noised."""
    p, size = manifest["privacy"], vector_length(manifest)
    clip: int = p["clip_steps"]
    if p["protocol"] == "C":
        return norm_bound(clip, rotated_length(size) if rotated(manifest) else size)
    if not rotated(manifest):
        return clip
    shift = (block_root(size) * p["scale"] // manifest["aggregation"]["scale"]).bit_length() - 1
    return RotatedSum.sensitivity(clip, size, shift)


def noise_steps(manifest: Mapping[str, Any]) -> int:
    """Standard deviation of the noise in steps of the grid that is noised; of rotated sums rounded down."""
    noise: int = manifest["privacy"]["noise_steps"]
    return noise * noised_scale(manifest) // int(manifest["privacy"]["scale"])


def noised_scale(manifest: Mapping[str, Any]) -> int:
    """Steps of the grid that is noised in a unit."""
    return int(manifest["aggregation" if rotated(manifest) else "privacy"]["scale"])


def rotated(manifest: Mapping[str, Any]) -> bool:
    """Whether clients send a rotated vector."""
    return manifest["aggregation"].get("rotation") is not None


def iso(unix: int) -> str:
    """Unix seconds as ISO 8601 in UTC."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def vector_length(manifest: Mapping[str, Any]) -> int:
    """Number of trained values."""
    return sum(prod(tensor["shape"]) for tensor in manifest["adapter"]["tensors"])


def decimal(value: Fraction) -> str:
    """Twelve significant digits, half even, no exponent."""
    quotient = Context(prec=12, rounding=ROUND_HALF_EVEN).divide(Decimal(value.numerator), Decimal(value.denominator))
    return plain(quotient)


def plain(value: Decimal) -> str:
    """A decimal without exponent and without trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def ratio(value: Fraction) -> str:
    """Four decimal places, half even."""
    exact = Context(prec=40).divide(Decimal(value.numerator), Decimal(value.denominator))
    return str(exact.quantize(_FOUR, ROUND_HALF_EVEN))


def order(epsilon: str) -> Decimal:
    """For comparing figures; what has no number is above all numbers."""
    return Decimal("Infinity") if epsilon in (ABOVE_CEILING, NO_CERTIFICATE) else Decimal(epsilon)
