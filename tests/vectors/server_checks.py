"""What a server must refuse: faults that client 2 commits, for the checks of SPEC 7.2 to 7.6 and 8.3.

tests/test_abusive_client.py plays them to the end of the attempt; the bad_*.json files here hold the one bad frame and
the drop reason. Each fault is rightly signed, unless the signature is the fault.
"""

from collections.abc import Callable
from dataclasses import replace

from simulator import Simulation, insecure_rng

from protocol.messages import (
    AdvertiseKeys,
    MaskedInput,
    ShareKeys,
    UnmaskingShares,
    input_body,
    shares_body,
)
from secagg.signing import SigningKey
from secagg.transcript import merkle_root
from secagg.types import ClientId

BAD = ClientId(2)
EVIL = SigningKey.generate(insecure_rng("evil"))


def sign_shares(s: Simulation, message: ShareKeys) -> ShareKeys:
    root = merkle_root([share.leaf(BAD) for share in message.shares])
    body = shares_body(s.server.ctx, s.server._root_u1, BAD, root)
    return replace(message, signature=s.federation.client_keys[BAD].sign(body))


def sign_input(s: Simulation, message: MaskedInput, sender: ClientId = BAD) -> MaskedInput:
    body = input_body(s.server.ctx, s.server._root_u2, sender, message)
    return replace(message, signature=s.federation.client_keys[sender].sign(body))


def sign_advert(s: Simulation, message: AdvertiseKeys) -> AdvertiseKeys:
    return replace(message, signature=s.federation.client_keys[BAD].sign(message.body(s.server.ctx, BAD)))


# -- phase 0 ----------------------------------------------------------------------------------------------------------


def copied(name: str) -> Callable[[Simulation, AdvertiseKeys], AdvertiseKeys]:
    def change(s: Simulation, message: AdvertiseKeys) -> AdvertiseKeys:
        other = s.server._message(AdvertiseKeys, ClientId(1))
        return replace(message, **{name: getattr(other, name)})  # type: ignore[arg-type]

    return change


def other_encoding(s: Simulation, message: AdvertiseKeys) -> AdvertiseKeys:
    """Client 1's key with the bit set that X25519 ignores: equal as a key, different as bytes."""
    key = bytearray(s.server._message(AdvertiseKeys, ClientId(1)).masking_pk)
    key[31] ^= 0x80
    return replace(message, masking_pk=bytes(key))


SMALL_ORDER = [  # the canonical points of small order, RFC 7748 and Wycheproof
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]
PHASE_0: dict[str, Callable[[Simulation, AdvertiseKeys], AdvertiseKeys]] = {
    "copied encryption key": copied("encryption_pk"),
    "copied masking key": copied("masking_pk"),
    "copied commitment": copied("commitment"),
    "another's masking key as encryption key": lambda s, m: replace(
        m, encryption_pk=s.server._message(AdvertiseKeys, ClientId(1)).masking_pk
    ),
    "one key for both": lambda s, m: replace(m, masking_pk=m.encryption_pk),
    "same key, other bytes": other_encoding,
    "short key": lambda s, m: replace(m, masking_pk=m.masking_pk[:31]),
    **{f"small order {i}": lambda s, m, k=k: replace(m, masking_pk=k) for i, k in enumerate(SMALL_ORDER)},  # type: ignore[misc]
    **{
        f"small order {i} to encrypt": lambda s, m, k=k: replace(m, encryption_pk=k)  # type: ignore[misc]
        for i, k in enumerate(SMALL_ORDER)
    },
}
LEDGER = {
    "a row that does not exist": (1, bytes(32)),
    "another genesis": (0, bytes(32)),
    "far ahead": (2**53 - 1, bytes(32)),
}

# -- phase 1 ----------------------------------------------------------------------------------------------------------

LISTS: dict[str, Callable[[ShareKeys], ShareKeys]] = {
    "one missing": lambda m: replace(m, shares=m.shares[1:]),
    "one twice": lambda m: replace(m, shares=(m.shares[0], *m.shares)),
    "another order": lambda m: replace(m, shares=m.shares[::-1]),
    "a stranger": lambda m: replace(m, shares=(*m.shares[:4], replace(m.shares[4], recipient=ClientId(6)))),
    "sealed to itself": lambda m: replace(
        m, shares=tuple(replace(x, ciphertext=bytes(82)) if x.recipient == BAD else x for x in m.shares)
    ),
    "nothing for client 1": lambda m: replace(m, shares=(replace(m.shares[0], ciphertext=b""), *m.shares[1:])),
    "empty": lambda m: replace(m, shares=()),
}

# -- phase 2 ----------------------------------------------------------------------------------------------------------

HEADERS: dict[str, Callable[[MaskedInput], MaskedInput]] = {
    "a word too many": lambda m: replace(m, total_words=m.total_words + 1),
    "a word too few": lambda m: replace(m, total_words=m.total_words - 1),
    "2^40 words": lambda m: replace(m, total_words=2**40),
    "a complaint against itself": lambda m: replace(m, complaints=(BAD,)),
    "a complaint against a stranger": lambda m: replace(m, complaints=(ClientId(6),)),
    "the same complaint twice": lambda m: replace(m, complaints=(ClientId(5), ClientId(5))),
    "descending complaints": lambda m: replace(m, complaints=(ClientId(5), ClientId(3))),
}

# -- phase 4 ----------------------------------------------------------------------------------------------------------


def flip(share: bytes) -> bytes:
    return share[:-1] + bytes([share[-1] ^ 1])


UNMASK: dict[str, Callable[[UnmaskingShares], UnmaskingShares]] = {
    "one bit": lambda m: replace(m, self_shares=((m.self_shares[0][0], flip(m.self_shares[0][1])), *m.self_shares[1:])),
    "key share, one bit": lambda m: replace(m, key_shares=((m.key_shares[0][0], flip(m.key_shares[0][1])),)),
    "one missing": lambda m: replace(m, self_shares=m.self_shares[1:]),
    "no key shares": lambda m: replace(m, key_shares=()),
    "one twice": lambda m: replace(m, self_shares=(m.self_shares[0], *m.self_shares)),
    "another order": lambda m: replace(m, self_shares=m.self_shares[::-1]),
    "two swapped": lambda m: replace(
        m,
        self_shares=(
            (m.self_shares[0][0], m.self_shares[1][1]),
            (m.self_shares[1][0], m.self_shares[0][1]),
            *m.self_shares[2:],
        ),
    ),
    "kinds swapped": lambda m: UnmaskingShares(m.key_shares, m.self_shares),
    "both kinds of one client": lambda m: replace(m, key_shares=(m.self_shares[0], *m.key_shares)),
    "short": lambda m: replace(m, self_shares=((m.self_shares[0][0], m.self_shares[0][1][1:]), *m.self_shares[1:])),
    "a stranger": lambda m: replace(m, self_shares=(*m.self_shares, (ClientId(6), bytes(33)))),
    "empty": lambda m: UnmaskingShares((), ()),
}
