"""Check every model and every broken variant of it: `make models`.

A model that fails, or a broken variant that does not, ends the run with status 1: a check that cannot fail shows
nothing. Z3 holds where an attacker's needs have no solution; Spin holds where no reachable state breaks an assertion.
Needs z3-solver (constraints/models.txt), Spin 6.5 and a C compiler.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import counting
import ring

HERE = Path(__file__).parent
TIMEOUT = 300  # seconds for one search; the slowest takes about ten
MISSING = """error: {program} is not installed
found:    no {program} on the PATH
expected: Spin 6.5 or newer and a C compiler
do:       apt-get install spin gcc (Debian, Ubuntu), or get Spin from https://spinroot.com"""

# file, variant, macros, whether its assertions hold
SPIN = [
    ("attempt.pml", "as specified", "", True),
    ("attempt.pml", "certificate ignored: the threshold alone", "NO_CERTIFICATE", True),
    ("attempt.pml", "certificate ignored, threshold one lower", "NO_CERTIFICATE T_LOW", False),
    ("attempt.pml", "quorum one lower", "Q_LOW", False),
    ("attempt.pml", "signs before spent is durable", "SIGN_FIRST", False),
    ("attempt.pml", "answers both kinds", "BOTH_KINDS", False),
    ("attempt.pml", "never spent", "FORGETS_SPENT", False),
    ("ledger.pml", "as specified", "", True),
    ("ledger.pml", "quorum one lower", "Q_LOW", False),
    ("ledger.pml", "signs before the row is durable", "SIGN_FIRST", False),
    ("ledger.pml", "client adopts a lower head", "ANY_HEAD", False),
    ("ledger.pml", "never spent", "FORGETS_SPENT", False),
    ("rewind.pml", "as specified", "", True),
    ("rewind.pml", "server goes on from a lower head", "ADOPT_LOWER", False),
    ("rewind.pml", "quorum one lower", "Q_LOW", False),
    ("rewind.pml", "client forgets what it signed", "NOT_DURABLE", False),
]


def search(model: str, macros: str) -> tuple[bool, str]:
    """(no violation, states) of one exhaustive search. A search that is cut short is an error."""
    with tempfile.TemporaryDirectory() as folder:
        for file in (model, "tree.inc"):
            shutil.copy(HERE / file, folder)
        run(folder, "spin", *(f"-D{macro}" for macro in macros.split()), "-a", model)
        run(folder, "cc", "-O2", "-w", "-DSAFETY", "-DMEMLIM=2048", "-o", "pan", "pan.c")
        output = run(folder, "./pan", "-m100000")
    if "assertion violated" in output:
        return False, "counterexample"
    if "errors: 0" not in output or "too small" in output or "Search not completed" in output:
        raise RuntimeError(f"{model} {macros}: the search was cut short\n{output}")
    states = next(line.split()[0] for line in output.splitlines() if "states, stored" in line)
    return True, f"{states} states"


def run(folder: str, *command: str) -> str:
    """Output of one command in `folder`; RuntimeError if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    """Print one line per model and variant; 0 if every outcome is the expected one."""
    for program in ("spin", "cc"):
        if shutil.which(program) is None:
            print(MISSING.format(program=program), file=sys.stderr)
            return 2
    wrong = count = 0
    print(f"{'tool':5} {'claim':44} {'variant':42} {'must':6} {'outcome':8} {'seconds':>7}")

    def line(tool: str, claim: str, variant: str, expected: bool, held: bool, detail: str, since: float) -> None:
        nonlocal wrong, count
        outcome = "holds" if held else "fails"
        must = "hold" if expected else "fail"
        mark = "" if held == expected else "  <-- WRONG"
        seconds = time.monotonic() - since
        print(f"{tool:5} {claim:44} {variant:42} {must:6} {outcome:8} {seconds:7.1f}  {detail}{mark}", flush=True)
        wrong, count = wrong + (held != expected), count + 1

    for claim, variant, needs, expected in counting.CLAIMS + ring.claims():
        since = time.monotonic()
        solutions = [solution for need in needs if (solution := counting.solve(need)) is not None]
        line("Z3", claim, variant, expected, not solutions, "".join(solutions[:1]), since)
    for model, variant, macros, expected in SPIN:
        since = time.monotonic()
        held, detail = search(model, macros)
        line("Spin", model, variant, expected, held, detail, since)
    print(f"{count} checks, {wrong} with the wrong outcome")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
