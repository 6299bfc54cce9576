"""The share of digits in place, and what is a failure and no score."""

import pytest

from klong_rl.failures import TaskFailure
from klong_rl.rewards.answer import digits_in_place, in_place
from klong_rl.rewards.base import FinishedEpisode
from klong_rl.types import EpisodeSpec, Outcome, Task


class Files:
    """A sandbox that holds files and nothing else."""

    def __init__(self, **files: bytes) -> None:
        self.files = files

    async def read(self, path: str, limit: int) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path][:limit]

    async def halt(self) -> None:
        self.halted = True


def finished(**secret) -> FinishedEpisode:
    task = Task(id="t", family="f", instruction="i", image="m", secret=secret)
    spec = EpisodeSpec(id="e", group="g", group_size=1, stage=1, purpose="train", task=task, timeout_s=1.0, max_turns=1)
    return FinishedEpisode(spec, Outcome(kind="submitted"))


@pytest.mark.parametrize(
    "answer, score", [("4711", 1.0), ("47", 0.5), ("7114", 0.25), ("", 0.0), ("47110", 0.8), ("4" * 100, 0.01)]
)
def test_share_of_digits_in_their_place(answer, score):
    assert in_place(answer, "4711") == score


async def test_white_space_is_left_out_and_the_evidence_is_kept():
    verdict = await digits_in_place(finished(file="answer", expected="47"), Files(answer=b"4\n7\n"), None)
    assert (verdict.score, verdict.parts, verdict.evidence["answer"]) == (1.0, {"solved": 1.0}, "4\n7\n")


async def test_no_answer_scores_nothing():
    assert (await digits_in_place(finished(file="answer", expected="47"), Files(), None)).score == 0.0


async def test_a_task_without_an_expected_answer_is_broken_and_not_scored():
    with pytest.raises(TaskFailure, match="expected"):
        await digits_in_place(finished(file="answer"), Files(answer=b"1"), None)
