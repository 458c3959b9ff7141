"""The closed list of events that a ledger may hold, as JSON of integers, and our own parser for it.

A codec that instantiates the types a file names is a code loader; this one knows six kinds and nothing else:

    {"kind": "self_composed", "count": steps, "event":
        {"kind": "poisson_sampled", "numerator": a, "denominator": b, "event":
            {"kind": "discrete_gaussian", "noise_steps": s, "clip_steps": c}}}

`self_composed` and `poisson_sampled` may be left out (once; no sampling). In place of `poisson_sampled` may stand
`person_sampled` with `records`: a person has up to so many records, each sampled by itself. In place of
`discrete_gaussian` may stand `distributed_gaussian` with `shares`: so many honest clients each add noise of variance
noise_steps^2 / shares, and the sum is released. `client_gaussian` is the same where the unit is a whole client
(protocol C), which nothing samples. Nothing else nests.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from dp.errors import UnsupportedMechanismError

MAX_INTEGER = 2**53 - 1
Unit = Literal["record", "client"]


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """`count` releases of integer Gaussian noise on a Poisson sample.

    Attributes:
        count: Releases (gradient steps), >= 1.
        sampling_probability: In (0, 1].
        noise_steps: Standard deviation of all the noise that is counted on, in grid steps, >= 1.
        clip_steps: Integer L2 sensitivity (add or remove one record; zero out one client) in grid steps, >= 1.
        shares: Independent discrete Gaussians that make up the noise; 1: one client's own.
        records: Records of one person at most; each is sampled by itself.
        unit: Whom the sensitivity is of; the two are never composed with each other.
    """

    count: int
    sampling_probability: Fraction
    noise_steps: int
    clip_steps: int
    shares: int = 1
    records: int = 1
    unit: Unit = "record"


def event_tree(mechanism: SampledGaussian) -> dict[str, Any]:
    """The event of one attempt, in the form that `parse` reads.

    Raises UnsupportedMechanismError if the numbers make no mechanism.
    """
    q, m = mechanism.sampling_probability, mechanism
    noise: dict[str, Any] = {"kind": "discrete_gaussian", "noise_steps": m.noise_steps, "clip_steps": m.clip_steps}
    if m.shares != 1:
        noise |= {"kind": "distributed_gaussian", "shares": m.shares}
    sampled: dict[str, Any] = {"kind": "poisson_sampled", "numerator": q.numerator, "denominator": q.denominator}
    if m.records != 1:
        sampled |= {"kind": "person_sampled", "records": m.records}
    once = sampled | {"event": noise}
    if m.unit == "client":
        once = noise | {"kind": "client_gaussian", "shares": m.shares}
    event = {"kind": "self_composed", "count": m.count, "event": once}
    if parse(event) != m:
        raise _refuse(f"a sample or a bound on records per {m.unit}", "none: every client takes part in every round")
    return event


def parse(event: Any) -> SampledGaussian:
    """Read one event tree; everything outside the closed list raises UnsupportedMechanismError."""
    count, probability, shares, records = 1, Fraction(1), 1, 1
    node = event
    if _kind(node) == "self_composed":
        fields = _fields(node, {"kind", "count", "event"})
        count, node = _positive(fields, "count"), fields["event"]
    if _kind(node) == "client_gaussian":
        fields = _fields(node, {"kind", "noise_steps", "clip_steps", "shares"})
        noise, clip = _positive(fields, "noise_steps"), _positive(fields, "clip_steps")
        return SampledGaussian(count, Fraction(1), noise, clip, _several(fields, "shares"), unit="client")
    if (kind := _kind(node)) in ("poisson_sampled", "person_sampled"):
        person = {"records"} if kind == "person_sampled" else set()
        fields = _fields(node, {"kind", "numerator", "denominator", "event"} | person)
        probability = Fraction(_positive(fields, "numerator"), _positive(fields, "denominator"))
        records = _several(fields, "records") if person else 1
        node = fields["event"]
        if probability > 1:
            raise _refuse(f"a sampling probability of {probability}", "at most 1")
    if (kind := _kind(node)) not in ("discrete_gaussian", "distributed_gaussian"):
        raise _refuse(f"an event of kind {kind!r}", "self_composed > poisson_sampled > discrete_gaussian, or the like")
    distributed = {"shares"} if kind == "distributed_gaussian" else set()
    fields = _fields(node, {"kind", "noise_steps", "clip_steps"} | distributed)
    shares = _several(fields, "shares") if distributed else 1
    noise, clip = _positive(fields, "noise_steps"), _positive(fields, "clip_steps")
    return SampledGaussian(count, probability, noise, clip, shares, records)


def merge(events: Iterable[SampledGaussian]) -> tuple[SampledGaussian, ...]:
    """Add up the counts of equal mechanisms, in an order that does not depend on the input's."""
    counts: dict[tuple[Fraction, int, int, int, int, Unit], int] = {}
    for e in events:
        key = (e.sampling_probability, e.noise_steps, e.clip_steps, e.shares, e.records, e.unit)
        counts[key] = counts.get(key, 0) + e.count
    return tuple(SampledGaussian(counts[key], *key) for key in sorted(counts))


def _kind(node: Any) -> str:
    kind = node.get("kind") if isinstance(node, Mapping) else None
    return kind if isinstance(kind, str) else type(node).__name__


def _fields(node: Mapping[str, Any], expected: set[str]) -> Mapping[str, Any]:
    if set(node) != expected:
        raise _refuse(f"the fields {sorted(map(str, node))}", f"exactly {sorted(expected)}")
    return node


def _positive(fields: Mapping[str, Any], name: str) -> int:
    value = fields[name]
    if type(value) is not int or not 1 <= value <= MAX_INTEGER:
        raise _refuse(f"{name} = {value!r}", f"an integer between 1 and {MAX_INTEGER}")
    return value


def _several(fields: Mapping[str, Any], name: str) -> int:
    """One is written by leaving the kind out: one meaning, one form."""
    value = _positive(fields, name)
    if value < 2:
        raise _refuse(f"{name} = {value}", "at least 2")
    return value


def _refuse(found: str, expected: str) -> UnsupportedMechanismError:
    return UnsupportedMechanismError(
        "this event is not one that the project has a proof for", found=found, expected=expected
    )
