"""The chained store: durable, append-only, and every kind of damage is refused when it is opened."""

import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp.errors import LedgerError
from dp.store import (
    DAMAGED,
    GENESIS,
    IN_USE,
    NO_PREVIOUS,
    OTHER_BOOK,
    STORAGE_FAILED,
    TOO_OPEN,
    ChainedStore,
    Row,
    broken_link,
    canonical,
    next_row,
    row_hash,
)

WHO = {"book": "test", "version": 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "books" / "chain.db"


def opened(path: Path) -> ChainedStore:
    return ChainedStore.open(path, WHO)


def filled(path: Path, count: int = 3) -> tuple[Row, ...]:
    with opened(path) as store:
        for k in range(count):
            store.append("note", {"k": k})
        return store.rows()


def code(excinfo: pytest.ExceptionInfo[LedgerError]) -> str:
    return excinfo.value.code


def test_rows_survive_and_chain(path: Path) -> None:
    rows = filled(path)
    with opened(path) as store:
        assert store.rows() == rows and store.head == (3, rows[-1].hash)
        assert rows[0].kind == GENESIS and rows[0].previous == NO_PREVIOUS and rows[0].value() == WHO
        assert [r.value() for r in store.rows("note")] == [{"k": 0}, {"k": 1}, {"k": 2}]
        assert store.append("other", {"x": None}).previous == rows[-1].hash


def test_the_hash_is_the_documented_one() -> None:
    # Computed with sha256sum over the length-prefixed fields, not with this code.
    import hashlib

    fields = [b"secagg-ffm chained row v1", (7).to_bytes(8, "big"), b"note", b"\x01" * 32, b'{"a":1}']
    flat = b"".join(len(f).to_bytes(8, "big") + f for f in fields)
    assert row_hash(7, "note", b"\x01" * 32, b'{"a":1}') == hashlib.sha256(flat).digest()


def test_directory_and_file_are_private(path: Path) -> None:
    filled(path)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == ["chain.db"]


@pytest.mark.parametrize(
    ("target", "mode"), [("file", 0o640), ("file", 0o604), ("directory", 0o750), ("directory", 0o701)]
)
def test_looser_permissions_are_refused(path: Path, target: str, mode: int) -> None:
    filled(path)
    (path if target == "file" else path.parent).chmod(mode)
    with pytest.raises(LedgerError, match="others") as caught:
        opened(path)
    assert code(caught) == TOO_OPEN and "chmod" in str(caught.value.do)


def test_a_link_is_refused(path: Path) -> None:
    filled(path)
    link = path.with_name("link.db")
    link.symlink_to(path)
    with pytest.raises(LedgerError) as caught:
        opened(link)
    assert code(caught) == TOO_OPEN


def test_pragmas(path: Path) -> None:
    with opened(path) as store:
        connection = store._connection
        assert connection is not None
        wanted = {"synchronous": 3, "locking_mode": "exclusive", "journal_mode": "wal", "trusted_schema": 0}
        wanted |= {"cell_size_check": 1, "user_version": 1}
        assert {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in wanted} == wanted


def test_a_second_process_gets_one_clear_error(path: Path) -> None:
    script = (
        "import sys\nfrom dp.errors import LedgerError\nfrom dp.store import ChainedStore\n"
        f"try:\n    ChainedStore.open(sys.argv[1], {WHO!r})\n"
        "except LedgerError as error:\n    print(error.code, error)\n"
    )
    with opened(path):
        for _ in range(2):  # also before anything was appended, and it does not disturb the holder
            done = subprocess.run(
                [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True, timeout=60
            )
            assert done.stdout.startswith(f"{IN_USE} chain.db is in use"), done
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == ""


def test_a_second_opening_in_this_process_is_refused_and_harmless(path: Path) -> None:
    with opened(path) as store:
        with pytest.raises(LedgerError) as caught:
            opened(path)
        assert code(caught) == IN_USE
        store.append("note", {})
    opened(path).close()


def test_a_killed_process_loses_nothing_that_was_acknowledged(path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom dp.store import ChainedStore\n"
        f"store = ChainedStore.open(sys.argv[1], {WHO!r})\n"
        "for k in range(5):\n    print(store.append('note', {'k': k}).hash.hex(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == -9
    with opened(path) as store:
        assert [row.hash.hex() for row in store.rows("note")] == done.stdout.split()


def test_update_and_delete_are_refused_by_the_file_itself(path: Path) -> None:
    with opened(path) as store:
        store.append("note", {})
        connection = store._connection
        assert connection is not None
        for statement in ("DELETE FROM chain WHERE seq = 1", "UPDATE chain SET body = x'7b7d' WHERE seq = 1"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE chain SET body = x'7b226b223a397d' WHERE seq = 1",
        "UPDATE chain SET kind = 'other' WHERE seq = 2",
        "DELETE FROM chain WHERE seq = 1",
        "DELETE FROM chain WHERE seq = 0",
        "DELETE FROM chain",
        "UPDATE chain SET seq = 9 WHERE seq = 3",
        "UPDATE chain SET previous = zeroblob(32) WHERE seq = 2",
        "UPDATE chain SET hash = zeroblob(32) WHERE seq = 3",
        "CREATE TABLE more (x)",
        "PRAGMA user_version = 2",
    ],
)
def test_damage_is_found_when_the_book_is_opened(path: Path, damage: str) -> None:
    filled(path)
    connection = sqlite3.connect(path)
    triggers = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_schema WHERE type = 'trigger'")]
    connection.executescript(f"DROP TRIGGER no_update; DROP TRIGGER no_delete; {damage}; {'; '.join(triggers)};")
    connection.close()
    with pytest.raises(LedgerError) as caught:
        opened(path)
    assert code(caught) == DAMAGED
    opened_again = sqlite3.connect(path)  # the lock was given back
    opened_again.execute("SELECT count(*) FROM chain")
    opened_again.close()


def test_flipped_bits_are_found_or_change_nothing(path: Path) -> None:
    rows = filled(path, 20)
    good = path.read_bytes()
    changed = 0
    for position in range(0, len(good), 97):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        try:
            with opened(path) as store:
                assert store.rows() == rows  # the bit lay in unused space
        except LedgerError as error:
            assert error.code in (DAMAGED, STORAGE_FAILED)
            changed += 1
        for name in (f"{path}-wal", f"{path}-journal"):
            Path(name).unlink(missing_ok=True)
    assert changed > 20


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to be looked at" * 30])
def test_a_file_that_is_no_book_is_damage_and_never_new(path: Path, content: bytes) -> None:
    filled(path)
    path.write_bytes(content)
    with pytest.raises(LedgerError) as caught:
        opened(path)
    assert code(caught) == DAMAGED


def test_a_lost_file_with_a_log_left_is_not_started_anew(path: Path) -> None:
    filled(path)
    path.rename(f"{path}-wal")
    with pytest.raises(LedgerError, match="is gone") as caught:
        opened(path)
    assert code(caught) == DAMAGED


def test_another_book_is_refused(path: Path) -> None:
    filled(path)
    with pytest.raises(LedgerError, match="another book") as caught:
        ChainedStore.open(path, {"book": "other"})
    assert code(caught) == OTHER_BOOK


def test_a_storage_error_closes_the_store_for_good(path: Path) -> None:
    store = opened(path)
    store.append("note", {"k": 0})
    connection = store._connection
    assert connection is not None
    connection.execute(f"PRAGMA max_page_count={connection.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(LedgerError) as caught:
        store.append("note", {"text": "x" * 20000})  # SQLITE_FULL
    assert code(caught) == STORAGE_FAILED
    with pytest.raises(LedgerError, match="closed"):
        store.append("note", {"k": 1})
    with opened(path) as again:
        assert [row.value() for row in again.rows("note")] == [{"k": 0}]


def test_an_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError) as caught:
        opened(tmp_path / "file" / "chain.db")
    assert code(caught) == STORAGE_FAILED


@pytest.mark.parametrize("body", [{"x": 0.5}, {"x": [1, {"y": 1e9}]}, {"x": 2**53}, {"x": b"bytes"}, {"x": {1, 2}}])
def test_only_canonical_json_without_floats(path: Path, body: dict[str, Any]) -> None:
    with opened(path) as store:
        with pytest.raises(LedgerError):
            store.append("note", body)
        store.append("note", {})  # a refused body does not close the store
        with pytest.raises(LedgerError):
            store.append(GENESIS, {})


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.text(max_size=4), values, max_size=3), min_size=1, max_size=5), st.data())
def test_any_change_breaks_the_chain(bodies: list[dict[str, Any]], data: st.DataObject) -> None:
    rows = [next_row(None, GENESIS, WHO)]
    for body in bodies:
        rows.append(next_row((rows[-1].seq, rows[-1].hash), "note", body))
        assert rows[-1].value() == body
    assert broken_link(rows) is None
    at = data.draw(st.integers(0, len(rows) - 1))
    row = rows[at]
    changed = data.draw(
        st.sampled_from(
            [
                Row(row.seq, row.kind, row.body + b" ", row.previous, row.hash),
                Row(row.seq, row.kind + "s", row.body, row.previous, row.hash),
                Row(row.seq + 1, row.kind, row.body, row.previous, row.hash),
                Row(row.seq, row.kind, row.body, bytes([row.previous[0] ^ 1, *row.previous[1:]]), row.hash),
                Row(row.seq, row.kind, row.body, row.previous, bytes([row.hash[0] ^ 1, *row.hash[1:]])),
            ]
        )
    )
    assert broken_link([*rows[:at], changed, *rows[at + 1 :]]) is not None
    if at < len(rows) - 1:
        assert broken_link([*rows[:at], *rows[at + 1 :]]) is not None


def test_canonical_is_rfc_8785() -> None:
    assert canonical({"b": [True, None], "a": "ε\n"}) == '{"a":"ε\\n","b":[true,null]}'.encode()
    assert os.linesep  # the bytes do not depend on the platform
