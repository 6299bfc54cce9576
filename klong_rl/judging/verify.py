"""Whether a record is what was written when its verdict was given, and whether the score follows from what it names."""

from __future__ import annotations

import json
from collections.abc import Iterator

from klong_rl.judging.prompts import parse_score
from klong_rl.judging.record import Record, is_signed_by
from klong_rl.judging.rubric import RubricError, aggregate, load
from klong_rl.judging.store import Damaged, Store

RUBRIC = "rubric"  # what the reward of that name keeps its tree and its score under
TOLERANCE = 1e-9  # of a recomputed score: far below what one leaf of any rubric weighs


def problems(record: Record, store: Store, key: bytes | None) -> list[str]:
    """What is wrong with a record, worst first; none if it holds. Blocking: reads all that the record names."""
    forged = bool(record.signature) and key is not None and not is_signed_by(record, key)
    said = ["the signature isn't that of this key over this record: changed since, or signed with another key"]
    return [*(said if forged else ()), *_contents(record, store), *_score(record, store)]


def unverified(record: Record, key: bytes | None) -> str:
    """Why nobody can say that a record wasn't changed; "" if its signature says so."""
    if not record.signature:
        return "unsigned: it was judged without a key"
    return "" if key is not None else "signed, and there is no key here to verify it with"


def _contents(record: Record, store: Store) -> Iterator[str]:
    names = [record.task, *record.kept.values(), *(run.output for run in record.commands)]
    names += [read.blob for read in record.reads if read.blob]
    names += [name for call in record.calls for name in (call.request, call.reply)]
    for name in dict.fromkeys(names):
        try:
            store.get(name)
        except Damaged as damaged:
            yield str(damaged)


def _score(record: Record, store: Store) -> Iterator[str]:
    """The score of each rubric is computed again, from the raw replies upward."""
    if not 0 <= record.score <= 1:
        yield f"score {record.score} is outside [0, 1]"
    for name in record.kept:
        if (name == RUBRIC or name.endswith(f".{RUBRIC}")) and name in record.parts:
            yield from _rubric(record, store, name)
    judged_by_rubric = str(record.reward.get("_target_", "")).startswith("klong_rl.rewards.rubric.")
    if judged_by_rubric and RUBRIC in record.parts and abs(record.score - record.parts[RUBRIC]) > TOLERANCE:
        yield f"score {record.score:.6f} isn't the rubric's {record.parts[RUBRIC]:.6f}"
    for call in record.calls:
        try:
            asked = json.loads(store.text(call.request)).get("model")
        except Damaged:
            continue  # `_contents` has named it
        if asked != record.model:
            yield f"leaf {call.about} was asked of {asked}, the record says {record.model}"


def _rubric(record: Record, store: Store, name: str) -> Iterator[str]:
    """`name`: of the tree among what was kept and of its score among the parts, with the composite's part before it."""
    try:
        again = rubric_score(record, store, name)
    except (Damaged, RubricError, ValueError) as error:
        yield f"the score of its {name} can't be computed again: {error}"
        return
    if abs(again - record.parts[name]) > TOLERANCE:
        yield f"its {name} gives {again:.6f} from the judge's raw replies, the record says {record.parts[name]:.6f}"


def rubric_score(record: Record, store: Store, name: str = RUBRIC) -> float:
    """The root's score from the valid raw replies. Raises Damaged, RubricError, ValueError."""
    rubric, prefix = load(store.get(record.kept[name])), name.removesuffix(RUBRIC)
    calls = [call for call in record.calls if call.about.startswith(prefix)]
    if not calls:
        return 0.0  # of an empty submission nothing is asked
    categories = {prefix + leaf.id: leaf.category for leaf in rubric.leaves}
    valid = [call for call in calls if not call.problem and call.about in categories]
    scores = {
        call.about.removeprefix(prefix): parse_score(store.text(call.reply), categories[call.about]) for call in valid
    }
    return aggregate(rubric, scores)[rubric.nodes[0].id]
