"""Each Lua transition has its rule, and each rule its transition, so that neither changes alone."""

from __future__ import annotations

import inspect

from klong_rl.buffer.connection import _scripts
from klong_rl.buffer.rules import Rules
from klong_rl.buffer.run_state import RunState


def test_every_transition_has_its_rule() -> None:
    looks = {"next_group_to_close", *(name for name, _ in inspect.getmembers(RunState, inspect.isfunction))}
    rules = {name for name, _ in inspect.getmembers(Rules, inspect.isfunction) if not name.startswith("_")}
    assert set(_scripts()) == rules - looks


def test_at_the_memory_limit_only_new_episodes_are_refused() -> None:
    waiting = {name for name, script in _scripts().items() if not script.source.startswith("#!lua flags=allow-oom\n")}
    assert waiting == {"admit", "claim"}
