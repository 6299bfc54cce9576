"""The ladder: when it is climbed, and that nothing but what was observed decides it."""

import math
import random
from statistics import NormalDist

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.config import CurriculumConfig, PromotionConfig, StageConfig
from klong_rl.curriculum import Curriculum, CurriculumState, Move, StepOutcome, cut_share, gain_limit
from klong_rl.types import Outcome

STAGES = [StageConfig(steps=6), StageConfig(steps=8), StageConfig(steps=10)]
ADAPTIVE = PromotionConfig(rule="adaptive", min_steps=4, window=4, cut_share=0.5, plateau_gain=0.05)


def ladder(promotion: PromotionConfig = ADAPTIVE, **state) -> Curriculum:
    return Curriculum(CurriculumConfig(stages=STAGES, promotion=promotion), CurriculumState(**state))


def step(reward: float, cut: int = 0, episodes: int = 8) -> StepOutcome:
    return StepOutcome(episodes=episodes, cut=cut, reward_mean=reward)


def climb(curriculum: Curriculum, outcomes) -> list[Move]:
    """Observes until the end of the ladder, or of `outcomes`; the moves made."""
    moves = []
    for outcome in outcomes:
        curriculum.observe(outcome)
        if (move := curriculum.decide()) is not None:
            curriculum.enter(move)
            moves.append(move)
        if curriculum.finished:
            break
    return moves


def test_by_steps_a_stage_lasts_its_steps_whatever_happens_in_it():
    curriculum = ladder(PromotionConfig())
    moves = climb(curriculum, [step(1.0, cut=8)] * 30)
    assert [(move.origin, move.to, move.step) for move in moves] == [(1, 2, 6), (2, 3, 8), (3, 0, 10)]
    assert moves[0].why == "its 6 steps are done" and curriculum.finished and curriculum.decide() is None


def test_a_stage_whose_limits_cut_its_episodes_is_left():
    growing = [step(reward, cut=4) for reward in (0.1, 0.2, 0.3, 0.4)]
    (move,) = climb(ladder(), growing)
    assert (move.to, move.step) == (2, 4) and "50% of the episodes of the last 4 steps were cut" in move.why
    assert climb(ladder(), [step(outcome.reward_mean, cut=3) for outcome in growing]) == []


def test_a_stage_whose_reward_stands_still_is_left():
    (move,) = climb(ladder(), [step(0.5)] * 4)
    assert move.to == 2 and "reward would gain less than 0.000" in move.why
    assert climb(ladder(), [step(reward) for reward in (0.1, 0.2, 0.3, 0.4)]) == []
    assert climb(ladder(), [step(reward) for reward in (0.2, 0.7, 0.3, 0.6)]) == [], "too noisy to tell"


def test_only_steps_of_the_stage_itself_are_looked_at():
    curriculum = ladder()
    moves = climb(curriculum, [step(0.5)] * 7)
    assert [move.step for move in moves] == [4], "stage 2 has seen three steps of its own"
    for _ in range(5):
        curriculum.observe(None)  # what stage 1 left over
    move = curriculum.decide()
    assert move is not None and move.why == "its 8 steps are done"


def test_no_rule_keeps_a_stage_beyond_its_steps():
    draw = random.Random(0)
    moves = climb(ladder(), [step(draw.random()) for _ in range(40)])
    assert all(move.step <= STAGES[move.origin - 1].steps for move in moves) and moves[-1].to == 0


def test_demotion_is_off_by_default_and_happens_once_a_stage():
    failing = PromotionConfig(rule="steps", min_steps=4, window=4, demote_below=0.1)
    assert climb(ladder(PromotionConfig(min_steps=4, window=4), stage=2), [step(0.0)] * 7) == []
    moves = climb(ladder(failing, stage=2), [step(0.0)] * 40)
    assert [(move.origin, move.to) for move in moves] == [(2, 1), (1, 2), (2, 3), (3, 2), (2, 3), (3, 0)]


@given(
    st.lists(st.builds(step, st.floats(0, 1), st.integers(0, 8)), max_size=40),
    st.sampled_from(["steps", "adaptive"]),
    st.integers(0, 40),
    st.floats(0, 0.5),
)
def test_a_restart_at_any_step_changes_no_move(outcomes, rule, at, demote_below):
    promotion = PromotionConfig(rule=rule, min_steps=4, window=3, demote_below=demote_below)
    whole, first, second = (ladder(promotion) for _ in range(3))
    climb(whole, outcomes)
    climb(first, outcomes[:at])
    second.load_state_dict(msgspec.json.decode(msgspec.json.encode(first.state_dict())))
    climb(second, [] if first.finished else outcomes[at:])
    assert second.state_dict() == whole.state_dict()


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=30), st.floats(0.5, 0.99))
def test_the_limit_of_the_gain_is_that_of_the_normal_equations(rewards, confidence):
    (slope, _), covariance = np.polyfit(np.arange(len(rewards)), rewards, 1, cov=True)
    expected = len(rewards) * (slope + NormalDist().inv_cdf(confidence) * math.sqrt(covariance[0, 0]))
    assert math.isclose(gain_limit(rewards, confidence), expected, rel_tol=1e-6, abs_tol=1e-6)


def test_too_few_steps_tell_nothing():
    assert gain_limit([0.5, 0.5], 0.9) == math.inf and cut_share([]) == 0.0


def test_what_a_step_held():
    episodes = [(Outcome(kind="timeout"), 0.0), (Outcome(kind="turn_limit"), 0.5), (Outcome(kind="submitted"), 1.0)]
    assert StepOutcome.of(episodes) == StepOutcome(episodes=3, cut=2, reward_mean=0.5)


def test_a_move_starts_where_one_is():
    with pytest.raises(ValueError, match="from stage 2 to 3 can't be made in stage 1"):
        ladder().enter(Move(origin=2, to=3, step=0, why=""))


def test_what_is_loaded_is_the_run_s_own_state():
    state = CurriculumState()
    Curriculum(CurriculumConfig(stages=STAGES), state).load_state_dict({"stage": 2, "stage_step": 3})
    assert (state.stage, state.stage_step) == (2, 3)
