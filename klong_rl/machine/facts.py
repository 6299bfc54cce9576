"""The facts that klong_rl.doctor decides on. Sizes are bytes; None: not asked, or it can't be told on this system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: int
    driver: str


@dataclass(frozen=True)
class Pair:
    """Two processes that add up a tensor together. `error` is empty where the sum was right."""

    backend: str  # nccl or gloo
    error: str = ""
    gb_per_s: float = 0.0  # 10^9 bytes a second of the tensor, of one all-reduce


@dataclass(frozen=True)
class Requirement:
    """What an installed package asks of another one that is installed."""

    package: str
    wants: str  # torch==2.13.0
    found: str  # 2.12.1
    met: bool


@dataclass(frozen=True)
class Docker:
    """`error`: why the daemon doesn't answer; empty where it does."""

    error: str = ""
    version: str = ""
    has_image: bool = False


@dataclass(frozen=True)
class Redis:
    """The redis-server on the PATH, or with a `url` the one that answers there."""

    url: str = ""  # without its password
    error: str = ""
    version: str = ""
    eviction: str = ""  # its maxmemory-policy; empty for a binary
    appends: bool = True  # keeps an append-only file


@dataclass(frozen=True)
class Clock:
    """How far a Ray node's clock is ahead of this one's, in seconds, and how sure that is."""

    node: str
    ahead_s: float
    sure_to_s: float


@dataclass(frozen=True)
class Facts:
    """One machine's."""

    python: tuple[int, int] = (3, 11)
    system: str = "Linux"
    architecture: str = "x86_64"
    cpu_flags: frozenset[str] = frozenset()
    cpus: int = 1  # that this process may use
    memory: int | None = None
    gpus: tuple[Gpu, ...] = ()
    gpu_error: str = ""  # of nvidia-smi, where there is one and it fails
    versions: Mapping[str, str] = field(default_factory=dict)  # of what is installed, as pip names it
    torch_cuda: str = ""  # that torch was built for; empty: for CPUs
    requirements: tuple[Requirement, ...] = ()
    pair: Pair | None = None
    docker: Docker = field(default_factory=Docker)
    image: str = "klong-sandbox"
    redis: Redis = field(default_factory=Redis)
    folder: str = "runs"  # where runs will be
    disk_free: int | None = None
    shm_free: int | None = None
    open_files: tuple[int, int] = (0, 0)  # soft and hard limit; -1: none
    clocks: tuple[Clock, ...] = ()
