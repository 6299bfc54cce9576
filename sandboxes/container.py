"""What is asked of Docker: names, labels, hardening, and the calls that make, find, restart and keep a container.

A container's label says which run it belongs to, and its name the rest: episode, epoch and owner. Docker can give a
container another name but no other labels, and one that was made ahead has no episode until it is handed out. Images,
which have no such names, carry run, episode and epoch as labels.

The main process of a container only sleeps, under Docker's init and a user of its own, so that no signal of the agent's
reaches either. Hence a container that stopped was stopped from outside; whatever an agent kills, its container and its
other processes go on. The supervising shells, and through them all commands, enter by exec.

The functions that take an `api` run in `Daemon.call`, which runs them again from the start when the daemon went away in
the middle; each says why it may be.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

import docker

from klong_rl.failures import TaskFailure
from klong_rl.types import Limits
from sandboxes.executor import COMMAND
from sandboxes.session import Session
from sandboxes.stream import Attached

RUN_LABEL, EPISODE_LABEL, EPOCH_LABEL = "klong.run", "klong.episode", "klong.epoch"
JOINED = "container:"  # a network mode: the network namespace of another container, named by its id
MAIN_PROCESS = ["sleep", "2147483647"]  # 68 years: not every `sleep` knows `infinity`
CANNOT_RUN = (126, 127)  # exit codes, of Docker's init as of a shell
NOTICE_S = 0.5  # what Docker may take to see that a container has stopped: its shells are gone before that
MAIN_USER = "65533:65533"  # nobody's
MAKING, READY = 0, 1  # in place of the epoch of a container that has no episode
SNAPSHOT_REPOSITORY = "klong-snapshot"
# Docker's own list, which one that is given replaces.
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


class Name(NamedTuple):
    """What a container's name says.

    `episode` is empty as long as the container waits in a pool: `epoch` is MAKING then, and READY once its shell is
    open.
    """

    episode: str
    epoch: int
    owner: str


def container_name(run: str, episode: str, epoch: int, owner: str = "first") -> str:
    """Unique per run, episode, epoch and owner, whatever characters they hold, and readable where Docker allows.

    >>> container_name("demo", "t3-s1-g4-0", 2), container_name("demo", "a b", 1, "5f2c")
    ('klong.demo.t3-s1-g4-0.2.first', 'klong.demo.a_20b.1.5f2c')
    """
    return f"{_prefix(run, episode)}{epoch}.{owner}"


def name_filter(run: str, episode: str) -> str:
    """Docker's filter for the containers of an episode, any epoch and owner: a regular expression."""
    return f"^/?{re.escape(_prefix(run, episode))}"


def parse_name(name: str) -> Name:
    """What `container_name` said, of a container's name as Docker lists it.

    >>> parse_name("/klong.demo.a_20b.1.5f2c")
    Name(episode='a b', epoch=1, owner='5f2c')

    Whatever else has the label of a run belongs to no episode:

    >>> parse_name("/happy_hopper")
    Name(episode='', epoch=0, owner='')
    """
    parts = name.removeprefix("/").split(".")
    if len(parts) != 5 or parts[0] != "klong" or not parts[3].isdecimal():
        return Name("", 0, "")
    return Name(unquote(parts[2].replace("_", "%")), int(parts[3]), parts[4])


def listed_name(listed: dict[str, Any]) -> Name:
    """The name of a container as `api.containers` lists it: one that is being removed may have none."""
    return parse_name((listed["Names"] or [""])[0])


def _prefix(run: str, episode: str) -> str:
    return f"klong.{word(run)}.{word(episode)}."


def word(text: str) -> str:
    """Letters, digits and `-` as they are, each other byte as `_` and two digits: so no word holds a dot."""
    return re.sub(rb"[^A-Za-z0-9-]", lambda match: b"_%02X" % match[0][0], text.encode()).decode()


def host_config(
    limits: Limits, session: Session, *, network: str, runtime: str | None, disk_quota: bool
) -> dict[str, Any]:
    """Docker's HostConfig: what the docstring of sandboxes.docker calls hardening."""
    disk_bytes = limits.disk_mb << 20
    return {
        "NetworkMode": network,
        **session.rights,
        "Init": True,  # reaps what commands leave behind
        "Memory": limits.memory_mb << 20,
        "MemorySwap": limits.memory_mb << 20,  # memory and swap together: so, no swap
        "NanoCpus": int(limits.cpus * 1e9),
        "PidsLimit": limits.pids,
        "Ulimits": [
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "fsize", "Soft": disk_bytes, "Hard": disk_bytes},
            {"Name": "nofile", "Soft": limits.open_files, "Hard": limits.open_files},
        ],
        "ReadonlyPaths": [*READ_ONLY, *limits.read_only],
        "LogConfig": {"Type": "none"},  # nothing is printed but through execs, and json-file costs 40 ms a start
        **({"StorageOpt": {"size": f"{limits.disk_mb}m"}} if disk_quota else {}),
        **({"Runtime": runtime} if runtime else {}),
    }


def is_refusal_of_quota(error: Exception) -> bool:
    """Whether the daemon says that its storage driver bounds no container's files."""
    return isinstance(error, docker.errors.APIError) and "storage-opt" in str(error.explanation).lower()


def container_config(
    labels: dict[str, str], image: str, host: dict[str, Any], environment: Sequence[str] = ()
) -> dict[str, Any]:
    """Docker's container Config. `environment` is of NAME=VALUE."""
    return {
        "Image": image,
        "Cmd": MAIN_PROCESS,
        "Entrypoint": [],
        "User": MAIN_USER,
        "Env": list(environment),
        "WorkingDir": "/",  # the agent's own may be closed to others
        "StopSignal": "SIGKILL",  # there is nothing to say goodbye to
        "Labels": labels,
        "HostConfig": host,
    }


class Shell(NamedTuple):
    """What enters a container by exec."""

    user: str
    environment: dict[str, str]  # beside the image's


def create(api: docker.APIClient, name: str, config: dict[str, Any], shell: Shell) -> tuple[str, Attached]:
    """Create and start a container; its id and a shell in it. Nothing is left where that fails.

    Raises TaskFailure where the image has not even what the main process takes.
    May be repeated: nobody knows of the container before this returns, so one with its name is what an earlier call
    left, and is replaced.
    """
    try:
        made = api.create_container_from_config(config, name)
    except docker.errors.APIError as error:
        if error.status_code != 409:
            raise
        remove(api, name)
        made = api.create_container_from_config(config, name)
    try:
        api.start(name)
        return made["Id"], open_shell(api, name, shell)
    except Exception as error:
        state = api.inspect_container(name)["State"]
        remove(api, name)
        if state["ExitCode"] in CANNOT_RUN and not state["Running"]:
            raise TaskFailure(f"image {config['Image']} can't run {' '.join(MAIN_PROCESS)}: it needs sleep") from error
        raise


def open_shell(api: docker.APIClient, name: str, shell: Shell) -> Attached:
    """A new shell. May be repeated: a shell whose socket is lost reads the end of its input and ends."""
    token = secrets.token_hex(8)
    variables = {**shell.environment, "klong_token": token}
    made = api.exec_create(name, COMMAND, stdin=True, user=shell.user, environment=variables)
    return Attached(api.exec_start(made["Id"], socket=True), made["Id"], token)


def restart(api: docker.APIClient, name: str, shell: Shell) -> tuple[Attached, bool]:
    """End all processes and start the container again; a shell, and whether the container had stopped.

    May be repeated: nothing runs yet that a second restart would end.
    """
    until = time.monotonic() + NOTICE_S
    while (running := api.inspect_container(name)["State"]["Running"]) and time.monotonic() < until:
        time.sleep(NOTICE_S / 10)
    api.restart(name, timeout=0)
    return open_shell(api, name, shell), not running


def joined(found: dict[str, Any]) -> str:
    """The id of the container whose network namespace one joins, "" for none; as Docker lists or inspects it."""
    mode = found["HostConfig"]["NetworkMode"]
    return mode.removeprefix(JOINED) if mode.startswith(JOINED) else ""


def rename(api: docker.APIClient, container: str, name: str) -> None:
    """May be repeated: Docker refuses to give a container the name that it has, so that is looked up first."""
    if api.inspect_container(container)["Name"] != f"/{name}":
        api.rename(container, name)


def hand_out(api: docker.APIClient, container: str, name: str) -> None:
    """Name a container after the episode that gets it, in place of what an earlier creation of the same name left.

    May be repeated, as `rename` and `remove`.
    """
    try:
        rename(api, container, name)
    except docker.errors.APIError as error:
        if error.status_code != 409:
            raise
        remove(api, name)
        rename(api, container, name)


def remove(api: docker.APIClient, container: str) -> None:
    """Kill and remove a container with its volumes. May be repeated: one that is gone, or is being removed, is fine."""
    try:
        try:
            api.remove_container(container, force=True, v=True)
        except docker.errors.APIError as error:
            if error.status_code != 409:  # of an earlier call
                raise
            api.wait(container, condition="removed")
    except docker.errors.NotFound:
        return


def commit(api: docker.APIClient, name: str, tag: str, labels: dict[str, str]) -> str:
    """The id of an image of the container. May be repeated: the tag moves, and labels find the image without one."""
    return api.commit(name, repository=SNAPSHOT_REPOSITORY, tag=tag, conf={"Labels": labels})["Id"]


def remove_image(api: docker.APIClient, image: str) -> bool:
    """Remove an image with its tags; False where a container runs from it, or another image builds on it.

    May be repeated: one that is gone is fine.
    """
    try:
        api.remove_image(image, force=True, noprune=True)  # a parent may be wanted
    except docker.errors.NotFound:
        return True
    except docker.errors.APIError as error:
        if error.status_code != 409:
            raise
        return False
    return True


def remove_unowned(api: docker.APIClient, run: str, made_within_s: float) -> list[str]:
    """Remove the containers of a pool whose process is gone; their names.

    A pool holds a shell open in each container that is ready, and the daemon ends a shell whose connection is gone. So
    one that has none is nobody's, and so is one that isn't ready `made_within_s` after it was created. It is removed by
    the name that it has as long as it waits: should it be handed out in this moment, it stays. May be repeated.
    """
    waiting = api.containers(all=True, filters={"label": f"{RUN_LABEL}={run}", "name": name_filter(run, "")})
    made_before = time.time() - made_within_s
    done = [each for each in waiting if listed_name(each).epoch == READY or each["Created"] < made_before]
    names = [name for each in done for name in each["Names"] or ()]
    removed = []
    for name in names:
        name = name.removeprefix("/")
        try:
            has_shell = api.inspect_container(name)["ExecIDs"]
        except docker.errors.NotFound:  # handed out meanwhile
            continue
        if not has_shell:
            remove(api, name)
            removed.append(name)
    return removed


def children_first(images: list[dict[str, Any]]) -> list[str]:
    """The ids of images, as `api.images` lists them, in an order in which Docker agrees to remove them.

    >>> children_first([{"Id": "a", "ParentId": "base"}, {"Id": "c", "ParentId": "b"}, {"Id": "b", "ParentId": "a"}])
    ['c', 'b', 'a']
    """
    parent = {image["Id"]: image["ParentId"] for image in images}

    def depth(image: str) -> int:
        return 1 + depth(parent[image]) if image in parent else 0

    return sorted(parent, key=depth, reverse=True)
