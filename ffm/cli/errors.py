"""How errors look on a terminal: three lines, a stable code, an exit status. Never a traceback, never a secret."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import typer

from dp.errors import PrivacyError
from secagg.errors import SecAggError

EXIT_CODES = {
    "E1": 10,  # core: parameters, encoding
    "E2": 20,  # privacy: budget, ledger, accounting
    "E3": 30,  # identity, documents, transport
    "E4": 40,  # protocol
    "E5": 50,  # models, adapters, data, training process
    "E6": 60,  # report
    "E7": 70,  # audit: a violation, or nothing to audit
}
"""Exit status by the first digit of the error code; 2 wrong usage, 74 a closed output, 120 Ctrl-C, 1 a bug of ours."""


def exit_code(code: str) -> int:
    """Documented exit status of an error code, below 125."""
    return EXIT_CODES.get(code[:2], 1)


def as_json(error: SecAggError | PrivacyError) -> dict[str, Any]:
    """The same three lines as an object."""
    return {
        "error": error.code,
        "what": error.what,
        "found": None if error.found is None else str(error.found),
        "expected": None if error.expected is None else str(error.expected),
        "do": error.do,
    }


def render(error: SecAggError | PrivacyError) -> str:
    """`error CODE what`, then found and expected, then what to do."""
    lines = [f"error {error.code} {error.what}"]
    if error.found is not None or error.expected is not None:
        found = "" if error.found is None else f"found {error.found}"
        expected = "" if error.expected is None else f"expected {error.expected}"
        lines.append("  " + ", ".join(part for part in (found, expected) if part))
    if error.do:
        lines.append(f"  do    {error.do}")
    return "\n".join(lines)


@contextlib.contextmanager
def reported(format_: str = "text") -> Iterator[None]:
    """Turn the project's errors into three lines (or one JSON object) on stderr and an exit status."""
    try:
        yield
    except (SecAggError, PrivacyError) as error:
        print(json.dumps(as_json(error)) if format_ == "json" else render(error), file=sys.stderr)
        raise typer.Exit(exit_code(error.code)) from None
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # The reader of our output went away (`secagg ... | head`); point stdout at nothing so that exit is quiet.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(74) from None
        refused = SecAggError(
            "a file or folder cannot be used",
            found=f"{error.filename}: {error.strerror}" if error.filename else error.strerror,
            expected="a path that this user may read and write",
            do="check the path, its permissions and the free space",
            code="E323",
        )
        print(json.dumps(as_json(refused)) if format_ == "json" else render(refused), file=sys.stderr)
        raise typer.Exit(exit_code(refused.code)) from None
    except KeyboardInterrupt:
        print("interrupted: what was charged stays charged, nothing else was kept", file=sys.stderr)
        raise typer.Exit(120) from None
