"""From the commands in the append-only file to the history of a run.

Whatever a transaction removes, it removes for the reason that it counts beside it. One that counts none has lost it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from klong_rl.types import EpisodeSpec, Segment, Turn, Window
from klong_rl.wire import decode
from tests.chaos.aof import Command, Transaction
from tests.chaos.history import (
    ARCHIVED,
    COMMITTED,
    GIVEN_UP,
    GONE,
    OPEN,
    ROLLED_BACK,
    STALE,
    Action,
    Episode,
    History,
    Lease,
    WindowStory,
)


class Unreadable(Exception):
    """A command that the buffer isn't known to use on this kind of key: teach this module about it."""


class Effect(NamedTuple):
    """One command on one key of the run: `sizes:s1-g0-e0` has the kind `sizes` and the thing `s1-g0-e0`."""

    name: str
    kind: str
    thing: str
    words: tuple[bytes, ...]


def replay(run: str, story: Iterable[Transaction]) -> History:
    """The history of the run called `run` in the buffer (klong_rl.launch.run_id)."""
    history, staged = History(), {}
    for transaction in story:
        effects = list(_effects(f"klong:{{{run}}}:", transaction.commands))
        _Step(history, staged, transaction.position, effects).play()
    return history


def _effects(prefix: str, commands: Iterable[Command]) -> Iterator[Effect]:
    for command in commands:
        for name, key, *words in _of_each_key(command):
            if (text := key.decode(errors="replace")).startswith(prefix):
                kind, _, thing = text.removeprefix(prefix).partition(":")
                yield Effect(name, kind, thing, tuple(words))


def _of_each_key(command: Command) -> Iterator[tuple]:
    """(name, key, words) of a command on one key, or of each of its keys."""
    name, words = command[0].upper().decode(), command[1:]
    if name in ("DEL", "UNLINK"):
        yield from (("DEL", key) for key in words)
    elif name == "MSET":
        yield from (("SET", key, value) for key, value in zip(words[::2], words[1::2], strict=True))
    else:
        yield (name, *words)


class _Step:
    """One transaction applied to a history. `staged` are the segments that no transaction has taken yet."""

    def __init__(self, history: History, staged: dict[str, bytes], position: int, effects: list[Effect]) -> None:
        self.history = history
        self.staged = staged
        self.position = position
        self.effects = effects
        self.fate, self.reason = self._why()
        self.rolls_back = not any(e.kind == "committed" or (e.kind, e.words[:1]) == ("group", b"step") for e in effects)

    def play(self) -> None:
        for effect in self.effects:
            match effect.kind:
                case "episode":
                    self._episode(effect)
                case "staged":
                    self._staged(effect)
                case "segment":
                    self._segment(effect)
                case "sizes":
                    self._sizes(effect)
                case "window":
                    self._window(effect)
                case "lease":
                    self._lease(effect)
                case "version":
                    self.history.versions.append(int(effect.words[0]))
                case "forgotten":
                    self.history.forgotten.update(group.decode() for group in effect.words)

    def _why(self) -> tuple[str, str]:
        """What became of the things that this transaction removes."""
        if any(effect.kind == "forgotten" for effect in self.effects):
            return ARCHIVED, ""
        counted = {e.thing: e.words[0].decode() for e in self.effects if e.kind == "n" and e.name == "HINCRBY"}
        for counter in ("drops", "discarded"):
            if counter in counted:
                return GIVEN_UP, counted[counter]
        return GONE, ""

    def _episode(self, effect: Effect) -> None:
        episode = self.history.episodes.get(effect.thing)
        if effect.name == "HSET":
            fields = dict(zip(effect.words[::2], effect.words[1::2], strict=True))
            if b"spec" in fields:
                episode = Episode(effect.thing, decode(fields[b"spec"], EpisodeSpec), self.position)
                self.history.episodes[effect.thing] = episode
            if b"reason" in fields:
                episode.dropped = fields[b"reason"].decode()
            if b"intended" in fields:
                self._intend(episode, decode(fields[b"intended"], Turn))
        elif effect.name == "DEL" or (effect.name == "HDEL" and b"intended" in effect.words):
            self._end_intention(episode)

    def _intend(self, episode: Episode, turn: Turn) -> None:
        if episode.intended is not None and not same_action(episode.intended.turn, turn):
            episode.intended.leave(GONE, "another action was intended in its place", self.position)
            episode.unfinished.append(episode.intended)
        episode.intended = Action(episode.id, turn, self.position)

    def _end_intention(self, episode: Episode) -> None:
        """The intended action was appended in this very transaction, or it is given up."""
        intended, episode.intended = episode.intended, None
        if intended is None:
            return
        newest = episode.actions[-1] if episode.actions else None
        if newest and newest.position == self.position and same_action(newest.turn, intended.turn):
            return
        intended.leave(self.fate, self.reason, self.position)
        episode.unfinished.append(intended)

    def _staged(self, effect: Effect) -> None:
        if effect.name == "SET":
            self.staged[effect.thing] = effect.words[0]
        elif effect.name == "DEL":
            self.staged.pop(effect.thing, None)
        elif effect.name == "RENAME":
            segment = decode(self.staged.pop(effect.thing), Segment)
            episode = self.history.episodes[segment.episode]
            if not effect.words[0].endswith(f":segment:{episode.id}:{len(episode.live)}".encode()):
                raise Unreadable(f"segment {len(episode.live)} of {episode.id} became {effect.words[0]!r}")
            if segment.prefix_P is not None:
                episode.prefix_P = segment.prefix_P
            actions = [Action(episode.id, turn, self.position, segment.epoch) for turn in segment.turns]
            episode.actions += actions
            episode.live.append(actions)
        else:
            raise Unreadable(f"{effect.name} on {effect.kind}:{effect.thing}")

    def _segment(self, effect: Effect) -> None:
        if effect.name == "DEL":
            episode, _, seq = effect.thing.rpartition(":")
            self._leave(self.history.episodes[episode].live[int(seq) : int(seq) + 1])
        else:
            raise Unreadable(f"{effect.name} on {effect.kind}:{effect.thing}")

    def _sizes(self, effect: Effect) -> None:
        episode = self.history.episodes[effect.thing]
        if effect.name in ("DEL", "LTRIM"):
            kept = 0 if effect.name == "DEL" else int(effect.words[1]) + 1
            self._leave(episode.live[kept:])
            episode.live = episode.live[:kept]
        elif effect.name != "RPUSH":
            raise Unreadable(f"{effect.name} on {effect.kind}:{effect.thing}")

    def _leave(self, segments: list[list[Action]]) -> None:
        for action in (action for segment in segments for action in segment):
            action.leave(self.fate, self.reason, self.position)

    def _window(self, effect: Effect) -> None:
        if effect.name == "SET":
            self.history.windows[effect.thing] = WindowStory(decode(effect.words[0], Window), self.position)
        elif effect.name == "DEL":
            stale = any(e.kind == "n" and e.thing == "windows" and e.words[0] == b"stale" for e in self.effects)
            self.history.windows[effect.thing].fate = STALE if stale else self.fate
        else:
            raise Unreadable(f"{effect.name} on {effect.kind}:{effect.thing}")

    def _lease(self, effect: Effect) -> None:
        step = int(effect.thing)
        if effect.name == "RPUSH":
            self.history.leases += [Lease(step, group.decode(), self.position) for group in effect.words]
        elif effect.name == "DEL":
            for lease in self.history.leases:
                if lease.step == step and lease.end == OPEN:
                    lease.end, lease.ended_at = (ROLLED_BACK if self.rolls_back else COMMITTED), self.position
        else:
            raise Unreadable(f"{effect.name} on {effect.kind}:{effect.thing}")


def same_action(one: Turn, other: Turn) -> bool:
    """The same tokens at the same place, sampled in the same context."""
    where, other_where = (one.index, one.context_start, one.chain), (other.index, other.context_start, other.chain)
    return where == other_where and np.array_equal(one.action_A, other.action_A)
