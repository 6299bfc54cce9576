"""What is said of a submission that can't be read, and whose fault it is."""

import pytest

from klong_rl.failures import AgentFailure, InfrastructureFailure
from klong_rl.judging.submission import read_submission
from sandboxes.base import ExecResult


class ScriptedSandbox:
    """Answers every command the same."""

    episode = "e"

    def __init__(self, **said) -> None:
        self._result = ExecResult(stdout=b"", stderr=b"", truncated=False, seconds=0.0, **said)

    async def exec(self, command: str, **_) -> ExecResult:
        return self._result


@pytest.mark.parametrize(
    "said, fault",
    [
        ({"exit_code": None, "timed_out": False, "interrupted": True}, InfrastructureFailure),
        ({"exit_code": None, "timed_out": True}, AgentFailure),
        ({"exit_code": None, "timed_out": False}, AgentFailure),
    ],
)
async def test_a_sandbox_that_was_lost_is_no_fault_of_the_agent(said, fault):
    with pytest.raises(fault):
        await read_submission(ScriptedSandbox(**said), 10, 100)
