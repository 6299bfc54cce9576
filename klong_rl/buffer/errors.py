"""What the buffer refuses, and what can keep it from answering.

`Refused` and its kinds are answers: Redis was reached, the rule said no, nothing changed. Retrying won't help.
`Unavailable` and its kinds say that no answer came: the caller doesn't know whether the transition happened, and may
repeat it with the same request name. `ServerFault` and its kinds concern the embedded server.
"""

from __future__ import annotations


class BufferFault(Exception):
    """Base of everything below. `args` are the facts, so that a fault compares and travels between processes."""


class Refused(BufferFault):
    """The transition breaks a rule; nothing changed."""


class StaleEpoch(Refused):
    """The caller no longer holds the episode: it was requeued, dropped or sealed since. Stop working on it."""

    def __init__(self, episode: str, held: int, current: int, state: str):
        super().__init__(episode, held, current, state)
        self.episode, self.held, self.current, self.state = episode, held, current, state

    def __str__(self) -> str:
        return (
            f"episode {self.episode}: epoch {self.held} doesn't hold it (now {self.state}, epoch {self.current}); "
            "stop writing and claim again"
        )


class OutOfSequence(Refused):
    """A segment is not the next one: an earlier one is missing."""

    def __init__(self, episode: str, seq: int, expected: int):
        super().__init__(episode, seq, expected)
        self.episode, self.seq, self.expected = episode, seq, expected

    def __str__(self) -> str:
        return f"episode {self.episode}: segment {self.seq} came, {self.expected} is next; append in order"


class Conflict(Refused):
    """A name that is already taken came again with other content."""

    def __init__(self, thing: str, name: str):
        super().__init__(thing, name)
        self.thing, self.name = thing, name

    def __str__(self) -> str:
        return f"{self.thing} {self.name} exists with other content; what was written first stands"


class WrongState(Refused):
    """A group, a lease or a step is not where the transition needs it."""

    def __init__(self, thing: str, name: str, state: str):
        super().__init__(thing, name, state)
        self.thing, self.name, self.state = thing, name, state

    def __str__(self) -> str:
        return f"{self.thing} {self.name} is {self.state}: this transition doesn't start there"


class Committed(Refused):
    """A step at or before the last committed one was leased, or rolled back past it."""

    def __init__(self, step: int, committed: int):
        super().__init__(step, committed)
        self.step, self.committed = step, committed

    def __str__(self) -> str:
        return (
            f"step {self.step}: what was trained up to step {self.committed} is committed for good; "
            f"restore the checkpoint of step {self.committed} or later, or start a new run from the older one"
        )


class Malformed(Refused):
    """A message that no client of ours sends: a number that is none, a frame cut short, a record of another kind."""

    def __init__(self, transition: str, what: str):
        super().__init__(transition, what)
        self.transition, self.what = transition, what

    def __str__(self) -> str:
        return f"{self.transition}: {self.what}; nothing was changed, check who writes to this buffer, and its release"


class Unknown(Refused):
    """No such episode, group or window: never admitted, or archived and forgotten."""

    def __init__(self, thing: str, name: str):
        super().__init__(thing, name)
        self.thing, self.name = thing, name

    def __str__(self) -> str:
        return f"{self.thing} {self.name} is not in the buffer: never admitted, or archived since"


class Unavailable(BufferFault):
    """Redis gave no answer in time, or can't be used at all (wrong password, no permission)."""


class Full(Unavailable):
    """Redis takes no writes: memory limit reached or its disk is full."""


class ServerFault(BufferFault):
    """The embedded redis-server could not be started or stopped."""


class BinaryMissing(ServerFault):
    """There is no redis-server to start."""


class SocketTaken(ServerFault):
    """Something that is not this run's redis-server holds the socket path."""


class RunDirBusy(ServerFault):
    """Another live driver holds this run directory."""


class DiskFull(ServerFault):
    """Too little room in the run directory for the append-only file."""
