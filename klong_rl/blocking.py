"""Blocking calls beside an event loop, ended in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(call: Callable[..., T], *args: Any, stop: Callable[[], None] | None = None) -> T:
    """`call(*args)` in a thread. A cancelled caller calls `stop`, which must make it end, and waits until it has.

    `asyncio.to_thread` alone leaves its thread running after a cancellation: in the middle of a Ray call, say, while
    Ray is shut down around it.
    """
    work = asyncio.ensure_future(asyncio.to_thread(call, *args))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # it was told to stop: how it says so is of no interest
        raise
