"""SIGINT and SIGTERM as a cancellation of the main task, so that everything is cleaned up on the way out."""

from __future__ import annotations

import asyncio
import signal

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # as a shell gives them


def cancel_on_signals() -> list[int]:
    """From now on either signal cancels the current task; the list returned fills with those that came.

    A second one changes nothing: what cleans up isn't interrupted by impatience.
    """
    task, loop, came = asyncio.current_task(), asyncio.get_running_loop(), []

    def cancel(number: int) -> None:
        came.append(number)
        if len(came) == 1:
            task.cancel()

    for number in EXIT_CODES:
        loop.add_signal_handler(number, cancel, number)
    return came
