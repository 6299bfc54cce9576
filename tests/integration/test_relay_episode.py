"""Demonstrations of relay against a real shell: a demonstrator's outputs are what the container prints.

The cold start learns from texts that no shell printed. Were they off by a token, the policy would meet contexts in RL
that it never saw.
"""

import itertools
import uuid

import pytest

from actors.agent import Agent
from actors.journal import MemoryJournal
from actors.scripted import ScriptedEngine
from klong_rl.chat import ChatFormat
from klong_rl.cold_start import Demonstrations, corpus
from klong_rl.config import AgentConfig
from klong_rl.models.nano import train_tokenizer
from klong_rl.rewards.answer import digits_in_place
from klong_rl.rewards.base import FinishedEpisode
from klong_rl.tasks.relay import RelayDemonstrator, RelayTasks
from klong_rl.types import EpisodeSpec, Task, Window
from klong_rl.windows import ContextRule, split
from sandboxes.docker import DockerSandboxes

pytestmark = pytest.mark.integration

RULE = ContextRule(max_tokens=128, overlap_tokens=24, action_tokens=16)  # six clues take more, two less
CONFIG = AgentConfig(system="You have a shell, one command a turn. Type submit when done.")
FLAWLESS = RelayDemonstrator(forgets=0.0, gives_up=0.0)


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> ChatFormat:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(corpus(RelayTasks(), RelayDemonstrator(), [2, 4, 6], CONFIG.system), 512).save_pretrained(folder)
    return ChatFormat(folder)


@pytest.fixture
async def sandboxes():
    factory = DockerSandboxes(f"test-{uuid.uuid4().hex[:8]}")
    yield factory
    await factory.reap(keep=set())
    await factory.close()


def demonstrated(chat: ChatFormat, task: Task, demonstrator: RelayDemonstrator, seed: int) -> list[Window]:
    demonstrations = Demonstrations(RelayTasks(), demonstrator, chat, CONFIG, RULE, [2, 4, 6], seed)
    return demonstrations.windows(task, "e")


def commands(chat: ChatFormat, windows: list[Window]) -> list[str]:
    """The actions of an episode as text, end of turn included."""
    texts = []
    for window in windows:
        runs = itertools.groupby(zip(window.targets_T, window.tokens_T, strict=True), key=lambda pair: pair[0])
        texts += [chat.text([token for _, token in run]) + chat.end_token for target, run in runs if target]
    return texts


async def lived(chat: ChatFormat, task: Task, script: list[str], sandbox) -> tuple[list[Window], FinishedEpisode]:
    """The windows of an episode in which the agent does as in `script`."""
    spec = EpisodeSpec(
        id="e",
        group="e",
        group_size=1,
        stage=0,
        purpose="train",
        task=task,
        timeout_s=60.0,
        max_turns=len(script),
    )
    await sandbox.write_many(task.files)
    agent = Agent(CONFIG, RULE, chat, ScriptedEngine(chat, script))
    journal = MemoryJournal()
    outcome = await agent.run(spec, agent.prefix(spec), sandbox, journal)
    return split(spec, agent.prefix(spec), journal.turns), FinishedEpisode(spec, outcome)


def tokens(windows: list[Window]) -> list[tuple[list[int], list[int]]]:
    return [(window.tokens_T.tolist(), window.targets_T.tolist()) for window in windows]


@pytest.mark.parametrize("difficulty", [2, 6])
async def test_a_flawless_demonstration_is_what_a_real_shell_prints_and_solves_the_task(chat, sandboxes, difficulty):
    task = RelayTasks().train(difficulty, 3)
    expected = demonstrated(chat, task, FLAWLESS, seed=0)
    sandbox = await sandboxes.create("e", 1, task.image, task.limits)
    windows, episode = await lived(chat, task, commands(chat, expected), sandbox)
    assert episode.outcome.kind == "submitted"
    assert tokens(windows) == tokens(expected)
    assert (len(windows) > 1) == (difficulty == 6)
    assert (await digits_in_place(episode, sandbox, None)).score == 1.0


LAPSES = [
    RelayDemonstrator(forgets=0.4, gives_up=0.0),
    RelayDemonstrator(forgets=0.0, gives_up=1.0),
    RelayDemonstrator(forgets=1.0, gives_up=0.0),
]


@pytest.mark.parametrize("demonstrator", LAPSES, ids=["forgets some", "gives up", "forgets all"])
async def test_a_demonstration_with_lapses_is_what_a_real_shell_prints_too(chat, sandboxes, demonstrator):
    task = RelayTasks().train(6, 4)
    expected = demonstrated(chat, task, demonstrator, seed=0)
    sandbox = await sandboxes.create("e", 1, task.image, task.limits)
    windows, episode = await lived(chat, task, commands(chat, expected), sandbox)
    assert tokens(windows) == tokens(expected)
    assert (await digits_in_place(episode, sandbox, None)).score < 1.0
