"""The rules one by one, as plain Python: what each transition does, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from klong_rl.buffer import (
    Committed,
    Conflict,
    OutOfSequence,
    StaleEpoch,
    Unknown,
    WrongState,
)
from klong_rl.buffer.rules import Rules
from klong_rl.types import EpisodeSpec, Outcome, Task, Verdict, Window

TASK = Task(id="relay/train/0", family="relay", instruction="Follow the clues.", image="none")
SUBMITTED = Outcome(kind="submitted")


@pytest.fixture
def rules() -> Rules:
    return Rules()


def spec(group: str, i: int = 0, size: int = 1, purpose: str = "train") -> EpisodeSpec:
    return EpisodeSpec(
        id=f"{group}{i}", group=group, group_size=size, stage=1, purpose=purpose, task=TASK, timeout_s=9.0, max_turns=4
    )


def window(name: str, group: str, version: int = 0) -> Window:
    return Window(
        id=name, episode=f"{group}0", group=group, stage=1, tokens_T=np.array([1, 2], np.int32),
        targets_T=np.array([0, 1], np.uint8), logprobs_T=np.zeros(2, np.float32), versions=((version, 1),),
    )  # fmt: skip


def judged(rules: Rules, *specs: EpisodeSpec) -> None:
    for one in specs:
        rules.admit(one)
        claim = rules.claim("actor", f"claim {one.id}")
        rules.seal(one.id, claim.epoch, SUBMITTED)
        rules.verdict(one.id, claim.epoch, Verdict(score=1.0))


def closed(rules: Rules, *groups: str, version: int = 0) -> None:
    for group in groups:
        judged(rules, spec(group))
        rules.close_group(group, [window(f"{group}/w", group, version)])


def test_admission_happens_once(rules: Rules) -> None:
    assert rules.admit(spec("g"))
    assert not rules.admit(spec("g"))
    assert rules.counts().states == {"queued": 1}


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(spec("g", 0, size=3), id="another spec of a known episode"),
        pytest.param(spec("g", 1, size=3), id="another group size"),
        pytest.param(spec("g", 1, size=2, purpose="eval"), id="another purpose"),
    ],
)
def test_admission_refuses_what_contradicts_the_first(rules: Rules, other: EpisodeSpec) -> None:
    rules.admit(spec("g", 0, size=2))
    with pytest.raises(Conflict):
        rules.admit(other)


def test_a_group_takes_no_member_too_many(rules: Rules) -> None:
    rules.admit(spec("g", 0, size=1))
    with pytest.raises(Conflict, match="group g"):
        rules.admit(spec("g", 1, size=1))


def test_claims_take_evaluation_first_and_then_in_order(rules: Rules) -> None:
    for one in (spec("t"), spec("u"), spec("e", purpose="eval")):
        rules.admit(one)
    assert [rules.claim("actor", str(i)).spec.group for i in range(3)] == ["e", "t", "u"]
    assert rules.claim("actor", "3") is None


def test_a_claim_whose_reply_was_lost_gets_the_same_episode(rules: Rules) -> None:
    for group in "ab":
        rules.admit(spec(group))
    assert rules.claim("actor", "r") == rules.claim("actor", "r") == (spec("a"), 1)
    assert rules.claim("actor", "s") == (spec("b"), 1)


def test_segments_are_appended_in_order_and_once(rules: Rules) -> None:
    rules.admit(spec("g"))
    rules.claim("actor", "r")
    rules.append("g0", 1, 0, 3, b"zero")
    rules.append("g0", 1, 0, 3, b"zero")
    with pytest.raises(OutOfSequence, match="segment 2 came, 1 is next"):
        rules.append("g0", 1, 2, 3, b"two")
    with pytest.raises(Conflict, match="segment g0/0"):
        rules.append("g0", 1, 0, 3, b"other")
    assert rules.episodes["g0"].segments == [b"zero"]


def test_a_holder_that_lost_its_episode_changes_nothing(rules: Rules) -> None:
    rules.admit(spec("g"))
    rules.claim("zombie", "r")
    rules.requeue("g0", 1, "silent")
    with pytest.raises(StaleEpoch):  # before anybody else claims it
        rules.append("g0", 1, 0, 3, b"late")
    assert rules.claim("actor", "s") == (spec("g"), 2)
    for late in (
        lambda: rules.append("g0", 1, 0, 3, b"late"),
        lambda: rules.seal("g0", 1, SUBMITTED),
        lambda: rules.requeue("g0", 1, "late"),
        lambda: rules.drop("g0", "late", 1),
        lambda: rules.verdict("g0", 1, Verdict(score=1.0)),
    ):
        with pytest.raises(StaleEpoch, match=r"epoch 1 doesn't hold it \(now running, epoch 2\)"):
            late()
    assert rules.episodes["g0"].segments == [] and rules.episodes["g0"].state == "running"


def test_a_requeue_keeps_the_segments_and_counts_failures_since_the_last_one(rules: Rules) -> None:
    rules.admit(spec("g"))
    rules.claim("actor", "r")
    rules.append("g0", 1, 0, 3, b"zero")
    assert rules.requeue("g0", 1, "engine") == 1
    assert rules.requeue("g0", 1, "engine") == 1  # the reply was lost
    assert rules.episodes["g0"].segments == [b"zero"] and rules.counts().requeues == {"engine": 1}
    rules.claim("actor", "s")
    assert rules.requeue("g0", 2, "engine") == 2
    rules.claim("actor", "t")
    rules.append("g0", 3, 1, 2, b"one")
    assert rules.requeue("g0", 3, "engine") == 1, "it had gone on since"


def test_an_intended_action_is_known_until_its_segment_is_there(rules: Rules) -> None:
    rules.admit(spec("g"))
    rules.claim("actor", "r")
    rules.intend("g0", 1, 0, 3, b"turn")
    rules.intend("g0", 1, 0, 3, b"turn")
    with pytest.raises(Conflict, match="intended action of episode g0/0"):
        rules.intend("g0", 1, 0, 3, b"other")
    with pytest.raises(OutOfSequence):
        rules.intend("g0", 1, 1, 3, b"next")
    with pytest.raises(WrongState, match="an action that wasn't appended"):
        rules.seal("g0", 1, SUBMITTED)
    rules.abandon("actor", "it died", "x")
    rules.claim("other", "s")
    assert rules.episodes["g0"].intended == (b"turn", 3)
    rules.append("g0", 2, 0, 3, b"interrupted")
    assert rules.episodes["g0"].intended is None
    rules.intend("g0", 2, 0, 3, b"turn")  # delivered late
    assert rules.episodes["g0"].intended is None
    assert rules.counts().appended == {"segments": 1, "tokens": 3}


def test_what_is_rewound_is_counted_with_its_reason(rules: Rules) -> None:
    rules.admit(spec("g"))
    rules.claim("actor", "r")
    for i, segment in enumerate((b"zero", b"one", b"two")):
        rules.append("g0", 1, i, 10**i, segment)
        rules.keep_snapshot("g0", 1, i + 1, f"image-{i}")
    rules.intend("g0", 1, 3, 1000, b"turn")
    assert rules.rewind("g0", 1, 1, "sandbox gone") == 1110
    assert rules.rewind("g0", 1, 1, "sandbox gone") == 0
    e = rules.episodes["g0"]
    assert e.segments == [b"zero"] and e.snapshot is None, "a snapshot of what was given up is of no use"
    rules.drop("g0", "straggler")
    assert rules.counts().discarded == {"sandbox gone": 1110, "straggler": 1}


def test_to_get_as_far_as_before_is_no_progress(rules: Rules) -> None:
    rules.admit(spec("g"))
    for epoch in (1, 2, 3):
        rules.claim("actor", str(epoch))
        rules.rewind("g0", epoch, 0, "sandbox gone")
        rules.append("g0", epoch, 0, 1, b"zero")
        assert rules.requeue("g0", epoch, "sandbox gone") == epoch
    rules.claim("actor", "4")
    rules.append("g0", 4, 1, 1, b"one")
    assert rules.episodes["g0"].failures == 0


def test_an_older_snapshot_does_not_replace_a_newer_one(rules: Rules) -> None:
    rules.admit(spec("g"))
    rules.claim("actor", "r")
    rules.append("g0", 1, 0, 1, b"zero")
    rules.keep_snapshot("g0", 1, 1, "new")
    rules.keep_snapshot("g0", 1, 0, "old")
    assert rules.episodes["g0"].snapshot == ("new", 1)
    with pytest.raises(OutOfSequence):
        rules.keep_snapshot("g0", 1, 2, "of the future")


def test_a_group_is_extended_while_none_of_its_members_has_ended(rules: Rules) -> None:
    for i in range(2):
        rules.admit(spec("g", i, size=2))
    assert rules.extend("g", 20.0, 8)
    assert not rules.extend("g", 20.0, 8) and not rules.extend("g", 10.0, 9)
    claim = rules.claim("actor", "r")
    assert (claim.spec.timeout_s, claim.spec.max_turns) == (20.0, 8)
    assert rules.extend("g", 30.0, 8)
    assert rules.append("g0", 1, 0, 1, b"zero") == (30.0, 8), "who runs it learns it with the next segment"
    rules.seal("g0", 1, SUBMITTED)
    assert not rules.extend("g", 40.0, 8)
    assert rules.claim("actor", "s").spec.timeout_s == 30.0
    with pytest.raises(Unknown):
        rules.extend("h", 1.0, 1)


def test_the_death_of_a_holder_is_not_a_failure_of_the_episode(rules: Rules) -> None:
    for group in "ab":
        rules.admit(spec(group))
    rules.claim("actor.1", "r")
    rules.claim("other.1", "s")
    assert rules.abandon("actor.1", "it died", "x") == 1
    rules.claim("actor.2", "t")
    assert rules.abandon("actor.1", "it died", "x") == 1  # delivered again, late: what was claimed since stays
    assert rules.abandon("actor.1", "it died", "y") == 0
    states = {name: (e.state, e.owner, e.failures) for name, e in rules.episodes.items()}
    assert states == {"a0": ("running", "actor.2", 0), "b0": ("running", "other.1", 0)}
    assert rules.abandon("", "restart", "z") == 2


def test_what_a_dead_judge_held_is_judged_again(rules: Rules) -> None:
    rules.admit(spec("g"))
    rules.claim("actor", "r")
    rules.seal("g0", 1, SUBMITTED)
    rules.next_to_judge("judge.1", 1000, "a", now_ms=0)
    assert rules.abandon("judge.2", "it died", "x") == 0
    assert rules.next_to_judge("judge.3", 1000, "b", now_ms=1) is None
    assert rules.abandon("judge.1", "it died", "y") == 0
    assert rules.next_to_judge("judge.3", 1000, "c", now_ms=1).epoch == 1


def test_what_could_not_be_judged_keeps_its_outcome_for_its_next_holder(rules: Rules) -> None:
    rules.admit(spec("g"))
    rules.claim("actor", "r")
    rules.seal("g0", 1, SUBMITTED)
    rules.requeue("g0", 1, "no judge got at it")
    assert rules.claim("actor", "s").epoch == 2 and rules.episodes["g0"].outcome == SUBMITTED
    rules.rewind("g0", 2, 0, "sandbox gone")
    assert rules.episodes["g0"].outcome is None


def test_windows_of_dead_versions_are_stale(rules: Rules) -> None:
    closed(rules, "a", version=5)
    closed(rules, "b", version=7)
    closed(rules, "c", version=8)
    assert [ref.group for ref in rules.lease(0, 2, 5, [7])] == ["a", "c"]
    assert rules.counts().windows == {"leased": 2, "stale": 1}


def test_an_outcome_and_a_verdict_stand(rules: Rules) -> None:
    rules.admit(spec("g"))
    rules.claim("actor", "r")
    rules.seal("g0", 1, SUBMITTED)
    rules.seal("g0", 1, SUBMITTED)
    with pytest.raises(Conflict, match="outcome"):
        rules.seal("g0", 1, Outcome(kind="timeout"))
    assert rules.verdict("g0", 1, Verdict(score=0.5))
    assert not rules.verdict("g0", 1, Verdict(score=1.0))
    assert rules.episodes["g0"].verdict.score == 0.5
    assert not rules.drop("g0", "late")


def test_a_verdict_of_an_earlier_attempt_does_not_count(rules: Rules) -> None:
    rules.admit(spec("g"))
    rules.claim("actor", "r")
    rules.seal("g0", 1, SUBMITTED)
    rules.requeue("g0", 1, "its snapshot is gone")
    rules.claim("actor", "s")
    rules.seal("g0", 2, SUBMITTED)
    with pytest.raises(StaleEpoch):
        rules.verdict("g0", 1, Verdict(score=1.0))
    assert rules.verdict("g0", 2, Verdict(score=0.0))


def test_a_dead_judges_episode_comes_back(rules: Rules) -> None:
    rules.admit(spec("g"))
    rules.claim("actor", "r")
    rules.seal("g0", 1, SUBMITTED)
    assert rules.next_to_judge("judge", 100, "a", now_ms=0) == (spec("g"), 1, SUBMITTED)
    assert rules.next_to_judge("judge", 100, "b", now_ms=99) is None
    assert rules.next_to_judge("judge", 100, "c", now_ms=100) == (spec("g"), 1, SUBMITTED)


def test_a_group_is_complete_when_each_member_is_judged_or_dropped(rules: Rules) -> None:
    judged(rules, spec("g", 0, size=2))
    assert rules.next_group_to_close() is None
    with pytest.raises(WrongState, match="group g is open"):
        rules.close_group("g", [])
    rules.admit(spec("g", 1, size=2))
    assert rules.drop("g1", "straggler")
    assert rules.next_group_to_close() == "g"


def test_a_group_closes_once(rules: Rules) -> None:
    judged(rules, spec("g"))
    assert rules.close_group("g", [window("w", "g")])
    assert not rules.close_group("g", [window("other", "g")])
    assert rules.ready() == (1, 2, 1)
    judged(rules, spec("h"))
    with pytest.raises(Conflict, match="window w"):
        rules.close_group("h", [window("w", "h")])


def test_evaluation_is_scored_and_never_trained(rules: Rules) -> None:
    judged(rules, spec("e", purpose="eval"))
    with pytest.raises(WrongState, match="never trained"):
        rules.close_group("e", [window("w", "e")])
    assert rules.close_group("e", [])
    assert rules.scores("e") == {"e0": 1.0} and rules.scores("f") == {}
    assert rules.forget("e") and rules.scores("e") == {"e0": 1.0}


def test_a_lease_takes_whole_groups_or_nothing(rules: Rules) -> None:
    closed(rules, "a", "b", "c")
    assert rules.lease(0, 4, oldest_version=0) == [] and rules.leases == {}
    assert [ref.group for ref in rules.lease(0, 2, oldest_version=0)] == ["a", "b"]
    assert [ref.group for ref in rules.lease(0, 1, oldest_version=0)] == ["a", "b"]  # the same step, the same windows
    assert [ref.group for ref in rules.lease(1, 1, oldest_version=0)] == ["c"]


def test_a_window_is_as_old_as_its_oldest_token(rules: Rules) -> None:
    closed(rules, "a", version=0)
    closed(rules, "b", version=1)
    rules.publish_version(2, "r")
    assert rules.version == 3
    assert [ref.group for ref in rules.lease(0, 1, oldest_version=1)] == ["b"]
    assert rules.counts().windows == {"leased": 1, "stale": 1} and rules.consumed() == ["a"]


def test_what_was_not_committed_is_given_out_again_in_its_old_order(rules: Rules) -> None:
    closed(rules, "a", "b", "c")
    for step in range(3):
        rules.lease(step, 1, oldest_version=0)
    assert rules.commit(0) == 1 and rules.commit(0) == 0
    assert rules.rollback(0) == 2 and rules.rollback(0) == 0
    assert [ref.group for ref in rules.lease(1, 2, oldest_version=0)] == ["b", "c"]


def test_what_was_committed_is_not(rules: Rules) -> None:
    closed(rules, "a", "b")
    rules.lease(1, 1, oldest_version=0)
    rules.commit(5)
    assert rules.committed == 1  # the newest step that was leased
    with pytest.raises(Committed, match="committed for good"):
        rules.lease(1, 1, oldest_version=0)
    with pytest.raises(Committed, match="restore the checkpoint of step 1 or later"):
        rules.rollback(0)
    assert rules.consumed() == ["a"]


def test_versions_only_grow(rules: Rules) -> None:
    assert rules.publish_version(0, "a") == 1
    assert rules.publish_version(7, "b") == 8
    assert rules.publish_version(3, "c") == 9
    assert rules.publish_version(3, "c") == 9


def test_only_what_is_consumed_can_be_forgotten_and_it_is_not_admitted_again(rules: Rules) -> None:
    closed(rules, "a")
    with pytest.raises(WrongState, match="ready"):
        rules.forget("a")
    rules.lease(0, 1, oldest_version=0)
    rules.commit(0)
    assert rules.forget("a") and not rules.forget("a")
    assert not rules.admit(spec("a"))
    assert rules.windows == {} and rules.episodes == {}
    with pytest.raises(Unknown):
        rules.seal("a0", 1, SUBMITTED)
