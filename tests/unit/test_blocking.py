"""A blocking call is waited for even by a caller that was cancelled."""

import asyncio
import threading

import pytest

from klong_rl.blocking import in_thread


async def test_it_answers_and_raises_as_the_call_does():
    assert await in_thread(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0)


async def test_a_cancelled_caller_stops_the_call_and_waits_until_it_has_ended():
    told, ended = threading.Event(), threading.Event()

    def work():
        assert told.wait(10)
        ended.set()
        raise RuntimeError("stopped")

    task = asyncio.create_task(in_thread(work, stop=told.set))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
