"""`python -m klong_rl.scale run=DIR rollout=+4 judge=2`: more or fewer actors of a live run (klong_rl.steer)."""

from __future__ import annotations

from collections.abc import Sequence

from klong_rl import steer
from klong_rl.cli import run_main


def main(arguments: Sequence[str]) -> int:
    """As `klong_rl.steer scale`."""
    return steer.main(["scale", *arguments])


if __name__ == "__main__":
    run_main(main)
