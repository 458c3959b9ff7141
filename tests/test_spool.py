"""Uploads on disk: exactly the announced words, or nothing; the fold is the exact sum."""

import asyncio
import resource
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator import insecure_rng, make_manifest

from protocol.errors import RemoteProtocolError, TransportError
from protocol.messages import MaskedInput
from protocol.rpc.spool import Spool, SpoolRoom, fold, is_spool_name
from secagg.encoding import Words
from secagg.masking import InputDigest, Mask, chunks
from secagg.params import SecAggParams
from secagg.prg import Stream
from secagg.types import Secret

PARAMS = make_manifest(4, 1, 1, 200).secagg_params()


def words_of(seed: object) -> Words:
    """One upload: uniform words."""
    return np.frombuffer(insecure_rng(seed)(8 * PARAMS.total_words), dtype="<u8").copy()


def header_of(words: Words) -> MaskedInput:
    hasher = InputDigest()
    for chunk in chunks(words, PARAMS):
        hasher.update(chunk)
    return MaskedInput(hasher.digest(), len(words), (), bytes(64))


async def fill(spool: Spool, words: Words, until: int = PARAMS.num_chunks) -> None:
    holder = spool.take()
    for index, chunk in enumerate(chunks(words, PARAMS)):
        if spool.received <= index < until:
            await spool.add(holder, index, chunk)


def opened(room: SpoolRoom, words: Words) -> Spool:
    return room.spool(room.new_name(), header_of(words), PARAMS)


def spooled(room: SpoolRoom, seed: object) -> Spool:
    words = words_of(seed)
    spool = opened(room, words)

    async def scenario() -> None:
        await fill(spool, words)
        await spool.seal()

    asyncio.run(scenario())
    return spool


def total_of(spool: Spool) -> list[int]:
    return [int(word) for word in fold([spool], [], PARAMS)]


@given(st.integers(1, 5), st.lists(st.sampled_from((1, -1)), max_size=3))
@settings(max_examples=20)
def test_the_fold_is_the_sum_of_uploads_and_masks(
    tmp_path_factory: pytest.TempPathFactory, n: int, signs: list[int]
) -> None:
    room = SpoolRoom(tmp_path_factory.mktemp("spool"))
    seeds = [insecure_rng(("mask", i))(32) for i in range(len(signs))]
    total = fold(
        [spooled(room, i) for i in range(n)], [Mask(Secret(s), x) for s, x in zip(seeds, signs, strict=True)], PARAMS
    )
    expected = [0] * PARAMS.total_words
    for i in range(n):
        expected = [a + int(b) for a, b in zip(expected, words_of(i), strict=True)]
    for seed, sign in zip(seeds, signs, strict=True):
        stream = Stream(Secret(seed)).words(PARAMS.total_words)
        expected = [a + sign * int(b) for a, b in zip(expected, stream, strict=True)]
    assert [int(word) for word in total] == [word % 2**64 for word in expected]


def test_wrong_chunks_are_refused(tmp_path: Path) -> None:
    words = words_of(0)
    spool = opened(SpoolRoom(tmp_path), words)
    pieces = list(chunks(words, PARAMS))

    async def scenario() -> None:
        me = spool.take()
        with pytest.raises(RemoteProtocolError, match="out of order"):
            await spool.add(me, 1, pieces[1])
        with pytest.raises(RemoteProtocolError, match="wrong length"):
            await spool.add(me, 0, pieces[0][:-1])
        with pytest.raises(RemoteProtocolError, match="wrong length"):
            await spool.add(me, 0, pieces[0] + pieces[1])
        await spool.add(me, 0, pieces[0])
        with pytest.raises(RemoteProtocolError, match="out of order"):
            await spool.add(me, 0, pieces[0])
        with pytest.raises(RemoteProtocolError, match="ends early"):
            await spool.seal()
        for index, piece in enumerate(pieces[1:], start=1):
            await spool.add(me, index, piece)
        with pytest.raises(RemoteProtocolError, match="out of order"):
            await spool.add(me, len(pieces), pieces[-1])
        await spool.seal()
        await spool.seal()

    asyncio.run(scenario())
    assert spool.complete and total_of(spool) == [int(word) for word in words]


def test_one_changed_bit_is_found_and_the_upload_starts_anew(tmp_path: Path) -> None:
    words = words_of(0)
    spool = opened(SpoolRoom(tmp_path), words)
    wrong = words.copy()
    wrong[-1] ^= np.uint64(1)

    async def scenario() -> None:
        await fill(spool, wrong)
        with pytest.raises(RemoteProtocolError, match="other content"):
            await spool.seal()
        with pytest.raises(TransportError):
            fold([spool], [], PARAMS)
        assert spool.received == 0
        await fill(spool, words)
        await spool.seal()

    asyncio.run(scenario())
    assert total_of(spool) == [int(word) for word in words]


@given(st.lists(st.integers(0, PARAMS.num_chunks), max_size=6), st.booleans())
@settings(max_examples=40)
def test_an_upload_that_is_cut_off_goes_on_where_it_was(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], killed: bool
) -> None:
    """Whatever the cuts, and whether the connection or the server went: every chunk is written once."""
    room, words = SpoolRoom(tmp_path_factory.mktemp("spool")), words_of(0)
    name = room.new_name()
    spool = room.spool(name, header_of(words), PARAMS)

    async def scenario() -> Spool:
        here = spool
        for cut in cuts:
            await fill(here, words, cut)
            here.pause(here._holder)
            if killed:
                if here.received and not here.full:  # the kill came in the middle of a write
                    with here.path.open("ab") as file:
                        file.write(bytes(5))
                before, here = here, room.spool(name, here.header, PARAMS)
                here.restore()
                assert here.received == before.received
        await fill(here, words)
        await here.seal()
        return here

    done = asyncio.run(scenario())
    assert done.path.stat().st_size == 8 * PARAMS.total_words
    assert total_of(done) == [int(word) for word in words]


def test_a_newer_stream_takes_over_and_what_was_under_way_counts(tmp_path: Path) -> None:
    words = words_of(0)
    spool = opened(SpoolRoom(tmp_path), words)
    pieces = list(chunks(words, PARAMS))

    async def scenario() -> None:
        old = spool.take()
        await spool.add(old, 0, pieces[0])
        under_way = asyncio.create_task(spool.add(old, 1, pieces[1]))
        await asyncio.sleep(0)
        new = spool.take()
        assert await spool.settled() == 2
        await under_way
        with pytest.raises(TransportError) as caught:
            await spool.add(old, 2, pieces[2])
        assert caught.value.code == "E342"
        spool.pause(old)  # says nothing about the new one
        await spool.add(new, 2, pieces[2])
        assert spool.received == 3

    asyncio.run(scenario())


def test_a_restored_upload_is_what_it_was_or_is_refused(tmp_path: Path) -> None:
    room = SpoolRoom(tmp_path)
    done = spooled(room, 0)
    again = room.spool(done.path.name, done.header, PARAMS)
    again.restore()
    again.reseal()
    assert total_of(again) == total_of(done)
    data = bytearray(done.path.read_bytes())
    for damage in (data[:-8], data[:8] + bytes([data[8] ^ 1]) + data[9:], b""):
        done.path.write_bytes(damage)
        changed = room.spool(done.path.name, done.header, PARAMS)
        changed.restore()
        with pytest.raises(TransportError) as caught:
            changed.reseal()
        assert caught.value.code == "E341" and not changed.complete


def test_a_file_that_shrank_is_not_folded(tmp_path: Path) -> None:
    spool = spooled(SpoolRoom(tmp_path), 0)
    spool.path.write_bytes(spool.path.read_bytes()[:-8])
    with pytest.raises(TransportError) as caught:
        fold([spool], [], PARAMS)
    assert caught.value.code == "E341"


def test_discarded_uploads_leave_nothing_and_take_nothing(tmp_path: Path) -> None:
    words = words_of(0)
    spool = opened(SpoolRoom(tmp_path), words)
    asyncio.run(fill(spool, words, 1))
    spool.discard()
    spool.discard()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TransportError) as caught:
        asyncio.run(fill(spool, words, 2))
    assert caught.value.code == "E342"
    with pytest.raises(TransportError):
        asyncio.run(spool.add(spool.take(), 1, list(chunks(words, PARAMS))[1]))
    assert list(tmp_path.iterdir()) == []


def test_the_directory_is_private_and_swept(tmp_path: Path) -> None:
    room = SpoolRoom(tmp_path / "spool")
    kept, gone = spooled(room, 0).path, spooled(room, 1).path
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    (kept.parent / "notes.txt").write_text("not ours")
    SpoolRoom(kept.parent).sweep([kept.name])
    assert {p.name for p in kept.parent.iterdir()} == {"notes.txt", kept.name} and not gone.exists()
    SpoolRoom(kept.parent).sweep()
    assert [p.name for p in kept.parent.iterdir()] == ["notes.txt"]


def test_a_full_disk_is_one_clear_error_and_costs_nothing_that_was_there(tmp_path: Path) -> None:
    words = words_of(0)
    spool = opened(SpoolRoom(tmp_path), words)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))  # the kernel refuses the second chunk
    try:
        with pytest.raises(TransportError) as caught:
            asyncio.run(fill(spool, words))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == "E341"
    assert caught.value.do is not None and "space" in caught.value.do
    assert spool.received == 1
    asyncio.run(fill(spool, words))
    asyncio.run(spool.seal())
    assert total_of(spool) == [int(word) for word in words]


def test_a_cancelled_chunk_is_written_to_its_end_and_counts(tmp_path: Path) -> None:
    words = words_of(0)
    spool = opened(SpoolRoom(tmp_path), words)

    async def scenario() -> None:
        task = asyncio.create_task(spool.add(spool.take(), 0, next(iter(chunks(words, PARAMS)))))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        written = spool.path.stat().st_size if spool.path.exists() else 0
        assert written == spool.received * 8 * PARAMS.chunk_words

    asyncio.run(scenario())


def test_no_file_stays_open_for_an_upload_that_pauses(tmp_path: Path) -> None:
    words = words_of(0)
    spool = opened(SpoolRoom(tmp_path), words)
    asyncio.run(fill(spool, words, 2))
    spool.pause(spool.take() - 1)  # not the newest stream
    assert spool._file is not None
    spool.pause(spool._holder)
    assert spool._file is None
    with spool.path.open("ab") as file:
        file.write(b"x")  # somebody else writes
    with pytest.raises(TransportError, match="cannot be kept"):
        asyncio.run(fill(spool, words, 3))


def test_only_names_of_this_room_are_names(tmp_path: Path) -> None:
    assert is_spool_name(SpoolRoom(tmp_path).new_name())
    good = "0123456789abcdef.spool"
    assert is_spool_name(good)
    for bad in ("", "../" + good, good + "\n", good.upper(), good[1:], "/etc/passwd", 5, None, b"x"):
        assert not is_spool_name(bad)


def test_params_have_several_chunks() -> None:
    assert isinstance(PARAMS, SecAggParams)
    assert PARAMS.num_chunks > 3 and PARAMS.total_words % PARAMS.chunk_words != 0
