"""Whole attempts of five clients as vectors: nobody lost, or one client lost in one of the five phases. And a ring.

Private values stand beside what they lead to. `sent` and `received` hold the frames themselves: the refusals in the
bad_*.json files say after which of them their one fault comes.
"""

from functools import cache
from typing import Any

from attacker import LyingServer, lying
from simulator import Federation, Simulation, make_manifest, random_values

from protocol.codec import encode_client, encode_server
from protocol.effects import Released
from protocol.messages import (
    AdvertiseKeys,
    Announcement,
    Certificate,
    ConsistencyCheck,
    KeyList,
    MaskedInput,
    PeerShares,
    ServerMessage,
    ShareKeys,
    SurvivorNotice,
    UnmaskingShares,
)
from secagg.encoding import Values
from secagg.masking import frame
from secagg.types import ClientId, Phase, Secret

Vector = dict[str, Any]
ME, LOST = ClientId(1), ClientId(4)
SENT = (AdvertiseKeys, ShareKeys, MaskedInput, ConsistencyCheck, UnmaskingShares)
RECEIVED = (Announcement, KeyList, PeerShares, SurvivorNotice, Certificate)
PRIVATE = ("encryption_sk", "masking_sk", "self_seed")


def consortium() -> tuple[Federation, dict[ClientId, Values]]:
    """Keys, documents and values of every attempt of five clients."""
    federation = Federation.create(make_manifest())
    return federation, random_values(federation.manifest, range(1, 6))


@cache
def played(lost: Phase | None) -> tuple[Simulation, dict[ClientId, Vector], dict[str, str]]:
    """(the attempt in which client 4 falls silent in this phase, private values by client, what client 1 received)."""
    federation, values = consortium()
    simulation = Simulation(federation, values, {} if lost is None else {LOST: lost})
    private: dict[ClientId, Vector] = {}
    received: dict[str, str] = {}
    deliver = simulation._deliver

    def record(client: ClientId, message: ServerMessage) -> None:
        if client == ME:
            received[type(message).__name__] = encode_server(message).hex()
        deliver(client, message)
        if isinstance(message, Announcement):
            private[client] = secrets_of(simulation.clients[client]._state)

    simulation._deliver = record  # type: ignore[method-assign]
    assert isinstance(simulation.run(), Released)
    return simulation, private, received


def secrets_of(state: object) -> Vector:
    """The three secrets of phase 0."""
    found = {name: getattr(state, name) for name in PRIVATE}
    assert all(isinstance(secret, Secret) for secret in found.values())
    return {name: bytes(secret.view).hex() for name, secret in found.items()}


def documents(federation: Federation) -> Vector:
    """What the owner signed, and the keys of the test's members."""
    return {
        "manifest": federation.manifest.to_bytes().decode(),
        "manifest_digest": federation.manifest.digest().hex(),
        "roster": federation.roster.to_bytes().decode(),
        "roster_root": federation.roster.root().hex(),
        "server_identity_seed": federation.server_key.to_bytes().hex(),
        "round": 1,
        "attempt": 0,
        "model_digest": "00" * 32,
        "cohort": sorted(federation.client_keys),
    }


def attempt(lost: Phase | None) -> Vector:
    """A whole attempt: every private value, every frame, every root, and the released sum."""
    simulation, private, received = played(lost)
    federation, outcome, server = simulation.federation, simulation.outcome, simulation.server
    assert isinstance(outcome, Released)
    clients = {}
    for client, secrets in sorted(private.items()):
        values = simulation.values[client]
        entry: Vector = {
            "identity_seed": federation.client_keys[client].to_bytes().hex(),
            "rng": repr((0, 1, 0, int(client))),
            **secrets,
            "values": values.tolist(),
            "framed": frame(values, server.params).astype("<u8").tobytes().hex(),
            "sent": {type(m).__name__: encode_client(m).hex() for c, m in simulation.view if c == client},
        }
        if client in simulation.uploads:
            entry["words"] = simulation.uploads[client].astype("<u8").tobytes().hex()
        clients[str(client)] = entry
    row = server.ledger.rows[-1]
    return {
        "operation": "attempt",
        "success": True,
        "lost": {} if lost is None else {str(LOST): lost.name},
        **documents(federation),
        "threshold": server.params.threshold,
        "ctx": server.ctx.hex(),
        "root_u1": server._root_u1.hex(),
        "root_u2": server._root_u2.hex(),
        "hash_u3": server._hash_u3.hex(),
        "advertised": list(server.advertised),
        "shared": list(server.shared),
        "masked": list(outcome.masked),
        "checked": list(server.checked),
        "unmasked": list(server.unmasked),
        "ledger_head": server.ledger.head.hex(),
        "ledger_row_signature": row.signature.hex(),
        "clients": clients,
        "received_by_client_1": received,
        "total": outcome.total.tolist(),
    }


@cache
def ring() -> LyingServer:
    """200 clients on the smallest real ring, degree 6; client 1 has what it needs to check its key list."""
    server = lying(200, 0, 2, length=4, aggregation__graph="ring")
    server.announce()
    return server


def ring_attempt() -> Vector:
    """The same, up to phase 4, as client 1 sees it."""
    server = ring()
    secrets = secrets_of(server.sessions[ME]._state)
    received: list[ServerMessage] = [server.announcement, server.key_list(to=ME)]
    for client in server.ids:
        assert server.tell(client, server.key_list(to=client))
    received.append(server.peer_shares(ME))
    for client in server.ids:
        assert server.tell(client, server.peer_shares(client))
    received.append(server.notice(server.ids))
    graph = server.graph
    return {
        "operation": "ring",
        "success": True,
        **documents(server.federation),
        "identity_seed": server.federation.client_keys[ME].to_bytes().hex(),
        "rng": repr((0, 1, 0, 1)),
        **secrets,
        "ctx": server.ctx.hex(),
        "root_u1": server.root_u1().hex(),
        "root_u2": server.root_u2().hex(),
        "neighbors": list(graph.neighbors(ME)),
        "points": {str(h): graph.point(ME, h) for h in graph.dealt_to(ME)},
        "received_by_client_1": {type(m).__name__: encode_server(m).hex() for m in received},
    }
