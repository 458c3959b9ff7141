"""Five hundred connected clients in one server process: a whole round on the ring over real gRPC and mutual TLS."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

N, LENGTH = 500, 10_000
SCRIPT = Path(__file__).with_name("many.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{SCRIPT.parents[2]}{os.pathsep}{SCRIPT.parents[1]}"}
SILENT = tuple(range(20, N + 1, 20))  # 25 clients, as many as the parameters allow


def start(*arguments: object) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: "subprocess.Popen[bytes]", seconds: float) -> bytes:
    try:
        out, errors = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == 0, errors.decode()
    return out


@pytest.mark.slow
def test_five_hundred_clients_finish_a_round_on_the_ring(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    finish(start("make", tmp_path, N, LENGTH), 120)
    server = start("server", tmp_path, port)
    halves = [
        start("clients", tmp_path, port, first, first + N // 2 - 1, *(c for c in SILENT if first <= c < first + N // 2))
        for first in (1, N // 2 + 1)
    ]
    try:
        result: dict[str, Any] = json.loads(finish(server, 1200))
        for half in halves:
            finish(half, 120)
    finally:
        for process in (server, *halves):
            process.kill()
    print({key: value for key, value in result.items() if key not in ("masked", "drops")})
    assert result["released"] and result["exact"], result["reason"]
    assert result["masked"] == [c for c in range(1, N + 1) if c not in SILENT]
    assert result["drops"] == {str(c): "TIMED_OUT" for c in SILENT}
    assert result["peak_mib"] < 1024
