"""Who holds a container to its disk limit."""

from types import SimpleNamespace

import docker
import pytest

from sandboxes import disk
from sandboxes.container import is_refusal_of_quota
from sandboxes.disk import unenforced_limit


def found(storage_opt):
    return {
        "HostConfig": {
            "StorageOpt": storage_opt,
            "Ulimits": [{"Name": "core", "Hard": 0}, {"Name": "fsize", "Hard": 9}],
        }
    }


def test_a_limit_that_the_driver_enforces_is_not_looked_after():
    assert unenforced_limit(found({"size": "16m"})) is None
    assert unenforced_limit(found(None)) == 9


def test_a_driver_without_limits_is_told_from_other_refusals():
    def refusal(text):
        return docker.errors.APIError("500", SimpleNamespace(status_code=500), explanation=text)

    assert is_refusal_of_quota(
        refusal("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
    )
    assert not is_refusal_of_quota(refusal("no space left on device"))
    assert not is_refusal_of_quota(OSError("storage-opt"))


async def test_a_container_that_is_gone_is_told_as_by_docker_itself(monkeypatch):
    class EmptyDocker:
        """A daemon that has no container by now."""

        def containers(self, **_) -> list:
            return []

    async def ask(use):
        return use(EmptyDocker())

    monkeypatch.setattr(disk, "LOOK_EVERY_S", 0.0)
    watch = disk.DiskWatch("0123456789abcdef", ask)
    watch._limit = 1  # from an earlier look
    with pytest.raises(docker.errors.NotFound, match="no container 0123456789ab"):
        await watch.due()
