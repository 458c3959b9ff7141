"""The closed list of events that a ledger may hold, as JSON of integers, and our own parser for it.

A codec that instantiates the types a file names is a code loader; this one knows three kinds and nothing else:

    {"kind": "self_composed", "count": steps, "event":
        {"kind": "poisson_sampled", "numerator": a, "denominator": b, "event":
            {"kind": "discrete_gaussian", "noise_steps": s, "clip_steps": c}}}

`self_composed` and `poisson_sampled` may be left out (once; no sampling). Nothing else nests.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from dp.errors import UnsupportedMechanismError

MAX_INTEGER = 2**53 - 1


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """`count` releases of integer Gaussian noise on a Poisson sample.

    Attributes:
        count: Releases (gradient steps), >= 1.
        sampling_probability: In (0, 1].
        noise_steps: Standard deviation of the discrete Gaussian in grid steps, >= 1.
        clip_steps: Integer L2 sensitivity (add or remove one record) in grid steps, >= 1.
    """

    count: int
    sampling_probability: Fraction
    noise_steps: int
    clip_steps: int


def step_event(count: int, sampling: tuple[int, int], noise_steps: int, clip_steps: int) -> dict[str, Any]:
    """The event of one attempt: `count` gradient steps at sampling probability numerator/denominator.

    Raises UnsupportedMechanismError if the numbers make no mechanism.
    """
    event: dict[str, Any] = {
        "kind": "self_composed",
        "count": count,
        "event": {
            "kind": "poisson_sampled",
            "numerator": sampling[0],
            "denominator": sampling[1],
            "event": {"kind": "discrete_gaussian", "noise_steps": noise_steps, "clip_steps": clip_steps},
        },
    }
    parse(event)
    return event


def parse(event: Any) -> SampledGaussian:
    """Read one event tree; everything outside the closed list raises UnsupportedMechanismError."""
    count, probability = 1, Fraction(1)
    node = event
    if _kind(node) == "self_composed":
        fields = _fields(node, {"kind", "count", "event"})
        count, node = _positive(fields, "count"), fields["event"]
    if _kind(node) == "poisson_sampled":
        fields = _fields(node, {"kind", "numerator", "denominator", "event"})
        probability = Fraction(_positive(fields, "numerator"), _positive(fields, "denominator"))
        node = fields["event"]
        if probability > 1:
            raise _refuse(f"a sampling probability of {probability}", "at most 1")
    if _kind(node) != "discrete_gaussian":
        raise _refuse(f"an event of kind {_kind(node)!r}", "self_composed > poisson_sampled > discrete_gaussian")
    fields = _fields(node, {"kind", "noise_steps", "clip_steps"})
    return SampledGaussian(count, probability, _positive(fields, "noise_steps"), _positive(fields, "clip_steps"))


def merge(events: Iterable[SampledGaussian]) -> tuple[SampledGaussian, ...]:
    """Add up the counts of equal mechanisms, in an order that does not depend on the input's."""
    counts: dict[tuple[Fraction, int, int], int] = {}
    for e in events:
        key = (e.sampling_probability, e.noise_steps, e.clip_steps)
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


def _refuse(found: str, expected: str) -> UnsupportedMechanismError:
    return UnsupportedMechanismError(
        "this event is not one that the project has a proof for", found=found, expected=expected
    )
