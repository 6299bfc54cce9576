"""mini-swe-agent as the agent of a run, unchanged: its loop and its model, our endpoint, our sandboxes.

make agents
python -m klong_rl.launch name=mini agent.program._target_=examples.mini_swe_agent.run \
    window.max_tokens=256 agent.program.action_regex='\\A(.+)\\Z'

The regular expression takes all that the model says for a command: the bundled task's model was not taught Markdown.
Left out, it is mini-swe-agent's own, a block of `mswea_bash_command`.
"""

import asyncio
import logging
import os
from typing import Any

from klong_rl.agents import AgentEpisode, BlockingSandbox, in_own_thread
from klong_rl.observation import observation_text

# Before its import: no banner, and no look at a price list on the internet.
os.environ.setdefault("MSWEA_SILENT_STARTUP", "1")
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

SUBMIT = "submit"


class SandboxEnvironment:
    """mini-swe-agent's Environment: commands run in the episode's sandbox."""

    def __init__(self, sandbox: BlockingSandbox, command_timeout_s: float) -> None:
        self._sandbox = sandbox
        self._command_timeout_s = command_timeout_s
        self.config = None

    def execute(self, action: dict, cwd: str = "") -> dict[str, Any]:
        from minisweagent.exceptions import Submitted

        if action["command"] == SUBMIT:
            raise Submitted({"role": "exit", "content": "", "extra": {"exit_status": "Submitted", "submission": ""}})
        result = self._sandbox.exec(action["command"], timeout_s=self._command_timeout_s, cwd=cwd)
        timed_out_s = self._command_timeout_s if result.timed_out else None
        text = observation_text(result.output, result.exit_code, timed_out_s, result.truncated, result.interrupted)
        return {"output": text, "returncode": result.exit_code, "exception_info": ""}

    def get_template_vars(self, **more: Any) -> dict[str, Any]:
        return more

    def serialize(self) -> dict[str, Any]:
        return {}


async def run(
    episode: AgentEpisode,
    sandbox: Any,
    base_url: str,
    key: str,
    action_regex: str = "",
    command_timeout_s: float = 30.0,
) -> None:
    """One episode: `agent.program` of a run."""
    box = BlockingSandbox(sandbox, asyncio.get_running_loop())
    await in_own_thread(_run, episode, box, base_url, key, action_regex, command_timeout_s)


def _run(
    episode: AgentEpisode, box: BlockingSandbox, base_url: str, key: str, action_regex: str, command_timeout_s: float
) -> None:
    from minisweagent.agents.default import DefaultAgent
    from minisweagent.models.litellm_textbased_model import LitellmTextbasedModel

    logging.getLogger("LiteLLM").setLevel(logging.WARNING)
    model = LitellmTextbasedModel(
        model_name="openai/policy",
        model_kwargs={"api_base": base_url, "api_key": key, "max_retries": 0},
        cost_tracking="ignore_errors",
        observation_template="{{ output.output }}",
        format_error_template="One command a turn.",
        **({"action_regex": action_regex} if action_regex else {}),
    )
    agent = DefaultAgent(
        model,
        SandboxEnvironment(box, command_timeout_s),
        system_template="{{ system_prompt }}",
        instance_template="{{ task }}",
        cost_limit=0.0,
    )
    agent.run(episode.instruction, system_prompt=episode.system)
