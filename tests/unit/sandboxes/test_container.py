"""What is asked of Docker: names, hardening and limits."""

import re
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from klong_rl.types import Limits
from sandboxes.container import container_name, host_config, name_filter, parse_name
from sandboxes.session import Session

LIMITS = Limits(memory_mb=256, cpus=0.5, pids=40, disk_mb=100)


TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
RUNS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@given(RUNS, TEXT, st.integers(0, 10**6), st.sampled_from(["first", "5f2c"]))
def test_a_name_says_whose_the_container_is_and_fits_docker(run, episode, epoch, owner):
    name = container_name(run, episode, epoch, owner)
    assert re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", name)
    assert parse_name(f"/{name}") == (episode, epoch, owner)


@given(RUNS, RUNS, TEXT, TEXT)
def test_the_filter_finds_the_containers_of_one_episode_of_one_run_alone(run, other_run, episode, other):
    for each_run, each in product({run, other_run}, {episode, other}):
        matches = re.search(name_filter(run, episode), "/" + container_name(each_run, each, 7, "5f2c")) is not None
        assert matches == ((each_run, each) == (run, episode))


def test_a_name_of_another_make_belongs_to_no_episode():
    for name in ("/happy_hopper", "", "/klong.a.b.c.d", "/klong-demo-t3-s1-g4-0-2-99a2500b"):
        assert parse_name(name).episode == ""


def test_a_sandbox_is_hardened_and_limited():
    config = host_config(LIMITS, Session(), network="none", runtime=None, disk_quota=False)
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
    config = host_config(LIMITS, Session(), network="none", runtime="runsc", disk_quota=True)
    assert config["Runtime"] == "runsc"
    assert config["StorageOpt"] == {"size": "100m"}
