"""Bare processes are refused unless someone says that nothing has to be isolated."""

import threading

import pytest

from klong_rl.errors import UserError
from klong_rl.types import Limits
from sandboxes import process
from sandboxes.process import ProcessSandboxes


def test_bare_processes_are_refused_with_the_reason_and_the_remedy(tmp_path):
    with pytest.raises(UserError, match="run as you.*nothing limits them.*sandbox.allow_unisolated=true"):
        ProcessSandboxes("run", root=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    ProcessSandboxes("run", root=str(tmp_path), allow_unisolated=True)


async def test_the_host_s_processes_are_looked_through_off_the_event_loop_and_for_no_new_sandbox(tmp_path, monkeypatch):
    looked_in, look = [], process._processes

    def noted() -> list[int]:
        looked_in.append(threading.current_thread())
        return look()

    monkeypatch.setattr(process, "_processes", noted)
    factory = ProcessSandboxes("run", root=str(tmp_path), allow_unisolated=True)
    sandbox = await factory.create("e", 1, "none", Limits())
    assert not looked_in
    await sandbox.close()
    assert looked_in and threading.main_thread() not in looked_in
