"""The fuzzers, with few executions; that they would find what they look for; and every limit of every field.

`make test-full` and `python -m tests.fuzz` run more.
"""

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fuzz import campaign, document_harness, rules
from fuzz.attempts import consortium
from fuzz.codec_harness import CodecHarness
from fuzz.dice import Dice
from fuzz.doors import DOORS, Door, corpus, encoded, reachable
from fuzz.harness import Finding, Harness
from fuzz.memory import FLOOR, HIGHEST, fillings, peak
from fuzz.mutate import OPERATIONS, Mutator
from fuzz.session_harness import AttemptHarness, ClientHarness, ServerHarness
from fuzz.wire import annotated, parse, serialise
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from ffm.client_run import STATEMENT_KIND
from protocol import signed
from protocol._pb import secagg_pb2 as pb
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import AdvertiseKeys
from protocol.rpc import frames

ROOT = Path(__file__).resolve().parents[1]
MESSAGES = [(door, kind) for door in DOORS for kind in door.types]
NAMES = [f"{door.name}-{kind.__name__}" for door, kind in MESSAGES]
# Executions in `make test`: decodes are cheap, attempts are not.
FEW = {
    "codec": 1500,
    "session/server": 800,
    "session/client": 800,
    "session/ring": 800,
    "session/attempt": 60,
    "document/statement": 120,
    "document": 300,
    "he": 200,
    "book/attempt log": 20,
    "book": 60,
}


def few(harness: Harness) -> int:
    return next(count for name, count in FEW.items() if harness.name.startswith(name))


def report(findings: list[Finding]) -> str:
    return "\n\n".join(f"{f.error}\nDice(replay={list(f.draws)})\n{f.explanation}" for f in findings)


HARNESSES = [
    pytest.param(harness, id=harness.name, marks=[pytest.mark.slow] if "ring" in harness.name else [])
    for harness in campaign.all_harnesses()
]


@pytest.mark.parametrize("harness", HARNESSES)
def test_no_harness_finds_anything(harness: Harness) -> None:
    tally = campaign.campaign(harness, 1, range(few(harness)))
    assert not tally.findings, report(tally.findings)
    assert len(tally.outcomes) > 1  # an input that is always refused in one way tests one line


def test_every_message_type_has_a_door() -> None:
    assert reachable(door.kind for door in DOORS) == set(pb.DESCRIPTOR.message_types_by_name)


@pytest.mark.parametrize("door", DOORS, ids=lambda d: d.name)
def test_the_corpus_covers_every_field(door: Door) -> None:
    """A field that no corpus member holds would hardly ever be mutated."""
    seen: set[tuple[str, int]] = set()

    def walk(message: Any) -> None:
        for field, value in message.ListFields():
            seen.add((message.DESCRIPTOR.name, field.number))
            if field.message_type is not None:
                for inner in value if field.is_repeated else [value]:
                    walk(inner)

    for data in corpus(door):
        frame = getattr(pb, door.name)()
        frame.ParseFromString(data)
        walk(frame)
        assert serialise(parse(data, door.kind)) == data
        assert len(annotated(data, door.kind)) >= 1
    schema = {(name, f.number) for name in reachable([door.kind]) for f in getattr(pb, name).DESCRIPTOR.fields}
    assert seen == schema


@pytest.mark.parametrize(("door", "kind"), MESSAGES, ids=NAMES)
@given(data=st.data())
@settings(max_examples=30)
def test_legal_messages_have_one_encoding(door: Door, kind: type, data: st.DataObject) -> None:
    """Any legal message comes back equal, from exactly the bytes that a second encoder gives."""
    message = data.draw(rules.strategy(kind))
    wire = encoded(message, door.kind)
    assert door.encode(message) == wire
    assert door.decode(wire) == message


def _variants(door: Door, kind: type, way: str) -> list[tuple[str, Any]]:
    """Messages of one type with one field (at any depth) replaced by `way` (edges or illegal values)."""
    message = rules.sample(kind, Dice("limits", kind.__name__))
    return list(_replaced(message, way, ""))


def _replaced(value: Any, way: str, name: str) -> Any:
    for shape in rules.shapes(type(value)):
        part, label = getattr(value, shape.name), f"{name}.{shape.name}"
        for other in getattr(shape, way)(part):
            yield f"{label} = {str(other)[:40]}", dataclasses.replace(value, **{shape.name: other})
        if dataclasses.is_dataclass(part):
            for what, inner in _replaced(part, way, label):
                yield what, dataclasses.replace(value, **{shape.name: inner})
        elif shape.element is not None and dataclasses.is_dataclass(shape.element):
            for what, inner in _replaced(part[0], way, f"{label}[0]"):
                yield what, dataclasses.replace(value, **{shape.name: (inner, *part[1:])})


@pytest.mark.parametrize(("door", "kind"), MESSAGES, ids=NAMES)
def test_beyond_each_limit_of_each_field_both_sides_refuse(door: Door, kind: type) -> None:
    variants = _variants(door, kind, "illegal")
    assert variants or all(shape.name in rules.OPEN_ENDED for shape in rules.shapes(kind))
    for what, message in variants:
        with pytest.raises(LocalProtocolError):
            door.encode(message)
            pytest.fail(f"sent: {what}")
        try:
            wire = encoded(message, door.kind)
        except UnicodeEncodeError:
            continue  # not to be written at all
        with pytest.raises(RemoteProtocolError) as caught:
            door.decode(wire)
            pytest.fail(f"accepted: {what}")
        assert caught.value.code == "E410"


@pytest.mark.parametrize(("door", "kind"), MESSAGES, ids=NAMES)
def test_at_each_limit_of_each_field_both_sides_agree(door: Door, kind: type) -> None:
    for what, message in _variants(door, kind, "edges"):
        wire = encoded(message, door.kind)
        if len(wire) > door.limit:
            with pytest.raises(RemoteProtocolError, match="size"):
                door.decode(wire)
            continue
        if (problem := _rule_between_fields(message)) is not None:
            with pytest.raises(RemoteProtocolError, match=problem):
                door.decode(wire)
            continue
        assert door.decode(wire) == message, what
        assert door.encode(message) == wire, what


def _rule_between_fields(message: Any) -> str | None:
    """Messages with a rule that no single field shows: what their refusal says, if this one breaks it."""
    match message:
        case frames.BlobChunk() if message.offset + len(message.data) > message.total:
            return "end of a chunk"
        case frames.Receipt() if message.received and message.status is not frames.Status.PARTIAL:
            return "chunks received"
    return None


@pytest.mark.parametrize("door", DOORS, ids=lambda d: d.name)
def test_one_decode_takes_a_bounded_multiple_of_the_limit(door: Door) -> None:
    peaks = [peak(filling) for filling in fillings(door)]
    assert len(peaks) >= len(door.kind.fields)
    for found in peaks:
        what = f"{found.filling.name}: {found.bytes} bytes for {len(found.filling.data)}"
        assert found.bytes <= HIGHEST * door.limit + FLOOR, what


def test_every_mutation_happens_and_most_of_them_matter() -> None:
    door = DOORS[0]
    mutator = Mutator(door.kind, corpus(door), door.limit)
    used: set[str] = set()
    changed = 0
    for number in range(2000):
        data, names = mutator(Dice("mutations", number))
        used |= set(names.split("+"))
        changed += data not in mutator.corpus
    assert used == {*OPERATIONS, "bytes"}
    assert changed > 1500


def test_a_client_cannot_write_into_the_log() -> None:
    body = json.loads(document_harness.statements()[0])
    body["client_id"] = "3\nCRITICAL all is lost"
    signed_body = signed.canonical(body)
    key = consortium().client_keys[document_harness.ME]
    document_harness.gathered(signed_body, signed.sign(STATEMENT_KIND, signed_body, key))


# ---- the fuzzers find what they look for


def _sloppy(data: bytes) -> Any:
    """A decoder without the last check: other spellings pass."""
    frame = pb.ClientFrame()
    try:
        frame.ParseFromString(data)
    except DecodeError:
        raise RemoteProtocolError("malformed", code="E410") from None
    return DOORS[0].decode(frame.SerializeToString(deterministic=True))


def _blunt(data: bytes) -> Any:
    """A decoder that lets a foreign exception out."""
    frame = pb.ClientFrame()
    frame.ParseFromString(data)
    return DOORS[0].decode(data)


@pytest.mark.parametrize("decode", [_sloppy, _blunt])
def test_a_bad_decoder_is_found_and_shown(decode: Any) -> None:
    harness = CodecHarness(dataclasses.replace(DOORS[0], decode=decode))
    tally = campaign.campaign(harness, 3, range(300))
    assert tally.findings
    finding = tally.findings[0]
    assert "mutations:" in finding.explanation
    with pytest.raises(Exception):  # noqa: B017 - the shrunk draws fail as well, whatever the failure
        harness.run(Dice(replay=finding.draws))


def test_a_wrong_sum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from protocol import server
    from secagg.masking import unframe

    def trusting(words: Any, count: int, params: Any) -> Any:
        try:
            return unframe(words, count, params)
        except Exception:
            return words[: params.vector_length].astype("int64")

    monkeypatch.setattr(server, "unframe", trusting)
    tally = campaign.campaign(AttemptHarness(only=AdvertiseKeys), 5, range(60), shrink=10)
    assert any("wrong sum" in finding.explanation for finding in tally.findings)


def test_a_server_that_raises_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from protocol import server
    from secagg.transcript import merkle_root

    monkeypatch.setattr(server, "merkle_root", lambda leaves: merkle_root(leaves[: len(leaves) // 9 * 9]))
    monkeypatch.setattr(server.ServerSession, "_signed", lambda self, client, signature, body: True)
    assert campaign.campaign(ServerHarness(), 5, range(200), shrink=10).findings


def test_a_client_that_keeps_secrets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from protocol import client, client_states

    monkeypatch.setattr(client, "Aborted", lambda reason: client_states.Completed())
    monkeypatch.setattr(client, "erase", lambda state: None)
    monkeypatch.setattr(client.ClientSession, "abort", lambda self, reason="": None)
    tally = campaign.campaign(ClientHarness(), 5, range(200), shrink=10)
    assert any("secrets" in finding.explanation for finding in tally.findings)


LIMITED = """
import sys
sys.path[:0] = sys.argv[1:]
from fuzz import campaign
campaign.limit_memory(32 * 2**20)
try:
    bytearray(48 * 2**20)
except MemoryError:
    bytearray(8 * 2**20)
    print("bounded")
"""


def test_the_limit_on_memory_is_one() -> None:
    arguments = [sys.executable, "-c", LIMITED, str(ROOT / "tests"), str(ROOT)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "bounded", done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY  # only the child's


def test_the_command_line_counts_and_reports() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "300", "--only", "codec/Cursor", "--seed", "7", "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 executions in" in done.stdout and "0 findings, seed 7" in done.stdout


@pytest.mark.slow
@pytest.mark.hours
def test_millions_of_executions_find_nothing() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "2000000", "--seed", "2026", "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=7200, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr


def test_draws_replay_on_any_machine() -> None:
    dice = Dice("replay", 1)
    drawn = [dice.below(1000), dice.integer(), dice.pick("abc"), dice.bytes(40), dice.chance(3)]
    again = Dice(replay=json.loads(json.dumps(dice.draws)))
    assert drawn == [again.below(1000), again.integer(), again.pick("abc"), again.bytes(40), again.chance(3)]
    assert Dice("replay", 1).below(2**64) == Dice("replay", 1).below(2**64) != Dice("replay", 2).below(2**64)
