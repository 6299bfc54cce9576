"""The Docker daemon from asyncio: blocking SDK calls in threads, each with a deadline and errors that say what to do.

The SDK's session isn't safe to share between threads, so each thread keeps one of its own; a call that passes its
deadline is given up on, and its thread comes free when the SDK's own timeout ends it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import docker
import requests

from sandboxes.base import InfrastructureFailure

T = TypeVar("T")

SDK_TIMEOUT_S = 600.0  # the longest deadline below it, a snapshot's, and then some


class Daemon:
    """One Docker daemon. `base_url` None follows DOCKER_HOST, as the docker command does."""

    def __init__(self, base_url: str | None, threads: int) -> None:
        self._base_url = base_url
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="docker")
        self._local = threading.local()

    async def call(self, doing: str, use: Callable[[docker.APIClient], T], *, deadline_s: float) -> T:
        """`use(client)` in a thread. Raises InfrastructureFailure naming `doing`; docker.errors.NotFound passes."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(deadline_s):
                return await loop.run_in_executor(self._threads, self._use, use)
        except TimeoutError:
            raise InfrastructureFailure(
                f"Docker did not finish {doing} within {deadline_s:g} s: is the host overloaded?"
            ) from None
        except docker.errors.NotFound:
            raise
        except docker.errors.APIError as error:
            raise InfrastructureFailure(f"Docker refused {doing}: {error.explanation or error}") from error
        except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
            where = self._base_url or os.environ.get("DOCKER_HOST") or "the default socket"
            raise InfrastructureFailure(
                f"the Docker daemon at {where} can't be reached ({doing}): {error}. "
                "Start it (systemctl start docker), or name another in DOCKER_HOST"
            ) from error

    def _use(self, use: Callable[[docker.APIClient], T]) -> T:
        client = self._client()
        try:
            return use(client)
        finally:
            # Idle connections alone: the SDK keeps one per URL, up to 25 a thread, and each container has its own URLs.
            client.close()

    def _client(self) -> docker.APIClient:
        if not hasattr(self._local, "client"):
            settings = {"base_url": self._base_url} if self._base_url else docker.utils.kwargs_from_env()
            self._local.client = docker.APIClient(version="auto", timeout=SDK_TIMEOUT_S, **settings)
        return self._local.client

    def close(self) -> None:
        """Refuse new calls; those in flight end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
