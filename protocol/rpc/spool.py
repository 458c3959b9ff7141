"""Uploads on disk: received chunk by chunk, hash-checked, folded into the sum only when complete. SPEC 7.4, 9.4.

A folded chunk of a client that then dies could not be taken out again, so nothing is folded before U3 is fixed. The
files hold masked words only; they are removed when the attempt ends and when a server starts.
"""

import asyncio
import os
import threading
from collections.abc import Iterable, Sequence
from io import FileIO
from pathlib import Path

import numpy as np

from protocol.errors import RemoteProtocolError, TransportError
from protocol.messages import MaskedInput
from secagg.encoding import Words
from secagg.masking import InputDigest, Mask, add_masks
from secagg.params import SecAggParams

WORD_BYTES = 8
SUFFIX = ".spool"


class Spool:
    """One upload of one client: chunks in order, exactly as many and as long as the parameters say."""

    def __init__(self, path: Path, header: MaskedInput, params: SecAggParams) -> None:
        """Create the file (mode 0600, it must not exist). Raises TransportError E341 if the disk refuses."""
        self.path = path
        self.header = header
        self.received = 0
        self.complete = False
        self._params = params
        self._digest = InputDigest()
        self._lock = threading.Lock()  # a discard must not close the file under a write
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY, 0o600)
        except OSError as error:
            raise disk_failed(path, error) from error
        self._file: FileIO | None = FileIO(handle, "wb")

    def __repr__(self) -> str:
        return f"Spool({self.path.name}, {self.received} of {self._params.num_chunks} chunks)"

    @property
    def total(self) -> int:
        """Chunks of a whole upload."""
        return self._params.num_chunks

    @property
    def full(self) -> bool:
        """Whether every chunk is in; the digest is still to be compared."""
        return self.received == self.total

    async def add(self, index: int, data: bytes) -> None:
        """Append chunk `index`. A cancelled call still finishes its write, so that the file can be discarded.

        Raises:
            RemoteProtocolError: The chunk is not the next one, or has the wrong length (E411).
            TransportError: The disk refuses (E341), or the spool was discarded (E342).
        """
        self._check(index, len(data))
        write = asyncio.ensure_future(asyncio.to_thread(self._write, data))
        try:
            await asyncio.shield(write)
        except asyncio.CancelledError:
            await asyncio.wait({write})
            raise
        self.received += 1

    def close(self) -> None:
        """All chunks are in: compare the digest. Raises RemoteProtocolError E411 if it is not the signed one."""
        if self.received != self._params.num_chunks:
            raise _bad_upload("an upload that ends early", f"{self.received} chunks", f"{self._params.num_chunks}")
        if self._digest.digest() != self.header.input_digest:
            raise _bad_upload("an upload with other content than its header", "another SHA-256", "the signed one")
        self._shut()
        self.complete = True

    def discard(self) -> None:
        """Remove the file. May be called at any time, also twice."""
        self._shut()
        self.complete = False
        self.path.unlink(missing_ok=True)

    def add_to(self, total: Words) -> None:
        """Add the words to `total` modulo 2^64, one chunk in memory at a time. Only a complete upload is added."""
        if not self.complete:
            raise disk_failed(self.path, OSError("incomplete upload"))
        size = self._params.chunk_words
        try:
            with self.path.open("rb") as file:
                for start in range(0, len(total), size):
                    target = total[start : start + size]
                    data = file.read(WORD_BYTES * len(target))
                    if len(data) != WORD_BYTES * len(target):
                        raise OSError("file shorter than what was written")
                    np.add(target, np.frombuffer(data, dtype="<u8"), out=target)
        except OSError as error:
            raise disk_failed(self.path, error) from error

    def _check(self, index: int, length: int) -> None:
        params = self._params
        if index != self.received or index >= params.num_chunks:
            raise _bad_upload("a chunk out of order", f"index {index}", f"index {self.received} of {params.num_chunks}")
        words = min(params.chunk_words, params.total_words - index * params.chunk_words)
        if length != WORD_BYTES * words:
            raise _bad_upload("a chunk of the wrong length", f"{length} bytes", f"{WORD_BYTES * words}")

    def _write(self, data: bytes) -> None:
        with self._lock:
            if self._file is None:
                raise TransportError(
                    "the upload was given up", found="a newer upload, or the end of the phase", code="E342"
                )
            self._digest.update(data)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError as error:
                raise disk_failed(self.path, error) from error

    def _shut(self) -> None:
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                file.close()


class SpoolRoom:
    """The directory of all spools of one server process; private, and empty at start."""

    def __init__(self, directory: Path) -> None:
        """Create it (mode 0700) and remove what a crashed server left. Raises TransportError E341."""
        self._directory = directory
        self._count = 0
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
            for left in directory.glob(f"*{SUFFIX}"):
                left.unlink()
        except OSError as error:
            raise disk_failed(directory, error) from error

    def open(self, header: MaskedInput, params: SecAggParams) -> Spool:
        """A new, empty spool. The name says nothing about its sender."""
        self._count += 1
        return Spool(self._directory / f"{self._count:08d}{SUFFIX}", header, params)


def fold(spools: Sequence[Spool], masks: Iterable[Mask], params: SecAggParams) -> Words:
    """Sum of the uploads plus all masks, modulo 2^64; shape (total_words,). Memory: the sum and one chunk."""
    total = np.zeros(params.total_words, dtype="<u8")
    for spool in spools:
        spool.add_to(total)
    add_masks(total, masks)
    return total


def disk_failed(path: Path, error: Exception) -> TransportError:
    """The server's own disk: nobody else's fault."""
    return TransportError(
        "an upload cannot be kept on disk",
        found=f"{path.name}: {error}",
        expected="a writable spool directory with room for every upload",
        do=f"free space in {path.parent}, or give the server another spool directory",
        code="E341",
    )


def _bad_upload(what: str, found: str, expected: str) -> RemoteProtocolError:
    return RemoteProtocolError(what, found=found, expected=expected, code="E411")
