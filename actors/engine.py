"""One vLLM AsyncLLM engine: token ids in; token ids, log-probs and policy versions out; new weights in between.

A publish pauses the engine with its requests kept, replaces the weights, discards what the old weights computed (the
prefix cache, and the KV cache of requests in flight, which vLLM computes again), names the new version and resumes.
Requests in flight go on; each token is sampled, and its log-prob given, wholly under the version it is stamped with.

Weights that can't be read change nothing. Weights that fail halfway break the engine for good: nothing is sampled from
a mixture of two versions, and every call says so.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.engine_load import EngineLoad
from actors.weight_transfer import check_whole, init_info, prepare
from actors.weight_versions import weight_versions
from klong_rl.beside import beside
from klong_rl.config import EngineConfig
from klong_rl.failures import InfrastructureFailure
from klong_rl.phases import Phases
from klong_rl.types import VersionRuns

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

ABORT_AGAIN_S = 0.05  # a request that was given up before the engine knew it is aborted once it does
PUBLISH_DEADLINE_S = 120.0
REQUEST_DEADLINE_S = 600.0


class EngineFailure(InfrastructureFailure):
    """The engine died or did not answer in time; episodes it was running are retried elsewhere."""


class EngineBroken(EngineFailure):
    """The engine is gone for good: its process ended, or its weights are half replaced."""


@dataclass(frozen=True)
class Sample:
    """What one request gave. `finish` is vLLM's reason: "stop", "length", or "abort" where it was given up."""

    tokens_A: np.ndarray  # int32
    logprobs_A: np.ndarray  # float32, of the distribution sampled from
    versions: VersionRuns
    finish: str
    text: str = ""  # for a `Reading` alone: without the text that stopped it


@dataclass(frozen=True)
class Reading:
    """Of a caller that reads an answer as text, perhaps while it comes."""

    stop: tuple[str, ...] = ()  # texts that end it; their tokens are part of the answer, they aren't of its text
    special: bool = False  # special tokens are part of the text
    hear: Callable[[str], None] | None = None  # each piece of the text, as soon as it is certain
    give_up: asyncio.Event | None = None  # once it is set, the answer ends as far as it came


class Engine:
    """Start with `await Engine.start(...)`; the model runs in a process of vLLM's own."""

    def __init__(self, llm: AsyncLLM, end_id: int, load: EngineLoad) -> None:
        self._llm = llm
        self.load = load
        self._end_id = end_id
        self._versions = weight_versions(llm)
        self._requests: set[str] = set()  # in flight
        self._broken = ""  # why, once it is
        self._publishing = asyncio.Lock()
        self._paused_s = 0.0
        self._paused_since: float | None = None
        self.sampled_tokens = 0

    @classmethod
    async def start(cls, config: EngineConfig, model: str, end_id: int, version: int, seed: int) -> Engine:
        """An engine with the weights of the folder `model` as policy `version`; `end_id` ends an action."""
        from vllm.config import WeightTransferConfig
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        prepare(config.weight_transfer)
        args = AsyncEngineArgs(
            model=model,
            dtype=config.dtype,
            seed=seed,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            enforce_eager=config.enforce_eager,
            gpu_memory_utilization=config.gpu_memory,  # a CPU has none to share out
            tensor_parallel_size=config.tensor_parallel,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            weight_transfer_config=WeightTransferConfig(backend=config.weight_transfer),
            disable_log_stats=True,
            **config.extra,
        )
        load = EngineLoad()
        llm = AsyncLLM.from_engine_args(args, stat_loggers=[load.logger])
        await llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info(config)))
        engine = cls(llm, end_id, load)
        await engine._versions.set(version)
        return engine

    async def sample(
        self, context_T: np.ndarray, max_tokens: int, temperature: float, reading: Reading | None = None
    ) -> Sample:
        """Sample one action after `context_T` (int32), ended by the end-of-turn token or at `max_tokens`.

        With a `reading` also by its texts, or where it is given up. Raises EngineFailure. Cancelling the call aborts
        the request, and what was sampled is lost.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        as_it_comes = reading is not None and reading.hear is not None
        params = SamplingParams(
            temperature=temperature,
            max_tokens=max_tokens,
            stop=list(reading.stop) if reading else None,
            stop_token_ids=[self._end_id],
            logprobs=0,
            detokenize=reading is not None,
            skip_special_tokens=reading is None or not reading.special,
            output_kind=RequestOutputKind.DELTA if as_it_comes else RequestOutputKind.FINAL_ONLY,
        )
        answers, versions = await self._answer(context_T, params, reading or Reading())
        pieces = [answer.outputs[0] for answer in answers]
        tokens = [token for piece in pieces for token in piece.token_ids]
        self.sampled_tokens += len(tokens)
        given = [position for piece in pieces for position in piece.logprobs]
        logprobs = [position[token].logprob for position, token in zip(given, tokens, strict=True)]
        text = "".join(piece.text for piece in pieces)
        finish = pieces[-1].finish_reason
        return Sample(np.array(tokens, np.int32), np.array(logprobs, np.float32), versions, finish, text)

    async def logprobs(self, tokens_T: np.ndarray) -> np.ndarray:
        """Log-prob of each token given those before it, at temperature 1: float32 [T-1]. Raises EngineFailure."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=1.0,
            max_tokens=1,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        (scored,), _ = await self._answer(tokens_T, params, Reading())
        pairs = zip(scored.prompt_logprobs[1:], tokens_T[1:].tolist(), strict=True)
        return np.array([position[token].logprob for position, token in pairs], np.float32)

    async def publish(self, weights: dict[str, Any], version: int) -> dict[str, float]:
        """Replace the weights and go on. `weights` is what the learner's publish returned.

        Returns seconds: paused_s in all, of which pause_s until the engine stood still, load_s for the weights,
        forget_s for what the old ones computed, resume_s.

        Raises EngineFailure, as do requests in flight and all later calls if it fails, or passes PUBLISH_DEADLINE_S,
        once the old weights were touched. A file that is absent or cut short is refused before that.
        """
        async with self._publishing:
            self._refuse_if_broken()
            try:
                check_whole(weights)
            except ValueError as error:
                raise EngineFailure(f"version {version} not published, the old weights stay: {error}") from error
            self._paused_since = began = time.monotonic()
            phases = Phases()
            try:
                async with asyncio.timeout(PUBLISH_DEADLINE_S):
                    await self._replace_weights(weights, version, phases)
            except BaseException as error:
                late = f"not done within {PUBLISH_DEADLINE_S:.0f} s"
                why = late if isinstance(error, TimeoutError) else repr(error)
                self._broken = f"publishing version {version} failed midway, start this engine again: {why}"
                await self._llm.abort(list(self._requests))
                if isinstance(error, Exception):
                    raise EngineBroken(self._broken) from error
                raise
            finally:
                self._paused_s, self._paused_since = self.paused_s(), None
            return {"paused_s": time.monotonic() - began, **phases.seconds}

    def paused_s(self) -> float:
        """Seconds this engine has spent paused for new weights, the pause under way included."""
        since = self._paused_since
        return self._paused_s + (time.monotonic() - since if since is not None else 0.0)

    async def version(self) -> int:
        """The policy version of the weights in place."""
        return await self._versions.current()

    def shutdown(self) -> None:
        """End the model's process."""
        self._llm.shutdown()

    async def _answer(
        self, prompt_T: np.ndarray, params: SamplingParams, reading: Reading
    ) -> tuple[list[RequestOutput], VersionRuns]:
        """The whole answer to one request, or as far as it came before it was given up; the versions of its tokens.

        It is in one piece unless `params` ask for more.
        """
        from vllm import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError

        self._refuse_if_broken()
        request, pieces = uuid.uuid4().hex, []
        prompt, given_up = TokensPrompt(prompt_token_ids=prompt_T.tolist()), reading.give_up
        watch = beside(self._end_early(request, given_up)) if given_up else nullcontext()
        self._requests.add(request)
        try:
            async with asyncio.timeout(REQUEST_DEADLINE_S), watch:
                async for piece in self._llm.generate(prompt, params, request):
                    pieces.append(piece)
                    if reading.hear is not None and piece.outputs[0].text:
                        reading.hear(piece.outputs[0].text)
        except TimeoutError as error:
            raise EngineFailure(f"no answer from the engine within {REQUEST_DEADLINE_S:.0f} s") from error
        except EngineDeadError as error:
            raise EngineBroken(f"the engine died: {error}") from error
        finally:
            self._requests.discard(request)
            versions = self._versions.take(request, pieces[-1] if pieces else None)
        self._refuse_if_broken()
        finish = pieces[-1].outputs[0].finish_reason if pieces else None
        if finish not in ("stop", "length") and not (finish == "abort" and given_up and given_up.is_set()):
            raise EngineFailure(f"the engine ended a request before its answer was whole (finish reason {finish})")
        n_tokens = sum(len(piece.outputs[0].token_ids) for piece in pieces)
        if sum(count for _, count in versions) != n_tokens:
            raise EngineFailure(f"the engine gave {n_tokens} tokens, and told the weights' versions of {versions}")
        return pieces, versions

    async def _end_early(self, request: str, given_up: asyncio.Event) -> None:
        """Abort a request once it is given up. vLLM answers with what there is, as soon as it knows the request."""
        await given_up.wait()
        while True:
            await self._llm.abort(request)
            await asyncio.sleep(ABORT_AGAIN_S)

    async def _replace_weights(self, weights: dict[str, Any], version: int, phases: Phases) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._llm.pause_generation(mode="keep", clear_cache=False)
        phases.end("pause_s")
        await self._llm.start_weight_update()
        await self._llm.update_weights(WeightTransferUpdateRequest(update_info=weights))
        await self._llm.finish_weight_update()
        phases.end("load_s")
        await self._versions.set(version)
        await self._llm.reset_prefix_cache(reset_running_requests=True)
        phases.end("forget_s")
        await self._llm.resume_generation()
        phases.end("resume_s")

    def _refuse_if_broken(self) -> None:
        if self._broken:
            raise EngineBroken(self._broken)
