"""The whole protocol in memory: any scenario in a few lines. Real sessions and cryptography, pinned randomness."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from protocol.client import ClientMemory, ClientSession, ClientSetup
from protocol.drops import DropReason
from protocol.effects import (
    Abort,
    AcceptUpload,
    Aggregate,
    Charge,
    Effects,
    JoinRecord,
    Persist,
    Record,
    Released,
    Send,
    SpentRecord,
    Upload,
)
from protocol.errors import RemoteProtocolError
from protocol.manifest import Manifest
from protocol.messages import Announcement, ClientMessage, ServerMessage
from protocol.release import ReleaseLedger, resupply
from protocol.roster import Member, Peer, Roster
from protocol.server import ServerSession
from secagg.encoding import Values
from secagg.masking import InputDigest, add_masks, chunks
from secagg.signing import SigningKey
from secagg.types import ClientId, Phase, Rng


def insecure_rng(seed: object) -> Rng:
    """Deterministic bytes for tests: SHA-256 in counter mode over a printable seed."""
    counter = 0

    def take(size: int) -> bytes:
        nonlocal counter
        out = b""
        while len(out) < size:
            out += hashlib.sha256(f"{seed!r}/{counter}".encode()).digest()
            counter += 1
        return out[:size]

    return take


def make_manifest(n: int = 5, c: int = 1, dropouts: int = 1, length: int = 40, **changes: object) -> Manifest:
    """A small but complete manifest: one trainable tensor of `length` values."""
    quorum = (n + c) // 2 + 1
    body: dict[str, object] = {
        "version": 1,
        "task": "test-task",
        "data": "made up for a test",
        "base_model": {"name": "none", "files": []},
        "adapter": {
            "method": "ffa-lora",
            "rank": 1,
            "alpha": 1,
            "target_modules": ["query"],
            "seed": 7,
            "tensors": [{"name": "b", "shape": [length]}],
        },
        "training": {
            "task": "sequence-classification",
            "labels": ["no", "yes"],
            "max_length": 16,
            "optimizer": "sgd",
            "learning_rate": "0.1",
            "rounds": 10,
            "local_steps": 2,
            "expected_batch": 8,
            "server": {"optimizer": "fedavg", "learning_rate": "1", "beta1": "0", "beta2": "0", "tau": "0"},
        },
        "privacy": {
            "protocol": "R1",
            "unit": "record",
            "adjacency": "add-or-remove-one",
            "records_per_person": 1,
            "sampling_numerator": 1,
            "sampling_denominator": 4,
            "scale": 65536,
            "clip_steps": 65536,
            "noise_steps": 65536,
            "epsilon": "8",
            "delta": "0.00001",
            "max_records": 1000,
            "people_in_several_silos": "none",
        },
        "aggregation": {
            "graph": "complete",
            "assurance": "masking",
            "cipher": "aes-256-ctr",
            "num_clients": n,
            "max_corrupt": c,
            "max_dropouts": dropouts,
            "min_cohort": max(quorum, 3),
            "slots_per_word": 3,
            "scale": 1024,
            "bound": 4096,
            "chunk_words": 16,
        },
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        target = body[section]
        assert isinstance(target, dict)
        target[key] = value
    return Manifest.model_validate_json(_dumps(body))


def _dumps(body: object) -> bytes:
    import rfc8785

    return rfc8785.dumps(body)  # type: ignore[arg-type]


@dataclass
class Federation:
    """Keys, roster and manifest of a test consortium."""

    manifest: Manifest
    server_key: SigningKey
    client_keys: dict[ClientId, SigningKey]
    roster: Roster

    @classmethod
    def create(cls, manifest: Manifest) -> "Federation":
        n = manifest.aggregation.num_clients
        server = SigningKey.generate(insecure_rng("server"))
        keys = {ClientId(i): SigningKey.generate(insecure_rng(f"client {i}")) for i in range(1, n + 1)}

        def tls(name: str) -> str:
            return hashlib.sha256(name.encode()).hexdigest()

        roster = Roster(
            consortium="test",
            version=1,
            server=Peer(name="server", identity_key=server.verify_key.to_bytes().hex(), tls_key_sha256=tls("server")),
            clients=tuple(
                Member(
                    client_id=i,
                    name=f"client-{i}",
                    identity_key=key.verify_key.to_bytes().hex(),
                    tls_key_sha256=tls(f"client {i}"),
                )
                for i, key in keys.items()
            ),
        )
        return cls(manifest, server, keys, roster)

    def setup(self, client: ClientId) -> ClientSetup:
        return ClientSetup(client, self.client_keys[client], self.roster, self.manifest, self.manifest.secagg_params())

    def announcement(
        self, round_: int = 1, attempt: int = 0, model: bytes = bytes(32), ledger_seq: int = 0
    ) -> Announcement:
        return Announcement(
            round_,
            attempt,
            self.manifest.digest(),
            self.roster.root(),
            model,
            tuple(sorted(self.client_keys)),
            ledger_seq,
        )


Tamper = Callable[[ClientId, object], object | None]


@dataclass
class Simulation:
    """One attempt. `lost`: the phase in which a client falls silent before it answers; `tamper_*` change messages."""

    federation: Federation
    values: dict[ClientId, Values]
    lost: dict[ClientId, Phase] = field(default_factory=dict)
    tamper_client: Tamper | None = None  # (sender, message) -> message, None = lost
    tamper_server: Tamper | None = None  # (recipient, message) -> message, None = lost
    tamper_words: Callable[[ClientId, np.ndarray], np.ndarray] | None = None
    memories: dict[ClientId, ClientMemory] = field(default_factory=dict)
    ledger: ReleaseLedger | None = None
    excluded: frozenset[ClientId] = frozenset()
    round: int = 1
    attempt: int = 0
    seed: object = 0

    def __post_init__(self) -> None:
        f = self.federation
        self.ledger = self.ledger or ReleaseLedger(f.manifest.digest())
        announcement = f.announcement(self.round, self.attempt, ledger_seq=self.ledger.seq)
        self.server = ServerSession(
            f.manifest.secagg_params(), announcement, f.roster, f.server_key, self.ledger, self.excluded
        )
        self.clients: dict[ClientId, ClientSession] = {}
        self.errors: dict[ClientId, RemoteProtocolError] = {}
        self.records: list[tuple[ClientId | None, Record]] = []
        self.charged: list[ClientId] = []
        self.view: list[tuple[ClientId, ClientMessage]] = []  # every message that the server received
        self.uploads: dict[ClientId, np.ndarray] = {}
        self.drops: list[tuple[ClientId, DropReason]] = []
        self.outcome: Released | Abort | None = None

    def run(self) -> Released | Abort:
        """Play the attempt to its end."""
        self._apply_server(self.server.start())
        while self.outcome is None:
            self._apply_server(self.server.close_phase())
        return self.outcome

    def _deliver(self, client: ClientId, message: ServerMessage) -> None:
        f = self.federation
        changed = self.tamper_server(client, message) if self.tamper_server else message
        if changed is None or client in self.errors:
            return
        try:
            if isinstance(changed, Announcement):
                if (rows := resupply(changed, self._memory(client).ledger)) is not None:
                    self._to_server(client, rows)
                    return
                session = ClientSession(
                    f.setup(client),
                    changed,
                    self._memory(client),
                    insecure_rng((self.seed, self.round, self.attempt, client)),
                )
                self.clients[client] = session
                self._apply_client(client, session.start())
                if client in self.values:
                    self._apply_client(client, session.provide_input(self.values[client]))
            elif client in self.clients:
                self._apply_client(client, self.clients[client].receive(changed))  # type: ignore[arg-type]
        except RemoteProtocolError as error:
            self.errors[client] = error

    def _memory(self, client: ClientId) -> ClientMemory:
        return self.memories.get(client, ClientMemory.fresh(self.federation.manifest))

    def _apply_client(self, client: ClientId, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case Persist(record):
                    self.records.append((client, record))
                    self.memories[client] = remember(self._memory(client), record)
                case Charge():
                    self.charged.append(client)
                case Send(message, _):
                    self._to_server(client, message)
                case Upload(header, words):
                    self._to_server(client, header, words)
                case _:
                    raise AssertionError(effect)

    def _to_server(self, client: ClientId, message: object, words: np.ndarray | None = None) -> None:
        if self.lost.get(client) == self.server.phase:
            return
        changed = self.tamper_client(client, message) if self.tamper_client else message
        if changed is None:
            return
        self.view.append((client, changed))  # type: ignore[arg-type]
        answer = self.server.receive(client, changed)  # type: ignore[arg-type]
        if isinstance(answer, DropReason):
            self.drops.append((client, answer))
            return
        for effect in answer:
            if not isinstance(effect, AcceptUpload):
                self._apply_server((effect,))
                continue
            assert words is not None
            words = self.tamper_words(client, words) if self.tamper_words else words
            hasher = InputDigest()
            for chunk in chunks(words, self.server.params):
                hasher.update(chunk)
            if hasher.digest() == effect.header.input_digest:
                self.uploads[client] = words.copy()
                assert self.server.upload_complete(client) == ()

    def _apply_server(self, effects: Effects) -> None:
        for effect in effects:
            match effect:
                case Send(message, to):
                    assert to is not None
                    self._deliver(to, message)  # type: ignore[arg-type]
                case Persist(record):
                    self.records.append((None, record))
                case Aggregate(masked, masks):
                    total = np.zeros(self.server.params.total_words, dtype=np.uint64)
                    for client in masked:
                        total += self.uploads[client]
                    add_masks(total, masks)
                    self._apply_server(self.server.finish(total))
                case Released() | Abort():
                    self.outcome = effect
                case _:
                    raise AssertionError(effect)


def remember(memory: ClientMemory, record: Record) -> ClientMemory:
    """What a client's journal makes of one record."""
    match record:
        case JoinRecord():
            return replace(memory, joined=(record.round, record.attempt))
        case SpentRecord():
            ledger = memory.ledger
            for row in record.rows:
                ledger = ledger.extended(row)
            return replace(memory, spent_round=record.round, ledger=ledger)
        case _:
            raise AssertionError(record)


def random_values(manifest: Manifest, clients: Iterable[int], seed: object = 0) -> dict[ClientId, Values]:
    """Uniform values within the bound, from the deterministic test stream."""
    bound, length = manifest.aggregation.bound, manifest.adapter.size
    out = {}
    for client in clients:
        raw = np.frombuffer(insecure_rng((seed, "values", client))(8 * length), dtype="<u8")
        out[ClientId(client)] = (raw % np.uint64(2 * bound + 1)).astype(np.int64) - bound
    return out


def simulate(lost: dict[int, Phase] | None = None, n: int = 5, c: int = 1, **options: object) -> Simulation:
    """Run one attempt of n clients with random values; `lost` as in Simulation."""
    federation = Federation.create(make_manifest(n, c))
    values = random_values(federation.manifest, range(1, n + 1))
    named = {ClientId(k): v for k, v in (lost or {}).items()}
    simulation = Simulation(federation, values, named, **options)  # type: ignore[arg-type]
    simulation.run()
    return simulation
