"""What a run cost is laid at the feet of the kill that came before it."""

import random
from collections import Counter

from tests.chaos.audit import LOST, TWICE, Audit, Crime
from tests.chaos.campaign import in_order
from tests.chaos.faults import FAULTS
from tests.chaos.history import History
from tests.chaos.report import Campaign, Fired, redone, table
from tests.unit.chaos.story import Story


def kill(kind: str, position: int, recovered_s: float = 1.0) -> Fired:
    return Fired(kind, "run-0", "victim", position, recovered_s)


def test_tokens_given_up_and_trained_again_are_redone(tmp_path):
    story = Story(tmp_path)
    story.admit("g1-e0", "g1")
    story.play("g1-e0", [10], [11, 12])
    before_rewind = len(story.data)
    story.rewind("g1-e0", 1, "its sandbox is gone")
    story.close("g1")
    story.lease(1, "g1")
    before_rollback = len(story.data)
    story.rollback(1, "g1")
    history = story.end(steps=0).history
    assert sorted(tokens for _, tokens in redone(history)) == [1, 2]

    campaign = Campaign()
    container, rank = kill("container", before_rewind - 1), kill("rank", before_rollback - 1)
    campaign.add([rank, container], history, Audit(Counter(), []))
    assert (container.redone, rank.redone) == (2, 1)


def test_a_crime_is_blamed_on_the_last_kill_before_it_and_shown_in_its_row():
    first, second = kill("redis", 100), kill("judge", 200, recovered_s=3.0)
    crimes = [Crime(LOST, "", 5, 150), Crime(TWICE, "", 7, 250), Crime(LOST, "", 1, None)]
    campaign = Campaign()
    campaign.add([first, second], History(), Audit(Counter({"trained": 9}), crimes))
    assert (first.lost, first.twice, second.lost, second.twice) == (6, 0, 0, 7)
    made = table(campaign, ["redis", "judge"])
    assert list(made.columns[4].cells) == ["6", "0", "6"] and list(made.columns[5].cells) == ["0", "7", "7"]
    assert list(made.columns[2].cells)[-1] == "2.0, 3.0"


def test_a_campaign_is_clean_only_with_all_its_kills_and_nothing_else():
    assert Campaign(fired=[kill("redis", 1)]).is_clean(1)
    assert not Campaign(fired=[kill("redis", 1)]).is_clean(2)
    assert not Campaign(fired=[kill("redis", 1)], failures=["run-0: ended"]).is_clean(1)
    assert not Campaign(fired=[kill("redis", 1)], crimes=[Crime("missing episode", "")]).is_clean(1)


def test_kinds_come_in_turns_by_the_seed():
    def first(n: int, seed: int) -> list[str]:
        order = in_order(list(FAULTS), random.Random(seed))
        return [next(order) for _ in range(n)]

    assert Counter(first(3 * len(FAULTS), 1)) == dict.fromkeys(FAULTS, 3)
    assert first(9, 1) == first(9, 1) != first(9, 2)
