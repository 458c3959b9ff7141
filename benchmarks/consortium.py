"""A consortium for benchmarks: keys, roster, manifest and inputs that follow from its size alone.

Everything here is public knowledge and therefore insecure: several processes must build the same consortium, and
whoever checks a sum must know the inputs. The sessions that run on top draw their secrets from the operating system.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from protocol.client import ClientSession
from protocol.client_states import ClientMemory, ClientSetup
from protocol.manifest import Manifest
from protocol.messages import Announcement
from protocol.release import ReleaseLedger
from protocol.roster import Member, Peer, Roster
from protocol.server import ServerSession
from secagg.encoding import Values
from secagg.params import SecAggParams, default_max_corrupt
from secagg.prg import Stream
from secagg.signing import SigningKey, VerifyKey
from secagg.types import ClientId, Rng, Secret

PIECE = 1 << 20  # values made at a time


@dataclass(frozen=True)
class Size:
    """What a benchmark varies. The graph is complete below 200 clients and the ring from there on."""

    clients: int
    length: int
    slots_per_word: int = 3
    dropout_percent: int = 5
    max_corrupt: int | None = None  # None: the default of the graph
    chunk_words: int = 65536

    @property
    def graph(self) -> str:
        """complete or ring."""
        return "complete" if self.clients < 200 else "ring"

    @property
    def dropouts(self) -> int:
        """Clients that fall silent before they send their masked input."""
        return self.clients * self.dropout_percent // 100

    @property
    def bound(self) -> int:
        """Largest |value| for which a slot holds the sum of all clients, at most 2^26."""
        return min(((1 << 64 // self.slots_per_word) - 1) // (2 * self.clients), 1 << 26)


class Consortium:
    """Everybody's keys and documents."""

    def __init__(self, size: Size, memo: bool = True) -> None:
        """`memo`: good signatures are remembered, see `MemoRoster`."""
        self.size = size
        self._memo = memo
        self.ids = tuple(ClientId(i) for i in range(1, size.clients + 1))
        self.manifest = manifest_of(size)
        self.server_key = SigningKey.from_bytes(_derived("server"))

    @cached_property
    def params(self) -> SecAggParams:
        """Proved once; the same object for everybody."""
        return self.manifest.secagg_params()

    @cached_property
    def roster(self) -> Roster:
        """All members."""
        return (MemoRoster if self._memo else Roster)(
            consortium="benchmark",
            version=1,
            server=Peer(
                name="server", identity_key=_public(self.server_key), tls_key_sha256=_derived("tls", "server").hex()
            ),
            clients=tuple(
                Member(
                    client_id=i,
                    name=f"client-{i}",
                    identity_key=_public(self.client_key(i)),
                    tls_key_sha256=_derived("tls", i).hex(),
                )
                for i in self.ids
            ),
        )

    def client_key(self, client: ClientId) -> SigningKey:
        """Identity key of one client."""
        return SigningKey.from_bytes(_derived("client", client))

    def announcement(self) -> Announcement:
        """Round 1, first attempt."""
        return Announcement(1, 0, self.manifest.digest(), self.roster.root(), bytes(32), self.ids, 0)

    def server_session(self) -> ServerSession:
        """The server's side of the attempt."""
        ledger = ReleaseLedger(self.manifest.digest())
        return ServerSession(self.params, self.announcement(), self.roster, self.server_key, ledger)

    def client_session(self, client: ClientId, announcement: Announcement, rng: Rng) -> ClientSession:
        """A client that never took part before."""
        setup = ClientSetup(client, self.client_key(client), self.roster, self.manifest, self.params)
        return ClientSession(setup, announcement, ClientMemory.fresh(self.manifest), rng)

    def values(self, client: ClientId, start: int = 0, stop: int | None = None) -> Values:
        """Values `start` to `stop` of one client's input, spread over the whole allowed range; int64.

        `start` is a multiple of 4: the values are made from a stream that starts on a block.
        """
        stop = self.size.length if stop is None else stop
        out = np.empty(stop - start, dtype=np.int64)
        stream = Stream(Secret(_derived("values", client)), start // 2)
        for at in range(0, len(out), PIECE):
            part = out[at : at + PIECE]
            numbers = stream.words(-(-len(part) // 4) * 2).view("<u4")[: len(part)]
            np.subtract(numbers % np.uint32(2 * self.size.bound + 1), self.size.bound, out=part, dtype=np.int64)
        return out


class MemoKey(VerifyKey):
    """A verify key that remembers which (signature, message) it found good: in one process, a thousand clients check
    the same bytes. What is not remembered is verified; what is not good is not remembered."""

    __slots__ = ("_good",)

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        self._good: dict[bytes, bytes] = {}

    def verify(self, signature: bytes, message: bytes) -> None:
        """As `VerifyKey.verify`."""
        if self._good.get(signature) != message:
            super().verify(signature, message)
            self._good[signature] = message


class MemoRoster(Roster):
    """The roster with memoising keys. Only for many sessions in one process."""

    @cached_property
    def _memo_keys(self) -> dict[ClientId, MemoKey]:
        return {ClientId(m.client_id): MemoKey(bytes.fromhex(m.identity_key)) for m in self.clients}

    def verify_key(self, client_id: ClientId) -> VerifyKey:
        """The memoising key of a member."""
        return self._memo_keys[client_id]


def _derived(*parts: object) -> bytes:
    return hashlib.sha256(repr(("benchmark", *parts)).encode()).digest()


def _public(key: SigningKey) -> str:
    return key.verify_key.to_bytes().hex()


def manifest_of(size: Size) -> Manifest:
    n = size.clients
    corrupt = size.max_corrupt if size.max_corrupt is not None else default_max_corrupt(n, size.graph)  # type: ignore[arg-type]
    body = {
        "version": 1,
        "task": "benchmark",
        "data": "made up for a benchmark",
        "base_model": {"name": "none", "files": []},
        "adapter": {
            "method": "ffa-lora",
            "rank": 1,
            "alpha": 1,
            "virtual_tokens": 0,
            "target_modules": ["query"],
            "seed": 7,
            "tensors": [{"name": "b", "shape": [size.length]}],
            "personal": [],
        },
        "training": {
            "task": "sequence-classification",
            "labels": ["no", "yes"],
            "max_length": 16,
            "optimizer": "sgd",
            "learning_rate": "0.1",
            "rounds": 1,
            "local_steps": 1,
            "expected_batch": 8,
            "proximal": "0",
            "server": {"optimizer": "fedavg", "learning_rate": "1", "beta1": "0", "beta2": "0", "tau": "0"},
        },
        "privacy": {
            "protocol": "none",
            "unit": "record",
            "adjacency": "add-or-remove-one",
            "records_per_person": 1,
            "sampling_numerator": 1,
            "sampling_denominator": 1,
            "scale": 65536,
            "clip_steps": 65536,
            "noise_steps": 0,
            "epsilon": "0",
            "delta": "0",
            "max_records": 1000,
            "people_in_several_silos": "none",
        },
        "aggregation": {
            "graph": size.graph,
            "assurance": "masking",
            "cipher": "aes-256-ctr",
            "num_clients": n,
            "max_corrupt": corrupt,
            "max_dropouts": size.dropouts,
            "min_cohort": max((n + corrupt) // 2 + 1, 3),
            "slots_per_word": size.slots_per_word,
            "scale": 1024,
            "bound": size.bound,
            "chunk_words": size.chunk_words,
        },
    }
    return Manifest.model_validate_json(json.dumps(body))
