#!/usr/bin/env bash
# KLong's recipe in miniature, from papers to a trained agent, with scripted models in the place of the large ones:
#
#     papers ─▶ factory ─▶ tasks ─▶ distill ─▶ trajectories.jsonl ─▶ sft ─▶ a model ─▶ launch ─▶ a better one
#
# examples/recipe.sh [OUT]. Each arrow is a command that goes on where it was stopped, and a file that one can open. The
# two papers are trained and evaluated on: this shows that the parts fit, not that anything generalises.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

OUT=${1:-runs/recipe}
PYTHON=${PYTHON:-.venv/bin/python}
PAPERS=examples/papers
TASKS=$OUT/factory/tasks
JUDGE=(judge.endpoint.url=scripted://models judge.endpoint.model=scripted-judge judge.endpoint.requests_per_s=1000)
# What the agent sees must be the same for the teacher, the fine-tuning and the reinforcement learning.
AGENT=(agent.system="You have a shell." agent.action_tokens=96 agent.observation_tokens=32)
LENGTHS=(window.max_tokens=512 window.overlap_tokens=160 engine.max_model_len=512 learner.token_budget=1024)
FAMILY=("+tasks.held_out_share=0" "+tasks.instruction='Reproduce paper/paper.md in submission/.'" "+tasks.limits={memory_mb: 128, disk_mb: 32}")

say() { printf '\033[1;36m==>\033[0m %s\n' "$*"; }

say "papers to tasks: $OUT/factory/report.json"
$PYTHON -m klong_rl.factory papers=$PAPERS out="$OUT/factory" evaluator.url=scripted://models \
    evaluator.model=scripted-evaluator "${JUDGE[@]}"

say "a teacher's attempts to trajectories: $OUT/demos/trajectories.jsonl"
$PYTHON -m klong_rl.distill tasks="$TASKS" out="$OUT/demos" samples=8 keep=6 min_score=0.4 enough=2 at_once=4 \
    cold_start.demonstrator.papers=$PAPERS "${AGENT[@]}" "${JUDGE[@]}" "${FAMILY[@]}"

say "trajectories to a model: $OUT/sft"
$PYTHON -m klong_rl.sft data="$OUT/demos/trajectories.jsonl" root="$OUT" name=sft "${AGENT[@]}" "${LENGTHS[@]}" \
    held_out_share=0.2 steps=80 epochs=1000 tokens_per_step=2048 evaluate_every=40

say "the model to a better one: $OUT/rl"
MODEL=$(ls -d "$OUT"/sft/checkpoints/step-*/hf | tail -n 1)
$PYTHON -m klong_rl.launch root="$OUT" name=rl tasks=papers tasks.path="$TASKS" model=local model.source.path="$MODEL" \
    cold_start.steps=0 "${AGENT[@]}" "${LENGTHS[@]}" "${JUDGE[@]}" "${FAMILY[@]}" learner.optimizer.lr=1e-4 \
    "curriculum.stages=[{difficulty: 1, timeout_s: 60, max_turns: 10, steps: 3}, {difficulty: 1, timeout_s: 120, max_turns: 12, steps: 3}]" \
    rollout.groups_per_step=2 rollout.group_size=8 evaluation.episodes=8 actors.episodes=16

say "the report: $OUT/rl/report.html"
