"""How far the weights are from those that sampled a token, in learner updates, also after the run went back.

    updates         0 ── 1 ── 2 ── 3 ── 4 ┄┄ 5 ┄┄ 6        a rank died here; the newest checkpoint is of update 4
    versions        1    2    3    4    5    6    7
                                        8 ── 9             version 8 repeats the weights of 5; now at 9, of update 5

A version survives if its weights are an ancestor of those that are trained now; a lineage maps each of these to its
update. Version 7 is dead: the weights went two updates back from it, then one forward, so it is 3 updates away. What
may be trained is what is at most `max_staleness` updates away. Pure functions; a dead version is never nearer than the
answer says it isn't: a number that was given out and never published makes the distance longer, not shorter.
"""

from __future__ import annotations

Lineage = dict[int, int]  # surviving policy version -> learner updates that its weights hold; both grow


def distance(lineage: Lineage, step: int, version: int) -> int:
    """Updates between the weights of `version` and those of `step`. `version` isn't below the lineage's first."""
    fork = max(survivor for survivor in lineage if survivor <= version)
    return (version - fork) + (step - lineage[fork])


def within_reach(lineage: Lineage, step: int, max_staleness: int) -> tuple[int, tuple[int, ...]]:
    """The oldest version that may be trained at `step`, and the dead versions after it that may not be.

    >>> within_reach({1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 8: 4, 9: 5}, step=5, max_staleness=2)
    (4, (7,))
    """
    oldest = min(version for version, at in lineage.items() if step - at <= max_staleness)
    published = range(oldest, max(lineage) + 1)
    return oldest, tuple(version for version in published if distance(lineage, step, version) > max_staleness)
