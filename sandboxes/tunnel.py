"""An ssh:// Docker host as a Unix socket on this machine, by the system's `ssh` and the user's own settings for it.

    klong ── unix:///tmp/klong-ssh-.../docker.sock ── ssh -L ──▶ sshd ── /var/run/docker.sock ── dockerd

The remote command is a `cat` that reads what nobody writes: when this process ends, however it does, its end of that
pipe closes, and so `cat`, and `ssh` after it. A tunnel that broke is opened anew by the next call through it.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from sandboxes.base import InfrastructureFailure

OPEN_S, LOOK_EVERY_S = 20.0, 0.02
KEEP_ALIVE_S = 5  # a link that is silent for three of these is down
REMOTE_SOCKET = "/var/run/docker.sock"
OPTIONS = (
    "BatchMode=yes",  # nobody is there to type a password
    "ExitOnForwardFailure=yes",
    f"ServerAliveInterval={KEEP_ALIVE_S}",
    "ServerAliveCountMax=3",
    "StreamLocalBindUnlink=yes",
    f"ConnectTimeout={int(OPEN_S)}",
)


def _parse(url: str) -> tuple[str, list[str]]:
    """The socket there, and how to name the host to ssh."""
    wrong = InfrastructureFailure(f"{url} names no Docker host: use ssh://[USER@]HOST[:PORT][/PATH/OF/ITS/SOCKET]")
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme != "ssh" or not parts.hostname or parts.query or parts.fragment or parts.password:
        raise wrong
    host = f"{parts.username}@{parts.hostname}" if parts.username else parts.hostname
    remote = parts.path if parts.path not in ("", "/") else REMOTE_SOCKET
    return remote, [*(("-p", str(port)) if port else ()), host]


class Tunnel:
    """To `ssh://[USER@]HOST[:PORT][/SOCKET]`. Raises InfrastructureFailure for a URL that is none."""

    def __init__(self, url: str) -> None:
        remote, target = _parse(url)
        self.where = url
        self._folder = Path(tempfile.mkdtemp(prefix="klong-ssh-"))
        self._socket = self._folder / "docker.sock"
        options = [word for option in OPTIONS for word in ("-o", option)]
        self._command = ["ssh", "-T", *options, "-L", f"{self._socket}:{remote}", *target, "cat"]
        self._process: subprocess.Popen | None = None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where the SDK connects, once `open`."""
        return f"unix://{self._socket}"

    def open(self) -> None:
        """Have it open, from whichever thread. Raises ConnectionError, in ssh's own words, if it can't be in OPEN_S."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()

    def _start(self) -> None:
        said = self._folder / "ssh.log"
        try:
            self._socket.unlink(missing_ok=True)
            with said.open("wb") as log:
                self._process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
                )
        except OSError as error:
            raise ConnectionError(f"`{shlex.join(self._command)}` can't be started: {error}") from error
        give_up = time.monotonic() + OPEN_S
        while not self._socket.exists():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > give_up:
                self._end()
                why = said.read_text(errors="replace").strip() or f"no tunnel within {OPEN_S:g} s"
                raise ConnectionError(f"`{shlex.join(self._command)}`: {why}")
            time.sleep(LOOK_EVERY_S)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process = None

    def close(self) -> None:
        """End it for good."""
        with self._lock:
            self._end()
            shutil.rmtree(self._folder, ignore_errors=True)
