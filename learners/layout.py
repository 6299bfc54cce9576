"""How a model and its batch are spread over ranks, and the refusal of what doesn't fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from klong_rl.errors import UserError
from klong_rl.learner_config import LayoutConfig


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

    @property
    def expert_tensor(self) -> int:
        """Ranks that share one expert: where experts are spread they stay whole, since their matrices are small."""
        return 1 if self.expert > 1 else self.tensor

    def check(self, model: Mapping[str, Any], pad_to: int) -> None:
        """Refuse, before any weights load, a layout that doesn't divide `model` (an HF config as a dict).

        `pad_to` is what rows are padded to a multiple of. Raises UserError with the numbers that don't fit.
        """
        for name in ("tensor", "pipeline", "context", "expert", "data"):
            if getattr(self, name) < 1:
                raise UserError(f"layout.{name}={getattr(self, name)} must be at least 1")
        if self.context > 1:
            self._check_context(model, pad_to)
        for what, value, dimension in self._divided(model, pad_to):
            size = getattr(self, dimension)
            if value % size:
                raise UserError(f"layout.{dimension}={size} does not divide {what}={value}; choose a size that does")

    def _check_context(self, model: Mapping[str, Any], pad_to: int) -> None:
        if model.get("kv_lora_rank"):
            raise UserError(
                f"layout.context={self.context}: windows are not split over ranks for latent attention "
                f"({model['model_type']}); use context=1"
            )
        pieces = 2 * self.tensor * self.context
        if pad_to % pieces:
            raise UserError(
                f"layout.context={self.context} with layout.tensor={self.tensor} cuts a row in 2 x tensor x context = "
                f"{pieces} pieces, which don't divide its padding of {pad_to} tokens; use fewer of one of them"
            )

    def _divided(self, model: Mapping[str, Any], pad_to: int) -> Iterator[tuple[str, int, str]]:
        """(what, how many, the dimension that has to divide it)."""
        heads = model["num_attention_heads"]
        yield "num_attention_heads", heads, "tensor"
        yield "num_key_value_heads", model.get("num_key_value_heads") or heads, "tensor"
        for name in ("vocab_size", "intermediate_size"):
            yield name, model[name], "tensor"
        yield "pad_to", pad_to, "tensor"
        yield "num_hidden_layers", model["num_hidden_layers"], "pipeline"
        counts = (model.get(name) for name in ("num_local_experts", "num_experts", "n_routed_experts"))
        yield "the number of experts", next(filter(None, counts), 1), "expert"
        yield "tensor x context x data", self.tensor * self.context * self.data, "expert"
        if "moe_intermediate_size" in model:
            yield "moe_intermediate_size", model["moe_intermediate_size"], "expert_tensor"
