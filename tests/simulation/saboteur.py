"""Corrupt clients of an honest server: they run the real session and bend what it sends, newly signed."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from protocol.client_phases import _share_ad, _share_key
from protocol.messages import (
    KEY_SHARE,
    SELF_SHARE,
    AdvertiseKeys,
    ConsistencyCheck,
    LedgerRow,
    LedgerRows,
    MaskedInput,
    SealedShare,
    ShareKeys,
    UnmaskingShares,
    Withdraw,
    input_body,
    share_hash,
    shares_body,
)
from secagg import aead, shamir
from secagg.key_agreement import Agreement
from secagg.masking import InputDigest, chunks
from secagg.transcript import merkle_root
from secagg.types import ClientId, Secret
from tests.simulation.client_shell import ClientShell, Request

if TYPE_CHECKING:
    from tests.simulation.world import World

Reseal = Callable[[ClientId, bytes], bytes]

OVERFLOW = (1 << 256).to_bytes(shamir.SHARE_BYTES, "big")  # a constant polynomial whose secret has no 32 bytes
NO_FIELD = b"\xff" * shamir.SHARE_BYTES  # no field element

ODDS = {AdvertiseKeys: 4, ShareKeys: 2}  # one in so many is bent: who is left out at once can do no more
# What fails late comes more often than what is seen at once.
KEY_WAYS = (6, 7, 6, 7, 0, 1, 2, 3, 4, 5, 8)
SHARE_WAYS = (2, 3, 4, 5, 6, 7, 2, 3, 4, 5, 6, 7, 0, 1, 8)
INPUT_WAYS = (2, 6, 5, 2, 6, 0, 1, 3, 4)


class Saboteur:
    """Bends messages, as the schedule says."""

    def __init__(self, world: "World") -> None:
        self.world = world

    def bend(self, shell: ClientShell, request: Request) -> Request:
        """What a corrupt client sends in place of `request`."""
        pick = self.world.schedule.pick
        if not self.world.schedule.chance(ODDS.get(type(request.message), 2)):
            return request
        bent: Request | None
        match request.message:
            case AdvertiseKeys() as message:
                bent = self._keys(shell, request, message, KEY_WAYS[pick(len(KEY_WAYS))])
            case ShareKeys() as message:
                bent = self._shares(shell, request, message, SHARE_WAYS[pick(len(SHARE_WAYS))])
            case MaskedInput() as message:
                bent = self._input(shell, request, message, INPUT_WAYS[pick(len(INPUT_WAYS))])
            case ConsistencyCheck() as message:
                bent = self._plain(request, replace(message, signature=_flip(message.signature)), pick(4))
            case UnmaskingShares() as message:
                bent = self._plain(request, self._answer(message, pick(4)), pick(6))
            case _:
                bent = request
        return bent if bent is not None else request

    def _plain(self, request: Request, message: Any, way: int) -> Request:
        """The bent message, a withdrawal, made-up ledger rows, or first the honest and later the bent one."""
        self.world.note(
            f"  corrupt {request.sender} bends {type(request.message).__name__}, way {way}",
            f"SABOTAGE@{type(request.message).__name__}",
        )
        match way:
            case 1:
                return replace(request, message=Withdraw("E000", "made up"))
            case 2:
                self.world.stale.append(replace(request, message=message))
                return request
            case 3:
                row = LedgerRow(1, 1, 0, bytes(32), bytes(32), bytes(32), bytes(64))
                return replace(request, message=LedgerRows((row,)))
            case _:
                return replace(request, message=message)

    def _keys(self, shell: ClientShell, request: Request, message: AdvertiseKeys, way: int) -> Request:
        assert shell.process is not None and shell.process.session is not None
        session: Any = shell.process.session
        changed = (
            replace(message, signature=_flip(message.signature)),
            replace(message, masking_pk=message.encryption_pk),
            replace(message, masking_pk=bytes(32)),
            replace(message, encryption_pk=b"\xff" * 32),
            replace(message, ledger_head=bytes(32)),
            replace(message, ledger_seq=message.ledger_seq + 1),
        )
        if way < len(changed):
            bent = changed[way]
            if way:
                key = self.world.settings.federation.client_keys[shell.me]
                bent = replace(bent, signature=key.sign(bent.body(session.ctx, shell.me)))
            return self._plain(request, bent, 0)
        match way:
            case 6:  # another secret than the committed one will be dealt
                session._state = replace(session._state, self_seed=Secret(bytes(range(32))))
            case 7:
                session._state = replace(session._state, masking_sk=Secret(bytes(range(32))))
            case _:
                return self._plain(request, replace(message, signature=_flip(message.signature)), 2)
        self.world.count("SABOTAGE@secret")
        return request

    def _shares(self, shell: ClientShell, request: Request, message: ShareKeys, way: int) -> Request:
        some = self.world.schedule.pick(1 << len(message.shares))

        def hit(holder: ClientId) -> bool:
            return bool(some >> holder & 1)

        match way:
            case 0:
                bent = replace(message, signature=_flip(message.signature))
            case 1:
                bent = self._signed(shell, message.shares[1:])
            case 2:  # what does not open for some
                bent = self._signed(
                    shell,
                    tuple(
                        replace(s, ciphertext=_flip(s.ciphertext)) if s.ciphertext and hit(s.recipient) else s
                        for s in message.shares
                    ),
                )
            case 3:  # what opens, but to another hash
                bent = self._signed(
                    shell,
                    tuple(replace(s, self_hash=_flip(s.self_hash)) if hit(s.recipient) else s for s in message.shares),
                )
            case 4:
                bent = self._resealed(shell, message, lambda holder, plain: OVERFLOW + plain[shamir.SHARE_BYTES :])
            case 5:
                bent = self._resealed(shell, message, lambda holder, plain: NO_FIELD + plain[shamir.SHARE_BYTES :])
            case 6:
                bent = self._resealed(shell, message, lambda holder, plain: plain[: shamir.SHARE_BYTES] + OVERFLOW)
            case 7:
                bent = self._resealed(
                    shell, message, lambda holder, plain: b"\0" + _flip(plain[1:]) if hit(holder) else plain
                )
            case _:
                return self._plain(request, replace(message, signature=_flip(message.signature)), 2)
        return self._plain(request, bent, 0)

    def _resealed(self, shell: ClientShell, message: ShareKeys, change: Reseal) -> ShareKeys:
        """Other plaintexts, sealed and hashed as they should be."""
        assert shell.process is not None and shell.process.session is not None
        session: Any = shell.process.session
        state, ctx, me = session._state, session.ctx, shell.me
        shares = []
        for share in message.shares:
            if share.recipient == me:
                shares.append(share)
                continue
            peer = state.advertised[share.recipient].encryption_pk
            key = _share_key(Agreement(state.encryption_sk), peer, (ctx, state.root_u1), (me, share.recipient))
            data = _share_ad(ctx, state.root_u1, me, share.recipient)
            plain = change(share.recipient, bytes(aead.open_(key, share.ciphertext, data).view))
            halves = Secret(plain[: shamir.SHARE_BYTES]), Secret(plain[shamir.SHARE_BYTES :])
            shares.append(
                SealedShare(
                    share.recipient,
                    aead.seal(key, plain, data),
                    share_hash(ctx, me, share.recipient, SELF_SHARE, halves[0]),
                    share_hash(ctx, me, share.recipient, KEY_SHARE, halves[1]),
                )
            )
        return self._signed(shell, tuple(shares))

    def _signed(self, shell: ClientShell, shares: tuple[SealedShare, ...]) -> ShareKeys:
        assert shell.process is not None and shell.process.session is not None
        session: Any = shell.process.session
        root = merkle_root([share.leaf(shell.me) for share in shares])
        key = self.world.settings.federation.client_keys[shell.me]
        return ShareKeys(shares, key.sign(shares_body(session.ctx, session._state.root_u1, shell.me, root)))

    def _input(self, shell: ClientShell, request: Request, message: MaskedInput, way: int) -> Request:
        assert shell.process is not None and shell.process.session is not None and request.words is not None
        session: Any = shell.process.session
        others = [c for c in session._state.shared if c != shell.me]
        victim = others[self.world.schedule.pick(len(others))]
        words = request.words
        match way:
            case 0:
                return self._plain(request, replace(message, signature=_flip(message.signature)), 0)
            case 1:
                bent = replace(message, total_words=message.total_words + 1)
            case 2:
                bent = replace(message, complaints=(victim,))
            case 3:
                bent = replace(message, complaints=(victim, victim))
            case 4:
                bent = replace(message, complaints=(shell.me,))
            case 5:  # other words than the header's digest says
                request.words = words + 1
                return self._plain(request, message, 0)
            case _:  # words that are no masked input
                hasher = InputDigest()
                request.words = words + 1
                for chunk in chunks(request.words, self.world.params):
                    hasher.update(chunk)
                bent = replace(message, input_digest=hasher.digest())
        key = self.world.settings.federation.client_keys[shell.me]
        signature = key.sign(input_body(session.ctx, session._state.root_u2, shell.me, bent))
        return self._plain(request, replace(bent, signature=signature), 0)

    def _answer(self, message: UnmaskingShares, way: int) -> UnmaskingShares:
        selfs, keys = message.self_shares, message.key_shares
        match way:
            case 0 if selfs:
                return UnmaskingShares(((selfs[0][0], _flip(selfs[0][1])), *selfs[1:]), keys)
            case 1:
                return UnmaskingShares(selfs[1:], keys)
            case 2:
                return UnmaskingShares(keys, selfs)
            case _:
                return UnmaskingShares(selfs, (*keys, *selfs[:1]))


def _flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 0x40]) + data[1:]
