"""Grades finished episodes: the reward, its two deadlines, the judge model, and the signed record of each verdict.

Grader        one process's: the reward, the endpoint with its queue, the stores in the run directory
EpisodeJudge  what a reward is handed as `judge` for one episode (klong_rl.rewards.base.Judge)
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from hydra.utils import instantiate
from msgspec.structs import replace

from klong_rl.blocking import in_thread
from klong_rl.config import JudgeConfig
from klong_rl.failures import AgentFailure, InfrastructureFailure, TaskFailure
from klong_rl.judging.clock import GradingClock
from klong_rl.judging.endpoint import Endpoint
from klong_rl.judging.lane import Urgency
from klong_rl.judging.protocols import Usage
from klong_rl.judging.record import Call, Command, Record, Records, signed, signing_key
from klong_rl.judging.store import Store
from klong_rl.judging.witness import Witness
from klong_rl.rewards.base import FinishedEpisode
from klong_rl.types import Verdict
from klong_rl.wire import encode

T = TypeVar("T")
Open = Callable[[], Awaitable[Any]]
Fresh = Callable[[str], AbstractAsyncContextManager[Any]]

GRADING = "/grading"  # after an episode's name: the sandbox that hidden tests run in
ASKED_AGAIN = 2  # times, after a reply that is invalid


class InvalidReply(InfrastructureFailure):
    """The judge model gave no valid reply, asked several times: no verdict comes of it, and no 0."""


class Graded(NamedTuple):
    """`kept_snapshot` is to be kept for as long as the record is; "" if there is none. `usage` is what it cost."""

    verdict: Verdict
    kept_snapshot: str
    usage: Usage = Usage()


class EpisodeJudge:
    """`ask`, `fresh` and `keep` for one episode, and all that went through them, for its record."""

    def __init__(self, endpoint: Endpoint, store: Store, clock: GradingClock, group: str, fresh: Fresh):
        self._endpoint, self._store, self._clock, self._group = endpoint, store, clock, group
        self._make_fresh = fresh
        self._fresh: list[Witness] = []
        self.sandbox = Witness(None, store)
        self.calls: list[Call] = []
        self.kept: dict[str, str] = {}
        self.snapshot = ""
        self.usage = Usage()

    @property
    def room_tokens(self) -> int:
        return self._endpoint.room_tokens

    @property
    def commands(self) -> list[Command]:
        return [run for witness in (self.sandbox, *self._fresh) for run in witness.commands]

    async def open(self, open_sandbox: Open) -> Witness:
        """The episode's own sandbox."""
        self.sandbox = Witness(await open_sandbox(), self._store)
        return self.sandbox

    async def ask(self, messages: list[dict[str, str]], parse: Callable[[str], T], about: str = "") -> T:
        said = list(messages)
        for _ in range(1 + ASKED_AGAIN):
            with self._clock.asking():
                answer = await self._endpoint.ask(said, self._group)
            self.usage += answer.usage
            reply = await in_thread(self._store.put_text, answer.text)
            try:
                if answer.is_cut:
                    raise ValueError("Your answer was too long and was cut off. Answer again, in fewer words.")
                found = parse(answer.text)
            except ValueError as error:
                self.calls.append(Call(about=about, request=answer.request, reply=reply, problem=str(error)))
                before = {"role": "assistant", "content": answer.text or "(no answer)"}  # some refuse an empty one
                said = [*messages, before, {"role": "user", "content": str(error)}]
                continue
            await self._endpoint.keep(answer)
            self.calls.append(Call(about=about, request=answer.request, reply=reply, problem=""))
            return found
        raise InvalidReply(
            f"{self._endpoint.name} gave {1 + ASKED_AGAIN} invalid replies about {about or 'one question'}, the last "
            f"one {answer.text[:120]!r}"
        )

    @asynccontextmanager
    async def fresh(self, image: str = "") -> AsyncIterator[Witness]:
        if not image:
            image = self.snapshot = self.snapshot or await self.sandbox.snapshot("graded")
        async with self._make_fresh(image) as sandbox:
            self._fresh.append(Witness(sandbox, self._store, is_fresh=True))
            yield self._fresh[-1]

    async def keep(self, name: str, data: bytes) -> str:
        self.kept[name] = await in_thread(self._store.put, data)
        return self.kept[name]


class Grader:
    """One process's. `share`: the part of the endpoint's bounds that is this process's. Raises UserError.

    Evidence of earlier gradings is read and added to in `store`; records go to `records`.
    """

    def __init__(
        self, config: JudgeConfig, reward: dict[str, Any], store: Store, records: Records, share: float = 1.0
    ) -> None:
        self._config, self._reward_config = config, reward
        self._reward = instantiate(reward)
        self._store, self._records = store, records
        self._key = signing_key(config.signing_key_file)
        self._endpoint = Endpoint(config.endpoint, store, share)
        self._at_work: Counter[str] = Counter()

    def share(self, share: float) -> None:
        """Another part of the endpoint's bounds, from here on."""
        self._endpoint.share(share)

    async def close(self) -> None:
        await self._endpoint.close()

    @property
    def waiting(self) -> int:
        """Requests to the judge model that wait for their turn."""
        return self._endpoint.queue.waiting

    def rank(self, group: str, urgency: Urgency) -> None:
        """How urgent the requests of a group are from here on; one that was never ranked comes last."""
        self._endpoint.queue.rank(group, urgency)

    async def grade(self, episode: FinishedEpisode, epoch: int, open_sandbox: Open, fresh: Fresh) -> Graded:
        """The verdict, its record kept. Raises InfrastructureFailure, TaskFailure; the agent's failure scores 0.

        `open_sandbox()` gives the episode's sandbox, `fresh(image)` a fresh one of a snapshot of it.
        """
        group, config = episode.spec.group, self._config
        clock = GradingClock(config.grading_timeout_s, config.wait_s, self._waited_for)
        judge = EpisodeJudge(self._endpoint, self._store, clock, group, fresh)
        self._at_work[group] += 1
        try:
            async with clock.running():
                verdict = await self._reward(episode, await judge.open(open_sandbox), judge)
        except AgentFailure as failure:
            verdict = Verdict(score=0.0, evidence={"agent_failure": str(failure)})
        finally:
            self._at_work[group] -= 1
            if not self._at_work[group]:
                del self._at_work[group]
                self._endpoint.queue.forget(group)
        if not 0.0 <= verdict.score <= 1.0 or not all(map(math.isfinite, verdict.parts.values())):
            name = self._reward_config.get("_target_")
            raise TaskFailure(f"{name} gave {verdict.score} of {verdict.parts}; a score is in [0, 1], parts are finite")
        verdict = await in_thread(self._keep, episode, epoch, judge, verdict)
        return Graded(verdict, judge.snapshot if config.keep_snapshots else "", judge.usage)

    def _keep(self, episode: FinishedEpisode, epoch: int, judge: EpisodeJudge, verdict: Verdict) -> Verdict:
        """The verdict with where its record is. Blocking."""
        record = signed(self._record(episode, epoch, judge, verdict), self._key)
        sha256 = self._records.write(record)
        return replace(verdict, evidence=verdict.evidence | {"record": sha256, "signature": record.signature})

    def _record(self, episode: FinishedEpisode, epoch: int, judge: EpisodeJudge, verdict: Verdict) -> Record:
        spec, outcome = episode.spec, episode.outcome
        return Record(
            episode=spec.id,
            group=spec.group,
            stage=spec.stage,
            purpose=spec.purpose,
            epoch=epoch,
            outcome=outcome.kind,
            outcome_detail=outcome.detail,
            timeout_s=spec.timeout_s,
            max_turns=spec.max_turns,
            group_size=spec.group_size,
            task=self._store.put(encode(spec.task)),
            reward=self._reward_config,
            model=self._config.endpoint.model if judge.calls else "",
            endpoint=self._config.endpoint.url if judge.calls else "",
            score=verdict.score,
            parts=verdict.parts,
            evidence=verdict.evidence,
            reads=judge.sandbox.reads,
            commands=judge.commands,
            calls=judge.calls,
            kept=judge.kept,
            snapshot=judge.snapshot if self._config.keep_snapshots else "",
            at=time.time(),
        )

    def _waited_for(self) -> str:
        trouble = f"; last trouble: {self._endpoint.trouble}" if self._endpoint.trouble else ""
        return f"the judge model {self._endpoint.name}{trouble}"
