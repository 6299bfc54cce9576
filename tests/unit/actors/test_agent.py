"""The agent loop: contexts, outcomes and time, with a scripted engine and real shells."""

import asyncio
import uuid
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from actors.agent import Agent
from actors.journal import MemoryJournal
from actors.scripted import ScriptedEngine
from klong_rl import chain
from klong_rl.buffer import EpisodeLimits
from klong_rl.config import AgentConfig, RulesConfig
from klong_rl.types import EpisodeSpec, Limits, Task, Turn
from klong_rl.windows import ContextRule, context_start, split
from sandboxes.process import ProcessSandboxes

END = "<|end|>"
RULE = ContextRule(max_tokens=120, overlap_tokens=30, action_tokens=16)
CONFIG = AgentConfig(system="You have a shell.", action_tokens=16, observation_tokens=24, command_timeout_s=5.0)
TASK = Task(id="t", family="f", instruction="Follow the clues from the file amber.", image="none")


def spec(timeout_s: float = 60.0, max_turns: int = 20) -> EpisodeSpec:
    return EpisodeSpec(
        id="e", group="g", group_size=2, stage=1, purpose="train", task=TASK, timeout_s=timeout_s, max_turns=max_turns
    )


@pytest.fixture
async def sandbox(tmp_path):
    factory = ProcessSandboxes(f"test-{uuid.uuid4().hex[:8]}", root=str(tmp_path), allow_unisolated=True)
    yield await factory.create("e", 1, "none", Limits())
    await factory.reap(keep=set())
    await factory.close()


class WatchedJournal(MemoryJournal):
    """Sees to it that each turn is here before the next one begins, and its action before its command runs."""

    def __init__(self, engine: ScriptedEngine) -> None:
        super().__init__()
        self.engine = engine
        self.limits = None  # that the next append answers

    async def append(self, turn: Turn):
        assert len(self.engine.contexts) <= len(self.turns) + 1
        await super().append(turn)
        self.engine.version += 1
        return self.limits


class Episode:
    """One run of the agent and all that came of it."""

    def __init__(self, chat, script, sandbox, rule=RULE, config=CONFIG, pause_s=0.0):
        self.engine = ScriptedEngine(chat, script, pause_s)
        self.agent = Agent(config, rule, chat, self.engine)
        self.sandbox = sandbox
        self.journal = WatchedJournal(self.engine)

    @property
    def turns(self) -> list[Turn]:
        return self.journal.turns

    async def run(self, spec: EpisodeSpec, turns=(), intended=None):
        self.spec, self.prefix_P = spec, self.agent.prefix(spec)
        return await self.agent.run(spec, self.prefix_P, self.sandbox, self.journal, turns, intended)

    def sampled(self) -> list[list[int]]:
        return [context.tolist() for context in self.engine.contexts]


async def test_the_command_runs_and_its_output_is_the_next_turns_observation(chat, sandbox):
    script = [f"echo digit 7 > amber{END}", f"cat amber{END}", f"cat nothing{END}", f"submit{END}"]
    episode = Episode(chat, script, sandbox)
    outcome = await episode.run(spec())
    assert outcome.kind == "submitted"
    assert [turn.command for turn in episode.turns] == [text.removesuffix(END) for text in script]
    assert [turn.exit_code for turn in episode.turns] == [0, 0, 1, None]
    shown = [chat.text(turn.observation_O) for turn in episode.turns]
    assert "digit 7" in shown[1] and "No such file" in shown[2] and "[exit 1]" in shown[2]
    assert len(episode.turns[-1].observation_O) == 0
    for turn, text in zip(episode.turns, script, strict=True):
        assert turn.action_A.tolist() == chat.action(text.removesuffix(END)).tolist()
        assert turn.logprobs_A.tolist() == [-0.5 - i for i in range(len(turn.action_A))]
        assert turn.versions == ((turn.index, len(turn.action_A)),)


async def test_contexts_follow_the_context_rule_and_windows_hold_exactly_them(chat, sandbox):
    script = [f"echo {number} cedar olive palm{END}" for number in range(12)] + [f"submit{END}"]
    episode = Episode(chat, script, sandbox)
    assert (await episode.run(spec())).kind == "submitted"
    turns, prefix = episode.turns, episode.prefix_P.tolist()

    start, starts = 0, []
    for index, context in enumerate(episode.sampled()):
        start = context_start([turn.n_tokens() for turn in turns[:index]], start, len(prefix), RULE)
        starts.append(start)
        expected = list(prefix)
        for turn in turns[start:index]:
            expected += [*turn.action_A, *turn.observation_O]
        assert context == expected
        assert len(context) + RULE.action_tokens <= RULE.max_tokens
    assert [turn.context_start for turn in turns] == starts
    assert len(set(starts)) >= 3, "the context was full more than once"

    # Each action is a target once, right after the very context that it was sampled in.
    windows = split(episode.spec, episode.prefix_P, turns)
    placed = [
        (window.tokens_T[:first].tolist(), window.tokens_T[first : first + count].tolist())
        for window in windows
        for first, count in target_runs(window.targets_T)
    ]
    assert placed == list(zip(episode.sampled(), [turn.action_A.tolist() for turn in turns], strict=True))
    assert [run for window in windows for run in window.versions] == [run for turn in turns for run in turn.versions]


def target_runs(targets_T: np.ndarray) -> list[tuple[int, int]]:
    """(first token, length) of each run of targets. Two actions always have an observation between them."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], targets_T, [0]]).astype(int)))
    return [(int(first), int(end - first)) for first, end in zip(edges[::2], edges[1::2], strict=True)]


async def test_an_action_cut_at_its_limit_still_runs_and_is_closed_by_the_observation(chat, sandbox):
    episode = Episode(chat, ["echo " + "olive " * 40, f"submit{END}"], sandbox)
    await episode.run(spec())
    cut = episode.turns[0]
    assert len(cut.action_A) == RULE.action_tokens and chat.end_id not in cut.action_A
    assert cut.observation_O[0] == chat.end_id
    assert cut.command == chat.text(cut.action_A).strip() and cut.exit_code == 0


async def test_the_turn_limit_ends_an_episode_after_its_last_command(chat, sandbox):
    episode = Episode(chat, [f"echo {number} >> log{END}" for number in range(9)], sandbox)
    outcome = await episode.run(spec(max_turns=3))
    assert outcome.kind == "turn_limit" and len(episode.turns) == 3
    assert await sandbox.read("log") == b"0\n1\n2\n"


async def test_time_that_runs_out_while_sampling_aborts_the_request_and_keeps_the_turns_before(chat, sandbox):
    episode = Episode(chat, [f"echo a{END}", None], sandbox)
    outcome = await asyncio.wait_for(episode.run(spec(timeout_s=0.5)), 10)
    assert (outcome.kind, outcome.detail) == ("timeout", "while sampling turn 1")
    await asyncio.sleep(0)
    assert episode.engine.aborted == 1
    assert [turn.command for turn in episode.turns] == ["echo a"]


async def test_time_that_runs_out_in_a_command_stops_it_and_keeps_its_turn(chat, sandbox):
    episode = Episode(chat, [f"echo before; sleep 60{END}", f"submit{END}"], sandbox)
    outcome = await asyncio.wait_for(episode.run(spec(timeout_s=0.6)), 10)
    assert (outcome.kind, outcome.detail) == ("timeout", "in the command of turn 0")
    (turn,) = episode.turns
    assert turn.exit_code is None and "stopped after" in chat.text(turn.observation_O)
    assert 0.6 <= turn.seconds < 5


async def test_a_command_over_its_own_limit_is_stopped_and_the_episode_goes_on(chat, sandbox):
    config = AgentConfig(system="s", action_tokens=16, observation_tokens=24, command_timeout_s=0.3)
    episode = Episode(chat, [f"sleep 60{END}", f"echo b{END}", f"submit{END}"], sandbox, config=config)
    assert (await episode.run(spec())).kind == "submitted"
    assert "[stopped after 0.3 s]" in chat.text(episode.turns[0].observation_O)
    assert episode.turns[1].exit_code == 0


async def test_the_engines_pauses_are_not_the_agents_time(chat, sandbox):
    episode = Episode(chat, [f"echo a{END}", f"submit{END}"], sandbox, pause_s=0.4)
    outcome = await episode.run(spec(timeout_s=60))
    assert outcome.kind == "submitted"
    assert sum(turn.seconds for turn in episode.turns) < 0.4


async def test_a_task_that_leaves_no_room_for_an_action_is_cut_before_the_first_turn(chat, sandbox):
    small = ContextRule(max_tokens=20, overlap_tokens=4, action_tokens=16)
    episode = Episode(chat, [], sandbox, rule=small)
    outcome = await episode.run(spec())
    assert outcome.kind == "context_limit" and "prefix" in outcome.detail
    assert episode.turns == [] and episode.engine.contexts == []


async def test_a_turn_that_fits_in_no_context_ends_the_episode_and_is_kept(chat, sandbox):
    config = AgentConfig(system="s", action_tokens=16, observation_tokens=200)
    episode = Episode(chat, [f"seq 300{END}", f"submit{END}"], sandbox, config=config)
    outcome = await episode.run(spec())
    assert outcome.kind == "context_limit" and "turn 0" in outcome.detail
    assert [turn.command for turn in episode.turns] == ["seq 300"]


async def test_a_turn_that_cannot_be_streamed_ends_the_run_there(chat, sandbox):
    engine = ScriptedEngine(chat, [f"echo a{END}", f"echo b{END}"])

    class Refusing(MemoryJournal):
        async def append(self, turn: Turn) -> None:
            raise ConnectionError("the buffer is gone")

    agent = Agent(CONFIG, RULE, chat, engine)
    with pytest.raises(ConnectionError):
        await agent.run(spec(), agent.prefix(spec()), sandbox, Refusing())
    assert len(engine.contexts) == 1


async def test_a_command_runs_only_after_its_action_was_written_ahead(chat, sandbox):
    class Refusing(MemoryJournal):
        async def intend(self, turn: Turn) -> None:
            raise ConnectionError("the buffer is gone")

    agent = Agent(CONFIG, RULE, chat, ScriptedEngine(chat, [f"echo a > file{END}"]))
    with pytest.raises(ConnectionError):
        await agent.run(spec(), agent.prefix(spec()), sandbox, Refusing())
    with pytest.raises(FileNotFoundError):
        await sandbox.read("file")


async def test_every_turn_carries_the_chain_of_what_the_engine_was_given(chat, sandbox):
    episode = Episode(chat, [*(f"echo {number} cedar olive palm{END}" for number in range(9)), f"submit{END}"], sandbox)
    await episode.run(spec())
    assert chain.check("e", episode.prefix_P, episode.turns) == episode.turns[-1].chain
    previous = b""
    for turn, given in zip(episode.turns, episode.engine.contexts, strict=True):
        previous = chain.link(previous, given, turn.action_A)
        assert turn.chain == previous


async def test_an_episode_that_another_holder_began_goes_on_as_if_nothing_had_happened(chat, sandbox):
    script = [*(f"echo {number} cedar olive palm >> log; tail -n 1 log{END}" for number in range(8)), f"submit{END}"]
    whole = Episode(chat, script, sandbox)
    await whole.run(spec())
    await sandbox.exec("head -n 5 log > some; mv some log", timeout_s=5)
    second = Episode(chat, script[5:], sandbox)
    assert (await second.run(spec(), turns=whole.turns[:5])).kind == "submitted"
    assert second.sampled() == whole.sampled()[5:]
    assert [turn.chain for turn in second.turns] == [turn.chain for turn in whole.turns[5:]]
    assert (await sandbox.read("log")).count(b"\n") == 8


async def test_an_intended_command_is_reported_as_interrupted_and_not_run(chat, sandbox):
    first = Episode(chat, [f"echo a{END}", f"echo b >> file{END}", f"submit{END}"], sandbox)
    await first.run(spec())
    turns, intended = first.turns[:1], first.journal.intended[1]
    assert (await sandbox.read("file")) == b"b\n"
    second = Episode(chat, [f"submit{END}"], sandbox)
    assert (await second.run(spec(), turns, intended)).kind == "submitted"
    interrupted = second.turns[0]
    assert interrupted.interrupted and interrupted.exit_code is None
    assert "[interrupted" in chat.text(interrupted.observation_O)
    assert interrupted.action_A.tolist() == intended.action_A.tolist() and interrupted.chain == intended.chain
    assert (await sandbox.read("file")) == b"b\n", "run once"
    chain.check("e", second.prefix_P, [*turns, *second.turns])


async def test_an_intended_submit_is_a_submit(chat, sandbox):
    first = Episode(chat, [f"echo a{END}", f"submit{END}"], sandbox)
    await first.run(spec())
    second = Episode(chat, [], sandbox)
    assert (await second.run(spec(), first.turns[:1], first.journal.intended[1])).kind == "submitted"
    assert [(turn.command, turn.interrupted) for turn in second.turns] == [("submit", False)]


@pytest.mark.parametrize(
    ("limits", "kind"), [({}, "submitted"), ({"max_turns": 2}, "turn_limit"), ({"timeout_s": 0.001}, "timeout")]
)
async def test_what_had_ended_before_its_holder_died_ends_at_once(chat, sandbox, limits, kind):
    first = Episode(chat, [f"echo a{END}", f"submit{END}" if kind == "submitted" else f"sleep 0.01{END}"], sandbox)
    await first.run(spec(max_turns=2))
    second = Episode(chat, [], sandbox)
    assert (await second.run(spec(**limits), first.turns)).kind == kind
    assert second.engine.contexts == []


async def test_an_extended_episode_goes_on(chat, sandbox):
    episode = Episode(chat, [*(f"echo {number}{END}" for number in range(3)), f"submit{END}"], sandbox)
    episode.journal.limits = EpisodeLimits(timeout_s=60.0, max_turns=9)
    assert (await episode.run(spec(max_turns=1))).kind == "submitted"


async def test_cancelling_an_episode_aborts_its_request(chat, sandbox):
    episode = Episode(chat, [None], sandbox)
    run = asyncio.create_task(episode.run(spec()))
    while not episode.engine.contexts:
        await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await asyncio.sleep(0)
    assert episode.engine.aborted == 1


async def test_submit_is_refused_until_the_rules_of_the_scaffold_are_kept(chat, sandbox):
    """And a turn that was refused before its holder died isn't taken for the end by the next one."""
    config = replace(CONFIG, rules=RulesConfig(read_first=1.0), observation_tokens=60)
    await sandbox.write("amber", b"digit 7 next cedar\n")
    task = structs.replace(TASK, files={"amber": b"digit 7 next cedar\n"}, reading=("amber",))
    wanted = structs.replace(spec(), task=task)
    script = [f"submit{END}", f"cat amber{END}", f"submit{END}"]
    episode = Episode(chat, script, sandbox, config=config)
    assert (await episode.run(wanted)).kind == "submitted"
    assert [turn.command for turn in episode.turns] == ["submit", "cat amber", "submit"]
    assert "not submitted" in chat.text(episode.turns[0].observation_O) and not len(episode.turns[-1].observation_O)
    again = Episode(chat, script[1:], sandbox, config=config)
    intended = structs.replace(episode.turns[0], observation_O=np.zeros(0, np.int32))
    assert (await again.run(wanted, intended=intended)).kind == "submitted"
    assert len(again.turns) == 3 and len(again.turns[0].observation_O)
