"""Turns in an event loop: what is cancelled gives its turn on."""

import asyncio

from klong_rl.judging.lane import Lane
from klong_rl.judging.queue import RequestQueue


async def test_a_turn_that_comes_as_its_caller_is_cancelled_goes_on_to_the_next():
    queue = RequestQueue(Lane(1e9, 1))

    async def use() -> None:
        async with queue.turn("g"):
            raise AssertionError("it was cancelled before it knew of its turn")

    async with queue.turn("g"):
        waiter = asyncio.create_task(use())
        await asyncio.sleep(0)
    waiter.cancel()  # it has its turn since the line above, and hasn't run since
    await asyncio.gather(waiter, return_exceptions=True)
    assert waiter.cancelled()
    async with asyncio.timeout(5), queue.turn("g"):
        pass


async def test_who_is_cancelled_while_waiting_takes_no_turn():
    queue = RequestQueue(Lane(1e9, 1))

    async def use() -> None:
        async with queue.turn("g"):
            raise AssertionError("it was cancelled")

    async with queue.turn("g"):
        waiter = asyncio.create_task(use())
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
    async with asyncio.timeout(5), queue.turn("g"):
        pass


async def test_a_caller_that_fails_ends_its_turn():
    queue = RequestQueue(Lane(1e9, 1))
    for _ in range(2):
        try:
            async with asyncio.timeout(5), queue.turn("g"):
                raise KeyError
        except KeyError:
            pass


async def test_many_that_are_cancelled_at_once_leave_every_turn_free():
    queue = RequestQueue(Lane(1e9, 4))

    async def use() -> None:
        async with queue.turn("g"):
            await asyncio.sleep(60)

    callers = [asyncio.create_task(use()) for _ in range(12)]
    await asyncio.sleep(0.01)
    for caller in callers:
        caller.cancel()
    ended = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended)
    async with asyncio.timeout(5), queue.turn("g"), queue.turn("g"), queue.turn("g"), queue.turn("g"):
        pass
