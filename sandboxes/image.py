"""The image that a task names, ready on a host: a tag, or a folder with a Dockerfile.

    "klong-sandbox"              there; else pulled, if a registry answers
    "dockerfile:/tasks/paper"    built as klong-image:DIGEST, once for the same content; the path is absolute
    "sha256:..."                 a snapshot's id, which nobody makes here

DIGEST is of what the build is given: the folder but for what its .dockerignore names, with paths, contents, links and
the right to execute, whoever owns the files and whenever they were written. Builds are Docker's own classic builder's,
one at a time on a host for all processes of this machine, since one build takes more of a daemon than ten sandboxes.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import re
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import docker
from docker.utils.build import exclude_paths

from sandboxes.base import InfrastructureFailure, TaskFailure
from sandboxes.daemon import Daemon, Refused

log = logging.getLogger(__name__)

DOCKERFILE = "dockerfile:"
REPOSITORY = "klong-image"
BUILD_S, PULL_S = 3600.0, 1800.0
LOCK_EVERY_S = 0.5
NO_SUCH_TAG = "manifest unknown"  # a registry's answer; a repository that it won't show may want a login instead
LOG_CHARS = 2000  # of a failed build, its end
# A build that fails with one of these fails for the host or its network, not for its Dockerfile.
OURS = re.compile(
    "dial tcp|no such host|i/o timeout|TLS handshake|connection re(fused|set)|Client.Timeout|toomanyrequests|"
    "no space left on device|failed to create endpoint"
)


def is_built(image: str) -> bool:
    """Whether a task names a folder to build rather than a tag."""
    return image.startswith(DOCKERFILE)


def folder_of(image: str) -> Path:
    """The folder with a Dockerfile that `image` names. Raises TaskFailure where it is none."""
    folder = Path(image.removeprefix(DOCKERFILE))
    if not folder.is_absolute():
        raise TaskFailure(f"image {image}: give the absolute path of a folder, which every actor's machine has")
    if not (folder / "Dockerfile").is_file():
        raise TaskFailure(f"image {image}: {folder} has no Dockerfile")
    return folder


def pack(folder: Path, file: IO[bytes]) -> str:
    """Write the context of a build to `file` as a tar file; its digest.

    Raises TaskFailure for what can't be in one, InfrastructureFailure for what can't be read or written now.
    """
    ignore = folder / ".dockerignore"
    try:
        lines = [line.strip() for line in ignore.read_text().splitlines()] if ignore.exists() else []
        ignored = [line for line in lines if line and not line.startswith("#")]
        with tarfile.open(fileobj=file, mode="w") as tar:
            for path in sorted(exclude_paths(str(folder), ignored, dockerfile="Dockerfile")):
                _add(tar, folder / path, path)
    except (OSError, UnicodeDecodeError) as error:
        raise InfrastructureFailure(f"{folder} can't be packed for its build: {error}") from error
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()[:24]
    file.seek(0)
    return digest


def _add(tar: tarfile.TarFile, source: Path, path: str) -> None:
    entry = tarfile.TarInfo(path)
    if source.is_symlink():
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(source)
        tar.addfile(entry)
    elif source.is_dir():
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(entry)
    elif source.is_file():
        with source.open("rb") as content:
            found = os.fstat(content.fileno())
            entry.size, entry.mode = found.st_size, 0o755 if found.st_mode & 0o100 else 0o644
            tar.addfile(entry, content)
    else:
        raise TaskFailure(f"{source} is no file, folder or link: name it in .dockerignore")


def find(api: docker.APIClient, folder: Path) -> str | None:
    """The tag of the image of a folder, if it is there."""
    with tempfile.TemporaryFile() as context:
        tag = f"{REPOSITORY}:{pack(folder, context)}"
    return tag if _is_there(api, tag) else None


def build(api: docker.APIClient, folder: Path, lock: Path, network: str) -> str:
    """The tag of the image of a folder, built unless it is there. `network` is Docker's, for the build's commands.

    Raises TaskFailure, with the end of the build's log, where the Dockerfile is broken. May be repeated: Docker keeps
    the steps that were done.
    """
    with tempfile.TemporaryFile() as context:
        tag = f"{REPOSITORY}:{pack(folder, context)}"
        with _locked(lock):
            if not _is_there(api, tag):
                log.info("building %s from %s", tag, folder)
                how = {"network_mode": network, "rm": True, "forcerm": True, "decode": True}
                try:
                    _follow(folder, api.build(fileobj=context, custom_context=True, tag=tag, **how))
                except docker.errors.APIError as error:
                    if error.status_code != 400:
                        raise
                    raise TaskFailure(f"{folder}/Dockerfile: {error.explanation}") from error
    return tag


def _follow(folder: Path, messages: Iterable[dict[str, Any]]) -> None:
    """Read what a build says to its end. Raises TaskFailure, or Refused where the host failed it."""
    said: deque[str] = deque(maxlen=LOG_CHARS)
    for message in messages:
        said.append(message.get("stream", ""))
        if "error" in message:
            text = "".join((*said, message["error"])).strip()[-LOG_CHARS:]
            own = "code" not in message.get("errorDetail", {}) and OURS.search(message["error"])
            raise (Refused if own else TaskFailure)(f"{folder} can't be built: {text}")


def pull(api: docker.APIClient, image: str) -> str:
    """`image`, pulled unless it is there. Raises docker.errors.APIError. May be repeated."""
    if not _is_there(api, image):
        log.info("pulling %s", image)
        api.pull(image, tag=None if ":" in image.rpartition("/")[2] or "@" in image else "latest")
    return image


def _is_there(api: docker.APIClient, image: str) -> bool:
    try:
        return bool(api.inspect_image(image))
    except docker.errors.NotFound:
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file, which its holder's end frees. Raises InfrastructureFailure after BUILD_S."""
    give_up = time.monotonic() + BUILD_S
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise InfrastructureFailure(f"another process builds images for {BUILD_S:g} s: {path}") from None
                time.sleep(LOCK_EVERY_S)
        yield


class Images:
    """The images of one host. Each is asked about once in the life of a process, unless it turns out to be gone."""

    def __init__(self, daemon: Daemon, network: str) -> None:
        self._daemon, self._network = daemon, network
        where = hashlib.blake2b(daemon.where.encode(), digest_size=8).hexdigest()
        self._lock = Path(tempfile.gettempdir()) / f"klong-builds-{os.getuid()}-{where}.lock"
        self._building = asyncio.Lock()  # a build that waits takes none of the daemon's threads
        self._asked: dict[str, asyncio.Task[str]] = {}

    async def ready(self, image: str) -> str:
        """What Docker calls the image, once it is there. Those who ask at once share one build or pull.

        Raises TaskFailure for a Dockerfile that is broken or a tag that isn't there, InfrastructureFailure for other
        reasons. A caller that gives up leaves the build to the next one who asks.
        """
        if image not in self._asked:
            self._asked[image] = asyncio.create_task(self._make(image))
            self._asked[image].add_done_callback(lambda asked: self._forget_failed(image, asked))
        return await asyncio.shield(self._asked[image])

    def _forget_failed(self, image: str, asked: asyncio.Task[str]) -> None:
        if asked.cancelled() or asked.exception():
            del self._asked[image]

    def forget_all(self) -> None:
        """Ask about each again: one that was there is gone."""
        self._asked = {image: asked for image, asked in self._asked.items() if not asked.done()}

    async def _make(self, image: str) -> str:
        if is_built(image):
            folder = folder_of(image)
            call, doing = self._daemon.call, f"building {folder}"
            if tag := await call(doing, lambda api: find(api, folder), deadline_s=BUILD_S):
                return tag
            async with self._building:
                return await call(doing, lambda api: build(api, folder, self._lock, self._network), deadline_s=BUILD_S)
        try:
            return await self._daemon.call(f"pulling {image}", lambda api: pull(api, image), deadline_s=PULL_S)
        except (docker.errors.NotFound, Refused) as error:
            if NO_SUCH_TAG in str(error):
                raise TaskFailure(f"the registry of image {image!r} has no such tag: {error}") from error
            raise InfrastructureFailure(f"{missing_image(image, self._daemon.where)}. Pulling it: {error}") from error


def missing_image(image: str, where: str) -> str:
    """The failure and its remedy."""
    return f"Docker at {where} has no image {image!r}: make the default one with `make image`, or pull or build it"
