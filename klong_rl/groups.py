"""What a complete group becomes: the windows that are trained, with their advantages."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from klong_rl.advantages import Rule
from klong_rl.buffer.records import Member
from klong_rl.types import Window
from klong_rl.windows import split


def windows_of(members: Sequence[Member], advantages: Rule) -> list[Window]:
    """The windows of a complete group, with their advantages; an evaluation group and dropped members have none."""
    windows: list[Window] = []
    for member in members:
        if member.verdict is not None and member.spec.purpose == "train" and member.segments:
            turns = [turn for segment in member.segments for turn in segment.turns]
            windows += split(member.spec, member.segments[0].prefix_P, turns, member.verdict.score)
    pairs = zip(windows, advantages(windows), strict=True)
    return [msgspec.structs.replace(window, advantage=advantage) for window, advantage in pairs]
