"""The campaign: run after run of the real main job, kill after kill, each run audited once it has finished.

launch ─▶ episodes run ─▶ [wait a random while ─▶ kill ─▶ prove it ─▶ wait for progress] ─▶ finish ─▶ audit
  ▲                                                                                                    │
  └──────────────────────────────── another run, while kills are owed ◀────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.chaos.audit import audit
from tests.chaos.evidence import gather
from tests.chaos.faults import FAULTS, RECOVERY_S, NotFired
from tests.chaos.report import Campaign, Fired
from tests.chaos.scene import MAX_STALENESS, STEPS, NoRecovery, RunEnded, Scene
from tests.private_dockerd import PrivateDockerd

BETWEEN_S = (0.0, 6.0)  # from a recovery to the next kill
BEGIN_S = 600.0  # from the launch to the first segment, the cold start included
FINISH_S = 600.0  # from the last kill to the end of the run
GONE_S = 240.0  # from the end of a run to that of its last process: Ray's agents look for a dead raylet at leisure
SPARED_STEPS = 2  # no kill when fewer are left: the run might end before it shows that it recovered

Say = Callable[[str], None]


def in_order(kinds: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Endlessly: every kind once in random order, then again in another; so each comes as often as any other."""
    while True:
        yield from rng.sample(sorted(kinds), len(kinds))


async def attack(
    root: Path, cache: Path, daemon: PrivateDockerd, kinds: Sequence[str], seed: int, kills: int, say: Say
) -> Campaign:
    """Fire `kills` kills of these kinds, in as many runs as that takes. What goes wrong in a run is in the answer."""
    rng = random.Random(f"chaos/{seed}")
    order = in_order(kinds, rng)
    campaign = Campaign()
    runs = 0
    while len(campaign.fired) < kills and not campaign.failures:
        scene = Scene(root, f"run-{runs}", cache, daemon)
        runs += 1
        fired: list[Fired] = []
        try:
            await _attack_run(scene, order, rng, kills - len(campaign.fired), fired, campaign, say)
            evidence = gather(scene.run_dir, MAX_STALENESS, STEPS)
            found = audit(evidence)
            campaign.add(fired, evidence.history, found)
            say(f"{scene.name}: audited, {sum(found.tokens.values())} action tokens, {len(found.crimes)} crimes")
        except (RunEnded, NoRecovery) as failure:
            campaign.failures.append(f"{scene.name}: {failure}")
            campaign.fired += fired
        finally:
            scene.stop()
    return campaign


async def _attack_run(
    scene: Scene, order: Iterator[str], rng: random.Random, owed: int, fired: list[Fired], campaign: Campaign, say: Say
) -> None:
    """One run from its launch to its end."""
    scene.start()
    say(f"{scene.name}: launched, {scene.run_dir}")

    async def samples() -> bool:
        pulse = await scene.pulse()
        return pulse is not None and pulse.appended > 0

    took = await scene.until("the first segment", samples, BEGIN_S)
    say(f"{scene.name}: samples after {took:.0f} s")
    while len(fired) < owed:
        await asyncio.sleep(rng.uniform(*BETWEEN_S))
        if scene.ended() or STEPS - scene.steps_done() < SPARED_STEPS:
            break
        kind = next(order)
        try:
            fired.append(await _strike(scene, kind, rng, say))
        except NotFired as reason:
            campaign.not_fired.append(f"{scene.name} {kind}: {reason}")
            say(f"{scene.name}: {kind} did not fire: {reason}")
    took = await scene.until("the end of the run", _never, FINISH_S)
    say(f"{scene.name}: finished {took:.0f} s after the last recovery")
    await scene.leaves_nothing(GONE_S)


async def _strike(scene: Scene, kind: str, rng: random.Random, say: Say) -> Fired:
    """One kill, and the wait for the run to recover from it."""
    step = scene.steps_done()
    kill = await FAULTS[kind](scene, rng)
    await scene.until(f"recovery from {kind} ({kill.victim})", kill.recovered, RECOVERY_S)
    took = time.monotonic() - kill.moment.at
    say(f"{scene.name} step {step:2}/{STEPS}: {kind:9} {kill.victim}, recovered in {took:.1f} s")
    return Fired(kind, scene.name, kill.victim, kill.moment.position, took)


async def _never() -> bool:
    return False
