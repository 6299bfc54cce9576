"""What a complete group becomes: the windows that are trained, with their advantages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from klong_rl.advantages import Rule, advantage_rule
from klong_rl.buffer.records import Member
from klong_rl.config import RunConfig
from klong_rl.types import CUT, Window
from klong_rl.windows import split

CUT_RULES = ("score", "mask", "exclude")
ToWindows = Callable[[Sequence[Member]], list[Window]]


def to_windows(config: RunConfig) -> ToWindows:
    """`windows_of` as the run's configuration has it."""
    return partial(windows_of, advantages=advantage_rule(config.learner), cut=config.rollout.cut_episodes)


def windows_of(members: Sequence[Member], advantages: Rule, cut: str = "score") -> list[Window]:
    """The windows of a complete group, with their advantages; an evaluation group and dropped members have none.

    `cut` says what becomes of episodes that a limit of their stage cut (docs/curriculum.md): trained as they scored;
    `mask`: not trained, but part of the baseline; `exclude`: neither.
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
    pairs = zip(windows, advantages(windows), strict=True)
    return [
        msgspec.structs.replace(window, advantage=advantage)
        for window, advantage in pairs
        if window.episode not in untrained
    ]
