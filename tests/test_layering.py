"""Who may import whom, and what nobody may call: the rules, the tree, and a plant for every rule.

Three nets with different meshes: the rules below read the syntax tree, ruff's banned-api runs in `make lint`, and
import-linter follows indirect imports. Each plant must be caught by the net that claims it.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("secagg", "dp", "protocol", "ffm")
SCRIPTS = Path(sys.executable).parent

UNSAFE = {
    *("pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"),
    *("numpy.load", "torch.load", "torch.save", "torch.jit.load", "torch.hub"),
}
NO_GENERATOR = {"random", "numpy.random"}
TORCH_DRAWS = {f"torch.{n}" for n in ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "manual_seed")}
TORCH = {"torch", "opacus", "transformers", "peft"}
AMBIENT = {
    *("os", "io", "pathlib", "tempfile", "shutil", "sqlite3", "subprocess", "multiprocessing", "threading"),
    *("socket", "ssl", "asyncio", "time", "datetime", "secrets", "uuid", "grpc", "google"),
    "cryptography.hazmat.primitives.asymmetric.ed25519.Ed25519PrivateKey.generate",
    "cryptography.hazmat.primitives.asymmetric.x25519.X25519PrivateKey.generate",
    "cryptography.hazmat.primitives.ciphers.aead.AESGCM.generate_key",
}
NETWORK = {"grpc", "google", "asyncio", "socket", "ssl"}
UNSAFE_KEYWORDS = {"trust_remote_code": False, "allow_pickle": False, "weights_only": True}  # the only value allowed


def room(path: str) -> str:
    """Which list a file falls under: a room, or `shell` for protocol/rpc."""
    return "shell" if path.startswith("protocol/rpc/") else path.split("/")[0]


def banned(path: str) -> set[str]:
    """Qualified names that the file at this path may neither import nor use."""
    names = UNSAFE | NO_GENERATOR | {"tenseal"}
    match room(path):
        case "secagg":
            above = {"protocol", "dp", "ffm"}
            names |= AMBIENT | TORCH | (above if path != "secagg/__main__.py" else {"protocol", "dp"})
            names -= {"tenseal"} if path == "secagg/he/bfv.py" else set()
            if path == "secagg/he/worker.py":  # a program: its standard streams are its only I/O
                names = names - {"os"} | {f"os.{name}" for name in ("open", "urandom", "environ", "fork", "system")}
            else:
                names |= {"secagg.he.worker", "resource", "signal"}
        case "protocol":
            names |= AMBIENT | TORCH | {"dp", "ffm", "protocol.rpc"}
            names |= {"protocol._pb"}
            if path == "protocol/codec.py":
                names -= {"google", "protocol._pb"}
        case "shell":
            names |= TORCH | {"ffm"}
        case "dp":
            names |= NETWORK | TORCH_DRAWS | {"secagg", "protocol", "ffm", "secrets", "transformers", "peft"}
            names |= set() if path == "dp/sampling.py" else {"os.urandom"}
            names |= set() if path in ("dp/objective.py", "dp/training.py") else {"torch"}
            names |= set() if path in ("dp/training.py", "dp/accountant.py") else {"opacus"}
        case "ffm":
            names |= TORCH_DRAWS | {"grpc", "google", "protocol._pb"}
        case other:
            raise AssertionError(f"{path}: no rules for {other}")
    return names


def violations(path: str, source: str) -> list[str]:
    """Every broken rule in one file, as ``path:line: what``."""
    tree = ast.parse(source, path)
    forbidden = banned(path)
    bound: dict[str, str] = {}
    found = []

    def check(node: ast.AST, name: str) -> None:
        parts = name.split(".")
        if any(".".join(parts[: i + 1]) in forbidden for i in range(len(parts))):
            found.append(f"{path}:{getattr(node, 'lineno', 0)}: {name}")

    for node in ast.walk(tree):  # breadth first, so the names below are complete before the second pass
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                check(node, alias.name)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                found.append(f"{path}:{node.lineno}: relative import")
            for alias in node.names:
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                check(node, f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            check(node, qualified(node, bound))
        elif isinstance(node, ast.Call):
            name = qualified(node.func, bound)
            if name in ("eval", "exec", "builtins.eval", "builtins.exec"):
                found.append(f"{path}:{node.lineno}: {name}")
            if name in ("open", "print", "input") and room(path) in ("secagg", "protocol"):
                found.append(f"{path}:{node.lineno}: {name}")
            if name in ("__import__", "importlib.import_module") and node.args:
                target = node.args[0]
                check(
                    node, target.value if isinstance(target, ast.Constant) else "pickle"
                )  # computed: could be anything
            if name.endswith("from_named_tuple"):
                found.append(f"{path}:{node.lineno}: from_named_tuple")
            for keyword in node.keywords:
                if keyword.arg in UNSAFE_KEYWORDS and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is UNSAFE_KEYWORDS[keyword.arg]
                ):
                    found.append(f"{path}:{node.lineno}: {keyword.arg}")
    if path == "dp/accountant.py":
        found += [f"{path}: opacus at import time" for s in tree.body if "opacus" in imported(s)]
    return sorted(set(found))


def qualified(node: ast.expr, bound: dict[str, str]) -> str:
    """``np.random.rand`` -> ``numpy.random.rand``; empty for anything that is no dotted name."""
    if isinstance(node, ast.Name):
        return bound.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{qualified(node.value, bound)}.{node.attr}"
    return ""


def imported(statement: ast.stmt) -> set[str]:
    """Top-level packages that one statement imports when the module is loaded."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return set()
    names = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def sources() -> Iterator[tuple[str, str]]:
    """(path, text) of every hand-written module of the four rooms."""
    for top in ROOMS:
        for file in sorted((ROOT / top).rglob("*.py")):
            path = file.relative_to(ROOT).as_posix()
            if not path.startswith("protocol/_pb/"):
                yield path, file.read_text(encoding="utf-8")


def test_the_tree_keeps_the_rules() -> None:
    files = dict(sources())
    assert {room(path) for path in files} == {*ROOMS, "shell"}
    assert [v for path, text in files.items() for v in violations(path, text)] == []


EVERYWHERE = [
    ("import pickle", "pickle"),
    ("def f():\n    import pickle", "pickle"),
    ("from pickle import loads", "pickle.loads"),
    ("import cloudpickle as c", "cloudpickle"),
    ("import dill", "dill"),
    ("import joblib", "joblib"),
    ("import marshal", "marshal"),
    ("import shelve", "shelve"),
    ("import yaml\nyaml.load('x')", "yaml.load"),
    ("import numpy as np\nnp.load('x')", "numpy.load"),
    ("from numpy import load", "numpy.load"),
    ("import torch\ntorch.load('x')", "torch.load"),
    ("import torch as t\nt.save(1, 'x')", "torch.save"),
    ("import random", "random"),
    ("import numpy as np\nnp.random.default_rng(1)", "numpy.random"),
    ("from numpy.random import default_rng", "numpy.random"),
    ("import tenseal", "tenseal"),
    ("eval('1')", "eval"),
    ("exec('1')", "exec"),
    ("__import__('pickle')", "pickle"),
    ("import importlib\nimportlib.import_module('pick' + 'le')", "pickle"),
    ("f(trust_remote_code=True)", "trust_remote_code"),
    ("f(trust_remote_code=flag)", "trust_remote_code"),
    ("f(allow_pickle=True)", "allow_pickle"),
    ("f(weights_only=False)", "weights_only"),
    ("from . import kdf", "relative import"),
]
CORE = [
    ("import os\nos.urandom(3)", "os.urandom"),
    ("from os import urandom", "os.urandom"),
    ("import secrets", "secrets"),
    ("import uuid", "uuid"),
    ("import time\ntime.time()", "time.time"),
    ("from time import monotonic", "time.monotonic"),
    ("import datetime", "datetime"),
    ("import asyncio", "asyncio"),
    ("import threading", "threading"),
    ("import socket", "socket"),
    ("import ssl", "ssl"),
    ("import sqlite3", "sqlite3"),
    ("import subprocess", "subprocess"),
    ("import multiprocessing", "multiprocessing"),
    ("import io", "io"),
    ("import shutil", "shutil"),
    ("import tempfile", "tempfile"),
    ("from pathlib import Path", "pathlib.Path"),
    ("open('x')", "open"),
    ("print('x')", "print"),
    ("import grpc.aio", "grpc.aio"),
    ("from google.protobuf import message", "google.protobuf"),
    ("import torch", "torch"),
    ("from opacus import PrivacyEngine", "opacus"),
    ("import transformers", "transformers"),
    ("import peft", "peft"),
    (
        "from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey as K\nK.generate()",
        "Ed25519PrivateKey.generate",
    ),
    (
        "from cryptography.hazmat.primitives.asymmetric import x25519\nx25519.X25519PrivateKey.generate()",
        "X25519PrivateKey.generate",
    ),
    (
        "from cryptography.hazmat.primitives.ciphers.aead import AESGCM\nAESGCM.generate_key(256)",
        "AESGCM.generate_key",
    ),
    ("import ffm.cli", "ffm.cli"),
]
PLANTS = [
    *((f"{top}/planted.py", *row) for top in (*ROOMS, "protocol/rpc") for row in EVERYWHERE),
    *((f"{top}/planted.py", *row) for top in ("secagg", "protocol") for row in CORE),
    ("secagg/planted.py", "from protocol.roster import Roster", "protocol.roster"),
    ("secagg/planted.py", "import dp.ledger", "dp.ledger"),
    ("secagg/__main__.py", "import os", "os"),
    ("secagg/he/planted.py", "import tenseal", "tenseal"),
    ("secagg/he/guard.py", "from tenseal import bfv_vector_from", "tenseal"),
    ("secagg/he/worker.py", "import tenseal", "tenseal"),
    ("secagg/he/worker.py", "import subprocess", "subprocess"),
    ("secagg/he/worker.py", "import os\nos.urandom(3)", "os.urandom"),
    ("secagg/he/worker.py", "open('x')", "open"),
    ("secagg/he/bfv.py", "import os", "os"),
    ("secagg/he/bfv.py", "from secagg.he import worker", "secagg.he.worker"),
    ("secagg/planted.py", "import resource", "resource"),
    ("secagg/__main__.py", "import protocol.rpc.server", "protocol.rpc"),
    ("protocol/planted.py", "from dp.ledger import Charge", "dp.ledger"),
    ("protocol/planted.py", "from protocol.rpc import pki", "protocol.rpc"),
    ("protocol/planted.py", "from protocol._pb import secagg_pb2", "protocol._pb"),
    ("protocol/codec.py", "import grpc", "grpc"),
    ("protocol/rpc/planted.py", "import torch", "torch"),
    ("protocol/rpc/planted.py", "from ffm import models", "ffm.models"),
    ("dp/planted.py", "import grpc", "grpc"),
    ("dp/planted.py", "import asyncio", "asyncio"),
    ("dp/planted.py", "from secagg.errors import SecAggError", "secagg.errors"),
    ("dp/planted.py", "from protocol import signed", "protocol.signed"),
    ("dp/planted.py", "import ffm", "ffm"),
    ("dp/planted.py", "import torch", "torch"),
    ("dp/planted.py", "import opacus", "opacus"),
    ("dp/planted.py", "import os\nos.urandom(32)", "os.urandom"),
    ("dp/planted.py", "DpEvent.from_named_tuple(x)", "from_named_tuple"),
    ("dp/accountant.py", "import opacus", "at import time"),
    ("dp/accountant.py", "try:\n    from opacus import accountants\nexcept ImportError:\n    pass", "at import time"),
    ("dp/accountant.py", "import torch", "torch"),
    ("dp/training.py", "import torch\ntorch.randn(3)", "torch.randn"),
    ("dp/training.py", "from torch import bernoulli", "torch.bernoulli"),
    ("dp/training.py", "import torch\ntorch.manual_seed(3)", "torch.manual_seed"),
    ("dp/objective.py", "import torch\ntorch.rand(3)", "torch.rand"),
    ("ffm/planted.py", "import torch\ntorch.normal(0, 1, (3,))", "torch.normal"),
    ("ffm/planted.py", "import grpc", "grpc"),
    ("ffm/planted.py", "from protocol._pb import secagg_pb2", "protocol._pb"),
]
ALLOWED = [
    ("protocol/codec.py", "from google.protobuf.message import Message\nfrom protocol._pb import secagg_pb2"),
    ("protocol/rpc/planted.py", "import grpc, ssl, os\nfrom dp.store import ChainedStore\nos.urandom(32)\nopen('x')"),
    ("secagg/__main__.py", "from ffm.cli import main"),
    ("secagg/he/bfv.py", "import tenseal"),
    ("secagg/he/worker.py", "import os, resource, signal\nos.dup2(2, 1)"),
    ("secagg/planted.py", "import numpy as np\nimport hashlib\nnp.zeros(3)\nself.open('x')"),
    ("dp/accountant.py", "def prv():\n    from opacus.accountants import PRVAccountant"),
    ("dp/sampling.py", "import os\nos.urandom(32)"),
    ("dp/training.py", "import torch\nfrom opacus.grad_sample import GradSampleHooks"),
    ("ffm/planted.py", "import torch, transformers, peft\nf(trust_remote_code=False, weights_only=True)"),
]


@pytest.mark.parametrize(("path", "source", "expected"), PLANTS)
def test_every_plant_is_found(path: str, source: str, expected: str) -> None:
    assert any(expected in line for line in violations(path, source)), violations(path, source)


@pytest.mark.parametrize(("path", "source"), ALLOWED)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert violations(path, source) == []


@pytest.mark.parametrize("top", [*ROOMS, "protocol/rpc"])
def test_ruff_bans_the_same_modules(top: str) -> None:
    """Each room's own list replaces the one in pyproject.toml: show that no entry got lost on the way."""
    names = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "tenseal", "random"}
    if top in ("secagg", "protocol"):
        names |= {name for name in AMBIENT if "." not in name} - {"google"} | {"google.protobuf"} | TORCH
    elif top != "protocol/rpc":
        names |= {"grpc", "google.protobuf"}
    source = (
        "".join(f"import {name}\n" for name in sorted(names)) + "import numpy as np\nnp.load('x')\nnp.random.rand()\n"
    )
    command = [str(SCRIPTS / "ruff"), "check", "--no-cache", "--select=TID251", "--output-format=concise"]
    done = subprocess.run(
        [*command, f"--stdin-filename={top}/planted.py", "-"],
        input=source,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    missed = {name for name in names | {"numpy.load", "numpy.random"} if f"`{name}` is banned" not in done.stdout}
    assert not missed, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("path", "line", "contract"),
    [
        (None, "", ""),
        ("secagg/kdf.py", "from secagg import planted", "core-pure"),  # indirectly, through secagg/planted.py
        ("secagg/kdf.py", "import dp.errors", "layers"),
        ("dp/errors.py", "import secagg.errors", "layers"),
        ("protocol/roster.py", "import ffm", "layers"),
        ("protocol/roster.py", "import protocol.rpc", "protocol"),
        ("protocol/codec.py", "import protocol.server", "protocol"),
        ("protocol/rpc/__init__.py", "from dp import training", "protocol-without-torch"),
        ("dp/errors.py", "import torch", "torch-in-two-places"),
        ("ffm/__init__.py", "import grpc", "grpc-in-the-shell"),
        ("ffm/errors.py", "import protocol.rpc.server", "worker-without-grpc"),
        ("secagg/he/guard.py", "import tenseal", "tenseal-in-one-file"),
        ("protocol/rpc/he_process.py", "import secagg.he.worker", "he-worker-is-a-program"),
    ],
)
def test_import_linter_holds_and_finds(tmp_path: Path, path: str | None, line: str, contract: str) -> None:
    for top in ROOMS:
        shutil.copytree(ROOT / top, tmp_path / top, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if path is not None:
        (tmp_path / "secagg" / "planted.py").write_text("import asyncio\n", encoding="utf-8")
        with (tmp_path / path).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    command = [
        str(SCRIPTS / "lint-imports"),
        "--no-cache",
        "--no-logo",
        *(["--contract", contract] if contract else []),
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ("1 broken" if path else "0 broken") in done.stdout, done.stdout + done.stderr
    assert done.returncode == (1 if path else 0)


def test_the_protocol_loads_without_torch() -> None:
    """In a process where torch and its company cannot be imported, every module of the protocol still loads."""
    modules = [
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path, _ in sources()
        if path.startswith(("secagg/", "protocol/")) and path != "secagg/__main__.py"
    ]
    assert "protocol.server" in modules
    program = f"""
import sys
for name in {sorted(TORCH)!r}:
    sys.modules[name] = None
import importlib
for name in {modules!r}:
    importlib.import_module(name)
try:
    import torch
except ImportError:
    print("fine")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr
