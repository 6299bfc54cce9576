"""The policy that a KL term holds the trained one near: the weights the model had when this was made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from learners.model import Model


class Reference:
    """A copy of this rank's shard of the weights, exchanged with the model's for a forward pass."""

    def __init__(self, model: Model):
        self._parameters = [parameter for chunk in model.chunks for parameter in chunk.parameters()]
        self._weights = [parameter.detach().clone() for parameter in self._parameters]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """While inside, the model is the reference; afterwards it is bit for bit what it was."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """One tensor at a time: a third copy of all weights would not fit where two just do."""
        for parameter, weight in zip(self._parameters, self._weights, strict=True):
            held = parameter.clone()
            parameter.copy_(weight)
            weight.copy_(held)
