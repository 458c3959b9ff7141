"""What must hold after every event. The oracle sees what leaves each honest client, and what server and corrupt see.

It counts who can rebuild which secret, and which sums those secrets open; of thresholds it knows only the one that
shares were dealt with.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from protocol.client import ClientSession
from protocol.client_states import Aborted, Completed
from protocol.effects import Abort, Released
from protocol.messages import (
    AdvertiseKeys,
    Announcement,
    ConsistencyCheck,
    LedgerRow,
    MaskedInput,
    ShareKeys,
    UnmaskingShares,
)
from protocol.release import ReleaseLedger
from secagg.encoding import Values
from secagg.params import SecAggParams
from secagg.types import ClientId
from tests.simulation.books import ClientBook
from tests.simulation.settings import Fault, Settings

Key = tuple[int, int]


class ViolationError(AssertionError):
    """An invariant does not hold. `invariant` is its name, the same for every schedule that breaks it."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant


@dataclass(eq=False)
class Part:
    """One session of one honest client, as far as it has left the client."""

    client: ClientId
    key: Key
    ctx: bytes
    mine: AdvertiseKeys | None = None
    threshold: int = 0
    view: dict[ClientId, AdvertiseKeys] = field(default_factory=dict)
    root_u2: bytes = b""
    shared: tuple[ClientId, ...] = ()
    digest: bytes | None = None
    values: Values | None = None
    answered: bool = False
    seed_known: set[ClientId] = field(default_factory=set)  # holders whose share of the seed the adversary has
    key_known: set[ClientId] = field(default_factory=set)

    @property
    def seed_open(self) -> bool:
        """Whether the adversary can rebuild the self seed."""
        return bool(self.threshold) and len(self.seed_known) >= self.threshold

    @property
    def key_open(self) -> bool:
        """Whether the adversary can rebuild the masking key."""
        return bool(self.threshold) and len(self.key_known) >= self.threshold


class Oracle:
    """Watches one run. Every method raises ViolationError when an invariant breaks."""

    def __init__(self, settings: Settings, params: SecAggParams, unseen: frozenset[str] = frozenset()) -> None:
        """`unseen`: invariants that are not looked at, to see that another one breaks as well."""
        self._unseen = unseen
        self._settings = settings
        self._params = params
        self._parts: dict[ClientSession, Part] = {}
        self._by_key: dict[bytes, Part] = {}
        self._signed: dict[tuple[ClientId, int], bytes] = {}
        self._answered: dict[int, bytes] = {}  # round -> the tuple that honest clients unmasked
        self._rows: dict[tuple[ClientId, int], LedgerRow] = {}  # what a client signed in a round
        self._answered_rows: dict[int, LedgerRow] = {}  # seq -> the row whose set honest clients unmasked
        self._seeds: dict[bytes, tuple[bytes, bytes]] = {}
        self._opened: dict[int, frozenset[Part]] = {}
        self._released: dict[Key, tuple[ClientId, ...]] = {}
        self._spent_values: dict[tuple[ClientId, int], Key] = {}
        spec = settings.federation.manifest.aggregation
        self._quorum = (spec.num_clients + spec.max_corrupt) // 2 + 1  # SPEC 4.4, on its own

    def _broken(self, invariant: str, detail: str) -> None:
        if invariant not in self._unseen:
            raise ViolationError(invariant, detail)

    # -- clients ------------------------------------------------------------------------------------------------------

    def joined(self, client: ClientId, session: ClientSession, message: Announcement) -> None:
        """A session was made for this announcement."""
        fed, key = self._settings.federation, (message.round, message.attempt)
        if client not in self._settings.corrupt:
            self._parts[session] = Part(client, key, session.ctx)
        documents = fed.manifest.digest(), fed.roster.root(), self._settings.clients
        if (message.manifest_digest, message.roster_root, message.cohort) != documents:
            self._broken("announcement", f"client {client} joins under other documents than the signed ones")
        if not 1 <= message.round <= fed.manifest.training.rounds:
            self._broken("announcement", f"client {client} joins round {message.round}")

    def silent(self, session: ClientSession, effects: tuple[Any, ...], over: bool) -> None:
        """`effects` came out of a session that had been ended before if `over`."""
        if over and effects:
            self._broken("silence", f"an ended session still acts: {type(effects[0]).__name__}")
        if isinstance(session._state, Aborted | Completed) and session._values is not None:
            self._broken("silence", "an ended session keeps the values")

    def derived(self, seed: bytes, where: tuple[bytes, bytes]) -> None:
        """A pairwise mask seed was derived for `where` = (ctx, root of U2)."""
        if self._seeds.setdefault(seed, where) != where:
            self._broken("mask-reuse", "one pairwise mask for two sets U2")

    def leaves(self, session: ClientSession, message: object, book: ClientBook) -> None:
        """An honest client hands this to its network."""
        part = self._parts.get(session)
        if part is None:
            return
        state: Any = session._state
        match message:
            case AdvertiseKeys():
                self._advertised(part, message, book)
            case ShareKeys():
                part.view = dict(state.advertised)
                self._authentic(part)
                part.threshold = self._params.threshold
                for known in (part.seed_known, part.key_known):
                    known |= self._settings.corrupt & set(part.view)
                self._exposed(part)
            case ConsistencyCheck():
                self._checked(part, session, state, book)
            case UnmaskingShares():
                self._unmasked(part, state, session, message)

    def uploads(self, session: ClientSession, header: MaskedInput, values: Values, paid: bool) -> None:
        """An honest client starts to send its masked input."""
        part = self._parts.get(session)
        if part is None:
            return
        if not paid:
            self._broken("charged", f"client {part.client} sends an update that it has not charged durably")
        if part.digest not in (None, header.input_digest):
            self._broken("one-input", f"client {part.client} masks two inputs with one key")
        state: Any = session._state
        part.digest, part.values = header.input_digest, values
        part.root_u2, part.shared = state.root_u2, state.shared
        if len(part.shared) < self._settings.min_cohort:
            self._broken("cohort", f"client {part.client} masks for {len(part.shared)} clients")

    def _advertised(self, part: Part, message: AdvertiseKeys, book: ClientBook) -> None:
        if book.memory.joined < part.key:
            self._broken("joined", f"client {part.client} joins {part.key} without a durable record")
        for public in (message.masking_pk, message.encryption_pk, message.commitment):
            if self._by_key.setdefault(public, part) is not part:
                self._broken("fresh-keys", f"client {part.client} advertises a key a second time")
        part.mine = message

    def _checked(self, part: Part, session: ClientSession, state: Any, book: ClientBook) -> None:
        round_ = part.key[0]
        if book.memory.spent_round < round_:
            self._broken("spent", f"client {part.client} signs in round {round_} before it is durably spent")
        if self._signed.setdefault((part.client, round_), state.signed_body) != state.signed_body:
            self._broken("one-set", f"client {part.client} signs two sets in round {round_}")
        masked = session.survivors or ()
        if len(masked) < self._settings.min_cohort or part.client not in masked:
            self._broken("cohort", f"client {part.client} signs {masked}")
        if part.digest is None:
            self._broken("one-set", f"client {part.client} signs without an input of its own")
        row = book.memory.ledger.rows[-1]
        if (row.round, row.attempt, row.ctx, row.root_u2) != (*part.key, part.ctx, part.root_u2):
            self._broken("ledger", f"client {part.client} signs a row of another attempt")
        if [r.seq for r in book.memory.ledger.rows] != list(range(1, row.seq + 1)):
            self._broken("ledger", f"client {part.client} signs seq {row.seq}, which is not the next")
        self._rows[part.client, round_] = row

    def _unmasked(self, part: Part, state: Any, session: ClientSession, message: UnmaskingShares) -> None:
        round_, signed = part.key[0], self._signed.get((part.client, part.key[0]))
        if part.answered or signed is None:
            self._broken("one-answer", f"client {part.client} unmasks twice, or what it has not signed")
        part.answered = True
        agreeing = [c for (c, r), body in self._signed.items() if r == round_ and body == signed]
        if len(agreeing) + len(self._settings.corrupt) < self._quorum:
            self._broken("quorum", f"client {part.client} unmasks what only {agreeing} signed")
        row = self._rows[part.client, round_]
        if self._answered_rows.setdefault(row.seq, row) != row:
            self._broken("ledger", f"two unmasked sets stand under seq {row.seq}")
        if self._answered.setdefault(round_, signed) != signed:
            self._broken("one-opened", f"honest clients unmask two sets in round {round_}")
        survivors = set(session.survivors or ())
        selfs, keys = {d for d, _ in message.self_shares}, {d for d, _ in message.key_shares}
        if selfs & keys:
            self._broken("one-kind", f"client {part.client} answers both shares of {sorted(selfs & keys)}")
        if not selfs <= survivors or keys & survivors or not keys <= set(part.shared):
            self._broken("one-kind", f"client {part.client} answers the wrong kind of share")
        for dealers, kind in ((selfs, "seed_known"), (keys, "key_known")):
            for dealer in dealers:
                victim = self._by_key.get(part.view[dealer].masking_pk)
                if victim is not None:
                    getattr(victim, kind).add(part.client)
                    self._exposed(victim)
        self._openings(round_)

    def _authentic(self, part: Part) -> None:
        """Towards an honest peer nothing is masked or sealed but under a key that this peer advertised here."""
        for peer, keys in part.view.items():
            if peer in self._settings.corrupt:
                continue
            owner = self._by_key.get(keys.masking_pk)
            if owner is None or owner.mine != keys or (owner.client, owner.ctx) != (peer, part.ctx):
                self._broken("authentic-keys", f"client {part.client} takes keys that {peer} never advertised")

    def _exposed(self, victim: Part) -> None:
        if victim.seed_open and victim.key_open:
            self._broken("both-shares", f"seed and key of client {victim.client} can both be rebuilt")

    # -- what is open -------------------------------------------------------------------------------------------------

    def _openings(self, round_: int) -> None:
        """Every sum of honest inputs that the adversary can unmask now: one per round, and never a small one."""
        for honest in self._open_sums():
            least = self._settings.min_cohort - len(self._settings.corrupt)
            if len(honest) < least:
                who = sorted(part.client for part in honest)
                self._broken("exposed", f"the sum over honest clients {who} alone can be unmasked")
            if {part.key[0] for part in honest} != {round_}:
                continue
            if self._opened.setdefault(round_, honest) != honest:
                self._broken("one-opened", f"two different sums of round {round_} can be unmasked")

    def _open_sums(self) -> list[frozenset[Part]]:
        """Components of uploads that only their own sum can unmask, all of whose other masks are known."""
        groups: dict[tuple[bytes, bytes], dict[ClientId, Part]] = defaultdict(dict)
        for part in self._parts.values():
            if part.digest is not None:
                groups[part.ctx, part.root_u2][part.client] = part
        found = []
        for group in groups.values():
            left = [client for client, part in group.items() if part.seed_open]
            while left:
                component, frontier, closed = {left[0]}, [left[0]], True
                while frontier:
                    for peer in self._unknown_masks(group[frontier.pop()]):
                        if peer in component:
                            continue
                        if peer in left:
                            component.add(peer)
                            frontier.append(peer)
                        else:
                            closed = False  # this mask stays in the sum
                left = [client for client in left if client not in component]
                if closed:
                    found.append(frozenset(group[client] for client in component))
        return found

    def _unknown_masks(self, part: Part) -> list[ClientId]:
        if part.key_open:
            return []
        out = []
        for peer in part.shared:
            keys = part.view.get(peer)  # on the ring: a neighbour, or nothing is masked towards it
            other = self._by_key.get(keys.masking_pk) if keys is not None and peer != part.client else None
            if other is not None and not other.key_open:
                out.append(peer)
        return out

    # -- an honest server ---------------------------------------------------------------------------------------------

    def released(self, key: Key, released: Released, inputs: dict[ClientId, Values]) -> None:
        """An honest server publishes a sum. `inputs`: the values that each client framed for this attempt."""
        masked = released.masked
        if len(masked) < self._settings.min_cohort:
            self._broken("cohort", f"a sum over {masked} is released")
        if self._released.setdefault(key, masked) != masked:
            self._broken("one-opened", f"attempt {key} is released twice")
        if any(k[0] == key[0] and k != key for k in self._released):
            self._broken("one-opened", f"round {key[0]} is released twice")
        seen = {part.client for part in self._opened.get(key[0], ())}
        if seen != set(masked) - self._settings.corrupt:
            self._broken("oracle", f"a sum over {masked} is released, and the oracle saw {sorted(seen)} opened")
        bits = sum(1 << (client - 1) for client in masked)
        if int(released.total[0]) != bits:
            self._broken("sum", f"declared {masked}, summed {int(released.total[0]):b}")
        if any(int(t) != sum(int(inputs[c][i]) for c in masked) for i, t in enumerate(released.total)):
            self._broken("sum", f"the sum over {masked} is not that of what they sent")
        for client in masked:
            nonce = (client, int(inputs[client][2]))
            if client not in self._settings.corrupt and self._spent_values.setdefault(nonce, key) != key:
                self._broken("one-opened", f"one update of client {client} is released twice")

    def row_written(self, row: LedgerRow, before: int) -> None:
        """An honest server writes a row behind `before` rows."""
        if row.seq != before + 1:
            self._broken("ledger", f"row {row.seq} behind {before} rows")

    def noticed(self, row: LedgerRow, ledger: ReleaseLedger) -> None:
        """An honest server shows this row to clients; `ledger` is what it has on disk."""
        if ledger.seq < row.seq or ledger.rows[row.seq - 1] != row:
            self._broken("ledger", f"row {row.seq} is shown before it is durable")

    def aborted(self, outcome: Abort, lost: int) -> None:
        """An honest server gives an attempt up, of which `lost` clients are missing."""
        wrong = set(outcome.convicted) - self._settings.corrupt
        if wrong:
            self._broken("honest-blamed", f"clients {sorted(wrong)} are convicted")
        sabotage = Fault.SABOTAGE in self._settings.faults
        adopted = outcome.reason.startswith("this server was behind")
        if not sabotage and not adopted and lost <= self._params.max_dropouts:
            self._broken("needless", f"{lost} clients lost, none corrupt: {outcome.reason}")
        dealers = ("dealt shares" in outcome.reason or "shares of client" in outcome.reason) and sabotage
        if dealers and "too few" not in outcome.reason and not outcome.convicted:
            self._broken("unblamed", f"nobody is convicted although {outcome.reason}")
