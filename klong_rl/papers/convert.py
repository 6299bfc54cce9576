"""One paper to Markdown, in a process of its own with bounded time and memory: a bad file hurts nobody else."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from klong_rl.failures import InfrastructureFailure
from klong_rl.papers.config import ConvertConfig
from klong_rl.papers.converter import RESULT, Result
from klong_rl.papers.rejected import Rejected
from klong_rl.papers.text import Paper

CONVERTER = "klong_rl.papers.converter"


async def convert(source: Path, out: Path, config: ConvertConfig) -> Paper:
    """The paper in `source`; its figures are in OUT/assets. Raises Rejected, InfrastructureFailure."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", CONVERTER, str(source), str(out), str(config.most_pages), str(config.memory_mb)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(config.timeout_s):
            _, said = await process.communicate()
    except TimeoutError as error:
        raise Rejected(f"convert: not done within convert.timeout_s={config.timeout_s:g}") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return _read(out / RESULT, process.returncode, said.decode(errors="replace"), config)


def _read(path: Path, code: int, said: str, config: ConvertConfig) -> Paper:
    if code != 0 or not path.exists():
        last = (said.strip().splitlines() or ["nothing on stderr"])[-1][:200]
        if "MemoryError" in said:
            raise Rejected(f"convert: takes more than convert.memory_mb={config.memory_mb}")
        if code < 0:
            raise InfrastructureFailure(f"the converter was ended by signal {-code}")
        raise Rejected(f"convert: the converter failed: {last}")
    result = msgspec.json.decode(path.read_bytes(), type=Result)
    if result.paper is None:
        raise Rejected(result.problem)
    return result.paper
