"""Signed documents: the exact bytes that the owner signed, in canonical form, of the right type, nothing unknown."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from simulator import Federation, insecure_rng, make_manifest

from protocol import signed
from protocol.context import announcement_error, context
from protocol.errors import DocumentError
from protocol.manifest import KIND as MANIFEST_KIND
from protocol.manifest import Manifest, sign_manifest, verify_manifest
from protocol.messages import LedgerRow, ledger_head_digest
from protocol.release import ReleaseLedger, follow
from protocol.roster import KIND as ROSTER_KIND
from protocol.roster import Roster, sign_roster, verify_roster
from secagg.errors import ParameterError
from secagg.signing import SigningKey
from secagg.types import ClientId

OWNER = SigningKey.generate(insecure_rng("owner"))
OTHER = SigningKey.generate(insecure_rng("other"))
FEDERATION = Federation.create(make_manifest())
DOCUMENTS: dict[str, tuple[bytes, bytes, Callable[..., Any], str]] = {
    "roster": (*sign_roster(FEDERATION.roster, OWNER), verify_roster, ROSTER_KIND),
    "manifest": (*sign_manifest(FEDERATION.manifest, OWNER), verify_manifest, MANIFEST_KIND),
}
BOTH = pytest.mark.parametrize("name", DOCUMENTS)


def resigned(name: str, body: bytes) -> Any:
    """What the reader makes of other bytes that the owner did sign."""
    _, _, verify, kind = DOCUMENTS[name]
    return verify(body, signed.sign(kind, body, OWNER), OWNER.verify_key)


def changed(name: str, change: Callable[[dict[str, Any]], None]) -> Any:
    value = json.loads(DOCUMENTS[name][0])
    change(value)
    return resigned(name, rfc8785.dumps(value))


@BOTH
def test_what_was_signed_is_what_is_read(name: str) -> None:
    body, signature, verify, _ = DOCUMENTS[name]
    document = verify(body, signature, OWNER.verify_key)
    assert document == (FEDERATION.roster if name == "roster" else FEDERATION.manifest)
    assert document.to_bytes() == body and len(signature) == 64


@BOTH
def test_any_changed_byte_is_refused(name: str) -> None:
    body, signature, verify, _ = DOCUMENTS[name]
    for place in range(0, len(body), 3):
        bent = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
        with pytest.raises(DocumentError, match="does not verify") as caught:
            verify(bent, signature, OWNER.verify_key)
        assert caught.value.code == "E302"
    for bent in (body + b" ", body + b"\n", body[:-1], b"", b"\xef\xbb\xbf" + body):
        with pytest.raises(DocumentError, match="does not verify"):
            verify(bent, signature, OWNER.verify_key)
    with pytest.raises(DocumentError, match="does not verify"):
        verify(body, signature[:-1] + bytes([signature[-1] ^ 1]), OWNER.verify_key)


@BOTH
def test_another_owner_is_refused_and_the_expected_key_is_named(name: str) -> None:
    body, _, verify, kind = DOCUMENTS[name]
    with pytest.raises(DocumentError, match=OWNER.verify_key.fingerprint()) as caught:
        verify(body, signed.sign(kind, body, OTHER), OWNER.verify_key)
    assert "phone" in (caught.value.do or "")


def test_a_roster_never_passes_for_a_manifest() -> None:
    body, signature, _, _ = DOCUMENTS["roster"]
    with pytest.raises(DocumentError, match="does not verify"):
        verify_manifest(body, signature, OWNER.verify_key)
    with pytest.raises(DocumentError, match="does not fit its schema"):
        verify_manifest(body, signed.sign(MANIFEST_KIND, body, OWNER), OWNER.verify_key)


def test_pre_authentication_encoding_by_hand() -> None:
    assert signed.pre_authentication_encoding("a/b", b"{}") == b"DSSEv1 3 a/b 2 {}"
    one, other = signed.pre_authentication_encoding("a", b"1 b"), signed.pre_authentication_encoding("a 3 1", b"b")
    assert one != other


NOT_CANONICAL: dict[str, Callable[[bytes], bytes]] = {
    "space after a colon": lambda b: b.replace(b'":', b'": ', 1),
    "line break at the end": lambda b: b + b"\n",
    "keys in another order": lambda b: json.dumps(
        dict(reversed(json.loads(b).items())), separators=(",", ":")
    ).encode(),
    "escaped letter": lambda b: b.replace(b'"a', b'"\\u0061', 1) if b'"a' in b else b.replace(b'"c', b'"\\u0063', 1),
    "duplicate key, same value": lambda b: b[:-1] + b',"version":1}',
    "duplicate key, first": lambda b: b.replace(b"{", b'{"version":2,', 1),
    "float": lambda b: b.replace(b'"version":1', b'"version":1.0'),
    "exponent": lambda b: b.replace(b'"version":1', b'"version":1e0'),
    "minus zero": lambda b: b.replace(b'"version":1', b'"version":-0'),
    "NaN": lambda b: b.replace(b'"version":1', b'"version":NaN'),
    "beyond 2^53": lambda b: b.replace(b'"version":1', b'"version":9007199254740993'),
    "UTF-16": lambda b: b.decode().encode("utf-16"),
    "not JSON": lambda b: b[:-1],
    "two documents": lambda b: b + b,
    "empty": lambda b: b"",
    "deep": lambda b: b"[" * 100_000,
    "lone surrogate": lambda b: b.replace(b'"version":1', b'"version":"\\ud800"'),
    "long number": lambda b: b.replace(b'"version":1', b'"version":' + b"1" * 5000),
}


@BOTH
@pytest.mark.parametrize("case", NOT_CANONICAL)
def test_only_canonical_bytes_even_if_the_owner_signed_them(name: str, case: str) -> None:
    bent = NOT_CANONICAL[case](DOCUMENTS[name][0])
    assert bent != DOCUMENTS[name][0]
    with pytest.raises(DocumentError) as caught:
        resigned(name, bent)
    assert caught.value.code == "E303"


def set_(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        inner: Any = document
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value

    return change


def copy_(source: tuple[str | int, ...], target: tuple[str | int, ...]) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        value: Any = document
        for key in source:
            value = value[key]
        set_(*target, value=value)(document)

    return change


ROSTER_FAULTS = {
    "unknown key": set_("colour", value="red"),
    "unknown key of a member": set_("clients", 0, "admin", value=1),
    "missing key": lambda d: d.pop("server"),
    "version 0": set_("version", value=0),
    "version as text": set_("version", value="1"),
    "version true": set_("version", value=True),
    "version null": set_("version", value=None),
    "id 0": set_("clients", 0, "client_id", value=0),
    "id too large": set_("clients", 4, "client_id", value=65536),
    "ids descend": set_("clients", 0, "client_id", value=3),
    "one id twice": set_("clients", 1, "client_id", value=1),
    "one identity key twice": copy_(("clients", 0, "identity_key"), ("clients", 1, "identity_key")),
    "the server's identity key": copy_(("server", "identity_key"), ("clients", 0, "identity_key")),
    "one TLS key twice": copy_(("clients", 0, "tls_key_sha256"), ("clients", 1, "tls_key_sha256")),
    "one name twice": copy_(("clients", 0, "name"), ("clients", 1, "name")),
    "key in capitals": set_("clients", 0, "identity_key", value="AB" * 32),
    "short key": set_("clients", 0, "identity_key", value="ab" * 31),
    "key with a line break": set_("clients", 0, "identity_key", value="ab" * 32 + "\n"),
    "name with a path": set_("clients", 0, "name", value="../../etc"),
    "name with a line break": set_("clients", 0, "name", value="client-1\n"),
    "clients as object": set_("clients", value={}),
}
MANIFEST_FAULTS = {
    "unknown key": set_("colour", value="red"),
    "unknown key inside": set_("privacy", "skip_noise", value=True),
    "missing key": lambda d: d["privacy"].pop("delta"),
    "version 2": set_("version", value=2),
    "another graph": set_("aggregation", "graph", value="ring"),
    "another assurance": set_("aggregation", "assurance", value="none"),
    "another cipher": set_("aggregation", "cipher", value="rc4"),
    "noise as text": set_("privacy", "noise_steps", value="65536"),
    "no noise": set_("privacy", "noise_steps", value=9),
    "negative noise": set_("privacy", "noise_steps", value=-1),
    "large delta": set_("privacy", "delta", value="0.001"),
    "delta 0": set_("privacy", "delta", value="0"),
    "delta as exponent": set_("privacy", "delta", value="1e-5"),
    "epsilon 0": set_("privacy", "epsilon", value="0"),
    "epsilon NaN": set_("privacy", "epsilon", value="NaN"),
    "epsilon infinite": set_("privacy", "epsilon", value="Infinity"),
    "probability above 1": set_("privacy", "sampling_numerator", value=5),
    "division by 0": set_("privacy", "sampling_denominator", value=0),
    "noise without a protocol": set_("privacy", "protocol", value="none"),
    "two clients": set_("aggregation", "num_clients", value=2),
    "min_cohort below C + 2": set_("aggregation", "min_cohort", value=2),
    "too many dropouts": set_("aggregation", "max_dropouts", value=2),
    "no headroom": set_("aggregation", "bound", value=2**20),
    "five slots": set_("aggregation", "slots_per_word", value=5),
    "odd chunks": set_("aggregation", "chunk_words", value=17),
    "a threshold of one's own": set_("aggregation", "threshold", value=1),
    "shape 0": set_("adapter", "tensors", 0, "shape", value=[0]),
    "negative shape": set_("adapter", "tensors", 0, "shape", value=[-4]),
    "task with a path": set_("task", value="../x"),
    "no rounds": set_("training", "rounds", value=0),
    "one label twice": set_("training", "labels", value=["yes", "yes"]),
    "one tensor twice": set_("adapter", "tensors", value=[{"name": "b", "shape": [4]}] * 2),
    "one file twice": set_("base_model", "files", value=[{"path": "a", "sha256": "00" * 32}] * 2),
    "file with a path": set_("base_model", "files", value=[{"path": "../a", "sha256": "00" * 32}]),
    "huge clip": set_("privacy", "clip_steps", value=2**26 + 1),
}


@pytest.mark.parametrize(
    ("name", "case"), [("roster", c) for c in ROSTER_FAULTS] + [("manifest", c) for c in MANIFEST_FAULTS]
)
def test_schema(name: str, case: str) -> None:
    faults = ROSTER_FAULTS if name == "roster" else MANIFEST_FAULTS
    with pytest.raises(DocumentError, match=f"the {name} does not fit its schema") as caught:
        changed(name, faults[case])
    assert caught.value.code == "E305" and caught.value.found


@pytest.mark.parametrize(
    "change",
    [
        set_("version", value=True),
        set_("privacy", "records_per_person", value=True),
        set_("aggregation", "slots_per_word", value=True),
    ],
)
def test_a_truth_value_is_no_number(change: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(DocumentError) as caught:
        changed("manifest", change)
    assert caught.value.code in ("E303", "E305")


@BOTH
def test_an_unchanged_copy_fits(name: str) -> None:
    assert changed(name, lambda document: None).to_bytes() == DOCUMENTS[name][0]


def test_all_findings_are_in_one_error_without_the_input() -> None:
    def two(document: dict[str, Any]) -> None:
        document["version"] = "sesame"
        document["clients"][0]["name"] = "Open Sesame"

    with pytest.raises(DocumentError) as caught:
        changed("roster", two)
    text = str(caught.value)
    assert "version" in text and "clients.0.name" in text and "sesame" not in text.lower()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    )
)
def test_canonical_bytes_parse_to_the_same_value(value: Any) -> None:
    try:
        body = signed.canonical(value)
    except (ValueError, rfc8785.CanonicalizationError):
        return  # a lone surrogate has no UTF-8
    assert signed.parse("kind", body) == value


@given(st.binary(max_size=60))
def test_random_bytes_give_a_value_or_a_document_error(data: bytes) -> None:
    try:
        value = signed.parse("kind", data)
    except DocumentError:
        return
    assert signed.canonical(value) == data


@pytest.mark.parametrize("value", [1.0, [0.5], {"a": {"b": [1.5]}}, float("nan")])
def test_floats_are_never_signed(value: Any) -> None:
    with pytest.raises(ValueError, match="float at"):
        signed.canonical(value)


def test_an_infeasible_manifest_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="infeasible parameters"):
        make_manifest(5, 1, 2)
    assert issubclass(ParameterError, ValueError)


# -- what enters ctx --------------------------------------------------------------------------------------------------


def test_ctx_depends_on_every_part() -> None:
    base, params = FEDERATION.announcement(), FEDERATION.manifest.secagg_params()
    others = [
        replace(base, round=2),
        replace(base, attempt=1),
        replace(base, manifest_digest=bytes(32)),
        replace(base, roster_root=bytes(32)),
        replace(base, model_digest=b"\x01" * 32),
        replace(base, cohort=tuple(map(ClientId, (1, 2, 3, 4, 6)))),
    ]
    different = [context(base, make_manifest(5, 0, 1).secagg_params()), context(base, make_manifest(6).secagg_params())]
    seen = {context(base, params), *(context(o, params) for o in others), *different}
    assert len(seen) == 1 + len(others) + len(different)
    assert announcement_error(base, FEDERATION.roster, FEDERATION.manifest) is None


def test_roots_and_digests_change_with_every_document() -> None:
    bumped = FEDERATION.roster.model_copy(update={"version": 2})
    assert FEDERATION.roster.root() != bumped.root()
    assert FEDERATION.manifest.digest() != make_manifest(training__rounds=11).digest()
    assert FEDERATION.manifest.model_digest(b"") != make_manifest(training__rounds=11).model_digest(b"")


def test_roster_lookups() -> None:
    roster: Roster = FEDERATION.roster
    assert roster.ids == (1, 2, 3, 4, 5) and roster.member(ClientId(9)) is None
    assert roster.verify_key(ClientId(3)) == FEDERATION.client_keys[ClientId(3)].verify_key
    with pytest.raises(DocumentError, match="not in the roster") as caught:
        roster.verify_key(ClientId(9))
    assert caught.value.code == "E304"


def test_manifest_numbers_are_exact() -> None:
    manifest: Manifest = make_manifest(privacy__sampling_denominator=3, privacy__noise_steps=98304)
    assert str(manifest.privacy.sampling_probability) == "1/3"
    assert manifest.adapter.size == 40


# -- release ledger ---------------------------------------------------------------------------------------------------


def ledger(rows: int) -> ReleaseLedger:
    book = ReleaseLedger(FEDERATION.manifest.digest())
    for i in range(rows):
        opened = (i + 1, 0, i.to_bytes(32, "big"), bytes(32), bytes(32))
        book = book.extended(book.next_row(opened, FEDERATION.server_key))
    return book


def test_a_ledger_is_followed_from_any_point() -> None:
    book, key = ledger(4), FEDERATION.server_key.verify_key
    for start in range(5):
        assert follow(ledger(start), book.since(start), key) == book


def test_nothing_but_a_signed_extension_is_followed() -> None:
    book, key = ledger(3), FEDERATION.server_key.verify_key
    rows = book.rows

    def walk(*changed_rows: Any, digest: bytes = book.manifest_digest) -> Any:
        return follow(ReleaseLedger(digest), changed_rows, key)

    assert walk(*rows) == book
    assert walk(*rows[1:]) is None and walk(rows[0], rows[2]) is None and walk(rows[1], rows[0]) is None
    assert walk(rows[0], rows[0]) is None
    assert walk(*rows, digest=bytes(32)) is None
    changes = {"round": 9, "attempt": 1, **dict.fromkeys(("ctx", "root_u2", "hash_u3"), b"\x07" * 32)}
    for field, value in changes.items():
        assert walk(rows[0], replace(rows[1], **{field: value}), rows[2]) is None  # type: ignore[arg-type]
    assert walk(replace(rows[0], signature=rows[1].signature)) is None
    assert follow(ledger(0), rows, OTHER.verify_key) is None


@pytest.mark.parametrize("seq", [0, 2, 7])
def test_a_gap_is_no_extension_even_if_the_server_signs_it(seq: int) -> None:
    book = ledger(0)
    unsigned = LedgerRow(seq, 1, 0, bytes(32), bytes(32), bytes(32), b"")
    head = unsigned.head(book.head)
    signature = FEDERATION.server_key.sign(ledger_head_digest(book.manifest_digest, seq, head))
    row = replace(unsigned, signature=signature)
    assert follow(book, (row,), FEDERATION.server_key.verify_key) is None


def test_a_changed_copy_forgets_what_the_original_had_computed() -> None:
    roster, manifest = FEDERATION.roster, FEDERATION.manifest
    before = (roster.root(), roster.ids, roster.verify_key(roster.ids[0]), manifest.digest())
    for deep in (False, True):
        fewer = roster.model_copy(update={"clients": roster.clients[1:]}, deep=deep)
        assert fewer.root() != before[0] and fewer.ids == before[1][1:] and fewer.member(before[1][0]) is None
        assert manifest.model_copy(update={"task": "another"}, deep=deep).digest() != before[3]
    assert (roster.root(), roster.ids, roster.verify_key(roster.ids[0]), manifest.digest()) == before
    assert roster == Roster.model_validate_json(roster.to_bytes())  # a computed value is no part of equality
