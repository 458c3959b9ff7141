"""The counting arguments of SPEC 4, for all numbers at once: Z3 over unbounded integers.

Each claim is a function that returns what an attacker needs. The claim holds if that has no solution; each broken
variant must have one.
"""

from z3 import BoolRef, If, Int, IntNumRef, Ints, Solver, sat, unsat

Constraints = list[BoolRef]


def solve(constraints: Constraints) -> str | None:
    """None if there is no solution, else the solution as text. An undecided query is an error, not an answer."""
    solver = Solver()
    solver.add(*constraints)
    answer = solver.check()
    if answer == unsat:
        return None
    if answer != sat:
        raise RuntimeError(f"Z3 did not decide: {solver.reason_unknown()}")
    model = solver.model()
    values = {str(d): model[d] for d in model.decls()}
    return ", ".join(f"{name}={value}" for name, value in sorted(values.items()) if isinstance(value, IntNumRef))


def people() -> tuple[Int, Int, Int, Constraints]:
    """n invited, bound C, c really corrupt."""
    n, bound, c = Ints("n C c")
    return n, bound, c, [n >= 3, bound >= 0, bound <= n - 2, c >= 0, c <= bound]


def both_secrets(lower: int = 0, both_kinds: bool = False) -> Constraints:
    """t shares of the self seed and t of the mask key of one client, on the complete graph. SPEC 4.3."""
    n, bound, c, given = people()
    self_shares, key_shares, t = Ints("self key t")
    one_kind = [self_shares <= n - c, key_shares <= n - c] if both_kinds else [self_shares + key_shares <= n - c]
    given += [t == (n + bound) / 2 + 1 - lower, self_shares >= 0, key_shares >= 0, *one_kind]
    return [*given, self_shares + c >= t, key_shares + c >= t]


def two_sets(lower: int = 0, signs_twice: bool = False, of_u1: bool = False, other_cohort: bool = False) -> Constraints:
    """q signatures on each of two sets in one round. SPEC 4.4."""
    n, bound, c, given = people()
    first, second, q, m, roster = Ints("first second q U1 roster")
    given += [m >= bound + 2, m <= n, q == ((m if of_u1 else n) + bound) / 2 + 1 - lower]
    given += [roster >= n, roster == n if not other_cohort else roster > n]
    given += [first >= 0, second >= 0, first <= n - c, second <= n - c]
    given += [] if signs_twice else [first + second <= roster - c]
    return [*given, first + c >= q, second + c >= q]


def alone_in_the_sum(lower: int = 0) -> Constraints:
    """A released set with fewer than two honest members. SPEC 4.6."""
    _, bound, c, given = people()
    honest, cohort = Ints("honest min_cohort")
    given += [cohort == If(bound > 1, bound, 1) + 2 - lower, honest >= 0]
    return [*given, honest + c >= cohort, honest < 2]


def convicted_though_honest(lower: int = 0) -> Constraints:
    """More than a complaints about an honest dealer: complaints of honest holders are true. SPEC 7.4."""
    a, c, complaints = Ints("a c complaints")
    return [a >= 0, c >= 0, c <= a, complaints <= c, complaints > a - lower]


def ring() -> tuple[Int, Int, Int, Int, Constraints]:
    """Degree k = 2 * half, bound a, c <= a corrupt neighbours of one honest client."""
    half, a, c = Ints("half a c")
    return half, 2 * half, a, c, [half >= 1, a >= 0, a <= half - 1, c >= 0, c <= a]


def both_secrets_on_the_ring(rule: bool = True) -> Constraints:
    """As `both_secrets`, with the threshold of the ring or with the largest one that 2t > k + a excludes."""
    half, k, a, c, given = ring()
    self_shares, key_shares, t = Ints("self key t")
    given += [t == (half + a + 1 if rule else (k + a) / 2), self_shares >= 0, key_shares >= 0]
    return [*given, self_shares + key_shares <= k - c, self_shares + c >= t, key_shares + c >= t]


def edge_of_a_component(lower: int = 0) -> Constraints:
    """An honest member of U3 with no honest neighbour in U3 on one side. SPEC 4.7: then the ring may fall apart."""
    half, _, a, c, given = ring()
    left, t = Ints("left t")
    given += [t == half + a + 1 - lower, left >= 0, left <= half]
    return [*given, left + c >= t]


def split_view(lower: int = 0, counts_dealers: bool = True, rule: bool = True) -> Constraints:
    """A client that saw another U2: its self seed is rebuilt by its answering neighbours, and none of them is a dealer
    in its own view, so no mask of its stays unknown. SPEC 4.7."""
    half, k, a, c, given = ring()
    answering, dealers, t = Ints("answering dealers t")
    given += [t == (half + a + 1 if rule else (k + a) / 2) - lower, answering >= 0, answering <= k - c]
    given += [dealers >= (t if counts_dealers else 0), dealers <= k - answering]
    return [*given, answering + c >= t]


# claim, variant, what the attacker needs, whether the claim holds
CLAIMS = [
    ("both secrets, complete graph", "as specified", [both_secrets()], True),
    ("both secrets, complete graph", "threshold one lower", [both_secrets(lower=1)], False),
    ("both secrets, complete graph", "clients answer both kinds", [both_secrets(both_kinds=True)], False),
    ("two sets in one round", "as specified", [two_sets()], True),
    ("two sets in one round", "quorum one lower", [two_sets(lower=1)], False),
    ("two sets in one round", "spent not kept", [two_sets(signs_twice=True)], False),
    ("two sets in one round", "quorum from |U1|", [two_sets(of_u1=True)], False),
    ("two sets in one round", "another cohort", [two_sets(other_cohort=True)], False),
    ("one honest client in the sum", "as specified", [alone_in_the_sum()], True),
    ("one honest client in the sum", "min_cohort one lower", [alone_in_the_sum(lower=1)], False),
    ("honest dealer convicted", "as specified", [convicted_though_honest()], True),
    ("honest dealer convicted", "a complaints suffice", [convicted_though_honest(lower=1)], False),
    ("both secrets, ring", "as specified", [both_secrets_on_the_ring()], True),
    ("both secrets, ring", "2t = k + a", [both_secrets_on_the_ring(rule=False)], False),
    ("one-sided member of U3, ring", "as specified", [edge_of_a_component()], True),
    ("one-sided member of U3, ring", "threshold one lower", [edge_of_a_component(lower=1)], False),
    ("split views of U2, ring", "as specified", [split_view()], True),
    ("split views of U2, ring", "dealers not counted", [split_view(counts_dealers=False)], False),
    ("split views of U2, ring", "2t = k + a", [split_view(rule=False)], False),
]
