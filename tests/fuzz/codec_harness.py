"""Bytes into every decoder: a message that encodes to the same bytes, or the one error, in bounded time and memory."""

import time
import tracemalloc
from functools import cached_property
from typing import Final

from fuzz.dice import Dice
from fuzz.doors import Door, corpus
from fuzz.harness import Violation, smaller_bytes
from fuzz.mutate import Mutator
from fuzz.wire import annotated

from protocol.errors import RemoteProtocolError

# Python's own objects of one decode, as multiples of the door's size limit (protobuf's arena is not seen here: the
# limit on the address space of the campaign bounds it).
PYTHON_MEMORY: Final = 48
SECONDS: Final = 2.0  # for one decode, on a busy machine
TRACED_ONE_IN: Final = 500


class CodecHarness:
    """One door."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.name = f"codec/{door.name}"

    @cached_property
    def _mutator(self) -> Mutator:
        return Mutator(self.door.kind, corpus(self.door), self.door.limit)

    def input(self, dice: Dice) -> bytes:
        """The bytes to decode."""
        return self._mutator(dice)[0]

    def run(self, dice: Dice) -> str:
        """One decode."""
        data = self.input(dice)
        traced = dice.chance(TRACED_ONE_IN)
        if traced:
            tracemalloc.start()
        try:
            started = time.perf_counter()
            outcome = self.check(data)
            seconds = time.perf_counter() - started
            if traced and (peak := tracemalloc.get_traced_memory()[1]) > PYTHON_MEMORY * self.door.limit:
                raise Violation(f"one decode took {peak} bytes of Python objects")
        finally:
            if traced:
                tracemalloc.stop()
        if seconds > SECONDS:
            raise Violation("one decode took too long")
        return outcome

    def check(self, data: bytes) -> str:
        """The property of one input."""
        try:
            message = self.door.decode(data)
        except RemoteProtocolError as error:
            if error.code != "E410":
                raise Violation(f"refused with {error.code}") from error
            text = f"{error}"
            if len(text) > 500 or not text.isprintable():
                raise Violation("an error of the codec is long or unprintable") from error
            return f"refused: {error.what.rsplit(': ', 1)[-1]}"
        if len(data) > self.door.limit:
            raise Violation("more bytes than the limit were accepted")
        if not isinstance(message, self.door.types):
            raise Violation(f"a {type(message).__name__} came out")
        if self.door.encode(message) != data:
            raise Violation("the message encodes to other bytes than it came from")
        return "accepted"

    def explain(self, dice: Dice) -> str:
        """Annotated hex of the smallest input that fails."""

        def fails(data: bytes) -> bool:
            try:
                self.check(data)
            except Exception:
                return True
            return False

        data, names = self._mutator(dice)
        data = smaller_bytes(data, fails) if fails(data) else data
        return "\n".join([f"mutations: {names}; {len(data)} bytes", *annotated(data, self.door.kind)])
