"""Ids, phases and the Secret class. What never happens to a Secret stands in test_secrets.py."""

from secagg.types import Phase, Secret


def test_phases_are_numbered_as_in_the_literature() -> None:
    assert [p.value for p in Phase] == [0, 1, 2, 3, 4, 5, 6, 7]  # 7: between 1 and 2, where inputs are encrypted
    assert Phase.ADVERTISE_KEYS < Phase.SHARE_KEYS < Phase.MASKED_INPUT < Phase.CONSISTENCY_CHECK < Phase.UNMASKING


def test_a_secret_equals_by_its_bytes_only() -> None:
    assert Secret(b"abc") == Secret(bytearray(b"abc")) == Secret(memoryview(b"abc"))
    assert Secret(b"abc") != Secret(b"abd") and Secret(b"abc") != Secret(b"ab")
    assert Secret(b"abc") != b"abc"


def test_a_view_is_read_only_and_follows_the_wipe() -> None:
    secret = Secret(b"abc")
    assert secret.view.readonly and bytes(secret.view) == b"abc" and len(secret) == 3
    view = secret.view
    secret.wipe()
    assert bytes(view) == bytes(3) and len(secret) == 0 and bytes(secret.view) == b""


def test_a_secret_owns_its_bytes() -> None:
    source = bytearray(b"abc")
    secret = Secret(source)
    source[0] = 0
    assert bytes(secret.view) == b"abc"
