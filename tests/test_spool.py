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
from protocol.rpc.spool import Spool, SpoolRoom, fold
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


async def fill(spool: Spool, words: Words) -> None:
    for index, chunk in enumerate(chunks(words, PARAMS)):
        await spool.add(index, chunk)


def spooled(room: SpoolRoom, seed: object) -> Spool:
    words = words_of(seed)
    spool = room.open(header_of(words), PARAMS)
    asyncio.run(fill(spool, words))
    spool.close()
    return spool


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
    spool = SpoolRoom(tmp_path).open(header_of(words), PARAMS)
    pieces = list(chunks(words, PARAMS))
    with pytest.raises(RemoteProtocolError, match="out of order"):
        asyncio.run(spool.add(1, pieces[1]))
    with pytest.raises(RemoteProtocolError, match="wrong length"):
        asyncio.run(spool.add(0, pieces[0][:-1]))
    with pytest.raises(RemoteProtocolError, match="wrong length"):
        asyncio.run(spool.add(0, pieces[0] + pieces[1]))
    asyncio.run(spool.add(0, pieces[0]))
    with pytest.raises(RemoteProtocolError, match="out of order"):
        asyncio.run(spool.add(0, pieces[0]))
    with pytest.raises(RemoteProtocolError, match="ends early"):
        spool.close()
    for index, piece in enumerate(pieces[1:], start=1):
        asyncio.run(spool.add(index, piece))
    with pytest.raises(RemoteProtocolError, match="out of order"):
        asyncio.run(spool.add(len(pieces), pieces[-1]))
    spool.close()
    assert spool.complete


def test_one_changed_bit_is_found(tmp_path: Path) -> None:
    words = words_of(0)
    spool = SpoolRoom(tmp_path).open(header_of(words), PARAMS)
    words[-1] ^= np.uint64(1)
    asyncio.run(fill(spool, words))
    with pytest.raises(RemoteProtocolError, match="other content"):
        spool.close()
    with pytest.raises(TransportError):
        fold([spool], [], PARAMS)


def test_a_file_that_shrank_is_not_folded(tmp_path: Path) -> None:
    spool = spooled(SpoolRoom(tmp_path), 0)
    spool.path.write_bytes(spool.path.read_bytes()[:-8])
    with pytest.raises(TransportError) as caught:
        fold([spool], [], PARAMS)
    assert caught.value.code == "E341"


def test_discarded_uploads_leave_nothing_and_take_nothing(tmp_path: Path) -> None:
    room = SpoolRoom(tmp_path)
    words = words_of(0)
    spool = room.open(header_of(words), PARAMS)
    asyncio.run(spool.add(0, next(iter(chunks(words, PARAMS)))))
    spool.discard()
    spool.discard()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TransportError) as caught:
        asyncio.run(spool.add(1, list(chunks(words, PARAMS))[1]))
    assert caught.value.code == "E342"


def test_a_new_server_process_starts_with_an_empty_private_directory(tmp_path: Path) -> None:
    room = SpoolRoom(tmp_path / "spool")
    path = spooled(room, 0).path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    (path.parent / "notes.txt").write_text("not ours")
    SpoolRoom(path.parent)
    assert [p.name for p in path.parent.iterdir()] == ["notes.txt"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    words = words_of(0)
    spool = SpoolRoom(tmp_path).open(header_of(words), PARAMS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))  # the kernel refuses the second chunk
    try:
        with pytest.raises(TransportError) as caught:
            asyncio.run(fill(spool, words))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == "E341"
    assert caught.value.do is not None and "space" in caught.value.do


def test_a_cancelled_chunk_is_finished_before_the_file_goes(tmp_path: Path) -> None:
    async def scenario() -> None:
        words = words_of(0)
        spool = SpoolRoom(tmp_path).open(header_of(words), PARAMS)
        task = asyncio.create_task(spool.add(0, next(iter(chunks(words, PARAMS)))))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert spool.path.stat().st_size in (0, 8 * PARAMS.chunk_words)  # not started, or whole
        assert spool.received == 0
        spool.discard()

    asyncio.run(scenario())


def test_params_have_several_chunks() -> None:
    assert isinstance(PARAMS, SecAggParams)
    assert PARAMS.num_chunks > 3 and PARAMS.total_words % PARAMS.chunk_words != 0
