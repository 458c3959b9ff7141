"""The rule of the ring on small rings, over every placement of corrupt, lost and surviving members: Z3.

The counting in `counting.py` says that nobody is one-sided; here the graph itself is cut: is there an assignment that
keeps every check, and a set of honest members of U3, neither empty nor all of them, without an edge to the others?
"""

from z3 import And, Bool, BoolRef, Implies, Not, Or, PbGe, PbLe


def cut(size: int, degree: int, bound: int, threshold: int) -> list[BoolRef]:
    """What an attacker needs on a ring of `size` members. Places are ring positions: the order is a renaming."""
    half = degree // 2
    corrupt = [Bool(f"corrupt{i}") for i in range(size)]
    shared = [Bool(f"shared{i}") for i in range(size)]
    masked = [Bool(f"masked{i}") for i in range(size)]
    side = [Bool(f"side{i}") for i in range(size)]
    near = [[(i + d) % size for d in range(-half, half + 1) if d] for i in range(size)]
    live = [And(masked[i], Not(corrupt[i])) for i in range(size)]
    given = []
    for i in range(size):
        given.append(Implies(masked[i], shared[i]))
        given.append(Implies(Not(corrupt[i]), PbLe([(corrupt[j], 1) for j in near[i]], bound)))
        given.append(Implies(shared[i], PbGe([(masked[j], 1) for j in near[i]], threshold)))
        given += [Implies(And(live[i], live[j]), side[i] == side[j]) for j in near[i]]
    given.append(Or([And(live[i], side[i]) for i in range(size)]))
    given.append(Or([And(live[i], Not(side[i])) for i in range(size)]))
    return given


def claims() -> list[tuple[str, str, list[list[BoolRef]], bool]]:
    """Every size up to 3k + 2, where the extremal cut has room, for degrees 2 to 8 and every bound."""
    found = []
    for degree in (2, 4, 6, 8):
        for bound in range(degree // 2):
            rule, largest = degree // 2 + bound + 1, 3 * degree + 2
            all_sizes = [cut(size, degree, bound, rule) for size in range(degree + 1, largest + 1)]
            name = f"ring falls apart, k={degree} a={bound}"
            found.append((name, f"as specified, {degree + 1}..{largest} members", all_sizes, True))
            found.append((name, "threshold one lower", [cut(largest, degree, bound, rule - 1)], False))
    return found
