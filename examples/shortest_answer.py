"""A reward of one's own: one async function, and one line of config to choose it.

PYTHONPATH=examples python -m klong_rl.launch name=mine reward._target_=shortest_answer.shortest_answer
"""

from klong_rl.rewards.base import FinishedEpisode, Judge
from klong_rl.types import Verdict


async def shortest_answer(episode: FinishedEpisode, sandbox, judge: Judge) -> Verdict:
    """1 for an answer of one byte, less the longer it is, 0 for none."""
    await sandbox.halt()
    try:
        size = len(await sandbox.read("answer"))
    except FileNotFoundError:
        size = 0
    return Verdict(score=1 / size if size else 0.0, evidence={"bytes": str(size)})
