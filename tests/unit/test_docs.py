"""The documentation is true: links lead somewhere, examples run as they are printed, commands compose."""

import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from klong_rl.cli import load_config
from klong_rl.distill import load_distill_config
from klong_rl.evaluate import load_evaluate_config
from klong_rl.factory import load_factory_config
from klong_rl.sft import load_sft_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
COMMAND = re.compile(r"python -m klong_rl\.(launch|sft|factory|distill|evaluate) ((?:\\\n|[^\n#`])*)")
COMPOSE = {
    "launch": load_config,
    "sft": load_sft_config,
    "factory": load_factory_config,
    "distill": load_distill_config,
    "evaluate": load_evaluate_config,
}


def example(page: str) -> dict:
    """The names that the Python blocks of a page define, run in order."""
    module = types.ModuleType(f"example_{page}")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.S):
        exec(compile(block, f"docs/{page}.md", "exec"), module.__dict__)
    return module.__dict__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_accepted(page):
    for entry, arguments in COMMAND.findall(page.read_text()):
        COMPOSE[entry]([word for word in shlex.split(arguments.replace("\\\n", " ")) if "[" not in word])


async def test_the_reward_example_scores(tmp_path):
    from klong_rl.rewards.base import FinishedEpisode
    from klong_rl.tasks.relay import RelayTasks
    from klong_rl.types import EpisodeSpec, Limits, Outcome
    from sandboxes.process import ProcessSandboxes

    task = RelayTasks().train(1, 0)
    spec = EpisodeSpec(id="e", group="g", group_size=1, stage=1, purpose="eval", task=task, timeout_s=1, max_turns=1)
    sandbox = await ProcessSandboxes("docs", root=str(tmp_path), allow_unisolated=True).create("e", 1, "none", Limits())
    try:
        episode, reward = FinishedEpisode(spec, Outcome(kind="submitted")), example("rewards")["file_exists"]
        assert (await reward(episode, sandbox, None)).score == 0.0
        await sandbox.write("done", b"")
        assert (await reward(episode, sandbox, None)).score == 1.0
    finally:
        await sandbox.close()


def test_the_agents_example_is_the_file_that_its_command_names():
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "agents.md").read_text(), re.S)[1]
    assert (ROOT / "examples" / "chat_agent.py").read_text().endswith(block)


def test_the_tasks_example_holds_tasks_out():
    family = example("tasks")["Sums"]()
    train, held_out = ({make(3, i).id for i in range(50)} for make in (family.train, family.held_out))
    assert len(train) == len(held_out) == 50 and not train & held_out


def test_the_sandbox_example_reaches_what_it_says():
    from sandboxes.egress.rules import Rules

    network = example("sandboxes")["task"].limits.network
    rules = Rules(network.allow, network.block)
    asked = ("pypi.org", "cdn.huggingface.co", "github.com", "example.org")
    assert [bool(rules.refusal(host, 443)) for host in asked] == [False, False, True, True]


def test_the_objective_example_is_the_policy_gradient():
    import torch

    from klong_rl.objectives import TargetTokens

    logprobs_N, window_N = torch.tensor([-1.0, -3.0, -4.0], requires_grad=True), torch.tensor([0, 1, 1])
    tokens = TargetTokens(
        logprobs_N=logprobs_N,
        sampler_logprobs_N=logprobs_N.detach(),
        window_N=window_N,
        advantages_W=torch.tensor([0.5, -2.0]),
        staleness_N=torch.zeros_like(window_N),
    )
    result = example("objectives")["reinforce"](tokens, torch.zeros(3), scale=2.0)
    result.loss_N.sum().backward()
    assert logprobs_N.grad.tolist() == [-1.0, 4.0, 4.0]
    assert result.values["surprise"].tolist() == [1.0, 3.0, 4.0]
