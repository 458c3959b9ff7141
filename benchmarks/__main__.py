"""All benchmarks, one after the other, into one folder: what `make bench` runs.

    python -m benchmarks [--out benchmarks/results] [--only NAME,NAME] [--quick]

Each runs in a process of its own and writes NAME.json and NAME.md; figures follow. A bar that is missed is printed and
changes the exit status to 1; a benchmark that fails changes it to 2. `--quick` takes small sizes: everything runs, and
no figure means anything.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.bench import ROOT

QUICK: dict[str, tuple[str, ...]] = {
    "masking": ("--length", "30000", "--repetitions", "1"),
    "privacy": (
        "--draws",
        "100000",
        "--points",
        "5",
        "--faults",
        "3",
        "--clean",
        "1",
        "--rounds",
        "300000",
        "--repetitions",
        "1",
    ),
    "peers": ("--clients", "5", "--length", "3000", "--repetitions", "1"),
    "round": ("--length", "30000", "--repetitions", "1"),
    "heart": ("--seeds", "1", "--rounds", "2"),
    "bank": ("--seeds", "1", "--rounds", "2"),
    "scale": ("--clients", "5,20", "--lengths", "1000,10000"),
    "rotation": ("--length", "2000", "--repetitions", "1"),
    "training": ("--batch", "8", "--steps", "1", "--repetitions", "1"),
    "he": ("--clients", "3", "--length", "13000"),
}


def run(name: str, folder: Path, quick: bool) -> int:
    """0: all bars hold; 1: one is missed; 2: the benchmark failed. Says which."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", "--out", str(folder / f"{name}.json")]
    done = subprocess.run(command + list(QUICK[name] if quick else ()), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"{name}: FAILED with exit status {done.returncode}", flush=True)
        return 2
    bars = json.loads(done.stdout.strip().splitlines()[-1])["bars"]
    for bar in bars:
        verdict = "holds" if bar["holds"] else f"MISSED {bar.get('reason', '')}".rstrip()
        print(f"{name}: {bar['name']}: {bar['value']:.4g} {bar['sense']} {bar['limit']:g}: {verdict}", flush=True)
    return 0 if all(bar["holds"] for bar in bars) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--only", default=",".join(QUICK))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    worst = max(run(name, folder, options.quick) for name in options.only.split(","))
    for figure in plots.draw(folder):
        print(f"figure: {figure.name}")
    return worst


if __name__ == "__main__":
    sys.exit(main())
