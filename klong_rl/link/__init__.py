"""Weights over a network, from a learner's process to those of engines: NCCL between GPUs, gloo between CPUs.

    learner rank 0                                        each process of an engine (one a tensor-parallel rank)
    accept ◀────────────── connection: Hello ──────────── one connection for as long as both live
    when all of an engine are there: Meet ──────────────▶ both join a group of 1 + N (in a thread, with a deadline)
    ◀───────────────────── Want(version) ──────────────── the engine is paused
    Ready or Refused ───────────────────────────────────▶
    bucket ═══════════ broadcast in the group ═══════════▶ unpacked and loaded while the next one is under way

Every engine has a group of its own with the learner. So an engine that dies spoils no other's update, one that is new
joins by itself, and no list of members has to be agreed on; the price is that the learner sends the weights once for
each engine. A peer that died closes its connection, which ends the other side's wait at once with `LinkLost`; one that
hangs ends it at the deadline. The group is then aborted, for it can't be used again, and made anew by the next `Hello`.
"""

from klong_rl.link.buckets import Bucket, Entry, buckets
from klong_rl.link.channel import Channel, join, prepare
from klong_rl.link.wire import Hello, LinkLost, Meet, Peers, Ready, Refused, Want, connect, receive, send

__all__ = [
    "Bucket",
    "Channel",
    "Entry",
    "Hello",
    "LinkLost",
    "Meet",
    "Peers",
    "Ready",
    "Refused",
    "Want",
    "buckets",
    "connect",
    "join",
    "prepare",
    "receive",
    "send",
]
