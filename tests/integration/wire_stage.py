"""A run with something in every state, told as raw calls of the scripts: in a Redis, and in the model of the rules."""

from __future__ import annotations

import asyncio
from typing import Any

import redis

from klong_rl.buffer import Buffer, BufferAddress, WindowRef
from klong_rl.buffer.connection import _scripts
from klong_rl.buffer.rules import Rules
from klong_rl.types import Outcome, Verdict
from klong_rl.wire import HEADER_BYTES, encode
from tests.episodes import segment, spec, window
from tests.integration.wire_rules import obey, text

CALLS: list[tuple[str, list[Any]]] = []


def tell(name: str, *arguments: Any) -> None:
    CALLS.append((name, [one if isinstance(one, bytes) else str(one).encode() for one in arguments]))


def header(seq: int, episode: str) -> bytes:
    return encode(segment(episode, seq))[:HEADER_BYTES]


def tell_up_to(state: str, group: str, size: int = 1, purpose: str = "train") -> None:
    """The first episode of a group, as far as `state`, while nothing else is queued."""
    e = f"{group}-0"
    steps = [
        ("admit", e, group, size, purpose, encode(spec(group, 0, size, purpose))),
        ("claim", "a", f"claim:{e}"),
        ("append", e, 1, 0, header(0, e), 5),
        ("append", e, 1, 1, header(1, e), 5),
        ("seal", e, 1, encode(SUBMITTED), "submitted", "attributed", 10),
        ("verdict", e, 1, encode(HALF), "0.5"),
    ]
    for step in steps[: {"queued": 1, "running": 4, "sealed": 5, "judged": 6}[state]]:
        tell(*step)


def closing(group: str) -> tuple:
    made = [window(group, 0), window(group, 1)]
    refs = [WindowRef.of(one) for one in made]
    rows = [(ref.id, ref.pack(), ref.n_tokens, encode(one)) for ref, one in zip(refs, made, strict=True)]
    return (group, *(argument for row in rows for argument in row))


SUBMITTED, HALF = Outcome(kind="submitted"), Verdict(score=0.5)
for group in ("forgotten", "consumed", "leased", "ready", "fresh", "complete"):
    tell_up_to("judged", group)
    if group != "complete":
        tell("close_group", *closing(group))
tell("lease", 0, 2, 0)
tell("commit", 0)
tell("forget", "forgotten")
tell("lease", 1, 1, 0)
tell_up_to("judged", "eval", 1, "eval")
tell("close_group", "eval")
tell_up_to("sealed", "sealed", 2)
tell_up_to("running", "intended", 2)
tell("intend", "intended-0", 1, 2, 5, encode(segment("intended-0", 2).turns[0]))
tell_up_to("running", "running", 2)
tell_up_to("judged", "parted", 2)
tell_up_to("queued", "queued", 2)
tell("admit", "queued-1", "queued", 2, "train", encode(spec("queued", 1, 2)))
tell("admit", "parted-1", "parted", 2, "train", encode(spec("parted", 1, 2)))
tell("publish_version", 0, "first")
BUILT = len(CALLS)
# And calls that do something from there: these are mutated, and those above once more.
tell("admit", "sealed-1", "sealed", 2, "train", encode(spec("sealed", 1, 2)))
tell("claim", "b", "fresh")
tell("intend", "running-0", 1, 2, 5, encode(segment("running-0", 2).turns[0]))
tell("append", "running-0", 1, 2, header(2, "running-0"), 5)
tell("append", "running-0", 1, 1, header(1, "running-0"), 5, header(2, "running-0"), 5, header(3, "running-0"), 5)
tell("rewind", "running-0", 1, 1, "sandbox gone")
tell("keep_snapshot", "running-0", 1, 2, "image")
tell("extend", "queued", "45.5", 9)
tell("seal", "running-0", 1, encode(SUBMITTED), "submitted")
tell("seal", "running-0", 1, encode(SUBMITTED), "submitted", "attributed", 5, "its client went away", 2)
tell("requeue", "sealed-0", 1, "judge died")
tell("abandon", "a", "actor died", "fresh")
tell("drop", "running-0", "straggler", "")
tell("drop", "running-0", "straggler", 1)
tell("next_to_judge", "judge", 1000, "fresh")
tell("verdict", "sealed-0", 1, encode(HALF), "0.5")
tell("close_group", *closing("complete"))
tell("part_group", "parted", "parted-late", 1)
tell("lease", 2, 1, 0)
tell("lease", 2, 2, 0, 0, 1)
tell("commit", 1)
tell("rollback", 0)
tell("publish_version", 7, "fresh")
tell("forget", "consumed")
STAGED = {f"running-0:{seq}": encode(segment("running-0", seq)) for seq in (2, 3)}


READ = {
    b"hash": ("HGETALL",),
    b"list": ("LRANGE", 0, -1),
    b"set": ("SMEMBERS",),
    b"string": ("GET",),
    b"zset": ("ZRANGE", 0, -1, "WITHSCORES"),
}


class Stage:
    """A Redis and a model of the rules, both as CALLS have it, and Redis put back there after each call."""

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self.client = redis.from_url(url)
        self.loop, self.address = loop, BufferAddress(url, "wire")
        self.buffer = loop.run_until_complete(Buffer.connect(self.address))
        self.prefix = "klong:{wire}:"
        self.scripts = _scripts()
        self.model = Rules()
        for script in self.scripts.values():
            self.client.script_load(script.source)
        for name, arguments in CALLS[:BUILT]:
            if name == "append":
                self.stage(f"{arguments[0].decode()}:{arguments[2].decode()}", arguments)
            assert self.call(name, arguments)[0] == b"OK", (name, arguments)
            obey(self.model, name, arguments)
        for name, value in STAGED.items():
            self.client.set(f"{self.prefix}staged:{name}", value)
        self.origin, self.content = self.dump(), self.read()

    def stage(self, name: str, arguments: list[bytes]) -> None:
        self.client.set(f"{self.prefix}staged:{name}", encode(segment(arguments[0].decode(), int(arguments[2]))))

    def call(self, name: str, arguments: list[bytes]) -> list:
        return self.client.evalsha(self.scripts[name].sha, 1, self.prefix, *arguments)

    def dump(self) -> dict[bytes, bytes]:
        names = sorted(self.client.keys())
        pipe = self.client.pipeline(transaction=False)
        for name in names:
            pipe.dump(name)
        return dict(zip(names, pipe.execute(), strict=True))

    def read(self) -> dict[bytes, Any]:
        """What each key holds. (The dump of a hash is in an order that a look at it may change.)"""
        names = sorted(self.client.keys())
        pipe = self.client.pipeline(transaction=False)
        for name in names:
            pipe.type(name)
        for name, kind in zip(names, pipe.execute(), strict=True):
            command, *rest = READ[kind]
            pipe.execute_command(command, name, *rest)
        return dict(zip(names, pipe.execute(), strict=True))

    def changed(self) -> list[bytes]:
        """Keys that are not as they were. What is staged belongs to no state, and goes with the answer."""
        now, then = self.read(), self.content
        names = {name for name in now.keys() | then.keys() if now.get(name) != then.get(name)}
        return sorted(name for name in names if not name.startswith(f"{self.prefix}staged:".encode()))

    def restore(self) -> None:
        pipe = self.client.pipeline(transaction=False)
        pipe.flushdb()
        for name, value in self.origin.items():
            pipe.restore(name, 0, value)
        pipe.execute()

    def key(self, *parts: str) -> bytes:
        return (self.prefix + ":".join(parts)).encode("latin-1")

    def texts(self, *command: Any) -> list[str]:
        return [text(one) for one in self.client.execute_command(*command)]

    def summary(self) -> dict[str, Any]:
        """The state in Redis, in the words of `told`."""
        tables = ("states", "drops", "requeues", "windows", "appended", "discarded")
        counts = {what: self.client.hgetall(self.key("n", what)) for what in tables}
        steps = self.texts("ZRANGE", self.key("leases"), 0, -1)
        episodes = [name for name in self.client.keys() if name.startswith(self.key("episode", ""))]
        found = {"counts": {w: {text(f): int(n) for f, n in t.items() if int(n)} for w, t in counts.items()}}
        for key in episodes:
            episode = text(key).removeprefix(f"{self.prefix}episode:")
            fields = ("state", "epoch", "failures", "owner", "reason", "snapshot", "group")
            state, epoch, failures, *words = self.client.hmget(key, fields)
            n = self.client.llen(self.key("sizes", episode))
            found[episode] = (text(state), int(epoch), int(failures), *(text(word or b"") for word in words), n)
        found["leases"] = {int(step): self.texts("LRANGE", self.key("lease", step), 0, -1) for step in steps}
        found["ready"] = self.texts("ZRANGE", self.key("ready"), 0, -1)
        found["consumed"] = self.texts("ZRANGE", self.key("consumed"), 0, -1)
        found["forgotten"] = set(self.texts("SMEMBERS", self.key("forgotten")))
        found["numbers"] = [int(self.client.get(self.key(name)) or -1) for name in ("committed", "version")]
        return found


def told(model: Rules) -> dict[str, Any]:
    """The state of a model: counters, episodes, and which group is where."""
    counts = model.counts()._asdict()
    tables = ("states", "drops", "requeues", "windows", "appended", "discarded")
    found: dict[str, Any] = {"counts": {what: {f: n for f, n in counts[what].items() if n} for what in tables}}
    for name, e in model.episodes.items():
        image = e.snapshot.image if e.snapshot else ""
        found[name] = (e.state, e.epoch, e.failures, e.owner, e.reason, image, e.group, len(e.segments))
    found["leases"], found["ready"], found["consumed"] = model.leases, model._ready(), model.consumed()
    found["forgotten"], found["numbers"] = model.forgotten, [model.committed, model.version]
    return found
