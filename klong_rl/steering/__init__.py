"""A live run is steered: a command goes through the run's Redis to its driver, which answers what changed.

    python -m klong_rl.steer ... ──▶ asked ──▶ driver: decide ──▶ wanted + answer, in one write ──▶ the command's caller
                                                  │
                                                  └▶ what is wanted holds until it is so: at the next safe point, after
                                                     a restart of the driver too

A command changes only what is wanted, and that is kept together with its answer; so it is carried out once, whenever
the driver dies. What is wanted is then brought about at points where nothing can be lost (docs/operations.md).
"""
