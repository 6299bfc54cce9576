"""What a draft must keep, each rule broken once."""

import pytest

from klong_rl.judging.rubric import CODE, EXECUTION, RESULTS, load
from klong_rl.papers.config import RubricConfig
from klong_rl.papers.drafts import Critique, Draft, read_json, rubric_of
from klong_rl.papers.rules import check_draft
from tests.unit.papers.drafting import CODE_LINE, SUBJECT, draft, node

RULES = RubricConfig()
GOOD = (node("a"), node("b"))


def test_a_good_draft_is_a_rubric_that_paperbench_reads():
    rubric = check_draft(draft(), SUBJECT, RULES)
    assert load(rubric.to_json()).version == rubric.version and len(rubric.leaves) == 3
    assert rubric_of(draft(), "p").nodes[0].id == rubric.nodes[0].id != rubric_of(draft(), "q").nodes[0].id


@pytest.mark.parametrize(
    "spoilt, complaint",
    [
        (draft(node("a")), "has 1 leaves"),
        (draft(*GOOD, node("c", category=CODE)), "code that never ran"),
        (draft(*(node(n, category=RESULTS) for n in "abc")), "No leaf is of Code Development"),
        (draft(*GOOD, node("c", category=EXECUTION, weight=0)), "weight 0 is not 1 to 100"),
        (draft(*GOOD, node("c", category=EXECUTION, why="")), "say in `why`"),
        (draft(*GOOD, node("c", category=EXECUTION, evidence="")), "say in `evidence`"),
        (draft(*GOOD, node("c", category=EXECUTION, requirements="short")), "a requirement has 15 to 1500"),
        (draft(*GOOD, node("c", category=EXECUTION, requirements="The requirement of a is met.")), "asks for the same"),
        (draft(*GOOD, node("x", category=""), node("y", parent="x", category=RESULTS)), "have a single child"),
        (draft(addendum="So: the requirement of B is met!"), "repeats the requirement of leaf b"),
        (draft(addendum=f"Do this:\n    {CODE_LINE}"), "a line of the reference code"),
        (draft(addendum="See https://github.com/us/ours."), "which is on the blacklist"),
        (draft(*GOOD, node("c", parent="nowhere")), "its parent 'nowhere' is none"),
        (draft(*GOOD, node("a")), "the same id"),
        (draft(*GOOD, node("c", parent="")), "2 nodes with an empty parent"),
        (draft(*GOOD, node("c", parent="d"), node("d", parent="c")), "form a cycle"),
        (draft(*GOOD, node("c", category="Beauty")), "task_category='Beauty'"),
        (draft(*GOOD, node("c"), node("d", parent="c", category=RESULTS)), "on a node with sub_tasks"),
    ],
)
def test_each_rule_is_told_to_the_evaluator(spoilt, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_draft(spoilt, SUBJECT, RULES)


def test_what_the_paper_says_itself_is_no_leak():
    told = draft(node("a", requirements="The paper says a lot."), node("b"), node("c", category=RESULTS))
    told.addendum = "The paper says a lot."
    check_draft(told, SUBJECT, RULES)


@pytest.mark.parametrize("reply", ["", "no", "[]", "{", '{"problems": 1}', '{"problems": [{"node": 1}]}', "{}"])
def test_an_answer_that_is_not_the_schemas_is_told_so(reply):
    with pytest.raises(ValueError, match="Answer again"):
        read_json(reply, Critique)


def test_json_is_found_between_other_words():
    found = read_json('Here it is:\n```json\n{"addendum": "x", "nodes": []}\n```', Draft)
    assert (found.addendum, found.nodes) == ("x", [])
