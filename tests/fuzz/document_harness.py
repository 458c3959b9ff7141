"""Signed documents: what their owner signed and what was meant, or one error. The forger may hold the right key."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding
from fuzz.attempts import consortium
from fuzz.dice import Dice
from fuzz.harness import Violation
from fuzz.json_mutate import JsonMutator
from simulator import Federation, insecure_rng, make_manifest

from dp.ledger import PrivacyLedger
from dp.report import build_report
from ffm.client_run import STATEMENT_KIND, round_charge, statement_body
from ffm.joining import REQUEST_KIND, JoinRequest, verify_request
from ffm.report_files import Documents, gather
from ffm.run_folder import RunState
from protocol import manifest, roster, signed
from protocol.errors import DocumentError, ProtocolError
from protocol.messages import Statement
from protocol.rpc import pki
from secagg.signing import SigningKey
from secagg.types import ClientId

SECONDS: Final = 3.0
OWNER: Final = SigningKey.generate(insecure_rng("owner"))
ME: Final = ClientId(3)


class DocumentHarness:
    """One kind of signed document."""

    def __init__(
        self, name: str, kind: str, key: SigningKey, corpus: Callable[[], tuple[bytes, ...]], read: Callable[..., Any]
    ) -> None:
        """`read(body, signature)` gives the document or raises; only DocumentError or ProtocolError is right."""
        self.name = f"document/{name}"
        self._kind, self._key, self._corpus, self._read = kind, key, corpus, read

    @cached_property
    def _mutator(self) -> JsonMutator:
        return JsonMutator(self._corpus())

    def _drawn(self, dice: Dice) -> tuple[bytes, bytes]:
        body = self._mutator(dice)
        if dice.chance(8):
            return body, dice.bytes(dice.pick((0, 63, 64, 65)))
        return body, signed.sign(self._kind, body, self._key)

    def run(self, dice: Dice) -> str:
        """One document."""
        body, signature = self._drawn(dice)
        started = time.process_time()
        try:
            document = self._read(body, signature)
        except ProtocolError as error:
            if not isinstance(error, DocumentError) and type(error) is not ProtocolError:
                raise Violation(f"refused as {type(error).__name__}") from error
            str(error)  # the text of an error must not be an error itself
            outcome = f"refused: {error.code}"
        else:
            outcome = "left out" if document == () else "accepted"
            if hasattr(document, "to_bytes") and document.to_bytes() != body:
                raise Violation("the document says something else than the bytes that were signed")
        if time.process_time() - started > SECONDS:
            raise Violation("reading one document took too long")
        return outcome

    def explain(self, dice: Dice) -> str:
        """The document, shortened."""
        body, signature = self._drawn(dice)
        return f"{len(body)} bytes, signature {signature.hex()[:16]}..: {body[:1500]!r}"


def _rosters() -> tuple[bytes, ...]:
    return tuple(Federation.create(make_manifest(n, 1)).roster.to_bytes() for n in (4, 7))


def _manifests() -> tuple[bytes, ...]:
    full = make_manifest(9, 2, 1, 700, privacy__protocol="none", privacy__noise_steps=0)
    files = tuple(manifest.FileDigest(path=name, sha256="ab" * 32) for name in ("config.json", "model.safetensors"))
    return (
        make_manifest(4, 1).to_bytes(),
        full.model_copy(update={"base_model": manifest.BaseModelSpec(name="m", files=files)}).to_bytes(),
    )


def _requests() -> tuple[bytes, ...]:
    csr = pki.signing_request(pki.new_key(), "client-3")
    key = OWNER.verify_key.to_bytes().hex()
    pem = csr.public_bytes(Encoding.PEM).decode()
    return (JoinRequest(version=1, name="client-3", identity_key=key, csr=pem).to_bytes(),)


def statements() -> tuple[bytes, ...]:
    federation = consortium()
    with (
        TemporaryDirectory() as folder,
        PrivacyLedger.open(Path(folder) / "book" / "ledger", silo="client-3", population="records") as book,
    ):
        for round_ in (1, 2):
            book.charge(round_charge(federation.manifest, round_, 0))
        return (signed.canonical(statement_body(federation.setup(ME), book)),)


def gathered(body: bytes, signature: bytes) -> Any:
    """What the server makes of a client's statement when it writes the report."""
    federation = _consortium()
    documents = Documents(federation.manifest, bytes(64), federation.roster, bytes(64), OWNER.verify_key)
    with _heard(gather.__module__) as lines:
        facts = gather(documents, RunState("run", 0), {ME: Statement(body, signature)}, (), "")
    if not all(line.isprintable() and len(line) < 500 for line in lines):
        raise Violation("a client writes into the server's log what it likes")
    build_report(facts, prv=False)  # whatever one client signs, everybody gets a report
    return tuple(facts.statements)


@contextmanager
def _heard(name: str) -> Iterator[list[str]]:
    """What this logger is told meanwhile, instead of telling people."""
    lines: list[str] = []
    log, handler = logging.getLogger(name), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    propagate, log.propagate = log.propagate, False
    try:
        yield lines
    finally:
        log.propagate = propagate
        log.removeHandler(handler)


@cache
def _consortium() -> Federation:
    return consortium()


def harnesses() -> tuple[DocumentHarness, ...]:
    """One per kind."""
    return (
        DocumentHarness(
            "roster", roster.KIND, OWNER, _rosters, lambda b, s: roster.verify_roster(b, s, OWNER.verify_key)
        ),
        DocumentHarness(
            "manifest", manifest.KIND, OWNER, _manifests, lambda b, s: manifest.verify_manifest(b, s, OWNER.verify_key)
        ),
        DocumentHarness("request", REQUEST_KIND, OWNER, _requests, verify_request),
        DocumentHarness("statement", STATEMENT_KIND, consortium().client_keys[ME], statements, gathered),
    )
