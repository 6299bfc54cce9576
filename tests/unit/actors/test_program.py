"""Episodes of agent programs: how they end, what a limit does, what is never scored. Scripted engine, real shells."""

from __future__ import annotations

import asyncio
import threading
import uuid

import openai
import pytest

from actors.endpoint import Endpoint
from actors.journal import MemoryJournal
from actors.program import ProgramAgent
from actors.record import Scaffold
from actors.scripted import ScriptedEngine
from examples import chat_agent
from klong_rl import agents
from klong_rl.agents import BlockingSandbox, EpisodeOver, ProgramFailure, in_own_thread, resumable
from klong_rl.buffer import EpisodeLimits
from klong_rl.chat_messages import MessageFormat
from klong_rl.config import AgentConfig, AgentEndpointConfig
from klong_rl.failures import AgentFailure, InfrastructureFailure
from klong_rl.types import EpisodeSpec, Limits, Outcome, Task
from klong_rl.windows import ContextRule
from sandboxes.process import ProcessSandboxes

END = "<|end|>"
RULE = ContextRule(max_tokens=200, overlap_tokens=0, action_tokens=24)
TASK = Task(id="t", family="f", instruction="cat amber", image="none", secret={"expected": "7"})
SEEN: list[tuple[agents.AgentEpisode, str | None]] = []


def spec(timeout_s: float = 60.0, max_turns: int = 9) -> EpisodeSpec:
    return EpisodeSpec(
        id="e", group="g", group_size=2, stage=1, purpose="train", task=TASK, timeout_s=timeout_s, max_turns=max_turns
    )


async def shell_agent(episode, sandbox, base_url, key, note=None):
    SEEN.append((episode, note))
    await chat_agent.run(episode, sandbox, base_url, key)


async def threaded(episode, sandbox, base_url, key):
    box, here = BlockingSandbox(sandbox, asyncio.get_running_loop()), threading.current_thread()

    def work():
        assert threading.current_thread() is not here
        with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
            talk = [{"role": "user", "content": episode.instruction}]
            command = client.chat.completions.create(model="policy", messages=talk).choices[0].message.content
        box.write("given", b"x")
        assert box.read("given") == b"x"
        box.exec(command, timeout_s=5)

    await in_own_thread(work)


async def sleeps(episode, sandbox, base_url, key):
    await asyncio.Event().wait()


async def stubborn(episode, sandbox, base_url, key):
    """Goes on whatever it is told, until its sandbox is taken away."""
    while True:
        try:
            await chat_agent.run(episode, sandbox, base_url, key)
        except openai.APIError:
            await asyncio.sleep(0.01)


async def asks_too_much(episode, sandbox, base_url, key):
    async with openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        await client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "7 " * 300}])


async def gives_up(episode, sandbox, base_url, key):
    raise AgentFailure("it wrote three answers that are no command")


async def has_a_bug(episode, sandbox, base_url, key):
    raise KeyError("command")


async def swallows(episode, sandbox, base_url, key):
    try:
        await sandbox.exec("true", timeout_s=1)
    except InfrastructureFailure:
        pass


class LostSandbox:
    async def exec(self, command, **options):
        raise InfrastructureFailure("the host is gone")


class Episode:
    """A program, played once."""

    def __init__(self, chat, program, script, sandbox, **arguments) -> None:
        self.engine, self.journal = ScriptedEngine(chat, script), MemoryJournal()
        self.config = AgentConfig(
            system="You have a shell.",
            program={"_target_": f"{__name__}.{program.__name__}", **arguments},
            endpoint=AgentEndpointConfig(grace_s=0.3),
        )
        self.chat, self.sandbox = chat, sandbox

    async def run(self, spec=spec(), turns=()) -> Outcome:  # noqa: B008
        endpoint = Endpoint(self.config.endpoint, 1.0, str)
        await endpoint.start()
        form = MessageFormat(self.chat)
        scaffold = Scaffold(self.engine, form, RULE, 1.0, self.chat.text, lambda text, tools: None)
        agent = ProgramAgent(self.config, scaffold, endpoint)
        self.resumable = agent.resumable
        try:
            return await agent.run(spec, agent.prefix(spec), self.sandbox, self.journal, turns)
        finally:
            await endpoint.close()


@pytest.fixture
async def sandbox(tmp_path):
    factory = ProcessSandboxes(f"test-{uuid.uuid4().hex[:8]}", root=str(tmp_path), allow_unisolated=True)
    yield await factory.create("e", 1, "none", Limits())
    await factory.reap(keep=set())
    await factory.close()


async def test_a_program_that_returns_has_submitted(chat, sandbox):
    episode = Episode(chat, shell_agent, [f"echo 7 > amber{END}", f"cat amber{END}", f"submit{END}"], sandbox)
    outcome = await episode.run()
    n_tokens = sum(len(turn.action_A) for turn in episode.journal.turns)
    assert outcome == Outcome(kind="submitted", attributed=n_tokens)
    assert "7" in chat.text(episode.journal.turns[2].prompt_T)
    told, _ = SEEN[-1]
    assert told.instruction == TASK.instruction and told.max_turns == 9 and not hasattr(told, "secret")
    assert sum(turn.seconds for turn in episode.journal.turns) > 0


async def test_a_program_has_the_arguments_that_the_configuration_gives_it(chat, sandbox):
    episode = Episode(chat, shell_agent, [f"submit{END}"], sandbox, note="mine")
    assert (await episode.run()).kind == "submitted"
    assert SEEN[-1][1] == "mine"


async def test_a_program_that_is_not_async_runs_in_a_thread(chat, sandbox):
    episode = Episode(chat, threaded, [f"echo 7 > amber{END}"], sandbox)
    assert (await episode.run()).kind == "submitted"
    assert await sandbox.read("amber") == b"7\n"


async def test_the_turn_limit_ends_a_program_after_its_last_command(chat, sandbox):
    episode = Episode(chat, shell_agent, [f"echo {n} >> log{END}" for n in range(9)], sandbox)
    outcome = await episode.run(spec(max_turns=3))
    assert (outcome.kind, outcome.detail) == ("turn_limit", "3 turns")
    assert await sandbox.read("log") == b"0\n1\n2\n"


async def test_a_group_that_is_extended_lets_its_programs_go_on(chat, sandbox):
    episode = Episode(chat, shell_agent, [*(f"echo {n}{END}" for n in range(3)), f"submit{END}"], sandbox)

    async def append(turn):
        episode.journal.turns.append(turn)
        return EpisodeLimits(timeout_s=60.0, max_turns=9)

    episode.journal.append = append
    assert (await episode.run(spec(max_turns=1))).kind == "submitted"


@pytest.mark.parametrize("program", [sleeps, stubborn])
async def test_a_program_that_does_not_end_by_itself_is_ended(chat, sandbox, program):
    episode = Episode(chat, program, [f"echo {n}{END}" for n in range(2)], sandbox)
    outcome = await asyncio.wait_for(episode.run(spec(timeout_s=0.5, max_turns=2)), 30)
    assert outcome.kind == ("timeout" if program is sleeps else "turn_limit")


async def test_a_command_is_stopped_when_the_time_is_up(chat, sandbox):
    episode = Episode(chat, shell_agent, [f"sleep 60{END}", f"submit{END}"], sandbox)
    outcome = await asyncio.wait_for(episode.run(spec(timeout_s=1.0)), 30)
    assert outcome.kind == "timeout"
    assert len(episode.journal.turns) == 1


async def test_a_prompt_that_is_too_long_is_the_agents_own_doing(chat, sandbox):
    outcome = await Episode(chat, asks_too_much, [], sandbox).run()
    assert outcome.kind == "context_limit"


async def test_a_program_says_that_the_model_failed(chat, sandbox):
    outcome = await Episode(chat, gives_up, [], sandbox).run()
    assert (outcome.kind, outcome.detail) == ("broken", "it wrote three answers that are no command")


async def test_a_program_that_raises_is_never_scored(chat, sandbox):
    with pytest.raises(ProgramFailure, match="raised KeyError: 'command'"):
        await Episode(chat, has_a_bug, [], sandbox).run()


async def test_a_failure_of_ours_that_the_program_swallows_is_still_one(chat):
    with pytest.raises(InfrastructureFailure, match="the host is gone"):
        await Episode(chat, swallows, [], LostSandbox()).run()


async def test_a_cancelled_episode_ends_its_program_and_its_key(chat, sandbox):
    episode = Episode(chat, shell_agent, [None], sandbox)
    run = asyncio.create_task(episode.run())
    while not episode.engine.contexts:
        await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert episode.engine.aborted == 1


async def test_a_sandbox_is_a_programs_no_longer_than_its_episode(chat, sandbox):
    kept = []

    class Kept:
        async def exec(self, command, **options):
            kept.append(command)
            return await sandbox.exec(command, **options)

    held = {}

    async def program(episode, sandbox, base_url, key):
        held["sandbox"] = sandbox

    globals()["holds_on"] = program
    program.__name__ = "holds_on"
    await Episode(chat, program, [], Kept()).run()
    with pytest.raises(EpisodeOver):
        await held["sandbox"].exec("rm -rf .", timeout_s=1)
    assert kept == []


def test_a_program_is_resumable_if_it_says_so():
    async def program(episode, sandbox, base_url, key):
        pass

    assert not agents.is_resumable(program)
    assert agents.is_resumable(resumable(program))
