"""The chain of an episode's turns: what the engine was given and what it answered, digested link by link.

    link_i = xxh3_128(link_{i-1} · number of context tokens · context tokens · action tokens)       link_{-1} is empty

The first link is made where the engine answers, from the very array it was given. Whoever holds the turns later, in
whatever process, makes the chain anew from prefix and turns; if it fits, every action was sampled in
exactly the context that is going to be trained. It guards against our own mistakes, not against a forger.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

from klong_rl.branches import context_of
from klong_rl.types import Turn


class BrokenChain(Exception):
    """The turns held are not those that were sampled."""


def link(previous: bytes, context_T: np.ndarray, action_A: np.ndarray) -> bytes:
    """16 bytes; `context_T` and `action_A` are int32."""
    digest = xxhash.xxh3_128(previous)
    digest.update(len(context_T).to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(context_T, "<i4").view(np.uint8).data)
    digest.update(np.ascontiguousarray(action_A, "<i4").view(np.uint8).data)
    return digest.digest()


def check(episode: str, prefix_P: np.ndarray, turns: Sequence[Turn]) -> bytes:
    """The last link, empty without turns. BrokenChain names the first turn that doesn't fit."""
    previous = b""
    for i, turn in enumerate(turns):
        if turn.index != i or not 0 <= turn.context_start <= i or not -1 <= turn.follows < i:
            raise BrokenChain(
                f"episode {episode}: turn {i} calls itself {turn.index}, from {turn.context_start} on, after "
                f"{turn.follows}"
            )
        if turn.follows >= 0 and (turn.prompt_T is None or turns[turn.follows].prompt_T is None):
            raise BrokenChain(f"episode {episode}: turn {i} goes on from turn {turn.follows}, and one has no prompt")
        made = link(previous, context_of(prefix_P, turns, i), turn.action_A)
        if turn.chain != made:
            raise BrokenChain(
                f"episode {episode}: turn {i} was sampled in another context, or its tokens were changed "
                f"(link {turn.chain.hex() or 'missing'}, made anew {made.hex()})"
            )
        previous = made
    return previous
