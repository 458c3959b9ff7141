"""The server's long sums, on all cores: uploads of U3 and their masks, added into one vector modulo 2^64.

Threads, not processes: the cipher, NumPy and the system's reads all release the interpreter lock, so threads run side
by side, no seed leaves the process, and no worker can die with part of the sum. Addition modulo 2^64 gives the same
bits in any order.

Work is cut differently for the two kinds. Uploads are files and can be read anywhere: each task adds one range of
words of several files. A mask's keystream is fastest read from its start (`secagg.prg`): each task runs over the whole
vector with some of the masks and hands over one block after the other. Either way the memory beside the sum is a few
blocks per thread.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import numpy as np

from secagg.encoding import Words
from secagg.masking import MASKS_AT_ONCE, PIECE_WORDS, Mask, MaskStreams, add_masks

T = TypeVar("T")

WORD_BYTES = 8
FILES_AT_ONCE = 64  # open files
RANGE_WORDS = 2 * PIECE_WORDS  # of one upload in one read: 512 KiB
WORDS_PER_THREAD = 1 << 21  # measured break-even: additions of a word below which another thread costs more
MASKS_PER_THREAD = 4  # likewise: handing a block over costs about as much as two masks


def unmask(total: Words, masks: Iterable[Mask], threads: int | None = None) -> None:
    """Add every mask's stream to `total` in place, as `secagg.masking.add_masks` does, on several cores.

    Args:
        total: Sum of masked inputs; shape (words,).
        masks: Seeds with signs; they are the caller's to wipe.
        threads: At most so many threads; by default one per core that this process may use. Less for little work.
    """
    masks = list(masks)
    threads = min(_worthwhile(len(masks) * len(total), threads), len(masks) // MASKS_PER_THREAD)
    if threads < 2:
        add_masks(total, masks)
        return
    rounds = -(-len(masks) // (threads * MASKS_AT_ONCE))
    groups = [group for first in range(rounds * threads) if (group := masks[first :: rounds * threads])]
    lock = threading.Lock()

    def add(group: list[Mask]) -> None:
        streams = MaskStreams(group)
        block = np.empty(PIECE_WORDS, dtype="<u8")
        for start in range(0, len(total), PIECE_WORDS):
            target = total[start : start + PIECE_WORDS]
            part = block[: len(target)]
            part.fill(0)
            streams.add_to(part)
            with lock:
                np.add(target, part, out=target)

    _in_parallel(add, groups, threads)


def add_uploads(total: Words, paths: Sequence[Path], threads: int | None = None) -> None:
    """Add the words of every file to `total` in place; each file holds exactly ``len(total)`` little-endian words.

    Raises:
        OSError: A file cannot be read or has another length; `filename` says which. `total` is then useless.
    """
    threads = _worthwhile(len(paths) * len(total), threads)
    for first in range(0, len(paths), FILES_AT_ONCE):
        with ExitStack() as stack:
            files = []
            for path in paths[first : first + FILES_AT_ONCE]:
                file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                stack.callback(os.close, file)
                if os.fstat(file).st_size != WORD_BYTES * len(total):
                    raise OSError(errno.EIO, "a file of another length than what was written", str(path))
                files.append((file, path))

            def add(start: int, files: list[tuple[int, Path]] = files) -> None:
                target = total[start : start + RANGE_WORDS]
                words = np.empty(len(target), dtype="<u8")
                for file, path in files:
                    _read(file, words, start, path)
                    np.add(target, words, out=target)

            _in_parallel(add, range(0, len(total), RANGE_WORDS), threads)


def _read(file: int, words: Words, first: int, path: Path) -> None:
    """Fill `words` with the file's words from number `first` on."""
    rest, offset = words.view(np.uint8).data, WORD_BYTES * first
    while rest:
        count = os.preadv(file, [rest], offset)
        if count == 0:
            raise OSError(errno.EIO, "a file shorter than what was written", str(path))
        rest, offset = rest[count:], offset + count


def _worthwhile(words: int, threads: int | None) -> int:
    """How many threads to use for this many additions of a word."""
    if threads is None:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(threads, words // WORDS_PER_THREAD))


def _in_parallel(work: Callable[[T], None], tasks: Iterable[T], threads: int) -> None:
    """Do every task; the first exception is raised here, and what was not begun then is left."""
    if threads < 2:
        for task in tasks:
            work(task)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="unmask") as pool:
        for _ in pool.map(work, tasks):
            pass
