"""A lying server, with the corrupt clients as its hands. It sees everything, signs what it likes, and has intent.

It grows a tree of worlds: announcements, sets U1 under them, U2, U3, each with what honest clients sent in it. For each
honest client it chooses which world goes on: two worlds side by side are an equivocation, with the corrupt clients in
both. It may also repeat old messages, leave clients out, keep several release ledgers and change fields.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from protocol.client import ClientSession
from protocol.client_states import ClientMemory
from protocol.context import context
from protocol.effects import Effects, Send
from protocol.errors import RemoteProtocolError
from protocol.messages import (
    AdvertiseKeys,
    Announcement,
    AttemptAborted,
    Certificate,
    ConsistencyCheck,
    DealtShare,
    KeyEntry,
    KeyList,
    LedgerRow,
    MaskedInput,
    PeerShares,
    ServerMessage,
    ShareKeys,
    SurvivorNotice,
    UnmaskingShares,
    advertise_leaf,
    consistency_body,
    hash_masked,
    root_advertised,
    root_shared,
)
from protocol.release import ReleaseLedger
from secagg.graph import NeighborGraph, RingGraph, neighbor_graph
from secagg.transcript import MerkleTree, bitmap
from secagg.types import ClientId, Phase
from tests.simulation.books import Key
from tests.simulation.client_shell import Request
from tests.simulation.settings import Fault
from tests.simulator import insecure_rng

if TYPE_CHECKING:
    from tests.simulation.world import World

WIDTH = 2  # worlds under one parent
ATTEMPTS = 5  # announcements in one run
SPLITS = {"SHARE_KEYS": 9, "MASKED_INPUT": 6, "CONSISTENCY_CHECK": 2}  # one client in so many is shown another set
FORGERIES = {1: 24, 2: 24, 3: 8, 4: 3}  # one message in so many is changed, by what it answers


@dataclass(eq=False)
class Masked:
    """A set U3 under one U2, with the row written for it."""

    members: tuple[ClientId, ...]
    notice: SurvivorNotice
    body: bytes
    signatures: dict[ClientId, bytes] = field(default_factory=dict)


@dataclass(eq=False)
class Shared:
    """A set U2 under one U1."""

    members: tuple[ClientId, ...]
    root: bytes
    inputs: set[ClientId] = field(default_factory=set)
    below: list[Masked] = field(default_factory=list)


@dataclass(eq=False)
class Advertised:
    """A set U1 under one announcement. The corrupt clients deal in it."""

    members: tuple[ClientId, ...]
    bits: bytes
    tree: MerkleTree
    root: bytes
    graph: NeighborGraph
    dealt: dict[ClientId, ShareKeys] = field(default_factory=dict)
    below: list[Shared] = field(default_factory=list)


@dataclass(eq=False)
class Announced:
    """One attempt as it was announced to some clients."""

    announcement: Announcement
    ctx: bytes
    ledger: ReleaseLedger
    keys: dict[ClientId, AdvertiseKeys] = field(default_factory=dict)
    below: list[Advertised] = field(default_factory=list)


@dataclass
class Place:
    """How far one honest client has gone, and in which world."""

    at: Announced
    u1: Advertised | None = None
    u2: Shared | None = None
    u3: Masked | None = None
    told: int = 1  # messages sent to it, the announcement included
    sent: int = 0  # messages that came back

    @property
    def stage(self) -> int:
        """0: keys awaited; 1..4: KeyList, PeerShares, SurvivorNotice, Certificate are what comes next; 5: over."""
        return self.sent


W = TypeVar("W", Advertised, Shared, Masked)


class Liar:
    """One lying server over several attempts."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.params = world.params
        self.fed = world.settings.federation
        self.inbox: dict[ClientId, list[ServerMessage]] = {c: [] for c in world.settings.clients}
        self.history: dict[ClientId, list[ServerMessage]] = {c: [] for c in world.settings.clients}
        self.places: dict[ClientId, Place] = {}
        self.ledgers = [ReleaseLedger(self.fed.manifest.digest())]
        self.key: Key = (0, 0)
        self.attempts = 0
        self.tried: dict[ClientId, int] = {}

    # -- the server's side of the wire --------------------------------------------------------------------------------

    def knocks(self, client: ClientId, token: int) -> bool:
        """Whether something waits for this client."""
        return bool(self.inbox[client])

    def fetch(self, client: ClientId, token: int) -> ServerMessage | None:
        """A poll."""
        return self.inbox[client].pop(0) if self.inbox[client] else None

    def submit(self, request: Request) -> bool:
        """Whatever a client says is kept, in the world that it says it in."""
        place, me, message = self.places.get(request.sender), request.sender, request.message
        if place is None or request.key != (place.at.announcement.round, place.at.announcement.attempt):
            return True
        match message:
            case AdvertiseKeys():
                place.at.keys[me] = message
            case ShareKeys() if place.u1 is not None:
                place.u1.dealt[me] = message
            case MaskedInput() if place.u2 is not None:
                place.u2.inputs.add(me)
            case ConsistencyCheck() if place.u3 is not None:
                place.u3.signatures[me] = message.signature
            case UnmaskingShares():
                self.world.count("lies unmasked")
            case _:
                return True
        place.sent += 1
        return True

    # -- what it does next --------------------------------------------------------------------------------------------

    def act(self) -> bool:
        """Say one thing to one client; False when there is nothing left to say."""
        waiting = sorted((p.stage, c) for c, p in self.places.items() if p.told == p.stage and 1 <= p.stage <= 4)
        waiting = [(stage, c) for stage, c in waiting if self.tried.get(c, 0) < 4]
        if waiting:
            if self.world.strikes(Fault.FORGE, 8):  # one client far ahead of the others
                waiting.reverse()
            elif not self.world.strikes(Fault.REORDER, 8):
                waiting = [(stage, c) for stage, c in waiting if stage == waiting[0][0]]
            at = self.world.schedule.pick(len(waiting)) if self.world.on(Fault.REORDER) else 0
            client = waiting[at][1]
            self.tried[client] = self.tried.get(client, 0) + 1
            self._go_on(client, self.places[client])
            return True
        if self.attempts == min(ATTEMPTS, self.world.settings.rounds + 2):
            return False
        self.attempts += 1
        self._announce()
        return True

    def _announce(self) -> None:
        """The next attempt, a retry, or (a replay) the last one again; perhaps two of them under different models."""
        world, (round_, attempt) = self.world, self.key
        way = world.schedule.pick(4)
        if round_ == 0 or way == 0:
            self.key = round_ + 1, 0
        elif way < 3 or not world.on(Fault.REPLAY):
            self.key = round_, attempt + 1
            world.count("lies retry")
        worlds = []
        ledger = self._ledger(self.ledgers[-1])
        for model in range(2 if world.strikes(Fault.SPLIT, 4) else 1):
            announcement = self.fed.announcement(*self.key, model=bytes([model]) * 32, ledger_seq=ledger.seq)
            if world.strikes(Fault.FORGE, 6):
                announcement = self._forged_announcement(announcement)
            worlds.append(Announced(announcement, context(announcement, self.params), ledger))
        if len(worlds) == 2:
            world.count("SPLIT@ADVERTISE_KEYS")
        self.tried.clear()
        for client in world.clients:
            at = worlds[world.schedule.pick(len(worlds)) if len(worlds) > 1 else 0]
            self.places[client] = Place(at)
            self._say(client, at.announcement)
        for at in worlds:
            for client in sorted(world.settings.corrupt):
                _, effects = self._corrupt_session(client, at)
                at.keys[client] = _only(effects, AdvertiseKeys)

    def _forged_announcement(self, message: Announcement) -> Announcement:
        """Another cohort, another manifest, a round beyond the last: nobody may join."""
        self.world.count("FORGE@ADVERTISE_KEYS")
        match self.world.schedule.pick(4):
            case 0:
                return replace(message, cohort=message.cohort[1:])
            case 1:
                return replace(message, manifest_digest=bytes(32))
            case 2:
                return replace(message, roster_root=bytes(32))
            case _:
                return replace(message, round=1000)

    def _go_on(self, client: ClientId, place: Place) -> None:
        """The next message for a client: in a world of its own choice, or a lie of another kind."""
        world = self.world
        stage = place.stage
        if world.strikes(Fault.REPLAY, 24 if stage < 4 else 6) and self._replay(client):
            return
        message: ServerMessage | None
        match stage:
            case 1:
                message = self._key_list(client, place)
            case 2:
                message = self._peer_shares(client, place)
            case 3:
                message = self._notice(client, place)
            case _:
                message = self._certificate(place)
        if message is None:
            return
        if world.strikes(Fault.FORGE, FORGERIES[stage]):
            message = self._forged(message)
            world.count(f"FORGE@{type(message).__name__}")
        place.told = stage + 1
        if stage > 1 and world.strikes(Fault.REPLAY, 8):
            world.count("REPLAY@aborted")
            self._say(client, AttemptAborted(*self.key, Phase(stage), "made up"))
        self._say(client, message)
        if world.strikes(Fault.REPLAY, 24 if stage < 4 else 3):
            world.count("REPLAY@again")
            self._say(client, message)

    def _replay(self, client: ClientId) -> bool:
        """Something that this client, or another one, was told before."""
        other = list(self.world.clients)[self.world.schedule.pick(len(self.world.clients))]
        past = self.history[other]
        if not past:
            return False
        message = past[-1 - self.world.schedule.pick(len(past))]
        self.world.note(f"replay of {type(message).__name__} to {client}", f"REPLAY@{type(message).__name__}")
        self._say(client, message)
        return True

    def _say(self, client: ClientId, message: ServerMessage) -> None:
        self.history[client].append(message)
        self.inbox[client].append(message)

    # -- worlds -------------------------------------------------------------------------------------------------------

    def _world(self, below: list[W], client: ClientId, name: str) -> W | None:
        """A world with this client in it, or None for a new one."""
        fitting = [w for w in below if client in w.members or self.world.strikes(Fault.SHRINK, 4)]
        if not fitting:
            return None
        if len(below) < WIDTH and self.world.strikes(Fault.SPLIT, SPLITS[name]):
            self.world.count(f"SPLIT@{name}")
            return None
        return fitting[self.world.schedule.pick(len(fitting))] if self.world.on(Fault.SPLIT) else fitting[0]

    def _subset(
        self, present: Iterable[ClientId], client: ClientId, one_in: int, first: bool = False
    ) -> tuple[ClientId, ...]:
        """All, or once in `one_in` times without some: as small as clients bear it, with SHRINK perhaps smaller."""
        members, world = sorted(present), self.world
        if not (world.strikes(Fault.SHRINK, one_in) or world.strikes(Fault.SPLIT, one_in)):
            return tuple(members)
        least = self.params.required_advertised if first else self.params.required
        least -= world.strikes(Fault.SHRINK, 8)
        omitted = world.schedule.pick(1 << len(members))
        for i, member in enumerate(tuple(members)):
            if omitted >> i & 1 and member != client and len(members) > least:
                members.remove(member)
        return tuple(members)

    def _arcs(self, client: ClientId, place: Place) -> tuple[ClientId, ...]:
        """On the ring: U2 without two opposite stretches that are just long enough to cut it into two arcs."""
        u1, u2 = place.u1, place.u2
        assert u1 is not None and u2 is not None
        if not isinstance(u1.graph, RingGraph) or not self.world.strikes(Fault.SHRINK, 2):
            return ()
        order, half = u1.graph._order, self.params.degree // 2
        start = self.world.schedule.pick(len(order))
        gaps = {order[(start + at + i) % len(order)] for at in (0, len(order) // 2) for i in range(half)}
        return tuple(c for c in u2.members if c not in gaps) if client not in gaps else ()

    def _key_list(self, client: ClientId, place: Place) -> KeyList | None:
        at = place.at
        u1 = self._world(at.below, client, "SHARE_KEYS")
        if u1 is None:
            members = self._subset(at.keys, client, 6, first=True)
            bits = bitmap(members, at.announcement.cohort)
            tree = MerkleTree([advertise_leaf(at.ctx, c, at.keys[c]) for c in members])
            root = root_advertised(at.ctx, bits, tree.root)
            u1 = Advertised(members, bits, tree, root, neighbor_graph(self.params, members, root))
            at.below.append(u1)
            for corrupt in sorted(self.world.settings.corrupt & set(members)):
                self._deal(corrupt, at, u1)
        place.u1 = u1
        return replace(
            self._list_for(client, at, u1), segment=self._ledger(at.ledger).since(at.keys[client].ledger_seq)
        )

    def _list_for(self, client: ClientId, at: Announced, u1: Advertised) -> KeyList:
        """All of U1, or on the ring the neighbours of this client with their paths; any three for who is not in U1."""
        whole = self.params.graph == "complete"
        listed = sorted((client, *u1.graph.neighbors(client))) if client in u1.members else u1.members[:3]
        paths = {c: () if whole else u1.tree.path(u1.members.index(c)) for c in listed}
        return KeyList(u1.bits, tuple(KeyEntry(c, at.keys[c], paths[c]) for c in listed), ())

    def _deal(self, corrupt: ClientId, at: Announced, u1: Advertised) -> None:
        """A corrupt client deals in this world, too: the same keys, other shares."""
        session, _ = self._corrupt_session(corrupt, at)
        try:
            u1.dealt[corrupt] = _only(session.receive(self._list_for(corrupt, at, u1)), ShareKeys)
        except RemoteProtocolError:
            self.world.count("lies too small even for the corrupt")

    def _corrupt_session(self, client: ClientId, at: Announced) -> tuple[ClientSession, Effects]:
        setup = self.world.setup(client)
        announcement = replace(
            at.announcement,
            cohort=self.world.settings.clients,
            manifest_digest=self.fed.manifest.digest(),
            roster_root=self.fed.roster.root(),
            round=min(at.announcement.round, 10),
        )
        rng = insecure_rng(("corrupt", client, announcement.round, announcement.attempt))
        session = ClientSession(setup, announcement, ClientMemory.fresh(self.fed.manifest), rng)
        return session, session.start()

    def _peer_shares(self, client: ClientId, place: Place) -> PeerShares | None:
        u1 = place.u1
        assert u1 is not None
        u2 = self._world(u1.below, client, "MASKED_INPUT")
        if u2 is None:
            members = self._subset(u1.dealt, client, 4)
            u2 = Shared(members, root_shared(u1.root, bitmap(members, u1.members)))
            u1.below.append(u2)
        place.u2 = u2
        shares = []
        for dealer in u2.members:
            message = u1.dealt[dealer]
            holders = [share.recipient for share in message.shares]
            if dealer == client or client not in holders:
                continue
            at, tree = holders.index(client), MerkleTree([share.leaf(dealer) for share in message.shares])
            share = message.shares[at]
            hashes = share.self_hash, share.key_hash
            shares.append(DealtShare(dealer, share.ciphertext, *hashes, tree.path(at), message.signature))
        return PeerShares(bitmap(u2.members, u1.members), tuple(shares))

    def _notice(self, client: ClientId, place: Place) -> SurvivorNotice | None:
        u2 = place.u2
        assert u2 is not None
        u3 = self._world(u2.below, client, "CONSISTENCY_CHECK")
        if u3 is None:
            present = u2.inputs | (self.world.settings.corrupt & set(u2.members))
            members = self._arcs(client, place) or self._subset(present, client, 2)
            bits = bitmap(members, u2.members)
            hashed = hash_masked(u2.root, bits)
            ledger = self._ledger(place.at.ledger)  # two sets under one seq, unless FORK has another idea
            row = ledger.next_row((*self.key, place.at.ctx, u2.root, hashed), self.fed.server_key)
            longer = ledger.extended(row)
            self.ledgers.append(longer)
            body = consistency_body(place.at.ctx, u2.root, hashed, longer.seq, longer.head)
            u3 = Masked(members, SurvivorNotice(bits, row), body)
            for corrupt in sorted(self.world.settings.corrupt & set(members)):
                u3.signatures[corrupt] = self.fed.client_keys[corrupt].sign(body)
            u2.below.append(u3)
        place.u3 = u3
        return u3.notice

    def _certificate(self, place: Place) -> Certificate | None:
        u3 = place.u3
        assert u3 is not None
        signatures = tuple(sorted(u3.signatures.items()))
        if len(signatures) < self.params.quorum and not self.world.strikes(Fault.FORGE, 2):
            return None
        return Certificate(signatures)

    def _ledger(self, usual: ReleaseLedger) -> ReleaseLedger:
        """The usual ledger, or with FORK an older or another one."""
        if len(self.ledgers) > 1 and self.world.strikes(Fault.FORK, 8):
            self.world.count("FORK@ledger")
            return self.ledgers[self.world.schedule.pick(len(self.ledgers))]
        return usual

    def _forged(self, message: ServerMessage) -> ServerMessage:
        """One field changed; the signatures stay as they are."""
        pick = self.world.schedule.pick
        match message:
            case KeyList(entries=entries):
                at = pick(len(entries))
                keys = entries[at].keys
                other = entries[(at + 1) % len(entries)].keys
                changed = (
                    replace(keys, masking_pk=other.masking_pk),
                    replace(keys, encryption_pk=_flip(keys.encryption_pk)),
                    replace(keys, masking_pk=_flip(keys.masking_pk)),
                    replace(keys, commitment=_flip(keys.commitment)),
                )[pick(4)]
                before, after = entries[:at], entries[at + 1 :]
                listed = (
                    (*before, replace(entries[at], keys=changed), *after),
                    (*before, *after),
                    (*before, replace(entries[at], path=entries[at].path[1:] or (bytes(32),)), *after),
                    (*after, entries[at], *before),
                )[max(pick(8) - 4, 0)]
                return replace(message, entries=listed)
            case PeerShares(shares=shares) if shares:
                at = pick(len(shares))
                share = shares[at]
                changed_share = (
                    replace(share, ciphertext=_flip(share.ciphertext)),
                    replace(share, self_hash=_flip(share.self_hash)),
                    replace(share, signature=_flip(share.signature)),
                    replace(share, path=share.path[1:]),
                )[pick(4)]
                return replace(message, shares=(*shares[:at], changed_share, *shares[at + 1 :]))
            case SurvivorNotice(masked=masked, row=row):
                return (
                    replace(message, masked=_flip(masked)),
                    replace(message, row=replace(row, seq=row.seq + 1)),
                    replace(message, row=self._other_row(row)),
                )[pick(3)]
            case Certificate(signatures=signatures) if signatures:
                at = pick(len(signatures))
                client, signature = signatures[at]
                lacking = max(self.params.quorum - len(signatures), 1)
                others = [c for c in self.world.settings.clients if c not in dict(signatures)]
                made_up = tuple((c, bytes(64)) for c in others[:lacking])
                return (
                    Certificate((*signatures[:at], (client, _flip(signature)), *signatures[at + 1 :])),
                    Certificate((*signatures, *[signatures[-1]] * lacking)),
                    Certificate(signatures[: self.params.quorum - 1]),
                    Certificate(tuple(sorted((*signatures, *made_up)))),
                )[pick(4)]
            case _:
                return message

    def _other_row(self, row: LedgerRow) -> LedgerRow:
        opened = (row.round + 1, row.attempt, row.ctx, row.root_u2, row.hash_u3)
        return self.ledgers[0].next_row(opened, self.fed.server_key)


M = TypeVar("M", AdvertiseKeys, ShareKeys)


def _only(effects: Effects, kind: type[M]) -> M:
    for effect in effects:
        if isinstance(effect, Send) and isinstance(effect.message, kind):
            return effect.message
    raise AssertionError(effects)


def _flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 0x80]) + data[1:]
