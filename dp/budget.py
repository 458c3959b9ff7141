"""Refusal before the round: the next charge must still fit into the budget of its silo and population."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from dp.accountant import CEILING, Accounting, epsilon, in_unit
from dp.errors import BudgetExceededError, UnsupportedMechanismError
from dp.events import Unit
from dp.ledger import Charge

UNITS: dict[Unit, str] = {"record": "record, add/remove", "client": "client, zero-out"}  # stands beside every ε


@dataclass(frozen=True, slots=True)
class Budget:
    """What one record may ever spend in one silo: ε at δ (adjacency: add or remove one); or, under protocol C, what the
    whole client may (adjacency: zero-out).

    Raises UnsupportedMechanismError for a budget that protects nobody or is no number.
    """

    epsilon: Decimal
    delta: Decimal
    unit: Unit = "record"

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= CEILING or not 0 < self.delta < 1:
            raise UnsupportedMechanismError(
                "this budget cannot be enforced",
                found=f"ε = {self.epsilon} at δ = {self.delta}",
                expected=f"0 < ε <= {CEILING} and 0 < δ < 1",
            )


def check_next(charges: Iterable[Charge], next_charge: Charge, budget: Budget, rounds: int = 1) -> Accounting:
    """Account for the ledger plus the next charge, before anything is drawn, trained or sent.

    The decision is the certified ε by PLD. A charge that stands in the ledger already is not counted twice. With
    `rounds`, for as many charges like the next one: a task that the budget would stop half-way is refused before its
    first round, while nothing is spent for a model that nobody gets.

    Returns:
        What will have been spent after the charge.

    Raises:
        BudgetExceededError: It would exceed the budget. AccountingError: the cross-checks fail.
        UnsupportedMechanismError: a client's budget over a ledger with record-level charges.
    """
    spent = list(charges)
    after = spent if any(c.key == next_charge.key for c in spent) else [*spent, *[next_charge] * rounds]
    result = epsilon(in_unit(after, budget.unit), budget.delta, prv=False)
    if not result.within(budget.epsilon):
        now = epsilon(in_unit(spent, budget.unit), budget.delta, prv=False)
        at = f"at δ = {budget.delta:f}, {UNITS[budget.unit]}"
        raise BudgetExceededError(
            f"round {next_charge.round}, attempt {next_charge.attempt} would exceed the privacy budget"
            if rounds == 1
            else f"the {rounds} rounds of {next_charge.task} would exceed the privacy budget",
            found=f"spent ε = {now.epsilon}, with {'this round' if rounds == 1 else 'them'} ε = {result.epsilon} {at}",
            expected=f"at most ε = {budget.epsilon} {at}",
            do="stop training on these data; a larger budget needs a new manifest signed by the owner",
        )
    return result
