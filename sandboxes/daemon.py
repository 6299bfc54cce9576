"""The Docker daemon from asyncio: blocking SDK calls in threads, each with a deadline and errors that say what to do.

A daemon goes away now and then: it is killed, or an operator upgrades it. Containers outlive that, so a call waits for
the daemon to come back, with back-off, until the call's deadline:

    call ──▶ answered                      ──▶ the result, or Refused
      ▲  └─▶ refused, reset, no socket ──▶ wait 0.1, 0.2, ... 2 s ──▶ deadline passed: HostAway
      └──────────────────────────────────────┘

The SDK's session isn't safe to share between threads, so each thread keeps one of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import docker
import requests

from klong_rl.seldom import Seldom
from sandboxes.base import HostAway, InfrastructureFailure
from sandboxes.tunnel import Tunnel

log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE_S, PAUSE_AT_MOST_S = 0.1, 2.0  # between two attempts to reach the daemon, doubled each time


class Refused(InfrastructureFailure):
    """The daemon answered, with an error."""


class Daemon:
    """One Docker daemon, at unix://, tcp:// or ssh://; `base_url` None follows DOCKER_HOST, as the docker command does.

    TLS is as the docker command has it, from DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, for all hosts the same. But
    REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE must not be set then: the SDK would take them for the daemon's authority.
    """

    def __init__(self, base_url: str | None, threads: int) -> None:
        self._base_url = base_url
        self.where = base_url or os.environ.get("DOCKER_HOST") or "the default socket"
        self.is_local = base_url is None and "DOCKER_HOST" not in os.environ or self.where.startswith("unix://")
        self._tunnel = Tunnel(self.where) if self.where.startswith("ssh://") else None
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="docker")
        self._local = threading.local()
        self._away = Seldom()

    async def call(self, doing: str, use: Callable[[docker.APIClient], T], *, deadline_s: float) -> T:
        """`use(client)` in a thread, again from its start whenever the daemon went away in the middle of it.

        So a `use` must be one that may be repeated after any part of it had its effect; each says why it may. Raises
        HostAway when the daemon can't be reached within `deadline_s`, Refused when it answers with an error,
        InfrastructureFailure when it doesn't finish; each names `doing`. docker.errors.NotFound passes.
        """
        began, pause_s = time.monotonic(), PAUSE_S
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    try:
                        return await self._once(doing, use, deadline_s)
                    except HostAway as away:
                        last = away
                        if self._away.due():  # for all the calls that wait
                            log.warning("waiting up to %g s for the Docker daemon: %s", deadline_s, away)
                    await asyncio.sleep(pause_s)
                    pause_s = min(PAUSE_AT_MOST_S, 2 * pause_s)
        except TimeoutError:
            waited_s = time.monotonic() - began
            if pause_s > PAUSE_S:
                raise HostAway(f"{last}. Waited {waited_s:.0f} s for it") from last.__cause__
            raise InfrastructureFailure(
                f"Docker did not finish {doing} within {deadline_s:g} s: is the host overloaded?"
            ) from None

    async def once(self, doing: str, use: Callable[[docker.APIClient], T], *, deadline_s: float) -> T:
        """As `call`, but a daemon that can't be reached is a failure at once."""
        try:
            async with asyncio.timeout(deadline_s):
                return await self._once(doing, use, deadline_s)
        except TimeoutError:
            raise InfrastructureFailure(f"Docker did not finish {doing} within {deadline_s:g} s") from None

    async def _once(self, doing: str, use: Callable[[docker.APIClient], T], deadline_s: float) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self.use, use, deadline_s)
        except docker.errors.NotFound:
            raise
        except docker.errors.APIError as error:
            raise Refused(f"Docker refused {doing}: {error.explanation or error}") from error
        except requests.exceptions.Timeout as error:
            raise TimeoutError from error
        except (docker.errors.DockerException, requests.exceptions.RequestException, ConnectionError) as error:
            raise HostAway(
                f"the Docker daemon at {self.where} can't be reached ({doing}): {error}. "
                "Start it (systemctl start docker), or name another in DOCKER_HOST or sandbox.hosts"
            ) from error

    def use(self, use: Callable[[docker.APIClient], T], timeout_s: float) -> T:
        """`use(client)` in this thread."""
        if self._tunnel is not None:
            self._tunnel.open()
        client = self._client()
        client.timeout = timeout_s  # a thread that waits for a daemon that hangs comes free with the call it waits for
        try:
            return use(client)
        finally:
            # Idle connections alone: the SDK keeps one per URL, up to 25 a thread, and each container has its own URLs.
            client.close()

    def _client(self) -> docker.APIClient:
        if not hasattr(self._local, "client"):
            settings = docker.utils.kwargs_from_env()  # with the certificates that DOCKER_CERT_PATH names
            if self._tunnel is not None or self._base_url:
                settings["base_url"] = self._tunnel.url if self._tunnel is not None else self._base_url
            self._local.client = docker.APIClient(version="auto", **settings)
        return self._local.client

    def close(self) -> None:
        """Refuse new calls; those in flight end by themselves, or with the tunnel."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._tunnel is not None:
            self._tunnel.close()
