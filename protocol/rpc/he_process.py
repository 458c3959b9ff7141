"""A decryptor's view of its HE process (`secagg.he.worker`): start it, add ciphertexts, open the sum once, close.

The secret key lives in that process only. If it ends by a signal while it works on a ciphertext, the sender of those
bytes is to blame and somebody should look: `WorkerError` names both. A request that is cancelled kills the process.
"""

import asyncio
import os
import sys
from pathlib import Path
from types import TracebackType

import secagg
from secagg.encoding import Words
from secagg.he import pipe
from secagg.he.errors import WorkerError
from secagg.he.pipe import Begin, Op

_GRACE_S = 5.0


class HeProcess:
    """One spawned `python -m secagg.he.worker`. Use `await HeProcess.spawn(...)`, or as `async with`.

    Attributes:
        public_key: What the clients of this attempt encrypt with.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()
        self.public_key = b""

    @classmethod
    async def spawn(cls, begin: Begin) -> "HeProcess":
        """Start the process and make its keys: about half a second.

        Raises:
            ParameterError: parameters or a set that BFV refuses.
            WorkerError: the process cannot be started, or ended.
        """
        root = str(Path(secagg.__path__[0]).parent)  # the child finds the packages that this process runs
        path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "secagg.he.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C at the terminal is the parent's to answer
            )
        except OSError as error:
            raise WorkerError("the HE process cannot be started", do="check memory and limits") from error
        made = cls(process)
        try:
            made.public_key = await made._request(pipe.pack_begin(begin))
        except BaseException:
            await made.close()
            raise
        return made

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    async def expect(self, clients: tuple[int, ...]) -> None:
        """The sum is over exactly these of the clients that the key was made for; before the first `add`.

        Raises:
            OpeningError: a stranger, fewer than two, or too late.
            WorkerError: the process ended.
        """
        await self._request(pipe.pack_expect(clients))

    async def add(self, client: int, block: int, ciphertext: bytes) -> None:
        """Add block number `block` of one client; blocks of a client come in order.

        Raises:
            CiphertextError: what is no ciphertext of these parameters; the sum is unchanged.
            OpeningError: a stranger, a block given twice or out of order, or a sum that was opened.
            WorkerError: the process ended; by a signal, `client` is to blame.
        """
        await self._request(pipe.pack_request(Op.ADD, ciphertext, client, block), client)

    async def open_(self) -> Words:
        """The sum modulo 2^64, once.

        Raises:
            OpeningError: a second opening, or a client that is incomplete.
            DisagreementError: what comes out is no sum of limbs.
            WorkerError: the process ended.
        """
        return pipe.words_from_bytes(await self._request(pipe.pack_request(Op.OPEN)))

    async def close(self) -> None:
        """End the process, and the key with it; it is killed if it has not gone within five seconds."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._ended()

    async def __aenter__(self) -> "HeProcess":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._kill()
        await self.close()

    async def _ended(self) -> int:
        try:
            return await asyncio.wait_for(self._process.wait(), _GRACE_S)
        except TimeoutError:
            self._kill()
            return await self._process.wait()

    def _kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()

    async def _request(self, frame: bytes, client: int | None = None) -> bytes:
        async with self._turn:
            try:
                good, body = await self._exchange(frame)
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                status = await self._ended()
                raise WorkerError(
                    "the HE process ended",
                    signal=-status if status < 0 else None,
                    client=client if status < 0 else None,
                    do="abort the attempt; a signal while a ciphertext is read is its sender's fault: keep its bytes",
                ) from error
            except BaseException:
                self._kill()  # cancelled or out of step: what is still in the pipe belongs to nobody
                raise
        if not good:
            raise pipe.unpack_error(body)
        return body

    async def _exchange(self, frame: bytes) -> tuple[bool, bytes]:
        to, back = self._process.stdin, self._process.stdout
        if to is None or back is None:
            raise WorkerError("the HE process has no pipes", do="start it with HeProcess.spawn")
        to.write(frame)
        await to.drain()
        good, length = pipe.ANSWER.unpack(await back.readexactly(pipe.ANSWER.size))
        return bool(good), await back.readexactly(length)
