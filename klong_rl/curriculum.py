"""The curriculum: a ladder of stages whose timeouts grow, and the decision when to go up it. Pure.

    observe(one step's episodes) ──▶ decide() ──▶ None: another step of this stage
                                          └─────▶ Move: up, down or to the end, and why ──▶ enter(move)

Two rules of promotion (`curriculum.promotion.rule`):

`steps`     A stage lasts `steps` learner steps, as in KLong (arXiv 2602.17547), whose stages have 2, 4 and 6 hours.
`adaptive`  After `min_steps` a stage ends as soon as, over its last `window` steps,
            time is what the episodes lack: the share of episodes cut by the stage's limits is at least `cut_share`; or
            reward grows no more: the upper `confidence` limit of what it would gain in another `window` steps, at the
            slope of an ordinary least-squares line through the steps' means, is under `plateau_gain`. (Normal quantile;
            noisy rewards need a longer window before anything can be said of their slope.)
            `steps` of the stage is the most it may last.

An operator may `ask` for the next stage (klong_rl.steer promote): the stage then ends with the step under way.

Demotion is off unless `demote_below` is set: a stage whose mean reward over `window` steps is under it is left for the
one below, once at most, so that a run can't go up and down for ever.

The state is in the run's checkpoints, together with the weights it was decided on, and a stage ends with a checkpoint:
no restart undoes a move, or makes one on what other weights sampled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, linear_regression, mean
from typing import Any

import msgspec

from klong_rl.config import CurriculumConfig, StageConfig
from klong_rl.types import CUT, Outcome


class StepOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one learner step was trained on: episodes of the current stage alone."""

    episodes: int
    cut: int
    reward_mean: float

    @classmethod
    def of(cls, episodes: Sequence[tuple[Outcome, float]]) -> StepOutcome:
        """Of (outcome, score) pairs, at least one."""
        return cls(
            episodes=len(episodes),
            cut=sum(outcome.kind in CUT for outcome, _ in episodes),
            reward_mean=mean(score for _, score in episodes),
        )


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """From one stage to another; `to` 0 is the end of the ladder. `step`: steps of the stage left, when it was left."""

    origin: int
    to: int
    step: int
    why: str


class CurriculumState(msgspec.Struct, kw_only=True):
    """Where on the ladder: `stage` counts from 1, `stage_step` the steps in it, `recent` the last of their outcomes."""

    stage: int = 1
    stage_step: int = 0
    finished: bool = False
    recent: list[StepOutcome] = []
    moves: list[Move] = []
    asked: str = ""  # why the stage is to be left for the next one whatever was observed; empty: it isn't


class Curriculum:
    """The controller of one run. `state` is the run's own, and changes."""

    def __init__(self, config: CurriculumConfig, state: CurriculumState | None = None) -> None:
        self._config = config
        self._state = state or CurriculumState()

    @property
    def stage(self) -> int:
        """The current stage, from 1."""
        return self._state.stage

    @property
    def finished(self) -> bool:
        return self._state.finished

    @property
    def settings(self) -> StageConfig:
        """Of the current stage."""
        return self._config.stages[self.stage - 1]

    @property
    def steps_left(self) -> int:
        """The most steps that this stage may still take."""
        return max(0, self.settings.steps - self._state.stage_step)

    def observe(self, outcome: StepOutcome | None) -> None:
        """A learner step is done; None: it held no episode of this stage, only what an earlier one left over."""
        self._state.stage_step += 1
        if outcome is not None:
            self._state.recent = [*self._state.recent, outcome][-self._config.promotion.window :]

    def ask(self, why: str) -> None:
        """Leave this stage for the next one, or the end, as soon as a move is decided."""
        self._state.asked = why

    def decide(self) -> Move | None:
        """The move that is due, if one is."""
        if self.finished:
            return None
        if self._state.asked:
            return self._up(self._state.asked)
        if why := self._demotion():
            return self._move(self.stage - 1, why)
        why = f"its {self.settings.steps} steps are done" if self.steps_left == 0 else self._ripeness()
        if not why:
            return None
        return self._up(why)

    def enter(self, move: Move) -> None:
        """Make `move`. Raises ValueError for one that doesn't start here."""
        if move.origin != self.stage or self.finished:
            raise ValueError(f"a move from stage {move.origin} to {move.to} can't be made in stage {self.stage}")
        self._state.moves.append(move)
        self._state.asked = ""
        if move.to == 0:
            self._state.finished = True
        else:
            self._state.stage, self._state.stage_step, self._state.recent = move.to, 0, []

    def state_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return msgspec.to_builtins(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`. Raises msgspec.ValidationError for what isn't one."""
        loaded = msgspec.convert(state, CurriculumState)
        for name in CurriculumState.__struct_fields__:  # in place: the run's own state is this one
            setattr(self._state, name, getattr(loaded, name))

    def metrics(self) -> dict[str, float]:
        """What a researcher watches, over the last steps of this stage."""
        recent = self._state.recent
        return {
            "stage_step": self._state.stage_step,
            "cut_share": cut_share(recent),
            "reward_gain_limit": gain_limit([step.reward_mean for step in recent], self._config.promotion.confidence),
        }

    def _up(self, why: str) -> Move:
        last = self.stage == len(self._config.stages)
        return self._move(0 if last else self.stage + 1, why)

    def _move(self, to: int, why: str) -> Move:
        return Move(origin=self.stage, to=to, step=self._state.stage_step, why=why)

    def _observed(self) -> bool:
        """Whether this stage has gone on for long enough to be judged."""
        rule = self._config.promotion
        return self._state.stage_step >= rule.min_steps and len(self._state.recent) == rule.window

    def _ripeness(self) -> str:
        """Why the adaptive rule ends the stage; empty: it doesn't."""
        rule = self._config.promotion
        if rule.rule != "adaptive" or not self._observed():
            return ""
        if (share := cut_share(self._state.recent)) >= rule.cut_share:
            return f"{share:.0%} of the episodes of the last {rule.window} steps were cut by the stage's limits"
        gain = gain_limit([step.reward_mean for step in self._state.recent], rule.confidence)
        if gain < rule.plateau_gain:
            return f"reward would gain less than {max(gain, 0.0):.3f} in another {rule.window} steps"
        return ""

    def _demotion(self) -> str:
        rule = self._config.promotion
        before = any(move.origin == self.stage and 0 < move.to < self.stage for move in self._state.moves)
        if self.stage == 1 or before or not self._observed() or rule.demote_below <= 0:
            return ""
        reward = mean(step.reward_mean for step in self._state.recent)
        return f"reward {reward:.3f} is under demote_below={rule.demote_below:g}" if reward < rule.demote_below else ""


def cut_share(steps: Sequence[StepOutcome]) -> float:
    """The share of the steps' episodes that were cut by a limit; 0 without any."""
    episodes = sum(step.episodes for step in steps)
    return sum(step.cut for step in steps) / episodes if episodes else 0.0


def gain_limit(rewards: Sequence[float], confidence: float) -> float:
    """The one-sided upper confidence limit of what `rewards`, one a step, gain in as many steps again.

    n (b + z s_b), with b the slope of the least-squares line and s_b its standard error; infinite for less than three.
    """
    n = len(rewards)
    if n < 3:
        return math.inf
    steps = range(n)
    slope, intercept = linear_regression(steps, rewards)
    residual = sum((y - intercept - slope * x) ** 2 for x, y in zip(steps, rewards, strict=True)) / (n - 2)
    standard_error = math.sqrt(residual / (n * (n * n - 1) / 12))
    return n * (slope + NormalDist().inv_cdf(confidence) * standard_error)
