"""`python -m tests.simulation N [--seed S] [--processes P]`: N schedules; exit 1 on a violation or a gap."""

import argparse
import hashlib
import sys

from tests.simulation.campaign import Tally, explain, run, run_range
from tests.simulation.coverage import SOMETIMES, never
from tests.simulation.fast import memoised
from tests.simulation.schedule import drawn
from tests.simulation.world import play

ENOUGH = 10_000  # schedules after which everything that happens sometimes must have happened


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("schedules", type=int, nargs="?", default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="first seed; the others follow")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--show", type=int, metavar="SEED", help="play one seed and print what happens")
    parser.add_argument("--part", type=int, nargs=2, metavar=("FIRST", "COUNT"), help=argparse.SUPPRESS)
    parser.add_argument("--digest", type=int, metavar="COUNT", help="hash of the traces of the first COUNT seeds")
    options = parser.parse_args()
    if options.part:
        for tally in run_range(*options.part):
            print(tally.to_json(), flush=True)
        return 0
    if options.show is not None:
        with memoised():
            outcome = play(drawn(options.show), tracing=True)
        print("\n".join(outcome.log))
        print(f"{outcome.events} events, {len(outcome.taken)} choices; {outcome.violation or 'no violation'}")
        return int(outcome.violation is not None)
    if options.digest is not None:
        hashed = hashlib.sha256()
        with memoised():
            for seed in range(options.seed, options.seed + options.digest):
                hashed.update("\n".join(play(drawn(seed), tracing=True).log).encode())
        print(hashed.hexdigest())
        return 0
    return campaign(options.seed, options.schedules, options.processes)


def campaign(seed: int, schedules: int, processes: int) -> int:
    """Run it, print its table; the exit code."""
    total = Tally()
    for tally in run(seed, schedules, processes):
        total.add(tally)
        speed = total.schedules / total.seconds if total.seconds else 0.0
        print(
            f"\r{total.schedules}/{schedules} schedules, {speed:.0f}/s per process, {len(total.found)} violations",
            end="",
            file=sys.stderr,
            flush=True,
        )
    print(file=sys.stderr)
    for name, count in sorted(total.counters.items()):
        print(f"{count:>9}  {name}")
    speed = total.schedules / total.seconds if total.seconds else 0.0
    print(
        f"{total.schedules} schedules from seed {seed}, {total.events} events, {speed:.1f} schedules/s per process, "
        f"{processes} processes"
    )
    gaps = never(total.counters) if total.schedules >= ENOUGH else []
    for gap in gaps:
        print(f"never happened: {gap}")
    seen: set[str] = set()
    for found, invariant, detail in sorted(total.found):
        print(f"VIOLATION seed {found}: {detail}")
        if invariant not in seen:
            seen.add(invariant)
            test, outcome = explain(found, invariant)
            print("\n".join(outcome.log[-60:]))
            print(test)
    print(
        f"{len(total.found)} violations, {len(SOMETIMES) - len(gaps)} of {len(SOMETIMES)} kinds of events seen"
        if total.schedules >= ENOUGH
        else f"{len(total.found)} violations"
    )
    return int(bool(total.found or gaps))


if __name__ == "__main__":
    sys.exit(main())
