"""What every benchmark shares: timing side by side, bars, the JSON object, the table, the machine, peak memory.

A benchmark module builds a `Report` and hands it to `publish`. Its command line: ``--json`` prints one JSON object as
the last line, without it a table; ``--out FILE.json`` stores the object, and the table beside it as ``FILE.md``.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall-clock seconds of one contender, in the order of the repetitions; CPU seconds of the process beside them."""

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...] = ()

    @property
    def best(self) -> float:
        """The least disturbed repetition."""
        return min(self.seconds)

    @property
    def best_cpu(self) -> float:
        """The repetition that took least of the processor: on a busy machine the fairer figure for one thread."""
        return min(self.cpu_seconds)

    @property
    def median(self) -> float:
        """The middle repetition."""
        return statistics.median(self.seconds)


@dataclass(frozen=True, slots=True)
class Bar:
    """One promise: `value` is at most `limit`, or at least, if `at_least`."""

    name: str
    value: float
    limit: float
    at_least: bool = False
    unit: str = ""
    reason: str = ""  # why it is missed, where that is known

    @property
    def holds(self) -> bool:
        """Whether the promise is kept; NaN never keeps one."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def as_json(self) -> dict[str, Any]:
        """name, value, limit, holds, and what there is besides."""
        out: dict[str, Any] = {"name": self.name, "value": round(self.value, 4), "limit": self.limit}
        out |= {"sense": ">=" if self.at_least else "<=", "unit": self.unit, "holds": self.holds}
        return out | ({"reason": self.reason} if self.reason and not self.holds else {})

    def line(self) -> str:
        """One line for people."""
        sense, unit = (">=" if self.at_least else "<="), f" {self.unit}" if self.unit else ""
        verdict = "holds" if self.holds else "MISSED" + (f" ({self.reason})" if self.reason else "")
        return f"{self.name}: {self.value:.4g}{unit}, bar {sense} {self.limit:g}{unit}: {verdict}"


@dataclass(slots=True)
class Report:
    """The result of one benchmark.

    Attributes:
        benchmark: Module name.
        title: Heading of the table.
        what: What is measured and how, in a few sentences, so that a reader can judge it.
        repetitions: Of each contender.
        rows: One mapping per row of the table, the same keys in each.
        bars: Promises.
        packages: Distributions whose versions matter.
        extra: Further keys of the JSON object.
    """

    benchmark: str
    title: str
    what: str
    repetitions: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    packages: Sequence[str] = ("numpy", "cryptography")
    extra: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "benchmark": self.benchmark,
            "what": self.what,
            "versions": versions(self.packages),
            "machine": machine(),
            "repetitions": self.repetitions,
            "rows": self.rows,
            "bars": [bar.as_json() for bar in self.bars],
            **self.extra,
        }

    def table(self) -> str:
        """Markdown: heading, text, rows, bars."""
        about = ", ".join(f"{name} {text}" for name, text in versions(self.packages).items())
        place = machine()
        lines = [f"# {self.title}", "", self.what, ""]
        lines += [f"{place['cpu']}, {place['cores']} cores, {place['system']}; {about}.", ""]
        if self.rows:
            keys = list(self.rows[0])
            lines += ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
            lines += ["| " + " | ".join(_cell(row.get(key, "")) for key in keys) + " |" for row in self.rows]
            lines.append("")
        lines += [f"* {bar.line()}" for bar in self.bars]
        return "\n".join(lines).rstrip() + "\n"


def side_by_side(
    contenders: Mapping[str, Callable[[], object]], repetitions: int, *, warm_up: bool = True
) -> dict[str, Timing]:
    """Time every contender in turn, `repetitions` times: what disturbs the machine for a while disturbs all of them."""
    if warm_up:
        for run in contenders.values():
            run()
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, run in contenders.items():
            started, before = time.perf_counter(), time.process_time()
            run()
            cpu[name].append(time.process_time() - before)
            wall[name].append(time.perf_counter() - started)
    return {name: Timing(tuple(wall[name]), tuple(cpu[name])) for name in contenders}


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Python, OpenSSL as the ciphers use it, and the named distributions."""
    from cryptography.hazmat.backends.openssl import backend

    text = backend.openssl_version_text().split()
    return {"python": platform.python_version(), "openssl": text[1]} | {name: version(name) for name in packages}


def machine() -> dict[str, Any]:
    """Processor, cores, memory and system; nothing that names the machine."""
    info = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = set((re.search(r"^flags\s*:\s*(.+)$", info, re.MULTILINE) or [""] * 2)[1].split())
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "features": sorted(flags & {"aes", "vaes", "avx2", "avx512f", "sha_ni"}),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 2),
    }


def memory_kib() -> dict[str, int]:
    """This process: ``now`` (VmRSS) and ``peak`` (VmHWM, since start or `reset_peak`), in KiB. Linux only."""
    status = _read("/proc/self/status")
    found = {key: re.search(rf"^{name}:\s*(\d+) kB", status, re.MULTILINE) for key, name in _FIELDS.items()}
    return {key: int(match[1]) for key, match in found.items() if match}


def reset_peak() -> None:
    """Start VmHWM anew at the present size. Linux only."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def in_child(module: str, *arguments: str, env: Mapping[str, str] = ONE_THREAD) -> dict[str, Any]:
    """Run ``python -m module arguments`` in a fresh process and give the JSON object of its last line."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def parser(text: str | None, repetitions: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    made.add_argument("--out", type=Path, help="store the JSON object here and the table beside it as .md")
    made.add_argument("--repetitions", type=int, default=repetitions, help="of each contender (default %(default)s)")
    return made


def publish(report: Report, options: argparse.Namespace) -> None:
    """Print and store as `options` of `parser` say."""
    value = report.as_json()
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        options.out.with_suffix(".md").write_text(report.table(), encoding="utf-8")
    print(json.dumps(value, ensure_ascii=False) if options.json else report.table(), flush=True)


_FIELDS = {"now": "VmRSS", "peak": "VmHWM"}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
