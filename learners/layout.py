"""How a model and its batch are spread over ranks, and the refusal of what doesn't fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from klong_rl.config import LayoutConfig
from klong_rl.errors import UserError


@dataclass(frozen=True)
class ParallelLayout:
    """Sizes of the parallel dimensions; experts are spread over ranks of the others, so they add none."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    data: int = 1

    @classmethod
    def of(cls, config: LayoutConfig) -> Self:
        return cls(config.tensor, config.pipeline, config.context, config.expert, config.data)

    @property
    def world(self) -> int:
        """Ranks this layout needs."""
        return self.tensor * self.pipeline * self.context * self.data

    def check(self, model: Mapping[str, Any], pad_to: int) -> None:
        """Refuse, before any weights load, a layout that doesn't divide `model` (an HF config as a dict).

        `pad_to` is what rows are padded to a multiple of. Raises UserError with the numbers that don't fit.
        """
        for name in ("tensor", "pipeline", "context", "expert", "data"):
            if getattr(self, name) < 1:
                raise UserError(f"layout.{name}={getattr(self, name)} must be at least 1")
        if self.context > 1:
            raise UserError(f"layout.context={self.context}: rows are not split over context ranks yet; use context=1")
        heads = model["num_attention_heads"]
        experts = model.get("num_local_experts") or model.get("num_experts") or 1
        for what, value, dimension in (
            ("num_attention_heads", heads, "tensor"),
            ("num_key_value_heads", model.get("num_key_value_heads") or heads, "tensor"),
            ("vocab_size", model["vocab_size"], "tensor"),
            ("pad_to", pad_to, "tensor"),
            ("num_hidden_layers", model["num_hidden_layers"], "pipeline"),
            ("the number of experts", experts, "expert"),
            ("layout.tensor x layout.data", self.tensor * self.data, "expert"),
        ):
            size = getattr(self, dimension)
            if value % size:
                raise UserError(f"layout.{dimension}={size} does not divide {what}={value}; choose a size that does")
