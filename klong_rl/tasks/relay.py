"""relay: clue files in a real shell, each naming the next; a memory that is too small; an answer to write down.

    $ cat amber
    digit 7
    next cedar
    $ echo 7 >> notes; cat cedar
    digit 2
    end
    $ echo 2 >> notes; cp notes answer
    $ submit

The agent sees only its newest turns (the context rule), so a digit that it does not note is lost. Scored by the share
of the code's digits that `answer` has in the right place. Difficulty is the number of clues.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from klong_rl.observation import observation_text
from klong_rl.types import Limits, Task

# Names are single words so that a small tokenizer has one token for each.
WORDS = (
    "amber ash bay birch cedar clover coral cotton daisy elder fern fig flax hazel holly iris ivy jade kelp lemon "
    "lilac maple mint moss oak olive palm pine plum rose sage willow"
).split()
DECOYS = 3
ONE_IN_HELD_OUT = 5
NO_NOTES = observation_text("cp: cannot stat 'notes': No such file or directory\n", exit_code=1)
LIMITS = Limits(memory_mb=64, cpus=1.0, pids=32, disk_mb=16)


@dataclass(frozen=True)
class RelayTasks:
    """Tasks of `difficulty` clues. `seed` picks the stream; held-out chains are disjoint from any seed's training."""

    image: str = "klong-sandbox"
    seed: int = 0

    def train(self, difficulty: int, index: int) -> Task:
        return self._task("train", difficulty, index)

    def held_out(self, difficulty: int, index: int) -> Task:
        return self._task("held-out", difficulty, index)

    def _task(self, split: str, difficulty: int, index: int) -> Task:
        if not 1 <= difficulty <= len(WORDS) - DECOYS:
            raise ValueError(f"relay difficulty is the number of clues, 1 to {len(WORDS) - DECOYS}, not {difficulty}")
        rng = random.Random(f"relay/{self.seed}/{split}/{difficulty}/{index}")
        while True:
            names = rng.sample(WORDS, difficulty + DECOYS)
            digits = [str(rng.randrange(10)) for _ in names]
            chain, code = names[:difficulty], "".join(digits[:difficulty])
            if is_held_out(chain, code) == (split == "held-out"):
                break
        files = {name: clue(digits[i], chain[i + 1] if i + 1 < difficulty else None) for i, name in enumerate(chain)}
        for name, digit in zip(names[difficulty:], digits[difficulty:], strict=True):
            files[name] = clue(digit, rng.choice(chain))
        return Task(
            id=f"relay/{split}/{difficulty}/{self.seed}/{index}",
            family="relay",
            instruction=instruction(chain[0]),
            image=self.image,
            limits=LIMITS,
            files=files,
            secret={"file": "answer", "expected": code, "chain": chain},
        )


def instruction(first: str) -> str:
    return f"Follow the clues from the file {first}. Append each digit to notes. At the end copy notes to answer."


def clue(digit: str, following: str | None) -> bytes:
    return f"digit {digit}\n{f'next {following}' if following else 'end'}\n".encode()


def is_held_out(chain: list[str], code: str) -> bool:
    """A property of the chain itself, so that no seed, index or difficulty can carry a chain across."""
    digest = hashlib.blake2b(f"{' '.join(chain)}/{code}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % ONE_IN_HELD_OUT == 0


@dataclass(frozen=True)
class RelayDemonstrator:
    """Solves relay tasks, not always well: what a cold start learns from, and what RL has to improve on.

    With probability `forgets` a digit is not noted; with probability `gives_up` the agent hands in what it has before
    the next clue. Both are drawn anew each turn, so that a policy which imitates them can tell good from bad by trial.
    """

    forgets: float = 0.25
    gives_up: float = 0.08

    def demonstrate(self, task: Task, rng: random.Random) -> list[tuple[str, str]]:
        chain, code = task.secret["chain"], task.secret["expected"]
        turns, noted = [(f"cat {chain[0]}", task.files[chain[0]].decode())], False
        for here, digit in enumerate(code):
            note = "" if rng.random() < self.forgets else f"echo {digit} >> notes; "
            noted = noted or bool(note)
            last = here + 1 == len(code)
            if last or rng.random() < self.gives_up:
                turns.append((f"{note}cp notes answer", "" if noted else NO_NOTES))
                break
            turns.append((f"{note}cat {chain[here + 1]}", task.files[chain[here + 1]].decode()))
        return [*turns, ("submit", "")]
