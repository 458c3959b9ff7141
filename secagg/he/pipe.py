"""Requests and answers between a decryptor and its HE process, as bytes. Fixed headers, big-endian; no I/O here.

request   op (u8), client (u32), block (u32), length of the body (u32), body
answer    ok (u8), length of the body (u32), body; where ok is 0 the body is JSON: code, what, found, expected, do

    BEGIN  body: clients of the parameters (u32), limb bits (u8), words (u64), then the ids of the set (u32 each).
           Answer: the public key.
    ADD    one ciphertext of `client`, number `block`. Answer: empty.
    EXPECT body: ids of the clients (u32 each) that are summed, some or all of the first set. Answer: empty.
    OPEN   the sum as little-endian words, once.
"""

import enum
import json
import struct
from dataclasses import dataclass

import numpy as np

from secagg.encoding import Words
from secagg.errors import EncodingError, ParameterError, SecAggError
from secagg.he.errors import CiphertextError, DisagreementError, OpeningError, WorkerError
from secagg.he.scheme import DEGREE, BfvParams

REQUEST = struct.Struct(">BIII")
ANSWER = struct.Struct(">BI")
_BEGIN = struct.Struct(">IBQ")
_KINDS: tuple[type[SecAggError], ...] = (
    ParameterError,
    EncodingError,
    CiphertextError,
    OpeningError,
    DisagreementError,
    WorkerError,
)
_BY_CODE = {kind.code: kind for kind in _KINDS}


class Op(enum.IntEnum):
    """What is asked for."""

    BEGIN = 1
    ADD = 2
    OPEN = 3
    EXPECT = 4


@dataclass(frozen=True, slots=True)
class Begin:
    """Everything that a sum needs to be known beforehand."""

    params: BfvParams
    words: int
    clients: tuple[int, ...]

    @property
    def sum_bytes(self) -> int:
        """Size of the running sum."""
        return self.params.blocks_for(self.words) * 2 * 8 * DEGREE


def pack_request(op: Op, body: bytes = b"", client: int = 0, block: int = 0) -> bytes:
    """One request."""
    return REQUEST.pack(op, client, block, len(body)) + body


def pack_begin(begin: Begin) -> bytes:
    """The first request."""
    head = _BEGIN.pack(begin.params.clients, begin.params.limb_bits, begin.words)
    return pack_request(Op.BEGIN, head + np.array(begin.clients, ">u4").tobytes())


def pack_expect(clients: tuple[int, ...]) -> bytes:
    """Which of the clients are summed."""
    return pack_request(Op.EXPECT, np.array(clients, ">u4").tobytes())


def unpack_expect(body: bytes) -> tuple[int, ...]:
    """Body of such a request. Raises ParameterError for anything but whole ids."""
    if len(body) % 4:
        raise ParameterError("ids of clients", found=f"{len(body)} bytes")
    return tuple(np.frombuffer(body, ">u4").tolist())


def unpack_begin(body: bytes) -> Begin:
    """Body of the first request. Raises ParameterError for parameters that are none."""
    if len(body) < _BEGIN.size or (len(body) - _BEGIN.size) % 4:
        raise ParameterError("body of a first request", found=f"{len(body)} bytes")
    clients, limb_bits, words = _BEGIN.unpack_from(body)
    ids = np.frombuffer(body, ">u4", offset=_BEGIN.size)
    return Begin(BfvParams(clients, limb_bits), words, tuple(ids.tolist()))


def pack_answer(body: bytes = b"") -> bytes:
    """What was asked for."""
    return ANSWER.pack(1, len(body)) + body


def pack_error(error: SecAggError) -> bytes:
    """A refusal; found and expected as text."""
    texts = {name: None if value is None else str(value)[:1000] for name, value in _parts(error).items()}
    body = json.dumps(texts).encode()
    return ANSWER.pack(0, len(body)) + body


def unpack_error(body: bytes) -> SecAggError:
    """The refusal that the process answered, of its own class."""
    parts = json.loads(body)
    kind = _BY_CODE.get(parts["code"], SecAggError)
    if kind is WorkerError:
        return WorkerError(parts["what"], do=parts["do"])
    return kind(parts["what"], found=parts["found"], expected=parts["expected"], do=parts["do"])


def words_to_bytes(words: Words) -> bytes:
    """Little-endian."""
    return words.astype("<u8").tobytes()


def words_from_bytes(body: bytes) -> Words:
    """Little-endian."""
    return np.frombuffer(body, "<u8").astype(np.uint64)


def _parts(error: SecAggError) -> dict[str, object]:
    return {
        "code": error.code,
        "what": error.what,
        "found": error.found,
        "expected": error.expected,
        "do": error.do,
    }
