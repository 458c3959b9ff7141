"""A whole federation on this machine: real processes, real TLS, one client killed in the middle of an upload.

The demo only starts, watches and kills processes; everything else is what `secagg server` and `secagg client` do
between organisations. Events come from their standard output as JSON lines.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ffm.consortium import Consortium, ConsortiumConfig, ServerConfig, create_consortium
from ffm.models import locate
from ffm.site import change_settings
from ffm.sources import Written
from ffm.task import TaskSettings, build_manifest
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from secagg.types import ClientId

DECRYPTOR_NAME = "auditor"
RECORDS = "records.csv"
VICTIM = ClientId(3)
KILL_ROUND = 2
SLOW_UPLOAD = 12_000  # bytes per second for the victim's first process, so that its upload can be caught half-way

Event = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Layout:
    """What was prepared."""

    run: Path
    consortium: Consortium
    manifest: Manifest
    test_file: Path
    site_files: tuple[Path, ...]
    base_model: Path


def free_port() -> int:
    """A port of the loopback interface that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def prepare(run: Path, settings: TaskSettings, model: str) -> Layout:
    """Partition the data, sign roster and manifest, make all folders. The owner's key stays in consortium/owner."""
    written = settings.data.write(run / "data")
    return found(run, written, build_manifest(settings, model), local_settings(settings, model))


def local_settings(settings: TaskSettings, model: str) -> Mapping[str, str]:
    """What each site has to be told of this machine, besides the manifest: where the base model is, and the task."""
    chosen = settings.model(model).base_model
    folder = str(Path(chosen).resolve()) if Path(chosen).is_dir() else ""  # the manifest pins digests
    return {"base_model": folder, "task_file": settings.task_file}


def found(run: Path, written: Written, manifest: Manifest, local: Mapping[str, str]) -> Layout:
    """A consortium of the sites that have records, with this manifest as its first. `local`: of `local_settings`."""
    config = ConsortiumConfig(
        consortium=f"{manifest.task} example",
        task="settings",
        server=ServerConfig(host="127.0.0.1", port=free_port()),
        decryptor=None if manifest.aggregation.encryption is None else DECRYPTOR_NAME,
        clients=tuple(written.sites),
    )
    made = create_consortium(config, run / "consortium", manifest)
    site_files = hand_out(made, written.sites)
    for site in (made.server, *made.clients.values()):
        change_settings(site, local)
    base_model = locate(local["base_model"] or manifest.base_model.name)
    return Layout(run, made, manifest, written.test, site_files, base_model)


def hand_out(consortium: Consortium, records: Mapping[str, Path]) -> tuple[Path, ...]:
    """Move each site's records into its own folder, in place of those that it had; where they are now, site by site."""
    for name, source in records.items():
        target = consortium.clients[name] / RECORDS
        os.replace(source, target)  # each site's records lie in its own folder and nowhere else
        target.chmod(0o600)
    return tuple(site / RECORDS for site in consortium.clients.values())


@dataclass(slots=True)
class _Child:
    name: str
    process: asyncio.subprocess.Process
    reader: asyncio.Task[None] = field(repr=False)


class Play:
    """The running processes. `run` returns when the server has finished."""

    def __init__(
        self,
        layout: Layout,
        device: str,
        on_event: Event,
        victim: ClientId | None = VICTIM,
        server: Sequence[str] = (),
    ) -> None:
        """`victim`: who is killed half-way through an upload; None: nobody. `server`: more options of its command."""
        self._victim, self._server = victim, tuple(server)
        self._layout = layout
        self._device = device
        self._on_event = on_event
        self._children: dict[str, _Child] = {}
        self._names = dict(zip(range(1, len(layout.consortium.clients) + 1), layout.consortium.clients, strict=True))
        self._killed = asyncio.Event()
        self._round = 0
        self.killed_at: Mapping[str, Any] | None = None

    async def run(self) -> None:
        """Start everybody, kill the victim (if any) half-way through its upload of round 2, start it again, wait."""
        try:
            folders = [str(self._layout.consortium.server), "--run", str(self._layout.run)]
            await self._start("server", ["server", *folders, "--grace-seconds", "5", *self._server])
            decryptor = self._layout.consortium.decryptor
            if decryptor is not None:
                await self._start(DECRYPTOR_NAME, ["decryptor", str(decryptor)])
            for client, name in self._names.items():
                limit = ["--upload-limit", str(SLOW_UPLOAD)] if client == self._victim else []
                await self._start_client(name, limit)
            revival = None if self._victim is None else asyncio.create_task(self._revive(self._victim))
            code = await self._children["server"].process.wait()
            if revival is not None:
                revival.cancel()
            if code == 0:  # whoever is not done by now came back too late for the last round
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._all_gone(), 10)
        finally:
            await self._stop()
        if code != 0:
            raise ProtocolError(
                "the demo's server failed",
                found=f"exit status {code}",
                expected="0",
                do=f"read {self._layout.run / 'logs'}",
                code="E450",
            )

    async def _all_gone(self) -> None:
        for child in self._children.values():
            await child.process.wait()

    async def _start_client(self, name: str, extra: list[str]) -> None:
        folder = self._layout.consortium.clients[name]
        await self._start(name, ["client", str(folder), "--device", self._device, *extra])

    async def _start(self, name: str, arguments: list[str]) -> None:
        logs = self._layout.run / "logs"
        logs.mkdir(exist_ok=True)
        with open(logs / f"{name}.log", "ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "secagg",
                *arguments,
                "--format",
                "json",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to answer: children are ended in order
            )
        self._children[name] = _Child(name, process, asyncio.create_task(self._read(name, process)))

    async def _read(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - asked for above
        with open(self._layout.run / "logs" / f"{name}.jsonl", "a") as log:
            async for line in process.stdout:
                log.write(line.decode())
                event = json.loads(line)
                if name == "server":
                    self._watch(event)
                if "event" in event:
                    self._on_event(name, event)

    def _watch(self, event: Mapping[str, Any]) -> None:
        """Kill the victim the moment that the server has part of its upload, and only part of it."""
        self._round = event.get("round", self._round) if event.get("event") == "round" else self._round
        victim = self._victim
        if victim is None or event.get("event") != "upload" or event["client"] != victim or self._killed.is_set():
            return
        if 0 < event["chunk"] < event["of"] and self._round >= KILL_ROUND:
            os.killpg(self._children[self._names[victim]].process.pid, signal.SIGKILL)
            self.killed_at = {"round": self._round, "chunk": event["chunk"], "of": event["of"]}
            self._killed.set()

    async def _revive(self, victim: ClientId) -> None:
        """What a hospital's service manager would do: start the client again, now without the slow line."""
        await self._killed.wait()
        name = self._names[victim]
        await self._children[name].process.wait()
        self._on_event(name, {"event": "killed", **(self.killed_at or {})})
        await asyncio.sleep(1.0)
        await self._start_client(name, [])

    async def _stop(self) -> None:
        """End what still runs: asked first, killed after five seconds."""
        running = [child for child in self._children.values() if child.process.returncode is None]
        for child in running:
            with contextlib.suppress(ProcessLookupError):
                child.process.terminate()
        for child in running:
            try:
                await asyncio.wait_for(child.process.wait(), 5)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.process.pid, signal.SIGKILL)
                await child.process.wait()
        await asyncio.gather(*(child.reader for child in self._children.values()), return_exceptions=True)
