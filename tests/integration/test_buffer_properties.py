"""The rules and the Lua scripts, driven side by side on a real Redis, with every way a caller can misbehave."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from klong_rl.buffer import EmbeddedRedis
from klong_rl.types import TRAINED, Outcome, Verdict
from klong_rl.wire import encode
from tests.side_by_side import (
    GROUP_SIZES,
    MEMBERS,
    SUBMITTED,
    Refusal,
    SideBySide,
    episodes,
    in_state,
    segment_of,
    spec_of,
    window_of,
)

pytestmark = pytest.mark.integration

REQUESTS = ["again-0", "again-1"]  # names that callers repeat, beside fresh ones
FOREVER_S = 3600.0

groups = st.sampled_from(list(GROUP_SIZES))
ages = st.sampled_from([0, 0, 0, 0, 0, 0, 1, -1])  # how many epochs behind the newest a writer is
twice = st.booleans()
requests = st.one_of(st.none(), st.sampled_from(REQUESTS))
steps = st.integers(0, 4)


class BufferMachine(SideBySide):
    """Every transition, as callers use and misuse it."""

    @initialize(
        some=st.lists(groups, max_size=3, unique=True),
        n=st.integers(1, 2),
        claimed=st.integers(0, 4),
        sealed=st.integers(0, 3),
    )
    def a_run_in_the_middle(self, some: list[str], n: int, claimed: int, sealed: int) -> None:
        for group in ("train-6", "train-7"):
            self.finish_groups(group, n)
        for group in some:
            for i in range(GROUP_SIZES[group]):
                self.admit((group, i), 8, False)
        for _ in range(claimed):
            self.claim(None, "a", False)
        running = [(i, e.epoch) for i, e in self.model.episodes.items() if e.state == "running"]
        for episode, epoch in running:
            self.append_next(episode, epoch)
        for episode, epoch in running[:sealed]:
            seal = (episode, epoch, Outcome(kind="timeout"))
            self.both("seal", seal, lambda seal=seal: self.model.seal(*seal))

    @rule(member=st.sampled_from(MEMBERS), max_turns=st.sampled_from([8, 8, 9]), again=twice)
    def admit(self, member: tuple[str, int], max_turns: int, again: bool) -> None:
        spec = msgspec.structs.replace(spec_of(*member), max_turns=max_turns)
        self.both("admit", (spec,), lambda: self.model.admit(spec), again)

    @precondition(in_state("queued"))
    @rule(name=requests, owner=st.sampled_from("ab"), again=twice)
    def claim(self, name: str | None, owner: str, again: bool) -> None:
        request = self.request(name)
        self.both("claim", (owner, request), lambda: self.model.claim(owner, f"claim:{request}"), again)

    @rule(data=st.data(), age=st.sampled_from([1, 1, -1]))
    def a_holder_that_lost_its_episode(self, data: st.DataObject, age: int) -> None:
        """Whatever it tries is refused: it may wake up in any state of an episode, or after its end."""
        episode = data.draw(episodes)
        epoch = self.epoch(episode, age)
        segment = segment_of(episode, 0, 5)
        turn = segment.turns[0]
        for name, real, model in (
            ("append", (segment,), lambda: self.model.append(episode, epoch, 0, 1, encode(segment))),
            ("intend", (0, turn), lambda: self.model.intend(episode, epoch, 0, 1, encode(turn))),
            ("rewind", (0, "late"), lambda: self.model.rewind(episode, epoch, 0, "late")),
            ("keep_snapshot", (0, "image"), lambda: self.model.keep_snapshot(episode, epoch, 0, "image")),
            ("seal", (SUBMITTED,), lambda: self.model.seal(episode, epoch, SUBMITTED)),
            ("requeue", ("late",), lambda: self.model.requeue(episode, epoch, "late")),
            ("verdict", (Verdict(score=1.0),), lambda: self.model.verdict(episode, epoch, Verdict(score=1.0))),
        ):
            assert isinstance(self.both(name, (episode, epoch, *real), model), Refusal)
        dropped = self.both("drop", (episode, "late", epoch), lambda: self.model.drop(episode, "late", epoch))
        assert isinstance(dropped, Refusal)

    @precondition(in_state("running"))
    @rule(
        data=st.data(),
        age=ages,
        off=st.sampled_from([0, 0, -1, -1, 1]),
        n=st.sampled_from([1, 1, 2, 3]),
        token=st.sampled_from([5, 5, 6]),
        again=twice,
    )
    def append(self, data: st.DataObject, age: int, off: int, n: int, token: int, again: bool) -> None:
        episode = self.pick(data, "running")
        known = self.model.episodes.get(episode)
        epoch, seq = self.epoch(episode, age), max(0, len(known.segments) + off if known else 0)
        self.append_both(episode, epoch, [segment_of(episode, seq + i, token) for i in range(n)], again)

    @precondition(in_state("running"))
    @rule(
        data=st.data(), age=ages, off=st.sampled_from([0, 0, 0, -1, 1]), token=st.sampled_from([5, 5, 6]), again=twice
    )
    def intend(self, data: st.DataObject, age: int, off: int, token: int, again: bool) -> None:
        episode = self.pick(data, "running")
        known = self.model.episodes.get(episode)
        epoch, seq = self.epoch(episode, age), max(0, len(known.segments) + off if known else 0)
        turn = segment_of(episode, seq, token).turns[0]
        model = lambda: self.model.intend(episode, epoch, seq, 1, encode(turn))  # noqa: E731
        self.both("intend", (episode, epoch, seq, turn), model, again)

    @precondition(in_state("running"))
    @rule(data=st.data(), age=ages, n=st.integers(0, 2), again=twice)
    def rewind(self, data: st.DataObject, age: int, n: int, again: bool) -> None:
        episode = self.pick(data, "running")
        args = (episode, self.epoch(episode, age), n, "sandbox gone")
        self.both("rewind", args, lambda: self.model.rewind(*args), again)

    @precondition(in_state("running", "sealed"))
    @rule(data=st.data(), age=ages, n=st.integers(-1, 3), image=st.sampled_from(["one", "two"]), again=twice)
    def keep_snapshot(self, data: st.DataObject, age: int, n: int, image: str, again: bool) -> None:
        episode = self.pick(data, "running", "sealed")
        args = (episode, self.epoch(episode, age), n, image)
        self.both("keep_snapshot", args, lambda: self.model.keep_snapshot(*args), again)

    @rule(group=groups, timeout_s=st.sampled_from([20.0, 30.0, 45.5]), turns=st.integers(8, 10), again=twice)
    def extend(self, group: str, timeout_s: float, turns: int, again: bool) -> None:
        args = (group, timeout_s, turns)
        self.both("extend", args, lambda: self.model.extend(*args), again)

    @precondition(in_state("running", "sealed"))
    @rule(data=st.data(), age=ages, kind=st.sampled_from(TRAINED[:2]), again=twice)
    def seal(self, data: st.DataObject, age: int, kind: str, again: bool) -> None:
        episode = self.pick(data, "running", "sealed")
        epoch, outcome = self.epoch(episode, age), Outcome(kind=kind)
        self.both("seal", (episode, epoch, outcome), lambda: self.model.seal(episode, epoch, outcome), again)

    @precondition(in_state("running", "sealed"))
    @rule(data=st.data(), age=ages, again=twice)
    def requeue(self, data: st.DataObject, age: int, again: bool) -> None:
        episode = self.pick(data, "running", "sealed")
        args = (episode, self.epoch(episode, age), "engine")
        self.both("requeue", args, lambda: self.model.requeue(*args), again)

    @precondition(in_state("running", "sealed"))
    @rule(name=requests, owner=st.sampled_from(["", "a", "b", "c", "judge"]), rare=st.integers(0, 2), again=twice)
    def abandon(self, name: str | None, owner: str, rare: int, again: bool) -> None:
        if rare:
            return
        request = self.request(name)
        model = lambda: self.model.abandon(owner, "it died", f"abandon:{request}")  # noqa: E731
        self.both("abandon", (owner, "it died", request), model, again)

    @precondition(in_state("queued", "running", "sealed"))
    @rule(data=st.data(), age=st.one_of(st.none(), ages), again=twice)
    def drop(self, data: st.DataObject, age: int | None, again: bool) -> None:
        episode = self.pick(data, "queued", "running", "sealed")
        epoch = None if age is None else self.epoch(episode, age)
        self.both("drop", (episode, "straggler", epoch), lambda: self.model.drop(episode, "straggler", epoch), again)

    @precondition(in_state("sealed"))
    @rule(visible_s=st.sampled_from([0.0, FOREVER_S]), name=requests)
    def next_to_judge(self, visible_s: float, name: str | None) -> None:
        request = self.request(name)

        def model() -> Any:  # at a standing clock: an episode is hidden for ever or not at all
            return self.model.next_to_judge("judge", round(visible_s * 1000), f"next_to_judge:{request}", 0)

        self.both("next_to_judge", ("judge", visible_s, request), model, again=True)

    @precondition(in_state("sealed", "judged"))
    @rule(data=st.data(), age=ages, score=st.sampled_from([0.0, 0.1, 1.0]), again=twice)
    def verdict(self, data: st.DataObject, age: int, score: float, again: bool) -> None:
        episode = self.pick(data, "sealed")
        args = (episode, self.epoch(episode, age), Verdict(score=score))
        self.both("verdict", args, lambda: self.model.verdict(*args), again)

    @precondition(lambda self: self.model.groups)
    @rule(data=st.data(), least=st.sampled_from([1, 1, 2]), amiss=st.integers(0, 5), again=twice)
    def part_group(self, data: st.DataObject, least: int, amiss: int, again: bool) -> None:
        """Its late members become a group of their own; now and then under a name that is in use."""
        some = [n for n, g in self.model.groups.items() if g.state == "open" and g.purpose == "train"]
        group = data.draw(groups if amiss == 0 or not some else st.sampled_from(some))
        args = (group, data.draw(groups) if amiss == 1 else f"{group}-late", least)
        self.both("part_group", args, lambda: self.model.part_group(*args), again)

    @rule(group=groups, n=st.integers(0, 2))
    def finish_groups(self, group: str, n: int) -> None:
        """A group as it goes when nothing goes wrong, so that most examples come to train something."""
        for i in range(GROUP_SIZES[group]):
            self.admit((group, i), 8, False)
        mine = [e for e in self.model.episodes.values() if e.spec.group == group]
        while any(e.state == "queued" for e in mine):
            self.claim(None, "c", False)
        for e in mine:
            if e.state == "running":
                self.append_next(e.spec.id, e.epoch)
                seal = (e.spec.id, e.epoch, SUBMITTED)
                self.both("seal", seal, lambda seal=seal: self.model.seal(*seal))
        for e in mine:
            score = (e.spec.id, e.epoch, Verdict(score=0.5))
            self.both("verdict", score, lambda score=score: self.model.verdict(*score))
        while (complete := self.model.next_group_to_close()) is not None:
            self.close(complete, n if complete.startswith("train") else 0, self.model.version)

    def close(self, group: str, n: int, version: int, reused: str | None = None, again: bool = False) -> None:
        names = [reused] * (reused is not None) + [f"w{next(self.fresh)}" for _ in range(n)]
        windows = [window_of(name, group, version + i % 2) for i, name in enumerate(names)]
        if self.both("close_group", (group, windows), lambda: self.model.close_group(group, windows), again) is True:
            self.closed |= set(names)

    @precondition(lambda self: self.model.groups)
    @rule(data=st.data(), n=st.integers(0, 3), age=st.integers(0, 2), amiss=st.integers(0, 5), again=twice)
    def close_group(self, data: st.DataObject, n: int, age: int, amiss: int, again: bool) -> None:
        group = self.model.next_group_to_close()
        if group is None or amiss == 0:
            group = data.draw(groups)
        n = n if group.startswith("train") or amiss == 1 else 0
        reused = data.draw(st.sampled_from(sorted(self.model.windows))) if amiss == 2 and self.model.windows else None
        self.close(group, n, max(0, self.model.version - age), reused, again)

    def oldest_that_keeps(self, keep: str) -> int:
        """A bound that takes all windows, the newest ones of the next group alone, or current ones alone."""
        groups = [group for group in self.model.groups.values() if group.state == "ready"]
        if keep == "newest" and groups:
            following = min(groups, key=lambda group: group.order)
            return max(ref.oldest_version for ref in following.refs)
        return self.model.version if keep == "0" else 0

    @rule(past=st.integers(0, 1))
    def lease_what_is_committed(self, past: int) -> None:
        if (step := self.model.committed - past) >= 0:
            assert isinstance(self.both("lease", (step, 1, 0), lambda: self.model.lease(step, 1, 0)), Refusal)

    @precondition(lambda self: self.model.ready().n_groups or self.model.leases)
    @rule(
        step=steps,
        n_groups=st.sampled_from([1, 1, 2]),
        keep=st.sampled_from(["all", "newest", "0"]),
        dead=st.lists(st.integers(0, 3), max_size=2),
        again=twice,
    )
    def lease(self, step: int, n_groups: int, keep: str, dead: list[int], again: bool) -> None:
        args = (step, n_groups, self.oldest_that_keeps(keep), dead)
        refs = self.both("lease", args, lambda: self.model.lease(*args), again)
        if not refs or isinstance(refs, Refusal):
            return
        names = {ref.id for ref in refs}
        assert len(names) == len(refs) and names <= self.closed
        if step not in self.trained:
            assert not any(version in dead for ref in refs for version in ref.versions)
        assert self.trained.setdefault(step, names) == names, "a repeated lease got other windows"
        windows = self.loop.run_until_complete(self.buffer.windows([ref.id for ref in refs]))
        assert [encode(w) for w in windows] == [encode(self.model.windows[ref.id]) for ref in refs]

    @precondition(lambda self: self.model.leases or self.model.committed >= 0)
    @rule(step=steps, again=twice)
    def commit(self, step: int, again: bool) -> None:
        self.both("commit", (step,), lambda: self.model.commit(step), again)

    @precondition(lambda self: self.model.leases or self.model.committed >= 0)
    @rule(step=st.integers(-1, 4), again=twice)
    def rollback(self, step: int, again: bool) -> None:
        if not isinstance(self.both("rollback", (step,), lambda: self.model.rollback(step), again), Refusal):
            self.trained = {s: names for s, names in self.trained.items() if s <= step}

    @rule(floor=st.integers(0, 3), name=requests, again=twice)
    def publish_version(self, floor: int, name: str | None, again: bool) -> None:
        request = self.request(name)
        model = lambda: self.model.publish_version(floor, f"publish_version:{request}")  # noqa: E731
        self.both("publish_version", (floor, request), model, again)

    @rule(rare=st.integers(0, 7))
    def redis_is_killed_and_starts_on_its_file(self, rare: int) -> None:
        """Nothing that was answered is missing afterwards: `every_look_agrees` sees to it."""
        if rare == 0:
            os.kill(self.server.pid, signal.SIGKILL)
            os.waitpid(self.server.pid, 0)
            self.server.start()
            type(self).restarts += 1

    @precondition(lambda self: self.model.consumed() or self.model.forgotten)
    @rule(data=st.data(), amiss=st.integers(0, 2), again=twice)
    def forget(self, data: st.DataObject, amiss: int, again: bool) -> None:
        group = data.draw(groups if amiss == 0 else st.sampled_from(self.model.consumed() or list(GROUP_SIZES)))
        held = [self.model.episodes[i] for i in self.model.groups[group].members] if group in self.model.groups else []
        if self.both("forget", (group,), lambda: self.model.forget(group), again) is True:
            self.forgotten += sum(sum(e.sizes) for e in held)


def test_rules_and_redis_agree_whatever_the_callers_do(tmp_path: Path) -> None:
    # Synced each second, Redis answers before it writes while a sync is under way; a kill then loses what was answered.
    with EmbeddedRedis(tmp_path, fsync="always") as server, asyncio.Runner() as runner:
        machine = type("Machine", (BufferMachine,), {"server": server, "loop": runner.get_loop()})
        examples = int(os.environ.get("KLONG_BUFFER_EXAMPLES", "200"))
        run = settings(
            max_examples=examples + examples // 2,  # a few have idle steps: enough that LONG ones are `examples`
            stateful_step_count=80,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(machine, settings=run)
        assert machine.restarts, "the fault fired"
        assert machine.long_histories >= examples
