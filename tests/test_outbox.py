"""The outbox: nothing is lost, nothing is repeated after it was acknowledged, no process sees another one's attempt."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from protocol.rpc.limits import MAX_OUTBOX
from protocol.rpc.outbox import Outbox

OLD, NEW = b"o" * 16, b"n" * 16
FIRST, SECOND = (1, 0), (2, 0)


def drain(outbox: Outbox, index: int = 0) -> list[bytes]:
    """Everything that a poller gets that acknowledges each frame."""
    frames = []
    while (entry := outbox.after(index)) is not None:
        frames.append(entry.frame)
        index = entry.index
    return frames


@given(st.lists(st.sampled_from(("put", "poll", "lose")), max_size=40))
def test_every_frame_arrives_once_and_in_order_whatever_answers_are_lost(actions: list[str]) -> None:
    outbox, sent, got, index = Outbox(), 0, [], 0
    outbox.admit(OLD, None, None)
    for action in actions:
        if action == "put":
            sent += 1
            outbox.put(b"%d" % sent, FIRST)
        entry = outbox.after(index)
        if action == "poll" and entry is not None:
            got.append(entry.frame)
            index = entry.index
    got += drain(outbox, index)
    assert got == [b"%d" % i for i in range(1, sent + 1)]


def test_a_late_process_starts_with_the_announcement_if_it_can_still_join() -> None:
    outbox = Outbox()
    outbox.announce(b"announcement 1", FIRST)
    assert outbox.admit(NEW, FIRST, FIRST)
    outbox.put(b"keys", FIRST)
    assert drain(outbox) == [b"announcement 1", b"keys"]


def test_an_acknowledged_announcement_is_given_again_to_a_process_that_can_still_join() -> None:
    outbox = Outbox()
    outbox.admit(OLD, None, None)
    outbox.announce(b"announcement 1", FIRST)
    assert drain(outbox) == [b"announcement 1"]
    outbox.admit(NEW, FIRST, FIRST)
    assert drain(outbox) == [b"announcement 1"]


def test_a_restarted_process_never_sees_the_attempt_of_its_predecessor() -> None:
    outbox = Outbox()
    outbox.admit(OLD, None, None)
    outbox.announce(b"announcement 1", FIRST)
    outbox.put(b"keys", FIRST)
    assert outbox.admit(NEW, None, FIRST)
    outbox.put(b"shares", FIRST)
    assert drain(outbox) == []
    outbox.put(b"result 1", None)
    outbox.announce(b"announcement 2", SECOND)
    outbox.put(b"keys 2", SECOND)
    assert drain(outbox) == [b"result 1", b"announcement 2", b"keys 2"]


def test_a_superseded_process_is_told() -> None:
    outbox = Outbox()
    assert outbox.admit(OLD, None, None)
    assert outbox.admit(OLD, None, None)
    assert outbox.admit(NEW, None, None)
    assert not outbox.admit(OLD, None, None)
    assert outbox.admit(NEW, None, None)


def test_the_end_of_the_task_reaches_later_processes() -> None:
    outbox = Outbox()
    outbox.put_last(b"finished")
    outbox.admit(OLD, None, None)
    assert drain(outbox) == [b"finished"]
    outbox.admit(NEW, None, None)
    assert drain(outbox) == [b"finished"]


def test_a_client_that_never_fetches_costs_a_bounded_number_of_frames() -> None:
    outbox = Outbox()
    for i in range(3 * MAX_OUTBOX):
        outbox.put(b"%d" % i, None)
    assert len(drain(outbox)) == MAX_OUTBOX


def test_waiting_ends_when_something_comes_or_the_time_is_over() -> None:
    async def scenario() -> None:
        outbox = Outbox()
        waiter = asyncio.create_task(outbox.wait(60))
        await asyncio.sleep(0)
        outbox.put(b"frame", None)
        await asyncio.wait_for(waiter, 5)
        await asyncio.wait_for(outbox.wait(0.01), 5)

    asyncio.run(scenario())


def test_a_process_that_joined_is_known_after_a_restart_of_the_server() -> None:
    outbox = Outbox()
    outbox.restore(OLD)
    outbox.announce(b"announcement 1", FIRST)
    outbox.put(b"keys", FIRST)
    assert outbox.admit(OLD, None, FIRST) and outbox.sees(FIRST)
    assert drain(outbox) == [b"announcement 1", b"keys"]  # from the beginning: the client knows what it has had


def test_a_process_that_did_not_join_is_told_apart() -> None:
    outbox = Outbox()
    outbox.admit(OLD, None, None)
    outbox.announce(b"announcement 1", FIRST)
    assert outbox.sees(FIRST)
    outbox.admit(NEW, None, FIRST)
    assert not outbox.sees(FIRST) and outbox.sees(SECOND)


def test_what_could_not_be_resumed_is_forgotten() -> None:
    outbox = Outbox()
    outbox.restore(OLD)
    outbox.announce(b"announcement 1", FIRST)
    outbox.put(b"keys", FIRST)
    outbox.forget()
    assert outbox.admit(NEW, FIRST, None) and drain(outbox) == []
    assert outbox.admit(OLD, None, None)  # no newer process took over from it
