"""What Docker adds: the hardening seen from inside, restarts, adoption across processes, clear errors."""

import asyncio
import gc
import os
import subprocess
import sys
import uuid

import docker
import pytest

from klong_rl.failures import AgentFailure, InfrastructureFailure
from klong_rl.types import Limits
from sandboxes import container, disk
from sandboxes.base import Adopted, HostAway
from sandboxes.docker import DockerSandboxes, preflight
from sandboxes.docker_sandbox import ShellStream
from sandboxes.executor import COMMAND
from sandboxes.stream import Attached

pytestmark = pytest.mark.integration

IMAGE = "klong-sandbox"
LIMITS = Limits(memory_mb=64, pids=32, disk_mb=16)
NOWHERE = "unix:///nowhere/docker.sock"


@pytest.fixture
async def factory():
    made = DockerSandboxes(f"test-{uuid.uuid4().hex[:8]}")
    yield made
    await made.reap(keep=set())
    await made.close()


@pytest.fixture
async def sandbox(factory):
    return await factory.create("e", 1, IMAGE, LIMITS)


@pytest.fixture
def client():
    made = docker.DockerClient.from_env()
    yield made
    made.close()


async def run(sandbox, command, timeout_s=20.0):
    return await sandbox.exec(command, timeout_s=timeout_s)


def containers(client, factory):
    return client.containers.list(all=True, filters={"label": f"klong.run={factory.run}"})


async def test_inside_there_is_no_root_no_capability_and_no_network(sandbox):
    assert (await run(sandbox, "id -un; pwd; ls /sys/class/net")).output == "agent\n/work\nlo\n"
    status = (await run(sandbox, "grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status | tr -d '\\t'")).output
    assert set(status.split()) == {"CapBnd:0000000000000000", "CapEff:0000000000000000", "NoNewPrivs:1"}
    assert (await run(sandbox, "touch /etc/x")).exit_code != 0


async def test_nobody_writes_to_a_system_path_unless_the_task_allows_it(factory, client):
    for episode, limits, exit_code in (("closed", LIMITS, 1), ("open", Limits(read_only=()), 0)):
        sandbox = await factory.create(episode, 1, IMAGE, limits)
        touched = client.containers.get(sandbox.name).exec_run(["touch", "/usr/bin/x", "/etc/x"], user="root")
        assert touched.exit_code == exit_code, touched.output


async def test_limits_hold_and_the_sandbox_outlives_them(sandbox):
    memory = await run(sandbox, "head -c 200M /dev/zero | tail -c 200M | wc -c")
    assert memory.exit_code is None or memory.output.strip() != str(200 << 20)
    big = await run(sandbox, "head -c 32M /dev/zero > big; wc -c < big")
    assert big.output.strip().splitlines()[-1] == str(16 << 20)
    assert (await run(sandbox, "echo here")).output == "here\n"


async def test_files_over_the_disk_limit_end_the_command_and_are_the_agents_failure(sandbox, client, monkeypatch):
    monkeypatch.setattr(disk, "LOOK_EVERY_S", 0.5)
    sandbox._disk = sandbox._watch_disk()
    fill = "i=0; while true; do head -c 4M /dev/zero > $i; i=$((i + 1)); sleep 0.2; done"
    with pytest.raises(AgentFailure, match=r"holds (1[6-9]|[2-9]\d) MB.*disk_mb.* 16"):
        await run(sandbox, fill)
    written = client.api.containers(size=True, filters={"name": sandbox.name})[0]["SizeRw"]
    await asyncio.sleep(1)
    assert client.api.containers(size=True, filters={"name": sandbox.name})[0]["SizeRw"] == written
    await asyncio.sleep(0.5)
    with pytest.raises(AgentFailure, match="MB"):
        await run(sandbox, "echo not reached > /work/reached")
    assert await sandbox.read("0") == bytes(1 << 20)
    with pytest.raises(FileNotFoundError):
        await sandbox.read("reached")


async def test_a_sandbox_full_of_processes_comes_back_with_its_files(sandbox):
    await run(sandbox, "echo text > file; export A=kept")
    await run(sandbox, "for i in $(seq 60); do sleep 4400 & done", timeout_s=5)
    # Without a process to spare the shell can run nothing; it dies, and the sandbox is restarted, at the latest when
    # files are asked for.
    assert await sandbox.read("file") == b"text\n"
    assert (await run(sandbox, "echo $A; kill -9 -1")).exit_code is None
    assert (await run(sandbox, "cat file; echo $A")).output == "text\nkept\n"


@pytest.mark.parametrize("command", ["kill -9 -1", "kill -9 $$; sleep 60"])
async def test_the_agent_can_kill_all_it_sees_and_goes_on_with_its_files(sandbox, command):
    await run(sandbox, "mkdir here && cd here && export A=kept && echo text > file")
    result = await run(sandbox, command)
    assert result.exit_code is None and not result.timed_out and not result.interrupted
    assert (await run(sandbox, "pwd; echo $A; cat file")).output == "/work/here\nkept\ntext\n"


async def test_the_agent_cannot_stop_its_container(sandbox, client):
    started = client.containers.get(sandbox.name).attrs["State"]["StartedAt"]
    await run(sandbox, "for signal in TERM KILL STOP; do kill -s $signal 1 $(pgrep -x sleep) -1; done", timeout_s=2)
    assert (await run(sandbox, "echo here")).output == "here\n"
    state = client.containers.get(sandbox.name).attrs["State"]
    assert state["Running"] and state["StartedAt"] == started


async def test_a_container_that_was_stopped_is_started_again_by_its_owner_and_by_adoption(factory, sandbox, client):
    await run(sandbox, "export A=kept")
    client.containers.get(sandbox.name).kill()
    assert (await run(sandbox, "echo $A")).output == "kept\n"
    client.containers.get(sandbox.name).kill()
    adopted = await factory.adopt("e")
    assert (await run(adopted, "echo $A")).output == "kept\n"


async def test_a_container_that_is_gone_is_an_infrastructure_failure(sandbox, client):
    client.containers.get(sandbox.name).remove(force=True)
    with pytest.raises(InfrastructureFailure, match=f"{sandbox.name}.* gone"):
        await run(sandbox, "true")


ADOPT = """
import asyncio, sys
from sandboxes.docker import DockerSandboxes

async def main():
    factory = DockerSandboxes(sys.argv[1])
    sandbox = await factory.adopt("e")
    print((await sandbox.exec("cat /work/file; echo $A; pwd", timeout_s=10)).output)

asyncio.run(main())
"""


async def test_another_process_adopts_the_newest_container_of_an_episode(factory, sandbox):
    await run(sandbox, "echo old > file")
    newer = await factory.create("e", 2, IMAGE, LIMITS)
    await run(newer, "export A=kept; echo new > file; cd /tmp")
    other = subprocess.run(
        [sys.executable, "-c", ADOPT, factory.run], capture_output=True, text=True, timeout=60, check=True
    )
    assert other.stdout.split() == ["new", "kept", "/tmp"]


async def test_a_shell_that_an_earlier_owner_asked_for_before_and_got_after_the_adoption_is_not_used(
    factory, sandbox, client
):
    shell = sandbox._place.shell
    made = client.api.exec_create(sandbox.name, COMMAND, stdin=True, user="agent", environment=shell.environment)
    adopted = await factory.adopt("e")
    running = asyncio.create_task(run(adopted, "sleep 1; echo done"))
    late = Attached(client.api.exec_start(made["Id"], socket=True), made["Id"], token="")
    with pytest.raises(Adopted, match="another owner"):
        await sandbox._take(ShellStream(late))
    assert (await running).output == "done\n"


async def test_reap_keeps_the_newest_container_of_an_episode_alone(factory, sandbox, client):
    newer = await factory.create("e", 2, IMAGE, LIMITS)
    await factory.create("other", 1, IMAGE, LIMITS)
    assert await factory.reap(keep={"e"}) == ["other"]
    assert [container.name for container in containers(client, factory)] == [newer.name]
    assert (await run(newer, "echo here")).output == "here\n"


async def test_a_container_that_cannot_be_started_is_no_hang_to_its_adopter(factory, client):
    name, labels = container.container_name(factory.run, "e", 1), {"klong.run": factory.run}
    client.containers.create(IMAGE, ["no-such-program"], name=name, labels=labels, network_mode="none")
    with pytest.raises(InfrastructureFailure, match="restarting.*no-such-program"):
        await factory.adopt("e")


async def test_a_sandbox_whose_shell_the_agent_broke_for_good_is_the_agents_failure(factory, client):
    sandbox = await factory.create("e", 1, IMAGE, Limits(read_only=()))
    client.containers.get(sandbox.name).exec_run(["rm", "/usr/bin/base64"], user="root")
    with pytest.raises(AgentFailure, match="needs timeout, base64"):
        await factory.adopt("e")
    assert containers(client, factory) == []


async def test_a_snapshot_in_use_stays_until_it_is_not(factory, sandbox):
    image = await sandbox.snapshot(uuid.uuid4().hex)
    await sandbox.close()
    user = await factory.create("user", 1, image, LIMITS)
    assert await factory.forget_snapshots("e") == 0
    await user.close()
    assert await factory.forget_snapshots("e") == 1


async def test_creating_the_same_epoch_again_replaces_what_a_lost_creation_left(factory, sandbox, client):
    await run(sandbox, "echo old > file")
    again = await factory.create("e", 1, IMAGE, LIMITS)
    assert (await run(again, "ls")).output == ""
    assert len(containers(client, factory)) == 1


async def test_reap_leaves_other_runs_and_strangers_alone_and_close_leaves_nothing(factory, sandbox, client):
    other = DockerSandboxes(factory.run + "-other")
    theirs = await other.create("e", 1, IMAGE, LIMITS)
    stranger = client.containers.create(IMAGE, "true")
    try:
        assert await factory.reap(keep=set()) == ["e"]
        assert containers(client, factory) == []
        assert (await run(theirs, "echo here")).output == "here\n"
        stranger.reload()
        await theirs.close()
        assert containers(client, other) == []
    finally:
        stranger.remove()
        await other.reap(keep=set())
        await other.close()


async def test_closed_sandboxes_leave_no_open_file_behind(factory):
    open_files = []
    for epoch in range(3):
        made = [await factory.create(f"e{index}", epoch, IMAGE, LIMITS) for index in range(3)]
        await run(made[0], "kill -9 -1")
        for sandbox in made:
            await sandbox.close()
        gc.collect()  # a traceback may hold a stream that was closed while it was waited for
        open_files.append(len(os.listdir("/proc/self/fd")))
    assert open_files[1] == open_files[2]


async def test_an_unreachable_daemon_is_named_with_its_remedy():
    async with asyncio.timeout(3):  # at once: nobody is there to start it again
        with pytest.raises(HostAway, match=r"(?s)/nowhere/docker.sock.*systemctl start docker") as failure:
            await preflight(IMAGE, [NOWHERE])
    assert "\n" not in str(failure.value)


async def test_a_command_whose_owner_is_gone_goes_on_to_its_timeout_and_no_further(sandbox, client):
    def runs():
        return any("sleep 4800" in " ".join(row) for row in client.api.top(sandbox.name)["Processes"])

    running = asyncio.create_task(run(sandbox, "sleep 4800 & sleep 4800", timeout_s=2))
    await asyncio.sleep(0.5)
    running.cancel()
    await sandbox.release()
    await asyncio.sleep(0.5)
    assert runs()
    async with asyncio.timeout(15):
        while runs():
            await asyncio.sleep(0.5)
