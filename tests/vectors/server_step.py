"""Vectors of the server step (SPEC 7.7): every optimizer, both divisors, and parameters that are held."""

from typing import Any

import numpy as np
from simulator import insecure_rng, make_manifest

from ffm.step import Model, Pull, initial_model, model_bytes, next_model, vector_digest
from protocol.manifest import Manifest

Vector = dict[str, Any]
LENGTH, CLIENTS = 6, 5
AVERAGE = {"optimizer": "fedavg", "learning_rate": "0.7", "beta1": "0", "beta2": "0", "tau": "0"}
MOMENTS = {"learning_rate": "0.1", "beta1": "0.9", "beta2": "0.99", "tau": "0.001"}


def server_steps() -> list[Vector]:
    """Two steps each, so that moments count."""
    out = []
    for protocol in ("none", "R2"):
        for server in (AVERAGE, *({"optimizer": name, **MOMENTS} for name in ("fedadam", "fedyogi"))):
            for strength in ("0", "2.5"):
                out.append(_vector(protocol, server, strength))
    return out


def _vector(protocol: str, server: dict[str, str], strength: str) -> Vector:
    start, importance = _reals("start"), np.abs(_reals("importance"))
    importance[1] = 0.0
    manifest = _manifest(protocol, server, strength, (start, importance))
    pull = Pull(start, importance) if strength != "0" else None
    totals = [np.frombuffer(insecure_rng(("sum", k))(2 * LENGTH), dtype="<i2").astype(np.int64) for k in range(2)]
    model, models = initial_model(start, manifest), []
    for total in totals:
        model = next_model(model, total, CLIENTS, manifest, pull)
        models.append(model_bytes(model).hex())
    given = {
        "protocol": protocol,
        "scale": manifest.aggregation.scale,
        "expected_batch": manifest.training.expected_batch,
        "learning_rate": manifest.training.learning_rate,
        "server": server,
        "strength": strength,
        "start": model_bytes(start).hex(),
        "importance": model_bytes(importance).hex(),
        "clients": CLIENTS,
        "totals": [total.tolist() for total in totals],
    }
    return {"operation": "server_step", "given": given, "gives": models, "success": True}


def _reals(name: str) -> Model:
    return (np.frombuffer(insecure_rng((name, 0))(2 * LENGTH), dtype="<i2") / 8192).astype(np.float32)


def _manifest(protocol: str, server: dict[str, str], strength: str, past: tuple[Model, Model]) -> Manifest:
    body = make_manifest(CLIENTS, length=LENGTH).model_dump()
    body["adapter"]["start"] = vector_digest(past[0])
    body["training"] |= {"local_steps": 1, "optimizer": "sgd", "expected_batch": 100, "server": server}
    if strength != "0":
        body["training"]["consolidation"] = {"strength": strength, "importance": vector_digest(past[1])}
    body["privacy"] |= {
        "protocol": protocol,
        "scale": 1024,
        "clip_steps": 1024,
        "noise_steps": 2048,
        "max_records": 1000,
    }
    if protocol == "none":
        body["privacy"] |= {"noise_steps": 0}
    body["aggregation"] |= {"scale": 1024, "bound": 2**21, "slots_per_word": 2}
    return Manifest.model_validate(body)
