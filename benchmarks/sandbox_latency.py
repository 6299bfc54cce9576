"""What a sandbox costs: our shell kept open against one `docker exec` through the API per command, on this host.

    python benchmarks/sandbox_latency.py [--containers 16] [--commands 100] [--json OUT]

Both sides run in containers of the same image and hardening, in one run. The rival's container idles in `sleep`, each
of its commands is exec_create and exec_start, and its files go in by put_archive. Times are medians of wall-clock
milliseconds; "at once" is the time per container when all are created, or removed, together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import docker
from rich.console import Console
from rich.table import Table

from klong_rl.types import Limits
from sandboxes.container import container_name, host_config
from sandboxes.docker import DockerSandboxes
from sandboxes.shell import pack

FILES = {f"folder/{index}": b"x" * 1024 for index in range(10)}
TIMEOUT_S = 60.0


async def median_ms(times: int, act: Callable[[], Awaitable[object]]) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        await act()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1e3


async def measure_ours(run: str, image: str, containers: int, commands: int) -> dict[str, float]:
    factory = DockerSandboxes(run)
    made = []

    async def create(index: int) -> None:
        made.append(await factory.create(f"ours-{index}", 1, image, Limits()))

    async def one() -> None:
        await create(len(made))

    async def together(acts: list[Awaitable[None]]) -> float:
        started = time.perf_counter()
        await asyncio.gather(*acts)
        return (time.perf_counter() - started) * 1e3 / len(acts)

    result = {"create": await median_ms(containers, one)}
    sandbox = made[0]
    result["first command"] = statistics.median(
        [await median_ms(1, lambda s=s: s.exec("true", timeout_s=TIMEOUT_S)) for s in made]
    )
    result["command"] = await median_ms(commands, lambda: sandbox.exec("true", timeout_s=TIMEOUT_S))
    result["write 10 files of 1 KiB"] = await median_ms(commands, lambda: sandbox.write_many(FILES))
    result["read 1 KiB"] = await median_ms(commands, lambda: sandbox.read("folder/0"))
    removed = iter(made)
    result["remove"] = await median_ms(len(made), lambda: next(removed).close())
    made.clear()
    result["create, at once"] = await together([create(index) for index in range(containers)])
    result["remove, at once"] = await together([sandbox.close() for sandbox in made])
    await factory.close()
    return result


async def measure_rival(run: str, image: str, containers: int, commands: int) -> dict[str, float]:
    """A container that idles, and the API for everything."""
    api = docker.APIClient(version="auto", **docker.utils.kwargs_from_env())
    host = host_config(Limits(), network="none", runtime=None, disk_quota=False)
    names: list[str] = []

    async def create() -> None:
        name = container_name(run, f"rival-{len(names)}", 1)
        labels = {"klong.run": run, "klong.episode": name, "klong.epoch": "1"}
        config = {"Image": image, "Cmd": ["sleep", "infinity"], "HostConfig": host, "Labels": labels}
        api.create_container_from_config(config, name)
        names.append(name)
        api.start(name)

    async def command(name: str) -> None:
        api.exec_start(api.exec_create(name, ["sh", "-c", "true"])["Id"])

    async def write() -> None:
        api.put_archive(names[0], "/work", pack(FILES))

    async def read() -> None:
        stream, _ = api.get_archive(names[0], "/work/folder/0")
        b"".join(stream)

    async def remove(name: str) -> None:
        api.remove_container(name, force=True)

    result = {"create": await median_ms(containers, create)}
    result["first command"] = statistics.median([await median_ms(1, lambda n=n: command(n)) for n in names])
    result["command"] = await median_ms(commands, lambda: command(names[0]))
    result["write 10 files of 1 KiB"] = await median_ms(commands, write)
    result["read 1 KiB"] = await median_ms(commands, read)
    removed = iter(names)
    result["remove"] = await median_ms(len(names), lambda: remove(next(removed)))
    return result


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", default="klong-sandbox")
    parser.add_argument("--containers", type=int, default=16)
    parser.add_argument("--commands", type=int, default=100)
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    arguments = parser.parse_args()
    run = f"bench-{uuid.uuid4().hex[:8]}"
    sizes = (arguments.image, arguments.containers, arguments.commands)
    try:
        ours, rival = await measure_ours(run, *sizes), await measure_rival(run, *sizes)
    finally:
        cleaner = DockerSandboxes(run)
        await cleaner.reap(keep=set())
        await cleaner.close()
    table = Table("milliseconds, median", "shell kept open", "docker exec per command", title="Sandbox latency")
    for name, value in ours.items():
        table.add_row(name, f"{value:.1f}", f"{rival[name]:.1f}" if name in rival else "")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"ours_ms": ours, "docker_exec_ms": rival}, indent=2) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
