"""What do an engine's processes cost while they wait for each other? `python -m benchmarks.engine_waiting [--json OUT]`

On a CPU, with a small model: the seconds of CPU time of vLLM's core and worker, and the clock's, for the same requests,
a tool's time between them. Two engines, in turn and several times in one run: vLLM as it is, and with what
actors.vllm_plugin changes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.machine import about

SIDES = {"vllm": "vLLM as it is", "ours": "ours"}  # the plug-ins it loads; ours is the entry point klong_rl
PLUGINS = {"vllm": "none", "ours": "klong_rl"}
TIMES = 3
AT_ONCE = (1, 8)
REQUESTS, TOKENS, PROMPT, TOOL_S = 24, 16, 60, 0.1
SETTINGS = {
    "model": "random, 4 layers of 256, vocabulary 512: nano's size",
    "requests": f"{REQUESTS} of {PROMPT} tokens, {TOKENS} sampled; {TOOL_S:g} s between rounds of so many at once",
}
START_S = 300.0


def build(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


async def sample(model: str) -> dict[int, dict[str, float]]:
    """By requests at once: seconds."""
    import psutil
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(model=model, dtype="float32", max_model_len=256, enforce_eager=True, skip_tokenizer_init=True)
    )
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True, detokenize=False)

    async def one(number: int) -> None:
        prompt = {"prompt_token_ids": [5 + (number * 131 + i * 17) % 500 for i in range(PROMPT)]}
        async for _ in llm.generate(prompt, params, f"r{number}"):
            pass

    def cpu_s() -> float:
        times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
        return sum(each.user + each.system for each in times)

    await asyncio.gather(*(one(number) for number in range(8)))
    seen, number = {}, 100
    for at_once in AT_ONCE:
        before, began = cpu_s(), time.monotonic()
        for _ in range(REQUESTS // at_once):
            await asyncio.gather(*(one(number + i) for i in range(at_once)))
            number += at_once
            await asyncio.sleep(TOOL_S)
        seen[at_once] = {"cpu_s": cpu_s() - before, "wall_s": time.monotonic() - began}
    llm.shutdown()
    return seen


def run_side(side: str, model: Path) -> dict[str, dict[str, float]]:
    environment = os.environ | {
        "VLLM_PLUGINS": PLUGINS[side],
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "benchmarks.engine_waiting", "--side", str(model)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, timeout=START_S, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        runs = [(side, run_side(side, Path(folder))) for _ in range(TIMES) for side in SIDES]
    return about() | {"settings": SETTINGS, "runs": runs}


def show(result: dict[str, Any]) -> None:
    table = Table("", "at once", "CPU s", "seconds", box=MARKDOWN)
    for at_once in map(str, AT_ONCE):
        for side, name in SIDES.items():
            mine = [run[at_once] for each, run in result["runs"] if each == side]
            cells = (f"{median(run[key] for run in mine):.2f}" for key in ("cpu_s", "wall_s"))
            table.add_row(name, at_once, *cells)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all that was measured there")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # one engine's process: the model's folder
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(asyncio.run(sample(arguments.side))))
        return
    result = compare()
    show(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
