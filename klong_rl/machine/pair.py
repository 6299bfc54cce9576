"""The pair test: two processes add up a tensor, over NCCL (a GPU each) or gloo, and both must have the sum.

`python -m klong_rl.machine.pair BACKEND RANK STORE` is one of the two.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from klong_rl.machine.facts import Pair

DEADLINE_S = 120.0  # torch takes seconds to import, NCCL seconds to find its way
ELEMENTS = 1 << 24  # float32: 67 MB, enough for the links' own speed
ROUNDS = 5


def try_pair(backend: str) -> Pair:
    """Run both. What goes wrong is in the answer."""
    with tempfile.TemporaryDirectory(prefix="klong-doctor-") as folder:
        command = [sys.executable, "-m", "klong_rl.machine.pair", backend]
        store = str(Path(folder, "store"))
        ranks = [
            subprocess.Popen([*command, str(rank), store], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for rank in (0, 1)
        ]
        until = time.monotonic() + DEADLINE_S
        try:
            said = [rank.communicate(timeout=max(0.1, until - time.monotonic())) for rank in ranks]
        except subprocess.TimeoutExpired:
            return Pair(backend, f"two processes didn't find each other within {DEADLINE_S:g} s")
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
    for rank, (_, wrong) in zip(ranks, said, strict=True):
        if rank.returncode != 0:
            return Pair(backend, (wrong.strip().splitlines() or [f"ended with {rank.returncode}"])[-1])
    return Pair(backend, "", float(said[0][0].split()[-1]))


def main(backend: str, rank: int, store: str) -> None:
    """One of the two; prints GB/s."""
    import torch
    import torch.distributed as dist

    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=2)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    try:
        ones_N = torch.ones(ELEMENTS, device=device)
        dist.all_reduce(ones_N)
        if not bool((ones_N == 2).all()):
            raise SystemExit("the sum of two ones is not two everywhere")
        began = time.perf_counter()
        for _ in range(ROUNDS):
            dist.all_reduce(ones_N)
        if backend == "nccl":
            torch.cuda.synchronize(device)
        print(ROUNDS * ones_N.nbytes / 1e9 / (time.perf_counter() - began))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
