"""Protocol bugs that the simulation must find: each is a copy of one function of ours with a few words changed.

The copy is made from the source, so a bug that no longer fits the code is an error, not a test that passes.
"""

import __future__

import contextlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from unittest.mock import patch

from protocol import client_phases, key_list, release, server
from protocol.client import ClientSession
from protocol.server import ServerSession
from protocol.unmasking import Unmasking
from secagg import kdf
from secagg.params import SecAggParams
from tests.simulation.server_shell import ServerShell
from tests.simulation.settings import Settings
from tests.simulator import insecure_rng

Edit = tuple[str, str]


@dataclass(frozen=True)
class Bug:
    """A defect, the invariants of which at least one must break, and in which runs it can show at all."""

    name: str
    breaks: frozenset[str]
    needs: frozenset[str]  # names of Server and Fault, or RING
    planted: Callable[[], AbstractContextManager[None]]
    unseen: frozenset[str] = frozenset()  # invariants that would break first

    def can_show(self, settings: Settings) -> bool:
        """Whether these settings hold everything that the bug needs."""
        graph = settings.federation.manifest.aggregation.graph.upper()
        return self.needs <= {settings.server.name, graph, *(fault.name for fault in settings.faults)}


def edited(owner: object, name: str, *edits: Edit) -> AbstractContextManager[object]:
    """`owner.name` with each `old` replaced by `new` in its source; `old` must stand there exactly once."""
    found = vars(owner)[name]
    function = found.fget if isinstance(found, property) else found
    text = textwrap.dedent(inspect.getsource(function))
    for old, new in edits:
        if text.count(old) != 1:
            raise AssertionError(f"{name} has {old!r} {text.count(old)} times")
        text = text.replace(old, new)
    scope: dict[str, object] = {}
    flags = __future__.annotations.compiler_flag
    home = vars(sys.modules[function.__module__])
    exec(compile(text, f"<bug in {name}>", "exec", flags=flags, dont_inherit=True), home, scope)  # noqa: S102
    copy = scope[function.__name__]
    return patch.object(owner, name, copy)


def edit(name: str, breaks: str, needs: str, *places: tuple[object, str, *tuple[Edit, ...]]) -> Bug:
    """A bug made of edits. `breaks` and `needs`: names, separated by spaces."""

    @contextlib.contextmanager
    def planted() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, function, *changes in places:
                stack.enter_context(edited(owner, function, *changes))
            yield

    return Bug(name, frozenset(breaks.split()), frozenset(needs.split()), planted)


@contextlib.contextmanager
def _lower(*names: str) -> Iterator[None]:
    """Derived parameters one lower."""
    with contextlib.ExitStack() as stack:
        for name in names:
            right = vars(SecAggParams)[name].fget
            assert right is not None
            stack.enter_context(patch.object(SecAggParams, name, property(lambda self, get=right: get(self) - 1)))
        yield


@contextlib.contextmanager
def _one_key_stream() -> Iterator[None]:
    right = client_phases.advertise_keys
    with patch.object(client_phases, "advertise_keys", lambda a, rng: right(a, insecure_rng(("fixed", a.setup.me)))):
        yield


@contextlib.contextmanager
def _seed_without_root() -> Iterator[None]:
    right = kdf.pairwise_seed
    with patch.object(kdf, "pairwise_seed", lambda s, ctx, root, one, other: right(s, ctx, bytes(32), one, other)):
        yield


@contextlib.contextmanager
def _any_rows() -> Iterator[None]:
    """A client that takes whatever rows it is shown for an extension."""

    def follow(ledger: release.ReleaseLedger, rows: tuple[object, ...], key: object) -> release.ReleaseLedger:
        for row in rows:
            ledger = ledger.extended(row)  # type: ignore[arg-type]
        return ledger

    with patch.object(client_phases, "follow", follow):
        yield


def bug(
    name: str, breaks: str, needs: str, planted: Callable[[], AbstractContextManager[None]], unseen: str = ""
) -> Bug:
    """A bug of its own kind. `breaks`, `needs` and `unseen`: names, separated by spaces."""
    return Bug(name, *(frozenset(words.split()) for words in (breaks, needs)), planted, frozenset(unseen.split()))


BUGS = (
    bug("quorum one lower", "quorum", "LYING", lambda: _lower("quorum")),
    bug("quorum one lower: two sets are opened", "one-opened", "LYING SPLIT", lambda: _lower("quorum"), "quorum"),
    bug(
        "threshold and quorum one lower: both secrets of one client",
        "both-shares",
        "LYING SPLIT",
        lambda: _lower("threshold", "quorum"),
        "quorum one-opened cohort ledger exposed",
    ),
    bug("required one lower", "cohort", "LYING SHRINK", lambda: _lower("required")),
    bug(
        "required one lower: a small sum is opened",
        "exposed",
        "LYING SHRINK",
        lambda: _lower("required", "threshold", "quorum"),
        "cohort quorum",
    ),
    bug("threshold of the ring one lower", "exposed", "LYING SHRINK RING", lambda: _lower("threshold"), "cohort"),
    bug("one key stream for every attempt", "fresh-keys", "HONEST", _one_key_stream),
    bug("root_u2 left out of the pairwise seed", "mask-reuse", "LYING SPLIT", _seed_without_root),
    bug("any release-ledger row is followed", "ledger", "LYING FORK", _any_rows),
    edit(
        "spent is written after signing",
        "spent",
        "HONEST",
        (
            client_phases,
            "check_consistency",
            (
                "(Persist(record), Send(ConsistencyCheck(setup.signing_key.sign(body))))",
                "(Send(ConsistencyCheck(setup.signing_key.sign(body))), Persist(record))",
            ),
        ),
    ),
    edit(
        "joined is written after sending",
        "joined",
        "HONEST",
        (client_phases, "advertise_keys", ("(Persist(record), Send(mine))", "(Send(mine), Persist(record))")),
    ),
    edit(
        "charged after sending",
        "charged",
        "HONEST",
        (
            client_phases,
            "mask_input",
            ("(charge, Upload(header, words))", "(Upload(header, words), charge)"),
        ),
    ),
    edit(
        "a spent round is joined again",
        "spent",
        "LYING",
        (ClientSession, "__init__", ("announcement.round <= memory.spent_round", "False")),
    ),
    edit(
        "an attempt is joined twice",
        "spent joined",
        "",
        (ClientSession, "__init__", ("(announcement.round, announcement.attempt) <= memory.joined", "False")),
    ),
    edit(
        "the announced documents are not compared",
        "announcement",
        "LYING FORGE",
        (ClientSession, "__init__", ("announcement_error(announcement, setup.roster, setup.manifest)", "None")),
    ),
    edit(
        "key advertisements are not verified",
        "authentic-keys",
        "LYING FORGE",
        (key_list, "_check_keys", (".verify(keys.signature, keys.body(attempt.ctx, client))", "")),
    ),
    edit(
        "both shares are answered",
        "one-kind both-shares",
        "",
        (
            client_phases,
            "unmask",
            ("sorted(state.held.key_shares.items()) if d not in survivors", "sorted(state.held.key_shares.items())"),
        ),
    ),
    edit(
        "shares are answered twice",
        "one-answer",
        "LYING REPLAY",
        (client_phases, "unmask", ("    erase(state.held)\n    return Completed(), (Send", "    return state, (Send")),
    ),
    edit(
        "a second set may be signed",
        "one-set ledger",
        "LYING REPLAY",
        (
            ClientSession,
            "_step",
            (
                "case (AwaitingSurvivors() as state, SurvivorNotice()):",
                "case (AwaitingSurvivors() | AwaitingCertificate(), SurvivorNotice()):\n"
                "            state = self._first = getattr(self, '_first', None) or self._state",
            ),
        ),
    ),
    edit(
        "the certificate's signatures are not verified",
        "quorum",
        "LYING FORGE",
        (client_phases, "unmask", (".verify(signature, state.signed_body)", "")),
    ),
    edit(
        "one signer counts twice",
        "quorum",
        "LYING FORGE",
        (client_phases, "unmask", ("signers != sorted(set(signers)) or not", "not")),
    ),
    edit(
        "the size of the certificate is not checked",
        "quorum",
        "LYING FORGE",
        (client_phases, "unmask", ("len(signers) < setup.params.quorum", "False")),
    ),
    edit(
        "a client unmasks a set that it is not in",
        "cohort",
        "LYING SHRINK",
        (
            client_phases,
            "check_consistency",
            ("members is None or setup.me not in members", "members is None"),
        ),
    ),
    edit(
        "the row may be that of another attempt",
        "ledger",
        "LYING FORGE",
        (
            client_phases,
            "check_consistency",
            ("opened != (*key, attempt.ctx, state.root_u2, hash_u3)", "False"),
        ),
    ),
    edit(
        "an opened share is not compared with its hash",
        "honest-blamed",
        "HONEST SABOTAGE",
        (
            client_phases,
            "_open_share",
            ("        and share_hash(ctx, share.dealer, me, SELF_SHARE, self_share) == share.self_hash\n", ""),
        ),
    ),
    edit(
        "an aborted session goes on",
        "silence",
        "LYING REPLAY",
        (ClientSession, "abort", ("self._state = Aborted(reason)\n        erase(state)", "pass")),
    ),
    edit(
        "one complaint counts twice",
        "honest-blamed",
        "HONEST SABOTAGE",
        (
            ServerSession,
            "_may_complain",
            ("list(named) == sorted(set(named))", "True"),
        ),
        (
            ServerSession,
            "_close_masked",
            ("set(self._complaints(c))", "self._complaints(c)"),
        ),
    ),
    edit(
        "as many complaints as corrupt clients convict",
        "honest-blamed",
        "HONEST SABOTAGE",
        (ServerSession, "_close_masked", ("count > self.params", "count >= self.params")),
    ),
    edit(
        "shares are expected of a dealer that was complained of",
        "honest-blamed",
        "HONEST SABOTAGE",
        (ServerSession, "_check_unmasking", ("set(self._complaints(sender))", "set()")),
    ),
    edit(
        "an upload counts before its body is there",
        "crash needless",
        "HONEST CUT_UPLOAD",
        (
            ServerSession,
            "receive",
            (
                "self._headers[sender] = message\n",
                "self._headers[sender] = self._messages[phase][sender] = message\n",
            ),
        ),
    ),
    edit(
        "a late upload is folded in",
        "needless sum crash",
        "HONEST CUT_UPLOAD EARLY_CLOSE",
        (
            ServerSession,
            "upload_complete",
            ("self.phase is not Phase.MASKED_INPUT", "False"),
            (" or sender in self.drops", ""),
        ),
        (
            ServerSession,
            "_close_unmasking",
            (
                "(Aggregate(self.masked, masks, opened=self.params.encrypted),)",
                "(Aggregate(tuple(self._messages[Phase.MASKED_INPUT]), masks),)",
            ),
        ),
    ),
    edit(
        "all of U2 is declared",
        "sum crash",
        "HONEST",
        (ServerSession, "finish", ("(Released(self.masked, total),)", "(Released(self.shared, total),)")),
    ),
    edit(
        "a wrong sum is released",
        "sum",
        "HONEST SABOTAGE",
        (server, "unframe", ("if zero_words.any():", "if False:"), ("if int(total[1]) != count:", "if False:")),
    ),
    edit(
        "the sign of a lost client's masks",
        "needless",
        "HONEST",
        (Unmasking, "_pairwise_masks", ("-pairwise_sign(peer, dropped)", "pairwise_sign(peer, dropped)")),
    ),
    edit(
        "self masks stay in the sum",
        "needless",
        "HONEST",
        (Unmasking, "_self_mask", ("self.ctx, client), -1)", "self.ctx, client), +1)")),
    ),
    edit(
        "a changed message replaces the first",
        "honest-refused honest-blamed needless crash one-view",
        "HONEST SABOTAGE",
        (
            ServerSession,
            "receive",
            (
                "return self._drop(sender, DropReason.CHANGED_MESSAGE)",
                "self._messages[phase][sender] = message",
            ),
        ),
    ),
    edit(
        "the row is written after the notices",
        "ledger",
        "HONEST",
        (
            ServerSession,
            "_close_masked",
            (
                "return (Persist(ReleaseRecord(row, self.ledger.head)), *(Send(notice, c) for c in self.masked))",
                "return (*(Send(notice, c) for c in self.masked), Persist(ReleaseRecord(row, self.ledger.head)))",
            ),
        ),
    ),
    edit(
        "a restored server forgets resupplied rows",
        "liveness",
        "HONEST SERVER_CRASH REWIND",
        (ServerSession, "_adopt", ("(*records, *self._abort(reason))", "self._abort(reason)")),
    ),
    edit(
        "clients keep what a restored server lost",
        "liveness",
        "HONEST SERVER_CRASH REWIND",
        (release, "resupply", ("return LedgerRows(rows) if rows else None", "return None")),
    ),
    edit(
        "a dealer of shares of no secret is not convicted",
        "unblamed",
        "HONEST SABOTAGE",
        (Unmasking, "_reconstruct", ("raise DealerFault(dealer, ", "raise ReconstructionError(")),
    ),
    edit(
        "a convicted dealer comes back",
        "convicted",
        "HONEST SABOTAGE",
        (ServerSession, "_check_advertise", ("sender in self._excluded", "False")),
    ),
    edit(
        "a phase is logged after its messages went out",
        "one-view ledger honest-refused one-set one-opened",
        "HONEST SERVER_CRASH EARLY_CLOSE",
        (
            ServerShell,
            "close",
            (
                "log.entries.append(PhaseClosed())\n        self._apply(effects)",
                "self._apply(effects)\n        log.entries.append(PhaseClosed())",
            ),
        ),
    ),
    edit(
        "messages are not logged",
        "receipt",
        "HONEST SERVER_CRASH",
        (ServerShell, "_submit", ("log.entries.append(Received", "_ = (Received")),
    ),
)
