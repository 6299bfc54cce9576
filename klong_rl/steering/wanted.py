"""What the operator wants of a run, and what a command changes about it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

POOLS = ("rollout", "judge")
SIMPLE = ("pause", "resume", "promote", "snapshot", "stop")
VERBS = ("scale", *SIMPLE)
KEPT_ANSWERS = 64
DONE, ACCEPTED, REFUSED = "done", "accepted", "refused"


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """`deadline`: Unix seconds of Redis's clock, after which it must not be begun."""

    id: str
    verb: str
    arguments: dict[str, str] = {}
    asked: float = 0.0
    deadline: float = 0.0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`accepted`: it holds, and is on its way; `done` follows."""

    id: str
    status: str
    text: str


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Empty names and zeros: nothing is wanted. The `_for` hold the ids of commands that wait for it."""

    paused: bool = False
    rollout: int = 0  # actors; 0: as configured
    judge: int = 0
    scale_for: tuple[str, ...] = ()
    leave: int = 0  # the stage to go up from
    checkpoint_for: tuple[str, ...] = ()
    stop_for: str = ""
    drain: bool = False  # before it stops

    @property
    def held(self) -> bool:
        """No episode is begun and no step taken."""
        return self.paused or (bool(self.stop_for) and self.drain)


class Steered(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of the steering of a run: one value, so that a command and its answer are one change."""

    wanted: Wanted = Wanted()
    answers: tuple[Answer, ...] = ()

    def answer(self, command: str) -> Answer | None:
        return next((each for each in reversed(self.answers) if each.id == command), None)

    def told(self, wanted: Wanted, *answers: Answer) -> Steered:
        """With these answers, in the place of earlier ones to the same commands."""
        ids = {answer.id for answer in answers}
        kept = [answer for answer in self.answers if answer.id not in ids]
        return Steered(wanted=wanted, answers=(*kept, *answers)[-KEPT_ANSWERS:])


class Now(msgspec.Struct, frozen=True, kw_only=True):
    """Where the run is as a command comes. `rollout`, `judge`: actors wanted so far."""

    time: float
    rollout: int
    judge: int
    stage: int
    stages: int
    step: int
    saved: int  # step of the newest checkpoint
    recorded: bool = False  # it has no actors: it trains on recorded rollouts


class CantBe(Exception):
    """Why a command is refused."""


def decide(wanted: Wanted, command: Command, now: Now) -> tuple[Wanted, Answer]:
    """What is wanted from here on, and what the operator is told."""
    try:
        if now.time > command.deadline:
            raise CantBe("it came to the driver after its deadline, so nothing was changed; ask again")
        changed, status, text = _DECISIONS[command.verb](wanted, command, now)
    except CantBe as reason:
        return wanted, Answer(id=command.id, status=REFUSED, text=str(reason))
    return changed, Answer(id=command.id, status=status, text=text)


def size(text: str, before: int, pool: str) -> int:
    """`+4` and `-2` are relative, `6` isn't. Raises CantBe.

    >>> size("+4", 2, "rollout"), size("3", 2, "judge")
    (6, 3)
    """
    if not re.fullmatch(r"[+-]?\d{1,4}", text):
        raise CantBe(f"{pool}={text} is not a number of actors; use {pool}=4, {pool}=+2 or {pool}=-2")
    new = before + int(text) if text[0] in "+-" else int(text)
    if new < 1:
        raise CantBe(f"{pool}={text} would leave {new} of {before}; leave at least one, or pause the run")
    return new


Decision = tuple[Wanted, str, str]


def _scale(wanted: Wanted, command: Command, now: Now) -> Decision:
    if now.recorded:
        raise CantBe("the run trains on recorded rollouts, so it has no actors")
    if not command.arguments or set(command.arguments) - set(POOLS):
        raise CantBe("name the pools to scale: rollout=+4 judge=2")
    before = {"rollout": now.rollout, "judge": now.judge}
    after = before | {pool: size(text, before[pool], pool) for pool, text in command.arguments.items()}
    text = ", ".join(f"{pool} {before[pool]} → {after[pool]}" for pool in POOLS if pool in command.arguments)
    changed = replace(wanted, **after, scale_for=(*wanted.scale_for, command.id))
    return changed, ACCEPTED, f"actors: {text}"


def _pause(wanted: Wanted, command: Command, now: Now) -> Decision:
    if wanted.paused:
        return wanted, DONE, "it was paused already"
    return replace(wanted, paused=True), DONE, (
        f"paused after step {now.step}: no episode is begun and no further step; those under way go on to their end"
    )  # fmt: skip


def _resume(wanted: Wanted, command: Command, now: Now) -> Decision:
    if not wanted.held:
        return wanted, DONE, "it was not paused"
    return replace(wanted, paused=False, stop_for="", drain=False), DONE, f"goes on after step {now.step}"


def _promote(wanted: Wanted, command: Command, now: Now) -> Decision:
    if now.stage >= now.stages:
        raise CantBe(f"stage {now.stage} is the last; `stop` ends the run")
    when = "once the run goes on, after its next step" if wanted.held else "after the step under way"
    return replace(wanted, leave=now.stage), DONE, f"stage {now.stage} → {now.stage + 1}, {when}"


def _snapshot(wanted: Wanted, command: Command, now: Now) -> Decision:
    if now.step == 0:
        raise CantBe("no learner step is done yet, so there is nothing to keep")
    changed = replace(wanted, checkpoint_for=(*wanted.checkpoint_for, command.id))
    return changed, ACCEPTED, f"a checkpoint of step {now.step} or the one under way is made"


def _stop(wanted: Wanted, command: Command, now: Now) -> Decision:
    drain = command.arguments.get("drain") == "true"
    how = "once the episodes under way are scored and a checkpoint is made" if drain else "now"
    return replace(wanted, stop_for=command.id, drain=drain), ACCEPTED, f"the run stops {how}"


_DECISIONS = {
    "scale": _scale,
    "pause": _pause,
    "resume": _resume,
    "promote": _promote,
    "snapshot": _snapshot,
    "stop": _stop,
}


def at_launch(wanted: Wanted, stage: int, entered: bool) -> Wanted:
    """What is left of it when the driver starts: launched again, it isn't to stop. `entered`: by +stage=N."""
    leave = wanted.leave if wanted.leave == stage and not entered else 0
    return replace(wanted, stop_for="", drain=False, leave=leave)


def configured(wanted: Wanted, counts: Mapping[str, int]) -> dict[str, int]:
    """Actors of each pool, `counts` where nothing else is wanted."""
    return {pool: getattr(wanted, pool) or counts[pool] for pool in POOLS}
