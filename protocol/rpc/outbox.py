"""What waits for each client: frames under increasing indices, fetched by long poll. SPEC 9.6.

Every answer may be lost, so a frame stays until a later poll acknowledges it. A frame belongs to an attempt, and a
client process that did not join it (it was started later, or restarted) never sees it: without the secrets of the
attempt it could only answer wrongly. Such a process starts with the announcement if it can still join; else it waits.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from protocol.rpc.limits import MAX_OUTBOX

AttemptKey = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Entry:
    """One ServerFrame; `attempt` is None for what concerns every attempt."""

    index: int
    frame: bytes = field(repr=False)
    attempt: AttemptKey | None


class Outbox:
    """Frames for one client. All methods are called on the event loop."""

    def __init__(self) -> None:
        self.token: bytes | None = None
        self._entries: deque[Entry] = deque(maxlen=MAX_OUTBOX)
        self._index = 0
        self._superseded: deque[bytes] = deque(maxlen=16)
        self._hidden: AttemptKey | None = None
        self._announcement: Entry | None = None
        self._last_word: bytes | None = None
        self._event = asyncio.Event()

    def admit(self, token: bytes, joinable: AttemptKey | None, current: AttemptKey | None) -> bool:
        """A process presents itself; False if a newer one of the same client took over.

        Args:
            token: 16 random bytes of the process.
            joinable: The attempt that the client can still join, if any.
            current: The attempt that runs, if any.
        """
        if token == self.token:
            return True
        if token in self._superseded:
            return False
        if self.token is not None:
            self._superseded.append(self.token)
        self.token = token
        self._entries.clear()
        announcement = self._announcement
        if announcement is not None and announcement.attempt == joinable:
            self._add(announcement.frame, joinable)
        else:
            self._hidden = current
        if self._last_word is not None:
            self._add(self._last_word, None)
        self.wake()
        return True

    def restore(self, token: bytes) -> None:
        """After a restart of the server: this process joined the attempt that is resumed."""
        self.token = token

    def forget(self) -> None:
        """Everything of an attempt that could not be resumed; nobody has seen any of it."""
        self.token = self._announcement = None
        self._entries.clear()

    def sees(self, attempt: AttemptKey) -> bool:
        """Whether the present process can still answer in this attempt: it joined it, or may join it yet."""
        return attempt != self._hidden

    def announce(self, frame: bytes, attempt: AttemptKey) -> None:
        """An Announcement: the first frame of an attempt, kept for a process that starts later."""
        self._announcement = self._add(frame, attempt)
        self.wake()

    def put(self, frame: bytes, attempt: AttemptKey | None) -> None:
        """A frame of an attempt, or of none."""
        if attempt is None or self.sees(attempt):
            self._add(frame, attempt)
            self.wake()

    def put_last(self, frame: bytes) -> None:
        """The end of the task: every later process is told, too."""
        self._last_word = frame
        self.put(frame, None)

    def after(self, index: int) -> Entry | None:
        """The first frame after `index`; everything up to it is acknowledged and forgotten."""
        while self._entries and self._entries[0].index <= index:
            self._entries.popleft()
        return self._entries[0] if self._entries else None

    def wake(self) -> None:
        """Let every waiting poll look again."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Until `wake` is called, or the time is over."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            return

    def _add(self, frame: bytes, attempt: AttemptKey | None) -> Entry:
        self._index += 1
        entry = Entry(self._index, frame, attempt)
        self._entries.append(entry)
        return entry
