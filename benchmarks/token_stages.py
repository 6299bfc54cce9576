"""`python -m benchmarks.token_stages --tokens 8000 [key=value ...]`: a launch whose stages end by tokens, not by steps.

Each stage ends with the first step by which its share of action tokens, `--tokens`, has been trained; its `steps` are
the most it may last. Whatever the limits of a stage, the evaluations are at those of the last, on the same held-out
tasks: at the cold start, and after each stage.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from klong_rl import launch, training
from klong_rl.cli import load_config, run_main
from klong_rl.curriculum import Curriculum, Move
from klong_rl.held_out import HeldOut, Wanted
from klong_rl.ledger import read_ledger


def token_curriculum(run_dir: Path, tokens: int) -> type[Curriculum]:
    class TokenCurriculum(Curriculum):
        """Of the run in `run_dir`."""

        def decide(self) -> Move | None:
            move = super().decide()
            if move is not None or self.finished:
                return move
            spent = sum(step.action_tokens for step in read_ledger(run_dir))
            if spent < tokens * self.stage:
                return None
            last = self.stage == len(self._config.stages)
            return self._move(0 if last else self.stage + 1, f"{spent} tokens are trained")

    return TokenCurriculum


class AtLastStage(HeldOut):
    """Evaluates each set of weights once, at the last stage's settings."""

    async def evaluate(self, wanted: list[Wanted]) -> None:
        await super().evaluate([(tag, n) for tag, n in wanted if tag == "after" or (tag, n) == ("cold", 1)])

    async def _admit(self, tag: str, number: int, until: float) -> None:
        stages = self._config.curriculum.stages
        own, stages[number - 1] = stages[number - 1], stages[-1]
        try:
            await super()._admit(tag, number, until)
        finally:
            stages[number - 1] = own


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, required=True, help="action tokens of a stage")
    arguments, overrides = parser.parse_known_args(argv)
    config, _ = load_config(overrides)
    training.Curriculum = token_curriculum(Path(config.root, config.name).resolve(), arguments.tokens)
    training.HeldOut = AtLastStage
    return launch.main(overrides)


if __name__ == "__main__":
    run_main(main)
