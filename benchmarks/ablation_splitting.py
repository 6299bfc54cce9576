"""The paper's first ablation in miniature: SFT on trajectories cut at the context's end, or split into windows.

    python -m benchmarks.ablation_splitting --seed 0                    # once for each seed: minutes, done once
    python -m benchmarks.ablation_splitting --seed 0 --variant mixed    # the same with short demonstrations among them
    python -m benchmarks.ablation_splitting --report                    # docs/ablations.md, its figures and numbers

Both sides fine-tune the same untrained nano with `python -m klong_rl.sft`, on the same flawless demonstrations of
relay, for as many steps of as many tokens. They differ in the files alone: of each demonstration the first window, or
all. Then the real agent, engine and Docker sandboxes do held-out tasks longer than a context, from several checkpoints.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation_report import write_report
from klong_rl import services
from klong_rl.chat import ChatFormat
from klong_rl.cold_start import corpus
from klong_rl.config import AgentConfig, EngineConfig
from klong_rl.fine_tuning.training import METRICS_FILE, SftMetrics
from klong_rl.models.nano import NanoSource
from klong_rl.rewards.answer import digits_in_place
from klong_rl.rewards.base import FinishedEpisode
from klong_rl.step_lines import read_lines
from klong_rl.tasks.relay import RelayDemonstrator, RelayTasks
from klong_rl.types import EpisodeSpec, Trajectory
from klong_rl.windows import ContextRule, flat, windows

SIDES = {"cut": "cut at the context's end", "split": "trajectory splitting"}
RULE = ContextRule(max_tokens=128, overlap_tokens=24, action_tokens=16)
AGENT = AgentConfig(system="You have a shell, one command a turn. Type submit when done.", temperature=0.5)
HELD_OUT_DIFFICULTY = 12
DEMONSTRATIONS, HELD_OUT_DEMONSTRATIONS = 900, 20
EPISODES, TIMEOUT_S = 24, 300.0
MAX_TURNS = 2 * HELD_OUT_DIFFICULTY


@dataclass(frozen=True)
class Variant:
    """What both sides are trained on, and for how long."""

    difficulties: tuple[int, ...]  # clues of the demonstrations: a context holds five at most
    steps: int
    tokens_per_step: int
    checkpoint_every: int

    def evaluated(self) -> range:
        return range(self.checkpoint_every, self.steps + 1, self.checkpoint_every)

    def in_words(self) -> str:
        clues = ", ".join(map(str, self.difficulties))
        return (
            f"{DEMONSTRATIONS} demonstrations of {clues} clues; {self.steps} steps of {self.tokens_per_step} tokens; "
            f"windows of {RULE.max_tokens} tokens, overlap {RULE.overlap_tokens}; held out: {EPISODES} tasks of "
            f"{HELD_OUT_DIFFICULTY} clues, at most {MAX_TURNS} turns, temperature {AGENT.temperature:g}"
        )


VARIANTS = {
    "long": Variant((6, 8, 10, 12), steps=360, tokens_per_step=1024, checkpoint_every=120),
    "mixed": Variant((2, 4, 6, 8, 10, 12), steps=120, tokens_per_step=2048, checkpoint_every=40),
}
DOCS = Path(__file__).resolve().parents[1] / "docs"


def demonstrations(
    chat: ChatFormat, difficulties: Sequence[int], seed: int, first: int, count: int
) -> list[Trajectory]:
    """Flawless ones, the difficulties in turn."""
    family, demonstrator, rng = RelayTasks(seed=seed), RelayDemonstrator(forgets=0.0, gives_up=0.0), random.Random(seed)
    made = []
    for index in range(first, first + count):
        task = family.train(difficulties[index % len(difficulties)], index)
        turns = chat.turns(demonstrator.demonstrate(task, rng), AGENT.observation_tokens)
        made.append(flat(task.id, chat.prefix(AGENT.system, task.instruction), turns))
    return made


def write_rows(path: Path, made: list[Trajectory], side: str) -> None:
    """As token ids: the whole trajectories, or what of each the first context holds."""
    with path.open("w") as file:
        for trajectory in made:
            tokens_T = np.concatenate([trajectory.prefix_P, trajectory.tokens_T])
            agent_T = np.concatenate([np.zeros(len(trajectory.prefix_P), np.uint8), trajectory.agent_T])
            if side == "cut":
                first = next(windows(trajectory, RULE))
                tokens_T, agent_T = first.tokens_T, first.targets_T
            row = {"id": trajectory.id, "tokens": tokens_T.tolist(), "agent": agent_T.tolist()}
            file.write(json.dumps(row) + "\n")


def fine_tune(work: Path, side: str, base: Path, variant: Variant, seed: int) -> subprocess.Popen:
    """Start one side's fine-tuning, or what is left of it."""
    settings = {
        "data": work / f"{side}.jsonl",
        "held_out": work / "held-out.jsonl",
        "held_out_tokens": 4096,
        "evaluate_every": 40,
        "steps": variant.steps,
        "epochs": 1000,
        "tokens_per_step": variant.tokens_per_step,
        "model": "local",
        "model.source.path": base,
        "window.max_tokens": RULE.max_tokens,
        "window.overlap_tokens": RULE.overlap_tokens,
        "agent.action_tokens": RULE.action_tokens,
        "agent.observation_tokens": AGENT.observation_tokens,
        "engine.max_model_len": 256,
        "learner.optimizer.lr": 1e-3,
        "learner.optimizer.warmup_steps": 20,
        "learner.layout.data": 1,
        "learner.checkpoint_every": variant.checkpoint_every,
        "learner.keep_checkpoints": len(variant.evaluated()),
        "seed": seed,
        "root": work,
        "name": side,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return subprocess.Popen([sys.executable, "-m", "klong_rl.sft", *overrides])


async def evaluate(work: Path, base: Path, variant: Variant, seed: int) -> dict[str, dict[int, dict[str, float]]]:
    """Score and turns on held-out tasks by side and step."""
    from safetensors.torch import load_file

    from actors.agent import Agent
    from actors.engine import Engine
    from learners.publish import WeightFolder
    from sandboxes.docker import DockerSandboxes

    services.quiet_libraries()
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    chat = ChatFormat(base)
    engine = await Engine.start(EngineConfig(), str(base), chat.end_id, version=1, seed=seed)
    run = f"ablation-splitting-{seed}"
    weights, factory = WeightFolder.in_shared_memory(run), DockerSandboxes(run)
    await factory.reap(keep=set())  # of an evaluation that was killed
    agent, policy_version = Agent(AGENT, RULE, chat, engine), 1
    found: dict[str, dict[int, dict[str, float]]] = {}
    try:
        for side in SIDES:
            found[side] = {}
            for step in variant.evaluated():
                policy_version += 1
                tensors = load_file(work / side / "checkpoints" / f"step-{step:06d}" / "hf" / "model.safetensors")
                await engine.publish(weights.publish(policy_version, tensors.items()), policy_version)
                ended = await asyncio.gather(
                    *(episode(agent, factory, seed, f"{side}-{step}-{index}", index) for index in range(EPISODES))
                )
                found[side][step] = {name: float(np.mean([e[name] for e in ended])) for name in ended[0]}
                print(f"seed {seed}, {side}, step {step}: {found[side][step]}", flush=True)
    finally:
        engine.shutdown()
        weights.remove()
        await factory.reap(keep=set())
        await factory.close()
    return found


async def episode(agent: Any, factory: Any, seed: int, name: str, index: int) -> dict[str, float]:
    """One held-out task, done and scored."""
    from actors.journal import MemoryJournal

    task = RelayTasks(seed=seed).held_out(HELD_OUT_DIFFICULTY, index)
    spec = EpisodeSpec(
        id=name, group=name, group_size=1, stage=1, purpose="eval", task=task, timeout_s=TIMEOUT_S, max_turns=MAX_TURNS
    )
    sandbox = await factory.create(name, 1, task.image, task.limits)
    try:
        await sandbox.write_many(task.files)
        journal = MemoryJournal()
        outcome = await agent.run(spec, agent.prefix(spec), sandbox, journal)
        verdict = await digits_in_place(FinishedEpisode(spec, outcome), sandbox, judge=None)
        return {"score": verdict.score, "turns": len(journal.turns), "solved": float(verdict.score == 1.0)}
    finally:
        await sandbox.close()


def run_seed(work: Path, name: str, seed: int) -> None:
    """All of one seed of a variant; its result is WORK/NAME-seed-N.json. Nothing to do where that is."""
    variant, result_file = VARIANTS[name], work / f"{name}-seed-{seed}.json"
    if result_file.exists():
        return
    folder = work / f"{name}-seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    texts = corpus(RelayTasks(seed=seed), RelayDemonstrator(), variant.difficulties, AGENT.system)
    base = NanoSource().build(folder, texts, seed)
    chat = ChatFormat(base)
    made = demonstrations(chat, variant.difficulties, seed, 0, DEMONSTRATIONS)
    for side in SIDES:
        write_rows(folder / f"{side}.jsonl", made, side)
    kept = demonstrations(chat, variant.difficulties, seed, 10**6, HELD_OUT_DEMONSTRATIONS)
    write_rows(folder / "held-out.jsonl", kept, "split")
    both = [fine_tune(folder, side, base, variant, seed) for side in SIDES]
    if any([process.wait() for process in both]):
        sys.exit(f"seed {seed}: a fine-tuning failed; see what it said above, and run this again")
    held_out = asyncio.run(evaluate(folder, base, variant, seed))
    lines = {side: read_lines(folder / side / METRICS_FILE, SftMetrics) for side in SIDES}
    result = {
        side: {
            "held_out": held_out[side],
            "loss": {m.step: m.eval_loss for m in lines[side] if m.eval_loss is not None},
            "tokens": sum(m.tokens for m in lines[side]),
            "targets": sum(m.targets for m in lines[side]),
        }
        for side in SIDES
    }
    result_file.write_text(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, action="append", default=[], help="run it; may be given several times")
    parser.add_argument("--variant", choices=VARIANTS, default="long", help="what both sides are trained on")
    parser.add_argument("--report", action="store_true", help="of the seeds that were run, of both variants")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation-splitting"), help="data, runs, results")
    arguments = parser.parse_args()
    for seed in arguments.seed:
        run_seed(arguments.work.resolve(), arguments.variant, seed)
    if arguments.report:
        write_report(arguments.work, DOCS, SIDES, {name: variant.in_words() for name, variant in VARIANTS.items()})


if __name__ == "__main__":
    main()
