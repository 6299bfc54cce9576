"""A command that a signal ends: cleaned up, told how to go on, with the signal's own exit code."""

import asyncio
import os
import signal

import pytest

from klong_rl.interrupt import run_stoppable


async def seven() -> int:
    return 7


def test_a_command_that_ends_by_itself_gives_its_own_exit_code(capsys):
    assert run_stoppable(seven, "stopped") == 7 and capsys.readouterr().out == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_once_it_has_cleaned_up(capsys, number, code):
    cleaned = []

    async def work() -> int:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(number)

    assert run_stoppable(work, "stopped; again goes on") == code
    assert cleaned == [number] and capsys.readouterr().out == "stopped; again goes on\n"


def test_a_cancellation_that_no_signal_asked_for_is_no_stop(capsys):
    async def cancels_itself() -> int:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run_stoppable(cancels_itself, "stopped")
    assert capsys.readouterr().out == ""
