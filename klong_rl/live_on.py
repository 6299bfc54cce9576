"""Lives of a learner, one after the other: when one fails, the next goes on from where the run then stands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from klong_rl.errors import LearnerFailure, LeaseLost

FUTILE_LIVES = 3  # in a row that got no further than the ones before: it isn't chance


class Standing(Protocol):
    step: int  # learner steps done


S = TypeVar("S", bound=Standing)


async def live_on(begin: Callable[[], S], live: Callable[[S], Awaitable[None]], warn: Callable[[str], None]) -> None:
    """Live until one life reaches the end. `begin` says where the next one stands; `live` moves that state on.

    Raises what ended the last of FUTILE_LIVES, and at once whatever isn't the learner's.
    """
    state = begin()
    furthest, futile = state.step, 0
    while True:
        try:
            return await live(state)
        except (LearnerFailure, LeaseLost) as failure:
            futile = 0 if state.step > furthest else futile + 1
            furthest = max(furthest, state.step)
            if futile == FUTILE_LIVES:
                raise
            died = f"{failure} (after step {state.step})"
        state = begin()
        warn(f"{died}; a new learner goes on after step {state.step}")
