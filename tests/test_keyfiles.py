"""Key files: exact modes, never overwritten, refused when others could read them."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import DocumentError
from protocol.rpc.keyfiles import (
    private_folder,
    read_private,
    read_signing_key,
    read_tls_key,
    read_verify_key,
    verify_key_pem,
    write_new,
    write_signing_key,
    write_tls_key,
)
from protocol.rpc.pki import new_key
from secagg.signing import SigningKey

SEED = bytes(range(32))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refused(code: str, call: object, *args: object) -> DocumentError:
    assert callable(call)
    with pytest.raises(DocumentError) as caught:
        call(*args)
    assert caught.value.code == code, str(caught.value)
    return caught.value


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_signing_key(tmp_path / "identity.key", SigningKey.from_bytes(SEED))
        write_tls_key(tmp_path / "tls.key", new_key())
        write_new(tmp_path / "ca.pem", b"public")
        private_folder(tmp_path / "site")
    finally:
        os.umask(before)
    assert mode(tmp_path / "identity.key") == mode(tmp_path / "tls.key") == 0o600
    assert mode(tmp_path / "ca.pem") == 0o644
    assert mode(tmp_path / "site") == 0o700


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    write_signing_key(path, SigningKey.from_bytes(SEED))
    before = path.read_bytes()
    refused("E320", write_signing_key, path, SigningKey.from_bytes(bytes(32)))
    assert path.read_bytes() == before


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    write_signing_key(tmp_path / "real.key", SigningKey.from_bytes(SEED))
    (tmp_path / "linked.key").symlink_to(tmp_path / "real.key")
    (tmp_path / "dangling.key").symlink_to(tmp_path / "nowhere")
    refused("E319", read_signing_key, tmp_path / "linked.key")
    refused("E320", write_new, tmp_path / "dangling.key", b"x")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("loose", [0o640, 0o604, 0o660, 0o666, 0o601, 0o610])
def test_a_readable_key_is_refused(tmp_path: Path, loose: int) -> None:
    path = tmp_path / "identity.key"
    write_signing_key(path, SigningKey.from_bytes(SEED))
    path.chmod(loose)
    error = refused("E318", read_signing_key, path)
    assert f"{loose:04o}" in str(error) and "chmod 600" in str(error.do)
    path.chmod(0o400)
    assert read_signing_key(path).to_bytes() == SEED


def test_a_key_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "identity.key"
    write_signing_key(path, SigningKey.from_bytes(SEED))
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    refused("E318", read_signing_key, path)
    refused("E318", private_folder, tmp_path)


def test_a_folder_that_others_write_to_is_refused(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "site")
    folder.chmod(0o770)
    refused("E318", private_folder, folder)
    (tmp_path / "file").write_bytes(b"")
    refused("E319", private_folder, tmp_path / "file")


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    refused("E318", read_private, tmp_path / "pipe")


@given(seed=st.binary(min_size=32, max_size=32), passphrase=st.none() | st.binary(min_size=1, max_size=40))
def test_signing_keys_come_back(
    tmp_path_factory: pytest.TempPathFactory, seed: bytes, passphrase: bytes | None
) -> None:
    folder = tmp_path_factory.mktemp("keys")
    key = SigningKey.from_bytes(seed)
    write_signing_key(folder / "k", key, passphrase and passphrase[:1])
    assert read_signing_key(folder / "k", passphrase and passphrase[:1]).to_bytes() == seed
    write_new(folder / "pub", verify_key_pem(key.verify_key))
    assert read_verify_key(folder / "pub") == key.verify_key


def test_passphrases(tmp_path: Path) -> None:
    path = tmp_path / "owner.key"
    write_signing_key(path, SigningKey.from_bytes(SEED), b"correct horse")
    assert b"ENCRYPTED" in path.read_bytes()
    assert "no passphrase" in str(refused("E321", read_signing_key, path))
    wrong = refused("E321", read_signing_key, path, b"battery staple")
    assert "battery" not in str(wrong) and "another passphrase" in str(wrong)


def test_a_passphrase_for_a_plain_file_is_not_needed(tmp_path: Path) -> None:
    write_signing_key(tmp_path / "owner.key", SigningKey.from_bytes(SEED))
    assert read_signing_key(tmp_path / "owner.key", b"correct horse").to_bytes() == SEED


def test_files_of_another_kind(tmp_path: Path) -> None:
    write_tls_key(tmp_path / "tls.key", new_key())
    write_signing_key(tmp_path / "identity.key", SigningKey.from_bytes(SEED))
    write_new(tmp_path / "garbage", b"\x00not pem", 0o600)
    refused("E321", read_signing_key, tmp_path / "tls.key")
    refused("E321", read_tls_key, tmp_path / "identity.key")
    refused("E321", read_signing_key, tmp_path / "garbage")
    refused("E321", read_verify_key, tmp_path / "garbage")
    refused("E321", read_verify_key, tmp_path / "tls.key")
    refused("E319", read_signing_key, tmp_path / "missing")
    refused("E319", read_verify_key, tmp_path / "missing")


def test_no_error_shows_a_key(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    write_signing_key(path, SigningKey.from_bytes(SEED))
    text = path.read_text()
    path.write_text(text.replace("MC4", "MC5"))
    error = refused("E321", read_signing_key, path)
    secret = text.splitlines()[1][10:30]
    assert secret not in str(error) and secret not in repr(error.__cause__) + repr(error.__context__)
