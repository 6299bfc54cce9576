"""The buffer's rules beside a real Redis, as a hypothesis state machine: both are given the same transitions.

Each step gives both the same transition, often twice (a lost reply), sometimes from a holder that lost its episode or
with a request repeated much later, now and then with Redis killed in between, and compares the answers or refusals. A
ledger kept from the answers alone, knowing neither side's state, holds what the buffer promises: no window is trained
twice, none is lost, every action token is held, archived or given up with a reason, versions only grow.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
)

from klong_rl.buffer import Buffer, BufferAddress, EmbeddedRedis, Refused
from klong_rl.buffer.rules import Rules
from klong_rl.types import EpisodeSpec, Outcome, Segment, Task, Turn, Window
from klong_rl.wire import encode

TASK = Task(id="relay/train/0", family="relay", instruction="Follow the clues.", image="none")
GROUP_SIZES = {"eval-0": 1, "eval-1": 2} | {f"train-{i}": 1 + i % 2 for i in range(8)}
MEMBERS = [(group, i) for group, size in GROUP_SIZES.items() for i in range(size + 1)]  # one too many of each
LONG = 50
SUBMITTED = Outcome(kind="submitted")
RUNS = itertools.count()

episodes = st.sampled_from([f"{group}/{i}" for group, i in MEMBERS])


class Refusal(NamedTuple):
    kind: type[Refused]
    facts: tuple


def spec_of(group: str, i: int) -> EpisodeSpec:
    return EpisodeSpec(
        id=f"{group}/{i}", group=group, group_size=GROUP_SIZES[group], stage=1, purpose=group.split("-")[0],
        task=TASK, timeout_s=20.0, max_turns=8,
    )  # fmt: skip


def segment_of(episode: str, seq: int, token: int) -> Segment:
    turn = Turn(
        index=seq, context_start=0, action_A=np.array([token], np.int32), logprobs_A=np.array([-1.0], np.float32),
        versions=((0, 1),), observation_O=np.array([7], np.int32),
    )  # fmt: skip
    return Segment(episode=episode, epoch=1, seq=seq, turns=(turn,))


def window_of(name: str, group: str, version: int) -> Window:
    return Window(
        id=name, episode=f"{group}/0", group=group, stage=1, tokens_T=np.array([1, 2, 3], np.int32),
        targets_T=np.array([0, 0, 1], np.uint8), logprobs_T=np.array([0, 0, -1], np.float32), versions=((version, 1),),
    )  # fmt: skip


def in_state(*states: str) -> Callable[[SideBySide], bool]:
    """The precondition that an episode is in one of these states."""
    return lambda machine: any(machine.model.states[state] for state in states)


class SideBySide(RuleBasedStateMachine):
    """Both sides and the ledger; a subclass adds the rules."""

    server: EmbeddedRedis
    restarts = 0
    long_histories = 0  # of at least LONG transitions
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        address = BufferAddress(self.server.url, f"run-{next(RUNS)}")
        self.buffer = self.loop.run_until_complete(Buffer.connect(address))
        self.model = Rules()
        self.fresh = itertools.count()
        self.transitions = 0
        self.closed: set[str] = set()  # windows handed to close_group
        self.trained: dict[int, set[str]] = {}  # step -> windows, in the history that survives
        self.versions: list[int] = [0]
        self.appended = 0  # action tokens
        self.intended_and_given_up = 0  # action tokens that never came to be appended
        self.forgotten = 0  # action tokens of groups that were archived

    def both(self, name: str, real: tuple, model: Callable[[], Any], again: bool = False) -> Any:
        """The answer or refusal both sides agree on. `again`: the transition is delivered a second time."""
        self.transitions += 1 + again
        intended = self.intended()
        expected = _answer(model)
        found = _answer(lambda: self.loop.run_until_complete(getattr(self.buffer, name)(*real)))
        assert found == expected, name
        if name in ("rewind", "drop"):
            self.intended_and_given_up += intended - self.intended()
        if again:
            expected = _answer(model)
            repeated = _answer(lambda: self.loop.run_until_complete(getattr(self.buffer, name)(*real)))
            assert repeated == expected, f"{name} delivered twice"
            if not isinstance(found, Refusal):
                assert repeated in (found, False, 0), f"{name}: the second delivery got something new"
        return found

    def intended(self) -> int:
        """Action tokens that are written ahead and not appended."""
        return sum(e.intended[1] for e in self.model.episodes.values() if e.intended)

    def append_next(self, episode: str, epoch: int) -> None:
        seq = len(self.model.episodes[episode].segments)
        self.append_both(episode, epoch, [segment_of(episode, seq, 5)], False)

    def append_both(self, episode: str, epoch: int, segments: list[Segment], again: bool) -> None:
        """One is appended by `append`, several by `append_many`, which is `append` of each, or a refusal of all."""
        n_tokens = len(segments[0].turns[0].action_A)

        def model() -> Any:
            return [self.model.append(episode, epoch, s.seq, n_tokens, encode(s)) for s in segments][-1]

        known = self.model.episodes.get(episode)
        before = len(known.segments) if known else 0
        name, new = ("append", segments[0]) if len(segments) == 1 else ("append_many", segments)
        self.both(name, (episode, epoch, new), model, again)
        if known:
            self.appended += n_tokens * (len(known.segments) - before)

    def request(self, name: str | None) -> str:
        return name or f"fresh-{next(self.fresh)}"

    def epoch(self, episode: str, age: int) -> int:
        e = self.model.episodes.get(episode)
        return (e.epoch if e else 1) - age

    def pick(self, data: st.DataObject, *states: str) -> str:
        """An episode, mostly one where the transition does something."""
        fitting = [i for i, e in self.model.episodes.items() if e.state in states]
        amiss = data.draw(st.integers(0, 9)) == 0
        return data.draw(episodes if amiss or not fitting else st.sampled_from(fitting))

    @invariant()
    def every_look_agrees(self) -> None:
        b, m = self.buffer, self.model
        found = self.loop.run_until_complete(
            _gather(
                b.counts(), b.ready(), b.leased_steps(), b.consumed(), b.scores("eval"), b.policy_version(),
                b.next_group_to_close(), b.running(),
            )
        )  # fmt: skip
        running = sorted((i, e.epoch) for i, e in m.episodes.items() if e.state == "running")
        assert found == [
            m.counts(), m.ready(), sorted(m.leases), m.consumed(), m.scores("eval"), m.version,
            m.next_group_to_close(), running,
        ]  # fmt: skip
        self.no_window_is_trained_twice_or_lost(found[0].windows)
        self.no_token_is_lost()
        self.versions.append(found[5])
        assert self.versions[-1] >= self.versions[-2]

    def no_window_is_trained_twice_or_lost(self, counted: dict[str, int]) -> None:
        trained = [name for names in self.trained.values() for name in names]
        assert len(trained) == len(set(trained)), f"trained twice: {self.trained}"
        assert sum(counted.values()) == len(self.closed)
        assert counted.get("leased", 0) + counted.get("consumed", 0) == len(trained)

    def no_token_is_lost(self) -> None:
        """Every action token ever appended is held, archived, or given up with a reason."""
        held = sum(sum(e.sizes) for e in self.model.episodes.values())
        given_up = sum(self.model.discarded.values()) - self.intended_and_given_up
        assert self.appended == held + self.forgotten + given_up

    def teardown(self) -> None:
        type(self).long_histories += self.transitions >= LONG
        for name, e in self.model.episodes.items():
            progress = self.loop.run_until_complete(self.buffer.progress(name))
            assert [encode(segment) for segment in progress.segments] == e.segments
            assert (encode(progress.intended) if progress.intended else None) == (e.intended and e.intended[0])
            assert (progress.snapshot, progress.outcome) == (e.snapshot, e.outcome)
            view = self.loop.run_until_complete(self.buffer.episode(name))
            assert view == (
                e.spec, e.state, e.epoch, e.failures, e.owner, len(e.segments), e.outcome, e.verdict, e.reason, e.group,
            )  # fmt: skip
        self.loop.run_until_complete(self.buffer.close())


async def _gather(*looks: Awaitable[Any]) -> list[Any]:
    return await asyncio.gather(*looks)


def _answer(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Refused as refusal:
        return Refusal(type(refusal), refusal.args)
