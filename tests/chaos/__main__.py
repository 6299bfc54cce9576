"""`python -m tests.chaos [--seed N] [--kills N] [--only KIND ...] [--json OUT]`: kill parts of real runs, audit them.

Exit code 0: every kill fired and was recovered from, no token was lost, none was trained twice, every check held.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from klong_rl.interrupt import EXIT_CODES
from tests.chaos.campaign import attack
from tests.chaos.faults import FAULTS
from tests.chaos.report import show, write_json
from tests.launched import ROOT
from tests.private_dockerd import PrivateDockerd

IMAGE = "klong-sandbox"


def main() -> int:
    """The exit code."""
    arguments = _arguments()
    console = Console(width=140)
    # A short path: sockets lie in it.
    root = Path(tempfile.mkdtemp(prefix="klong-chaos-"))
    daemon = PrivateDockerd(root / "d")
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:6.0f} s  {text}", markup=False, highlight=False)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_CODES[signal.SIGTERM]))  # so that what was started is ended
    daemon.start()
    try:
        daemon.load_image(IMAGE)
        campaign = asyncio.run(
            attack(root, arguments.cache, daemon, arguments.only, arguments.seed, arguments.kills, say)
        )
    except KeyboardInterrupt:
        say(f"stopped; what the runs left is kept in {root}")
        return EXIT_CODES[signal.SIGINT]
    finally:
        daemon.stop()
    show(campaign, arguments.only, console)
    if arguments.json:
        write_json(campaign, arguments.seed, arguments.json)
    clean = campaign.is_clean(arguments.kills)
    if clean:
        shutil.rmtree(root)
    else:
        say(f"what the runs left is kept in {root}")
    return 0 if clean else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos ARGS=...", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of victims, order and moments")
    parser.add_argument("--kills", type=int, default=56, help="that must fire, over all kinds")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), help="these kinds")
    parser.add_argument("--json", type=Path, help="where to write every kill and every finding")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache", help="of the cold start, made once")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
