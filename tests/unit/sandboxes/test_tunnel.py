"""What is said where no tunnel can be had, without any host."""

import pytest

from sandboxes.base import InfrastructureFailure
from sandboxes.tunnel import Tunnel


@pytest.mark.parametrize("url", ["ssh://", "ssh://me:secret@far", "ssh://far?x=1", "ssh://far:99999", "tcp://far"])
def test_a_url_that_names_no_host_is_refused(url):
    with pytest.raises(InfrastructureFailure, match=r"use ssh://\[USER@\]HOST"):
        Tunnel(url)


def test_a_machine_without_ssh_is_told(monkeypatch, tmp_path):
    tunnel = Tunnel("ssh://far")
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        with pytest.raises(ConnectionError, match="ssh -T .* far cat` can't be started: .*No such file"):
            tunnel.open()
    finally:
        tunnel.close()


def test_a_closed_tunnel_is_not_opened_again():
    tunnel = Tunnel("ssh://me@far:2222/run/docker.sock")
    tunnel.close()
    with pytest.raises(ConnectionError, match="-L .*:/run/docker.sock -p 2222 me@far cat` can't be started"):
        tunnel.open()
