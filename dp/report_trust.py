"""Who could learn something, and how much noise stands between them and a record: the rows of the trust table.

A row is an adversary with the number of noise shares that it does not know. Under R1 each client adds the whole noise
alone: one share of one, for everybody. Under R2 and C the noise is the sum of shares, and who knows or strips off some
of them sees less: the row's standard deviation is that of the remaining shares, rounded down to whole grid steps. The
part of δ that is kept for refusals (SPEC 10.8) is kept in every row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

from dp.events import SampledGaussian

WHOLE = (1, 1)
DECRYPTOR_KNOWS = {  # SPEC 6.8
    "dual": "masked sums, and every released sum and model",
    "he": "every released sum and model; trusted not to open single inputs together with the server",
}


@dataclass(frozen=True, slots=True)
class Adversary:
    """One row.

    Attributes:
        id: Stable name.
        who: For people.
        against: Whose records it is after.
        knows: What it sees, and which noise it knows.
        declared: Within the declared threat model; the headline is the worst of these rows.
        shares: (noise shares of this task that it does not know, shares that the charge counts); None: no guarantee.
    """

    id: str
    who: str
    against: str
    knows: str
    declared: bool
    shares: tuple[int, int] | None

    def sees(self, mechanism: SampledGaussian, of_this_task: bool) -> SampledGaussian:
        """The mechanism with the noise that is left for it.

        Of another task only the number of shares counted is known, and nothing beyond it is counted on: so many are
        left against `max_corrupt` clients, and one client alone is no more than these (SPEC 10.8).
        """
        if mechanism.shares == 1 or self.shares is None:
            return mechanism
        counted = mechanism.shares
        unknown = self.shares[0] if of_this_task else 1 if self.id == "aggregation-broken" else counted
        return replace(mechanism, noise_steps=isqrt(mechanism.noise_steps**2 * unknown // counted))


def adversaries(manifest: Mapping[str, Any]) -> tuple[Adversary, ...]:
    """The rows for this manifest, in the order in which people read them."""
    a = manifest["aggregation"]
    cohort, corrupt = a["min_cohort"], a["max_corrupt"]
    counted = cohort - corrupt if manifest["privacy"]["protocol"] in ("R2", "C") else 1
    every = "the data of every client" if manifest["privacy"]["protocol"] == "C" else "the records of every silo"
    others = f"{every} but its own"
    colluders = "1 client" if corrupt == 1 else f"{corrupt} clients"

    def shares(unknown: int) -> tuple[int, int]:
        return WHOLE if counted == 1 else (unknown, counted)

    decryptor = (
        ()
        if a["assurance"] == "masking"
        else (Adversary("decryptor", "the decryptor", every, DECRYPTOR_KNOWS[a["assurance"]], True, shares(cohort)),)
    )
    return (
        Adversary(
            "recipient", "recipient of the final adapter", every, "every released sum and model", True, shares(cohort)
        ),
        Adversary(
            "honest-but-curious-server",
            "honest-but-curious server",
            every,
            "all messages; keeps to the protocol",
            True,
            shares(cohort),
        ),
        Adversary(
            "malicious-server",
            f"malicious server with up to {colluders} on its side",
            f"{every} that does not collude",
            "all messages, and what the colluding clients know; breaks the protocol at will",
            True,
            shares(counted),
        ),
        Adversary(
            "other-client",
            "one other client",
            others,
            "every released sum and model, and its own noise",
            True,
            shares(cohort - 1),
        ),
        *decryptor,
        Adversary(
            "aggregation-broken",
            "anybody, if secure aggregation fails",
            others,
            "every single upload: all masks are lost",
            False,
            shares(1),
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
