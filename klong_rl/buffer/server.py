"""A private redis-server in the run directory, for a run that names no buffer of its own.

- It listens on a Unix socket only, keeps an append-only file (synced each second, or before each answer), and never
  evicts.
- One live driver a run directory: a file lock, which the system drops when the driver dies, however it dies.
- The server dies with the driver (the kernel sends SIGTERM, on which Redis writes out its file and ends). What a
  driver that was killed left behind is shut down before a new server opens the same file.
- The socket's path stays the same across launches, so that clients which outlive the driver find the new server; so
  do those of a server that was killed and that its driver revived.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import threading
import time
from pathlib import Path
from typing import IO, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from klong_rl.buffer.errors import BinaryMissing, DiskFull, RunDirBusy, ServerFault, SocketTaken
from klong_rl.buffer.socket_path import is_deserted, socket_path, url_of

FOLDER = "redis"  # in the run directory: log, lock, socket
AOF_FOLDER = "appendonlydir"  # in that, as Redis names it: the append-only file, in parts
LEAST_FREE_MB = 256  # below it a rewrite of the append-only file is likely to fail soon
POLL_S = 0.02
PROBE_S = 5.0  # for a server that is left over to say whose it is
GLANCE_S = 0.05  # for a server that was revived to answer; while it reads its file it says so at once
REVIVALS_WITHOUT_AN_ANSWER = 3  # in a row: what ends it is still there (a file that is broken, no memory, no disk)

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here: a forked child must not load libraries


class EmbeddedRedis:
    """The redis-server of one run directory.

    >>> with EmbeddedRedis(Path("runs/relay")) as server:
    ...     BufferAddress(server.url, "relay")

    Args:
        run_dir: the server's files live in `run_dir/redis`.
        maxmemory_mb: `admit` and `claim` are refused above it (`Full`); 0 for no limit.
        fsync: of the append-only file: "everysec" (a loss of power costs the last second) or "always" (nothing; each
            transition waits for the disk).
        deadline_s: for starting, reading a large append-only file included, and for stopping.
    """

    def __init__(self, run_dir: Path, maxmemory_mb: int = 0, fsync: str = "everysec", deadline_s: float = 60.0):
        self.dir = Path(run_dir).resolve() / FOLDER
        self.log = self.dir / "redis.log"
        self._maxmemory_mb = maxmemory_mb
        self._fsync = fsync
        self._deadline_s = deadline_s
        self._socket: Path | None = None
        self._process: subprocess.Popen | None = None
        self._lock: IO | None = None
        self._answered = False  # since it was spawned last
        self._revivals = 0  # since it answered last

    @property
    def url(self) -> str:
        """Where clients on this machine connect. Raises ServerFault before `start`."""
        if self._socket is None:
            raise ServerFault(f"the redis-server of {self.dir} has no socket before start()")
        return url_of(self._socket)

    @property
    def pid(self) -> int | None:
        """Process id of the server; None while there is none."""
        return self._process.pid if self._process else None

    def start(self) -> str:
        """Starts the server, or a new one in place of one that ended, and answers its URL once it takes commands.

        Call it from the main thread: the kernel ties the server to the thread that started it. Raises ServerFault,
        by kind: BinaryMissing, RunDirBusy, SocketTaken, DiskFull.
        """
        _need_main_thread("start")
        if self._process and self._process.poll() is None:
            return self.url
        self.dir.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._check_disk()
            self._socket = socket_path(self.dir)
            self._end_leftover()
            self._process = self._spawn()
            self._wait_until_ready()
        except BaseException:
            self._kill()
            self._drop_lock()
            raise
        self._answered, self._revivals = True, 0
        return self.url

    def revive(self) -> bool:
        """Spawns the server anew if it has ended by itself; True if it did. Made to be called again and again.

        It doesn't wait for the server to read its file: clients wait within their own deadlines. From the main thread,
        as `start`. Raises ServerFault, with what the server logged, if it ends again and again without an answer.
        """
        _need_main_thread("revive")
        if self._process is None:
            return False
        if self._process.poll() is None:
            if not self._answered and self._answers():
                self._answered, self._revivals = True, 0
            return False
        if self._revivals >= REVIVALS_WITHOUT_AN_ANSWER:
            code = self._process.returncode
            raise ServerFault(
                f"the redis-server of {self.dir} ended ({code}) after each of {self._revivals} starts before it took a "
                f"command; mend what it says, then launch again:\n{self._log_tail()}"
            )
        self._answered, self._revivals = False, self._revivals + 1
        self._process = self._spawn()
        return True

    def stop(self) -> None:
        """Ends the server once its file is written out. Raises ServerFault if it had to be killed at the deadline."""
        process, self._process = self._process, None
        try:
            if process is None or process.poll() is not None:
                return
            process.terminate()
            try:
                process.wait(self._deadline_s)
            except subprocess.TimeoutExpired as error:
                process.kill()
                process.wait()
                raise ServerFault(
                    f"redis-server {process.pid} in {self.dir} didn't end within {self._deadline_s:g} s of SIGTERM and "
                    f"was killed; up to the last second of writes may be lost; see {self.log}"
                ) from error
        finally:
            self._drop_lock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _take_lock(self) -> None:
        if self._lock:
            return
        lock = (self.dir / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise RunDirBusy(f"another live driver holds {self.dir}; stop it, or use another run directory") from error
        self._lock = lock

    def _drop_lock(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None

    def _check_disk(self) -> None:
        free_mb = shutil.disk_usage(self.dir).free >> 20
        if free_mb < LEAST_FREE_MB:
            raise DiskFull(f"{self.dir} has {free_mb} MB free and the buffer needs {LEAST_FREE_MB}; free some")

    def _end_leftover(self) -> None:
        """Shuts down a server of this directory that outlived its driver; SocketTaken if the path is anyone else's."""
        if not self._socket.exists():
            return
        if not stat.S_ISSOCK(self._socket.stat().st_mode):
            raise SocketTaken(f"{self._socket} is a file and not a socket; move it away")
        client = _client(self._socket, PROBE_S)
        try:
            owner = client.config_get("dir")["dir"]
            if Path(owner) != self.dir:
                raise SocketTaken(f"{self._socket} belongs to the redis-server of {owner}; stop that server")
            pid = client.info("server")["process_id"]
            client.shutdown(nosave=True)  # of snapshots, of which there are none; the append-only file is written out
        except redis.exceptions.ConnectionError as error:
            if is_deserted(self._socket):
                return  # nobody listens: the path is left from a server that was killed
            raise SocketTaken(f"something that isn't Redis listens on {self._socket} ({error}); stop it") from error
        except redis.exceptions.RedisError as error:
            raise SocketTaken(f"what listens on {self._socket} doesn't answer as Redis ({error}); stop it") from error
        finally:
            client.close()
        self._wait_for_end(pid)

    def _wait_for_end(self, pid: int) -> None:
        deadline = time.monotonic() + self._deadline_s
        while Path(f"/proc/{pid}").exists():
            if time.monotonic() > deadline:
                raise RunDirBusy(f"redis-server {pid} of {self.dir} still runs after {self._deadline_s:g} s; end it")
            time.sleep(POLL_S)

    def _spawn(self) -> subprocess.Popen:
        binary = shutil.which("redis-server")
        if binary is None:
            raise BinaryMissing(
                "redis-server is not on PATH; install Redis 7 or later (apt install redis-server), or set buffer.url"
            )
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self.dir),
            "logfile": str(self.log),
            "appendonly": "yes",
            "appendfsync": self._fsync,
            "save": "",
            "maxmemory": f"{self._maxmemory_mb}mb",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        driver = os.getpid()

        def die_with_driver() -> None:
            if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0 or os.getppid() != driver:
                os._exit(1)  # the driver died before the kernel knew whom to tell

        return subprocess.Popen(
            [binary, *(word for name, value in settings.items() for word in (f"--{name}", value))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the driver, which still has things to write
            preexec_fn=die_with_driver,
        )

    def _wait_until_ready(self) -> None:
        client = _client(self._socket, self._deadline_s)
        deadline = time.monotonic() + self._deadline_s
        try:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    code = self._process.returncode
                    raise ServerFault(f"redis-server ended with {code} as it started:\n{self._log_tail()}")
                try:
                    client.ping()
                    return
                except redis.exceptions.ConnectionError:  # not listening yet, or reading its file
                    time.sleep(POLL_S)
        finally:
            client.close()
        raise ServerFault(f"redis-server took no command in {self._deadline_s:g} s from its start:\n{self._log_tail()}")

    def _answers(self) -> bool:
        client = _client(self._socket, GLANCE_S)
        try:
            return client.ping()
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):  # not yet
            return False
        finally:
            client.close()

    def _log_tail(self) -> str:
        if not self.log.exists():
            return f"(it left no log in {self.log})"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])

    def _kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


def _need_main_thread(call: str) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise ServerFault(f"{call}() was called in a thread, with which the server would end; use the main one")


def _client(path: Path, timeout_s: float) -> redis.Redis:
    """A client that tries once: its callers say themselves what a failure means."""
    return redis.Redis(
        unix_socket_path=str(path), socket_timeout=timeout_s, decode_responses=True, retry=Retry(NoBackoff(), 0)
    )
