"""One vector per fault that a client, a server or a reader of documents must refuse, grouped by check.

Each is tried here against the code before it is written down: it must be refused, with the class and code of error or
the drop reason that the vector names.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from attacker import lying
from simulator import Simulation, insecure_rng
from vectors import server_checks
from vectors.attempts import ME, Vector, consortium, played, ring
from vectors.client_checks import (
    EVIL,
    STAGES,
    Case,
    advance,
    announcements,
    ring_key_lists,
    ring_notices,
)
from vectors.server_checks import BAD, flip, sign_advert, sign_input, sign_shares

from protocol import signed
from protocol.client import ClientSession
from protocol.client_states import ClientMemory
from protocol.codec import encode_client, encode_server
from protocol.drops import DropReason
from protocol.effects import Abort
from protocol.errors import DocumentError, LocalProtocolError, RemoteProtocolError
from protocol.manifest import KIND as MANIFEST_KIND
from protocol.manifest import Manifest, sign_manifest, verify_manifest
from protocol.messages import (
    AdvertiseKeys,
    ClientMessage,
    ConsistencyCheck,
    LedgerRows,
    MaskedInput,
    ShareKeys,
    Statement,
    UnmaskingShares,
    Withdraw,
)
from protocol.release import ReleaseLedger
from protocol.roster import KIND as ROSTER_KIND
from protocol.roster import sign_roster, verify_roster
from secagg import shamir
from secagg.signing import SigningKey
from secagg.types import ClientId, Phase, Rng, Secret

Files = dict[str, list[Vector]]
AFTER = {"key_list": "Announcement", "peer_shares": "KeyList", "notice": "PeerShares", "certificate": "SurvivorNotice"}


# -- the client -------------------------------------------------------------------------------------------------------


def client_files() -> Files:
    """What client 1 must refuse in the attempt of attempt.json, after the message named by `after`."""
    files: Files = {}
    for stage, cases in STAGES.items():
        for case in cases(advance(lying(), stage)):
            server = advance(lying(), stage)
            _add_client(files, case, ("attempt", AFTER[stage]), server.sessions[ME])
    for case in ring_key_lists(ring()):
        server = lying(200, 0, 2, length=4, aggregation__graph="ring")
        server.announce(to=[ME])
        _add_client(files, case, ("attempt_ring", "Announcement"), server.sessions[ME])
    played_ring = lying(200, 0, 2, length=4, aggregation__graph="ring").play()
    for case in ring_notices(played_ring):
        _add_client(files, case, ("attempt_ring", "PeerShares"), played_ring.sessions[ME])
    return files


def _add_client(files: Files, case: Case, where: tuple[str, str], session: ClientSession) -> None:
    try:
        frame = encode_server(case.message)
    except LocalProtocolError:
        return  # bytes of that kind never reach a session: the decoder refuses them (bad_frame.json)
    try:
        session.receive(case.message)
    except RemoteProtocolError as error:
        assert case.reason in error.what, (case.check, case.fault, error.what)
        given = {"attempt": where[0], "client": int(ME), "after": where[1], "frame": frame.hex()}
        how = {"error": "RemoteProtocolError", "code": error.code, "what": error.what}
        vector = {"operation": "client.receive", "given": given, "why": case.fault, "success": False, **how}
        files.setdefault(f"bad_{case.check}", []).append(vector)
        return
    raise AssertionError(f"not refused: {case.check}: {case.fault}")


def join_files() -> Files:
    """Announcements that client 1 must refuse, with what its journal holds."""
    federation, _ = consortium()
    files: Files = {}
    for case in announcements(federation):
        memory = replace(ClientMemory.fresh(federation.manifest), joined=case.joined, spent_round=case.spent_round)
        try:
            ClientSession(federation.setup(ME), case.announcement, memory, insecure_rng("unused"))
        except RemoteProtocolError as error:
            assert case.reason in error.what
            try:
                frame = encode_server(case.announcement)
            except LocalProtocolError:
                continue
            given = {"attempt": "attempt", "client": int(ME), "frame": frame.hex(), "joined": list(case.joined),
                     "spent_round": case.spent_round}  # fmt: skip
            how = {"error": "RemoteProtocolError", "code": error.code, "what": error.what}
            vector = {"operation": "client.join", "given": given, "why": case.fault, "success": False, **how}
            files.setdefault(f"bad_{case.check}", []).append(vector)
            continue
        raise AssertionError(f"not refused: {case.check}: {case.fault}")
    return files


def order_files() -> Files:
    """Messages that do not belong to the state that client 1 is in."""
    _, _, received = played(None)
    kinds = ["Announcement", "KeyList", "PeerShares", "SurvivorNotice", "Certificate"]
    vectors = []
    for i, after in enumerate(kinds):
        for kind in kinds:
            if i + 1 < len(kinds) and kind == kinds[i + 1]:
                continue
            given = {"attempt": "attempt", "client": int(ME), "after": after, "frame": received[kind]}
            how = {"error": "RemoteProtocolError", "code": "E402", "what": "unexpected message"}
            why = f"{kind} after {after}"
            vectors.append({"operation": "client.receive", "given": given, "why": why, "success": False, **how})
    return {"bad_client_order": vectors}


# -- the server -------------------------------------------------------------------------------------------------------

Change = Callable[[Simulation, Any], object]


def _signature(kind: type, forged: bytes | None) -> Change:
    def change(s: Simulation, message: Any) -> object:
        signature = bytes([message.signature[0] ^ 1]) + message.signature[1:] if forged is None else forged
        return replace(message, signature=signature) if type(message) is kind else message

    return change


def _on(kind: type, bend: Change) -> Change:
    return lambda s, message: bend(s, message) if type(message) is kind else message


def server_cases() -> Iterator[tuple[str, str, type, Change]]:
    """(file, fault, kind of message, how client 2 bends its own message of that kind)."""
    for kind, name in (
        (AdvertiseKeys, "advertise_keys"),
        (ShareKeys, "share_keys"),
        (MaskedInput, "masked_input"),
        (ConsistencyCheck, "consistency_check"),
    ):
        yield f"bad_{name}_signature", "one bit", kind, _signature(kind, None)
        yield f"bad_{name}_signature", "by another key", kind, _signature(kind, EVIL.sign(b"whatever"))
    for fault, advert in server_checks.PHASE_0.items():
        yield (
            "bad_advertise_keys_keys",
            fault,
            AdvertiseKeys,
            lambda s, m, f=advert: server_checks.sign_advert(s, f(s, m)),
        )
    for fault, (seq, head) in server_checks.LEDGER.items():
        yield (
            "bad_advertise_keys_ledger",
            fault,
            AdvertiseKeys,
            lambda s, m, q=seq, h=head: sign_advert(s, replace(m, ledger_seq=q, ledger_head=h)),
        )
    for fault, listed in server_checks.LISTS.items():
        yield "bad_share_keys_list", fault, ShareKeys, lambda s, m, f=listed: _signed_list(s, f(m))
    for fault, header in server_checks.HEADERS.items():
        yield "bad_masked_input_header", fault, MaskedInput, lambda s, m, f=header: sign_input(s, f(m))
    for fault, answer in server_checks.UNMASK.items():
        yield "bad_unmasking_shares", fault, UnmaskingShares, lambda s, m, f=answer: f(m)
    for kind in (AdvertiseKeys, ShareKeys, MaskedInput, ConsistencyCheck, UnmaskingShares):
        yield "bad_withdrawn", f"instead of {kind.__name__}", kind, lambda s, m: Withdraw("E110", "EncodingError")


def _signed_list(s: Simulation, message: ShareKeys) -> ShareKeys:
    return sign_shares(s, message) if message.shares else message


def server_files() -> Files:
    """What a server must refuse from client 2, after the honest frames of all phases before and that of client 1."""
    files: Files = {}
    for name, fault, kind, bend in server_cases():
        lost = Phase.MASKED_INPUT if kind is UnmaskingShares else None
        frame, reason = _refused(kind, bend, lost)
        if frame is not None:
            files.setdefault(name, []).append(_server_vector(fault, kind, frame, reason, lost))
    for kind in (AdvertiseKeys, ShareKeys, MaskedInput, ConsistencyCheck, UnmaskingShares):
        files.setdefault("bad_changed_message", []).append(_changed(kind))
    files |= _by_sender()
    return files


def _server_vector(fault: str, kind: type, frame: bytes, reason: DropReason, lost: Phase | None) -> Vector:
    given = {"attempt": _base(lost), "sender": int(BAD), "instead_of": kind.__name__, "frame": frame.hex()}
    return {"operation": "server.receive", "given": given, "why": fault, "success": False, "drop": reason.name}


def _base(lost: Phase | None) -> str:
    return "attempt" if lost is None else f"attempt_{lost.name.lower()}"


def _refused(kind: type, bend: Change, lost: Phase | None) -> tuple[bytes | None, DropReason]:
    federation, values = consortium()
    simulation = Simulation(federation, values, {} if lost is None else {ClientId(4): lost})
    bent: list[ClientMessage] = []

    def tamper(sender: ClientId, message: object) -> object:
        if sender == BAD and type(message) is kind and not bent:
            bent.append(bend(simulation, message))  # type: ignore[arg-type]
            return bent[0]
        return message

    simulation.tamper_client = tamper
    simulation.run()
    reason = next(r for c, r in simulation.drops if c == BAD)
    try:
        return encode_client(bent[0]), reason
    except LocalProtocolError:
        return None, reason


def _changed(kind: type) -> Vector:
    """The honest message of client 2, then another one of the same kind."""
    other = {
        "AdvertiseKeys": lambda m: replace(m, signature=bytes(64)),
        "UnmaskingShares": lambda m: replace(m, key_shares=((ClientId(1), bytes(33)),)),
    }.get(kind.__name__, lambda m: replace(m, signature=bytes(64)))
    federation, values = consortium()
    simulation = Simulation(federation, values)
    made: list[tuple[bytes, DropReason]] = []

    def tamper(sender: ClientId, message: object) -> object:
        if sender == BAD and type(message) is kind:
            simulation.server.receive(sender, message)  # type: ignore[arg-type]
            second = other(message)
            reason = simulation.server.receive(sender, second)
            assert isinstance(reason, DropReason)
            made.append((encode_client(second), reason))
        return message

    simulation.tamper_client = tamper
    simulation.run()
    given = {"attempt": "attempt", "sender": int(BAD), "after_own": kind.__name__, "frame": made[0][0].hex()}
    why = f"two different {kind.__name__}"
    return {"operation": "server.receive", "given": given, "why": why, "success": False, "drop": made[0][1].name}


def _by_sender() -> Files:
    """Good messages of the wrong sender, in the wrong phase, or of somebody who is out."""
    simulation, _, _ = played(None)
    said = {(c, type(m).__name__): encode_client(m).hex() for c, m in simulation.view}
    kinds = ["AdvertiseKeys", "ShareKeys", "MaskedInput", "ConsistencyCheck", "UnmaskingShares"]

    def vector(why: str, drop: DropReason, sender: int, due: str, frame: str, **more: Any) -> Vector:
        given = {"attempt": "attempt", "sender": sender, "instead_of": due, "frame": frame, **more}
        return {"operation": "server.receive", "given": given, "why": why, "success": False, "drop": drop.name}

    bad, first = int(BAD), "AdvertiseKeys"
    wrong_phase = [
        vector(f"{kind} where {due} is due", DropReason.WRONG_PHASE, bad, due, said[BAD, kind])
        for due in kinds
        for kind in kinds[kinds.index(due) + 1 :]
    ]
    statement = encode_client(Statement(b"{}", bytes(64))).hex()
    wrong_phase.append(
        vector("a Statement, which belongs to no attempt", DropReason.WRONG_PHASE, bad, first, statement)
    )
    lost, _, _ = played(Phase.SHARE_KEYS)
    late = said[ClientId(4), "MaskedInput"]
    out = vector("left out a phase before", lost.server.drops[ClientId(4)], 4, "MaskedInput", late)
    out["given"]["attempt"] = "attempt_share_keys"
    own = said[BAD, first]
    convicted = vector("convicted in an earlier attempt", DropReason.CONVICTED, bad, first, own, excluded=[bad])
    row = simulation.server.ledger.rows[0]
    forged = ReleaseLedger(simulation.federation.manifest.digest()).next_row(
        (row.round, row.attempt, row.ctx, row.root_u2, row.hash_u3), EVIL
    )
    rows = {
        "signed by another": (forged,),
        "a changed row": (replace(row, attempt=1),),
        "a row after a gap": (replace(row, seq=2),),
        "no row": (),
    }
    ledger_rows = [
        vector(why, DropReason.LEDGER_MISMATCH, bad, first, encode_client(LedgerRows(some)).hex())
        for why, some in rows.items()
    ]
    too_late = encode_client(LedgerRows((row,))).hex()
    ledger_rows.append(vector("good rows, but too late", DropReason.WRONG_PHASE, bad, "ShareKeys", too_late))
    return {
        "bad_phase": wrong_phase,
        "bad_not_invited": [vector("a sender outside the cohort", DropReason.NOT_INVITED, 6, first, own)],
        "bad_timed_out": [out],
        "bad_convicted": [convicted],
        "bad_ledger_rows": ledger_rows,
        "bad_upload": [
            _upload("no header came before", "MaskedInput", DropReason.UPLOAD_NOT_ACCEPTED),
            _upload("the phase is closed", "ConsistencyCheck", DropReason.WRONG_PHASE),
        ],
    }


def _upload(why: str, due: str, drop: DropReason) -> Vector:
    given = {"attempt": "attempt", "sender": int(BAD), "instead_of": due}
    return {"operation": "server.upload_complete", "given": given, "why": why, "success": False, "drop": drop.name}


# -- attempts that a server must end ----------------------------------------------------------------------------------


def dealer_files() -> Files:
    """Whole attempts in which client 2 deals badly: all frames in order, and how the server must end it."""
    mine, both = (2 * (BAD - 1), 2 * (BAD - 1) + 1), {}  # calls of `split` by client 2: its seed first, then its key
    both["shares of another self seed"] = (mine[:1], lambda share, secret: (share + 1) % shamir.PRIME)
    both["shares of another masking key"] = (mine[1:], lambda share, secret: (share + 1) % shamir.PRIME)
    both["shares of a seed of 257 bits"] = (mine[:1], lambda share, secret: (share + 2**256 - secret) % shamir.PRIME)
    both["shares that are no field elements"] = (mine[:1], lambda share, secret: 2**264 - 1)
    return {
        "bad_dealer_secret": [_dealt_bent(why, *how) for why, how in both.items()],
        "bad_dealer_shares": [_dealt_garbage((4, 5)), _dealt_garbage((4,), Phase.MASKED_INPUT)],
    }


def _dealt_bent(why: str, calls: tuple[int, ...], bend: Callable[[int, int], int]) -> Vector:
    """Every hash and ciphertext is right, but the shares are not of what was committed to or advertised."""
    done: list[None] = []
    split = shamir.split

    def deal(secret: Secret, threshold: int, xs: Any, rng: Rng) -> dict[int, Secret]:
        done.append(None)
        shares, whole = split(secret, threshold, xs, rng), int.from_bytes(secret.view, "big")
        if len(done) - 1 not in calls:
            return shares
        bent = {x: bend(int.from_bytes(s.view, "big"), whole) for x, s in shares.items()}
        return {x: Secret(value.to_bytes(shamir.SHARE_BYTES, "big")) for x, value in bent.items()}

    shamir.split = deal  # type: ignore[assignment]
    try:
        federation, values = consortium()
        simulation = Simulation(federation, values, {BAD: Phase.MASKED_INPUT} if "masking" in why else {})
        simulation.run()
    finally:
        shamir.split = split  # type: ignore[assignment]
    return _ended(simulation, why)


def _dealt_garbage(victims: tuple[int, ...], lost: Phase | None = None) -> Vector:
    federation, values = consortium()
    simulation = Simulation(federation, values, {} if lost is None else {BAD: lost})

    def tamper(sender: ClientId, message: object) -> object:
        if sender != BAD or not isinstance(message, ShareKeys):
            return message
        shares = tuple(replace(s, key_hash=flip(s.key_hash)) if s.recipient in victims else s for s in message.shares)
        return sign_shares(simulation, replace(message, shares=shares))

    simulation.tamper_client = tamper
    simulation.run()
    return _ended(simulation, f"shares that do not fit their hash, for {len(victims)} holders")


def _ended(simulation: Simulation, why: str) -> Vector:
    outcome = simulation.outcome
    assert isinstance(outcome, Abort)
    frames = [{"sender": int(c), "frame": encode_client(m).hex()} for c, m in simulation.view]
    how = {"aborted_in": outcome.phase.name, "what": outcome.reason, "convicted": list(outcome.convicted)}
    given = {"attempt": "attempt", "frames": frames}
    return {"operation": "server.run", "given": given, "why": why, "success": False, **how}


# -- documents --------------------------------------------------------------------------------------------------------

OWNER = SigningKey.generate(insecure_rng("owner"))
Edit = Callable[[dict[str, Any]], object]
MANIFEST_EDITS: dict[str, Edit] = {
    "unknown key": lambda d: d.update(extra=1),
    "missing key": lambda d: d["aggregation"].pop("max_corrupt"),
    "text for a number": lambda d: d["aggregation"].update(num_clients="5"),
    "truth value for a number": lambda d: d.update(version=True),
    "another version": lambda d: d.update(version=2),
    "another graph": lambda d: d["aggregation"].update(graph="star"),
    "homomorphic encryption": lambda d: d["aggregation"].update(assurance="he"),
    "another cipher": lambda d: d["aggregation"].update(cipher="chacha20"),
    "infeasible: one dropout too many": lambda d: d["aggregation"].update(max_dropouts=2),
    "no headroom": lambda d: d["aggregation"].update(bound=209_716),
    "a ring of five": lambda d: d["aggregation"].update(graph="ring"),
    "noise too coarse to certify": lambda d: d["privacy"].update(noise_steps=99),
    "delta above 1 / (10 * max_records)": lambda d: d["privacy"].update(delta="0.001"),
    "path that leaves the folder": lambda d: d["base_model"].update(files=[{"path": "../x", "sha256": "00" * 32}]),
    "shares of the noise, of which one client's own counts": lambda d: (
        _in_shares(d),
        d["aggregation"].update(max_corrupt=0),
    ),
    "two tensors of one name": lambda d: d["adapter"]["tensors"].append(d["adapter"]["tensors"][0]),
}


def _in_shares(manifest: dict[str, Any]) -> None:
    """Protocol R2, as it may be signed."""
    manifest["training"].update(local_steps=1, optimizer="sgd")
    manifest["privacy"].update(protocol="R2", scale=1024, clip_steps=1024, noise_steps=2048, max_records=1000)
    manifest["aggregation"].update(scale=1024, bound=2**24, slots_per_word=2)


ROSTER_EDITS: dict[str, Edit] = {
    "unknown key": lambda d: d.update(extra=1),
    "descending ids": lambda d: d.update(clients=d["clients"][::-1]),
    "an id twice": lambda d: d["clients"][1].update(client_id=1),
    "id 0": lambda d: d["clients"][0].update(client_id=0),
    "id 65536": lambda d: d["clients"][4].update(client_id=65536),
    "one identity key twice": lambda d: d["clients"][1].update(identity_key=d["clients"][0]["identity_key"]),
    "one TLS key twice": lambda d: d["clients"][1].update(tls_key_sha256=d["clients"][0]["tls_key_sha256"]),
    "the server's key for a client": lambda d: d["clients"][1].update(identity_key=d["server"]["identity_key"]),
    "one name twice": lambda d: d["clients"][1].update(name=d["clients"][0]["name"]),
    "upper-case hex": lambda d: d["clients"][0].update(identity_key=d["clients"][0]["identity_key"].upper()),
}
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "space after a colon": lambda b: b.replace(b'":', b'": ', 1),
    "line break at the end": lambda b: b + b"\n",
    "a key twice": lambda b: b[:-1] + b',"version":1}',
    "a float": lambda b: b.replace(b'"version":1', b'"version":1.0'),
    "cut off": lambda b: b[:-1],
    "keys in another order": lambda b: json.dumps(
        dict(reversed(json.loads(b).items())), separators=(",", ":")
    ).encode(),
}


def _reversed(value: dict[str, Any]) -> dict[str, Any]:
    return dict(reversed(value.items()))


def document_files() -> Files:
    """Signed documents: E302 signature, E303 form, E305 schema, in this order."""
    federation, _ = consortium()
    shared = federation.manifest.model_dump(mode="python")
    _in_shares(shared)
    Manifest.model_validate(shared)
    files: Files = {}
    for name, kind, edits, (body, signature), verify in (
        ("manifest", MANIFEST_KIND, MANIFEST_EDITS, sign_manifest(federation.manifest, OWNER), verify_manifest),
        ("roster", ROSTER_KIND, ROSTER_EDITS, sign_roster(federation.roster, OWNER), verify_roster),
    ):
        other_kind = ROSTER_KIND if name == "manifest" else MANIFEST_KIND
        wrong = {
            "one bit of the signature": (body, flip(signature)),
            "by another key": (body, signed.sign(kind, body, EVIL)),
            "as another type of document": (body, signed.sign(other_kind, body, OWNER)),
            "one byte of the body": (body.replace(b'"version":1', b'"version":3'), signature),
        }
        forms = {fault: form(body) for fault, form in FORMS.items()}
        schemas = {}
        for fault, edit in edits.items():
            value = json.loads(body)
            edit(value)
            schemas[fault] = signed.canonical(value)
        for part, cases in (
            ("signature", wrong),
            ("form", {fault: (b, signed.sign(kind, b, OWNER)) for fault, b in forms.items()}),
            ("schema", {fault: (b, signed.sign(kind, b, OWNER)) for fault, b in schemas.items()}),
        ):
            files[f"bad_{name}_{part}"] = [_document(verify, name, fault, *case) for fault, case in cases.items()]
    return files


def _document(verify: Callable[..., object], name: str, fault: str, body: bytes, signature: bytes) -> Vector:
    try:
        verify(body, signature, OWNER.verify_key)
    except DocumentError as error:
        owner = OWNER.verify_key.to_bytes().hex()
        given = {"document": name, "body": body.decode(), "signature": signature.hex(), "owner": owner}
        how = {"error": "DocumentError", "code": error.code}
        return {"operation": "verify", "given": given, "why": fault, "success": False, **how}
    raise AssertionError(f"not refused: {name}: {fault}")
