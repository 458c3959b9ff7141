"""Refusal before the round: the next charge must still fit into the budget of its silo and population."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from dp.accountant import CEILING, Accounting, epsilon
from dp.errors import BudgetExceededError, UnsupportedMechanismError
from dp.ledger import Charge


@dataclass(frozen=True, slots=True)
class Budget:
    """What one record may ever spend in one silo: ε at δ (unit: record; adjacency: add or remove one).

    Raises UnsupportedMechanismError for a budget that protects nobody or is no number.
    """

    epsilon: Decimal
    delta: Decimal

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= CEILING or not 0 < self.delta < 1:
            raise UnsupportedMechanismError(
                "this budget cannot be enforced",
                found=f"ε = {self.epsilon} at δ = {self.delta}",
                expected=f"0 < ε <= {CEILING} and 0 < δ < 1",
            )


def check_next(charges: Iterable[Charge], next_charge: Charge, budget: Budget) -> Accounting:
    """Account for the ledger plus the next charge, before anything is drawn, trained or sent.

    The decision is the certified ε by PLD. A charge that stands in the ledger already is not counted twice.

    Returns:
        What will have been spent after the charge.

    Raises:
        BudgetExceededError: It would exceed the budget. AccountingError: the cross-checks fail.
    """
    spent = list(charges)
    after = spent if any(c.key == next_charge.key for c in spent) else [*spent, next_charge]
    result = epsilon(after, budget.delta, prv=False)
    if not result.within(budget.epsilon):
        now = epsilon(spent, budget.delta, prv=False)
        at = f"at δ = {budget.delta:f}, record, add/remove"
        raise BudgetExceededError(
            f"round {next_charge.round}, attempt {next_charge.attempt} would exceed the privacy budget",
            found=f"spent ε = {now.epsilon}, with this round ε = {result.epsilon} {at}",
            expected=f"at most ε = {budget.epsilon} {at}",
            do="stop training on these data; a larger budget needs a new manifest signed by the owner",
        )
    return result
