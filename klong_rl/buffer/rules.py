"""The buffer's rules as plain Python: what each Lua script does, on dicts, with the same answers and refusals.

It is the statement of what the transitions mean, and the model that property tests drive beside a real Redis. It needs
no Redis, no clock and no event loop. Records are kept as given; segments are kept encoded, since only their bytes and
their order matter. `receipts` hold what a named request was answered, so that its repetition gets the same answer.
"""

from __future__ import annotations

from klong_rl.buffer.errors import Committed, Conflict, OutOfSequence, StaleEpoch, WrongState
from klong_rl.buffer.records import Claim, ToJudge, WindowRef
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
        if group and (
            (group.size, group.purpose) != (spec.group_size, spec.purpose) or len(group.members) == group.size
        ):
            raise Conflict("group", spec.group)
        rank = (spec.purpose != "eval", self._next_order())
        group = self.groups.setdefault(spec.group, Group(spec.group_size, spec.purpose, rank))
        group.members.append(spec.id)
        self.episodes[spec.id] = Episode(spec, rank)
        self.states["queued"] += 1
        return True

    def claim(self, owner: str, request: str) -> Claim | None:
        if request in self.receipts:
            episode, epoch = self.receipts[request]
            return Claim(self._episode(episode).spec, epoch)
        queued = [e for e in self.episodes.values() if e.state == "queued"]
        if not queued:
            return None
        e = min(queued, key=lambda e: e.rank)
        e.epoch += 1
        e.owner = owner
        self._move(e, "running")
        self.receipts[request] = (e.spec.id, e.epoch)
        return Claim(e.spec, e.epoch)

    def append(self, episode: str, epoch: int, seq: int, segment: bytes) -> None:
        e = self._held(episode, epoch)
        if seq < len(e.segments):
            if e.segments[seq] != segment:
                raise Conflict("segment", f"{episode}/{seq}")
            return
        self._need(e, epoch, "running")
        if seq > len(e.segments):
            raise OutOfSequence(episode, seq, len(e.segments))
        e.segments.append(segment)

    def seal(self, episode: str, epoch: int, outcome: Outcome) -> None:
        e = self._held(episode, epoch)
        if e.state in ("sealed", "judged"):
            if e.outcome != outcome:
                raise Conflict("outcome of episode", episode)
            return
        self._need(e, epoch, "running")
        e.outcome, e.hidden_until_ms = outcome, 0
        self._move(e, "sealed")

    def requeue(self, episode: str, epoch: int, reason: str, keep_segments: bool = False) -> int:
        e = self._held(episode, epoch)
        self._need(e, epoch, "running", "sealed", "queued")
        if e.state != "queued":
            e.failures += 1
            self._back_to_queue(e, reason, keep_segments)
        return e.failures

    def requeue_running(
        self, reason: str, request: str, keep_segments: bool = False, and_sealed: bool = False
    ) -> int:
        if request not in self.receipts:
            states = ("running", "sealed") if and_sealed else ("running",)
            running = [e for e in self.episodes.values() if e.state in states]
            for e in running:
                self._back_to_queue(e, reason, keep_segments)
            for e in self.episodes.values():
                e.hidden_until_ms = 0
            self.receipts[request] = (len(running),)
        return self.receipts[request][0]

    def drop(self, episode: str, reason: str, epoch: int | None = None) -> bool:
        e = self._episode(episode) if epoch is None else self._held(episode, epoch)
        if e.state in ("judged", "dropped"):
            return False
        e.segments, e.reason = [], reason
        self.drops[reason] += 1
        self._move(e, "dropped")
        self._settle(e)
        return True

    # Verdicts and groups

    def next_to_judge(self, owner: str, visible_ms: int, request: str, now_ms: int) -> ToJudge | None:
        if request in self.receipts:
            episode, epoch = self.receipts[request]
            e = self._held(episode, epoch)
            if e.outcome is None:  # requeued since
                raise StaleEpoch(episode, epoch, e.epoch, e.state)
            return ToJudge(e.spec, epoch, e.outcome)
        waiting = [e for e in self.episodes.values() if e.state == "sealed" and e.hidden_until_ms <= now_ms]
        if not waiting:
            return None
        e = min(waiting, key=lambda e: e.rank)
        e.owner, e.hidden_until_ms = owner, now_ms + visible_ms
        self.receipts[request] = (e.spec.id, e.epoch)
        return ToJudge(e.spec, e.epoch, e.outcome)

    def verdict(self, episode: str, epoch: int, verdict: Verdict) -> bool:
        e = self._held(episode, epoch)
        if e.state == "judged":
            return False
        self._need(e, epoch, "sealed")
        e.verdict = verdict
        self.outcomes[e.spec.purpose][e.outcome.kind] += 1
        self._move(e, "judged")
        self._settle(e)
        return True

    def next_group_to_close(self) -> str | None:
        complete = [name for name, group in self.groups.items() if group.state == "complete"]
        return min(complete, key=lambda name: self.groups[name].rank, default=None)

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
        self.window_counts["ready"] += len(windows)
        if group.purpose == "eval":
            judged = {i: self.episodes[i].verdict for i in group.members if self.episodes[i].verdict}
            self.eval_scores[name] = {i: float(verdict.score) for i, verdict in judged.items()}
        return True

    # Training

    def lease(self, step: int, n_groups: int, oldest_version: int) -> list[WindowRef]:
        if step <= self.committed:
            raise Committed(step, self.committed)
        if step not in self.leases:
            picked: list[str] = []
            for name in self._ready():
                if len(picked) < n_groups and self._freshen(self.groups[name], oldest_version):
                    picked.append(name)
            if len(picked) < n_groups:
                return []
            self.leases[step] = picked
            for name in picked:
                self._move_windows(self.groups[name], "leased")
        return [ref for name in self.leases[step] for ref in self.groups[name].refs]

    def commit(self, step: int) -> int:
        done = sorted(leased for leased in self.leases if leased <= step)
        names = []
        for leased in done:
            for name in self.leases.pop(leased):
                self._move_windows(self.groups[name], "consumed")
                self.groups[name].step = leased
                names.append(name)
        self.committed = max([self.committed, *done])
        return len(names)

    def rollback(self, step: int) -> int:
        if step < self.committed:
            raise Committed(step, self.committed)
        names = [name for leased in sorted(self.leases) if leased > step for name in self.leases.pop(leased)]
        for name in names:
            self._move_windows(self.groups[name], "ready")
        return len(names)

    def publish_version(self, floor: int, request: str) -> int:
        if request not in self.receipts:
            self.version = max(self.version, floor) + 1
            self.receipts[request] = (self.version,)
        return self.receipts[request][0]

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
