"""The containers that give a sandbox its way out, found again by label and name, and removed with it.

    sandbox ─ shares the network namespace of ─▶ proxy, one a sandbox, no network ─ socket in a volume ─▶ exit, one a
                                                                                    run and host, on a Docker network

No Docker network is made, of which a host has about thirty: the exit joins one that is there. The sandbox joins the
proxy's namespace and not the other way round, so that a restart of the sandbox leaves the proxy where it listens.

A proxy is called as its sandbox is, but for the first word, so its name says whose log it keeps; its label, and that of
the exit and the volume, says the run. The functions that take an `api` run in `Daemon.call`, and may be repeated.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import docker

from klong_rl.types import Network
from sandboxes import container
from sandboxes.base import InfrastructureFailure, TaskFailure
from sandboxes.container import RUN_LABEL
from sandboxes.egress import proxy
from sandboxes.egress.rules import Rules

EGRESS_LABEL = "klong.egress"  # its value: the run
PROXY, EXIT = "klong-proxy", "klong-exit"  # first words of their names; `klong` is a sandbox's
SHARED = "/run/klong"
CODE = "/opt/klong"
# A program that dies runs again in the same network namespace, which a restart of its container would not keep.
AGAIN = """trap 'kill -TERM $!; wait $!; exit 0' TERM; while :; do "$0" "$@" & wait $!; sleep 0.1; done"""
LISTENS_S, LOOK_EVERY_S = 30.0, 0.05
STOP_S = 5
PACKAGE = Path(__file__).parent.parent
MODULES = ("__init__.py", "egress/__init__.py", "egress/rules.py", "egress/proxy.py", "egress/exit.py")


class Egress(NamedTuple):
    """What all ways out of a run have in common.

    `image` has python3. `via` is the Docker network that leads out. `ranges` are reachable though not public, `dns` are
    servers in place of the host's. `logs` is the folder that the log of each sandbox goes to, `logs/EPISODE/ID.jsonl`;
    none: they are lost with the sandbox.
    """

    run: str
    image: str = "klong-net"
    via: str = "bridge"
    ranges: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    logs: str = ""

    @property
    def label(self) -> str:
        return f"{EGRESS_LABEL}={self.run}"


def environment() -> list[str]:
    """What tells programs in the sandbox of the proxy; both spellings are in use."""
    url, local = f"http://127.0.0.1:{proxy.PORT}", "localhost,127.0.0.1,::1"
    named = {"http_proxy": url, "https_proxy": url, "no_proxy": local}
    return [f"{name}={value}" for key, value in named.items() for name in (key, key.upper())]


def proxy_name(sandbox: str) -> str:
    """
    >>> proxy_name("klong.demo.e.1.first")
    'klong-proxy.demo.e.1.first'
    """
    return PROXY + sandbox.removeprefix("klong")


def create_proxy(api: docker.APIClient, egress: Egress, sandbox: str, network: Network) -> str:
    """A proxy that listens, for the sandbox of that name; its id.

    Raises TaskFailure where `network` is none that can be read. May be repeated: what an earlier call left is replaced.
    """
    try:
        Rules(network.allow, network.block)
    except ValueError as error:
        raise TaskFailure(f"the task's network: {error}") from error
    shared = _open_exit(api, egress)
    asked = {"socket": f"{SHARED}/exit", "allow": network.allow, "block": network.block}
    config = _config(egress, "proxy", asked, f"{shared}:{SHARED}:ro", memory_mb=128, log_mb=64)
    config["User"] = container.MAIN_USER
    config["HostConfig"]["NetworkMode"] = "none"
    name = proxy_name(sandbox)
    try:
        made = _create(api, egress, name, config)
    except docker.errors.APIError as error:
        if error.status_code != 409:
            raise
        container.remove(api, name)
        made = _create(api, egress, name, config)
    try:
        start_proxy(api, made)
    except Exception:
        container.remove(api, made)
        raise
    return made


def start_proxy(api: docker.APIClient, made: str) -> None:
    """Start it unless it runs, before the sandbox that joins it: Docker asks for that order. May be repeated."""
    if api.inspect_container(made)["State"]["Running"]:
        return
    before = _listened(api, made)
    _start(api, made)
    give_up = time.monotonic() + LISTENS_S
    while _listened(api, made) == before:
        if time.monotonic() > give_up:
            said = api.logs(made, stdout=False, stderr=True).decode(errors="replace")[-500:]
            raise InfrastructureFailure(f"the proxy of a sandbox did not listen within {LISTENS_S:g} s: {said}")
        time.sleep(LOOK_EVERY_S)


def _listened(api: docker.APIClient, made: str) -> int:
    """How many times its program has begun to listen."""
    return api.logs(made, stdout=False, stderr=True).count(b"listening")


def _open_exit(api: docker.APIClient, egress: Egress) -> str:
    """Start the run's exit unless it runs; the name of the volume that holds its socket."""
    name = f"{EXIT}.{container.word(egress.run)}.{_digest(egress)}"
    give_up = time.monotonic() + LISTENS_S
    while time.monotonic() < give_up:
        try:
            running = api.inspect_container(name)["State"]["Running"]
        except docker.errors.NotFound:
            _make_exit(api, egress, name)
            continue
        if not running:
            _start(api, name)
        return name
    raise InfrastructureFailure(f"the way out {name} was not made within {LISTENS_S:g} s")


def _make_exit(api: docker.APIClient, egress: Egress, name: str) -> None:
    """Create it, unless someone else does at this moment: then its name is taken before it can be found."""
    api.create_volume(name, labels={EGRESS_LABEL: egress.run})
    asked = {"socket": f"{SHARED}/exit", "ranges": egress.ranges}
    config = _config(egress, "exit", asked, f"{name}:{SHARED}", memory_mb=256, log_mb=1)
    config["User"] = "0:0"  # of the volume, with no capability
    config["HostConfig"] |= {"NetworkMode": egress.via, "Dns": list(egress.dns), "RestartPolicy": {"Name": "always"}}
    try:
        _create(api, egress, name, config)
    except docker.errors.APIError as error:
        if error.status_code != 409:
            raise
        time.sleep(LOOK_EVERY_S)


def _create(api: docker.APIClient, egress: Egress, name: str, config: dict[str, Any]) -> str:
    """The id of a new container."""
    try:
        return api.create_container_from_config(config, name)["Id"]
    except docker.errors.ImageNotFound:
        raise InfrastructureFailure(
            f"a task asks for a network, and there is no image {egress.image!r} for its proxy: make it with "
            "`make image-net`, or name one that has python3 in sandbox.egress.image"
        ) from None


def _start(api: docker.APIClient, made: str) -> None:
    """With the programs in it: whoever created it may have died before it put them there. May be repeated."""
    api.put_archive(made, "/", _programs())
    api.start(made)


def _config(
    egress: Egress, program: str, asked: dict[str, Any], bind: str, *, memory_mb: int, log_mb: int
) -> dict[str, Any]:
    return {
        "Image": egress.image,
        "Entrypoint": [],
        "Cmd": ["sh", "-c", AGAIN, "python3", "-B", "-m", f"sandboxes.egress.{program}", json.dumps(asked)],
        "Env": [f"PYTHONPATH={CODE}"],
        "WorkingDir": "/",
        "Labels": {EGRESS_LABEL: egress.run},
        "HostConfig": {
            "Binds": [bind],
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Init": True,
            "Memory": memory_mb << 20,
            "MemorySwap": memory_mb << 20,
            "PidsLimit": 64,
            "LogConfig": {"Type": "json-file", "Config": {"max-size": f"{log_mb}m", "max-file": "1"}},
        },
    }


def _programs() -> bytes:
    """A tar file of the programs, as they are imported."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for module in MODULES:
            data = (PACKAGE / module).read_bytes()
            entry = tarfile.TarInfo(f"{CODE}/sandboxes/{module}".removeprefix("/"))
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _digest(egress: Egress) -> str:
    """Of what an exit is made of: one of an earlier launch, with other programs or settings, isn't used."""
    made_of = [egress.image, egress.via, *egress.ranges, "", *egress.dns]
    return hashlib.blake2b(_programs() + "\n".join(made_of).encode(), digest_size=4).hexdigest()


def remove_proxies(api: docker.APIClient, egress: Egress, proxies: Sequence[str]) -> int:
    """Remove those of the proxies, by id, that no sandbox uses, their logs kept; how many."""
    sandboxes = api.containers(all=True, filters={"label": f"{RUN_LABEL}={egress.run}"})
    unused = set(proxies) - {container.joined(each) for each in sandboxes}
    return sum(_remove_proxy(api, egress, each) for each in sorted(unused))


def _remove_proxy(api: docker.APIClient, egress: Egress, made: str) -> bool:
    try:
        api.stop(made, timeout=STOP_S)  # what is under way is logged
        name = api.inspect_container(made)["Name"].removeprefix("/")
        if egress.logs:
            _keep_log(api, egress.logs, made, container.parse_name(name.replace(PROXY, "klong", 1)).episode)
    except docker.errors.NotFound:  # an earlier call, or another process, was quicker
        return False
    container.remove(api, made)
    return True


def _keep_log(api: docker.APIClient, logs: str, made: str, episode: str) -> None:
    """Write its requests to a file; nothing where there was none, as of a proxy that no episode was given."""
    folder = Path(logs, container.word(episode))
    partial, path = folder / f".{made[:12]}.jsonl", folder / f"{made[:12]}.jsonl"
    lines = _lines(api.logs(made, stdout=True, stderr=False, stream=True))
    first = next(lines, None)
    if first is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with partial.open("w") as file:
        for line in itertools.chain((first,), lines):
            file.write(json.dumps({"episode": episode, **json.loads(line)}) + "\n")
    os.replace(partial, path)


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Whole lines of a stream."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def remove_unused(api: docker.APIClient, egress: Egress, made_within_s: float) -> int:
    """Remove the run's proxies that no sandbox uses; how many. A younger one may be about to get its sandbox."""
    listed = [each for each in _containers(api, egress) if _is_proxy(each)]
    made_before = time.time() - made_within_s
    return remove_proxies(api, egress, [each["Id"] for each in listed if each["Created"] <= made_before])


def remove_exits(api: docker.APIClient, egress: Egress) -> None:
    """Remove the run's exits and their volumes, if no proxy is left."""
    listed = _containers(api, egress)
    if any(_is_proxy(each) for each in listed):
        return
    for each in listed:
        container.remove(api, each["Id"])
    for volume in api.volumes(filters={"label": egress.label})["Volumes"] or ():
        try:
            api.remove_volume(volume["Name"])
        except docker.errors.NotFound:
            continue


def _containers(api: docker.APIClient, egress: Egress) -> list[dict[str, Any]]:
    return api.containers(all=True, filters={"label": egress.label})


def _is_proxy(listed: dict[str, Any]) -> bool:
    return any(name.startswith(f"/{PROXY}.") for name in listed["Names"] or ())
