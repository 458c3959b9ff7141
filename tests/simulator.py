"""The whole protocol in memory: any scenario in a few lines. Real sessions and cryptography, pinned randomness."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from protocol.client import ClientMemory, ClientSession, ClientSetup
from protocol.decryptor import DecryptorMemory, DecryptorSession, DecryptorSetup
from protocol.drops import DropReason
from protocol.effects import (
    Abort,
    AcceptUpload,
    AddBlock,
    Aggregate,
    Charge,
    Effects,
    Fetch,
    JoinRecord,
    OpeningRecord,
    OpenSum,
    Persist,
    Record,
    Released,
    Send,
    SpentRecord,
    Upload,
    UploadCiphertext,
    UploadRecord,
)
from protocol.encrypted import packed_digest
from protocol.errors import RemoteProtocolError
from protocol.manifest import Manifest
from protocol.messages import Announcement, ClientMessage, ServerMessage, Withdraw
from protocol.release import ReleaseLedger, resupply
from protocol.roster import Member, Peer, Roster
from protocol.server import ServerSession
from secagg.encoding import Values
from secagg.errors import SecAggError
from secagg.he.scheme import LIBRARY, AdditiveScheme, Opening
from secagg.labels import OPENED_SUM
from secagg.masking import InputDigest, add_masks, chunks
from secagg.signing import SigningKey
from secagg.types import DECRYPTOR, ClientId, Phase, Rng
from tests.insecure_scheme import InsecureScheme


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


def encrypted(assurance: str = "dual", limb_bits: int = 22) -> dict[str, object]:
    """Changes to `make_manifest` for the second lock."""
    encryption = {"scheme": "bfv", "limb_bits": limb_bits, "library": LIBRARY}
    return {"aggregation__assurance": assurance, "aggregation__encryption": encryption}


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
            "virtual_tokens": 0,
            "target_modules": ["query"],
            "seed": 7,
            "tensors": [{"name": "b", "shape": [length]}],
            "personal": [],
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
            "proximal": "0",
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
    decryptor_key: SigningKey = field(default_factory=lambda: SigningKey.generate(insecure_rng("decryptor")))
    scheme: AdditiveScheme = field(default_factory=InsecureScheme)

    @classmethod
    def create(cls, manifest: Manifest) -> "Federation":
        n = manifest.aggregation.num_clients
        server = SigningKey.generate(insecure_rng("server"))
        keys = {ClientId(i): SigningKey.generate(insecure_rng(f"client {i}")) for i in range(1, n + 1)}

        def tls(name: str) -> str:
            return hashlib.sha256(name.encode()).hexdigest()

        def second(key: SigningKey) -> Peer:
            identity = key.verify_key.to_bytes().hex()
            return Peer(name="decryptor", identity_key=identity, tls_key_sha256=tls("decryptor"))

        decryptor = SigningKey.generate(insecure_rng("decryptor"))
        roster = Roster(
            consortium="test",
            version=1,
            decryptor=None if manifest.aggregation.assurance == "masking" else second(decryptor),
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
        params = self.manifest.secagg_params()
        scheme = self.scheme if params.encrypted else None
        return ClientSetup(client, self.client_keys[client], self.roster, self.manifest, params, scheme)

    @property
    def decryptor_setup(self) -> DecryptorSetup:
        return DecryptorSetup(self.decryptor_key, self.roster, self.manifest, self.manifest.secagg_params())

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
    tamper_forward: Callable[[ClientId, UploadCiphertext], UploadCiphertext] | None = None
    decryptor_memory: DecryptorMemory = field(default_factory=DecryptorMemory)
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
        self.decryptor: DecryptorSession | None = None
        self.decryptor_error: RemoteProtocolError | None = None
        self.sum: Opening | None = None
        self.ciphertexts: dict[ClientId, UploadCiphertext] = {}

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
        if client == DECRYPTOR:
            self._to_decryptor(changed)  # type: ignore[arg-type]
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
                case UploadCiphertext(header):
                    self.ciphertexts[client] = effect
                    self._to_server(client, header)
                case _:
                    raise AssertionError(effect)

    def _to_decryptor(self, message: ServerMessage) -> None:
        f = self.federation
        try:
            if isinstance(message, Announcement):
                self.decryptor = DecryptorSession(f.decryptor_setup, message, self.decryptor_memory)
                params = f.manifest.secagg_params()
                self.sum = f.scheme.opening(params.bfv, params.total_words, message.cohort)
                assert self.sum is not None
                self._apply_decryptor(self.decryptor.start(self.sum.public_key))
            elif self.decryptor is not None:
                self._apply_decryptor(self.decryptor.receive(message))
        except RemoteProtocolError as error:
            self.decryptor_error = error
            self._to_server(DECRYPTOR, Withdraw(error.code, error.what))
        except SecAggError as error:
            self._to_server(DECRYPTOR, Withdraw(error.code, error.what))

    def _apply_decryptor(self, effects: Effects) -> None:
        decryptor, running = self.decryptor, self.sum
        assert decryptor is not None
        assert running is not None
        for effect in effects:
            match effect:
                case Persist(record):
                    self.records.append((DECRYPTOR, record))
                    self.decryptor_memory = recall(self.decryptor_memory, record)
                case Send(message, _):
                    self._to_server(DECRYPTOR, message)
                case Fetch(clients):
                    running.expect(clients)
                    for client in clients:
                        upload = self.forward(client)
                        decryptor.begin(client, upload.header)
                        for start in range(0, len(upload.data), 1000):
                            self._apply_decryptor(decryptor.part(upload.data[start : start + 1000]))
                        self._apply_decryptor(decryptor.end())
                case AddBlock(client, number, data):
                    running.add(client, number, data)
                case OpenSum():
                    self._apply_decryptor(decryptor.opened(running.open_()))
                case Upload(header, words):
                    self._to_server(DECRYPTOR, header, words)
                case _:
                    raise AssertionError(effect)

    def forward(self, client: ClientId) -> UploadCiphertext:
        """What the server passes on to the decryptor."""
        upload = self.ciphertexts[client]
        return self.tamper_forward(client, upload) if self.tamper_forward else upload

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
            if client in self.ciphertexts:
                if packed_digest(self.ciphertexts[client].data) == effect.header.input_digest:
                    assert self.server.upload_complete(client) == ()
                continue
            assert words is not None
            words = self.tamper_words(client, words) if self.tamper_words else words
            hasher = InputDigest(*((OPENED_SUM,) if client == DECRYPTOR else ()))
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
                case Aggregate(_, masks):
                    total = np.zeros(self.server.params.total_words, dtype=np.uint64)
                    for client in effect.sources:
                        total += self.uploads[client]
                    add_masks(total, masks)
                    self._apply_server(self.server.finish(total))
                case Released() | Abort():
                    self.outcome = effect
                case _:
                    raise AssertionError(effect)


def recall(memory: DecryptorMemory, record: Record) -> DecryptorMemory:
    """What a decryptor's journal makes of one record."""
    match record:
        case JoinRecord():
            return replace(memory, joined=(record.round, record.attempt))
        case OpeningRecord():
            return replace(memory, opened_round=record.round)
        case _:
            raise AssertionError(record)


def remember(memory: ClientMemory, record: Record) -> ClientMemory:
    """What a client's journal makes of one record."""
    match record:
        case JoinRecord():
            return replace(memory, joined=(record.round, record.attempt))
        case UploadRecord():
            return replace(memory, spent_round=record.round)
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
