"""A Docker daemon of a test's own, to be killed: its data, its containerd and its socket lie in one folder."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import docker
import psutil

START_S = 60.0
STOP_S = 30.0  # a daemon that is asked to stop gives its containers 10 s
KILL_S = 10.0


class PrivateDockerd:
    """Needs root, `dockerd` and the default daemon. Containers have network mode "none", so that it needs no iptables.

    Its bridge is a network of the default daemon: a dockerd that is told to have none removes `docker0`, whoever's.

    `folder` is best a short path, such as one of `tempfile.mkdtemp`: it holds Unix sockets, whose path is at most
    107 bytes long. `live_restore`: containers survive a restart of the daemon, as an operator may have set it.
    `flags` are more of dockerd's own, such as another `--host`.
    """

    def __init__(self, folder: Path, *, live_restore: bool = False, flags: Sequence[str] = ()) -> None:
        self._flags = flags
        self._folder = Path(folder)
        self.live_restore = live_restore
        self._process: subprocess.Popen | None = None
        self._bridge = f"klong-{secrets.token_hex(4)}"  # an interface's name: 15 characters at most
        self.host = f"unix://{self._folder}/docker.sock"
        self.log = self._folder / "dockerd.log"

    @property
    def pid(self) -> int:
        """Of the dockerd that runs; its containerd is another process."""
        assert self._process is not None, f"no daemon runs in {self._folder}"
        return self._process.pid

    def start(self) -> None:
        """Start, also after `kill`, and wait until it answers; it finds its containers and images again."""
        assert self._process is None, f"the daemon in {self._folder} runs already"
        if not self._folder.exists():
            self._folder.mkdir(parents=True)
            named = f"com.docker.network.bridge.name={self._bridge}"
            subprocess.run(["docker", "network", "create", "-o", named, self._bridge], check=True, capture_output=True)
        command = [
            "dockerd",
            f"--host={self.host}",
            f"--data-root={self._folder / 'data'}",
            f"--exec-root={self._folder / 'exec'}",
            f"--pidfile={self._folder / 'dockerd.pid'}",
            f"--config-file={self._folder / 'no-config.json'}",  # not the machine's own
            f"--bridge={self._bridge}",
            "--iptables=false",
            "--ip6tables=false",
            f"--live-restore={str(self.live_restore).lower()}",
            *self._flags,
        ]
        (self._folder / "no-config.json").write_text("{}")
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        give_up = time.monotonic() + START_S
        while not self._answers():
            code, log = self._process.poll(), self.log.read_text(errors="replace")[-3000:]
            assert code is None, f"dockerd ended with {code}:\n{log}"
            assert time.monotonic() < give_up, f"dockerd doesn't answer within {START_S:g} s:\n{log}"
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL to dockerd, with which its containerd dies: the containers go on until it is started again."""
        process, self._process = self._process, None
        process.kill()
        process.wait(KILL_S)
        self._bury_containerd()

    def _bury_containerd(self) -> None:
        """Wait for the end of the containerd that dies with its dockerd, and forget it.

        Where the machine's init reaps late it stays a zombie for a while, which the next dockerd takes for alive.
        """
        pid_file = self._folder / "exec/containerd/containerd.pid"
        give_up = time.monotonic() + KILL_S
        while _is_alive(int(pid_file.read_text())):
            assert time.monotonic() < give_up, f"the containerd of {self._folder} outlives its dockerd"
            time.sleep(0.01)
        pid_file.unlink()

    def load_image(self, name: str) -> None:
        """Copy an image of the default daemon into this one."""
        save = subprocess.Popen(["docker", "save", name], stdout=subprocess.PIPE)
        subprocess.run(["docker", "--host", self.host, "load"], stdin=save.stdout, check=True, capture_output=True)
        assert save.wait() == 0, f"docker save {name} failed: {save.returncode}"

    def stop(self) -> None:
        """End the daemon, its containerd and its containers, whichever still run, and remove the folder."""
        if self._process is None:
            self.start()  # a killed daemon's containers go on, and only it knows how to end them
        self._remove_containers()
        process, self._process = self._process, None
        process.terminate()
        try:
            process.wait(STOP_S)
        finally:
            process.kill()  # its containerd, which asks the kernel to be told, dies with it
            process.wait(KILL_S)
        self._end_shims()
        # Killed daemons leave the binds of their folder and of their containers' namespaces mounted, the latest on top.
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if (mounted := line.split()[1]).startswith(f"{self._folder}/"):
                subprocess.run(["umount", mounted], check=True)
        shutil.rmtree(self._folder)
        subprocess.run(["docker", "network", "rm", self._bridge], check=True, capture_output=True)

    def _end_shims(self) -> None:
        """Those of containers that a daemon was removing as it was killed: no later daemon knows of them."""
        for shim in psutil.process_iter(["cmdline"]):
            if any(word.startswith(f"{self._folder}/exec/") for word in shim.info["cmdline"] or ()):
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended as we looked
                    for process in (*shim.children(recursive=True), shim):
                        process.kill()

    def containers(self) -> list[str]:
        """The ids of all that it has, running or not."""
        client = docker.APIClient(self.host, timeout=STOP_S)
        try:
            return [each["Id"] for each in client.containers(all=True)]
        finally:
            client.close()

    def _remove_containers(self) -> None:
        client = docker.APIClient(self.host, timeout=STOP_S)
        try:
            for container in client.containers(all=True):
                client.remove_container(container["Id"], force=True, v=True)
        finally:
            client.close()

    def _answers(self) -> bool:
        answered = subprocess.run(["docker", "--host", self.host, "version"], capture_output=True)
        return answered.returncode == 0


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
