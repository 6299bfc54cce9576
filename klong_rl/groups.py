"""What a complete group becomes: the windows that are trained, with their advantages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec
import numpy as np

from klong_rl.advantages import Rule, advantage_rule
from klong_rl.buffer.records import Member
from klong_rl.config import RunConfig
from klong_rl.types import CUT, Window
from klong_rl.windows import split

CUT_RULES = ("score", "mask", "exclude")
ToWindows = Callable[..., list[Window]]  # of members and, by name, came_in


def to_windows(config: RunConfig) -> ToWindows:
    """`windows_of` as the run's configuration has it."""
    return partial(windows_of, advantages=advantage_rule(config.learner), cut=config.rollout.cut_episodes)


def windows_of(
    members: Sequence[Member], advantages: Rule, cut: str = "score", came_in: Mapping[str, float] | None = None
) -> list[Window]:
    """The windows of a complete group, with their advantages; an evaluation group and dropped members have none.

    `cut` says what becomes of episodes that a limit of their stage cut (docs/curriculum.md): trained as they scored;
    `mask`: not trained, but part of the baseline; `exclude`: neither.

    `came_in`: for the rest of a group that was closed early, the scores of those that came in before, by episode. Each
    late episode is set against these, as if it alone had come in after them; other late ones don't matter to it.
    """
    windows: list[Window] = []
    untrained: set[str] = set()
    for member in members:
        if member.verdict is None or member.spec.purpose != "train" or not member.segments:
            continue
        if cut != "score" and member.outcome.kind in CUT:
            untrained.add(member.spec.id)
            if cut == "exclude":
                continue
        turns = [turn for segment in member.segments for turn in segment.turns]
        windows += split(member.spec, member.segments[0].prefix_P, turns, member.verdict.score)
    values = _against(came_in, windows, advantages) if came_in else advantages(windows)
    pairs = zip(windows, values, strict=True)
    return [
        msgspec.structs.replace(window, advantage=advantage)
        for window, advantage in pairs
        if window.episode not in untrained
    ]


def _against(came_in: Mapping[str, float], windows: Sequence[Window], advantages: Rule) -> list[float]:
    """Of the windows of each episode, beside one window with nothing in it for each of those that came in."""
    none = np.zeros(0, np.int32)
    before = [
        Window(
            id=f"{episode}/score", episode=episode, group="", stage=0, tokens_T=none, targets_T=none.astype(np.uint8),
            logprobs_T=none.astype(np.float32), versions=(), score=score,
        )
        for episode, score in came_in.items()
    ]  # fmt: skip
    own = {window.episode: [w for w in windows if w.episode == window.episode] for window in windows}
    found = {episode: iter(advantages([*before, *some])[len(before) :]) for episode, some in own.items()}
    return [next(found[window.episode]) for window in windows]
