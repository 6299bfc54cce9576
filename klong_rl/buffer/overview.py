"""The looks at all that a buffer holds, for who shows it: small answers, whatever the episodes weigh."""

from __future__ import annotations

from klong_rl.buffer.group_reader import GroupReader, if_any
from klong_rl.buffer.records import Brief
from klong_rl.types import Outcome, Segment, Verdict

EPISODES_A_READ = 1000  # of a look at all of them: a reply of some 100 kB


class Overview(GroupReader):
    """What can be asked of a buffer as a whole. Raises as klong_rl.buffer.reader.Reader."""

    async def groups(self) -> list[str]:
        """Every group that is known and not archived, by name."""
        queued, running, waiting, held, complete, ready, steps, consumed = await self._redis.read(
            "groups",
            ("ZRANGE", self._key("queued"), 0, -1),
            ("HKEYS", self._key("running")),
            ("ZRANGE", self._key("judging"), 0, -1),
            ("ZRANGE", self._key("judging_out"), 0, -1),
            ("ZRANGE", self._key("complete"), 0, -1),
            ("ZRANGE", self._key("ready"), 0, -1),
            ("ZRANGE", self._key("leases"), 0, -1),
            ("ZRANGE", self._key("consumed"), 0, -1),
        )
        leased = await self._redis.read("groups", *(("LRANGE", self._key("lease", int(s)), 0, -1) for s in steps))
        found = {group for some in (complete, ready, consumed, *leased) for group in some}
        episodes = [episode.decode() for some in (queued, running, waiting, held) for episode in some]
        for first in range(0, len(episodes), EPISODES_A_READ):
            some = episodes[first : first + EPISODES_A_READ]
            names = await self._redis.read("groups", *(("HGET", self._key("episode", each), "group") for each in some))
            found.update(name for name in names if name is not None)  # else forgotten between the two reads
        return sorted(group.decode() for group in found)

    async def briefs(self, group: str) -> list[Brief]:
        """The members of a group in order of admission; none where it was forgotten."""
        (ids,) = await self._redis.read("briefs", ("LRANGE", self._key("members", group), 0, -1))
        names = [i.decode() for i in ids]
        commands: list[tuple] = []
        for episode in names:
            key = self._key("episode", episode)
            commands.append(("HMGET", key, "state", "purpose", "outcome", "verdict", "reason"))
            commands.append(("LLEN", self._key("sizes", episode)))
        found = await self._redis.read("briefs", *commands)
        briefs = []
        for episode, (state, purpose, outcome, verdict, reason), n in zip(names, found[::2], found[1::2], strict=True):
            if state is None:
                continue
            key = self._key("episode", episode)
            ended, judged = if_any(outcome, Outcome, key), if_any(verdict, Verdict, key)
            words = (state.decode(), (purpose or b"").decode(), ended.kind if ended else "", (reason or b"").decode())
            briefs.append(Brief(episode, *words, judged.score if judged else None, n))
        return briefs

    async def segments_from(self, episode: str, first: int) -> list[Segment]:
        """The segments of an episode from number `first` on. Raises Unknown if its holder gives some up meanwhile."""
        (n,) = await self._redis.read("segments_from", ("LLEN", self._key("sizes", episode)))
        return (await self._segments("segments_from", {episode: n}, first))[episode]
