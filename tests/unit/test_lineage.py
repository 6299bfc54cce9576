"""Staleness after the run went back: in every history, nothing too far from the weights is trained."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klong_rl.buffer.rules import Rules
from klong_rl.lineage import distance, within_reach
from tests.unit.buffer.test_rules import judged, spec, window

# The picture in the module: updates 5 and 6 were lost with versions 6 and 7, version 8 repeats 5's weights.
LINEAGE = {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 8: 4, 9: 5}


@pytest.mark.parametrize("version, updates", [(9, 0), (8, 1), (5, 1), (4, 2), (1, 5), (6, 2), (7, 3)])
def test_a_dead_version_is_as_far_as_the_way_back_and_the_way_forth(version, updates):
    assert distance(LINEAGE, 5, version) == updates


def test_the_bound_cuts_the_old_and_the_dead():
    assert within_reach(LINEAGE, 5, 1) == (5, (6, 7))
    assert within_reach(LINEAGE, 5, 2) == (4, (7,))
    assert within_reach(LINEAGE, 5, 3) == (3, ())
    assert within_reach(LINEAGE, 5, 0) == (9, ())


def test_a_run_without_restores_counts_its_versions():
    lineage = {version: version - 1 for version in range(1, 9)}
    assert within_reach(lineage, 7, 2) == (6, ())
    assert [distance(lineage, 7, version) for version in lineage] == [7, 6, 5, 4, 3, 2, 1, 0]


class History:
    """A run as it truly was: which updates the weights of every version hold, those of the dead too."""

    def __init__(self) -> None:
        self.updates: list[int] = []  # in the weights now, each with a number of its own
        self.made = 0
        self.next_version = 1
        self.lineage: dict[int, int] = {}
        self.weights: dict[int, list[int]] = {}  # by version
        self.checkpoint: tuple[list[int], dict[int, int]] = ([], {})
        self.publish()
        self.save()

    def publish(self) -> None:
        self.weights[self.next_version] = list(self.updates)
        self.lineage[self.next_version] = len(self.updates)
        self.next_version += 1

    def train(self) -> None:
        self.made += 1
        self.updates.append(self.made)
        self.publish()

    def save(self) -> None:
        self.checkpoint = list(self.updates), dict(self.lineage)

    def restore(self) -> None:
        self.updates, self.lineage = list(self.checkpoint[0]), dict(self.checkpoint[1])
        self.publish()
        self.save()  # the version is noted in the checkpoint that it repeats

    def lose_a_number(self) -> None:
        """A version was given out, and its learner died before it published it."""
        self.next_version += 1

    def true_distance(self, version: int) -> int:
        theirs, ours = self.weights[version], self.updates
        common = sum(1 for a, b in zip(theirs, ours, strict=False) if a == b)
        return len(theirs) - common + len(ours) - common


EVENTS = st.lists(st.sampled_from(["train", "train", "train", "save", "restore", "lose_a_number"]), max_size=40)


@given(EVENTS)
def test_no_version_is_taken_for_nearer_than_it_is(events):
    history, lost = History(), 0
    for event in events:
        getattr(history, event)()
        lost += event == "lose_a_number"
    for version in history.weights:
        truth, answer = history.true_distance(version), distance(history.lineage, len(history.updates), version)
        assert truth <= answer <= truth + lost
        assert version not in history.lineage or answer == truth


@given(EVENTS, st.integers(0, 4), st.data())
def test_what_is_trained_is_within_the_bound_and_what_is_dropped_is_not(events, bound, data):
    """The run itself on the buffer's rules: windows of any version come up, each step leases, restores roll back."""
    history, rules, sampled_by = History(), Rules(), {}
    for number, event in enumerate(events):
        group = f"g{number}"
        sampled_by[group] = data.draw(st.sampled_from(sorted(history.weights)), label="version that sampled")
        judged(rules, spec(group))
        rules.close_group(group, [window(f"{group}/w", group, sampled_by[group])])
        if event == "train":
            step = len(history.updates)
            oldest, dead = within_reach(history.lineage, step, bound)
            ready = set(rules._ready())
            leased = {ref.group for ref in rules.lease(step + 1, 1, oldest, dead)}
            assert all(history.true_distance(sampled_by[group]) <= bound for group in leased)
            dropped = ready - leased - set(rules._ready())
            if "lose_a_number" not in events:
                assert all(history.true_distance(sampled_by[group]) > bound for group in dropped)
            if not leased:
                continue
        getattr(history, event)()
        if event == "save":
            rules.commit(len(history.updates))
        if event == "restore":
            rules.rollback(len(history.updates))
