"""Each kind of crime is found in a history that has it, and none in one that hasn't."""

import numpy as np
import pytest

from klong_rl.types import Turn
from tests.chaos.audit import (
    BROKEN_CHAIN,
    CONTRADICTION,
    LOST,
    MISSING,
    TOO_STALE,
    TWICE,
    audit,
    distance,
)
from tests.unit.chaos.story import Story


@pytest.fixture
def story(tmp_path):
    return Story(tmp_path)


def kinds(evidence) -> list[str]:
    return [crime.kind for crime in audit(evidence).crimes]


def test_a_run_without_faults_is_accounted_for(story):
    story.train(1, "g1", [10, 11], [12], version=2)
    story.admit("v-e", "v", "eval")
    story.play("v-e", [30, 31, 32])
    story.close("v")
    story.forget("v")
    found = audit(story.end(steps=1))
    assert found.crimes == []
    assert found.tokens == {"trained": 3, "evaluation": 3}
    assert found.checked["episodes"] == 2 and found.checked["links of digest chains"] == 3
    assert (found.checked["windows trained"], found.oldest) == (1, 0)


def test_tokens_given_up_are_accounted_for_by_their_reasons(story):
    story.admit("g1-e0", "g1")
    story.play("g1-e0", [10, 11], [12])
    story.intend("g1-e0", story.turn("g1-e0", [13]))
    story.rewind("g1-e0", 1, "the sandbox is gone")
    story.play("g1-e0", [14])
    story.drop("g1-e0", "gave up")
    story.close("g1")
    story.forget("g1")
    found = audit(story.end(steps=0))
    assert found.crimes == []
    assert found.tokens == {"given up: the sandbox is gone": 2, "given up: gave up": 3}


def test_an_action_that_was_interrupted_counts_once_however_often_it_is_intended(story):
    story.admit("g1-e0", "g1")
    story.play("g1-e0", [10])
    turn = story.turn("g1-e0", [11, 12])
    story.intend("g1-e0", turn)
    story.intend("g1-e0", turn)
    story.append("g1-e0", turn)
    assert audit(story.end(steps=0)).tokens == {"left in the buffer, for a later step": 3}


def test_a_lease_that_was_rolled_back_and_trained_again_is_no_crime(story):
    story.admit("g1-e0", "g1")
    story.play("g1-e0", [10])
    story.close("g1")
    story.lease(1, "g1")
    story.rollback(1, "g1")
    story.lease(1, "g1")
    story.learn(1, "g1", version=3)
    story.commit(1, "g1")
    story.forget("g1", 1)
    evidence = story.end(steps=1)
    assert audit(evidence).crimes == []
    assert [lease.end for lease in evidence.history.leases] == ["rolled back", "committed"]


def test_a_stale_window_is_a_reason(story):
    story.admit("g1-e0", "g1")
    story.play("g1-e0", [10, 11])
    story.close("g1")
    story.turn_stale("g1")
    story.forget("g1")
    found = audit(story.end(steps=0))
    assert (found.crimes, found.tokens) == ([], {"given up: stale window": 2})


def test_lost_segments_removed_without_a_reason(story):
    story.admit("g1-e0", "g1")
    story.play("g1-e0", [10, 11], [12])
    story.rewind("g1-e0", 1, reason=None)
    (crime,) = audit(story.end(steps=0)).crimes
    assert (crime.kind, crime.tokens, crime.position) == (LOST, 1, len(story.data))
    assert "removed without a reason" in crime.what


def test_lost_an_intended_action_that_another_replaced(story):
    story.admit("g1-e0", "g1")
    story.intend("g1-e0", story.turn("g1-e0", [10]))
    story.intend("g1-e0", story.turn("g1-e0", [11]))
    assert kinds(story.end(steps=0)) == [LOST]


def test_lost_an_intended_action_whose_segment_has_other_tokens(story):
    story.admit("g1-e0", "g1")
    story.intend("g1-e0", story.turn("g1-e0", [10]))
    story.append("g1-e0", story.turn("g1-e0", [11]))
    assert kinds(story.end(steps=0)) == [LOST]


def test_lost_a_turn_that_the_archive_leaves_out(story):
    story.train(1, "g1", [10, 11], [12], version=2)
    story.archive[0].turns.pop()
    assert LOST in kinds(story.end(steps=1))


def test_lost_an_action_in_whose_place_the_archive_holds_another_that_fits_as_well(story):
    story.admit("v-e", "v", "eval")
    story.play("v-e", [30])
    story.close("v")
    story.told["v-e"].turns.clear()
    story.told["v-e"].turns.append(story.turn("v-e", [31]))
    story.forget("v")
    assert kinds(story.end(steps=0)) == [LOST]


def test_lost_a_window_that_was_neither_trained_nor_stale(story):
    story.train(1, "g1", [10, 11], version=2)
    story.archive[0].turns[0] = story.archive[0].turns[0]._replace(window=None)
    assert kinds(story.end(steps=1)) == [LOST]


def test_lost_a_window_that_the_ledger_does_not_know(story):
    story.train(1, "g1", [10, 11], version=2)
    story.ledger[0] = story.ledger[0]._replace(windows=())
    assert (LOST, 2) in [(crime.kind, crime.tokens) for crime in audit(story.end(steps=1)).crimes]


def test_trained_twice_a_window_in_two_steps(story):
    story.train(1, "g1", [10, 11], version=2)
    story.train(2, "g2", [12], version=3)
    story.ledger[1] = story.ledger[1]._replace(windows=("g2-e0/w0", "g1-e0/w0"))
    found = [(crime.kind, crime.tokens) for crime in audit(story.end(steps=2)).crimes]
    assert (TWICE, 2) in found and (CONTRADICTION, 0) in found


def test_trained_twice_a_group_committed_in_two_steps(story):
    story.train(1, "g1", [10], version=2)
    story.lease(2, "g1")
    story.commit(2, "g1")
    assert TWICE in kinds(story.end(steps=1))


def test_trained_twice_windows_with_more_targets_than_the_episode_has_actions(story):
    story.admit("g1-e0", "g1")
    story.play("g1-e0", [10], [11])
    story.close("g1")
    story.told["g1-e0"].turns.pop()
    story.forget("g1", 1)
    assert TWICE in kinds(story.end(steps=0))


def test_too_stale_a_window_over_the_bound(story):
    story.admit("late-e0", "late")
    story.play("late-e0", [90], version=1)
    story.close("late")
    story.train(1, "g1", [10], version=2)
    story.train(2, "g2", [11], version=3)
    story.lease(3, "late")
    story.learn(3, "late", version=4)
    story.commit(3, "late")
    story.forget("late", 3)
    assert kinds(story.end(steps=3, max_staleness=2)) == []
    assert kinds(story.end(steps=3, max_staleness=1)) == [TOO_STALE]


def test_too_stale_by_a_version_that_did_not_survive(story):
    story.train(1, "g1", [10], version=2)
    story.write(("SET", story.key("version"), 3))  # of a step 2 that was undone
    story.admit("g2-e0", "g2")
    story.play("g2-e0", [11], version=3)
    story.close("g2")
    story.lineage.append((4, 1))  # the restored weights, published again
    story.lease(2, "g2")
    story.learn(2, "g2", version=5)
    story.commit(2, "g2")
    story.forget("g2", 2)
    assert kinds(story.end(steps=2, max_staleness=1)) == []
    assert kinds(story.end(steps=2, max_staleness=0)) == [TOO_STALE]


@pytest.mark.parametrize("change", ["action_A", "observation_O", "context_start"])
def test_a_chain_is_broken_by_any_change_of_what_was_sampled(story, change):
    story.train(1, "g1", [10, 11], [12], [13], version=2)
    row = story.archive[0].turns[1]
    other = {"action_A": np.array([99], np.int32), "observation_O": np.array([7, 8], np.int32), "context_start": 1}
    fields = {name: getattr(row.turn, name) for name in Turn.__struct_fields__} | {change: other[change]}
    story.archive[0].turns[1] = row._replace(turn=Turn(**fields))
    assert BROKEN_CHAIN in kinds(story.end(steps=1))


def test_a_window_with_the_right_targets_in_another_context_is_a_broken_chain(story):
    story.admit("g1-e0", "g1")
    story.play("g1-e0", [10], [11])
    story.close("g1", change=lambda tokens_T: np.where(tokens_T == 7, 8, tokens_T))
    story.lease(1, "g1")
    story.learn(1, "g1", version=2)
    story.commit(1, "g1")
    story.forget("g1", 1)
    assert kinds(story.end(steps=1)) == [BROKEN_CHAIN]


def test_missing_an_episode_that_was_forgotten_and_not_archived(story):
    story.train(1, "g1", [10], version=2)
    story.archive.clear()
    assert set(kinds(story.end(steps=1))) == {LOST, MISSING}


def test_missing_a_trained_window_that_was_never_archived(story):
    story.train(1, "g1", [10], version=2)
    story.admit("g2-e0", "g2")
    story.play("g2-e0", [11], version=2)
    story.close("g2")
    story.lease(2, "g2")
    story.learn(2, "g2", version=3)
    story.commit(2, "g2")
    assert kinds(story.end(steps=2)) == [MISSING]


def test_an_episode_archived_twice_or_never_admitted_contradicts(story):
    story.train(1, "g1", [10], version=2)
    story.archive += [story.archive[0], story.archive[0]._replace(id="nobody")]
    assert kinds(story.end(steps=1)).count(CONTRADICTION) == 2


def test_a_ledger_with_a_step_missing_or_at_another_version_contradicts(story):
    story.train(1, "g1", [10], version=2)
    story.train(2, "g2", [11], version=3)
    whole = list(story.ledger)
    story.ledger[:] = [whole[0], whole[1]._replace(version=1)]
    (crime,) = audit(story.end(steps=2)).crimes
    assert crime.kind == CONTRADICTION and "began at version 1" in crime.what
    story.ledger[:] = whole[1:]
    assert CONTRADICTION in kinds(story.end(steps=2))


@pytest.mark.parametrize("wrong", [{"action_tokens": 3}, {"staleness_max": 1}])
def test_a_ledger_whose_numbers_are_not_those_of_its_windows_contradicts(story, wrong):
    story.train(1, "g1", [10, 11], version=2)
    story.ledger[0] = story.ledger[0]._replace(**wrong)
    assert kinds(story.end(steps=1)) == [CONTRADICTION]


def test_distance_counts_updates_undone_and_updates_since():
    lineage = [(1, 0), (2, 1), (3, 2), (6, 2), (7, 3)]  # versions 4 and 5 were of steps 3 and 4, which were undone
    assert [distance(version, lineage) for version in (7, 6, 3, 1, 4, 5)] == [0, 1, 1, 3, 2, 3]
