"""What the learner made of each token: RUN/logprobs/step-000012.r0.npz, the log-probs of one rank's targets in a step.

They are of the training forward pass, before the update, at the sampler's temperature: beside those of the sampler
(klong_rl.buffer.archive) they tell how far apart the two are, token by token. 4 bytes a target. Nothing depends on
them, so they are not made durable: a file that a crash lost is missing, and a step that is trained again writes its own
over it.

    windows     the ids of the windows
    counts      int64, how many targets each has
    logprobs    float32, of all targets, window by window, in the order in which they stand there
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

FOLDER = "logprobs"  # of a run directory


def write_learned(folder: Path, step: int, rank: int, logprobs: Mapping[str, np.ndarray]) -> None:
    """`logprobs`: float32 [targets] by window id."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06d}.r{rank}.npz"
    partial = folder / f".{path.name}.new"
    with partial.open("wb") as file:
        np.savez(
            file,
            windows=np.array(list(logprobs), dtype=np.str_),
            counts=np.array([len(each) for each in logprobs.values()], np.int64),
            logprobs=np.concatenate([np.zeros(0, np.float32), *logprobs.values()]),
        )
    os.replace(partial, path)


def read_learned(folder: Path, step: int, windows: Collection[str]) -> dict[str, np.ndarray]:
    """Those of these windows that were kept, float32 [targets] each."""
    found: dict[str, np.ndarray] = {}
    for path in folder.glob(f"step-{step:06d}.r*.npz"):
        with np.load(path, allow_pickle=False) as kept:
            names, counts = kept["windows"].tolist(), kept["counts"]
            wanted = [place for place, name in enumerate(names) if name in windows]
            if wanted:
                ends, all_logprobs = np.cumsum(counts), kept["logprobs"]
                found |= {names[i]: all_logprobs[ends[i] - counts[i] : ends[i]] for i in wanted}
    return found
