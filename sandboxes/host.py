"""The sandboxes of one run on one Docker host: made, or taken from those made ahead, found again, removed.

create ─▶ one of the pool: give it the episode's name ──────────────▶ DockerSandbox
     └──▶ none is ready: wait for a turn, create, start, shell by exec ─▲
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from weakref import WeakSet

import docker

from klong_rl.types import Limits
from sandboxes import container, quota
from sandboxes.base import AgentFailure, HostAway, InfrastructureFailure, TaskFailure
from sandboxes.channel import ChannelLost
from sandboxes.container import EPISODE_LABEL, MAKING, READY, RUN_LABEL, Name, container_name
from sandboxes.daemon import Daemon
from sandboxes.docker_sandbox import AWAY_S, CLOSE_S, DockerSandbox, Place
from sandboxes.egress import containers as egress_containers
from sandboxes.egress.containers import Egress
from sandboxes.gate import Gate
from sandboxes.image import Images, missing_image
from sandboxes.pool import WarmPool
from sandboxes.session import Session, find_session, of_labels
from sandboxes.shell import ATTEMPTS

log = logging.getLogger(__name__)

CREATE_S = AWAY_S + 60.0
LOOK_S = 3.0
COPY_S = AWAY_S + 300.0
UNOWNED_S = 600.0  # from a container's creation to its shell's; well over CREATE_S, and a difference between two clocks


class Kind(NamedTuple):
    """What one sandbox of no episode has in common with another."""

    image: str
    limits: Limits


class Found(NamedTuple):
    """A container of the run, on `host`."""

    host: DockerHost
    id: str
    name: Name
    created: int
    proxy: str = ""  # its id; none without a network
    session: Session = Session()


class Look(NamedTuple):
    """A host at one moment."""

    sandboxes: int  # of any run; those that wait in a pool are not counted
    has_image: bool  # of a snapshot: other images are made or pulled


def is_snapshot(image: str) -> bool:
    """Whether `image` is the id that a snapshot has, which is known to the host that made it alone."""
    return image.startswith("sha256:")


class DockerHost:
    """`hardening` is what `container.host_config` takes; `warm` sandboxes at most are made ahead."""

    def __init__(
        self,
        daemon: Daemon,
        run: str,
        *,
        hardening: dict[str, Any],
        egress: Egress,
        create_concurrency: int,
        warm: int,
    ) -> None:
        self._daemon, self._run, self.where = daemon, run, daemon.where
        self._place = Place(daemon, run, Session(), egress)
        self._hardening = hardening
        self._bounds_disks = True  # as far as is known
        self._gate = Gate(create_concurrency)
        self._images = Images(daemon, egress.via)
        self.opened: WeakSet[DockerSandbox] = WeakSet()
        self.pool: WarmPool[Kind, DockerSandbox] = WarmPool(warm, self._gate, self._make_spare, self._remove_unowned)

    async def create(self, episode: str, epoch: int, image: str, limits: Limits) -> DockerSandbox:
        """See DockerSandboxes."""
        kind, name = Kind(await self.prepare(image), limits), container_name(self._run, episode, epoch)
        while spare := self._take_spare(kind):
            try:
                await spare.hand_out(name)
                return spare
            except BaseException as failure:
                await spare.release()  # without a shell it is nobody's, see container.remove_unowned
                if isinstance(failure, HostAway) or not isinstance(failure, InfrastructureFailure):
                    raise
                log.warning("a sandbox made ahead can't be handed out: %s", failure)
        return await self._make(kind, name)

    async def prepare(self, image: str) -> str:
        """What Docker calls an image here, built or pulled if need be. A snapshot is here or nowhere."""
        return image if is_snapshot(image) else await self._images.ready(image)

    def _take_spare(self, kind: Kind) -> DockerSandbox | None:
        """A snapshot is one episode's: nobody asks for it a second time, so none is made ahead."""
        return None if is_snapshot(kind.image) else self.pool.take(kind)

    async def _make_spare(self, kind: Kind) -> DockerSandbox:
        owner = secrets.token_hex(4)
        spare = await self._make(kind, container_name(self._run, "", MAKING, owner))
        try:
            await spare.hand_out(container_name(self._run, "", READY, owner))
        except BaseException:
            await spare.release()
            raise
        return spare

    async def _make(self, kind: Kind, name: str) -> DockerSandbox:
        """A started container with its shell open, within CREATE_S of its turn among the creations."""
        async with self._gate.turn():
            for _ in range(ATTEMPTS):
                try:
                    return await self._try_to_make(kind, name)
                except ChannelLost as lost:
                    last = lost
            if last.silent:  # an overloaded host, as far as anyone can tell
                raise InfrastructureFailure(f"{name} opened no shell in time: {last}") from last
            who = kind.limits.user or "its user"
            raise TaskFailure(f"image {kind.image} has no shell for {who} that works: {last}") from last

    async def _try_to_make(self, kind: Kind, name: str) -> DockerSandbox:
        try:
            made, shell, proxy, session = await self._daemon.call(
                f"creating {name} from {kind.image}", lambda api: self._create(api, kind, name), deadline_s=CREATE_S
            )
        except docker.errors.ImageNotFound:
            self._images.forget_all()
            raise InfrastructureFailure(missing_image(kind.image, self.where)) from None
        except docker.errors.NotFound as error:
            raise InfrastructureFailure(f"Docker refused creating {name}: {error.explanation}") from error
        sandbox = DockerSandbox(self._place._replace(session=session), made, name, proxy)
        try:
            await sandbox.open(shell)
        except BaseException:
            await sandbox.close()
            raise
        self.opened.add(sandbox)
        return sandbox

    def _create(self, api: docker.APIClient, kind: Kind, name: str) -> tuple[str, Any, str, Session]:
        """The id, a shell, the id of the proxy, and as whom it runs. May be repeated, as its parts."""
        egress, network = self._place.egress, kind.limits.network
        place = self._place._replace(session=find_session(api, kind.image, kind.limits))
        hardening, bounds_disks = self._hardening, self._bounds_disks  # another thread may learn better meanwhile
        proxy = egress_containers.create_proxy(api, egress, name, network) if network else ""
        if proxy:
            hardening = hardening | {"network": container.JOINED + proxy}
        config = container.container_config(
            {RUN_LABEL: self._run} | place.session.labels,
            kind.image,
            container.host_config(kind.limits, place.session, **hardening, disk_quota=bounds_disks),
            egress_containers.environment() if proxy else (),
        )
        try:
            return *container.create(api, name, config, place.shell), proxy, place.session
        except Exception as error:
            if proxy:
                container.remove(api, proxy)
            if not (bounds_disks and container.is_refusal_of_quota(error)):
                raise
        self._bounds_disks = False
        return self._create(api, kind, name)

    async def look(self, image: str) -> Look:
        """How loaded it is. Raises InfrastructureFailure, within LOOK_S, where the daemon doesn't say."""

        def ask(api: docker.APIClient) -> Look:
            listed = api.containers(all=True, filters={"label": RUN_LABEL})
            try:
                has_image = is_snapshot(image) and bool(api.inspect_image(image))
            except docker.errors.NotFound:
                has_image = False
            return Look(sum(bool(container.listed_name(each).episode) for each in listed), has_image)

        return await self._daemon.once("counting sandboxes", ask, deadline_s=LOOK_S)

    async def copy_image(self, image: str, to: DockerHost) -> None:
        """Through this process, layer by layer; what the other host has already is copied in vain."""

        def copy(source: docker.APIClient) -> None:
            to._daemon.use(lambda target: deque(target.load_image(source.get_image(image)), 0), COPY_S)

        await self._daemon.call(f"copying {image} to {to.where}", copy, deadline_s=COPY_S)

    async def containers(self, episode: str | None = None) -> list[Found]:
        """The run's containers here; of one episode, or all, those of no episode included."""
        filters = {"label": f"{RUN_LABEL}={self._run}"}
        if episode is not None:
            filters["name"] = container.name_filter(self._run, episode)
        listed = await self._daemon.call(
            f"listing the containers of run {self._run}",
            lambda api: api.containers(all=True, filters=filters),
            deadline_s=CLOSE_S,
        )
        name, proxy = container.listed_name, container.joined
        return [
            Found(self, each["Id"], name(each), each["Created"], proxy(each), of_labels(each["Labels"]))
            for each in listed
        ]

    async def adopt(self, found: Found) -> DockerSandbox:
        """Become the owner of a container: see `sandboxes.base.SandboxFactory`."""
        name = container_name(self._run, found.name.episode, found.name.epoch, secrets.token_hex(4))
        sandbox = DockerSandbox(self._place._replace(session=found.session), found.id, name, found.proxy)
        try:
            await sandbox.take_over()
        except AgentFailure:
            await sandbox.close()  # nobody can use it, so nobody else would remove it
            raise
        self.opened.add(sandbox)
        return sandbox

    async def remove(self, container_id: str) -> None:
        """Kill and remove a container and its volumes; one that is gone already is fine."""
        await self._daemon.call(
            f"removing {container_id}", lambda api: container.remove(api, container_id), deadline_s=CLOSE_S
        )

    async def remove_egress(self) -> None:
        """Remove the proxies of the run that no sandbox uses; with the last of them, their way out."""

        def remove(api: docker.APIClient) -> None:
            egress_containers.remove_unused(api, self._place.egress, 0.0)
            egress_containers.remove_exits(api, self._place.egress)

        await self._daemon.call(f"removing the proxies of run {self._run}", remove, deadline_s=CLOSE_S)

    async def snapshots(self, episode: str | None = None) -> list[dict[str, Any]]:
        """The run's snapshots here, as `api.images` lists them; of one episode, or all."""
        labels = [f"{RUN_LABEL}={self._run}"] + ([] if episode is None else [f"{EPISODE_LABEL}={episode}"])
        doing, chosen = f"listing the snapshots of run {self._run}", {"label": labels}
        return await self._daemon.call(doing, lambda api: api.images(all=True, filters=chosen), deadline_s=CLOSE_S)

    async def remove_snapshots(self, images: list[dict[str, Any]]) -> int:
        """Remove those of the images that nothing runs from; how many."""
        removed = 0
        for image in container.children_first(images):
            removed += await self._daemon.call(
                f"removing snapshot {image}", lambda api, id=image: container.remove_image(api, id), deadline_s=CLOSE_S
            )
        return removed

    async def make_room(self, needed: Callable[[], Awaitable[set[str]]], most_bytes: int) -> None:
        """See `sandboxes.base.SandboxFactory`, for this host."""
        listed, found = await self._kept()
        if quota.total(found) < most_bytes:
            return
        gone = quota.surplus(found, await needed(), most_bytes, time.time())
        removed = await self.remove_snapshots([image for image in listed if image["Id"] in gone])
        log.warning("removed %d snapshots of run %s on %s for its quota", removed, self._run, self.where)
        taken = quota.total((await self._kept())[1])
        if taken >= most_bytes:
            raise InfrastructureFailure(
                f"the snapshots of run {self._run} on {self.where} take {taken / 1e9:g} GB of sandbox.snapshot_gb="
                f"{most_bytes / 1e9:g}, and unfinished episodes need them: raise it, or lower actors.episodes"
            )

    async def _kept(self) -> tuple[list[dict[str, Any]], list[quota.Kept]]:
        """The run's snapshots as they are listed, and what they take."""
        listed = await self.snapshots()
        images = await self._daemon.call("listing images", lambda api: api.images(all=True), deadline_s=CLOSE_S)
        return listed, quota.kept(listed, images)

    async def _remove_unowned(self) -> None:
        try:
            doing = "looking for sandboxes of dead processes"
            removed = await self._daemon.call(doing, self._find_and_remove_unowned, deadline_s=CLOSE_S)
        except InfrastructureFailure as failure:
            log.warning("looked for no sandboxes of dead processes: %s", failure)
            return
        if removed:
            log.warning("removed %d sandboxes that a process which is gone had made ahead", len(removed))

    def _find_and_remove_unowned(self, api: docker.APIClient) -> list[str]:
        removed = container.remove_unowned(api, self._run, UNOWNED_S)
        egress_containers.remove_unused(api, self._place.egress, UNOWNED_S)
        return removed

    async def close(self) -> None:
        """Remove what was made ahead, and let go of the daemon."""
        await self.pool.close()
        self._daemon.close()
