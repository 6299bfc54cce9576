"""`python -m klong_rl.doctor [--ray ADDRESS] [--json]`: what this machine, or each node of a cluster, can do.

One line a check, and the remedy where there is something to mend. Exit status: 0 when a run can start, 1 when a check
fails, 2 when something that was named can't be asked. Runs where nothing is installed yet.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from klong_rl.machine.checks import FAIL, OK, SKIP, WARN, Finding, examine
from klong_rl.machine.gather import gather

STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red", SKIP: "dim"}


def main(argv: Sequence[str]) -> int:
    """Examine and tell; the exit status."""
    asked = parse(argv)
    settings = {"folder": asked.folder, "image": asked.image, "redis_url": asked.redis, "pair": asked.pair}
    if asked.ray:
        from klong_rl.machine.nodes import NodeFailure, gather_nodes

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            facts = gather_nodes(asked.ray, **settings)
        except (NodeFailure, ImportError) as failure:
            print(f"error: --ray {asked.ray}: {failure}", file=sys.stderr)
            return 2
    else:
        facts = {"": gather(**settings)}
    found = {node: examine(of_node) for node, of_node in facts.items()}
    if asked.json:
        print(as_json(found))
    else:
        show(found)
    return exit_status(found)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m klong_rl.doctor", description="What this machine or cluster can do.")
    parser.add_argument(
        "--ray", default="", metavar="ADDRESS", help="ask every node of this Ray cluster (auto, host:6379)"
    )
    parser.add_argument("--redis", default="", metavar="URL", help="look at this Redis, as in buffer.url")
    parser.add_argument("--folder", default="runs", help="where runs will be (root=)")
    parser.add_argument("--image", default="klong-sandbox", help="of the sandboxes (sandbox.image=)")
    parser.add_argument("--no-pair", dest="pair", action="store_false", help="leave out the test of two processes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def exit_status(found: Mapping[str, Sequence[Finding]]) -> int:
    """1 if a check failed anywhere."""
    return int(any(finding.status == FAIL for findings in found.values() for finding in findings))


def as_json(found: Mapping[str, Sequence[Finding]]) -> str:
    """Rows with node (empty: this machine), check, status, says, remedy; and the exit status."""
    rows = [{"node": node, **asdict(finding)} for node, findings in found.items() for finding in findings]
    return json.dumps({"exit": exit_status(found), "findings": rows}, indent=2)


def show(found: Mapping[str, Sequence[Finding]]) -> None:
    """One line a check; in colours where rich is installed."""
    if importlib.util.find_spec("rich") is None:
        for node, findings in found.items():
            print(*([node] if node else []), *map(line, findings), sep="\n")
        return
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for node, findings in found.items():
        if node:
            console.print(Text(node, style="bold"))
        for finding in findings:
            text = Text(line(finding))
            text.stylize(STYLES[finding.status], 0, 4)
            console.print(text, soft_wrap=True)


def line(finding: Finding) -> str:
    """`fail  redis          redis-server is not on the PATH → run ...`"""
    remedy = f" → {finding.remedy}" if finding.remedy else ""
    return f"{finding.status:<4}  {finding.check:<13}  {finding.says}{remedy}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
