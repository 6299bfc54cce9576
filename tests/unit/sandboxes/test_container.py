"""What is asked of Docker: names, hardening and limits."""

import re

from klong_rl.types import Limits
from sandboxes.container import container_name, host_config

LIMITS = Limits(memory_mb=256, cpus=0.5, pids=40, disk_mb=100)


def test_names_differ_wherever_run_episode_or_epoch_do_and_fit_docker():
    cases = [("r", "e", 1), ("r", "e", 2), ("r", "e/x", 1), ("r", "e_x", 1), ("r-e", "x", 1), ("r", "e" * 300, 1)]
    names = [container_name(*case) for case in cases]
    assert len(set(names)) == len(cases)
    assert all(re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", name) and len(name) < 128 for name in names)


def test_a_sandbox_is_hardened_and_limited():
    config = host_config(LIMITS, network="none", runtime=None, disk_quota=False)
    assert config["NetworkMode"] == "none"
    assert config["CapDrop"] == ["ALL"]
    assert config["SecurityOpt"] == ["no-new-privileges"]
    assert (config["Memory"], config["MemorySwap"]) == (256 << 20, 256 << 20)
    assert (config["NanoCpus"], config["PidsLimit"]) == (500_000_000, 40)
    assert {"Name": "fsize", "Soft": 100 << 20, "Hard": 100 << 20} in config["Ulimits"]
    assert {"Name": "nofile", "Soft": 1024, "Hard": 1024} in config["Ulimits"]
    assert {"/proc/sys", "/proc/sysrq-trigger", "/etc", "/usr"} <= set(config["ReadonlyPaths"])
    assert "StorageOpt" not in config and "Runtime" not in config


def test_runtime_and_disk_quota_reach_docker_when_asked_for():
    config = host_config(LIMITS, network="none", runtime="runsc", disk_quota=True)
    assert config["Runtime"] == "runsc"
    assert config["StorageOpt"] == {"size": "100m"}
