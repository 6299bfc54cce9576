"""Work that runs beside a block of code, and whose failure is the block's."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None], after_s: float = 0.0) -> AsyncIterator[None]:
    """Run `work` while the block runs, from `after_s` seconds on; it is cancelled at the block's end.

    If it raises, the block is cancelled where it waits, and the exception comes out of it. (A TaskGroup does the same,
    but wraps even a lone exception in a group, which hides it from those who wait for its kind.) With `after_s` a block
    that ends before costs no task.
    """
    block, task = asyncio.current_task(), None

    def begin() -> None:
        nonlocal task
        task = asyncio.create_task(work)
        task.add_done_callback(end_block)

    def end_block(ended: asyncio.Task) -> None:
        if not ended.cancelled() and ended.exception() is not None:
            block.cancel()

    timer = None
    if after_s <= 0:
        begin()
    elif after_s < math.inf:
        timer = asyncio.get_running_loop().call_later(after_s, begin)
    try:
        yield
    except asyncio.CancelledError:
        if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
            block.uncancel()
            raise task.exception() from None
        raise
    finally:
        if timer is not None:
            timer.cancel()
        if task is None:
            work.close()
        else:
            task.remove_done_callback(end_block)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
