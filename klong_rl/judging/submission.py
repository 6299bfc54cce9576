"""What an episode left to be read by a judge: its text files, and which of them a requirement is about."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from klong_rl.failures import AgentFailure, InfrastructureFailure

# Of other people's making, or made by programs: not the submission.
LEFT_OUT = (".git", "node_modules", "__pycache__", ".venv", "venv", ".cache")
PLACEHOLDER = ".keep"  # empty, of a folder that a task begins with
LISTING_BYTES = 1 << 20  # of the list of files: some ten thousand of them
LISTING_S = 30.0
FIRST_FILES = ("readme.md", "reproduce.sh", "reproduce.log")  # in PaperBench they say what was done, and how it went
_K1, _B = 1.2, 0.75  # of BM25, the values that everyone uses
_EMPTY = frozenset(  # words that stand everywhere, and in a small submission may look rare
    "a an and are as at be been by do for from has have if in is it its not of on or that the this to was with".split()
)
_WORD = re.compile(r"[a-z]+|\d+")


async def read_submission(sandbox: Any, most_files: int, file_bytes: int, folder: str = ".") -> dict[str, str]:
    """Text by path, of at most `most_files` files below `folder` and so many bytes of each; none if there is none.

    `folder` is relative to the working directory, the paths to `folder`.

    Files near the top come first. What is no text has only its size told. Raises AgentFailure where the directory
    can't be listed, InfrastructureFailure.
    """
    left_out = " -o ".join(f"-name {name}" for name in LEFT_OUT)
    command = f"find . -type d \\( {left_out} \\) -prune -o -type f -print"
    listing = await sandbox.exec(command, timeout_s=LISTING_S, output_limit=LISTING_BYTES)
    if listing.interrupted:
        raise InfrastructureFailure(f"the sandbox of {sandbox.episode} was lost while its files were listed")
    if listing.timed_out or listing.exit_code is None:
        raise AgentFailure(f"the files of {sandbox.episode} can't be listed within {LISTING_S:g} s")
    files: dict[str, str] = {}
    inside = "" if folder == "." else f"{folder}/"
    for found in [path for path in listed(listing.output) if path.startswith(inside)][:most_files]:
        try:
            data = await sandbox.read(found, limit=file_bytes)
        except FileNotFoundError:
            continue  # a name that is no UTF-8 is listed as another
        path = found.removeprefix(inside)
        if path == PLACEHOLDER and not data:
            continue
        files[path] = f"(binary, {len(data)} bytes read)" if b"\0" in data else data.decode(errors="replace")
    return files


def listed(output: str) -> list[str]:
    """The paths of a listing, near the top first. Lines that are none (a name with a line break) are left out."""
    paths = [line.removeprefix("./") for line in output.splitlines() if line.startswith("./")]
    return sorted(paths, key=lambda path: (path.count("/"), path))


class Ranking:
    """The order of a submission's files for any requirement: FIRST_FILES, then by BM25 on path and text.

    PaperBench has the judge model rank them, a request for each leaf; this needs none and answers the same each time.
    Made once: it counts all words.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        self._counts = {path: Counter(_words(f"{path}\n{text}")) for path, text in files.items()}
        self._totals = {path: found.total() for path, found in self._counts.items()}
        self._mean = sum(self._totals.values()) / max(1, len(files)) or 1.0
        self._with = Counter(word for found in self._counts.values() for word in found)

    def order(self, requirement: str) -> list[str]:
        """The paths, those that a requirement is about first."""
        wanted = {word: self._rarity(word) for word in set(_words(requirement)) - _EMPTY}

        def score(path: str) -> float:
            found, norm = self._counts[path], _K1 * (1 - _B + _B * self._totals[path] / self._mean)
            return sum(rarity * found[word] * (_K1 + 1) / (found[word] + norm) for word, rarity in wanted.items())

        return sorted(self._counts, key=lambda path: (not _is_first(path), -score(path), path))

    def _rarity(self, word: str) -> float:
        n_with = self._with[word]
        return math.log(1 + (len(self._counts) - n_with + 0.5) / (n_with + 0.5))


def _words(text: str) -> list[str]:
    """Lower-case words and numbers; `learningRate` and `learning_rate` have the same two."""
    return _WORD.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower())


def _is_first(path: str) -> bool:
    return path.lower() in FIRST_FILES
