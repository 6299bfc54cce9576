"""Work that runs beside a block of code, and whose failure is the block's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` while the block runs; it is cancelled at the block's end.

    If it raises, the block is cancelled where it waits, and the exception comes out of it. (A TaskGroup does the same,
    but wraps even a lone exception in a group, which hides it from those who wait for its kind.)
    """
    block = asyncio.current_task()
    task = asyncio.create_task(work)

    def end_block(ended: asyncio.Task) -> None:
        if not ended.cancelled() and ended.exception() is not None:
            block.cancel()

    task.add_done_callback(end_block)
    try:
        yield
    except asyncio.CancelledError:
        if task.done() and not task.cancelled() and task.exception() is not None:
            block.uncancel()
            raise task.exception() from None
        raise
    finally:
        task.remove_done_callback(end_block)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
