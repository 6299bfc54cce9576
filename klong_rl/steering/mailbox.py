"""Commands and what became of them, in the Redis of a run, beside the buffer's own keys:

steer:asked  hash    command id -> Command, until it is answered
steer:state  string  Steered: what is wanted, and the answers
"""

from __future__ import annotations

import msgspec

from klong_rl.buffer.connection import Connection
from klong_rl.steering.wanted import Answer, Command, Steered

# Also at Redis's memory limit: a run that is full is one to be steered.
_ASK = '#!lua flags=allow-oom\nreturn redis.call("HSET", KEYS[1] .. "asked", ARGV[1], ARGV[2])'
_NOTE = """#!lua flags=allow-oom
redis.call("SET", KEYS[1] .. "state", ARGV[1])
for i = 2, #ARGV do redis.call("HDEL", KEYS[1] .. "asked", ARGV[i]) end
"""


class Mailbox:
    """Of one run. Every method raises Unavailable when Redis doesn't answer by the connection's deadline."""

    def __init__(self, connection: Connection) -> None:
        self._redis = connection
        self._prefix = connection.key("steer", "")

    async def now(self) -> float:
        """Unix seconds by Redis's clock, which both sides share."""
        ((seconds, micros),) = await self._redis.read("steer", ("TIME",))
        return int(seconds) + int(micros) / 1e6

    async def ask(self, command: Command) -> None:
        """Lay a command down for the driver. Asked twice under one id, it is one command."""
        await self._redis.read("steer", ("EVAL", _ASK, 1, self._prefix, command.id, msgspec.json.encode(command)))

    async def withdraw(self, command: str) -> bool:
        """Take it back; False if the driver has answered it, or is about to find it gone."""
        (n,) = await self._redis.read("steer", ("HDEL", self._prefix + "asked", command))
        return bool(n)

    async def asked(self) -> list[Command]:
        """What waits for an answer, in the order in which it was asked."""
        (found,) = await self._redis.read("steer", ("HVALS", self._prefix + "asked"))
        commands = [msgspec.json.decode(each, type=Command) for each in found]
        return sorted(commands, key=lambda command: (command.asked, command.id))

    async def state(self) -> Steered:
        """What was noted last."""
        (found,) = await self._redis.read("steer", ("GET", self._prefix + "state"))
        return msgspec.json.decode(found, type=Steered) if found else Steered()

    async def note(self, state: Steered, answered: list[str] | None = None) -> None:
        """Keep `state`, and with it take the commands that it answers off the list. Only the driver does."""
        document = msgspec.json.encode(state)
        await self._redis.read("steer", ("EVAL", _NOTE, 1, self._prefix, document, *(answered or ())))

    async def answer(self, command: str) -> Answer | None:
        return (await self.state()).answer(command)
