"""Vectors of the second lock: what clients and decryptor sign and hash, and requests that a decryptor must refuse.

The public key in them is any bytes: nothing here depends on what it is a key of.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from insecure_scheme import InsecureScheme
from simulator import Federation, Simulation, encrypted, insecure_rng, make_manifest, random_values
from vectors.attempts import Vector, documents
from vectors.primitives import CTX, ROOT, good

from protocol import encrypted as lock
from protocol import messages
from protocol.codec import encode_server
from protocol.decryptor import DecryptorMemory, DecryptorSession
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import OpeningRequest
from secagg.transcript import bitmap
from secagg.types import ClientId

ALL = tuple(ClientId(i) for i in range(1, 6))
Change = Callable[[OpeningRequest], OpeningRequest]
A = ClientId(3)


def digests() -> list[Vector]:
    """Every digest and signed body of SPEC 6.8 and 6.9, and the packed form of an input."""
    base = {"ctx": CTX.hex()}
    key, digest, other = bytes(range(200)), bytes(range(32)), bytes(range(1, 33))
    seen = lock.InputHashes(b"\xa0", digest + other)
    listed = lock.hash_list(ROOT, seen)
    unsigned = lock.InputHash(digest, 70_000, (ClientId(1), ClientId(8)), b"")
    upload = lock.EncryptedInput(digest, 70_000, b"")
    opened = lock.OpenedSum(digest, 33, b"")
    blocks = [b"first ciphertext", b"\x00", bytes(300)]
    packed = lock.pack(blocks)
    out = [
        good("key_digest", {"public_key": key.hex()}, lock.key_digest(key).hex()),
        good("key_body", {**base, "public_key": key.hex()}, lock.key_body(CTX, key).hex()),
        good(
            "root_u1_with_key",
            {**base, "advertised": "e0", "tree_root": ROOT.hex(), "public_key": key.hex()},
            messages.root_advertised(CTX, b"\xe0", ROOT, lock.key_digest(key)).hex(),
        ),
        good(
            "input_hash_body",
            {
                **base,
                "root_u2": ROOT.hex(),
                "client": A,
                "digest": digest.hex(),
                "total_bytes": 70_000,
                "complaints": [1, 8],
            },
            lock.input_hash_body(CTX, ROOT, A, unsigned).hex(),
        ),
        good("hash_list", {"root_u2": ROOT.hex(), "listed": "a0", "digests": seen.digests.hex()}, listed.hex()),
        good(
            "encrypted_input_body",
            {**base, "hash_list": listed.hex(), "client": A, "digest": digest.hex(), "total_bytes": 70_000},
            lock.encrypted_input_body(CTX, listed, A, upload).hex(),
        ),
        good(
            "hash_u3_with_list",
            {"root_u2": ROOT.hex(), "masked": "a0", "hash_list": listed.hex()},
            messages.hash_masked(ROOT, b"\xa0", listed).hex(),
        ),
        good(
            "opened_body",
            {**base, "hash_u3": ROOT.hex(), "digest": digest.hex(), "total_words": 33},
            lock.opened_body(CTX, ROOT, opened).hex(),
        ),
        good(
            "packed_input",
            {"blocks": [b.hex() for b in blocks]},
            {"packed": packed.hex(), "digest": lock.packed_digest(packed).hex()},
        ),
    ]
    for assurance in ("dual", "he"):
        manifest = make_manifest(**encrypted(assurance))  # type: ignore[arg-type]
        gives = {
            "params_digest": manifest.secagg_params().digest().hex(),
            "blocks": manifest.secagg_params().num_blocks,
        }
        out.append(good("params_with_encryption", {"manifest": manifest.to_bytes().decode()}, gives))
    return out


@cache
def asked() -> tuple[Simulation, OpeningRequest]:
    """A dual attempt of five clients, and the request that its decryptor was sent."""
    told: list[OpeningRequest] = []

    def record(client: ClientId, message: object) -> object:
        if isinstance(message, OpeningRequest):
            told.append(message)
        return message

    manifest = make_manifest(**encrypted("dual"))  # type: ignore[arg-type]
    federation = replace(Federation.create(manifest), scheme=InsecureScheme(insecure_rng("scheme")))
    run = Simulation(federation, random_values(manifest, range(1, 6)), tamper_server=record)
    run.run()
    return run, told[0]


def fewer(m: OpeningRequest) -> OpeningRequest:
    """Another set than the signed one."""
    return replace(m, masked=bitmap(ALL[:4], ALL))


REQUESTS: dict[str, dict[str, Change]] = {
    "the bitmap of U1 is malformed": {"stray bits": lambda m: replace(m, advertised=b"\xff")},
    "the bitmap of U3 is malformed": {"another length": lambda m: replace(m, masked=b"\xf8\x00")},
    "U1 is too small": {"two members": lambda m: replace(m, advertised=b"\xc0")},
    "U2 is too small": {"two members": lambda m: replace(m, shared=b"\xc0")},
    "the list of hashes is too small": {"two members": lambda m: replace(m, listed=b"\xc0")},
    "U3 is too small": {
        "below min_cohort": lambda m: replace(m, masked=bitmap(ALL[:3], ALL)),
        "one summand": lambda m: replace(m, masked=b"\x80"),
    },
    "the hashes are not one for each listed client": {"one is missing": lambda m: replace(m, digests=m.digests[32:])},
    "a member of U3 is not in the list of hashes": {
        "five summed, four listed": lambda m: replace(m, listed=bitmap(ALL[:4], ALL), digests=m.digests[:128])
    },
    "too few signatures on U3": {"one less than the quorum": lambda m: replace(m, signatures=m.signatures[:-1])},
    "the certificate's signers are not ascending members of U3": {
        "one twice": lambda m: replace(m, signatures=(*m.signatures[:-1], m.signatures[-2])),
        "a signer outside U3": lambda m: replace(m, masked=bitmap(ALL[1:], ALL)),
    },
    "a signature of the certificate is not on this set": {
        "asked for fewer than the quorum signed": fewer,
        "another tree": lambda m: replace(m, tree_root=bytes(32)),
        "another row": lambda m: replace(m, ledger_seq=m.ledger_seq + 1),
        "another head": lambda m: replace(m, ledger_head=bytes(32)),
        "another hash": lambda m: replace(m, digests=bytes(32) + m.digests[32:]),
        "another list": lambda m: replace(
            m, listed=bitmap(ALL[:4], ALL), digests=m.digests[:128], masked=bitmap(ALL[:4], ALL)
        ),
        "a false signature": lambda m: replace(m, signatures=((m.signatures[0][0], bytes(64)), *m.signatures[1:])),
    },
}


def requests() -> list[Vector]:
    """The honest request."""
    run, request = asked()
    assert run.sum is not None
    given = {**documents(run.federation), "public_key": run.sum.public_key.hex(), "frame": encode_server(request).hex()}
    u3 = list(run.server.masked)
    return [good("decryptor.receive", given, {"hash_u3": run.server._hash_u3.hex(), "masked": u3})]


def bad_requests() -> list[Vector]:
    """Each with one fault: whoever opens for it could be made to open one summand, or a set that nobody agreed on."""
    run, request = asked()
    assert run.sum is not None
    out: list[Vector] = []
    for reason, changes in REQUESTS.items():
        for why, change in changes.items():
            session = DecryptorSession(run.federation.decryptor_setup, run.federation.announcement(), DecryptorMemory())
            session.start(run.sum.public_key)
            changed = change(request)
            try:
                try:
                    frame = encode_server(changed)
                except LocalProtocolError:
                    frame = b""
                session.receive(changed)
            except RemoteProtocolError as error:
                assert reason in error.what, (reason, error.what)
                if not frame:
                    continue  # bytes of that kind never reach a session
                how = {"error": "RemoteProtocolError", "code": error.code, "what": error.what}
                given = {"frame": frame.hex()}
                out.append({"operation": "decryptor.receive", "given": given, "why": why, "success": False, **how})
                continue
            raise AssertionError(f"not refused: {why}")
    return out
