"""`python -m klong_rl.steer VERB run=DIR`: steer a live run. Each verb answers what changed.

    scale run=DIR rollout=+4 judge=2     also python -m klong_rl.scale; what goes away hands its episodes on
    pause | resume run=DIR               no episode is begun and no step taken; those under way go on to their end
    promote run=DIR                      leave this stage of the curriculum at the end of the step
    snapshot run=DIR                     a checkpoint now
    stop run=DIR [--drain]               as Ctrl-C; --drain: after what is under way is scored and kept

`wait=SECONDS`: for what takes its time, 300 by default. docs/operations.md says what each does.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from klong_rl.buffer import BufferAddress, Unavailable
from klong_rl.buffer.connection import Connection
from klong_rl.cli import run_main
from klong_rl.errors import UserError
from klong_rl.launch import run_id
from klong_rl.status import find
from klong_rl.steering.mailbox import Mailbox
from klong_rl.steering.wanted import ACCEPTED, POOLS, REFUSED, VERBS, Answer, Command

ANSWER_S = 30.0  # for the driver to take a command: it looks each half second
WAIT_S = 300.0  # for what it then brings about
LOOK_S = 0.2
USAGE = f"use python -m klong_rl.steer {'|'.join(VERBS)} run=DIR"


def main(arguments: Sequence[str]) -> int:
    """Ask, and tell the answer; the exit code."""
    verb, run_dir, given, wait_s = parse(arguments)
    try:
        answer = asyncio.run(_steer(verb, run_dir, given, wait_s))
    except Unavailable as fault:
        raise UserError(str(fault)) from fault
    if answer.status == REFUSED:
        raise UserError(f"{verb}: {answer.text}")
    print(answer.text if answer.status != ACCEPTED else f"{answer.text}; under way after wait={wait_s:g} s")
    return 0


def parse(arguments: Sequence[str]) -> tuple[str, Path, dict[str, str], float]:
    """Verb, run directory, the verb's own arguments, seconds to wait. Raises UserError."""
    if not arguments or arguments[0] not in VERBS:
        raise UserError(f"{arguments[0] if arguments else 'no verb'} is not understood; {USAGE}")
    verb, given = arguments[0], {}
    for argument in arguments[1:]:
        key, _, value = ("drain", "=", "true") if argument == "--drain" else argument.partition("=")
        own = POOLS if verb == "scale" else ("drain",) if verb == "stop" else ()
        if key not in ("run", "wait", *own) or not value:
            raise UserError(f"{argument} is not understood by {verb}; {USAGE}")
        given[key] = value
    if "run" not in given:
        raise UserError(f"no run is named; {USAGE}")
    wait = given.pop("wait", f"{WAIT_S:g}")
    if not re.fullmatch(r"\d+", wait):
        raise UserError(f"wait={wait} is not a whole number of seconds; {USAGE}")
    return verb, Path(given.pop("run")).resolve(), given, float(wait)


async def _steer(verb: str, run_dir: Path, given: dict[str, str], wait_s: float) -> Answer:
    place = find(run_dir)
    if not place.url:
        raise UserError(
            f"run={run_dir} is down, so there is nothing to steer; python -m klong_rl.launch starts it again"
        )
    connection = Connection(BufferAddress(place.url, run_id(run_dir), ANSWER_S))
    try:
        return await ask(Mailbox(connection), verb, given, wait_s)
    finally:
        await connection.close()


async def ask(mailbox: Mailbox, verb: str, given: dict[str, str], wait_s: float, answer_s: float = ANSWER_S) -> Answer:
    """The last answer within `answer_s` and then `wait_s`. UserError where no driver takes the command in time."""
    now = await mailbox.now()
    command = Command(id=uuid.uuid4().hex, verb=verb, arguments=given, asked=now, deadline=now + answer_s)
    await mailbox.ask(command)
    until = time.monotonic() + answer_s
    while (answer := await mailbox.answer(command.id)) is None:
        over_s = time.monotonic() - until
        if over_s > 0 and (await mailbox.withdraw(command.id) or over_s > answer_s):
            raise UserError(
                f"the run's driver took no command within {answer_s:g} s, and {verb} is withdrawn; it takes them once "
                "its learner and actors have started: see what its terminal says"
            )
        await asyncio.sleep(LOOK_S)
    until = time.monotonic() + wait_s
    while answer.status == ACCEPTED and time.monotonic() < until:
        await asyncio.sleep(LOOK_S)
        try:
            answer = await mailbox.answer(command.id) or answer
        except Unavailable:
            if verb != "stop":
                raise
            return answer  # the run's own Redis has ended with it
    return answer


if __name__ == "__main__":
    run_main(main)
