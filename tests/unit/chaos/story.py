"""A small run told by hand, as Redis writes it to its append-only file, with an archive and a ledger that agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import numpy as np

from klong_rl.chain import link
from klong_rl.types import EpisodeSpec, Segment, Task, Turn, Window
from klong_rl.windows import split, window_of_each
from klong_rl.wire import encode
from tests.chaos.aof import MANIFEST, transactions
from tests.chaos.audit import ArchivedEpisode, ArchivedTurn, Evidence, TrainedStep, distance
from tests.chaos.replay import replay

PREFIX = np.array([1, 2, 3], np.int32)
TASK = Task(id="t", family="f", instruction="i", image="image")


@dataclass
class Told:
    spec: EpisodeSpec
    turns: list[Turn] = field(default_factory=list)


class Story:
    """Each method is one transition, by its effects. `end()` is the evidence that it leaves."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.data = b""
        self.told: dict[str, Told] = {}
        self.windows: dict[str, list[Window]] = {}
        self.stale: set[str] = set()
        self.archive: list[ArchivedEpisode] = []
        self.ledger: list[TrainedStep] = []
        self.lineage = [(1, 0)]

    def write(self, *commands: tuple) -> None:
        """One transaction; keys are those after the run's prefix."""
        whole = [("MULTI",), *commands, ("EXEC",)] if len(commands) > 1 else commands
        for words in whole:
            self.data += b"*%d\r\n" % len(words) + b"".join(self._word(word) for word in words)

    @staticmethod
    def _word(word) -> bytes:
        raw = word if isinstance(word, bytes) else str(word).encode()
        return b"$%d\r\n%b\r\n" % (len(raw), raw)

    def key(self, *parts) -> str:
        return "klong:{run}:" + ":".join(map(str, parts))

    def count(self, what: str, name: str, n: int = 1) -> tuple:
        return ("HINCRBY", self.key("n", what), name, n)

    def admit(self, episode: str, group: str, purpose: str = "train") -> None:
        spec = EpisodeSpec(
            id=episode, group=group, group_size=1, stage=1, purpose=purpose, task=TASK, timeout_s=1.0, max_turns=9
        )
        self.told[episode] = Told(spec)
        self.write(
            ("RPUSH", self.key("members", group), episode),
            ("HSET", self.key("episode", episode), "spec", encode(spec), "group", group, "epoch", 0),
        )

    def turn(self, episode: str, tokens: list[int], version: int = 1, context_start: int = 0) -> Turn:
        """The next turn of an episode as the engine would sample it, not stored anywhere yet."""
        turns = self.told[episode].turns
        context = [PREFIX] + [part for t in turns[context_start:] for part in (t.action_A, t.observation_O)]
        action = np.array(tokens, np.int32)
        return Turn(
            index=len(turns),
            context_start=context_start,
            action_A=action,
            logprobs_A=np.zeros(len(tokens), np.float32),
            versions=((version, len(tokens)),),
            observation_O=np.array([7, len(turns)], np.int32),
            chain=link(turns[-1].chain if turns else b"", np.concatenate(context), action),
        )

    def intend(self, episode: str, turn: Turn) -> None:
        self.write(("HSET", self.key("episode", episode), "intended", encode(turn), "intended_tokens", 1))

    def append(self, episode: str, turn: Turn) -> None:
        seq = turn.index
        segment = Segment(episode=episode, epoch=1, seq=seq, turns=(turn,), prefix_P=None if seq else PREFIX)
        self.told[episode].turns.append(turn)
        staged, mine = self.key("staged", episode, seq), self.key("segment", episode, seq)
        self.write(("MSET", staged, encode(segment)))
        self.write(
            ("RENAME", staged, mine),
            ("RPUSH", self.key("sizes", episode), len(turn.action_A)),
            ("HDEL", self.key("episode", episode), "intended", "intended_tokens"),
        )

    def play(self, episode: str, *actions: list[int], version: int = 1) -> None:
        """Turns that are intended and appended, one after the other."""
        for tokens in actions:
            turn = self.turn(episode, tokens, version)
            self.intend(episode, turn)
            self.append(episode, turn)

    def rewind(self, episode: str, keep: int, reason: str | None) -> None:
        counted = [self.count("discarded", reason, 5)] if reason else []
        self.write(*self.delete_segments(episode, keep), ("HDEL", self.key("episode", episode), "intended"), *counted)

    def delete_segments(self, episode: str, keep: int = 0) -> list[tuple]:
        turns, sizes = self.told[episode].turns, self.key("sizes", episode)
        self.told[episode].turns = turns[:keep]
        gone = [("DEL", self.key("segment", episode, turn.index)) for turn in turns[keep:]]
        return [*gone, ("LTRIM", sizes, 0, keep - 1) if keep else ("DEL", sizes)]

    def drop(self, episode: str, reason: str) -> None:
        self.write(
            *self.delete_segments(episode),
            ("HSET", self.key("episode", episode), "reason", reason),
            self.count("drops", reason),
        )

    def close(self, group: str, change: Callable[[np.ndarray], np.ndarray] = lambda tokens_T: tokens_T) -> None:
        """`change` is what an error in making the windows would do to their tokens."""
        members = [told for told in self.told.values() if told.spec.group == group]
        made = [w for told in members if told.spec.purpose == "train" for w in split(told.spec, PREFIX, told.turns)]
        made = [msgspec.structs.replace(window, tokens_T=change(window.tokens_T)) for window in made]
        self.windows[group] = made
        self.write(("INCR", self.key("order")), *(("SET", self.key("window", w.id), encode(w)) for w in made))

    def lease(self, step: int, group: str) -> None:
        self.write(("RPUSH", self.key("lease", step), group), ("ZADD", self.key("leases"), step, step))

    def turn_stale(self, group: str) -> None:
        self.stale.update(window.id for window in self.windows[group])
        self.write(self.count("windows", "stale", 1), *(("DEL", self.key("window", w.id)) for w in self.windows[group]))

    def rollback(self, step: int, group: str) -> None:
        self.write(("ZADD", self.key("ready"), 1, group), ("DEL", self.key("lease", step)))

    def commit(self, step: int, group: str) -> None:
        self.write(
            ("HSET", self.key("group", group), "step", step),
            ("DEL", self.key("lease", step)),
            ("SET", self.key("committed"), step),
        )

    def learn(self, step: int, *groups: str, version: int) -> None:
        """The step trains these groups and publishes the version after it."""
        windows = [window for group in groups for window in self.windows[group]]
        tokens = sum(window.n_targets() for window in windows)
        before, _ = self.lineage[-1]
        ages = [distance(version, self.lineage) for window in windows for version, _ in window.versions]
        names = tuple(window.id for window in windows)
        self.ledger.append(TrainedStep(step, before, names, tokens, max(ages)))
        self.lineage.append((version, step))
        self.write(("SET", self.key("version"), version))

    def forget(self, group: str, step: int | None = None) -> None:
        members = [told for told in self.told.values() if told.spec.group == group]
        for told in members:
            windows = window_of_each(told.spec, told.turns)
            trained = {w.id for w in self.windows.get(group, [])} - self.stale
            rows = [ArchivedTurn(t, w if w in trained else None) for t, w in zip(told.turns, windows, strict=True)]
            spec = told.spec
            self.archive.append(ArchivedEpisode(spec.id, group, spec.purpose, step, "", PREFIX, rows))
        gone = [command for told in members for command in self.delete_segments(told.spec.id)]
        keys = [self.key("episode", told.spec.id) for told in members]
        keys += [self.key("window", w.id) for w in self.windows.get(group, []) if w.id not in self.stale]
        self.write(*gone, ("DEL", *keys), ("SADD", self.key("forgotten"), group))

    def train(self, step: int, group: str, *actions: list[int], version: int) -> None:
        """A whole group of one episode, from admission to the archive, in one step."""
        self.admit(f"{group}-e0", group)
        self.play(f"{group}-e0", *actions, version=self.lineage[-1][0])
        self.close(group)
        self.lease(step, group)
        self.learn(step, group, version=version)
        self.commit(step, group)
        self.forget(group, step)

    def end(self, steps: int, max_staleness: int = 1) -> Evidence:
        path = self.folder / "appendonly.aof.1.incr.aof"
        path.write_bytes(self.data)
        (self.folder / MANIFEST).write_text(
            f"file appendonly.aof.1.base.rdb seq 1 type b\nfile {path.name} seq 1 type i\n"
        )
        history = replay("run", transactions(path))
        return Evidence(history, self.archive, self.ledger, self.lineage, max_staleness, steps)
