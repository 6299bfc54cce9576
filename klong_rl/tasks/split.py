"""Which of a folder's tasks are for training and which for evaluation, and in which order they come. Pure."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from klong_rl.errors import UserError


def split(
    names: Sequence[str], path: str, held_out_names: Sequence[str], held_out_share: float
) -> tuple[list[str], list[str]]:
    """Names for training and for evaluation, each sorted; no name is in both. `path` is what messages name.

    `held_out_names` are for evaluation; without them, `held_out_share` of all are, by their names, but one at least if
    there are two. A share of 0 holds out none: evaluation is on what is trained. Raises UserError.
    """
    names = sorted(names)
    if unknown := set(held_out_names) - set(names):
        raise UserError(f"tasks.held_out_names={sorted(unknown)} are no tasks of {path}")
    if held_out_share == 0 and not held_out_names:
        return names, names
    by_hash = sorted(names, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest())
    kept = sorted(held_out_names or by_hash[: max(1, round(held_out_share * len(names)))])
    train = [name for name in names if name not in set(kept)]
    if not train:
        raise UserError(f"tasks.path={path} has {len(names)} task, and evaluation takes it; add another")
    return train, kept


def picked(names: Sequence[str], family: str, seed: int, difficulty: int, index: int) -> str:
    """The `index`-th of an endless order that goes through all of them, anew in each lap. Raises UserError."""
    if difficulty != 1:
        raise UserError(f"{family} are all of difficulty 1, and a stage asks for {difficulty}; set difficulty: 1")
    lap, place = divmod(index, len(names))
    return random.Random(f"{family}/{seed}/{lap}").sample(list(names), len(names))[place]
