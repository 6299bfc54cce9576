"""Rubric trees: PaperBench's load and recompute, malformed ones are refused by name, pruning and capping."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klong_rl.judging.rubric import (
    MOST_DEPTH,
    MOST_NODES,
    SUBTREE,
    Rubric,
    RubricError,
    aggregate,
    cap,
    code_only,
    from_tree,
    graded,
    load,
)
from tests.unit.judging.trees import chain, leaf, needs_paperbench, node, paperbench, small


@needs_paperbench
@pytest.mark.parametrize("path", paperbench("rubrics"), ids=lambda path: path.stem)
def test_paperbench_rubrics_load_as_they_are(path):
    rubric = load(path.read_bytes())
    assert load(rubric.to_json()) == rubric
    assert {leaf.category for leaf in code_only(rubric).leaves} == {"Code Development"}


@needs_paperbench
@pytest.mark.parametrize("path", paperbench("graded"), ids=lambda path: path.stem)
def test_graded_trees_recompute_from_their_leaves(path):
    rubric = load(path.read_bytes())
    scores = aggregate(rubric, {leaf.id: leaf.score for leaf in rubric.leaves})
    assert len(scores) == len(rubric.nodes) > 200
    for each in rubric.nodes:
        assert scores[each.id] == pytest.approx(each.score, abs=1e-12), each.id


@needs_paperbench
@pytest.mark.parametrize("path", paperbench("graded"), ids=lambda path: path.stem)
def test_a_graded_tree_is_written_as_paperbench_writes_it(path):
    theirs, rubric = json.loads(path.read_text()), load(path.read_bytes())
    said, waiting = {}, [theirs]
    while waiting:
        each = waiting.pop()
        said[each["id"]] = each["explanation"]
        waiting += each["sub_tasks"]
    ours = graded(rubric, {leaf.id: leaf.score for leaf in rubric.leaves}, said)
    waiting = [(ours, theirs)]
    while waiting:
        mine, given = waiting.pop()
        assert set(given) - set(mine) <= {"finegrained_task_category"} and set(mine) <= set(given)
        for key in set(mine) - {"sub_tasks", "score", "judge_metadata"}:  # the last is whatever a grader noted
            assert mine[key] == given[key], (key, mine["id"])
        assert mine["score"] == pytest.approx(given["score"], abs=1e-12)
        waiting += zip(mine["sub_tasks"], given["sub_tasks"], strict=True)


def test_weighted_means_go_up():
    rubric = from_tree(small())
    assert aggregate(rubric, {"a1": 1, "a2": 0, "b": 0}) == {"a1": 1, "a2": 0, "b": 0, "a": 2 / 3, "root": 0.5}


def test_a_leaf_that_was_not_judged_is_not_a_zero():
    with pytest.raises(RubricError, match="leaf a2 has no score"):
        aggregate(from_tree(small()), {"a1": 1, "b": 0})


def cyclic():
    tree = node("root", 1, leaf("a"))
    tree["sub_tasks"].append(tree)
    return tree


def without(field):
    tree = small()
    del tree["sub_tasks"][0][field]
    return tree


@pytest.mark.parametrize(
    "tree, named",
    [
        (node("root", 1, leaf("a", -2)), "node a: weight=-2"),
        (node("root", 1, leaf("a", float("nan"))), "node a: weight=nan"),
        (node("root", 1, leaf("a", True)), "node a: weight=True"),
        (node("root", 1, leaf("a", "1")), "node a: weight='1'"),
        (node("root", 1, leaf("a"), task_category="Code Development"), "node root: task_category='Code Development'"),
        (node("root", 1, node("a")), "leaf a: task_category=None"),
        (node("root", 1, leaf("a", category="Art")), "leaf a: task_category='Art'"),
        (node("root", 1, leaf("a"), leaf("a")), "node a stands in the tree twice"),
        (node("root", 1, leaf("a", 0), leaf("b", 0)), "node root: the weights of its 2 sub_tasks are all 0"),
        (cyclic(), "node root stands in the tree twice"),
        (without("id"), "under node root: node .without id. lacks id"),
        (without("weight"), "node a lacks weight"),
        (without("requirements"), "node a lacks requirements"),
        (without("sub_tasks"), "node a lacks sub_tasks"),
        (small() | {"sub_tasks": {}}, "node root: sub_tasks must be a list"),
        (node("root", 1, "leaf"), "under node root: a node is an object, not str"),
        ([], "at the root: a node is an object, not list"),
        (node("root", 1, *(leaf(str(i)) for i in range(50_000))), f"more than {MOST_NODES} nodes"),
        (chain(10_000), f"over the {MOST_DEPTH} levels"),
    ],
)
def test_a_malformed_tree_is_refused_by_name(tree, named):
    with pytest.raises(RubricError, match=named):
        from_tree(tree)


@pytest.mark.parametrize(
    "text, named",
    [
        ("{", "not JSON"),
        ('{"sub_tasks":[' * 10_000 + "]}" * 10_000, "nested deeper|lacks"),
        (b"\xff", "not JSON"),
    ],
)
def test_a_text_that_is_no_tree_is_refused(text, named):
    with pytest.raises(RubricError, match=named):
        load(text)


def test_code_only_keeps_what_leads_to_code_that_counts():
    tree = small()
    tree["sub_tasks"].append(node("never", 0, leaf("c")))
    pruned = code_only(from_tree(tree))
    assert [each.id for each in pruned.nodes] == ["root", "a", "a1"]
    assert aggregate(pruned, {"a1": 1})["root"] == 1
    with pytest.raises(RubricError, match="no Code Development leaf"):
        code_only(from_tree(node("root", 1, leaf("b", 1, "Result Analysis"))))


def test_a_capped_tree_asks_for_what_it_cut_in_one_question():
    capped = cap(from_tree(small()), 1)
    a, b = capped.leaves
    assert (a.category, b.category) == (SUBTREE, "Result Analysis")
    assert a.requirements.splitlines() == [
        "what a asks for",
        "- (weight 2) what a1 asks for",
        "- (weight 1) what a2 asks for",
    ]
    assert cap(from_tree(small()), 2) == from_tree(small())
    assert [each.category for each in cap(from_tree(small()), 0).nodes] == [SUBTREE]


def test_the_version_changes_with_what_a_score_depends_on():
    changed = small()
    changed["sub_tasks"][0]["weight"] = 2
    assert from_tree(small()).version == from_tree(small() | {"explanation": "?"}).version
    assert from_tree(changed).version != from_tree(small()).version


def trees() -> st.SearchStrategy[dict]:
    weights, categories = st.integers(1, 9), st.sampled_from(["Code Development", "Code Execution"])
    leaves = st.builds(lambda weight, category: leaf("", weight, category), weights, categories)

    def inner(children: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
        lists = st.lists(children, min_size=1, max_size=4)
        return st.builds(lambda weight, found: node("", weight, *found), weights, lists)

    return st.recursive(leaves, inner, max_leaves=12).map(_numbered)


def _numbered(tree: dict) -> dict:
    waiting, n = [tree], 0
    while waiting:
        each = waiting.pop()
        each["id"], n = f"n{n}", n + 1
        waiting += each["sub_tasks"]
    return json.loads(json.dumps(tree))


def by_recursion(tree: dict, scores: dict[str, float]) -> float:
    if not tree["sub_tasks"]:
        return scores[tree["id"]]
    total = sum(child["weight"] for child in tree["sub_tasks"])
    return sum(child["weight"] * by_recursion(child, scores) for child in tree["sub_tasks"]) / total


@settings(max_examples=50)
@given(trees(), st.randoms(use_true_random=False))
def test_any_tree_aggregates_as_the_definition_says(tree, random):
    rubric = from_tree(tree)
    scores = {each.id: random.randint(0, 1) for each in rubric.leaves}
    assert aggregate(rubric, scores)[rubric.nodes[0].id] == pytest.approx(by_recursion(tree, scores))


@settings(max_examples=50)
@given(trees(), st.integers(0, 4))
def test_pruning_and_capping_give_trees_that_load(tree, depth):
    rubric = from_tree(tree)
    capped = cap(rubric, depth)
    assert max(each.depth for each in capped.nodes) <= depth
    assert load(capped.to_json()) == capped
    code = [each for each in rubric.leaves if each.category == "Code Development"]
    if code:
        pruned = code_only(rubric)
        assert isinstance(pruned, Rubric) and [each.id for each in pruned.leaves] == [each.id for each in code]
        assert load(pruned.to_json()) == pruned
