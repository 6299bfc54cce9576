"""Bare processes are refused unless someone says that nothing has to be isolated."""

import pytest

from klong_rl.errors import UserError
from sandboxes.process import ProcessSandboxes


def test_bare_processes_are_refused_with_the_reason_and_the_remedy(tmp_path):
    with pytest.raises(UserError, match="run as you.*nothing limits them.*sandbox.allow_unisolated=true"):
        ProcessSandboxes("run", root=str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    ProcessSandboxes("run", root=str(tmp_path), allow_unisolated=True)
