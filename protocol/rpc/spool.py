"""Uploads on disk: received chunk by chunk, hash-checked, folded into the sum only when complete. SPEC 7.4, 9.4.

A folded chunk of a client that then dies could not be taken out again, so nothing is folded before U3 is fixed. An
upload that was cut off stays, with its running digest, and goes on where it was: after a lost connection at once, after
the server was killed as soon as the file was hashed again. The files hold masked words or ciphertexts only; they are
removed when the attempt has ended.
"""

import asyncio
import os
import re
import threading
from collections.abc import Awaitable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from protocol.effects import upload_shape
from protocol.encrypted import BlockReader, EncryptedInput
from protocol.errors import RemoteProtocolError, TransportError
from protocol.messages import UploadHeader
from protocol.rpc.unmask import add_uploads, unmask
from secagg.encoding import Words
from secagg.masking import InputDigest, Mask
from secagg.params import SecAggParams

SUFFIX = ".spool"
_NAME_BYTES = 8
_NAME = re.compile(rf"[0-9a-f]{{{2 * _NAME_BYTES}}}{re.escape(SUFFIX)}")

T = TypeVar("T")


class Spool:
    """One upload of one client: chunks in order, exactly as many and as long as the parameters say.

    Several streams may try to fill it one after the other; `take` makes the caller the only one that still can.
    """

    def __init__(self, path: Path, header: UploadHeader, params: SecAggParams) -> None:
        """An empty upload; the file is made with its first chunk."""
        self.path = path
        self.header = header
        self.received = 0
        self.complete = False
        self._shape = upload_shape(header, params)
        self._params = params
        self._digest = InputDigest(self._shape.label)
        self._holder = 0
        self._turn = asyncio.Lock()  # one chunk at a time, also where two streams overlap for a moment
        self._lock = threading.Lock()  # a discard must not close the file under a write
        self._discarded = False
        self._file: int | None = None

    def __repr__(self) -> str:
        return f"Spool({self.path.name}, {self.received} of {self.total} chunks)"

    @property
    def total(self) -> int:
        """Chunks of a whole upload."""
        return self._shape.num_chunks

    @property
    def full(self) -> bool:
        """Whether every chunk is in; the digest is still to be compared."""
        return self.received == self.total

    def take(self) -> int:
        """Begin to fill: the number that `add` asks for. Whoever filled before gets TransportError E342."""
        self._holder += 1
        return self._holder

    async def settled(self) -> int:
        """Chunks that are there, once a write that is under way has ended."""
        async with self._turn:
            return self.received

    async def add(self, holder: int, index: int, data: bytes) -> None:
        """Append chunk `index`. A cancelled call still finishes its write, and the chunk counts.

        Raises:
            RemoteProtocolError: The chunk is not the next one, or has the wrong length (E411).
            TransportError: The disk refuses (E341), or another stream or the end of the phase took the upload (E342).
        """
        async with self._turn:
            if holder != self._holder or self._discarded:
                raise _given_up()
            self._check(index, len(data))
            await _to_its_end(asyncio.to_thread(self._write, index, data))

    async def seal(self) -> None:
        """All chunks are in: compare the digest and bring the file to stable storage; `complete` afterwards.

        Raises:
            RemoteProtocolError: E411, chunks are missing, or the digest is not the signed one; it is empty again then.
            TransportError: The disk refuses (E341), or the upload was discarded (E342).
        """
        async with self._turn:
            if not self.complete:
                await _to_its_end(asyncio.to_thread(self._seal))

    def restore(self) -> None:
        """Take over what an earlier process received: every whole chunk of the file. Blocks: it hashes the file.

        Raises:
            TransportError: E341, the file cannot be read or cut to whole chunks.
        """
        if not self.path.exists():
            return
        try:
            with self.path.open("r+b") as file:
                while not self.full:
                    data = file.read(self._length(self.received))
                    if len(data) < self._length(self.received):  # the last write was cut off
                        file.truncate(self._written)
                        break
                    self._digest.update(data)
                    self.received += 1
        except OSError as error:
            raise disk_failed(self.path, error) from error

    def reseal(self) -> None:
        """Restored, and its receipt was given: complete again. Raises TransportError E341 if it is not what it was."""
        if not self.full or self._digest.digest() != self.header.input_digest:
            raise disk_failed(self.path, OSError("other content than was received"))
        self.complete = True

    def chunk(self, index: int) -> bytes:
        """Chunk `index` of a complete upload. Blocks. Raises TransportError E341 if it is not what was written."""
        try:
            file = os.open(self.path, os.O_NOFOLLOW | os.O_RDONLY)
            try:
                data = os.pread(file, self._length(index), index * self._shape.chunk_bytes)
            finally:
                os.close(file)
        except OSError as error:
            raise disk_failed(self.path, error) from error
        if len(data) != self._length(index):
            raise disk_failed(self.path, OSError("a file shorter than what was written"))
        return data

    def pause(self, holder: int) -> None:
        """The stream of `holder` has ended: no file stays open for it."""
        if holder == self._holder:
            self._shut()

    def discard(self) -> None:
        """Remove the file. May be called at any time, also twice."""
        with self._lock:
            self._discarded = True
        self._shut()
        self.complete = False
        self.path.unlink(missing_ok=True)

    def _length(self, index: int) -> int:
        """Bytes of chunk `index`."""
        return min(self._shape.chunk_bytes, self._shape.total_bytes - index * self._shape.chunk_bytes)

    def _check(self, index: int, length: int) -> None:
        if index != self.received or index >= self.total:
            raise _bad_upload("a chunk out of order", f"index {index}", f"index {self.received} of {self.total}")
        if length != self._length(index):
            raise _bad_upload("a chunk of the wrong length", f"{length} bytes", f"{self._length(index)}")

    @property
    def _written(self) -> int:
        """Bytes of the chunks that are there, as long as one is missing."""
        return self._shape.chunk_bytes * self.received

    def _write(self, index: int, data: bytes) -> None:
        with self._lock:
            if self._discarded or index != self.received:
                raise _given_up()
            try:
                if self._file is None:
                    self._file = self._open()
                try:
                    rest = memoryview(data)
                    while rest:
                        rest = rest[os.write(self._file, rest) :]
                except OSError:
                    os.ftruncate(self._file, self._written)
                    raise
            except OSError as error:
                raise disk_failed(self.path, error) from error
            self._digest.update(data)
            self.received += 1

    def _open(self) -> int:
        """For appending. What stands there must be what was hashed."""
        fresh = os.O_TRUNC if self.received == 0 else 0
        file = os.open(self.path, os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_WRONLY | fresh, 0o600)
        if (size := os.fstat(file).st_size) != self._written:
            os.close(file)
            raise OSError(f"{size} bytes found, {self._written} expected")
        return file

    def _seal(self) -> None:
        if not self.full:
            raise _bad_upload("an upload that ends early", f"{self.received} chunks", f"{self.total}")
        if self._digest.digest() != self.header.input_digest:
            self._shut()
            self._digest, self.received = InputDigest(self._shape.label), 0
            raise _bad_upload("an upload with other content than its header", "another SHA-256", "the signed one")
        if isinstance(self.header, EncryptedInput):
            self._check_ciphertexts()
        with self._lock:
            if self._discarded:
                raise _given_up()
            try:
                if self._file is None:
                    self._file = os.open(self.path, os.O_NOFOLLOW | os.O_RDONLY)
                os.fsync(self._file)
            except OSError as error:
                raise disk_failed(self.path, error) from error
            self.complete = True
        self._shut()

    def _check_ciphertexts(self) -> None:
        """SPEC 7.9: what the decryptor would refuse later costs its sender only, if it is refused now."""
        from secagg.he.errors import CiphertextError  # zstandard comes with the extra `he`
        from secagg.he.guard import check_ciphertext

        reader = BlockReader(self._params.num_blocks)
        try:
            for index in range(self.total):
                for block in reader.feed(self.chunk(index)):
                    check_ciphertext(block, self._params.bfv)
            if not reader.complete:
                raise ValueError("another number of ciphertexts")
        except (ValueError, CiphertextError) as error:
            raise _bad_upload("an encrypted input that cannot be added", str(error), "one of SPEC 3.8") from None

    def _shut(self) -> None:
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                os.close(file)


def is_spool_name(name: object) -> bool:
    """Whether `SpoolRoom.new_name` could have made it: a plain file name and nothing else."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


class SpoolRoom:
    """The private directory of all spools of one server. One attempt at a time uses it."""

    def __init__(self, directory: Path) -> None:
        """Create it, mode 0700. Raises TransportError E341."""
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        except OSError as error:
            raise disk_failed(directory, error) from error

    def sweep(self, keep: Collection[str] = ()) -> None:
        """Remove every spool but those named: what an earlier process left. Raises TransportError E341."""
        try:
            for left in self._directory.glob(f"*{SUFFIX}"):
                if left.name not in keep:
                    left.unlink()
        except OSError as error:
            raise disk_failed(self._directory, error) from error

    def new_name(self) -> str:
        """A file name that says nothing about its sender."""
        return f"{os.urandom(_NAME_BYTES).hex()}{SUFFIX}"

    def spool(self, name: str, header: UploadHeader, params: SecAggParams) -> Spool:
        """The spool of this name, empty unless it is restored."""
        return Spool(self._directory / name, header, params)


def fold(spools: Sequence[Spool], masks: Iterable[Mask], params: SecAggParams) -> Words:
    """Sum of the uploads plus all masks, modulo 2^64; shape (total_words,). Memory: the sum and a few blocks per core.

    Raises:
        TransportError: E341, an upload is incomplete or its file is not what was written.
    """
    for spool in spools:
        if not spool.complete:
            raise disk_failed(spool.path, OSError("incomplete upload"))
    total = np.zeros(params.total_words, dtype="<u8")
    try:
        add_uploads(total, [spool.path for spool in spools])
    except OSError as error:
        raise disk_failed(Path(error.filename or ""), error) from error
    unmask(total, masks)
    return total


async def _to_its_end(work: Awaitable[T]) -> T:
    """Wait for a thread's work; a cancelled caller waits, too, because the thread cannot be stopped half-way."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # nobody is left to hear of it
        raise


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


def _given_up() -> TransportError:
    return TransportError("the upload was given up", found="a newer upload, or the end of the phase", code="E342")
