"""Who could learn something, and how much noise stands between them and a record: the rows of the trust table.

A row is an adversary with the number of noise shares that it does not know. Under R1 each client adds the whole noise
alone: one share of one, for everybody. Where the noise is the sum of shares, an adversary that knows some of them sees
less: the row's standard deviation is that of the remaining shares, rounded down to whole grid steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

from dp.events import SampledGaussian

WHOLE = (1, 1)


@dataclass(frozen=True, slots=True)
class Adversary:
    """One row.

    Attributes:
        id: Stable name.
        who: For people.
        against: Whose records it is after.
        knows: What it sees, and which noise it knows.
        declared: Within the declared threat model; the headline is the worst of these rows.
        shares: (noise shares that it does not know, shares that the charge counts); None: no guarantee.
    """

    id: str
    who: str
    against: str
    knows: str
    declared: bool
    shares: tuple[int, int] | None


def adversaries(manifest: Mapping[str, Any]) -> tuple[Adversary, ...]:
    """The rows for this manifest, in the order in which people read them."""
    a = manifest["aggregation"]
    corrupt = a["max_corrupt"]
    every, others = "the records of every silo", "the records of every silo but its own"
    colluders = "1 client" if corrupt == 1 else f"{corrupt} clients"
    return (
        Adversary("recipient", "recipient of the final adapter", every, "every released sum and model", True, WHOLE),
        Adversary(
            "honest-but-curious-server",
            "honest-but-curious server",
            every,
            "all messages; keeps to the protocol",
            True,
            WHOLE,
        ),
        Adversary(
            "malicious-server",
            f"malicious server with up to {colluders} on its side",
            f"{every} that does not collude",
            "all messages, and what the colluding clients know; breaks the protocol at will",
            True,
            WHOLE,
        ),
        Adversary(
            "other-client", "one other client", others, "every released sum and model, and its own noise", True, WHOLE
        ),
        Adversary(
            "aggregation-broken",
            "anybody, if secure aggregation fails",
            others,
            "every single upload: all masks are lost",
            False,
            WHOLE,
        ),
        Adversary(
            "own-operator",
            "the silo's own operator",
            "the records of its own silo",
            "the data themselves",
            False,
            None,
        ),
    )


def remaining(mechanism: SampledGaussian, shares: tuple[int, int]) -> SampledGaussian:
    """The mechanism with the noise that is left; the standard deviation rounds down."""
    unknown, counted = shares
    if unknown == counted:
        return mechanism
    return replace(mechanism, noise_steps=isqrt(mechanism.noise_steps**2 * unknown // counted))
