"""What a run stands on, started and stopped with it: Redis and Ray."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis, ServerFault, Unavailable
from klong_rl.buffer.connection import Connection
from klong_rl.config import BufferConfig, SandboxConfig
from klong_rl.errors import UserError
from klong_rl.steering.mailbox import Mailbox

REVIVE_EVERY_S = 0.2  # clients wait 30 s, and a server needs some of them to read its file
LEAST_CPUS = 8  # of Ray's accounting on one machine: a small one runs the same actors, more slowly


def quiet_libraries() -> None:
    """Libraries' own chatter stays out of the display, here and in every process that Ray starts.

    Before any of them is imported.
    """
    os.environ |= {
        "RAY_ENABLE_AUTO_CONNECT": "0",  # a late call must not start a cluster of its own
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }


def start_redis(
    stack: AsyncExitStack, config: BufferConfig, run_dir: Path, run_id: str
) -> tuple[BufferAddress, EmbeddedRedis | None]:
    """The buffer's address, and the private server behind it, if any, which ends with `stack`. Raises UserError."""
    server = None
    if not config.url:
        try:
            server = stack.enter_context(EmbeddedRedis(run_dir, config.memory_mb, config.fsync))
        except ServerFault as fault:
            raise UserError(str(fault)) from fault
    url = server.url if server else config.url
    return BufferAddress(url, run_id, config.deadline_s, config.memory_mb), server


async def keep_redis_alive(server: EmbeddedRedis | None, warn: Callable[[str], None]) -> None:
    """Start the private server again when it has ended, for as long as this runs. Raises ServerFault if it won't.

    A server of the user's own is theirs to keep.
    """
    while server is not None:
        if server.revive():
            warn("the run's Redis died; started again on its append-only file")
        await asyncio.sleep(REVIVE_EVERY_S)


async def connect(stack: AsyncExitStack, address: BufferAddress) -> Buffer:
    """A client that is closed with `stack`. Raises UserError if nobody answers at the address."""
    try:
        return await stack.enter_async_context(await Buffer.connect(address))
    except Unavailable as error:
        raise UserError(f"buffer.url: {error}") from error


def mailbox(stack: AsyncExitStack, address: BufferAddress) -> Mailbox:
    """Where commands for the run come in, on a connection that is closed with `stack`."""
    connection = Connection(address)
    stack.push_async_callback(connection.close)
    return Mailbox(connection)


def sandbox_factory(config: SandboxConfig, run_dir: Path, run_id: str) -> dict[str, Any]:
    """What `hydra.utils.instantiate` makes the run's sandbox factory of, in whichever process uses it."""
    if config.kind == "process":
        allow = config.allow_unisolated
        return {"_target_": "sandboxes.process.ProcessSandboxes", "run": run_id, "allow_unisolated": allow}
    docker = {"_target_": "sandboxes.docker.DockerSandboxes", "run": run_id}
    pool = {"hosts": list(config.hosts), "per_host": config.per_host, "warm": config.warm}
    pool["snapshot_bytes"] = int(config.snapshot_gb * 1e9)
    egress = asdict(config.egress) | {"logs": str(run_dir / "network")}
    return docker | {"runtime": config.runtime or None, "egress": egress, **pool}


def start_ray(stack: AsyncExitStack, address: str) -> list[float]:
    """Join the Ray cluster at `address`, or start one on this machine that ends with `stack`; the GPUs of each node."""
    import ray

    if address:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    else:
        cpus = max(os.cpu_count() or 1, LEAST_CPUS)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error")
    stack.callback(ray.shutdown)
    return [node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]]
