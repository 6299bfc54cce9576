"""The buffer's rules as plain Python: what each Lua script does, on dicts, with the same answers and refusals.

It is the statement of what the transitions mean, and the model that property tests drive beside a real Redis. It needs
no Redis, no clock and no event loop. Records are kept as given; segments are kept encoded, since only their bytes and
their order matter. `receipts` hold what a named request of a transition was answered: its repetition gets the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from klong_rl.buffer.errors import Committed, Conflict, OutOfSequence, WrongState
from klong_rl.buffer.records import Claim, EpisodeLimits, Snapshot, ToJudge, WindowRef, limited
from klong_rl.buffer.run_state import Episode, Group, RunState
from klong_rl.types import EpisodeSpec, Outcome, Verdict, Window


class Rules(RunState):
    """One run's buffer. Each method is one transition; a refusal leaves everything as it was."""

    # Episodes

    def admit(self, spec: EpisodeSpec) -> bool:
        if spec.group in self.forgotten:
            return False
        if spec.id in self.episodes:
            if self.episodes[spec.id].spec != spec:
                raise Conflict("episode", spec.id)
            return False
        group = self.groups.get(spec.group)
        if group and group.rest:
            return False
        if group and (
            (group.size, group.purpose) != (spec.group_size, spec.purpose) or len(group.members) == group.size
        ):
            raise Conflict("group", spec.group)
        rank = (spec.purpose != "eval", self._next_order())
        group = self.groups.setdefault(spec.group, Group(spec.group_size, spec.purpose, rank))
        group.members.append(spec.id)
        self.episodes[spec.id] = Episode(spec, rank, spec.group)
        self.states["queued"] += 1
        self._queued.add(rank, spec.id)
        return True

    def claim(self, owner: str, request: str) -> Claim | None:
        if ("claim", request) in self.receipts:
            episode, epoch = self.receipts["claim", request]
            e = self._episode(episode)
            return Claim(limited(e.spec, e.limits), epoch)
        first = self._queued.first()
        if first is None:
            return None
        e = self.episodes[first]
        e.epoch += 1
        e.owner = owner
        self._move(e, "running")
        self.receipts["claim", request] = (e.spec.id, e.epoch)
        return Claim(limited(e.spec, e.limits), e.epoch)

    def intend(self, episode: str, epoch: int, seq: int, tokens: int, turn: bytes) -> None:
        e = self._held(episode, epoch)
        if seq < len(e.segments):
            return
        self._need(e, epoch, "running")
        if seq > len(e.segments):
            raise OutOfSequence(episode, seq, len(e.segments))
        if e.intended and e.intended[0] != turn:
            raise Conflict("intended action of episode", f"{episode}/{seq}")
        e.intended = (turn, tokens)

    def append(self, episode: str, epoch: int, seq: int, tokens: int, segment: bytes) -> EpisodeLimits | None:
        e = self._held(episode, epoch)
        if seq < len(e.segments):
            if e.segments[seq] != segment:
                raise Conflict("segment", f"{episode}/{seq}")
            return e.limits
        self._need(e, epoch, "running")
        if seq > len(e.segments):
            raise OutOfSequence(episode, seq, len(e.segments))
        e.segments.append(segment)
        e.sizes.append(tokens)
        e.intended = None
        if seq >= e.furthest:
            e.failures = 0
        self.appended["segments"] += 1
        self.appended["tokens"] += tokens
        return e.limits

    def rewind(self, episode: str, epoch: int, n_segments: int, reason: str) -> int:
        e = self._held(episode, epoch)
        self._need(e, epoch, "running")
        e.outcome = None
        if e.snapshot and e.snapshot.n_segments > n_segments:
            e.snapshot = None
        e.furthest = max(e.furthest, len(e.segments))
        return self._discard(e, n_segments, reason)

    def keep_snapshot(self, episode: str, epoch: int, n_segments: int, image: str) -> None:
        e = self._held(episode, epoch)
        self._need(e, epoch, "running", "sealed")
        if not 0 <= n_segments <= len(e.segments):
            raise OutOfSequence(episode, n_segments, len(e.segments))
        if e.snapshot is None or e.snapshot.n_segments <= n_segments:
            e.snapshot = Snapshot(image, n_segments)

    def extend(self, name: str, timeout_s: float, max_turns: int) -> bool:
        members = [self.episodes[i] for i in self._group(name).members]
        for e in members:
            old = e.limits or EpisodeLimits(0.0, 0)
            shrinks = timeout_s < old.timeout_s or max_turns < old.max_turns
            if e.state not in ("queued", "running") or shrinks or old == (timeout_s, max_turns):
                return False
        for e in members:
            e.limits = EpisodeLimits(timeout_s, max_turns)
        return True

    def seal(self, episode: str, epoch: int, outcome: Outcome) -> None:
        e = self._held(episode, epoch)
        if e.state in ("sealed", "judged"):
            if e.outcome != outcome:
                raise Conflict("outcome of episode", episode)
            return
        self._need(e, epoch, "running")
        if e.intended:
            raise WrongState("episode", episode, "running, with an action that wasn't appended")
        e.outcome, e.hidden_until_ms = outcome, 0
        self._move(e, "sealed")

    def requeue(self, episode: str, epoch: int, reason: str) -> int:
        e = self._held(episode, epoch)
        self._need(e, epoch, "running", "sealed", "queued")
        if e.state != "queued":
            e.failures += 1
            self._back_to_queue(e, reason)
        return e.failures

    def abandon(self, owner: str, reason: str, request: str) -> int:
        if ("abandon", request) not in self.receipts:
            held = [e for e in self.episodes.values() if owner in ("", e.owner)]
            running = [e for e in held if e.state == "running"]
            for e in running:
                self._back_to_queue(e, reason)
            for e in held:
                self._show_to_judges(e)
            self.receipts["abandon", request] = (len(running),)
        return self.receipts["abandon", request][0]

    def drop(self, episode: str, reason: str, epoch: int | None = None) -> bool:
        e = self._episode(episode) if epoch is None else self._held(episode, epoch)
        if e.state in ("judged", "dropped"):
            return False
        self._discard(e, 0, reason)
        e.reason = reason
        self.drops[reason] += 1
        self._move(e, "dropped")
        self._settle(e)
        return True

    # Verdicts and groups

    def next_to_judge(self, owner: str, visible_ms: int, request: str, now_ms: int) -> ToJudge | None:
        if ("next_to_judge", request) in self.receipts:
            episode, epoch = self.receipts["next_to_judge", request]
            e = self._held(episode, epoch)
            self._need(e, epoch, "sealed", "judged")
            return ToJudge(e.spec, epoch, e.outcome)
        while (out := self._judging_out.pop(now_ms)) is not None:
            if self.episodes[out].hidden_until_ms <= now_ms:  # else taken again since
                self._show_to_judges(self.episodes[out])
        first = self._judging.first()
        if first is None:
            return None
        e = self.episodes[first]
        e.owner, e.hidden_until_ms = owner, now_ms + visible_ms
        self._judging_out.add(e.hidden_until_ms, first)
        self.receipts["next_to_judge", request] = (e.spec.id, e.epoch)
        return ToJudge(e.spec, e.epoch, e.outcome)

    def verdict(self, episode: str, epoch: int, verdict: Verdict) -> bool:
        e = self._held(episode, epoch)
        if e.state == "judged":
            return False
        self._need(e, epoch, "sealed")
        e.verdict = verdict
        self.outcomes[e.spec.purpose][e.outcome.kind] += 1
        self.sampled.update(e.outcome.sampled())
        self._move(e, "judged")
        self._settle(e)
        return True

    def part_group(self, name: str, rest: str, least: int) -> bool:
        if name in self.forgotten:
            return False
        group = self._group(name)
        if group.state != "open":
            return False
        if group.purpose == "eval" or group.came_in:
            raise WrongState(
                "group", name, "the rest of another" if group.came_in else "for evaluation, never closed early"
            )
        if rest in self.groups or rest in self.forgotten:
            raise Conflict("group", rest)
        final = [i for i in group.members if self.episodes[i].state in ("judged", "dropped")]
        late = [i for i in group.members if i not in final]
        came_in = {i: float(verdict.score) for i in final if (verdict := self.episodes[i].verdict)}
        if len(group.members) < group.size or len(came_in) < least:
            return False
        group.members, group.size, group.rest, group.state = final, len(final), rest, "complete"
        self._complete.add(group.rank, name)
        self.groups[rest] = Group(len(late), group.purpose, group.rank, late, came_in=came_in)
        for episode in late:
            self.episodes[episode].group = rest
        return True

    def next_group_to_close(self) -> str | None:
        return self._complete.first()

    def close_group(self, name: str, windows: list[Window]) -> bool:
        if name in self.forgotten:
            return False
        group = self._group(name)
        if group.state == "open":
            raise WrongState("group", name, "open")
        if group.state != "complete":
            return False
        if group.purpose == "eval" and windows:
            raise WrongState("group", name, "for evaluation, never trained")
        for window in windows:
            if window.id in self.windows:
                raise Conflict("window", window.id)
        self.windows.update((window.id, window) for window in windows)
        group.refs = [WindowRef.of(window) for window in windows]
        group.order, group.state = self._next_order(), "ready" if windows else "consumed"
        if windows:
            self._ready_line.add(group.order, name)
        self.window_counts["ready"] += len(windows)
        if group.purpose == "eval":
            judged = {i: self.episodes[i].verdict for i in group.members if self.episodes[i].verdict}
            self.eval_scores[name] = {i: float(verdict.score) for i, verdict in judged.items()}
        return True

    # Training

    def lease(
        self, step: int, n_groups: int, oldest_version: int, dead_versions: Sequence[int] = ()
    ) -> list[WindowRef]:
        if step <= self.committed:
            raise Committed(step, self.committed)
        if step not in self.leases:
            picked, counted = [], 0
            while counted < n_groups and (name := self._ready_line.pop()) is not None:
                if self._freshen(self.groups[name], oldest_version, dead_versions):
                    picked.append(name)
                    counted += not self.groups[name].came_in
            if counted < n_groups:
                for name in picked:
                    self._ready_line.add(self.groups[name].order, name)
                return []
            self.leases[step] = picked
            for name in picked:
                self._move_windows(name, "leased")
        return [ref for name in self.leases[step] for ref in self.groups[name].refs]

    def commit(self, step: int) -> int:
        done = sorted(leased for leased in self.leases if leased <= step)
        names = []
        for leased in done:
            for name in self.leases.pop(leased):
                self._move_windows(name, "consumed")
                self.groups[name].step = leased
                names.append(name)
        self.committed = max([self.committed, *done])
        return len(names)

    def rollback(self, step: int) -> int:
        if step < self.committed:
            raise Committed(step, self.committed)
        names = [name for leased in sorted(self.leases) if leased > step for name in self.leases.pop(leased)]
        for name in names:
            self._move_windows(name, "ready")
        return len(names)

    def publish_version(self, floor: int, request: str) -> int:
        if ("publish_version", request) not in self.receipts:
            self.version = max(self.version, floor) + 1
            self.receipts["publish_version", request] = (self.version,)
        return self.receipts["publish_version", request][0]

    def forget(self, name: str) -> bool:
        if name in self.forgotten:
            return False
        group = self._group(name)
        if group.state != "consumed":
            raise WrongState("group", name, group.state)
        for episode in group.members:
            del self.episodes[episode]
        for ref in group.refs:
            del self.windows[ref.id]
        del self.groups[name]
        self.forgotten.add(name)
        return True
