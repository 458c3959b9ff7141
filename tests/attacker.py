"""A malicious server by hand: it says what it likes to real client sessions and keeps everything that it is told.

The corrupt clients run the honest code too, and the attacker reads their states. `LyingServer.unmask` is the goal of
most attacks: the values of one client alone.
"""

from collections.abc import Callable, Iterable

import numpy as np
from simulator import Federation, insecure_rng, remember

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
    KeyList,
    PeerShares,
    ServerMessage,
    ShareKeys,
    SurvivorNotice,
    UnmaskingShares,
    hash_masked,
    root_advertised,
    root_shared,
)
from protocol.release import ReleaseLedger
from secagg import kdf, key_agreement, shamir
from secagg.encoding import Values, Words
from secagg.errors import SecAggError
from secagg.masking import Mask, add_masks, pairwise_sign, unframe
from secagg.params import SecAggParams
from secagg.signing import SigningKey
from secagg.transcript import bitmap, merkle_path
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
            if client in self.corrupt:
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

    def key_list(self, members: Iterable[ClientId] | None = None) -> KeyList:
        chosen = sorted(self.adverts if members is None else members)
        return KeyList(tuple((c, self.adverts[c]) for c in chosen), ())

    def peer_shares(self, to: ClientId, shared: Iterable[ClientId] | None = None) -> PeerShares:
        u1, u2 = tuple(sorted(self.adverts)), sorted(self.dealt if shared is None else shared)
        shares = []
        for dealer in u2:
            if dealer != to:
                message = self.dealt[dealer]
                index = [s.recipient for s in message.shares].index(to)
                share = message.shares[index]
                path = merkle_path([s.leaf(dealer) for s in message.shares], index)
                shares.append(
                    DealtShare(dealer, share.ciphertext, share.self_hash, share.key_hash, path, message.signature)
                )
        return PeerShares(bitmap(u2, u1), tuple(shares))

    def root_u2(self, shared: Iterable[ClientId] | None = None) -> bytes:
        u1 = tuple(sorted(self.adverts))
        return root_shared(
            root_advertised(self.ctx, self.key_list().entries), bitmap(self.dealt if shared is None else shared, u1)
        )

    def notice(self, masked: Iterable[ClientId], ledger: ReleaseLedger | None = None) -> SurvivorNotice:
        """A well-formed notice for U3 = `masked`, its row signed by the server's real key."""
        bits, root = bitmap(masked, tuple(sorted(self.dealt))), self.root_u2()
        row = (ledger or self.ledger).next_row(self.ctx, root, hash_masked(root, bits), self.federation.server_key)
        return SurvivorNotice(bits, row)

    def certificate(self, signers: Iterable[ClientId]) -> Certificate:
        return Certificate(tuple((c, self.signatures[c]) for c in sorted(signers)))

    # -- honest play ---------------------------------------------------------------------------------------------------

    def play(self, *, keys: bool = True, shares: bool = True) -> "LyingServer":
        """Announce and play phases 0, 1 (keys) and 2 (shares) honestly: every masked input is there."""
        self.announce()
        if keys:
            for client in self.ids:
                self.tell(client, self.key_list())
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
        members = sorted(group)
        masks: list[Mask] = []
        for member in members:
            seed = self._rebuilt(member, "self_shares", loot or {})
            if seed is None:
                return None
            masks.append(Mask(kdf.self_mask_key(seed, self.ctx, member), -1))
            for outside in sorted(set(self.dealt) - set(members)):
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
            private = self._masking_sks.get(mine) or self._rebuilt(mine, "key_shares", loot)
            if private is not None:
                return key_agreement.agree(private, self.adverts[theirs].masking_pk)
        return None

    def _rebuilt(self, dealer: ClientId, kind: str, loot: dict[ClientId, UnmaskingShares]) -> Secret | None:
        shares = {}
        for source in (self.answers, loot):
            for holder, answer in source.items():
                listed = dict(getattr(answer, kind))
                if dealer in listed:
                    shares[holder] = Secret(listed[dealer])
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
