"""What a GPU is used for, and how well: learner, rollout, publish and agreement, each beside its rival in one run.

    python -m benchmarks.gpu [--models NAME ...] [--parts learner engine] [--json OUT]

Needs one GPU with 80 GB; takes about four minutes a model. `--json` gets the device, the versions and every figure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import models
from benchmarks.gpu.parts import PARTS, host, in_child


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(models.SHAPES), choices=list(models.SHAPES))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="in this order")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "klong-gpu-models")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    results: dict[str, Any] = {"host": in_child(host)}
    for name in options.models:
        folder = in_child(models.build, name, options.folder)
        for part in options.parts:
            for result in PARTS[part](name, folder):
                results.setdefault(part, []).append(result)
                print(f"{part}, after {time.monotonic() - began:.0f} s: {json.dumps(result, indent=1)}", flush=True)
                if options.json:
                    options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
