"""Campaigns: N executions over all harnesses, in child processes whose address space is limited.

A child builds its corpora first, then allows itself HEADROOM more memory and not one byte beyond: a decoder that takes
more gets MemoryError, which is a finding like any other. Nothing is kept on disk; a finding is printed with what
replays it.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from fuzz.attempts import recorded_ring
from fuzz.book_harness import BOOKS, BookHarness
from fuzz.codec_harness import CodecHarness
from fuzz.dice import Dice
from fuzz.document_harness import harnesses as documents
from fuzz.doors import DOORS
from fuzz.harness import Finding, Harness, failure, named, shrunk
from fuzz.he_harness import harnesses as he
from fuzz.session_harness import AttemptHarness, ClientHarness, ServerHarness

HEADROOM: Final = 160 * 2**20  # bytes; one decode takes 50 MiB at most, the mutator and its input the rest
WARM_UP: Final = 20
MAX_FINDINGS: Final = 5  # different ones, per child
BATCH: Final = 200_000  # executions of one child

# Share of a campaign by cost: an attempt takes 30 ms, a decode 0.1 ms.
WEIGHTS: Final = {"codec/ClientFrame": 24.0, "codec/ServerFrame": 24.0, "session/server": 4.0, "session/client": 4.0,
                  "session/attempt": 0.05, "session/ring server": 0.4,
                  "session/ring client": 0.4, "document/statement": 0.1, "document": 1.0,
                  "book/attempt log": 0.02, "book": 0.15, "he": 0.5, "codec": 6.0}  # fmt: skip


def all_harnesses() -> tuple[Harness, ...]:
    """Every harness there is."""
    return (
        *(CodecHarness(door) for door in DOORS),
        ServerHarness(),
        ClientHarness(),
        AttemptHarness(),
        ServerHarness(recorded_ring, "session/ring server"),
        ClientHarness(recorded_ring, "session/ring client"),
        *documents(),
        *(BookHarness(book) for book in BOOKS),
        *he(),
    )


@dataclass
class Tally:
    """What came of some executions of one harness."""

    harness: str
    executions: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Count the executions of `other` as well."""
        self.executions += other.executions
        self.seconds += other.seconds
        self.outcomes.update(other.outcomes)
        known = {finding.error for finding in self.findings}
        self.findings += [finding for finding in other.findings if finding.error not in known]


def campaign(harness: Harness, seed: int, numbers: range, shrink: int = 400) -> Tally:
    """Run these executions here. One finding of each kind is kept, shrunk in at most `shrink` executions."""
    tally = Tally(harness.name)
    started = time.perf_counter()
    for number in numbers:
        dice = Dice(seed, harness.name, number)
        try:
            outcome = harness.run(dice)
        except Exception as error:
            outcome = f"FAILED: {named(error)}"
            if all(finding.error != named(error) for finding in tally.findings) and len(tally.findings) < MAX_FINDINGS:
                tally.findings.append(shrunk(harness, list(dice.draws), named(error), shrink))
        tally.outcomes[outcome] += 1
        tally.executions += 1
    tally.seconds = time.perf_counter() - started
    return tally


def limit_memory(headroom: int) -> None:
    """From now on this process may map `headroom` more bytes, for good."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmSize:"):
            limit = 1024 * int(line.split()[1]) + headroom
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            return
    raise OSError("no VmSize in /proc/self/status")


def shares(total: int, harnesses: Sequence[Harness]) -> dict[str, int]:
    """How many of `total` executions each harness gets: at least one."""
    weights = {h.name: WEIGHTS[h.name if h.name in WEIGHTS else h.name.split("/")[0]] for h in harnesses}
    return {name: max(1, round(total * weight / sum(weights.values()))) for name, weight in weights.items()}


def _child(name: str, seed: int, numbers: range) -> int:
    harness = next(h for h in all_harnesses() if h.name == name)
    for number in range(WARM_UP):
        failure(harness, Dice("warm-up", number))
    limit_memory(HEADROOM)
    tally = campaign(harness, seed, numbers)
    print(json.dumps({**asdict(tally), "outcomes": dict(tally.outcomes)}))
    return 0


def _start(name: str, seed: int, numbers: range) -> subprocess.Popen[bytes]:
    arguments = ["--child", name, str(seed), str(numbers.start), str(numbers.stop)]
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])


def _collected(name: str, process: "subprocess.Popen[bytes]") -> Tally:
    told, _ = process.communicate()
    if process.returncode != 0:  # killed, or out of memory outside every try
        finding = Finding(name, f"the process ended with status {process.returncode}", (), "its last batch is lost")
        return Tally(name, findings=[finding])
    raw: dict[str, Any] = json.loads(told)
    findings = [Finding(f["harness"], f["error"], tuple(f["draws"]), f["explanation"]) for f in raw["findings"]]
    return Tally(name, raw["executions"], raw["seconds"], Counter(raw["outcomes"]), findings)


def _batches(total: int, harnesses: Sequence[Harness]) -> Iterator[tuple[str, range]]:
    for name, count in shares(total, harnesses).items():
        size = BATCH if name.startswith("codec") else max(1, BATCH // 20)
        yield from ((name, range(first, min(first + size, count))) for first in range(0, count, size))


def run_all(total: int, seed: int, processes: int, harnesses: Sequence[Harness]) -> dict[str, Tally]:
    """The whole campaign, at most `processes` children at a time."""
    tallies = {h.name: Tally(h.name) for h in harnesses}
    running: list[tuple[str, subprocess.Popen[bytes]]] = []
    for name, numbers in _batches(total, harnesses):
        if len(running) >= processes:
            done = running.pop(0)
            tallies[done[0]].add(_collected(*done))
        running.append((name, _start(name, seed, numbers)))
    for done in running:
        tallies[done[0]].add(_collected(*done))
    return tallies


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. 0: no finding; 1: findings, printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("executions", type=int, nargs="?", default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="harnesses whose name contains this")
    parser.add_argument("--child", nargs=4, metavar=("NAME", "SEED", "FIRST", "END"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        name, seed, first, end = options.child
        return _child(name, int(seed), range(int(first), int(end)))
    chosen = [h for h in all_harnesses() if options.only in h.name]
    started = time.perf_counter()
    tallies = run_all(options.executions, options.seed, max(1, options.processes), chosen)
    elapsed = time.perf_counter() - started
    findings = [finding for tally in tallies.values() for finding in tally.findings]
    for tally in tallies.values():
        rate = tally.executions / tally.seconds if tally.seconds else 0.0
        print(f"{tally.harness:<24} {tally.executions:>10} executions {rate:>9.0f}/s, {len(tally.findings)} findings")
        for outcome, count in tally.outcomes.most_common(12):
            print(f"    {count:>10} {outcome}")
    total = sum(tally.executions for tally in tallies.values())
    speed = f"{total} executions in {elapsed:.0f} s ({total / elapsed:.0f}/s)"
    print(f"{speed}, {len(findings)} findings, seed {options.seed}")
    for finding in findings:
        print(f"\nFINDING in {finding.harness}: {finding.error}\n  replay: Dice(replay={list(finding.draws)})")
        print("\n".join(f"  {line}" for line in finding.explanation.splitlines()))
    return 1 if findings else 0
