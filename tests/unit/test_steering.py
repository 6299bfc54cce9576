"""What a command changes, and when what is wanted is brought about: the driver's side without a fleet or a Redis."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from klong_rl import scale, steer
from klong_rl.config import CurriculumConfig, RunConfig, StageConfig
from klong_rl.curriculum import Curriculum, CurriculumState, Move
from klong_rl.errors import UserError
from klong_rl.steering.controls import Controls
from klong_rl.steering.wanted import Answer, Command, Now, Steered, Wanted, at_launch, configured, decide, size

NOW = Now(time=100.0, rollout=4, judge=1, stage=2, stages=3, step=7, saved=6)
CONFIG = RunConfig(curriculum=CurriculumConfig(stages=[StageConfig(steps=4)] * 3))


def command(verb: str, **arguments: str) -> Command:
    return Command(id=f"{verb}{arguments}", verb=verb, arguments=arguments, asked=99.0, deadline=110.0)


def test_scaling_is_relative_or_not():
    wanted, answer = decide(Wanted(), command("scale", rollout="+4", judge="2"), NOW)
    assert (wanted.rollout, wanted.judge) == (8, 2)
    assert (answer.status, answer.text) == ("accepted", "actors: rollout 4 → 8, judge 1 → 2")
    wanted, answer = decide(Wanted(), command("scale", rollout="-3"), NOW)
    assert (wanted.rollout, wanted.judge) == (1, 1) and answer.text == "actors: rollout 4 → 1"


@pytest.mark.parametrize(
    "asked, now, why",
    [
        (command("scale", rollout="-4"), NOW, "would leave 0 of 4"),
        (command("scale", rollout="many"), NOW, "rollout=many is not a number"),
        (command("scale"), NOW, "name the pools"),
        (command("scale", rollout="2"), replace(NOW, recorded=True),
         "no actors"),
        (command("promote"), replace(NOW, stage=3), "stage 3 is the last"),
        (command("snapshot"), replace(NOW, step=0), "no learner step"),
        (Command(id="late", verb="pause", deadline=99.0), NOW, "after its deadline"),
    ],
)  # fmt: skip
def test_what_can_t_be_is_refused_and_changes_nothing(asked, now, why):
    wanted, answer = decide(Wanted(paused=True), asked, now)
    assert wanted == Wanted(paused=True) and answer.status == "refused" and why in answer.text


def test_each_simple_verb_answers_what_changed():
    paused, answer = decide(Wanted(), command("pause"), NOW)
    assert paused.held and answer.text.startswith("paused after step 7")
    assert decide(paused, command("pause"), NOW)[1].text == "it was paused already"
    assert not decide(paused, command("resume"), NOW)[0].held
    leaving, answer = decide(Wanted(), command("promote"), NOW)
    assert leaving.leave == 2 and answer.text == "stage 2 → 3, after the step under way"
    assert decide(Wanted(), command("snapshot"), NOW)[0].checkpoint_for
    stopping, answer = decide(Wanted(), command("stop", drain="true"), NOW)
    assert stopping.held and stopping.drain and answer.status == "accepted"
    assert not decide(Wanted(), command("stop"), NOW)[0].held


@given(st.lists(st.sampled_from(("+1", "+3", "-1", "-2", "5")), max_size=20))
def test_no_row_of_scalings_leaves_a_pool_empty(sizes):
    wanted = Wanted()
    for n, text in enumerate(sizes):
        before = configured(wanted, {"rollout": 2, "judge": 1})
        now = Now(time=0, stage=1, stages=2, step=1, saved=1, **before)
        asked = Command(id=str(n), verb="scale", arguments={"rollout": text})
        wanted, answer = decide(wanted, asked, now)
        after = configured(wanted, {"rollout": 2, "judge": 1})
        assert after["rollout"] >= 1 and after["judge"] == 1
        assert after["rollout"] == (
            before["rollout"] if answer.status == "refused" else size(text, before["rollout"], "")
        )


def test_launched_again_a_run_stays_paused_and_scaled_and_does_not_stop():
    before = Wanted(paused=True, rollout=8, leave=2, stop_for="a", drain=True)
    assert at_launch(before, 2, entered=False) == Wanted(paused=True, rollout=8, leave=2)
    assert at_launch(before, 3, entered=False).leave == 0, "it has been left"
    assert at_launch(before, 2, entered=True).leave == 0, "it was entered anew"


def test_answers_are_kept_and_bounded():
    state = Steered()
    for n in range(200):
        state = state.told(state.wanted, Answer(id=str(n), status="accepted", text=""))
    state = state.told(state.wanted, Answer(id="199", status="done", text="x"))
    assert state.answer("199").status == "done" and state.answer("0") is None and len(state.answers) == 64


class Kept:
    """A mailbox in memory."""

    def __init__(self) -> None:
        self.commands, self.kept = {}, Steered()

    async def now(self) -> float:
        return 100.0

    async def asked(self) -> list[Command]:
        return list(self.commands.values())

    async def state(self) -> Steered:
        return self.kept

    async def note(self, state, answered=None) -> None:
        self.kept = state
        for each in answered or ():
            self.commands.pop(each, None)


class Driver:
    """One launch: its controls, and the time they see."""

    def __init__(self, mailbox: Kept) -> None:
        self.mailbox, self.time, self.numbers = mailbox, 0.0, itertools.count()
        self.controls = Controls(CONFIG, mailbox, lambda: self.time)

    async def asked(self, verb: str, **arguments: str) -> str:
        given = replace(command(verb, **arguments), id=f"{verb}-{next(self.numbers)}")
        return await self.take(given)

    async def take(self, given: Command) -> str:
        self.mailbox.commands[given.id] = given
        await self.controls._take_commands()
        return self.mailbox.kept.answer(given.id).status


@pytest.fixture
async def driver():
    driver = Driver(Kept())
    await driver.controls.load(1, 0, entered=False)
    return driver


async def test_the_clock_of_deadlines_stands_still_while_the_run_is_held(driver):
    driver.time = 10.0
    assert driver.controls.clock() == 10.0
    await driver.asked("pause")
    driver.time = 500.0
    assert driver.controls.held and driver.controls.clock() == 10.0
    await driver.asked("resume")
    driver.time = 503.0
    assert driver.controls.clock() == 13.0
    await driver.asked("pause")
    again = Driver(driver.mailbox)
    await again.controls.load(1, 0, entered=False)
    again.time = 60.0
    assert again.controls.held and again.controls.clock() == 0.0


async def test_a_checkpoint_is_wanted_until_one_of_the_last_step_is_durable(driver):
    assert await driver.asked("snapshot") == "refused"
    driver.controls.stands(1, 3)
    driver.mailbox.kept = driver.controls._state = Steered()
    assert await driver.asked("snapshot") == "accepted" and driver.controls.wants_checkpoint
    driver.controls._tell_saved()
    assert driver.controls.wants_checkpoint
    driver.controls.saved(3)
    driver.controls._tell_saved()
    (answer,) = driver.controls._state.answers
    assert (answer.status, answer.text) == ("done", "checkpoint of step 3: checkpoints/step-000003")
    assert not driver.controls.wants_checkpoint


async def test_a_stage_is_left_once_and_a_driver_that_died_before_leaves_it_too(driver):
    driver.controls.stands(1, 3)
    assert await driver.asked("promote") == "done" and driver.controls.leave == 1
    again = Driver(driver.mailbox)
    await again.controls.load(1, 2, entered=False)
    assert again.controls.leave == 1
    again.controls.entered(Move(origin=1, to=2, step=3, why="asked"))
    await again.controls._note()
    assert again.controls.leave == 0 and again.mailbox.kept.wanted.leave == 0


async def test_a_command_that_was_answered_before_the_driver_died_is_not_carried_out_again(driver):
    given = command("scale", rollout="+2")
    await driver.take(given)
    assert driver.controls.actors == {"rollout": 3, "judge": 1}
    again = Driver(driver.mailbox)
    await again.controls.load(1, 0, entered=False)
    await again.take(given)  # as if Redis had lost that it was taken off the list
    assert again.controls.actors == {"rollout": 3, "judge": 1} and not again.mailbox.commands
    assert again.controls.first_actors == {"rollout": 1, "judge": 1}, "a launch doesn't fail for what scaling added"


async def test_a_drain_waits_for_episodes_the_step_under_way_and_its_checkpoint(driver):
    class Buffer:
        states = {"running": 1}

        async def counts(self):
            return self

    buffer = Buffer()
    driver.controls.stands(1, 3)
    await driver.asked("stop", drain="true")
    driver.controls.begins()
    assert not await driver.controls._may_stop(buffer)
    buffer.states = {"queued": 5, "sealed": 0, "running": 0}
    assert not await driver.controls._may_stop(buffer), "a step is under way"
    driver.controls.stands(1, 4)
    assert not await driver.controls._may_stop(buffer) and driver.controls.wants_checkpoint
    driver.controls.saved(4)
    assert await driver.controls._may_stop(buffer)


def test_a_stage_that_is_asked_to_be_left_is_left_and_a_restart_in_between_changes_nothing():
    curriculum = Curriculum(CONFIG.curriculum)
    curriculum.observe(None)
    assert curriculum.decide() is None
    curriculum.ask("asked for by the operator")
    restored = Curriculum(CONFIG.curriculum)
    restored.load_state_dict(curriculum.state_dict())
    move = restored.decide()
    assert (move.origin, move.to, move.step, move.why) == (1, 2, 1, "asked for by the operator")
    restored.enter(move)
    assert restored.stage == 2 and restored.decide() is None
    last = Curriculum(CONFIG.curriculum, CurriculumState(stage=3, asked="x"))
    assert last.decide().to == 0


@pytest.mark.parametrize(
    "arguments, why",
    [
        ([], "no verb"),
        (["halt", "run=x"], "halt is not understood"),
        (["pause"], "no run is named"),
        (["pause", "run=x", "rollout=2"], "rollout=2 is not understood by pause"),
        (["snapshot", "run=x", "wait=soon"], "wait=soon"),
        (["pause", "run=/no/such/run"], "doesn't exist"),
    ],
)
def test_a_command_that_is_not_understood_is_refused(arguments, why):
    with pytest.raises(UserError, match=why):
        steer.main(arguments)


def test_the_short_form_of_scale():
    assert steer.parse(["stop", "run=/r", "--drain"])[2] == {"drain": "true"}
    with pytest.raises(UserError, match="doesn't exist"):
        scale.main(["run=/no/such/run", "rollout=+4", "judge=2"])
