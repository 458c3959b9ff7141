"""Deterministic checks of ledger, budget and accountant: through the real book on a real disk, in a folder of its own.

The accountant is held against figures of others (design page DP, section 4: dp-accounting 0.6 and PRV) and against the
closed form without sampling, computed here. The ledger is held against its rules, SPEC 10.5.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from dp import accountant, budget
from dp.audit import Finding
from dp.audit_canaries import gaussian_epsilon
from dp.budget import Budget
from dp.errors import BudgetExceededError, LedgerError, PrivacyError
from dp.events import SampledGaussian, parse
from dp.ledger import Charge, PrivacyLedger

# (q, σ, T, δ) -> ε by PLD, to two places.
REFERENCE: Final = (
    (Fraction(1, 20), Fraction(1), 200, "0.00001", 4.77),
    (Fraction(1, 50), Fraction(4, 5), 500, "0.000001", 5.44),
    (Fraction(1), Fraction(5), 20, "0.00001", 3.85),
)
COARSE: Final = 100
_GRID: Final = 10**6  # clip steps of the reference points: fine enough that the lattice does not show
_BLIND = "faults outside the ledger's and the accountant's own code"


@dataclass(frozen=True, slots=True)
class Claim:
    """What a pipeline says it spends.

    Attributes:
        charge: Makes the charge of (round, attempt): the production function.
        budget: As signed.
        running: What one attempt really runs, by observation: steps, q, noise and clip.
        max_records: Public upper bound over all silos.
    """

    charge: Callable[[int, int], Charge]
    budget: Budget
    running: SampledGaussian
    max_records: int


def check_accountant(claim: Claim) -> list[Finding]:
    """Charged event against what runs, reference figures, δ."""
    charged = claim.charge(1, 0).mechanism
    largest_delta = Decimal(1) / (10 * claim.max_records)  # SPEC 2.3; the default is a tenth of it
    return [
        Finding(
            "accountant: the charge is what runs",
            _event(charged),
            _event(claim.running),
            charged == claim.running,
            "steps that are not counted, another q, noise or clip in the ledger than in training",
            _BLIND,
        ),
        _reference(),
        Finding(
            "accountant: δ against the number of records",
            f"{claim.budget.delta:f}",
            f"at most {largest_delta:f}",
            claim.budget.delta <= largest_delta,
            "a δ that allows to publish a record",
            "an upper bound on the records that is too small",
        ),
    ]


def _reference() -> Finding:
    worst, told = 0.0, []
    for q, sigma, steps, delta, expected in REFERENCE:
        event = SampledGaussian(steps, q, int(sigma * _GRID), _GRID)
        try:
            found = float(accountant.epsilon([event], Decimal(delta), prv=False).epsilon)
        except (PrivacyError, ValueError):  # the accountants disagree, or ">50"
            found = float("inf")
        closed = gaussian_epsilon(float(steps**0.5 / sigma), float(delta)) if q == 1 else expected
        worst = max(worst, abs(found - expected), abs(found - closed))
        told.append(f"{found:.3f}")
    return Finding(
        "accountant: reference figures",
        ", ".join(told),
        ", ".join(f"{row[4]}" for row in REFERENCE) + ", within .011",
        worst <= 0.011,
        "σ, δ, q, steps or adjacency taken wrong by the accountant",
        "errors that leave the reference points alone",
    )


def check_ledger(claim: Claim, folder: Path) -> list[Finding]:
    """Play rounds, attempts, restarts and the budget's end against the real ledger in `folder` (empty, ours alone)."""
    path = folder / "audit-ledger" / "ledger.db"
    book: Mapping[str, Any] = {"silo": "audit", "population": "none"}
    first, retry, second = claim.charge(1, 0), claim.charge(1, 1), claim.charge(2, 0)
    with PrivacyLedger.open(path, **book) as ledger:
        for charge in (first, first, retry, second):
            ledger.charge(charge)
        before = [c.key for c in ledger.charges()]
        forged = _refuses(LedgerError, lambda: ledger.charge(replace(first, event=_cheaper(first.event))))
    with PrivacyLedger.open(path, **book) as ledger:
        after = [c.key for c in ledger.charges()]
        chained = [row.seq for row in ledger.rows()]
        kept = after == before and parse(ledger.charges()[0].event) == first.mechanism if after else False
    expected = [first.key, retry.key, second.key]
    return [
        Finding(
            "ledger: every attempt is charged once",
            f"{len(before)} charges for 2 rounds, one of them retried",
            "3",
            before == expected,
            "a retry that costs nothing, a charge that counts twice",
            "an upload for which nobody asks the ledger: report verify",
        ),
        Finding(
            "ledger: a restart forgets nothing",
            f"{len(after)} of {len(before)} charges after reopening",
            "all, in one chain",
            kept and chained == list(range(len(expected) + 1)),
            "a budget that starts again with the process or the task",
            "a ledger file that was replaced by an older one",
        ),
        Finding(
            "ledger: a charge is never changed",
            "refused" if forged else "taken",
            "refused",
            forged,
            "a charge that is overwritten by a cheaper one",
            _BLIND,
        ),
        _budget_end(claim),
    ]


def _budget_end(claim: Claim) -> Finding:
    """The number of attempts at which the budget ends, by the accountant, and what `check_next` does just there."""
    mechanism, limit = claim.charge(1, 0).mechanism, claim.budget.epsilon

    def fits(attempts: int) -> bool:
        total = replace(mechanism, count=mechanism.count * attempts)
        return accountant.epsilon([total], claim.budget.delta, prv=False).within(limit)

    low, high = 0, 1
    while fits(high) and high < 4096:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    spent = [claim.charge(1, k) for k in range(low)]
    within = low == 0 or not _refuses(
        BudgetExceededError, lambda: budget.check_next(spent[:-1], spent[-1], claim.budget)
    )
    beyond = _refuses(BudgetExceededError, lambda: budget.check_next(spent, claim.charge(1, low), claim.budget))
    return Finding(
        "budget: the first attempt too many is refused",
        f"attempt {low}: {'taken' if within else 'refused'}, attempt {low + 1}: {'refused' if beyond else 'taken'}",
        f"{low} attempts cost at most ε = {limit}, {low + 1} cost more",
        within and beyond,
        "a budget that does not bind, or binds late",
        "a client that does not ask before it joins",
    )


def check_persons(silos: Mapping[str, Sequence[bytes]], most: int, named: bool) -> Finding:
    """At most `most` records (K of the claim) of one person, over all silos whose files this auditor holds.

    Args:
        silos: What tells persons apart, one entry a record: the person's key where files have one (`named`), or else
            the record itself. Equal records of different persons are common where records are coarse, so without keys
            equality is held against the pipeline only if it is rare, at most one record in `COARSE`.
        most: K.
        named: Whether the entries are persons' keys.
    """
    counts = Counter(record for records in silos.values() for record in records)
    beyond, total = sum(count - most for count in counts.values() if count > most), sum(counts.values())
    coarse = not named and beyond * COARSE > total
    blind = "files that this auditor does not hold; keys that differ for one person"
    if not named:
        blind = f"a person whose records differ; data of which more than one record in {COARSE} is equal to another"
    return Finding(
        "records: nobody is in the data too often",
        f"{beyond} {'records' if named else 'equal records'} too many, in {len(silos)} files"
        + ("; too many to tell persons apart by: give the files a column person" if coarse else ""),
        f"at most {most} of one {'person' if named else 'kind'}, within and over the files",
        beyond == 0 or coarse,
        "a person in two silos, or more often in one than is claimed",
        blind,
        private=True,
    )


def _refuses(error: type[PrivacyError], act: Callable[[], object]) -> bool:
    try:
        act()
    except error:
        return True
    return False


def _cheaper(event: Mapping[str, Any]) -> dict[str, Any]:
    m = parse(event)
    gaussian = {"kind": "discrete_gaussian", "noise_steps": 2 * m.noise_steps, "clip_steps": m.clip_steps}
    return {"kind": "self_composed", "count": m.count, "event": gaussian}


def _event(m: SampledGaussian) -> str:
    return f"{m.count} steps at q = {m.sampling_probability}, noise {m.noise_steps}, clip {m.clip_steps}"
