"""Work beside a block: ended with it, and its failure is the block's own."""

import asyncio

import pytest

from klong_rl.beside import beside


async def forever(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("ended")


async def failing() -> None:
    await asyncio.sleep(0.01)
    raise ValueError("broken")


async def test_the_work_ends_with_the_block():
    ended: list[str] = []
    async with beside(forever(ended)):
        await asyncio.sleep(0)
    assert ended == ["ended"]


async def test_what_the_work_raises_comes_out_of_the_block_wherever_it_waits():
    with pytest.raises(ValueError, match="broken"):
        async with asyncio.timeout(5):
            async with beside(failing()):
                await asyncio.sleep(5)
    await asyncio.sleep(0)  # nothing of the cancellation is left
    assert asyncio.current_task().cancelling() == 0


async def test_what_the_block_raises_is_its_own_and_ends_the_work():
    ended: list[str] = []
    with pytest.raises(KeyError):
        async with beside(forever(ended)):
            await asyncio.sleep(0)
            raise KeyError("block")
    assert ended == ["ended"]


async def test_a_cancellation_from_outside_stays_one():
    ended: list[str] = []

    async def block() -> None:
        async with beside(forever(ended)):
            await asyncio.sleep(5)

    task = asyncio.create_task(block())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["ended"]


async def test_work_that_returns_ends_nothing():
    async def short() -> None:
        return

    async with beside(short()):
        await asyncio.sleep(0.01)


async def test_work_that_is_to_begin_later_begins_then_or_never():
    ended: list[str] = []
    async with beside(forever(ended), after_s=5):
        await asyncio.sleep(0.01)
    assert ended == []
    with pytest.raises(ValueError, match="broken"):
        async with asyncio.timeout(5), beside(failing(), after_s=0.01):
            await asyncio.sleep(5)
