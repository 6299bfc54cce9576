"""From the scores of a group to the advantages of its windows. Pure; one function a baseline, cited.

An advantage rule takes the windows of one complete group and returns one number a window. An episode may have several
windows, all with its score. A group of one episode, or of equal scores, has advantages of 0: it tells nothing.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite, sqrt

import numpy as np
from msgspec.structs import replace

from klong_rl.config import LearnerConfig
from klong_rl.errors import AdvantageError, UserError
from klong_rl.objectives.recipes import recipe
from klong_rl.types import Window

Rule = Callable[[Sequence[Window]], list[float]]


def klong(windows: Sequence[Window]) -> list[float]:
    """Score minus the mean score over the group's windows (KLong, arXiv 2602.17547, section on progressive RL).

    The mean is over windows, so an episode that was split into more of them weighs more. The advantages sum to zero.
    """
    if not windows:
        return []
    baseline = sum(window.score for window in windows) / len(windows)
    return [window.score - baseline for window in windows]


def dr_grpo(windows: Sequence[Window]) -> list[float]:
    """Score minus the mean score over the group's episodes (Dr. GRPO, arXiv 2503.20783)."""
    scores = _scores(windows)
    return [window.score - sum(scores.values()) / len(scores) for window in windows]


def grpo(windows: Sequence[Window]) -> list[float]:
    """(score - mean) / standard deviation over the group's episodes (GRPO, arXiv 2402.03300).

    The deviation is that of the group itself (divided by n), with nothing added: equal scores are told by comparison.
    """
    scores = list(_scores(windows).values())
    if len(set(scores)) < 2:
        return [0.0] * len(windows)
    centred = dr_grpo(windows)
    mean = sum(scores) / len(scores)
    deviation = sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
    return [advantage / deviation for advantage in centred]


def rloo(windows: Sequence[Window]) -> list[float]:
    """Score minus the mean score of the group's other episodes (RLOO, arXiv 2402.14740)."""
    scores = _scores(windows)
    others = len(scores) - 1
    if others < 1:
        return [0.0] * len(windows)
    total = sum(scores.values())
    return [window.score - (total - window.score) / others for window in windows]


RULES: dict[str, Rule] = {"klong": klong, "grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}


def advantage_rule(learner: LearnerConfig) -> Rule:
    """The rule that `learner.advantage` names, by RULES or import path; UserError if there is none.

    One of a user's own is tried on small groups here, and whatever it gives later is checked too: AdvantageError.
    Without a name it is the one that goes with the objective.
    """
    name = learner.advantage or recipe(learner.objective).advantage
    if name in RULES:
        return RULES[name]
    try:
        rule = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"learner.advantage={name} can't be imported ({error}); use one of {sorted(RULES)} or "
            "'package.module.function'"
        ) from error
    if rule in RULES.values():
        return rule
    rule = partial(_checked, rule, name)
    for group in _samples():
        rule(group)
    return rule


def _checked(rule: Rule, name: str, windows: Sequence[Window]) -> list[float]:
    """What a user's rule says of a group; AdvantageError if it fails, or doesn't say one finite number a window."""
    scores = [window.score for window in windows]
    of = f"learner.advantage={name}, given {len(windows)} windows with the scores {_short(scores)},"
    try:
        values = [float(value) for value in rule(windows)]
    except Exception as error:
        raise AdvantageError(f"{of} failed: {type(error).__name__}: {error}") from error
    if len(values) != len(windows):
        raise AdvantageError(f"{of} gave {len(values)} advantages; it is to give one a window, in their order")
    if not all(isfinite(value) for value in values):
        raise AdvantageError(f"{of} gave {_short(values)}; all advantages are to be finite")
    return values


def _samples() -> list[list[Window]]:
    """Groups that every run may come to: usual scores, equal ones, an episode alone, and none (all were dropped)."""
    none = np.zeros(0, np.int32)
    window = Window(
        id="sample/0", episode="a", group="sample", stage=1, tokens_T=none, targets_T=none.astype(np.uint8),
        logprobs_T=none.astype(np.float32), versions=(), score=0.0,
    )  # fmt: skip
    one = replace(window, id="sample/1", episode="b", score=1.0)
    two = replace(window, id="sample/2", episode="c", score=0.5)
    return [[window, one, replace(one, id="sample/3"), two], [window, replace(two, score=0.0)], [one], []]


def _short(numbers: Sequence[float]) -> str:
    shown = ", ".join(f"{number:g}" for number in numbers[:8])
    return f"[{shown}{', …' if len(numbers) > 8 else ''}]"


def _scores(windows: Sequence[Window]) -> dict[str, float]:
    """The score of each episode."""
    return {window.episode: window.score for window in windows}
