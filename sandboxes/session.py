"""As whom, and where, the commands of a sandbox run: what its limits say, or what its image does.

A container's own user and directory are its main process's, and a snapshot has those. So where they aren't the usual
ones they are in its labels, which a snapshot keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import docker

from klong_rl.types import Limits
from sandboxes.base import TaskFailure
from sandboxes.supervisor import Paths

USER_LABEL, WORKDIR_LABEL = "klong.user", "klong.workdir"
ROOT = ("", "0", "root")
# Docker's own set for root, but for raw sockets, devices and the audit log.
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID",
    "SYS_CHROOT",
)  # fmt: skip


class Session(NamedTuple):
    user: str = Limits().user
    workdir: str = Limits().workdir

    @property
    def is_root(self) -> bool:
        return self.user.partition(":")[0] in ROOT

    @property
    def labels(self) -> dict[str, str]:
        """None for the usual session."""
        return {} if self == Session() else {USER_LABEL: self.user, WORKDIR_LABEL: self.workdir}

    @property
    def rights(self) -> dict[str, Any]:
        """Of Docker's HostConfig. Who is root already gains nothing by new privileges."""
        if self.is_root:
            return {"CapDrop": ["ALL"], "CapAdd": list(CAPABILITIES)}
        return {"CapDrop": ["ALL"], "SecurityOpt": ["no-new-privileges"]}


def of_labels(labels: Mapping[str, str] | None) -> Session:
    """Of a container, or of a snapshot of one."""
    labels = labels or {}
    return Session(labels.get(USER_LABEL, Session().user), labels.get(WORKDIR_LABEL, Session().workdir))


def find_session(api: docker.APIClient, image: str, limits: Limits) -> Session:
    """Of a new container. Raises TaskFailure for a working directory that can't be one. May be repeated."""
    if limits.user and limits.workdir:
        return _checked(Session(limits.user, limits.workdir), image)
    config = api.inspect_image(image)["Config"]
    labels = config.get("Labels") or {}
    if USER_LABEL in labels:
        return of_labels(labels)
    user = limits.user or config.get("User") or "root"
    return _checked(Session(user, limits.workdir or config.get("WorkingDir") or "/"), image)


def _checked(session: Session, image: str) -> Session:
    try:
        Paths(session.workdir, "/tmp", "/tmp").check()
    except ValueError as error:
        raise TaskFailure(f"image {image}: its working directory can't be used: {error}") from error
    return session
