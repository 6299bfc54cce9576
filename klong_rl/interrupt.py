"""SIGINT and SIGTERM as a cancellation of the main task, so that everything is cleaned up on the way out."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # as a shell gives them


class Interrupts:
    """From `arm` on either signal cancels the task that made this; `came` lists those that came.

    A second one changes nothing: what cleans up isn't interrupted by impatience.
    """

    def __init__(self) -> None:
        self.came: list[int] = []
        self._task = asyncio.current_task()

    def arm(self) -> None:
        """Take both signals. Again after a library has taken them: ray.init puts a handler of its own on SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in EXIT_CODES:
            loop.add_signal_handler(number, self._cancel, number)

    def stop(self) -> None:
        """As SIGTERM."""
        self._cancel(signal.SIGTERM)

    def _cancel(self, number: int) -> None:
        self.came.append(number)
        if len(self.came) == 1:
            self._task.cancel()


def run_stoppable(work: Callable[[], Coroutine[Any, Any, int]], stopped: str) -> int:
    """Run `work` and return its exit code; where a signal ends it, print `stopped` and return that signal's."""
    try:
        return asyncio.run(_until_told(work, stopped))
    except KeyboardInterrupt:  # before the signals were taken
        return EXIT_CODES[signal.SIGINT]


async def _until_told(work: Callable[[], Coroutine[Any, Any, int]], stopped: str) -> int:
    interrupts = Interrupts()
    interrupts.arm()
    try:
        return await work()
    except asyncio.CancelledError:
        if not interrupts.came:
            raise
        print(stopped, flush=True)
        return EXIT_CODES[interrupts.came[0]]
