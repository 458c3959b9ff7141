"""No secret in any text, and none left in memory under our control once an attempt has ended.

Every Secret that a client creates while it runs is recorded; at the end each of them must be empty.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from attacker import LyingServer
from simulator import Federation, Simulation, insecure_rng, make_manifest, random_values

from protocol.client_states import PHASES, Held, erase
from protocol.errors import RemoteProtocolError
from protocol.messages import AttemptAborted, KeyEntry, ShareKeys, shares_body
from secagg import types
from secagg.errors import EncodingError
from secagg.masking import Mask
from secagg.signing import SigningKey
from secagg.transcript import merkle_root
from secagg.types import ClientId, Phase, Secret

ME = ClientId(1)


@pytest.fixture
def born(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Secret, bytes]]:
    """Every Secret created during the test, with a copy of what it held at first."""
    created: list[tuple[Secret, bytes]] = []
    original = Secret.__init__

    def record(self: Secret, data: bytes | bytearray | memoryview) -> None:
        original(self, data)
        created.append((self, bytes(data)))

    monkeypatch.setattr(types.Secret, "__init__", record)
    return created


def lying(values: bool = True) -> LyingServer:
    federation = Federation.create(make_manifest())
    return LyingServer(federation, random_values(federation.manifest, range(1, 6)) if values else {})


def secrets_in(value: object) -> Iterator[Secret]:
    """Every Secret inside a value, however deep."""
    if isinstance(value, Secret):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from secrets_in(key)
            yield from secrets_in(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from secrets_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for part in dataclasses.fields(value):
            yield from secrets_in(getattr(value, part.name))


def play(server: LyingServer) -> Iterator[str]:
    """An honest attempt, one step at a time; the name of the state that everybody is in now."""
    server.announce()
    yield "AwaitingKeys"
    for client in server.ids:
        server.tell(client, server.key_list())
    yield "AwaitingShares"
    for client in server.ids:
        server.tell(client, server.peer_shares(client))
    yield "AwaitingSurvivors"
    for client in server.ids:
        server.tell(client, server.notice(server.ids))
    yield "AwaitingCertificate"
    for client in server.ids:
        server.tell(client, server.certificate(server.ids))
    yield "Completed"


def texts(*values: object) -> str:
    return "\n".join(f"{value!r}\n{value}" for value in values)


def assert_no_secret_in(text: str, secrets: list[tuple[Secret, bytes]]) -> None:
    lower = text.lower()
    for _, data in secrets:
        if len(data) >= 16:
            assert data.hex() not in lower
            assert repr(data)[2:-1] not in text
            assert str(int.from_bytes(data, "big")) not in text and str(int.from_bytes(data, "little")) not in text


def test_no_secret_in_the_text_of_any_state_message_or_effect(born: list[tuple[Secret, bytes]]) -> None:
    server = lying()
    shown = []
    for _ in play(server):
        shown.append(texts(*(s._state for s in server.sessions.values()), *server.sessions.values()))
        shown.append(texts(*server.adverts.values(), *server.dealt.values(), *server.answers.values()))
        shown.append(texts(server.memories))
    assert len(born) > 100
    assert_no_secret_in("\n".join(shown), born)
    for answer in server.answers.values():  # these are the shares that go to the server in clear
        for _, share in (*answer.self_shares, *answer.key_shares):
            assert share.hex() not in texts(answer) and repr(share)[2:-1] not in texts(answer)


def test_the_check_for_texts_can_fail() -> None:
    secret = Secret(bytes(range(32)))
    for leak in (bytes(range(32)).hex(), repr(bytes(range(32))), str(int.from_bytes(bytes(range(32)), "big"))):
        with pytest.raises(AssertionError):
            assert_no_secret_in(f"state: {leak}", [(secret, bytes(range(32)))])


def test_no_secret_in_the_text_of_effects(born: list[tuple[Secret, bytes]]) -> None:
    federation = Federation.create(make_manifest())
    seen: list[object] = []
    simulation = Simulation(
        federation, random_values(federation.manifest, range(1, 6)), {ClientId(2): Phase.MASKED_INPUT}
    )
    for name in ("_apply_client", "_apply_server"):
        original: Callable[..., None] = getattr(simulation, name)

        def tap(*args: object, original: Callable[..., None] = original) -> None:
            seen.append(args[-1])
            original(*args)

        setattr(simulation, name, tap)
    outcome = simulation.run()
    text = texts(*seen, simulation.server, outcome, simulation.errors, simulation.records)
    assert "Aggregate(" in text and "Upload(" in text and "Mask(" not in text
    public = simulation.server.ctx  # serves as a stand-in for a private key where the server tests for small order
    assert_no_secret_in(text, [(secret, data) for secret, data in born if data != public])
    total = getattr(outcome, "total", None)
    assert total is not None and str(int(abs(total).max())) not in repr(outcome)


@pytest.mark.parametrize("state", ["AwaitingKeys", "AwaitingShares", "AwaitingSurvivors", "AwaitingCertificate"])
def test_no_secret_in_the_text_of_a_refusal(born: list[tuple[Secret, bytes]], state: str) -> None:
    server = lying()
    for reached in play(server):
        if reached == state:
            break
    before = list(born)
    bent = [
        replace(server.key_list(), entries=server.key_list().entries[1:]),
        server.key_list([1, 2, 3]),
    ]
    if state != "AwaitingKeys":
        bent += [replace(server.peer_shares(ME), shares=()), server.notice([1, 2, 3]), server.certificate(())]
    errors = []
    for message in bent:
        with pytest.raises(RemoteProtocolError) as caught:
            server.sessions[ME].receive(message)
        error = caught.value
        errors.append(f"{error!r} {error} {error.what} {error.found} {error.expected} {error.do} {error.args}")
    assert_no_secret_in("\n".join(errors), before)


# -- erased -----------------------------------------------------------------------------------------------------------


def test_a_completed_attempt_leaves_no_secret(born: list[tuple[Secret, bytes]]) -> None:
    server = lying()
    for _ in play(server):
        pass
    assert len(server.answers) == 5 and len(born) > 150
    assert [s for s, _ in born if len(s)] == []


HONEST_STEPS = ["AwaitingKeys", "AwaitingShares", "AwaitingInput", "AwaitingSurvivors", "AwaitingCertificate"]


@pytest.mark.parametrize("how", ["abort()", "the server aborts", "a refusal", "superseded"])
@pytest.mark.parametrize("state", HONEST_STEPS)
def test_an_aborted_attempt_leaves_no_secret(born: list[tuple[Secret, bytes]], state: str, how: str) -> None:
    server = lying(values=state != "AwaitingInput")
    for reached in play(server):
        if reached == state or (state == "AwaitingInput" and reached == "AwaitingSurvivors"):
            break
    session = server.sessions[ME]
    assert type(session._state).__name__ == state
    held = list(secrets_in(session._state))
    assert held and all(len(s) for s in held)
    if how == "abort()":
        session.abort()
    elif how == "the server aborts":
        session.receive(AttemptAborted(1, 0, Phase.SHARE_KEYS, "too few"))
    else:
        with pytest.raises(RemoteProtocolError):
            session.receive(server.key_list([1, 2, 3]) if how == "a refusal" else server.federation.announcement(2))
    for client in server.ids:
        server.sessions[client].abort()
    assert all(len(s) == 0 for s in held)
    assert [s for s, _ in born if len(s)] == []
    assert list(secrets_in(session._state)) == [] and session._values is None


def test_a_refusal_half_way_leaves_no_secret(born: list[tuple[Secret, bytes]]) -> None:
    """The check fails when some shares are already dealt, opened or derived, and stand in no state yet."""
    server = lying()
    server.announce()
    victim, corrupt = ME, ClientId(5)
    bent = replace(server.adverts[corrupt], encryption_pk=bytes(32))  # small order: found at the last of five shares
    bent = replace(bent, signature=server.federation.client_keys[corrupt].sign(bent.body(server.ctx, corrupt)))
    honest = server.key_list()
    server.tell(victim, replace(honest, entries=(*honest.entries[:4], KeyEntry(corrupt, bent))))
    assert "not a valid X25519 key" in server.refusals[victim].what

    other = lying()
    other.play(shares=False)
    shares = other.peer_shares(victim)
    last = replace(shares.shares[-1], signature=bytes(64))
    other.tell(victim, replace(shares, shares=(*shares.shares[:-1], last)))
    assert "not signed by their dealer" in other.refusals[victim].what

    third = lying()  # a masking key of small order: found while the masks are derived
    third.announce()
    bent = replace(third.adverts[corrupt], masking_pk=bytes(32))
    bent = replace(bent, signature=third.federation.client_keys[corrupt].sign(bent.body(third.ctx, corrupt)))
    third.adverts[corrupt] = bent
    third.sessions[corrupt]._state = replace(third.sessions[corrupt]._state, mine=bent)  # type: ignore[type-var]
    for client in third.ids:
        assert third.tell(client, third.key_list())
    third.tell(victim, third.peer_shares(victim))
    assert "not a valid X25519 key" in third.refusals[victim].what

    for server_ in (server, other, third):
        for session in server_.sessions.values():
            session.abort()
    assert [s for s, _ in born if len(s)] == []


@pytest.mark.parametrize("bad", [np.full(40, 4097), np.full(40, -(2**63)), np.zeros(39, dtype=np.int64)])
def test_values_that_do_not_fit_are_never_sent(born: list[tuple[Secret, bytes]], bad: np.ndarray) -> None:
    """Given before the shares are there or after: the session ends and its secrets are erased."""
    server = lying()
    server.values[ME] = bad
    server.play(shares=False)
    with pytest.raises(EncodingError):
        server.sessions[ME].receive(server.peer_shares(ME))
    assert server.sessions[ME].phase is Phase.ABORTED and ME not in server.words
    late = lying(values=False).play()
    with pytest.raises(EncodingError):
        late.sessions[ME].provide_input(bad)
    assert late.sessions[ME].phase is Phase.ABORTED
    for session in (*server.sessions.values(), *late.sessions.values()):
        session.abort()
    assert [s for s, _ in born if len(s)] == []


def test_opened_shares_that_are_refused_are_erased(born: list[tuple[Secret, bytes]]) -> None:
    """A share whose hash does not match leads to a complaint, and the opened bytes go."""
    server = lying()
    server.play(shares=False)
    dealer = ClientId(2)
    shares = tuple(replace(s, key_hash=bytes(32)) if s.recipient == ME else s for s in server.dealt[dealer].shares)
    root_u1 = server.sessions[ME]._state.root_u1  # type: ignore[union-attr]
    root = merkle_root([s.leaf(dealer) for s in shares])
    body = shares_body(server.ctx, root_u1, dealer, root)
    server.dealt[dealer] = ShareKeys(shares, server.federation.client_keys[dealer].sign(body))
    assert server.tell(ME, server.peer_shares(ME))
    held = server.sessions[ME]._state.held  # type: ignore[union-attr]
    assert sorted(held.key_shares) == [3, 4, 5]
    for session in server.sessions.values():
        session.abort()
    assert [s for s, _ in born if len(s)] == []


def test_the_check_for_erasure_can_fail(born: list[tuple[Secret, bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.client_phases.erase", lambda value: None)
    server = lying()
    for _ in play(server):
        pass
    assert [s for s, _ in born if len(s)] != []


@pytest.mark.parametrize("state", list(PHASES), ids=lambda s: s.__name__)
def test_erase_knows_every_state(state: type) -> None:
    """A field that is added to a state later is erased as well, whatever it is wrapped in."""
    found: list[Secret] = []

    def filled(kind: type) -> object:
        parts: dict[str, object] = {}
        for part in dataclasses.fields(kind):
            text = str(part.type)
            if text.endswith("Secret") or "Secret'" in text:
                parts[part.name] = secret = Secret(b"\x02" * 32)
                found.append(secret)
            elif "Mask" in text:
                mask = Mask(Secret(b"\x03" * 32), 1)
                found.append(mask.seed)
                parts[part.name] = (mask,)
            elif "Held" in text:
                one, two = Secret(b"\x04" * 33), Secret(b"\x05" * 33)
                found.extend([one, two])
                parts[part.name] = Held({ME: one}, {ME: two})
            else:
                parts[part.name] = None
        return kind(**parts)

    value = filled(state)
    inside = list(secrets_in(value))
    assert {id(s) for s in inside} == {id(s) for s in found}
    erase(value)
    assert all(len(s) == 0 for s in found)


# -- the class itself -------------------------------------------------------------------------------------------------


def test_a_secret_is_not_copied_or_serialised() -> None:
    secret = Secret(b"attack at dawn, bring the biscuits")
    for act in (lambda s: s.__reduce_ex__(5), copy.copy, copy.deepcopy):  # the first is what pickling calls
        with pytest.raises(TypeError, match="a Secret is never"):
            act(secret)  # type: ignore[operator]
    with pytest.raises(TypeError):
        hash(secret)
    assert "dawn" not in f"{secret!r} {secret} {secret:}" and "34 bytes" in repr(secret)


def test_wiping_overwrites_the_bytes_themselves() -> None:
    data = Secret(b"\xff" * 32)
    inner = data._data
    data.wipe()
    assert inner == bytearray(32) and len(data) == 0
    data.wipe()


def test_a_signing_key_shows_its_public_half_only() -> None:
    key = SigningKey.generate(insecure_rng("a key"))
    assert key.to_bytes().hex() not in texts(key) and key.verify_key.fingerprint() in repr(key)
    assert not hasattr(key, "__dict__")
