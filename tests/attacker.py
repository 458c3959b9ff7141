"""A malicious server by hand: it says what it likes to real client sessions and keeps everything that it is told.

The corrupt clients run the honest code too, and the attacker reads their states. `LyingServer.unmask` is the goal of
most attacks: the values of one client alone.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from simulator import Federation, insecure_rng, make_manifest, random_values, remember

from protocol.client import ClientSession
from protocol.client_states import ClientMemory, ClientSetup
from protocol.effects import Charge, Persist, Send, Upload
from protocol.errors import RemoteProtocolError
from protocol.messages import (
    AdvertiseKeys,
    Announcement,
    Certificate,
    ConsistencyCheck,
    DealtShare,
    KeyEntry,
    KeyList,
    LedgerRow,
    PeerShares,
    ServerMessage,
    ShareKeys,
    SurvivorNotice,
    UnmaskingShares,
    advertise_leaf,
    hash_masked,
    root_advertised,
    root_shared,
)
from protocol.release import ReleaseLedger
from secagg import kdf, key_agreement, shamir
from secagg import params as params_module
from secagg.encoding import Values, Words
from secagg.errors import SecAggError
from secagg.graph import NeighborGraph, neighbor_graph
from secagg.masking import Mask, add_masks, pairwise_sign, unframe
from secagg.params import SecAggParams
from secagg.signing import SigningKey
from secagg.thresholds import RingParameters
from secagg.transcript import MerkleTree, bitmap
from secagg.types import ClientId, Secret


class LyingServer:
    """Talks to every client session directly. `refusals` holds why a client aborted; it never answers again."""

    def __init__(
        self,
        federation: Federation,
        values: dict[ClientId, Values],
        memories: dict[ClientId, ClientMemory] | None = None,
        seed: object = 0,
    ) -> None:
        self.federation = federation
        self.values = values
        self.params: SecAggParams = federation.manifest.secagg_params()
        self.memories = {} if memories is None else memories
        self.seed = seed
        self.ledger = ReleaseLedger(federation.manifest.digest())
        self.corrupt: frozenset[ClientId] = frozenset()  # their masking keys are the attacker's from the start
        self.corrupted_later = False  # whether `corrupt` may still grow after the keys were made
        self._masking_sks: dict[ClientId, Secret] = {}
        self.sessions: dict[ClientId, ClientSession] = {}
        self.refusals: dict[ClientId, RemoteProtocolError] = {}
        self.adverts: dict[ClientId, AdvertiseKeys] = {}
        self.dealt: dict[ClientId, ShareKeys] = {}
        self.words: dict[ClientId, Words] = {}
        self.signatures: dict[ClientId, bytes] = {}
        self.answers: dict[ClientId, UnmaskingShares] = {}
        self.leaked: dict[ClientId, UnmaskingShares] = {}

    @property
    def ids(self) -> tuple[ClientId, ...]:
        return tuple(sorted(self.federation.client_keys))

    def announce(
        self,
        announcement: Announcement | None = None,
        to: Iterable[ClientId] | None = None,
        keys: dict[ClientId, SigningKey] | None = None,
    ) -> None:
        """Start sessions. `keys` replaces identity keys: clients that the server itself plays."""
        self.announcement = announcement or self.federation.announcement()
        for client in self.ids if to is None else to:
            memory = self.memories.get(client, ClientMemory.fresh(self.federation.manifest))
            setup = self.federation.setup(client)
            if keys and client in keys:
                setup = ClientSetup(client, keys[client], setup.roster, setup.manifest, setup.params)
            try:
                rng = insecure_rng((self.seed, self.announcement.round, self.announcement.attempt, client))
                session = ClientSession(setup, self.announcement, memory, rng)
            except RemoteProtocolError as error:
                self.refusals[client] = error
                continue
            self.sessions[client] = session
            self._take(client, session.start)
            if client in self.corrupt or self.corrupted_later:
                self._masking_sks[client] = Secret(session._state.masking_sk.view)  # type: ignore[union-attr]
            if client in self.values:
                self._take(client, lambda s=session, c=client: s.provide_input(self.values[c]))

    def tell(self, client: ClientId, message: ServerMessage) -> bool:
        """Deliver; whether the client went along."""
        if client not in self.refusals:
            self._take(client, lambda: self.sessions[client].receive(message))
        return client not in self.refusals

    # -- honest messages, to be bent -----------------------------------------------------------------------------------

    @property
    def ctx(self) -> bytes:
        return next(iter(self.sessions.values())).ctx

    @property
    def graph(self) -> NeighborGraph:
        """As every client derives it from the honest list."""
        return neighbor_graph(self.params, tuple(sorted(self.adverts)), self.root_u1())

    def tree(self, members: Iterable[ClientId] | None = None) -> MerkleTree:
        chosen = sorted(self.adverts if members is None else members)
        return MerkleTree([advertise_leaf(self.ctx, c, self.adverts[c]) for c in chosen])

    def root_u1(self, members: Iterable[ClientId] | None = None) -> bytes:
        chosen = sorted(self.adverts if members is None else members)
        return root_advertised(self.ctx, bitmap(chosen, self.announcement.cohort), self.tree(chosen).root)

    def key_list(self, members: Iterable[ClientId] | None = None, to: ClientId | None = None) -> KeyList:
        """U1 = `members`; all keys on the complete graph, those around `to` on the ring."""
        chosen = tuple(sorted(self.adverts if members is None else members))
        if self.params.graph == "complete":
            entries = tuple(KeyEntry(c, self.adverts[c]) for c in chosen)
        else:
            assert to is not None
            tree = self.tree(chosen)
            near = neighbor_graph(self.params, chosen, self.root_u1(chosen)).neighbors(to)
            entries = tuple(KeyEntry(c, self.adverts[c], tree.path(chosen.index(c))) for c in sorted((to, *near)))
        return KeyList(bitmap(chosen, self.announcement.cohort), entries, ())

    def peer_shares(self, to: ClientId, shared: Iterable[ClientId] | None = None) -> PeerShares:
        u1, u2 = tuple(sorted(self.adverts)), sorted(self.dealt if shared is None else shared)
        near, shares = set(self.graph.neighbors(to)), []
        for dealer in u2:
            if dealer in near:
                message = self.dealt[dealer]
                index = [s.recipient for s in message.shares].index(to)
                share = message.shares[index]
                path = MerkleTree([s.leaf(dealer) for s in message.shares]).path(index)
                shares.append(
                    DealtShare(dealer, share.ciphertext, share.self_hash, share.key_hash, path, message.signature)
                )
        return PeerShares(bitmap(u2, u1), tuple(shares))

    def root_u2(self, shared: Iterable[ClientId] | None = None) -> bytes:
        return root_shared(self.root_u1(), bitmap(self.dealt if shared is None else shared, sorted(self.adverts)))

    def notice(self, masked: Iterable[ClientId], ledger: ReleaseLedger | None = None) -> SurvivorNotice:
        """A well-formed notice for U3 = `masked`, its row signed by the server's real key."""
        bits, root = bitmap(masked, tuple(sorted(self.dealt))), self.root_u2()
        return SurvivorNotice(bits, self.row(self.ctx, root, hash_masked(root, bits), ledger))

    def row(self, ctx: bytes, root_u2: bytes, hash_u3: bytes, ledger: ReleaseLedger | None = None) -> LedgerRow:
        """The next row of `ledger` (or of our own) for this round and attempt, signed by the server's real key."""
        opened = (self.announcement.round, self.announcement.attempt, ctx, root_u2, hash_u3)
        return (ledger or self.ledger).next_row(opened, self.federation.server_key)

    def certificate(self, signers: Iterable[ClientId]) -> Certificate:
        return Certificate(tuple((c, self.signatures[c]) for c in sorted(signers)))

    # -- honest play ---------------------------------------------------------------------------------------------------

    def play(self, *, keys: bool = True, shares: bool = True) -> "LyingServer":
        """Announce and play phases 0, 1 (keys) and 2 (shares) honestly: every masked input is there."""
        self.announce()
        if keys:
            for client in self.ids:
                self.tell(client, self.key_list(to=client))
        if shares:
            for client in self.ids:
                self.tell(client, self.peer_shares(client))
        return self

    # -- the loot ------------------------------------------------------------------------------------------------------

    def held(self, corrupt: ClientId) -> UnmaskingShares:
        """Every share that a corrupt client holds, both kinds: it answers whatever it is asked."""
        held = self.sessions[corrupt]._state.held  # type: ignore[union-attr]
        return UnmaskingShares(
            tuple((d, bytes(s.view)) for d, s in sorted(held.self_shares.items())),
            tuple((d, bytes(s.view)) for d, s in sorted(held.key_shares.items())),
        )

    def unmask(self, group: Iterable[ClientId], loot: dict[ClientId, UnmaskingShares] | None = None) -> Values | None:
        """Sum of x over `group`, often one victim, from all answers and `loot`; None if the shares do not suffice.

        A self mask needs the member's seed; a pairwise mask towards the outside needs the masking key of either end.
        """
        members, graph = sorted(group), self.graph
        masks: list[Mask] = []
        for member in members:
            seed = self._rebuilt(member, "self_shares", loot or {})
            if seed is None:
                return None
            masks.append(Mask(kdf.self_mask_key(seed, self.ctx, member), -1))
            for outside in sorted(set(graph.neighbors(member)) & set(self.dealt) - set(members)):
                agreed = self._agreed(member, outside, loot or {})
                if agreed is None:
                    return None
                shared = kdf.pairwise_seed(agreed, self.ctx, self.root_u2(), member, outside)
                masks.append(Mask(shared, -pairwise_sign(member, outside)))
        words = np.zeros(self.params.total_words, dtype=np.uint64)
        for member in members:
            words += self.words[member]
        add_masks(words, masks)
        try:
            return unframe(words, len(members), self.params)
        except SecAggError:
            return None

    def _agreed(self, one: ClientId, other: ClientId, loot: dict[ClientId, UnmaskingShares]) -> Secret | None:
        for mine, theirs in ((one, other), (other, one)):
            known = self._masking_sks.get(mine) if mine in self.corrupt else None
            private = known or self._rebuilt(mine, "key_shares", loot)
            if private is not None:
                return key_agreement.agree(private, self.adverts[theirs].masking_pk)
        return None

    def _rebuilt(self, dealer: ClientId, kind: str, loot: dict[ClientId, UnmaskingShares]) -> Secret | None:
        shares, graph = {}, self.graph
        for source in (self.answers, loot):
            for holder, answer in source.items():
                listed = dict(getattr(answer, kind))
                if dealer in listed:
                    shares[graph.point(dealer, holder)] = Secret(listed[dealer])
        try:
            return shamir.reconstruct(shares, self.params.threshold)
        except SecAggError:
            return None

    def _take(self, client: ClientId, act: "Callable[[], tuple[object, ...]]") -> None:
        try:
            effects = act()
        except RemoteProtocolError as error:
            self.refusals[client] = error
            return
        for effect in effects:
            match effect:
                case Persist(record):
                    before = self.memories.get(client, ClientMemory.fresh(self.federation.manifest))
                    self.memories[client] = remember(before, record)
                case Charge():
                    pass
                case Upload(_, words):
                    self.words[client] = words
                case Send(message, _):
                    match message:
                        case AdvertiseKeys():
                            self.adverts[client] = message
                        case ShareKeys():
                            self.dealt[client] = message
                        case ConsistencyCheck():
                            self.signatures[client] = message.signature
                        case UnmaskingShares():
                            self.answers[client] = message
                case _:
                    raise AssertionError(effect)


def lying(n: int = 5, c: int = 1, dropouts: int = 1, length: int = 40, **changes: object) -> LyingServer:
    """A malicious server of n clients with random values."""
    federation = Federation.create(make_manifest(n, c, dropouts, length, **changes))
    server = LyingServer(federation, random_values(federation.manifest, range(1, n + 1)))
    server.corrupted_later = True
    return server


def small_ring(monkeypatch: pytest.MonkeyPatch, rule: RingParameters, n: int = 16, c: int = 2) -> LyingServer:
    """The same on a ring of fewer clients than any real one, with two dropouts allowed. Only the sizes are not real:
    `rule` stands in for what the finder gives, and its promise about corrupt neighbours has to be arranged."""
    monkeypatch.setitem(params_module.SIZES, "ring", (4, 10_000))
    monkeypatch.setattr(params_module, "ring_parameters", lambda n, c, dropouts: rule)
    neighbor_graph.cache_clear()
    return lying(n, c, 2, aggregation__graph="ring")
