"""How much of a host's disk the snapshots of a run take, and which go where that is too much."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

SETTLES_S = 600.0  # from a commit to the buffer's word that it is needed, and a difference between two clocks


class Kept(NamedTuple):
    """A snapshot: `own_bytes` are on disk for it alone, `made` is in seconds since 1970."""

    id: str
    own_bytes: int
    made: float


def kept(snapshots: Iterable[dict[str, Any]], images: Iterable[dict[str, Any]]) -> list[Kept]:
    """Of `snapshots` among all `images`, as `api.images` lists them. A commit adds one layer to its parent.

    One that was copied from another host has no parent here: all of it counts.

    >>> kept([{"Id": "b", "ParentId": "a", "Size": 107, "Created": 5}], [{"Id": "a", "Size": 100}])
    [Kept(id='b', own_bytes=7, made=5)]
    """
    sizes = {image["Id"]: image["Size"] for image in images}
    return [Kept(each["Id"], each["Size"] - sizes.get(each["ParentId"], 0), each["Created"]) for each in snapshots]


def total(found: Iterable[Kept]) -> int:
    """Their bytes."""
    return sum(each.own_bytes for each in found)


def surplus(found: Iterable[Kept], needed: Collection[str], most_bytes: int, now: float) -> list[str]:
    """The ids of what to remove to get under `most_bytes`: the oldest that aren't needed, and not too new to be known.

    >>> three = [Kept("c", 5, 30.0), Kept("a", 5, 10.0), Kept("b", 5, 20.0)]
    >>> surplus(three, {"a"}, 11, now=999.0), surplus(three, {"a"}, 9, now=999.0), surplus(three, {"a"}, 1, now=625.0)
    (['b'], ['b', 'c'], ['b'])
    """
    oldest_first = sorted(found, key=lambda each: each.made)
    taken, gone = total(oldest_first), []
    for each in oldest_first:
        if taken < most_bytes:
            break
        if each.id not in needed and now - each.made > SETTLES_S:
            taken -= each.own_bytes
            gone.append(each.id)
    return gone
