"""What a learner group does where Ray itself is gone."""

import logging
import threading

from learners import group
from learners.group import LearnerGroup


def test_a_head_that_is_gone_does_not_keep_the_ranks_end_waiting(monkeypatch, caplog):
    gone = threading.Event()
    monkeypatch.setattr(group, "remove_placement_group", lambda bundles: gone.wait())
    monkeypatch.setattr(group, "RELEASE_S", 0.05)
    learner = LearnerGroup.__new__(LearnerGroup)
    learner._ranks, learner._bundles = [], None
    with caplog.at_level(logging.WARNING):
        learner.shutdown()
    gone.set()
    assert "Ray gave no answer in 0.05 s about the learner's placement group" in caplog.text
