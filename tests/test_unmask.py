"""The server's sums on several threads: the same bits as on one, every bad file named, every failure heard."""

import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from simulator import insecure_rng

from protocol.rpc import unmask as module
from protocol.rpc.unmask import FILES_AT_ONCE, RANGE_WORDS, add_uploads, unmask
from secagg.encoding import Words
from secagg.errors import ParameterError
from secagg.masking import MASKS_AT_ONCE, PIECE_WORDS, Mask, MaskStreams, add_masks
from secagg.prg import Stream
from secagg.types import Secret


def masks(count: int) -> list[Mask]:
    return [Mask(Secret(insecure_rng(("mask", i))(32)), 1 if i % 3 else -1) for i in range(count)]


def words(length: int, *parts: object) -> Words:
    return Stream(Secret(insecure_rng(parts)(32))).words(length)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Threads also for little work; the names of those that added masks."""
    monkeypatch.setattr(module, "WORDS_PER_THREAD", 1)
    monkeypatch.setattr(module, "MASKS_PER_THREAD", 1)
    seen: set[str] = set()

    class Watched(MaskStreams):
        def __init__(self, group: Iterable[Mask]) -> None:
            seen.add(threading.current_thread().name)
            super().__init__(group)

    monkeypatch.setattr(module, "MaskStreams", Watched)
    return seen


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize(("count", "length"), [(0, 10), (1, 1), (5, 3), (7, PIECE_WORDS + 1), (40, 2 * PIECE_WORDS)])
def test_the_threads_make_the_same_sum(eager: set[str], count: int, length: int, threads: int) -> None:
    total, given = words(length, "total"), masks(count)
    expected = total.copy()
    add_masks(expected, given)
    unmask(total, iter(given), threads)
    assert np.array_equal(total, expected)
    assert all(name.startswith("unmask") for name in eager)
    assert bool(eager) == (min(threads, count) > 1)
    assert all(len(mask.seed) == 32 for mask in given)  # the caller's to wipe


def test_more_masks_than_contexts_are_kept_open(eager: set[str]) -> None:
    given, total = masks(3 * MASKS_AT_ONCE + 5), np.zeros(9, dtype="<u8")
    expected = np.zeros(9, dtype=np.uint64)
    for mask in given:
        expected = expected + Stream(mask.seed).words(9) * np.uint64(mask.sign % 2**64)
    unmask(total, given, 2)
    assert np.array_equal(total, expected) and eager


def test_little_work_stays_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **keywords: object) -> None:
        raise AssertionError("a pool for nothing")

    monkeypatch.setattr(module, "ThreadPoolExecutor", refuse)
    total = np.zeros(1000, dtype="<u8")
    unmask(total, masks(50), 8)
    assert total.any()
    with pytest.raises(AssertionError, match="for nothing"):
        unmask(np.zeros(1 << 20, dtype="<u8"), masks(8), 8)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_failure_in_a_thread_is_heard(eager: set[str], threads: int) -> None:
    given = masks(6)
    given[4].seed.wipe()
    with pytest.raises(ParameterError, match="seed length"):
        unmask(np.zeros(100, dtype="<u8"), given, threads)
    assert not [t for t in threading.enumerate() if t.name.startswith("unmask")]


def files(folder: Path, count: int, length: int) -> tuple[list[Path], Words]:
    paths, total = [], np.zeros(length, dtype=np.uint64)
    for i in range(count):
        content = words(length, "upload", i)
        path = folder / f"{i}.spool"
        path.write_bytes(content.astype("<u8").tobytes())
        paths.append(path)
        total = total + content
    return paths, total


@pytest.mark.parametrize("threads", [None, 1, 3])
@pytest.mark.parametrize(("count", "length"), [(0, 5), (1, 1), (3, RANGE_WORDS + 7), (2 * FILES_AT_ONCE + 1, 100)])
def test_uploads_are_added(tmp_path: Path, eager: set[str], count: int, length: int, threads: int | None) -> None:
    paths, expected = files(tmp_path, count, length)
    total = words(length, "before")
    expected = expected + total
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    add_uploads(total, paths, threads)
    assert np.array_equal(total, expected)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


@pytest.mark.parametrize("how", ["shorter", "longer", "odd", "missing", "link"])
def test_a_file_that_is_not_what_was_written_is_named(tmp_path: Path, how: str) -> None:
    paths, _ = files(tmp_path, 3, 50)
    bad = paths[1]
    content = bad.read_bytes()
    match how:
        case "missing":
            bad.unlink()
        case "link":
            bad.rename(tmp_path / "elsewhere")
            bad.symlink_to(tmp_path / "elsewhere")
        case _:
            bad.write_bytes({"shorter": content[:-8], "longer": content + bytes(8), "odd": content + b"x"}[how])
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError) as caught:
        add_uploads(np.zeros(50, dtype="<u8"), paths)
    assert caught.value.filename == str(bad)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its length was right when it was opened."""
    paths, _ = files(tmp_path, 2, 50)
    real = module.os.preadv

    def shrink(file: int, buffers: list[memoryview], offset: int) -> int:
        paths[0].write_bytes(b"")
        return real(file, buffers, offset)

    monkeypatch.setattr(module.os, "preadv", shrink)
    with pytest.raises(OSError, match="shorter") as caught:
        add_uploads(np.zeros(50, dtype="<u8"), paths, 1)
    assert caught.value.filename == str(paths[0])


def test_short_reads_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, expected = files(tmp_path, 2, 50)
    real = module.os.preadv
    monkeypatch.setattr(module.os, "preadv", lambda file, buffers, offset: real(file, [buffers[0][:7]], offset))
    total = np.zeros(50, dtype="<u8")
    add_uploads(total, paths, 1)
    assert np.array_equal(total, expected)
