"""Objectives by name: the formula, the paper's own settings of it, and the advantages it goes with. No torch here.

Papers that differ in a number or in the advantage share a formula; docs/objectives.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """`path` is the formula's import path, `advantage` a name in klong_rl.advantages."""

    path: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    advantage: str = "klong"


CLIPPED = "klong_rl.objectives.clipped.clipped"

RECIPES: dict[str, Recipe] = {
    "klong": Recipe(CLIPPED),
    "grpo": Recipe(CLIPPED, {"aggregation": "window_mean", "kl_coefficient": 0.04}, "grpo"),
    "dr_grpo": Recipe(CLIPPED, {"aggregation": "window_sum"}, "dr_grpo"),
    "dapo": Recipe(CLIPPED, {"clip_high": 0.28}, "grpo"),
    "decoupled_ppo": Recipe(CLIPPED, {"importance": "full"}),
    "rloo": Recipe("klong_rl.objectives.reinforce.reinforce", {"aggregation": "window_sum"}, "rloo"),
    "gspo": Recipe("klong_rl.objectives.gspo.gspo", {"aggregation": "window_mean"}, "grpo"),
    "cispo": Recipe("klong_rl.objectives.cispo.cispo", {}, "grpo"),
    "sft": Recipe("klong_rl.objectives.sft.Sft"),
}


def recipe(name: str) -> Recipe:
    """That of `name`; of an import path, the path with KLong's advantage and the shared defaults."""
    return RECIPES.get(name, Recipe(name))
