"""How many episodes run and how far sampling goes ahead: the bounds, what raises and lowers both, where they settle."""

from hypothesis import given
from hypothesis import strategies as st

from klong_rl.config import ActorsConfig, RolloutConfig
from klong_rl.pacing import CUT, PATIENCE_S, Ahead, EngineLook, Slots, StepPace

ROLLOUT = RolloutConfig(groups_per_step=4, group_size=8, max_staleness=7)  # 32 groups at most


def look(episodes: int, ended: int = 0, actor: str = "a.1", waiting: int = 0, **load) -> EngineLook:
    rest = {"fits": 16, "kv_use": 0.1, "paused_s": 0.0} | load
    return EngineLook(actor=actor, episodes=episodes, ended=ended, waiting=waiting, **rest)


def slots(most: int = 64, least: int = 2, sandboxes: int = 0) -> Slots:
    return Slots(ActorsConfig(episodes=most, min_episodes=least), sandboxes)


def congest(pacing: Slots, episodes: int, ended: int, since: float) -> int:
    """Requests wait for as long as it takes."""
    pacing.decide([look(episodes, ended, waiting=3)], 0, since)
    return pacing.decide([look(episodes, ended, waiting=3)], 0, since + PATIENCE_S)["a.1"]


def test_an_actor_begins_with_what_its_cache_holds_and_doubles_in_the_time_of_an_episode():
    pacing = slots()
    assert pacing.decide([look(0)], 0, 0.0) == {"a.1": 16}
    assert pacing.decide([look(16, ended=16)], 0, 1.0) == {"a.1": 32}
    assert pacing.decide([look(32, ended=48)], 0, 2.0) == {"a.1": 64}
    assert pacing.decide([look(64, ended=999)], 0, 3.0) == {"a.1": 64}


def test_slots_that_are_not_in_use_and_a_cache_without_room_add_nothing():
    pacing = slots()
    pacing.decide([look(16)], 0, 0.0)
    assert pacing.decide([look(9, ended=30)], 0, 1.0) == {"a.1": 16}
    assert pacing.decide([look(16, ended=60, kv_use=0.9)], 0, 2.0) == {"a.1": 16}
    assert pacing.decide([look(16, ended=61)], 0, 3.0) == {"a.1": 17}, "what ended before then counts no more"


def test_a_queue_that_lasts_takes_a_quarter_away_once_and_then_growth_is_slow():
    pacing = slots()
    pacing.decide([look(16)], 0, 0.0)
    assert congest(pacing, episodes=16, ended=0, since=10.0) == 12 == int(CUT * 16)
    assert congest(pacing, episodes=14, ended=2, since=100.0) == 12, "four more have to end first"
    assert congest(pacing, episodes=12, ended=4, since=200.0) == 9
    assert pacing.decide([look(9, ended=7)], 0, 300.0) == {"a.1": 9}
    assert pacing.decide([look(9, ended=23)], 0, 301.0) == {"a.1": 10}, "sixteen ended"


def test_a_burst_and_the_contexts_that_new_weights_make_anew_are_no_congestion():
    pacing = slots()
    for second in range(100):
        waiting, paused_s = (0, second // 20) if second % 25 == 0 else (5, second // 20)
        assert pacing.decide([look(16, waiting=waiting, paused_s=paused_s)], 0, float(second)) == {"a.1": 16}


def test_a_backlog_of_judging_takes_slots_away_and_the_next_life_of_an_actor_begins_anew():
    pacing = slots(sandboxes=40)
    both = [look(16), look(16, actor="b.1")]
    assert pacing.decide(both, 8, 0.0) == {"a.1": 16, "b.1": 16}
    assert pacing.decide(both, 24, 1.0) == {"a.1": 8, "b.1": 8}
    assert pacing.decide(both, 400, 2.0) == {"a.1": 2, "b.1": 2}
    assert pacing.decide([look(0, actor="b.2", fits=5)], 0, 3.0) == {"b.2": 5}


@given(
    looks=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 9), st.integers(0, 2), st.floats(0, 1)), max_size=60),
    least=st.integers(1, 4),
    most=st.integers(4, 40),
)
def test_slots_stay_within_their_bounds_whatever_is_seen(looks, least, most):
    pacing, ended = slots(most, least), 0
    for second, (episodes, more, waiting, kv_use) in enumerate(looks):
        ended += more
        given_slots = pacing.decide([look(episodes, ended, waiting=waiting, kv_use=kv_use)], 0, 20.0 * second)
        assert least <= given_slots["a.1"] <= most


def steps(ahead: Ahead, n: int, busy_s: float, waited_s: float, group_s: float) -> int:
    for _ in range(n):
        ahead.observe(StepPace(busy_s=busy_s, waited_s=waited_s, group_s=[group_s]))
    return ahead.wanted()


def test_a_slow_learner_has_less_sampled_ahead_and_a_starved_one_all_that_may_be():
    ahead = Ahead(ROLLOUT)
    assert ahead.groups_to_admit(outstanding=0, queued=0, steps_left=99) == 8, "two steps' worth at a look"
    assert ahead.wanted() == 32
    assert steps(ahead, 9, busy_s=100.0, waited_s=0.0, group_s=100.0) == 8, "one being made, one ready"
    assert steps(ahead, 40, busy_s=100.0, waited_s=0.0, group_s=10.0) == 5
    assert steps(ahead, 20, busy_s=1.0, waited_s=9.0, group_s=10.0) == 32


def test_the_cushion_of_a_step_that_waited_melts():
    ahead = Ahead(ROLLOUT)
    before = steps(ahead, 30, busy_s=100.0, waited_s=0.0, group_s=100.0)
    assert steps(ahead, 1, busy_s=100.0, waited_s=50.0, group_s=100.0) == before + 2
    assert steps(ahead, 30, busy_s=100.0, waited_s=0.0, group_s=100.0) <= before + 1


@given(
    outstanding=st.integers(0, 60),
    queued=st.integers(0, 90),
    steps_left=st.integers(0, 9),
    seen=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100), st.floats(0, 1000)), max_size=20),
)
def test_admission_never_passes_the_staleness_the_stage_or_the_queue(outstanding, queued, steps_left, seen):
    ahead = Ahead(ROLLOUT)
    for busy_s, waited_s, group_s in seen:
        ahead.observe(StepPace(busy_s=busy_s, waited_s=waited_s, group_s=[group_s]))
    admitted = ahead.groups_to_admit(outstanding, queued, steps_left)
    assert 4 <= ahead.wanted() <= 32
    assert admitted == 0 or outstanding + admitted <= min(32, 4 * steps_left)
    assert admitted == 0 or queued + 8 * (admitted - 1) < 64


def test_a_learner_is_fed_by_what_is_wanted_and_no_more_than_a_step_and_its_cushion_lies_ready():
    """Groups of 300 s, steps of 100 s: three steps' worth is being made, one lies ready."""
    ahead, made, outstanding, now, waited = Ahead(ROLLOUT), [], 0, 0.0, 0
    for step in range(60):
        began = now
        while True:
            n = ahead.groups_to_admit(outstanding, 0, 99)
            made, outstanding = sorted(made + [now + 300.0] * n), outstanding + n
            if n == 0 and len(made) >= 4:
                break
        ready_at = made[3]
        now = max(now, ready_at)
        made, outstanding = made[4:], outstanding - 4
        waited += now > began and step > 20
        ahead.observe(StepPace(busy_s=100.0, waited_s=now - began, group_s=[300.0] * 4))
        now += 100.0
    assert waited == 0
    assert sum(at <= now for at in made) <= 8
