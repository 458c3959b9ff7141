"""Ed25519 through our wrappers: vectors of RFC 8032 section 7.1, and refusals."""

import pytest
from simulator import insecure_rng

from secagg.errors import AuthenticationError, ParameterError
from secagg.signing import SigningKey, VerifyKey

RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_rfc_8032(seed: str, public: str, message: str, signature: str) -> None:
    key = SigningKey.from_bytes(bytes.fromhex(seed))
    assert key.verify_key.to_bytes().hex() == public and key.to_bytes().hex() == seed
    assert key.sign(bytes.fromhex(message)).hex() == signature
    VerifyKey(bytes.fromhex(public)).verify(bytes.fromhex(signature), bytes.fromhex(message))


def test_any_changed_bit_is_refused() -> None:
    _, public, message, signature = (bytes.fromhex(x) for x in RFC_8032[2])
    key = VerifyKey(public)
    for bit in range(0, 512, 7):
        bent = bytearray(signature)
        bent[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(AuthenticationError, match=r"^signature verification failed$"):
            key.verify(bytes(bent), message)
    for wrong in (b"", signature[:-1], signature + b"\x00"):
        with pytest.raises(AuthenticationError):
            key.verify(wrong, message)
    with pytest.raises(AuthenticationError):
        key.verify(signature, message + b"\x00")


def test_a_second_form_of_a_signature_is_refused() -> None:
    """S + L instead of S (RFC 8032 section 5.1.7): otherwise signed bytes would have several valid signatures."""
    order = 2**252 + 27742317777372353535851937790883648493
    _, public, message, signature = (bytes.fromhex(x) for x in RFC_8032[1])
    larger = int.from_bytes(signature[32:], "little") + order
    with pytest.raises(AuthenticationError):
        VerifyKey(public).verify(signature[:32] + larger.to_bytes(32, "little"), message)


def test_lengths_and_identity() -> None:
    for wrong in (b"", bytes(31), bytes(33)):
        with pytest.raises(ParameterError):
            VerifyKey(wrong)
    one, two = SigningKey.generate(insecure_rng(1)).verify_key, SigningKey.generate(insecure_rng(2)).verify_key
    assert one == VerifyKey(one.to_bytes()) != two and hash(one) == hash(VerifyKey(one.to_bytes()))
    assert one != one.to_bytes()
    assert len(one.fingerprint()) == 24 and one.fingerprint() != two.fingerprint()
