"""The second lock: real sessions of server, clients and decryptor; every way to misuse the decryptor has its refusal.

State machines run on an additive scheme that hides nothing; whatever depends on encryption runs on the real one.
"""

import typing
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from ciphertexts import Sealed, framed, unframed
from simulator import Federation, Simulation, encrypted, make_manifest, random_values
from vectors.second_lock import REQUESTS, fewer

from protocol import client_phases
from protocol.client import ClientSession
from protocol.decryptor import DecryptorMemory, DecryptorSession
from protocol.drops import DropReason
from protocol.effects import (
    Abort,
    AddBlock,
    Charge,
    Fetch,
    JoinRecord,
    OpeningRecord,
    OpenSum,
    Persist,
    Released,
    Send,
    SpentRecord,
    Upload,
    UploadCiphertext,
    UploadRecord,
)
from protocol.encrypted import (
    MAX_BLOCK,
    BlockReader,
    DecryptorKey,
    EncryptedInput,
    InputHash,
    InputHashes,
    OpenedSum,
    OpeningRequest,
    pack,
    packed_digest,
)
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import Announcement, Certificate, KeyList, ServerMessage, SurvivorNotice
from secagg.encoding import Words
from secagg.he.bfv import Bfv
from secagg.he.scheme import BfvParams
from secagg.transcript import bitmap
from secagg.types import DECRYPTOR, ClientId, Phase
from tests.insecure_scheme import InsecureScheme

ME, OTHER, CORRUPT = ClientId(1), ClientId(2), ClientId(5)
ALL = tuple(ClientId(i) for i in range(1, 6))


def consortium(assurance: str = "dual", real: bool = False, **changes: object) -> Federation:
    """Five clients, one of them corrupt, one may be lost."""
    federation = Federation.create(make_manifest(5, 1, 1, 40, **encrypted(assurance), **changes))
    return replace(federation, scheme=Bfv() if real else InsecureScheme())


def attempt(federation: Federation, **options: object) -> Simulation:
    """One attempt, ready to run."""
    values = random_values(federation.manifest, range(1, 6))
    return Simulation(federation, values, **options)  # type: ignore[arg-type]


def exact(run: Simulation, members: tuple[int, ...] = ALL) -> bool:
    outcome = run.outcome
    expected = np.sum([run.values[ClientId(c)] for c in members], axis=0)
    return isinstance(outcome, Released) and outcome.masked == members and np.array_equal(outcome.total, expected)


def aborted(run: Simulation, reason: str) -> None:
    assert isinstance(run.outcome, Abort)
    assert reason in run.outcome.reason, run.outcome.reason


# -- the sum ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limb_bits", [16, 22, 32])
@pytest.mark.parametrize("assurance", ["dual", "he"])
def test_the_sum_is_that_of_the_masked_round(assurance: str, limb_bits: int) -> None:
    changes = encrypted(assurance, limb_bits)
    federation = replace(Federation.create(make_manifest(5, 1, 1, 4000, **changes)), scheme=Bfv())
    run, plain = attempt(federation), attempt(Federation.create(make_manifest(5, 1, 1, 4000)))
    for simulation in (run, plain):
        simulation.run()
    assert federation.manifest.secagg_params().num_blocks > (1 if limb_bits == 16 else 0)
    assert isinstance(run.outcome, Released) and isinstance(plain.outcome, Released)
    assert np.array_equal(run.outcome.total, plain.outcome.total) and exact(run)


@pytest.mark.parametrize("assurance", ["dual", "he"])
@pytest.mark.parametrize("phase", [*(p for p in Phase if p < Phase.COMPLETED), Phase.INPUT_HASHES])
def test_a_lost_client_stops_nothing(assurance: str, phase: Phase) -> None:
    run = attempt(consortium(assurance), lost={ClientId(4): phase})
    run.run()
    stays = phase in (Phase.CONSISTENCY_CHECK, Phase.UNMASKING)
    assert exact(run, ALL if stays else (1, 2, 3, 5))


@pytest.mark.parametrize("phase", [Phase.ADVERTISE_KEYS, Phase.UNMASKING])
def test_without_the_decryptor_there_is_no_sum(phase: Phase) -> None:
    run = attempt(consortium(), lost={DECRYPTOR: phase})
    run.run()
    aborted(run, "the decryptor did not answer")
    assert isinstance(run.outcome, Abort) and run.outcome.phase is phase


def test_another_assurance_than_the_signed_one_is_another_context() -> None:
    """What a server announces is the manifest's digest: with another assurance the client never joins."""
    dual, masking, he = consortium("dual"), Federation.create(make_manifest()), consortium("he")
    for signed, announced in ((dual, masking), (masking, dual), (dual, he), (he, dual)):
        memory = attempt(signed)._memory(ME)
        with pytest.raises(RemoteProtocolError, match="announced manifest differs"):
            ClientSession(signed.setup(ME), announced.announcement(), memory, bytes)
    assert dual.manifest.secagg_params().digest() != he.manifest.secagg_params().digest()


def test_nothing_of_the_masked_protocol_has_changed() -> None:
    run = attempt(Federation.create(make_manifest()))
    run.run()
    kinds = {type(message).__name__ for _, message in run.view}
    assert kinds == {"AdvertiseKeys", "ShareKeys", "MaskedInput", "ConsistencyCheck", "UnmaskingShares"}
    assert run.server.receive(DECRYPTOR, DecryptorKey(b"key", bytes(64))) is DropReason.NOT_INVITED


# -- hashes before uploads --------------------------------------------------------------------------------------------


def test_no_ciphertext_leaves_before_every_hash_is_there() -> None:
    run = attempt(consortium())
    run.run()
    kinds = [type(message) for _, message in run.view]
    last = max(i for i, kind in enumerate(kinds) if kind is InputHash)
    assert last < min(i for i, kind in enumerate(kinds) if kind is EncryptedInput)


def test_order_of_effects() -> None:
    """Charged before even the hash leaves; without masks the round is spent before the ciphertext does."""
    for assurance in ("dual", "he"):
        run = attempt(consortium(assurance))
        effects: list[object] = []
        apply = run._apply_client

        def record(client: ClientId, given: tuple[object, ...], apply: Callable[..., None] = apply) -> None:
            effects.extend(given if client == ME else ())  # noqa: B023 - called within this turn
            apply(client, given)

        run._apply_client = record  # type: ignore[method-assign, assignment]
        run.run()
        names = [
            type(e.record).__name__
            if isinstance(e, Persist)
            else type(e.message).__name__
            if isinstance(e, Send)
            else type(e).__name__
            for e in effects
        ]
        spent = ["UploadRecord"] if assurance == "he" else []
        assert names[3:] == [
            "Charge",
            "InputHash",
            *spent,
            "UploadCiphertext",
            "SpentRecord",
            "ConsistencyCheck",
            "UnmaskingShares",
        ]


def changed_list(change: Callable[[InputHashes], InputHashes]) -> Callable[[ClientId, object], object]:
    def tamper(client: ClientId, message: object) -> object:
        return change(message) if client == ME and isinstance(message, InputHashes) else message

    return tamper


def without(*left_out: int) -> Callable[[InputHashes], InputHashes]:
    keep = [c for c in ALL if c not in left_out]
    return lambda m: InputHashes(bitmap(keep, ALL), b"".join(m.digests[32 * (c - 1) : 32 * c] for c in keep))


LISTS = {
    "the bitmap of the hashes is malformed or leaves us out": [without(1), lambda m: replace(m, listed=b"\xff\xff")],
    "too few hashes": [without(2, 3)],
    "the hashes are not one for each listed client, all different": [
        lambda m: replace(m, digests=m.digests[:-32]),
        lambda m: replace(m, digests=m.digests[:-32] + m.digests[32:64]),
    ],
    "our own hash is missing or changed": [lambda m: replace(m, digests=bytes(32) + m.digests[32:])],
}


@pytest.mark.parametrize(("reason", "change"), [(r, c) for r, changes in LISTS.items() for c in changes])
def test_a_client_refuses_such_a_list(reason: str, change: Callable[[InputHashes], InputHashes]) -> None:
    run = attempt(consortium(), tamper_server=changed_list(change))
    run.run()
    assert reason in run.errors[ME].what
    assert ME not in run.ciphertexts  # nothing was uploaded


def test_two_lists_give_no_quorum() -> None:
    """A client that saw another list uploads under another signature, which the server cannot use."""
    run = attempt(consortium(), tamper_server=changed_list(without(CORRUPT)))
    run.run()
    assert (ME, DropReason.BAD_SIGNATURE) in run.drops
    assert exact(run, (2, 3, 4, 5))


def test_a_member_of_u3_that_gave_no_hash_is_refused() -> None:
    run = attempt(consortium(), lost={ClientId(4): Phase.INPUT_HASHES})
    whole = bitmap(ALL, ALL)

    def tamper(client: ClientId, message: object) -> object:
        return replace(message, masked=whole) if isinstance(message, SurvivorNotice) else message

    run.tamper_server = tamper
    run.run()
    assert {e.what for e in run.errors.values()} == {"a member of U3 is not in the list of hashes"}


def test_a_copied_hash_is_dropped() -> None:
    """A20: a corrupt client that repeats somebody's hash would have that ciphertext counted twice."""
    federation = consortium()
    copied: list[InputHash] = []

    def tamper(client: ClientId, message: object) -> object:
        if not isinstance(message, InputHash):
            return message
        if client != CORRUPT:
            copied.append(message)
            return message
        return replace(message, input_digest=copied[0].input_digest)

    run = attempt(federation, tamper_client=tamper)
    run.run()
    assert (CORRUPT, DropReason.BAD_HEADER) in run.drops
    assert exact(run, (1, 2, 3, 4))


def test_another_ciphertext_than_the_hashed_one_is_dropped() -> None:
    def tamper(client: ClientId, message: object) -> object:
        changed = client == CORRUPT and isinstance(message, EncryptedInput)
        return replace(message, input_digest=bytes(32)) if changed else message  # type: ignore[type-var]

    run = attempt(consortium(), tamper_client=tamper)
    run.run()
    assert (CORRUPT, DropReason.CHANGED_MESSAGE) in run.drops
    assert exact(run, (1, 2, 3, 4))


# -- the decryptor's key ----------------------------------------------------------------------------------------------


def keys(change: Callable[[KeyList], KeyList]) -> Callable[[ClientId, object], object]:
    return lambda client, message: change(message) if client == ME and isinstance(message, KeyList) else message


def test_a_key_that_the_decryptor_did_not_sign_for_this_attempt_is_refused() -> None:
    earlier = attempt(consortium(), attempt=0)
    earlier.run()
    old = earlier.server._lock.key
    for change in (
        lambda m: replace(m, decryptor_key=bytes(16)),
        lambda m: replace(m, decryptor_signature=bytes(64)),
        lambda m: replace(m, decryptor_key=b"", decryptor_signature=b""),
        lambda m: replace(m, decryptor_key=old[0], decryptor_signature=old[1]),  # of another ctx
    ):
        run = attempt(consortium(), attempt=1, tamper_server=keys(change))
        run.run()
        assert "not signed by the roster's decryptor" in run.errors[ME].what


def test_a_signed_key_that_is_none_is_refused() -> None:
    federation = consortium(real=True)

    class Lying(Bfv):
        def opening(self, *given: object) -> object:  # type: ignore[override]
            made = Bfv().opening(*given)  # type: ignore[arg-type]
            made._public_key = bytes(len(made.public_key))
            return made

    run = attempt(replace(federation, scheme=Lying()))
    run.run()
    assert all("the decryptor's key cannot be used" in e.what for e in run.errors.values()) and len(run.errors) == 5


def test_a_key_where_nothing_is_encrypted_is_refused() -> None:
    change = keys(lambda m: replace(m, decryptor_key=b"key", decryptor_signature=bytes(64)))
    run = attempt(Federation.create(make_manifest()), tamper_server=change)
    run.run()
    assert "a decryptor's key where the manifest encrypts nothing" in run.errors[ME].what


def test_two_keys_for_one_ctx_split_the_clients() -> None:
    """Even a decryptor that signs two keys gains nothing: no tuple with a quorum names both. SPEC 6.8."""
    federation = consortium()
    run = attempt(federation)
    second = InsecureScheme().opening(federation.manifest.secagg_params().bfv, 1, (1, 2)).public_key
    from protocol.encrypted import key_body

    signature = federation.decryptor_key.sign(key_body(run.server.ctx, second))

    def tamper(client: ClientId, message: object) -> object:
        split = client in (1, 2) and isinstance(message, KeyList)
        return replace(message, decryptor_key=second, decryptor_signature=signature) if split else message  # type: ignore[type-var]

    run.tamper_server = tamper
    run.run()
    aborted(run, "3 clients left")  # the shares of 1 and 2 are signed under another root


# -- the request ------------------------------------------------------------------------------------------------------


def request(change: Callable[[OpeningRequest], OpeningRequest]) -> Callable[[ClientId, object], object]:
    return lambda client, message: change(message) if isinstance(message, OpeningRequest) else message


@pytest.mark.parametrize(("reason", "change"), [(r, c) for r, changes in REQUESTS.items() for c in changes.values()])
def test_the_decryptor_refuses_such_a_request(reason: str, change: Callable[[OpeningRequest], OpeningRequest]) -> None:
    run = attempt(consortium(), tamper_server=request(change))
    run.run()
    assert run.decryptor_error is not None and reason in run.decryptor_error.what
    aborted(run, reason)
    assert run.decryptor is not None and run.decryptor.ended


# -- the ciphertexts --------------------------------------------------------------------------------------------------


def forwarded(change: Callable[[UploadCiphertext], UploadCiphertext]) -> Callable[..., UploadCiphertext]:
    return lambda client, upload: change(upload) if client == OTHER else upload


def flipped(upload: UploadCiphertext, at: int) -> UploadCiphertext:
    data = bytearray(upload.data)
    data[at] ^= 1
    return replace(upload, data=bytes(data))


FORWARDED: dict[str, list[Callable[[UploadCiphertext], UploadCiphertext]]] = {
    "a ciphertext that ends early": [lambda u: replace(u, data=u.data[:-1]), lambda u: replace(u, data=b"")],
    "a ciphertext longer than its header says": [lambda u: replace(u, data=u.data + b"\x00")],
    "a ciphertext with another hash than its client signed": [lambda u: flipped(u, -1)],
    "a ciphertext that cannot be read": [lambda u: flipped(u, 0)],  # a length
    "a ciphertext whose hash is not in the signed list": [
        lambda u: replace(u, header=replace(u.header, input_digest=bytes(32)))
    ],
    "a ciphertext of an impossible length": [lambda u: replace(u, header=replace(u.header, total_bytes=1))],
    "a ciphertext that its client did not sign after the list of hashes": [
        lambda u: replace(u, header=replace(u.header, signature=bytes(64)))
    ],
}


@pytest.mark.parametrize(("reason", "change"), [(r, c) for r, changes in FORWARDED.items() for c in changes])
def test_the_decryptor_refuses_what_was_changed_on_the_way(
    reason: str, change: Callable[[UploadCiphertext], UploadCiphertext]
) -> None:
    run = attempt(consortium(), tamper_forward=forwarded(change))
    run.run()
    assert run.decryptor_error is not None and reason in run.decryptor_error.what
    aborted(run, reason)


class Evil(Bfv):
    """A corrupt client's way to encrypt: `make` gives its blocks, of the right digest."""

    def __init__(self, make: "Callable[[BfvParams, bytes, Words], list[bytes]]") -> None:
        self.make = make

    def encryptor(self, params: BfvParams, public_key: bytes) -> "typing.Any":
        return typing.cast("typing.Any", _EvilEncryptor(self, params, public_key))


class _EvilEncryptor:
    def __init__(self, scheme: Evil, params: BfvParams, public_key: bytes) -> None:
        self.scheme, self.given = scheme, (params, public_key)

    def encrypt(self, words: Words) -> Iterator[bytes]:
        return iter(self.scheme.make(*self.given, words))


def honest_blocks(params: BfvParams, key: bytes, words: Words) -> list[bytes]:
    return list(Bfv().encryptor(params, key).encrypt(words))


def under_another_key(params: BfvParams, key: bytes, words: Words) -> list[bytes]:
    return honest_blocks(params, Bfv().opening(params, len(words), (1, 2)).public_key, words)


def other_parameters(params: BfvParams, key: bytes, words: Words) -> list[bytes]:
    other = BfvParams(9, params.limb_bits)
    return honest_blocks(other, Bfv().opening(other, len(words), (1, 2)).public_key, words)


def truncated(params: BfvParams, key: bytes, words: Words) -> list[bytes]:
    return [block[:-100] for block in honest_blocks(params, key, words)]


def over_long(params: BfvParams, key: bytes, words: Words) -> list[bytes]:
    return [block + bytes(100) for block in honest_blocks(params, key, words)]


def flip_bit(block: bytes, bit: int) -> bytes:
    """One bit of the last coefficient of the second polynomial: c1 = a."""
    content = bytearray(Sealed.read(unframed(block)).content)
    content[-8 + bit // 8] ^= 1 << (bit % 8)
    return framed(Sealed(bytes(content)).write())


def bit_flipped(params: BfvParams, key: bytes, words: Words) -> list[bytes]:
    return [flip_bit(block, params.modulus.bit_length() - 2) for block in honest_blocks(params, key, words)]


def above_the_modulus(params: BfvParams, key: bytes, words: Words) -> list[bytes]:
    return [flip_bit(block, params.modulus.bit_length()) for block in honest_blocks(params, key, words)]


def one_more(params: BfvParams, key: bytes, words: Words) -> list[bytes]:
    blocks = honest_blocks(params, key, words)
    return [*blocks, b"x"]


EVIL: list[tuple[Callable[..., list[bytes]], str]] = [
    (under_another_key, "the opened value is no sum of limbs"),
    (other_parameters, "leading fields"),
    (truncated, "header of a sealed object|bytes of the ciphertext"),
    (over_long, "bytes of the ciphertext|bytes of a sealed object"),
    (bit_flipped, "the opened value is no sum of limbs"),
    (above_the_modulus, "a coefficient that is not below its modulus"),
    (one_more, "a ciphertext that cannot be read: more ciphertexts"),
]


@pytest.mark.parametrize(("make", "reason"), EVIL, ids=lambda value: getattr(value, "__name__", None))
def test_a_corrupt_clients_ciphertext_is_never_in_a_sum(make: Callable[..., list[bytes]], reason: str) -> None:
    """It has the digest that the client signed: only what it is can give it away, before or at the opening."""
    federation = consortium(real=True)
    run = attempt(federation)
    setup = Federation.setup

    def corrupted(client: ClientId) -> typing.Any:
        made = setup(federation, client)
        return replace(made, scheme=Evil(make)) if client == CORRUPT else made

    object.__setattr__(run.federation, "setup", corrupted)
    run.run()
    assert isinstance(run.outcome, Abort)
    import re

    said = run.outcome.reason
    assert re.search(reason, said), said


# -- once -------------------------------------------------------------------------------------------------------------


def played(federation: Federation) -> tuple[Simulation, OpeningRequest]:
    """A finished attempt, and the request that its decryptor was sent."""
    told: list[OpeningRequest] = []

    def tamper(client: ClientId, message: object) -> object:
        if isinstance(message, OpeningRequest):
            told.append(message)
        return message

    run = attempt(federation, tamper_server=tamper)
    run.run()
    assert exact(run)
    return run, told[0]


def test_asked_again_it_gives_the_same_bytes_and_nothing_else() -> None:
    run, asked = played(consortium())
    assert run.decryptor is not None
    (again,) = run.decryptor.receive(asked)
    assert isinstance(again, Upload) and again.header in [m for _, m in run.view if isinstance(m, OpenedSum)]
    with pytest.raises(RemoteProtocolError, match="a second opening of one attempt"):
        run.decryptor.receive(fewer(asked))
    with pytest.raises(RemoteProtocolError, match=r"second opening|key that is gone"):
        run.decryptor.receive(asked)


def test_a_restarted_decryptor_has_no_key() -> None:
    run, asked = played(consortium())
    setup, announcement = run.federation.decryptor_setup, run.federation.announcement()
    assert run.decryptor_memory == DecryptorMemory((1, 0), 1)
    with pytest.raises(RemoteProtocolError, match="a key was made for this attempt"):
        DecryptorSession(setup, announcement, run.decryptor_memory)
    fresh = DecryptorSession(setup, announcement, DecryptorMemory())
    with pytest.raises(RemoteProtocolError, match="a key that is gone"):
        fresh.receive(asked)
    with pytest.raises(RemoteProtocolError, match="a sum of this round was opened already"):
        DecryptorSession(setup, run.federation.announcement(1, 1), run.decryptor_memory)
    DecryptorSession(setup, run.federation.announcement(2), run.decryptor_memory)


def test_a_request_for_the_key_of_another_attempt_is_refused() -> None:
    run, asked = played(consortium())
    assert run.sum is not None
    other = DecryptorSession(run.federation.decryptor_setup, run.federation.announcement(2), DecryptorMemory())
    other.start(run.sum.public_key)  # even with the very same key
    with pytest.raises(RemoteProtocolError, match="not on this set"):
        other.receive(asked)


def test_journalled_before_it_answers() -> None:
    run, _ = played(consortium())
    mine = [record for owner, record in run.records if owner == DECRYPTOR]
    assert isinstance(mine[0], JoinRecord) and isinstance(mine[1], OpeningRecord) and len(mine) == 2
    assert mine[1].ctx == run.server.ctx and mine[1].hash_u3 == run.server._hash_u3


def test_effects_of_the_decryptor_in_order() -> None:
    federation = consortium()
    run = attempt(federation)
    effects: list[str] = []
    apply = run._apply_decryptor

    def record(given: tuple[object, ...]) -> None:
        effects.extend(type(e).__name__ for e in given)
        apply(given)  # type: ignore[arg-type]

    run._apply_decryptor = record  # type: ignore[method-assign, assignment]
    run.run()
    assert effects == ["Persist", "Send", "Fetch", *["AddBlock"] * 5, "Persist", "OpenSum", "Upload"]
    assert {Fetch, AddBlock, OpenSum}  # the names above


def test_out_of_order() -> None:
    """What the shell asks for in the wrong order is refused, and what is no message for a decryptor."""
    run, asked = played(consortium())
    upload = run.ciphertexts[OTHER]

    def fresh() -> DecryptorSession:
        session = DecryptorSession(run.federation.decryptor_setup, run.federation.announcement(), DecryptorMemory())
        assert run.sum is not None
        session.start(run.sum.public_key)
        session.receive(asked)
        return session

    for act, reason in (
        (lambda s: s.begin(OTHER, upload.header), "a ciphertext out of order"),
        (lambda s: s.part(b"x"), "bytes of a ciphertext that was not begun"),
        (lambda s: s.end(), "bytes of a ciphertext that was not begun"),
        (lambda s: s.receive(Certificate(())), "unexpected message"),
        (lambda s: s.receive(run.federation.announcement(2)), "unexpected message"),
    ):
        session = fresh()
        with pytest.raises(RemoteProtocolError, match=reason):
            act(session)
        assert session.ended
    with pytest.raises(LocalProtocolError):
        fresh().opened(np.zeros(1, dtype=np.uint64))
    with pytest.raises(LocalProtocolError):
        fresh().start(b"again")


# -- a decryptor that lies --------------------------------------------------------------------------------------------


def test_a_false_sum_is_noticed_or_signed_for() -> None:
    """Zero words, contribution word and ranges are checked; a lie that keeps them intact stands under its signature."""
    federation = consortium()
    for at, noticed in ((0, True), (1, True), (3, False)):
        run = attempt(federation)
        made = InsecureScheme().opening

        class Lying(InsecureScheme):
            def opening(self, *given: typing.Any, at: int = at) -> typing.Any:
                sum_ = made(*given)  # noqa: B023
                open_ = sum_.open_

                def lie() -> Words:
                    words = open_()
                    words[at] += np.uint64(1)
                    return words

                sum_.open_ = lie  # type: ignore[method-assign]
                return sum_

        object.__setattr__(run.federation, "scheme", Lying())
        run.run()
        assert isinstance(run.outcome, Abort if noticed else Released)
        if not noticed:
            assert not exact(run)
            assert any(isinstance(m, OpenedSum) for _, m in run.view)  # the evidence


def test_what_the_server_does_not_take_from_a_decryptor() -> None:
    def second_key(client: ClientId, message: object) -> object:
        return replace(message, signature=bytes(64)) if isinstance(message, DecryptorKey) else message

    def short_sum(client: ClientId, message: object) -> object:
        return replace(message, total_words=1) if isinstance(message, OpenedSum) else message

    def unsigned_sum(client: ClientId, message: object) -> object:
        return replace(message, signature=bytes(64)) if isinstance(message, OpenedSum) else message

    for tamper, reason in (
        (second_key, "the decryptor's key is not signed"),
        (short_sum, "the decryptor's sum has another length"),
        (unsigned_sum, "the decryptor's sum is not signed"),
    ):
        run = attempt(consortium(), tamper_client=tamper)
        run.run()
        aborted(run, reason)
    run, _ = played(consortium())
    key = next(m for _, m in run.view if isinstance(m, DecryptorKey))
    assert run.server.receive(DECRYPTOR, key) is DropReason.WRONG_PHASE
    run = attempt(consortium())
    run._apply_server(run.server.start())
    key = next(m for _, m in run.view if isinstance(m, DecryptorKey))
    assert run.server.receive(DECRYPTOR, key) == ()
    assert run.server.receive(DECRYPTOR, OpenedSum(bytes(32), 1, bytes(64))) is DropReason.WRONG_PHASE
    for client in ALL:  # nobody else speaks for it
        assert run.server.receive(client, key) is DropReason.WRONG_PHASE
    effects = run.server.receive(DECRYPTOR, replace(key, public_key=bytes(16)))
    assert isinstance(effects, tuple) and isinstance(effects[-1], Abort)
    assert "a second key" in effects[-1].reason


# -- rounds and attempts ----------------------------------------------------------------------------------------------


def test_dual_may_be_tried_again_until_it_was_signed_and_he_until_it_was_uploaded() -> None:
    for assurance, phase, again in (
        ("dual", Phase.MASKED_INPUT, True),
        ("he", Phase.INPUT_HASHES, True),
        ("he", Phase.MASKED_INPUT, False),
    ):
        federation = consortium(assurance)
        first = attempt(federation, lost={ClientId(4): phase, ClientId(5): phase})
        assert isinstance(first.run(), Abort)
        second = attempt(federation, attempt=1, memories=first.memories, decryptor_memory=first.decryptor_memory)
        outcome = second.run()
        assert isinstance(outcome, Released) is again
        if not again:
            assert all("this round is spent" in e.what for c, e in second.errors.items() if c not in (4, 5))
        third = attempt(federation, round=2, memories=second.memories, decryptor_memory=second.decryptor_memory)
        if not again:
            third.run()
            assert exact(third)


def test_spent_before_and_after() -> None:
    run = attempt(consortium("he"))
    run.run()
    mine = [record for owner, record in run.records if owner == ME]
    assert [type(r) for r in mine] == [JoinRecord, UploadRecord, SpentRecord]
    assert Charge  # charged once: see test_order_of_effects
    assert run.charged.count(ME) == 1


# -- states -----------------------------------------------------------------------------------------------------------


def awaiting_hashes() -> Simulation:
    run = attempt(consortium(), tamper_server=lambda c, m: None if isinstance(m, InputHashes) else m)
    run._apply_server(run.server.start())
    for _ in range(3):
        run._apply_server(run.server.close_phase())
    assert run.server.phase is Phase.MASKED_INPUT
    return run


@pytest.mark.parametrize("kind", typing.get_args(ServerMessage), ids=lambda k: k.__name__)
def test_awaiting_hashes_times_server_message(kind: type) -> None:
    run = awaiting_hashes()
    session = run.clients[ME]
    assert session.phase is Phase.INPUT_HASHES
    other, _ = played(consortium())
    messages: dict[str, ServerMessage] = {}

    def record(client: ClientId, message: object) -> object:
        messages[type(message).__name__] = message  # type: ignore[assignment]
        return message

    again = attempt(consortium(), tamper_server=record)
    again.run()
    if kind.__name__ == "InputHashes":
        assert run.server._lock.listed is not None
        (upload,) = session.receive(run.server._lock.listed)
        assert isinstance(upload, UploadCiphertext)
        assert packed_digest(upload.data) == upload.header.input_digest
        return
    if kind.__name__ not in messages:
        pytest.skip("an end, or nothing that an attempt has")
    with pytest.raises(RemoteProtocolError, match="unexpected message"):
        session.receive(messages[kind.__name__])
    assert session.phase is Phase.ABORTED
    assert isinstance(other.outcome, Released)


def test_a_client_without_a_way_to_encrypt_does_not_join() -> None:
    federation = consortium()
    setup = replace(federation.setup(ME), scheme=None)
    with pytest.raises(LocalProtocolError, match="no scheme"):
        ClientSession(setup, federation.announcement(), attempt(federation)._memory(ME), bytes)
    assert Announcement and client_phases


# -- packed inputs ----------------------------------------------------------------------------------------------------


def test_blocks_come_out_as_they_went_in_whatever_the_pieces() -> None:
    blocks = [bytes([i]) * (1 + 700 * i) for i in range(6)]
    data = pack(blocks)
    for size in (1, 2, 3, 5, 699, 700, 705, len(data)):
        reader, found = BlockReader(6), []
        for start in range(0, len(data), size):
            assert not reader.complete
            found += reader.feed(data[start : start + size])
        assert found == blocks and reader.complete


def test_packed_inputs_that_cannot_be() -> None:
    for data, reason in (
        (bytes(4), "length of a ciphertext"),
        ((MAX_BLOCK + 1).to_bytes(4, "big"), "length of a ciphertext"),
        (pack([b"a", b"b"]) + b"\x00\x00\x00\x01c", "more ciphertexts"),
    ):
        with pytest.raises(ValueError, match=reason):
            BlockReader(2).feed(data)
    reader = BlockReader(2)
    reader.feed(pack([b"a", b"b"]) + b"\x00")
    assert not reader.complete
