"""Which policy version sampled each token of a request.

vLLM stamps its answers itself from 0.32 on (`NamedByVllm`); 0.26, the newest for torch 2.11, doesn't, and `Stamps` does
it from outside, token by token, as the engine's process hands them over.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from klong_rl.types import VersionRuns

if TYPE_CHECKING:
    from vllm import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM


class WeightVersions(Protocol):
    """The versions of one engine's weights."""

    async def set(self, version: int) -> None:
        """Name the weights in place; the engine samples nothing meanwhile."""

    async def current(self) -> int:
        """The version of the weights in place."""

    def take(self, request: str, answer: RequestOutput | None) -> VersionRuns:
        """The versions of a request's tokens, once; `answer` is its last output, None if it had none."""


def weight_versions(llm: AsyncLLM) -> WeightVersions:
    """vLLM's own where it has them."""
    return NamedByVllm(llm) if hasattr(llm, "update_weight_version") else Stamps(llm)


class NamedByVllm:
    """`update_weight_version` and `CompletionOutput.weight_versions` of vLLM 0.32."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm

    async def set(self, version: int) -> None:
        await self._llm.update_weight_version(str(version))

    async def current(self) -> int:
        return int(await self._llm.get_weight_version())

    def take(self, request: str, answer: RequestOutput | None) -> VersionRuns:
        spans = (answer.outputs[0].weight_versions if answer else None) or ()
        return tuple((int(span.version), span.end - span.start) for span in spans)


class Stamps:
    """Tokens by the time at which the engine's process handed them over, against the times of the changes.

    Exact, since weights change while the engine is paused: what it computed before has an earlier time than the change,
    and what it computes afterwards a later one, however late either is read here. Both processes read one clock:
    Linux' CLOCK_MONOTONIC is the machine's.
    """

    def __init__(self, llm: AsyncLLM) -> None:
        self._changes: list[tuple[float, int]] = []  # (since, version), oldest first
        self._runs: dict[str, list[list[int]]] = {}  # by request: [version, tokens] in order
        self._watch(llm.output_processor)

    async def set(self, version: int) -> None:
        self._changes.append((time.monotonic(), version))

    async def current(self) -> int:
        return self._changes[-1][1]

    def take(self, request: str, answer: RequestOutput | None) -> VersionRuns:
        return tuple((version, count) for version, count in self._runs.pop(request, ()))

    def _watch(self, processor: Any) -> None:
        """See what vLLM's OutputProcessor is given, before it is merged into answers."""
        process = processor.process_outputs

        def process_outputs(outputs: list[Any], timestamp: float | None = None, *rest: Any, **named: Any) -> Any:
            version = self._at(timestamp)
            for output in outputs:
                state = processor.request_states.get(output.request_id)
                if state is not None and output.new_token_ids:
                    self._count(state.external_req_id, version, len(output.new_token_ids))
            return process(outputs, timestamp, *rest, **named)

        processor.process_outputs = process_outputs

    def _at(self, timestamp: float) -> int:
        """The version that was in place at `timestamp`."""
        return next(version for since, version in reversed(self._changes) if since <= timestamp)

    def _count(self, request: str, version: int, n_tokens: int) -> None:
        runs = self._runs.setdefault(request, [])
        if runs and runs[-1][0] == version:
            runs[-1][1] += n_tokens
        else:
            runs.append([version, n_tokens])
