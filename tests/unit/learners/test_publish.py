"""Published weights: whole under their name, the last two kept, nothing left after removal."""

import pytest
import torch
from safetensors.torch import load_file

from learners.publish import WeightFolder


@pytest.fixture
def weights(tmp_path):
    return WeightFolder(tmp_path / "run")


def test_what_is_read_is_what_was_published(weights):
    # A transposed view, as a gathered tensor may be.
    tensor = torch.arange(6.0).view(2, 3).T
    published = weights.publish(7, [("model.norm.weight", tensor)])
    assert published == {"path": str(weights.file(7))}
    assert torch.equal(load_file(published["path"])["model.norm.weight"], tensor)


def test_the_last_two_versions_are_kept(weights):
    for version in (8, 9, 10, 11):
        weights.publish(version, [("w", torch.tensor([float(version)]))])
    assert sorted(path.name for path in weights.path.iterdir()) == [weights.file(10).name, weights.file(11).name]


def test_a_failed_publish_leaves_the_former_version_and_no_debris(weights):
    weights.publish(1, [("w", torch.ones(1))])
    with pytest.raises(AttributeError):
        weights.publish(2, [("w", "not a tensor")])
    assert [path.name for path in weights.path.iterdir()] == [weights.file(1).name]


def test_remove_leaves_nothing_and_may_come_twice(weights):
    weights.publish(1, [("w", torch.ones(1))])
    weights.remove()
    weights.remove()
    assert not weights.path.exists()
