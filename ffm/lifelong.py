"""How well a model lives: average accuracy, forgetting, forward and backward transfer, from one table of scores.

`table[i][j]`: the score after period i on the test records of period j; row 0 is the model before any training, so row
i is the model after i periods, and column j - 1 belongs to period j. Definitions:

- average accuracy, backward and forward transfer: Lopez-Paz and Ranzato, "Gradient episodic memory for continual
  learning", NeurIPS 2017
- forgetting: Chaudhry et al., "Riemannian walk for incremental learning", ECCV 2018
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Table = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Lifelong:
    """The four figures; NaN where there is one period only.

    Attributes:
        average: Mean over the periods of the last row: (1/T) Σ_j R[T][j].
        forgetting: Mean over all periods but the last of (the best score that any earlier row had) minus (the last
            row's): (1/(T-1)) Σ_{j<T} (max_{1<=i<T} R[i][j] - R[T][j]). Below zero: later periods helped.
        backward: (1/(T-1)) Σ_{j<T} (R[T][j] - R[j][j]).
        forward: (1/(T-1)) Σ_{j>1} (R[j-1][j] - R[0][j]): what earlier periods did for one that is still to come.
    """

    average: float
    forgetting: float
    backward: float
    forward: float


def lifelong(table: Table) -> Lifelong:
    """The figures of one table; periods without a score (NaN: no test records there) are left out of every mean.

    Scores are better when larger. Raises ValueError unless the table has one row more than columns.
    """
    periods = len(table) - 1
    if periods < 1 or any(len(row) != periods for row in table):
        raise ValueError(f"{len(table)} rows of {[len(row) for row in table]} scores")
    last, earlier = table[periods], range(periods - 1)
    return Lifelong(
        average=_mean(list(last)),
        forgetting=_mean([max(table[i][j] for i in range(1, periods)) - last[j] for j in earlier]),
        backward=_mean([last[j] - table[j + 1][j] for j in earlier]),
        forward=_mean([table[j][j] - table[0][j] for j in range(1, periods)]),
    )


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
