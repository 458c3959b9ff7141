"""Output: results to stdout, progress to stderr; text for people, JSON lines for programs."""

import enum
import json
import sys
import warnings
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dp.budget import UNITS


class Format(enum.StrEnum):
    """How a command prints."""

    text = "text"
    json = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="text for people, json for programs")]


class Output:
    """What a command prints with. Events are progress: stderr lines as text, stdout lines as JSON."""

    def __init__(self, format_: Format) -> None:
        self.format = format_
        self._last_waiting = ""

    @property
    def is_json(self) -> bool:
        """Whether a program reads this."""
        return self.format is Format.json

    def event(self, event: dict[str, Any]) -> None:
        """One progress event; the same waiting state is told once."""
        if self.is_json:
            print(json.dumps(event), flush=True)
            return
        line = describe(event)
        if event["event"] == "waiting":
            if line == self._last_waiting:
                return
            self._last_waiting = line
        if line:
            print(line, file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Progress for people; nothing in JSON."""
        if not self.is_json:
            print(line, file=sys.stderr, flush=True)

    def result(self, value: dict[str, Any], lines: str | Table) -> None:
        """The command's result."""
        if self.is_json:
            print(json.dumps(value), flush=True)
        else:
            Console(soft_wrap=True, highlight=False).print(lines)


def quiet_libraries() -> None:
    """Silence two true remarks of torch and transformers about what is intended here; before any thread is started."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")


def describe(event: dict[str, Any]) -> str:
    """One line for a person, or nothing for what only programs want."""
    where = f"round {event['round']}: " if "round" in event else ""
    match event["event"]:
        case "listening":
            return f"listening on {event['host']} port {event['port']}"
        case "loaded":
            return f"base model and records loaded; {event['parameters']} trainable parameters"
        case "connected":
            return f"client {event['client']} connected"
        case "waiting" if event["clients"]:
            return f"{where}the server waits in {event['phase']} for {ids(event['clients'])}"
        case "round":
            again = f", attempt {event['attempt']}" if event["attempt"] else ""
            return f"round {event['round']} of {event['rounds']} begins{again}"
        case "resumed":
            return f"{where}goes on with attempt {event['attempt']} in {event['phase']}"
        case "burnt":
            return f"{where}attempt {event['attempt']} could not be resumed: {event['reason']}"
        case "resupplied":
            return f"gave the server {event['rows']} rows of its release ledger back"
        case "phase" if event["clients"]:
            return f"{where}{event['phase']}, waiting for {ids(event['clients'])}"
        case "drop":
            return f"{where}client {event['client']} left out: {event['reason']}"
        case "round-ended":
            if event["status"] == "released":
                return f"{where}exact sum over {ids(event['masked'])} released"
            return f"{where}no sum: {event['reason']}"
        case "validated":
            return f"{where}loss on public validation records {event['loss']:.4f}"
        case "validation-failed":
            return f"{where}the validation process failed and is started again: {event['reason']}"
        case "plateau":
            return f"the loss has stopped falling after round {event['round']} of {event['rounds']}: the task ends"
        case "budget":
            after = f"ε = {event['epsilon_after']} at δ = {event['delta']}, {UNITS[event.get('unit', 'record')]}"
            return f"{where}within the budget: {after}, this round included"
        case "joined":
            return f"{where}joined " + ("again, with the same update" if event.get("same_update") else "and training")
        case "trained":
            return f"{where}trained"
        case "result":
            return f"{where}sum over {ids(event['included'])}; the next model is as published"
        case "aborted" | "left-out" | "skipped" | "withdraw":
            return f"{where}{event['event']}: {event.get('reason') or event.get('code') or 'attempt already joined'}"
        case "finished":
            return "the task has ended; privacy-ledger statement sent"
        case _:
            return ""


def ids(clients: list[int] | tuple[int, ...]) -> str:
    """`clients 1, 2 and 5`."""
    names = [str(c) for c in clients]
    head = ", ".join(names[:-1])
    return f"client {names[0]}" if len(names) == 1 else f"clients {head} and {names[-1]}"
