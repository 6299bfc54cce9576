"""What a rank refuses before it computes anything."""

import pytest

from klong_rl.config import LearnerConfig
from klong_rl.errors import UserError
from learners.job import LearnerJob
from learners.publish import WeightFolder
from learners.rank import Rank


def rank(tmp_path, **settings):
    return Rank(0, LearnerJob("nowhere", LearnerConfig(**settings)), WeightFolder(tmp_path / "weights"))


def test_a_step_is_trained_once(tmp_path):
    one = rank(tmp_path)
    one._step = 4
    with pytest.raises(ValueError, match="step 4 was trained already"):
        one.train_step(4, 0, [[]], {})


def test_windows_must_come_from_somewhere(tmp_path):
    with pytest.raises(ValueError, match="no buffer to fetch from"):
        rank(tmp_path).train_step(0, 0, [["w0"]], None)


def test_a_wrong_objective_is_refused_before_a_model_is_built(tmp_path):
    with pytest.raises(UserError, match="objective 'kong'"):
        rank(tmp_path, objective="kong")
